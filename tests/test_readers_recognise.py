"""Every format is told by its layout, and nothing is told where two are possible or none is."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import make_source, write_outs

from delst_hf.data.readers.recognise import is_dataset, recognise


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    return folder


def told(place):
    return [
        (one.format, one.arguments[1:] if one.arguments[0] == str(place) else one.arguments) for one in recognise(place)
    ]


LAYOUTS = [
    ("visium", (), ["spatial/", "S1_filtered_feature_bc_matrix.h5"]),
    ("visium", (), ["outs/spatial/", "outs/filtered_feature_bc_matrix/"]),
    (
        "visium-hd",
        ("--bin-um", "8"),
        ["outs/binned_outputs/square_008um/", "outs/binned_outputs/square_016um/", "outs/spatial/"],
    ),
    ("visium-hd", ("--bin-um", "16"), ["square_002um/", "square_016um/"]),
    ("visium-hd", ("--unit", "cell"), ["outs/segmented_outputs/cell_segmentations.geojson"]),
    ("visium-hd", ("--unit", "cell"), ["nucleus_segmentations.geojson", "spatial/"]),
    ("her2st", (), ["data/ST-cnts/", "data/ST-spotfiles/", "data/ST-imgs/"]),
    ("hest", (), ["st/T1.h5ad", "patches/"]),
    ("stimage", (), ["ST/coord/", "ST/gene_exp/", "ST/image/"]),
    ("xenium", (), ["transcripts.parquet", "cells.parquet", "cell_feature_matrix.h5"]),
    ("xenium", ("--unit", "cell"), ["cells.csv.gz", "cell_feature_matrix/"]),
    ("spatialdata", (), ["x.zarr/tables/", "x.zarr/shapes/"]),
]


@pytest.mark.parametrize(("name", "arguments", "entries"), LAYOUTS)
def test_layouts(tmp_path, name, arguments, entries):
    place = touch(tmp_path / "S1", *entries)
    place = place / "x.zarr" if name == "spatialdata" else place
    assert told(place) == [(name, arguments)]


def test_the_stores_of_zarr(tmp_path):
    for version, text in (("2", '{"encoding-type": "anndata"}'), ("3", '{"attributes": {"encoding-type": "anndata"}}')):
        store = touch(tmp_path / f"v{version}.zarr", "obs/")
        (store / (".zattrs" if version == "2" else "zarr.json")).write_text(text)
        assert told(store) == [("anndata", ())]
    store = touch(tmp_path / "sd", "tables/")
    (store / "zarr.json").write_text('{"attributes": {"spatialdata_attrs": {"version": "0.2"}}}')
    assert told(store) == [("spatialdata", ())]


def test_variants_of_one_format_are_named(tmp_path):
    place = touch(tmp_path / "a", "binned_outputs/square_008um/", "binned_outputs/square_002um/",
                  "segmented_outputs/cell_segmentations.geojson")  # fmt: skip
    assert recognise(place)[0].also == "--bin-um 2, --unit cell"
    place = touch(tmp_path / "b", "transcripts.csv", "cells.csv", "cell_feature_matrix.h5")
    assert recognise(place)[0].also == "--unit cell" and "--image" in recognise(place)[0].missing


def test_the_image_and_alignment_of_a_public_xenium_set(tmp_path):
    touch(tmp_path, "transcripts.parquet", "X_he_image.ome.tif", "X_he_imagealignment.csv")
    found = recognise(tmp_path)[0]
    assert found.arguments[1:] == ("--image", str(tmp_path / "X_he_image.ome.tif"), "--alignment",
                                   str(tmp_path / "X_he_imagealignment.csv"))  # fmt: skip
    assert found.missing == ""


def write_section(folder, name):
    folder.mkdir(exist_ok=True)
    pd.DataFrame({"x": [1], "y": [1], "pixel_x": [1.0], "pixel_y": [1.0]}).to_csv(
        folder / f"alignment_{name}.tsv", sep="\t"
    )
    pd.DataFrame(np.ones((2, 30), int)).to_csv(folder / f"{name}.tsv.gz", sep="\t")
    (folder / f"{name}.jpg").touch()


def test_sections_of_the_spot_detector(tmp_path):
    write_section(tmp_path / "one", "M1")
    assert [one.format for one in recognise(tmp_path / "one")] == ["st"]
    write_section(tmp_path / "one", "M2")
    assert [one.arguments[-1][-6:] for one in recognise(tmp_path / "one")] == ["M1.jpg", "M2.jpg"]


def test_tables(tmp_path):
    pd.DataFrame({"barcode": ["a"], "X": [1], "Y": [2]}).to_csv(tmp_path / "spots.csv", index=False)
    touch(tmp_path, "counts.h5", "he.png", ".hidden.png")
    assert told(tmp_path) == [("table", ("--counts", str(tmp_path / "counts.h5"), "--coordinates", str(tmp_path / "spots.csv"),
                                         "--image", str(tmp_path / "he.png")))]  # fmt: skip
    for name, counts, cells in (("CosMx", "a_exprMat_file.csv.gz", "a_metadata_file.csv"),
                                ("MERSCOPE", "cell_by_gene.csv", "cell_metadata.csv")):  # fmt: skip
        found = recognise(touch(tmp_path / name, counts, cells))
        assert [one.format for one in found] == ["table"] and found[0].arguments[-1] == name
        assert found[0].missing.startswith("--image")


def test_what_lies_in_a_folder_of_several(tmp_path):
    for name in ("S1", "S2"):
        write_outs(tmp_path / name / "outs", make_source())
    assert told(tmp_path) == [("visium", (str(tmp_path / "S1"), str(tmp_path / "S2")))]
    shutil.copytree(tmp_path / "S1" / "outs", tmp_path / "n" / "S3_outs")
    shutil.copytree(tmp_path / "S2", tmp_path / "n" / "S4")
    assert told(tmp_path / "n") == [("visium", (str(tmp_path / "n" / "S3_outs"), str(tmp_path / "n" / "S4")))]
    shutil.rmtree(tmp_path / "n")
    touch(tmp_path, "a.h5ad", "b.png")  # an image beside others is no slide of its own
    assert [name for name, _ in told(tmp_path)] == ["visium", "anndata"]
    assert told(touch(tmp_path / "p", "c.h5ad.gz") / "c.h5ad.gz") == [("anndata", ())]  # as archives hold them
    images = touch(tmp_path / "i", "1.svs", "2.tif")
    assert told(images) == [("image", (str(images / "1.svs"), str(images / "2.tif")))]
    assert told(images / "2.tif") == [("image", ())]


def test_deposits_are_told_by_the_endings_of_their_names(tmp_path):
    flat = ("filtered_feature_bc_matrix.h5", "tissue_positions_list.csv.gz", "scalefactors_json.json.gz")
    one = touch(tmp_path / "one", *(f"GSM1_A_{name}" for name in flat))
    assert told(one) == [("visium", ())]
    assert told(touch(tmp_path / "shelf", "V1_spatial.tar.gz", "V1_filtered_feature_bc_matrix.tar.gz")) == [
        ("visium", ())
    ]
    assert told(touch(tmp_path / "mtx", "GSM1-matrix.mtx.gz", "GSM1-spatial/")) == [("visium", ())]
    for name in flat:
        shutil.copy(one / f"GSM1_A_{name}", one / f"GSM2_B_{name}")
    both = [("visium", ("--prefix", "GSM1_A")), ("visium", ("--prefix", "GSM2_B"))]
    assert told(one) == both
    assert told(Path(shutil.make_archive(str(tmp_path / "GSE1_RAW"), "tar", one))) == both
    assert told(touch(tmp_path / "other", "GSM1_tissue_positions_list.csv", "GSM1_raw_feature_bc_matrix.h5")) == []
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    assert told(tmp_path / "broken.tar") == []


@pytest.mark.parametrize(
    "counts",
    [
        "raw_feature_bc_matrix.h5",
        "GSM1_filtered_feature_bc_matrix.h5.gz",
        "GSM1_matrix.mtx.gz",
        "feature_bc_matrix.h5",
        "a/",
    ],
)
def test_a_run_is_told_by_its_positions_whatever_its_counts_are_called(tmp_path, counts):
    """Its reader takes them, or says what to rename; nothing would be said of a folder that is no slide."""
    spatial = ("spatial/tissue_positions_list.csv.gz", "spatial/scalefactors_json.json")
    assert told(touch(tmp_path / "S1", counts, *spatial)) == [("visium", ())]
    assert told(touch(tmp_path / "S2", f"outs/{counts}", *(f"outs/{name}" for name in spatial))) == [("visium", ())]
    flat = touch(tmp_path / "S3", counts, "GSM1_tissue_positions.csv", "GSM1_scalefactors_json.json")
    assert [name for name, _ in told(flat)] == ["visium"]


def test_nothing_that_is_known(tmp_path):
    assert recognise(touch(tmp_path / "a", "notes.txt", "b/c.txt")) == []
    with pytest.raises(FileNotFoundError, match="nothing is at"):
        recognise(tmp_path / "none")


def test_dataset_folders(toy_folder, tmp_path):
    assert is_dataset(toy_folder) and not is_dataset(tmp_path)
