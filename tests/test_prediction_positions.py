"""Positions of patches by one rule, whether a table, an AnnData, a dataset folder or a file of features says them."""

import gzip
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from delst_hf.data.dataset import write_dataset
from delst_hf.data.folder import open_folder
from delst_hf.data.readers.image import read_slide_image
from delst_hf.data.schema import write_manifest
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide
from delst_hf.prediction import positions
from delst_hf.prediction.positions import read_positions
from delst_hf.prediction.source import features_source, slide_source

pytestmark = pytest.mark.fault("positions")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", b"\x1f\x8b\x00\x01"), ("a.csv", b""), ("a.parquet", b"PAR1x PAR1"), ("a.h5ad", b"\x89HDF\r\n\x1a\nx")],
)
def test_positions_that_cannot_be_read_are_named(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=rf"cannot read the positions .*{name}.*Give a CSV, parquet or .h5ad"):
        read_positions(str(tmp_path / name))


def test_columns_of_other_names_are_told_with_the_next_step(tmp_path):
    file = tmp_path / "cells.csv"
    file.write_text("cell_id,x_centroid,y_centroid\na,3,4\n")
    with pytest.raises(
        ValueError, match=r"'x_centroid'.* found. Needed: x and y, in pixels.*or the table of positions of Space"
    ):
        read_positions(str(file))
    pd.DataFrame(np.ones((2, 3000), int)).to_csv(file)
    with pytest.raises(ValueError, match=r"'18', ... 3001 in all\] found.*Put a line of names above") as told:
        read_positions(str(file))
    assert len(str(told.value)) < 500


def test_columns_in_capitals_are_x_and_y(tmp_path):
    (tmp_path / "cells.csv").write_text("barcode,Y,X\na,4,3\n")
    assert read_positions(str(tmp_path / "cells.csv"))[["x", "y"]].to_numpy().tolist() == [[3, 4]]


SPACE_RANGER = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
ROWS = ["0007,1,0,0,30,40", "0008,0,0,2,30,50", "NA,1,0,4,30,60"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("tissue_positions.csv", [SPACE_RANGER, *ROWS]),
        ("tissue_positions_list.csv", ROWS),
        ("spreadsheet.csv", [row.replace(",", ";").replace("30", "30,0") for row in [SPACE_RANGER, *ROWS]]),
        ("tissue_positions.csv.gz", ROWS),
        ("tissue_positions.parquet", ROWS),
    ],
)
def test_tables_of_space_ranger_are_read_as_they_are(tmp_path, name, lines, caplog):
    """With its header or without, row before column, and without the spots that are not on tissue."""
    file = tmp_path / name
    if file.suffix == ".parquet":
        table = pd.DataFrame([row.split(",") for row in lines], columns=SPACE_RANGER.split(","))
        table.astype(dict.fromkeys(table.columns[1:], float)).to_parquet(file)
    else:
        text = "\n".join(lines).encode()
        file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    with caplog.at_level("INFO"):
        found = read_positions(str(file))
    assert found["x"].tolist() == [40, 60] and found["y"].tolist() == [30, 30] and found["array_col"].tolist() == [0, 4]
    assert found.index.tolist() == ["0007", "NA"]
    assert caplog.messages == [f"{name}: in_tissue is 0: left out 1 of 3 spots"]


def test_the_only_row_without_a_header_is_a_place_and_none_on_tissue_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text(ROWS[0])
    assert read_positions(str(tmp_path / "a.csv"))["x"].tolist() == [40]
    (tmp_path / "b.csv").write_text(ROWS[1])
    with pytest.raises(ValueError, match="b.csv: in_tissue is 1 for none of 1 spots. Correct that column"):
        read_positions(str(tmp_path / "b.csv"))


def test_pixels_of_a_spot_detector_are_taken_and_not_its_places_of_the_array(tmp_path):
    header, rows = "x,y,new_x,new_y,pixel_x,pixel_y,selected", ["25,13,24.9,13.04,69.5,35,1", "24,13,24,13,66,35,0"]
    (tmp_path / "spots.tsv").write_text("\n".join([header, *rows]).replace(",", "\t"))
    found = read_positions(str(tmp_path / "spots.tsv"))
    assert found[["x", "y"]].to_numpy().tolist() == [[69.5, 35]] and found.index.tolist() == ["25x13"]


@pytest.mark.parametrize("text", [",x,y\n0007,3,4\n0008,5,6\n", "x;y;Barcode\n3,0;4,0;0007\n5;6;0008\n"])
def test_names_of_places_are_kept_as_they_are_written(tmp_path, text):
    """Also where pandas or R left their column without a name, and of a spreadsheet with decimal commas in UTF-16."""
    (tmp_path / "a.csv").write_text(text, encoding="utf-16")
    found = read_positions(str(tmp_path / "a.csv"))
    assert found.index.tolist() == ["0007", "0008"] and found[["x", "y"]].to_numpy().tolist() == [[3, 4], [5, 6]]


def write_places(path, x, y):
    """Positions in each kind of file that `--positions` takes, as small as the kind allows."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"x": x, "y": y}), path, use_dictionary=True, compression="zstd")
    elif path.suffix == ".h5ad":
        adata = ad.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(x)).astype(str)))
        adata.obsm["spatial"] = np.column_stack([x, y])
        adata.write_h5ad(path, compression="gzip")
    elif path.suffix:
        pd.DataFrame({"x": x, "y": y}).to_csv(path, index=False)
    else:
        slide = make_toy_slide("toy_A1", spots_per_side=3, num_genes=20, image_px=90)
        write_dataset([slide], path, patch_um=40, patch_px=20)
        (file,) = (path / "spots").rglob("*.parquet")
        table = pq.read_table(file, partitioning=None).take([0] * len(x))
        columns = {"x": x, "y": y, "barcode": [f"s{number}" for number in range(len(x))]}
        for name, values in columns.items():
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
        pq.write_table(table, file)
        write_manifest(path)


SOURCES_OF_PLACES = ["a.csv", "a.csv.gz", "a.parquet", "a.h5ad", "a"]


@pytest.mark.parametrize("name", SOURCES_OF_PLACES)
def test_positions_that_are_all_alike_are_refused_before_they_are_in_memory(tmp_path, name, monkeypatch):
    """A file of some kilobytes that says the same place over and over, which would be a patch to predict each time."""
    path = tmp_path / name
    write_places(path, np.full(30_000, 5.0), np.full(30_000, 6.0))
    monkeypatch.setattr(positions, "_ROWS_AT_ONCE", 15_000)
    monkeypatch.setattr(pd, "read_parquet", lambda path: pytest.fail("it was read as a whole"))
    monkeypatch.setattr(ad, "read_h5ad", lambda *a, **k: pytest.fail("it was read as a whole"))
    with pytest.raises(
        ValueError, match=r"its first 15000 rows hold only 1 positions, such as x = 5.* and y = 6.*each position once"
    ):
        read_positions(str(path))


@pytest.mark.parametrize("name", SOURCES_OF_PLACES)
def test_there_are_no_more_positions_than_pixels(tmp_path, name):
    y, x = np.divmod(np.arange(8100), 90)
    write_places(tmp_path / name, x.astype(float), y.astype(float))
    assert len(read_positions(str(tmp_path / name), (90, 90))) == 8100
    with pytest.raises(
        ValueError, match=f"{name} holds more positions than the image of 89 x 90 px has pixels|89 x 90 px"
    ):
        read_positions(str(tmp_path / name), (90, 89))


@pytest.fixture(scope="module")
def small_image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "slide.png"
    Image.fromarray(make_toy_slide("toy_A1", spots_per_side=3, num_genes=20, image_px=90).image).save(path)
    return path


@pytest.mark.parametrize("name", SOURCES_OF_PLACES)
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.nan, "no numbers as x and y"),
        (np.inf, "no numbers as x and y"),
        (1e12, "a patch beyond the image of 90 x 90 px"),
    ],
)
def test_positions_that_are_nowhere_are_refused_whatever_they_come_from(tmp_path, small_image, name, value, what):
    write_places(tmp_path / name, np.array([20.0, 40.0, value]), np.array([20.0, 40.0, 60.0]))
    slide = read_slide_image(small_image, mpp=2.0, positions=partial(read_positions, str(tmp_path / name)))
    with pytest.raises(ValueError, match=f"1 of 3 positions have {what}, the first .* with x = {value}"):
        slide_source(slide, 40.0, 20)


def test_positions_of_features_pass_the_same_rule(tmp_path):
    for x, what in ((np.nan, "no numbers as x and y"), (np.inf, "no numbers as x and y")):
        values = {"features": np.ones((2, 3), np.float32), "x": np.array([20.0, x]), "y": np.array([20.0, 40.0])}
        np.savez(tmp_path / "made.npz", **values)
        with pytest.raises(ValueError, match=rf"made.npz: 1 of 2 positions have {what}"):
            features_source(tmp_path / "made.npz", mpp=0.5, patch_px=16)


def test_positions_of_a_dataset_are_those_of_its_own_image(tmp_path):
    write_places(tmp_path / "data", np.array([20.0, 40.0]), np.array([20.0, 40.0]))
    assert read_positions(str(tmp_path / "data"), (90, 90))["x"].tolist() == [20, 40]
    with pytest.raises(
        ValueError, match="pixels of an image of 90 x 90 px, but this image has 180 x 180 px. Give the image"
    ):
        read_positions(str(tmp_path / "data"), (180, 180))


def test_a_spot_without_a_place_makes_no_dataset_and_no_distance(tmp_path):
    write_places(tmp_path / "data", np.array([20.0, np.nan]), np.array([20.0, 40.0]))
    with pytest.raises(ValueError, match="x of a spot is nan; allowed: numbers"):
        open_folder(tmp_path / "data", verify=True)
    study = Study.load(tmp_path / "data")
    with pytest.raises(ValueError, match="1 spots of toy_A1 have no x"):
        study.with_positions_um(study.spots)


def test_columns_of_positions_in_an_anndata_go_by_their_names(tmp_path):
    """As in `delst prepare anndata`: Space Ranger's tables have the row first."""
    adata = ad.AnnData(obs=pd.DataFrame(index=["a", "b"]))
    places = {"pxl_row_in_fullres": [1.0, 2.0], "pxl_col_in_fullres": [3.0, 4.0]}
    adata.obsm["spatial"] = pd.DataFrame(places, index=adata.obs_names)
    adata.write_h5ad(tmp_path / "named.h5ad")
    assert read_positions(str(tmp_path / "named.h5ad"))["x"].tolist() == [3, 4]
    adata.obs["in_tissue"] = [0, 1]
    adata.write_h5ad(tmp_path / "tissue.h5ad")
    assert read_positions(str(tmp_path / "tissue.h5ad"))["x"].tolist() == [4]
    (tmp_path / "tissue.h5ad.gz").write_bytes(gzip.compress((tmp_path / "tissue.h5ad").read_bytes()))
    assert read_positions(str(tmp_path / "tissue.h5ad.gz"))["x"].tolist() == [4]
    adata.obsm["spatial"] = np.ones((2, 1))
    adata.write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(ValueError, match=r"obsm\['spatial'\] has shape \(2, 1\)"):
        read_positions(str(tmp_path / "one.h5ad"))


def test_places_that_stand_twice_are_read(tmp_path):
    """Two spots may lie in one pixel."""
    places = np.repeat(np.arange(60_000), 2)
    pd.DataFrame({"x": places, "y": places}).to_parquet(tmp_path / "twice.parquet")
    assert len(read_positions(str(tmp_path / "twice.parquet"))) == 120_000
