"""Slide: what is refused, with which next step, and that patches are the right pixels."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image

from delst_hf.data.counts import make_genes
from delst_hf.data.images import read_image, to_rgb
from delst_hf.data.slide import Slide


def make_slide(**changes) -> Slide:
    rng = np.random.default_rng(0)
    slide = Slide(
        slide_id="S1",
        image=rng.integers(0, 256, (60, 100, 3), dtype=np.uint8),
        spots=pd.DataFrame({"x": [50.0, 20.0, 90.0], "y": [30.0, 10.0, 55.0]}, index=["a", "b", "c"]),
        counts=sp.csr_matrix(np.array([[1, 0, 2, 0], [0, 3, 0, 0], [4, 0, 0, 5]])),
        genes=make_genes(["G1", "G2", "G3", "G4"]),
        mpp=0.5,
        patient_id="P",
    )
    return dataclasses.replace(slide, **changes)


def spots_at(x, y):
    return pd.DataFrame({"x": x, "y": y}, index=["a", "b", "c"], dtype=float)


def test_a_sound_slide_is_accepted_and_completed():
    slide = make_slide()
    slide.validate()
    assert slide.spots["array_row"].tolist() == [-1, -1, -1]
    assert slide.spots["label"].tolist() == [None, None, None]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"slide_id": "a/b"}, r"slide_id 'a/b' cannot name a file.*--slide-id"),
        ({"slide_id": ".hidden"}, "cannot name a file"),
        ({"patient_id": ""}, "patient_id is ''"),
        ({"mpp": None}, r"mpp is None.*0\.05 to 50.*--mpp"),
        ({"mpp": 0.0}, "mpp is 0.0"),
        ({"mpp": 51.0}, "mpp is 51.0"),
        ({"mpp": float("nan")}, "mpp is nan"),
        ({"image": np.zeros((60, 100, 4), np.uint8)}, r"uint8 \(60, 100, 4\).*to_rgb"),
        ({"image": np.zeros((60, 100, 3), np.float32)}, "the image is float32"),
        ({"counts": sp.csr_matrix(np.ones((4, 3)))}, r"shape \(4, 3\); 3 spots x 4 genes expected. Transpose it"),
        ({"counts": sp.csr_matrix(np.ones((3, 5)))}, "Align the three tables"),
        ({"counts": sp.csr_matrix((3, 4))}, "every count is zero"),
        ({"counts": sp.csr_matrix(np.full((3, 4), np.nan))}, "12 values are NaN"),
        ({"counts": sp.csr_matrix(np.full((3, 4), -1))}, "12 values are negative, the smallest -1"),
        ({"counts": sp.csr_matrix(np.log1p(np.ones((3, 4))))}, r"0\.693147; they look already normalised or log-trans"),
        ({"counts": sp.csr_matrix(np.full((3, 4), 0.5))}, r"adata.layers\['counts'\] or adata.raw"),
        ({"counts": sp.csr_matrix(np.full((3, 4), 2**31))}, "above 2147483647"),
        ({"genes": pd.DataFrame({"symbol": list("abcd")})}, r"columns \['gene_id'\] are missing"),
        ({"spots": spots_at([1, 2, 3], [1, 2, 3]).set_index(pd.Index(["a", "b", "a"]))}, "1 barcodes are dup.*'a'"),
        ({"spots": spots_at([1, np.nan, 3], [1, 2, 3])}, "1 of 3 spots have no coordinates"),
        ({"spots": spots_at([1, 2, 3], [1, 2, 3]).assign(label=[{"a": 1}] * 3)}, "label {'a': 1} is not text"),
        ({"spots": spots_at([1, 2, 100], [1, 2, 3])}, "1 of 3 spots lie outside .*100 wide, 60 high.*--drop-outside"),
        ({"spots": spots_at([1, 2, -0.1], [1, 2, 3])}, "1 of 3 spots lie outside"),
        ({"spots": spots_at([500, 2, 900], [1, 2, 3])}, "2 of 3 spots lie outside.*scale is probably wrong"),
        ({"spots": spots_at([10, 20, 30], [70, 80, 90])}, "3 of 3 spots lie outside.*swapped, 3 would be inside: swap"),
    ],
)
def test_a_bad_slide_is_refused_with_the_next_step(changes, match):
    with pytest.raises(ValueError, match=match):
        make_slide(**changes).validate()


def test_an_empty_slide_is_refused():
    slide = make_slide()
    empty = dataclasses.replace(slide, spots=slide.spots[:0], counts=slide.counts[:0])
    with pytest.raises(ValueError, match="is empty: 0 spots, 4 genes"):
        empty.validate()


def test_drop_outside_keeps_the_spots_inside_with_their_counts():
    slide = make_slide(spots=spots_at([1, 200, 3], [1, 2, 3])).drop_outside()
    slide.validate()
    assert list(slide.spots.index) == ["a", "c"]
    np.testing.assert_array_equal(slide.counts.toarray(), [[1, 0, 2, 0], [4, 0, 0, 5]])


def test_drop_outside_does_not_hide_a_wrong_frame():
    with pytest.raises(ValueError, match="scale is probably wrong"):
        make_slide(spots=spots_at([1, 200, 300], [1, 2, 3])).drop_outside()


def test_a_patch_at_its_own_resolution_is_the_crop():
    slide = make_slide()
    patch = next(slide.patches(patch_um=10, patch_px=20))  # 10 um / 0.5 = 20 px around (50, 30)
    np.testing.assert_array_equal(np.asarray(patch), slide.image[20:40, 40:60])


def test_a_patch_beyond_the_border_is_white_there():
    slide = make_slide()
    patch = np.asarray(list(slide.patches(patch_um=20, patch_px=40))[2])  # x 70..110 of 100, y 35..75 of 60
    np.testing.assert_array_equal(patch[:25, :30], slide.image[35:60, 70:100])
    assert (patch[25:] == 255).all()
    assert (patch[:, 30:] == 255).all()


def test_a_patch_is_resampled_once_from_the_physical_region():
    slide = make_slide()
    patch = next(slide.patches(patch_um=16, patch_px=8))
    oracle = Image.fromarray(slide.image[14:46, 34:66]).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(patch), np.asarray(oracle))


def test_a_patch_keeps_sub_pixel_position():
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    spots = pd.DataFrame({"x": [100.0, 100.5], "y": [100.0, 100.0]}, index=["a", "b"])
    slide = make_slide(image=ramp, spots=spots, counts=sp.csr_matrix(np.ones((2, 4))))
    # Pixel j covers [j, j+1) and holds j, so the mean over a region centred on x is x - 0.5.
    means = [np.asarray(patch, dtype=float).mean() for patch in slide.patches(patch_um=16.2, patch_px=16)]
    assert means[0] == pytest.approx(99.5, abs=0.15)
    assert means[1] - means[0] == pytest.approx(0.5, abs=0.15)


class Recorder:
    """An image that remembers which regions were read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, []

    def __getitem__(self, key):
        rows, cols = key
        self.read.append((rows.start, rows.stop, cols.start, cols.stop))
        return self.array[key]


def test_only_the_region_of_a_patch_is_read():
    slide = make_slide()
    recorder = Recorder(slide.image)
    patches = list(dataclasses.replace(slide, image=recorder).patches(10.3, 5))
    assert recorder.read[0] == (19, 41, 39, 61)  # 20.6 px around (50, 30)
    for patch, expected in zip(patches, slide.patches(10.3, 5), strict=True):
        np.testing.assert_array_equal(np.asarray(patch), np.asarray(expected))


def test_thumbnail_is_the_block_mean_and_reads_lazily():
    slide = make_slide()
    recorder = Recorder(slide.image)
    thumbnail = np.asarray(dataclasses.replace(slide, image=recorder).thumbnail(max_px=50), dtype=float)
    assert thumbnail.shape == (30, 50, 3)
    np.testing.assert_allclose(thumbnail, slide.image.reshape(30, 2, 50, 2, 3).mean((1, 3)), atol=0.51)


@pytest.mark.parametrize("chunks", [(16, 16), (4, 100)])
def test_thumbnail_of_a_large_image_is_made_from_small_blocks(monkeypatch, chunks):
    monkeypatch.setattr("delst_hf.data.slide._BLOCK_PX", 11)
    slide = make_slide()
    recorder = Recorder(slide.image)
    recorder.chunks = chunks
    thumbnail = dataclasses.replace(slide, image=recorder).thumbnail(max_px=34)
    np.testing.assert_array_equal(np.asarray(thumbnail), np.asarray(Image.fromarray(slide.image).reduce(3)))
    widths = {x1 - x0 for _, _, x0, x1 in recorder.read}
    assert widths == ({12, 4} if chunks == (16, 16) else {100})
    assert max((y1 - y0) * (x1 - x0) for y0, y1, x0, x1 in recorder.read) <= (11 * 12 if chunks == (16, 16) else 300)


@pytest.mark.parametrize(
    ("size", "match"), [((0, 224), "patch_um is 0"), ((112, 0), "patch_px is 0"), ((112, 2.5), "patch_px is 2.5")]
)
def test_patch_sizes_are_checked(size, match):
    with pytest.raises(ValueError, match=match):
        next(make_slide().patches(*size))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[[0.0, 0.5, 1.0]]], dtype=np.float32), [0, 128, 255]),
        (np.array([[[0.0, 127.6, 255.0]]]), [0, 128, 255]),
        (np.array([[[0, 257, 65535]]], dtype=np.uint16), [0, 1, 255]),
        (np.array([[7]], dtype=np.uint8), [7, 7, 7]),
        (np.array([[[10, 20, 30, 0]]], dtype=np.uint8), [255, 255, 255]),
    ],
)
def test_images_of_other_types_become_rgb(array, expected):
    assert to_rgb(array).dtype == np.uint8
    assert to_rgb(array).tolist() == [[expected]]


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.full((2, 2, 3), -5.0), "from -5 to -5"),
        (np.full((2, 2, 3), np.nan), "from nan"),
        (np.zeros((3, 9, 9), np.uint8), r"shape \(3, 9, 9\).*channels last"),
    ],
)
def test_arrays_that_are_no_image_are_refused(array, match):
    with pytest.raises(ValueError, match=match):
        to_rgb(array)


def test_a_truncated_image_file_is_refused(tmp_path):
    path = tmp_path / "slide.jpg"
    Image.fromarray(make_slide().image).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"cannot read the image .*slide\.jpg.*Download or export it again"):
        read_image(path)
    with pytest.raises(FileNotFoundError, match="no image file at"):
        read_image(tmp_path / "none.png")


def test_a_patch_larger_than_any_slide_is_refused():
    from delst_hf.data.toy import make_toy_slide

    slide = make_toy_slide(spots_per_side=2, image_px=90)
    with pytest.raises(ValueError, match=r"2e\+09 px of an image of 90 x 90 px.*--patch-um"):
        next(slide.patches(2e9 * slide.mpp, 224))
    with pytest.raises(ValueError, match=r"patch_px is 1000000\. Allowed: a whole number of pixels from 1 to 8192"):
        next(slide.patches(112, 1_000_000))


def test_measurements_are_no_labels():
    """Scores in the column of labels are refused; clusters that are called by decimals are classes."""
    spots = pd.DataFrame({"x": np.arange(30.0), "y": 5.0}, index=[f"s{i}" for i in range(30)])
    sound = {"counts": sp.csr_matrix(np.ones((30, 2), dtype=np.int32)), "genes": make_genes(["G1", "G2"])}
    scores = np.random.default_rng(0).uniform(size=len(spots))
    for labels in (scores, scores.astype(str)):
        slide = make_slide(spots=spots.assign(label=labels), **sound)
        with pytest.raises(
            ValueError, match=r"measurements, such as 0\.63\d*, .* 30 labelled spots have 30 .*--label-key ''"
        ):
            slide.validate()
    for labels in (np.tile(["1.1", "1.2", "2.1"], 10), [f"spot {i}" for i in range(30)], range(30), [None] * 30):
        make_slide(spots=spots.assign(label=labels), **sound).validate()
