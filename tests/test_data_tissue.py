"""Where tissue is: by colour, by a mask image, by polygons; and the grid of patches laid over it."""

import json

import numpy as np
import pytest
from PIL import Image

from delst_hf.data.grid import on_tissue, patch_grid
from delst_hf.data.tissue import TissueMask, find_tissue, otsu_threshold, read_tissue

PINK, GLASS = (200, 120, 170), (242, 240, 244)


def slide_with(*boxes, size=(200, 300)):
    """Glass with pink rectangles (top, bottom, left, right)."""
    image = np.full((*size, 3), GLASS, dtype=np.uint8)
    for top, bottom, left, right in boxes:
        image[top:bottom, left:right] = PINK
    return image


def test_otsu_is_the_threshold_of_highest_variance_between_classes():
    values = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8) // 3 * 2

    def between(t):
        low, high = values[values <= t].astype(float), values[values > t].astype(float)
        return 0.0 if not len(low) or not len(high) else len(low) * len(high) * (low.mean() - high.mean()) ** 2

    assert between(otsu_threshold(values)) == pytest.approx(max(between(t) for t in range(256)))


def test_tissue_is_found_with_its_holes_and_without_dust():
    image = slide_with((50, 150, 50, 150), (20, 22, 250, 252))
    image[90:110, 90:110] = GLASS
    # 1 mm is 100 px: the hole is 0.04 mm2, the dust 0.0004 mm2
    found = find_tissue(image, image.shape, mpp=10).mask
    expected = np.zeros(image.shape[:2], dtype=bool)
    expected[50:150, 50:150] = True
    assert found[90:110, 90:110].all() and not found[15:30, 240:260].any()
    assert (found != expected).sum() < 0.02 * expected.sum()  # smoothing moves corners


def test_glass_inside_a_ring_of_tissue_is_no_hole():
    image = slide_with((20, 180, 20, 280))
    image[60:140, 60:240] = GLASS
    found = find_tissue(image, image.shape, mpp=10).mask  # 1.4 mm2 of glass
    assert not found[100, 150] and found[30, 150]


def test_a_slide_that_is_all_tissue_is_all_tissue():
    noise = np.random.default_rng(0).integers(-25, 25, (100, 100, 1))
    image = np.clip(np.array(PINK) + noise * np.array([1, 2, 1]), 0, 255).astype(np.uint8)
    assert find_tissue(image, image.shape, mpp=10).mask.mean() > 0.99


def test_an_empty_slide_and_a_dark_one_are_refused():
    with pytest.raises(ValueError, match="no tissue was found.*--mask"):
        find_tissue(slide_with(), (200, 300), mpp=10)
    dark = np.zeros((50, 50, 3), np.uint8)
    dark[20:30, 20:30, 2] = 60
    with pytest.raises(ValueError, match="fluorescence"):
        find_tissue(dark, (50, 50), mpp=10)


def test_fractions_are_areas():
    mask = np.random.default_rng(1).random((20, 30)) > 0.5
    tissue = TissueMask(mask, (200, 300))
    large = mask.repeat(10, 0).repeat(10, 1)
    centres = np.array([[100, 80], [155, 47], [20, 20], [290, 100]])
    expected = []
    for x, y in centres:
        part = large[max(y - 20, 0) : y + 20, max(x - 20, 0) : min(x + 20, 300)]
        expected.append(part.sum() / 40**2)  # beyond the image there is none
    np.testing.assert_allclose(tissue.fractions(centres, 40), expected, atol=1e-12)


def test_a_mask_image_of_any_size_says_where_tissue_is(tmp_path):
    mask = np.zeros((50, 75), np.uint8)
    mask[10:20, 30:60] = 2  # a class number
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert (read_tissue(tmp_path / "mask.png", (200, 300)).mask == (mask > 0)).all()
    with pytest.raises(ValueError, match="aspect ratios differ"):
        read_tissue(tmp_path / "mask.png", (200, 200))
    Image.fromarray(0 * mask).save(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="marks no tissue"):
        read_tissue(tmp_path / "empty.png", (200, 300))


def feature(coordinates, kind="Polygon"):
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}


SQUARE, HOLE = [[40, 40], [120, 40], [120, 120], [40, 120], [40, 40]], [[60, 60], [100, 60], [100, 100], [60, 100]]


@pytest.mark.parametrize(
    "document",
    [
        {"type": "FeatureCollection", "features": [feature([SQUARE, HOLE])]},
        [feature([[SQUARE, HOLE]], "MultiPolygon")],
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [SQUARE, HOLE]}]},
    ],
)
def test_polygons_are_drawn_with_their_holes(tmp_path, document):
    (tmp_path / "qupath.geojson").write_text(json.dumps(document))
    tissue = read_tissue(tmp_path / "qupath.geojson", (200, 300))
    area = tissue.fractions(np.array([[100, 100]]), 200)[0] * 200**2
    assert area == pytest.approx(80**2 - 40**2, rel=0.05)
    assert tissue.fractions(np.array([[80, 80]]), 30)[0] == 0
    assert tissue.fractions(np.array([[50, 50]]), 10)[0] == 1


def test_polygons_that_say_nothing_are_refused(tmp_path):
    path = tmp_path / "annotations.geojson"
    path.write_text(json.dumps([feature([[[x + 5000, y] for x, y in SQUARE]])]))
    with pytest.raises(ValueError, match="no polygon .* lies on the slide.*full resolution"):
        read_tissue(path, (200, 300))
    path.write_text(json.dumps([feature([1, 2], "Point")]))
    with pytest.raises(ValueError, match="holds no polygon"):
        read_tissue(path, (200, 300))
    path.write_text("{")
    with pytest.raises(ValueError, match="as GeoJSON"):
        read_tissue(path, (200, 300))


def test_a_grid_lies_inside_the_image_with_equal_margins():
    grid = patch_grid((100, 213), side=40, stride=20)
    assert (grid["x"] - 20).min() == pytest.approx(213 - (grid["x"] + 20).max())
    assert (grid["y"] - 20).min() >= 0 and (grid["y"] + 20).max() <= 100
    assert len(grid) == 4 * 9 and grid["x"].diff().iloc[1] == 20
    assert grid["array_row"].max() == 3 and grid["array_col"].max() == 8


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="a patch is 150 px wide, but the slide has only 300 x 100"):
        patch_grid((100, 300), side=150, stride=10)
    with pytest.raises(ValueError, match="--stride-um"):
        patch_grid((100, 300), side=50, stride=0)
    tissue = TissueMask(np.array([[True, False]]), (100, 200))
    grid = patch_grid((100, 200), side=100, stride=50)
    assert on_tissue(grid, tissue, 100, 0.5)["tissue_fraction"].tolist() == [1.0, 0.5]
    assert len(on_tissue(grid, tissue, 100, 0.0)) == 2  # not the one without any
    with pytest.raises(ValueError, match="--min-tissue"):
        on_tissue(grid, tissue, 100, 1.5)
    with pytest.raises(ValueError, match=r"no patch has a share of 0.9 tissue; .* 0.50"):
        on_tissue(grid[1:], tissue, 100, 0.9)


def test_a_mask_that_is_the_slide_itself_is_warned_of_and_a_jpeg_mask_is_not(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(-20, 20, (200, 300, 1))
    Image.fromarray(np.clip(slide_with((50, 150, 50, 250)) + noise, 0, 255).astype(np.uint8)).save(tmp_path / "he.png")
    read_tissue(tmp_path / "he.png", (200, 300))
    assert "the mask he.png does not look like one: 33 % of it is neither black nor white" in caplog.text
    assert "which is 100 % of the slide" in caplog.text
    caplog.clear()
    white = 255 * (slide_with((50, 150, 50, 250)) == PINK).all(-1).astype(np.uint8)
    Image.fromarray(white).save(tmp_path / "mask.jpg", quality=60)
    assert read_tissue(tmp_path / "mask.jpg", (200, 300)).mask.mean() == pytest.approx(1 / 3, abs=0.01)
    assert not caplog.records
