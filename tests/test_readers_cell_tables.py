"""Tables of cells as CosMx and MERSCOPE write them, by the generic reader."""

import os

import numpy as np
import pandas as pd
import pytest
from layouts import make_source
from PIL import Image

from delst_hf.cli import main
from delst_hf.data.readers.generic import read_generic
from delst_hf.data.readers.matrices import read_counts


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = make_source()
    Image.fromarray(source.pixels).save("he.png")
    return source


def counts_of(slide, names):
    return slide.counts.toarray()[[slide.spots.index.get_loc(name) for name in names]][:, :4].tolist()


@pytest.mark.parametrize("atomx", [False, True])
def test_cosmx(source, capsys, atomx):
    """Cells numbered anew in each field of view; number 0 is what lies in no cell. AtoMx writes a name of each cell too."""
    keys = pd.DataFrame({"fov": np.arange(12) // 6 + 1, "cell_ID": np.arange(12) % 6 + 1})
    genes = pd.DataFrame(source.counts[:, :4], columns=["ACTB", "GAPDH", "ERBB2", "CD74"])
    background = pd.DataFrame([[1, 0, 9, 9, 9, 9]], columns=[*keys, *genes])
    table = pd.concat([background, pd.concat([keys, genes], axis=1)])
    if atomx:
        table.insert(2, "cell", [f"c_1_{fov}_{cell}" for fov, cell in table[["fov", "cell_ID"]].to_numpy()])
    table.to_csv("S_exprMat_file.csv", index=False)
    places = source.spots[["x", "y"]].to_numpy() / 0.5
    told = {"CenterX_global_px": places[:, 0], "CenterY_global_px": places[:, 1], "Area.um2": 30.5 + np.arange(12)}
    keys.assign(**told).to_csv("S_metadata_file.csv", index=False)
    slide = read_generic(
        "he.png", "S_exprMat_file.csv", "S_metadata_file.csv", barcode_column="fov,cell_ID", x_column="CenterX_global_px",
        y_column="CenterY_global_px", area_column="Area.um2", scale=0.5, mpp=5.0, technology="CosMx",
    )  # fmt: skip
    names = [f"{fov}_{cell}" for fov, cell in keys.to_numpy()]
    assert sorted(slide.spots.index) == sorted(names)
    assert counts_of(slide, names) == source.counts[:, :4].tolist()
    assert slide.spots.loc[names, "cell_area_um2"].tolist() == (30.5 + np.arange(12)).tolist()
    np.testing.assert_allclose(slide.spots.loc[names, ["x", "y"]], source.spots[["x", "y"]])
    table.astype({"fov": str}).to_parquet("counts.parquet", index=False)
    assert read_counts("counts.parquet", key=["fov", "cell_ID"]).matrix.sum() == slide.counts.sum() + 36
    os.remove("counts.parquet")
    assert main(["check", ".", "--image", "he.png", "--scale", "0.5", "--mpp", "5", "--area-column", "Area.um2"]) == 0
    assert "spots    12" in capsys.readouterr().out


def write_merscope(source):
    """Numbers of cells beyond 2^53, um with an origin, and the matrix of the mosaic, separated by blanks."""
    names = [str(1504440900000100001 + i) for i in range(12)]
    table = pd.DataFrame(
        source.counts[:, :4], columns=["ACTB", "GAPDH", "ERBB2", "CD74"], index=pd.Index(names, name="cell")
    )
    table.to_csv("cell_by_gene.csv")
    um = source.spots[["x", "y"]].to_numpy() * 2 * 0.108 + [1000, -500]  # of a mosaic twice as fine as the H&E
    pd.DataFrame({"fov": 0, "volume": 200.0, "center_x": um[:, 0], "center_y": um[:, 1]}, index=names).to_csv(
        "cell_metadata.csv"
    )
    s = 1 / 0.108
    np.savetxt("micron_to_mosaic_pixel_transform.csv", [[s, 0, -1000 * s], [0, s, 500 * s], [0, 0, 1]])
    np.savetxt("to_he.csv", [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]], delimiter=",")
    return names


def test_merscope(source):
    names = write_merscope(source)
    options = {"x_column": "center_x", "y_column": "center_y", "mpp": 0.216, "technology": "MERSCOPE"}
    slide = read_generic("he.png", "cell_by_gene.csv", "cell_metadata.csv",
                         transform="micron_to_mosaic_pixel_transform.csv,to_he.csv", **options)  # fmt: skip
    assert sorted(slide.spots.index) == names
    assert counts_of(slide, names) == source.counts[:, :4].tolist()
    np.testing.assert_allclose(slide.spots.loc[names, ["x", "y"]], source.spots[["x", "y"]], rtol=1e-6)
    squares = read_generic("he.png", "cell_by_gene.csv", "cell_metadata.csv", grid_um=10.8,
                           transform="micron_to_mosaic_pixel_transform.csv,to_he.csv", **options)  # fmt: skip
    assert squares.counts.sum() == slide.counts.sum() and squares.spot_um == 10.8 and len(squares.spots) < 12
    with pytest.raises(ValueError, match="--scale and --transform both"):
        read_generic("he.png", "cell_by_gene.csv", "cell_metadata.csv", transform="to_he.csv", scale=2.0, **options)
    np.savetxt("flat.csv", np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"flat.csv is not an invertible 3 x 3 matrix.*--transform"):
        read_generic("he.png", "cell_by_gene.csv", "cell_metadata.csv", transform="flat.csv", **options)
    with pytest.raises(KeyError, match=r"columns \['area'\] are missing.*--area-column"):
        read_generic("he.png", "cell_by_gene.csv", "cell_metadata.csv", area_column="area", **options)
