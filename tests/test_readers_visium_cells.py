"""The cells of Space Ranger 4: outlines and matrix as it lays them on disk."""

import json
import shutil

import numpy as np
import pytest
from layouts import assert_same, make_source, write_10x_h5, write_mtx, write_spatial
from PIL import Image

from delst_hf.cli import main
from delst_hf.data.readers.visium_cells import read_visium_cells

FACTORS = {"microns_per_pixel": 5.0, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25}


def rectangle(x, y, width, height):
    """A closed ring about (x, y)."""
    right, down = width / 2, height / 2
    return [
        [x - right, y - down],
        [x + right, y - down],
        [x + right, y + down],
        [x - right, y + down],
        [x - right, y - down],
    ]


def feature(number, *polygons):
    kind, coordinates = (
        ("Polygon", [polygons[0]]) if len(polygons) == 1 else ("MultiPolygon", [[one] for one in polygons])
    )
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates},
            "properties": {"cell_id": number, "classification": {"name": "Cluster-1", "color": [1, 2, 3]}}}  # fmt: skip


def write_geojson(path, features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.fixture
def run(tmp_path):
    """12 cells of 2 x (1 + number) px; cell 3 in two halves of equal size left and right of its place; 99 has no counts."""
    source = make_source()
    source.spots.index = [f"cellid_{number:09d}-1" for number in range(1, 13)]
    segmented = tmp_path / "S1" / "outs" / "segmented_outputs"
    segmented.mkdir(parents=True)
    write_10x_h5(segmented / "filtered_feature_cell_matrix.h5", source)
    places = source.spots[["x", "y"]].to_numpy()
    features = [feature(n + 1, rectangle(x, y, 2, n + 1)) for n, (x, y) in enumerate(places)]
    x, y = places[2]
    features[2] = feature(3, rectangle(x - 4, y, 2, 2), rectangle(x + 4, y, 2, 2))
    features.insert(0, feature(99, rectangle(50, 50, 2, 2)))
    write_geojson(segmented / "cell_segmentations.geojson", features)
    write_geojson(segmented / "nucleus_segmentations.geojson",
                  [feature(n + 1, rectangle(x, y, 1, 1)) for n, (x, y) in enumerate(places)])  # fmt: skip
    write_spatial(segmented / "spatial", source, factors=FACTORS)
    return source, segmented


def test_cells_with_their_area(run, tmp_path):
    source, segmented = run
    for path in (segmented, segmented.parent, segmented.parent.parent):
        slide = read_visium_cells(path)
        assert_same(slide, source, scale=0.5)  # of the hires image
        assert slide.slide_id == "S1" and slide.technology == "Visium HD"
        number = np.array([int(name[7:-2]) for name in slide.spots.index])
        pixels = np.where(number == 3, 8, 2 * number)
        np.testing.assert_allclose(slide.spots["cell_area_um2"], pixels * 25)
        assert slide.notes.scale_witnesses == {"microns_per_pixel of scalefactors_json.json": 10.0}
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    full = read_visium_cells(segmented, image=tmp_path / "he.png", mpp=5.125)
    assert_same(full, source, mpp=5.125)
    assert full.spots.loc["cellid_000000001-1", "cell_area_um2"] == 2 * 5.125**2
    other = read_visium_cells(segmented, mpp=4.0)
    with pytest.raises(ValueError, match=r"(?s)disagree by more than 5%.*microns_per_pixel.*5\.0000.*--allow-scale"):
        other.validate()


def test_the_images_may_lie_in_outs_and_the_matrix_in_a_folder(run):
    source, segmented = run
    shutil.move(segmented / "spatial", segmented.parent / "spatial")
    (segmented / "filtered_feature_cell_matrix.h5").unlink()
    write_mtx(segmented / "filtered_feature_cell_matrix", source)
    assert_same(read_visium_cells(segmented), source, scale=0.5)


def test_nuclei_alone_place_cells_and_give_no_area(run, caplog):
    source, segmented = run
    (segmented / "cell_segmentations.geojson").unlink()
    slide = read_visium_cells(segmented)
    assert_same(slide, source, scale=0.5)
    assert slide.spots["cell_area_um2"].isna().all()
    assert "at the centres of their nuclei" in caplog.text and "nucleus_segmentations.geojson" in slide.source


def test_names_of_cells_in_any_spelling(run):
    source, segmented = run
    path = segmented / "cell_segmentations.geojson"
    for spell in ("{}", "{}.0", "cellid_{:09d}-1", "cellid_{:09d}"):
        features = [feature(spell.format(n + 1), rectangle(x, y, 2, n + 1))
                    for n, (x, y) in enumerate(source.spots[["x", "y"]].to_numpy())]  # fmt: skip
        write_geojson(path, features)
        assert_same(read_visium_cells(segmented), source, scale=0.5)


def test_mistakes(run, tmp_path, capsys):
    source, segmented = run
    path = segmented / "cell_segmentations.geojson"
    text = path.read_text()
    for broken, match in ((text[: len(text) // 2], "JSONDecodeError"), ("{}", "KeyError"),
                          (text.replace('"Polygon"', '"Point"'), "a geometry is a Point")):  # fmt: skip
        path.write_text(broken)
        with pytest.raises(ValueError, match=rf"cannot read .*cell_segmentations\.geojson: {match}|{match}"):
            read_visium_cells(segmented)
    path.write_text(text)
    source.spots.index = ["cellid_000000001-1", "cellid_000000001-2", *source.spots.index[2:]]
    write_10x_h5(segmented / "filtered_feature_cell_matrix.h5", source)
    with pytest.raises(
        ValueError, match="cell 1 stands in the matrix as 'cellid_000000001-1' and as 'cellid_000000001-2'"
    ):
        read_visium_cells(segmented)
    (segmented / "spatial" / "scalefactors_json.json").write_text(json.dumps({"tissue_hires_scalef": 0.5}))
    with pytest.raises(ValueError, match=r"no usable microns_per_pixel.*--mpp"):
        read_visium_cells(segmented)
    (segmented / "filtered_feature_cell_matrix.h5").unlink()
    (segmented / "spatial" / "scalefactors_json.json").write_text(json.dumps(FACTORS))
    with pytest.raises(FileNotFoundError, match=r"no filtered_feature_cell_matrix\.h5"):
        read_visium_cells(segmented)
    with pytest.raises(FileNotFoundError, match=r"no segmented_outputs.*--unit bin"):
        read_visium_cells(tmp_path)
    base = ["prepare", "visium-hd", str(segmented), "--output", str(tmp_path / "d"), "--unit", "cell", "--bin-um", "8"]
    assert main(base) == 2 and "--bin-um applies to --unit bin only" in capsys.readouterr().err


def test_the_cells_of_a_run_with_bins_are_checked(run, capsys):
    _, segmented = run
    (segmented.parent / "binned_outputs" / "square_008um").mkdir(parents=True)
    assert main(["check", str(segmented.parent), "--unit", "cell"]) == 0
    assert f"delst prepare visium-hd {segmented.parent} --unit cell --output DIR" in capsys.readouterr().out


def test_the_command_writes_the_area(run, tmp_path, capsys):
    from datasets import load_dataset

    _, segmented = run
    assert main(["prepare", "visium-hd", str(segmented.parent), "--unit", "cell", "--patch-px", "16", "--quiet",
                 "--output", str(tmp_path / "d")]) == 0  # fmt: skip
    rows = load_dataset(str(tmp_path / "d"))["train"]
    assert dict(zip(rows["barcode"], rows["cell_area_um2"], strict=True))["cellid_000000012-1"] == 24 * 25
