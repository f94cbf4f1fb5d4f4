"""The HER2ST reader, on a miniature in the exact layout and on the real sections."""

import gzip
import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from delst_hf.data.readers.her2st import find_her2st_sections, locate_her2st, read_her2st

PITCH = 40


@pytest.fixture
def root(tmp_path):
    return write_section(tmp_path)


def write_section(folder):
    """Section Z1: a 3 x 2 array with a pitch of 40 px; spot 3x2 has no counts, 9x9 no spot, 2x1 is not selected."""
    data = folder / "data"
    for name in ("ST-cnts", "ST-spotfiles", "ST-imgs/Z/Z1", "ST-pat/lbl"):
        (data / name).mkdir(parents=True)
    write_counts(data / "ST-cnts/Z1.tsv.gz", ["2x2", "1x1", "9x9", "3x1", "1x2", "2x1"])
    spots = pd.DataFrame([(x, y) for x in (1, 2, 3) for y in (1, 2)], columns=["x", "y"])
    spots["new_x"], spots["new_y"] = spots["x"] + 0.1, spots["y"] - 0.1
    spots["pixel_x"], spots["pixel_y"] = spots["x"] * PITCH + 0.25, spots["y"] * PITCH + 5.5
    spots["selected"] = (~((spots["x"] == 2) & (spots["y"] == 1))).astype(int)
    spots.to_csv(data / "ST-spotfiles/Z1_selection.tsv", sep="\t", index=False)
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data / "ST-imgs/Z/Z1/anything.png")
    labels = pd.DataFrame({"x": [1.004, 2.99, None], "y": [0.996, 1.01, 3.0], "label": ["tumour", None, "stray"]})
    labels.to_csv(data / "ST-pat/lbl/Z1_labeled_coordinates.tsv", sep="\t", index=False)
    return folder


def write_counts(path, rows, values=None, columns=("GA", "GB", "GA")):
    values = np.arange(len(rows) * len(columns)).reshape(len(rows), -1) if values is None else values
    lines = ["\t".join(["", *columns])]
    lines += ["\t".join([row, *map(str, line)]) for row, line in zip(rows, values, strict=True)]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")


def test_spots_join_counts_image_and_labels(root, caplog):
    with caplog.at_level(logging.INFO):
        slide = read_her2st(root, "Z1")
    slide.validate()
    # In the order of the counts; 9x9 has no spot and 2x1 is not selected.
    assert list(slide.spots.index) == ["2x2", "1x1", "3x1", "1x2"]
    assert slide.spots[["x", "y"]].to_numpy().tolist() == [[80.25, 85.5], [40.25, 45.5], [120.25, 45.5], [40.25, 85.5]]
    assert slide.spots["array_col"].tolist() == [2, 1, 3, 1]
    assert slide.spots["array_row"].tolist() == [2, 1, 1, 2]
    # Row r of the file holds 3r, 3r + 1, 3r + 2; the two columns GA are added when the slide is written.
    assert slide.genes["symbol"].tolist() == ["GA", "GB", "GA"]
    assert slide.counts.toarray().tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11], [12, 13, 14]]
    assert slide.spots["label"].tolist() == [None, "tumour", None, None]
    assert (slide.label_source, slide.patient_id, slide.species) == ("pathologist", "Z", "human")
    assert slide.mpp == pytest.approx(200 / PITCH)
    assert "left out 2 counts without spot and 1 spots without counts" in caplog.text
    assert "square, 200 um = 40.0 x 40.0 px" in caplog.text


def test_the_array_pitch_is_robust_to_misplaced_spots(root):
    path = root / "data/ST-spotfiles/Z1_selection.tsv"
    grid = pd.DataFrame([(x, y) for x in range(1, 12) for y in range(1, 12)], columns=["x", "y"])
    grid["pixel_x"], grid["pixel_y"], grid["selected"] = 12.0 * grid["x"], 10.0 * grid["y"] + 3, 1
    grid.loc[[3, 50, 99], "pixel_x"] = 0.0
    grid.to_csv(path, sep="\t", index=False)
    with pytest.raises(ValueError, match=r"the spots lie on steps of 10\.0 and 12\.0 px"):
        read_her2st(root, "Z1")
    grid["pixel_y"] = 12.4 * grid["y"]
    grid.to_csv(path, sep="\t", index=False)
    assert read_her2st(root, "Z1").mpp == pytest.approx(200 / 12.2)


def test_arguments_override_what_the_files_say(root, tmp_path):
    csv = tmp_path / "mine.csv"
    csv.write_text("section,id,label\nZ1,1x1,duct\nZ1,2x2,none\nZ2,3x1,other\n")
    slide = read_her2st(root / "data", "Z1", mpp=0.7, patient_id="someone", labels=csv)
    assert (slide.mpp, slide.patient_id, slide.label_source) == (0.7, "someone", "mine.csv")
    assert slide.spots["label"].to_dict() == {"2x2": None, "1x1": "duct", "3x1": None, "1x2": None}


def test_plain_tsv_and_a_missing_label_file_are_fine(root):
    packed = root / "data/ST-cnts/Z1.tsv.gz"
    (root / "data/ST-cnts/Z1.tsv").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    (root / "data/ST-pat/lbl/Z1_labeled_coordinates.tsv").unlink()
    slide = read_her2st(root, "Z1")
    assert slide.label_source == ""
    assert slide.spots["label"].isna().all()
    assert len(slide.spots) == 4


def test_sections_without_image_are_told_apart(root):
    write_counts(root / "data/ST-cnts/Z2.tsv.gz", ["1x1"])
    (root / "data/ST-spotfiles/Z2_selection.tsv").write_text("x\ty\n")
    assert find_her2st_sections(root) == ["Z1"]
    with pytest.raises(FileNotFoundError, match="'Z2' has no image in .*Sections with counts and image: Z1"):
        locate_her2st(root, "Z2")
    with pytest.raises(FileNotFoundError, match=r"no section 'Q7' under .*Available: Z1, Z2"):
        locate_her2st(root, "Q7")
    with pytest.raises(FileNotFoundError, match="no labels file at"):
        locate_her2st(root, "Z1", labels=root / "none.csv")
    with pytest.raises(FileNotFoundError, match="no data/ST-cnts under"):
        locate_her2st(root / "elsewhere", "Z1")
    Image.new("RGB", (9, 9)).save(root / "data/ST-imgs/Z/Z1/second.jpg")
    with pytest.raises(ValueError, match=r"2 images: \['anything.png', 'second.jpg'\]"):
        locate_her2st(root, "Z1")


@pytest.mark.parametrize(
    ("rows", "values", "match"),
    [
        (["1x1", "2x2"], [[0.5, 1, 2], [1, 1, 1]], r"1 values are not whole numbers, e.g. 0.5.*Z1\.tsv\.gz"),
        (["1x1", "2x2"], [["", 1, 2], [1, 1, 1]], "1 values are NaN"),
        (["1x1", "2x2"], [[-1, 1, 2], [1, 1, 1]], "1 values are negative"),
        (["1x1", "2x2"], [["a", 1, 2], [1, 1, 1]], "column 'GA' holds text"),
        (["1x1", "1.2x1"], None, "1 barcodes are duplicated in Z1.tsv.gz, e.g. '1x1'"),
        (["GENE1", "GENE2"], None, r"neither rows \(\['GENE1', 'GENE2'\]\) nor columns .* are spots. Allowed"),
        (["7x7", "8x8"], None, "no spot of the positions .* is in Z1.tsv.gz"),
    ],
)
def test_bad_counts_are_refused(root, rows, values, match):
    write_counts(root / "data/ST-cnts/Z1.tsv.gz", rows, values)
    with pytest.raises(ValueError, match=match):
        read_her2st(root, "Z1")


def test_transposed_counts_are_read_too(root):
    write_counts(root / "data/ST-cnts/Z1.tsv.gz", ["GA", "GB"], columns=("1x1", "2x2", "3x1"))
    slide = read_her2st(root, "Z1")
    assert slide.genes["symbol"].tolist() == ["GA", "GB"]
    assert slide.counts.toarray().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_truncated_counts_are_refused(root):
    path = root / "data/ST-cnts/Z1.tsv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"cannot read .*Z1\.tsv\.gz.*download or write it again"):
        read_her2st(root, "Z1")


@pytest.mark.parametrize(
    ("name", "text", "error", "match"),
    [
        ("ST-spotfiles/Z1_selection.tsv", "x\ty\tselected\n1\t1\t1\n", KeyError, "'pixel_x', 'pixel_y'. are missing"),
        ("ST-spotfiles/Z1_selection.tsv", "x\ty\tpixel_x\tpixel_y\n1\t1\t5\t5\n", ValueError, "too few spots.*--mpp"),
        ("ST-pat/lbl/Z1_labeled_coordinates.tsv", "x\ty\tkind\n1\t1\ta\n", KeyError, "columns .*label.* are needed"),
        ("ST-pat/lbl/Z1_labeled_coordinates.tsv", "x\ty\tlabel\n7\t7\ta\n", ValueError, "none of 1 labels in"),
    ],
)
def test_bad_spot_and_label_files_are_refused(root, name, text, error, match):
    (root / "data" / name).write_text(text)
    with pytest.raises(error, match=match):
        read_her2st(root, "Z1")


@pytest.fixture(scope="module")
def c2(shared_dir):
    return read_her2st(shared_dir / "data/her2st", "C2", labels=shared_dir / "data/her2st/transferred_labels.csv")


def test_real_counts_equal_what_pandas_reads(c2, shared_dir):
    table = pd.read_csv(shared_dir / "data/her2st/data/ST-cnts/C2.tsv.gz", sep="\t", index_col=0)
    assert list(c2.spots.index) == list(table.index)
    assert c2.genes["symbol"].tolist() == list(table.columns)
    np.testing.assert_array_equal(c2.counts.toarray(), table.to_numpy())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_real_patch_equals_an_independent_crop(c2, shared_dir):
    c2.validate()
    spots = pd.read_csv(shared_dir / "data/her2st/data/ST-spotfiles/C2_selection.tsv", sep="\t")
    row = spots[(spots["x"] == 25) & (spots["y"] == 13)].iloc[0]
    position = list(c2.spots.index).index("25x13")
    half = 80  # px: 160 px patches at their own resolution, moved by a fraction of a pixel
    (path,) = (shared_dir / "data/her2st/data/ST-imgs/C/C2").glob("*.jpg")
    with Image.open(path) as image:
        x, y = round(row["pixel_x"]), round(row["pixel_y"])
        crop = np.asarray(image.crop((x - half, y - half, x + half, y + half)), dtype=float)
    patch = np.asarray(list(c2.patches(2 * half * c2.mpp, 2 * half))[position], dtype=float)
    assert np.corrcoef(crop.ravel(), patch.ravel())[0, 1] > 0.97
    moved = np.roll(crop, 6, axis=1)
    assert np.abs(crop - patch).mean() < 0.6 * np.abs(moved - patch).mean()


def test_real_scale_and_labels(c2, shared_dir):
    # The images are cropped to the array frame, 33 x 35 spots of 200 um: 32 pitches across the width.
    assert c2.mpp == pytest.approx(32 * 200 / c2.image.shape[1], rel=0.01)
    transferred = pd.read_csv(shared_dir / "data/her2st/transferred_labels.csv")
    expected = transferred[(transferred["section"] == "C2") & (transferred["label"] != "none")]["label"].value_counts()
    assert c2.spots["label"].value_counts().to_dict() == expected.to_dict()
    assert c2.label_source == "transferred_labels.csv"
