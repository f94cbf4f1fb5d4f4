"""Tissue, wrong frames, filters that report, and the preview."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from delst_hf.data.dataset import write_dataset
from delst_hf.data.preview import draw_preview
from delst_hf.data.quality import (
    QualityFilter,
    describe_grey,
    describe_wrong_frame,
    share_on_tissue,
    slide_mask,
    tissue_fractions,
    tissue_mask,
    tissue_sample,
)
from delst_hf.data.readers.anndata_visium import read_anndata
from delst_hf.data.toy import make_toy_slide

SIZE = {"patch_um": 40, "patch_px": 20}


def half_tissue(**changes):
    """25 spots on the pink left half of a 300 x 200 px image, whose right half is glass."""
    slide = make_toy_slide(spots_per_side=5, num_genes=20, image_px=100)
    pixels = np.full((200, 300, 3), 244, np.uint8)
    pixels[:, :150] = (190, 110, 160)
    slide.spots["x"], slide.spots["y"] = slide.spots["x"] * 1.4, slide.spots["y"] * 1.9
    return dataclasses.replace(slide, image=pixels, **changes)


def test_tissue_is_coloured_or_dark_and_not_cut_out():
    colours = np.array([[245, 245, 245], [200, 110, 170], [90, 90, 90], [0, 0, 0], [225, 220, 228]], np.uint8)
    assert tissue_mask(colours).tolist() == [False, True, True, False, False]
    patch = np.full((224, 224, 3), 240, np.uint8)
    patch[:112, :56] = (180, 90, 150)
    assert tissue_fractions([tissue_sample(patch), tissue_sample(np.full_like(patch, 240))]).tolist() == [1 / 8, 0]
    small = np.asarray(Image.fromarray(patch).resize((32, 32), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(tissue_sample(patch), small)
    assert tissue_sample(patch[:20, :20]).shape == (20, 20, 3)


def test_a_grey_image_is_told_from_a_stained_one(tmp_path):
    """A channel of fluorescence is no H&E; faint tissue on much glass is, and so is what JPEG makes of grey."""
    slide = half_tissue()
    assert describe_grey(slide.thumbnail()) == ""
    faint = np.full((200, 300, 3), 240, np.uint8)
    faint[:10, :10] = (235, 215, 230)
    assert describe_grey(Image.fromarray(faint)) == ""
    assert describe_grey(Image.new("RGB", (9, 9), "white")) == ""
    vast = np.full((2000, 2000, 3), 255, np.uint8)
    vast[:20, :20] = (190, 110, 160)
    assert describe_grey(Image.fromarray(vast)) == ""
    grey = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "grey.jpg", quality=90)
    assert "Give the H&E image" in describe_grey(Image.open(tmp_path / "grey.jpg"))
    from delst_hf.data.understood import measure

    slide.image[:] = slide.image.mean(-1, keepdims=True)
    measure(slide, slide.thumbnail())
    assert slide.notes.remarks == [describe_grey(slide.thumbnail())] != [""]


def test_the_tissue_fraction_is_a_column(tmp_path):
    from datasets import load_dataset

    slide = half_tissue()
    slide.spots.iloc[0, slide.spots.columns.get_indexer(["x", "y"])] = 150.0, 100.0  # half on glass
    write_dataset([slide], tmp_path / "d", **SIZE)
    fractions = load_dataset(str(tmp_path / "d"))["train"]["tissue_fraction"][:]
    assert fractions[0] == pytest.approx(0.5, abs=0.11)
    assert np.allclose(fractions[1:], 1, atol=0.3)


def test_filters_say_what_they_removed(tmp_path, caplog):
    slide = half_tissue()
    slide.spots.iloc[:3, slide.spots.columns.get_loc("x")] = 250.0
    dense = slide.counts.toarray()
    dense[5], dense[6] = 0, 0
    dense[6, 0] = 500
    slide = dataclasses.replace(slide, counts=type(slide.counts)(dense))
    check = QualityFilter(min_counts=5, min_genes=2, min_tissue=0.5)
    summary = write_dataset([slide], tmp_path / "d", quality_filter=check, **SIZE)
    assert summary.slides == {"toy_A1": 20}
    assert "removed 2 of 25 spots: 1 with fewer than 5 counts, 2 with fewer than 2 genes" in caplog.text
    assert "removed 3 of 23 spots whose patch is less than 0.5 tissue" in caplog.text
    with pytest.raises(ValueError, match="no spot has 999999 counts.*Lower --min-counts"):
        write_dataset([slide], tmp_path / "e", quality_filter=QualityFilter(min_counts=999999), **SIZE)
    for name, value in (("min_counts", -1), ("min_genes", -2), ("min_tissue", 1.5)):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            write_dataset([slide], tmp_path / "e", quality_filter=QualityFilter(**{name: value}), **SIZE)


def shifted():
    slide = half_tissue()
    slide.spots["x"] += 150
    return slide


def test_spots_beside_the_tissue_are_refused_with_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"only 0% of 25 spots lie on tissue.*another scale.*d\.toy_A1\.refused\.png"):
        write_dataset([shifted()], tmp_path / "d", **SIZE)
    picture = Image.open(tmp_path / "d.toy_A1.refused.png")
    assert picture.size[0] > 1200
    assert not (tmp_path / "d").exists()
    assert len(write_dataset([shifted()], tmp_path / "d", off_tissue="allow", **SIZE).slides) == 1
    blank = dataclasses.replace(half_tissue(), image=np.full((200, 300, 3), 250, np.uint8))
    with pytest.raises(ValueError, match="The image is blank: give the H&E"):
        write_dataset([blank], tmp_path / "e", **SIZE)


def test_swapped_axes_are_recognised_and_can_be_put_right(tmp_path):
    slide = half_tissue()
    slide.spots["y"] = slide.spots["y"] / 4  # a strip at the top of the tissue, 190 wide and 48 high once swapped
    right = dataclasses.replace(slide, image=slide.image.transpose(1, 0, 2)[:200, :].copy())
    right.image[:] = 244
    right.image[:150, :60] = (190, 110, 160)
    assert share_on_tissue(right, right.thumbnail()) < 0.5
    with pytest.raises(ValueError, match=r"With x and y swapped, \d+% would: swap them \(--swap-xy\)"):
        write_dataset([right], tmp_path / "d", **SIZE)
    write_dataset([right], tmp_path / "d", swap_xy=True, **SIZE)
    outside = half_tissue()
    outside.spots["y"] += 100
    outside.spots[["x", "y"]] = outside.spots[["y", "x"]].to_numpy()
    tall = dataclasses.replace(outside, image=np.full((160, 400, 3), (190, 110, 160), np.uint8))
    tall.spots[["x", "y"]] = np.column_stack([np.linspace(5, 150, 25), np.linspace(170, 390, 25)])
    with pytest.raises(ValueError, match=r"25 of 25 spots lie outside.*swap them \(--swap-xy\).*refused\.png"):
        write_dataset([tall], tmp_path / "e", **SIZE)


def test_swapped_axes_are_recognised_where_most_spots_still_lie_on_tissue():
    """Sections are about as wide as high, so a swap may move only the outer spots onto the glass."""
    pixels = np.full((300, 300, 3), 244, np.uint8)
    pixels[:200, :130] = (190, 110, 160)
    x, y = np.meshgrid(np.linspace(10, 120, 6), np.linspace(10, 190, 10))
    slide = make_toy_slide(spots_per_side=8, num_genes=20, image_px=100).select(np.arange(64) < 60)
    right = dataclasses.replace(slide, image=pixels, spots=slide.spots.assign(x=x.ravel(), y=y.ravel()))
    wrong = dataclasses.replace(right, spots=right.spots.assign(x=y.ravel(), y=x.ravel()))
    assert describe_wrong_frame(right, right.thumbnail()) is None
    assert share_on_tissue(wrong, wrong.thumbnail()) > 0.5
    assert "With x and y swapped, 100% would: swap them" in str(describe_wrong_frame(wrong, wrong.thumbnail()))


def test_the_preview_shows_spots_where_they_are(tmp_path):
    slide = half_tissue()
    slide.spots["label"] = ["a"] * 20 + ["b"] * 4 + [None]
    picture = np.asarray(draw_preview(slide, patch_um=40))
    assert picture.shape[:2] == (800, 1200 + 3 * 112 + 24)
    # Scale 4: the leftmost point of the first spot's circle has the colour of its label.
    radius = min(12.0, 0.25 * np.sqrt(800 * 1200 / 25))
    for i, colour in ((3, (230, 159, 0)), (22, (86, 180, 233)), (24, (0, 170, 0))):
        x, y = slide.spots[["x", "y"]].to_numpy(float)[i] * 4
        near = picture[int(y) - 2 : int(y) + 3, int(x - radius) - 2 : int(x - radius) + 4].reshape(-1, 3)
        assert (np.abs(near.astype(int) - colour).sum(1) < 10).any()
    write_dataset([slide], tmp_path / "d", preview=True, **SIZE)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "d" / "previews" / "toy_A1.png")), picture)


def test_tinted_glass_is_background():
    pixels = np.full((100, 100, 3), (221, 200, 226), np.uint8)  # a chroma of 26, as on some real scans
    pixels[40:70, 20:60] = (150, 90, 160)
    assert tissue_mask(pixels).all()
    assert slide_mask(pixels).sum() == 30 * 40
    assert slide_mask(np.full((50, 50, 3), (190, 110, 160), np.uint8)).all()


def test_a_real_section_lies_on_its_tissue(shared_dir):
    slide = read_anndata(shared_dir / "data" / "her2st_A1_visium_style.h5ad", spot_diameter_um=100)
    thumbnail = slide.thumbnail()
    assert share_on_tissue(slide, thumbnail) > 0.95
    moved = dataclasses.replace(slide, spots=slide.spots.assign(x=slide.spots["x"] / 3, y=slide.spots["y"] / 3))
    assert share_on_tissue(moved, thumbnail) < 0.5
