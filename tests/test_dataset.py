"""The dataset folder: opened by plain load_dataset, equal to the slides, and complete or absent."""

import dataclasses
import gc
import io
import re
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from delst_hf.data.dataset import write_dataset
from delst_hf.data.schema import GENES, SLIDES, SPOTS
from delst_hf.data.slide import Slide
from delst_hf.data.toy import make_toy_slide

SIZE = {"patch_um": 40, "patch_px": 20}  # 20 px at 2 um/px: patches are crops


def make_slides() -> list[Slide]:
    """Two small slides; the second measures other genes, in another order, and one of its spots has no label."""
    first = make_toy_slide("toy_A1", spots_per_side=11, num_genes=30, image_px=180)
    second = make_toy_slide("toy_B1", spots_per_side=3, num_genes=30, image_px=160)
    chosen = [20, 5, 29, 0]
    genes = second.genes.iloc[chosen].reset_index(drop=True)
    genes.loc[0, "symbol"] = "ONLY_B"
    second.spots.loc["1x1", "label"] = None
    return [first, dataclasses.replace(second, genes=genes, counts=second.counts[:, chosen], label_source="")]


@pytest.fixture(scope="module")
def slides():
    return make_slides()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, slides):
    output = tmp_path_factory.mktemp("data") / "new" / "toy"
    summary = write_dataset(iter(slides), output, image_format="png", license="cc-by-4.0", **SIZE)
    assert summary.path == output
    assert summary.slides == {"toy_A1": 121, "toy_B1": 9}
    assert summary.num_genes == 31
    assert summary.labels["(none)"] == 1
    return output


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_opens_all_three_configs(folder, streaming):
    expected = ((None, SPOTS, 130), ("spots", SPOTS, 130), ("genes", GENES, 31), ("slides", SLIDES, 2))
    for config, features, rows in expected:
        dataset = load_dataset(str(folder), config, streaming=streaming)
        assert list(dataset) == ["train"]
        assert dataset["train"].features == features
        assert sum(1 for _ in dataset["train"]) == rows


@pytest.mark.parametrize("streaming", [False, True])
def test_spots_equal_the_slides(folder, slides, streaming):
    genes = load_dataset(str(folder), "genes")["train"]
    symbols = genes["symbol"][:]
    rows = list(load_dataset(str(folder), streaming=streaming)["train"])
    for slide in slides:
        own = [row for row in rows if row["slide_id"] == slide.slide_id]
        assert [row["barcode"] for row in own] == list(slide.spots.index)
        for column in ("x", "y", "array_row", "array_col", "label"):
            assert [row[column] for row in own] == slide.spots[column].tolist()
        assert {row["patient_id"] for row in own} == {slide.patient_id}
        dense = slide.counts.toarray()
        for row, counts, patch in zip(own, dense, slide.patches(**SIZE), strict=True):
            named = zip(slide.genes["symbol"], counts.tolist(), strict=True)
            expected = {name: count for name, count in named if count}
            found = [symbols[index] for index in row["gene_indices"]]
            assert dict(zip(found, row["gene_counts"], strict=True)) == expected
            assert row["gene_indices"] == sorted(row["gene_indices"])
            assert (row["n_genes"], row["total_counts"]) == (len(expected), sum(expected.values()))
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(patch))


def test_genes_are_the_union_in_order_of_appearance(folder, slides):
    genes = load_dataset(str(folder), "genes")["train"]
    assert genes["symbol"][:] == [f"TOY{i:03d}" for i in range(30)] + ["ONLY_B"]
    assert set(genes["species"]) == {"synthetic"}
    table = load_dataset(str(folder), "slides")["train"]
    assert table[0]["measured_genes"] == list(range(30))
    assert table[1]["measured_genes"] == [0, 5, 29, 30]


def test_slides_say_what_they_are(folder, slides):
    for row, slide in zip(load_dataset(str(folder), "slides")["train"], slides, strict=True):
        for name in ("slide_id", "patient_id", "technology", "tissue", "species", "mpp", "label_source"):
            assert row[name] == getattr(slide, name)
        assert (row["image_height"], row["image_width"]) == slide.image.shape[:2]
        assert (row["patch_um"], row["patch_px"]) == (40, 20)
        assert row["thumbnail"].size == slide.image.shape[1::-1]
        assert np.abs(np.asarray(row["thumbnail"], dtype=float) - slide.image).mean() < 12


def test_rows_are_grouped_for_streaming(folder):
    metadata = pq.ParquetFile(folder / "spots" / "toy_A1.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 21]


def test_the_card_names_configs_slides_and_labels(folder):
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == "cc-by-4.0"
    assert [config["config_name"] for config in header["configs"]] == ["spots", "genes", "slides"]
    assert "2 slides, 130 spots, 31 genes" in text
    assert "patch of 40 um, stored as 20 x 20 px (PNG)" in text
    assert "| toy_B1 | B | train | 9 | 4 | synthetic | synthetic | synthetic | 2.0000 | none | unknown |" in text
    assert "| (none) | 1 |" in text


def test_jpeg_quality_is_a_choice(tmp_path):
    slide = make_toy_slide(spots_per_side=2, num_genes=20, image_px=100)
    errors, sizes = [], []
    for quality in (20, 95):
        write_dataset([slide], tmp_path / str(quality), quality=quality, **SIZE)
        table = pq.read_table(tmp_path / str(quality) / "spots")
        stored = [row["bytes"] for row in table["image"].to_pylist()]
        images = [Image.open(io.BytesIO(data)) for data in stored]
        assert {image.format for image in images} == {"JPEG"}
        pairs = zip(images, slide.patches(**SIZE), strict=True)
        errors.append(np.mean([np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in pairs]))
        sizes.append(sum(map(len, stored)))
    assert errors[1] < 4 < errors[0]
    assert sizes[0] < sizes[1]


def test_only_one_slide_is_held_at_a_time(tmp_path):
    alive = []

    def generate():
        for name in ("toy_A1", "toy_B1", "toy_C1"):
            gc.collect()
            assert sum(reference() is not None for reference in alive) == 0
            slide = make_toy_slide(name, spots_per_side=2, num_genes=20, image_px=80)
            alive.append(weakref.ref(slide.image))
            yield slide
            del slide

    assert len(write_dataset(generate(), tmp_path / "d", **SIZE).slides) == 3


def small(slide_id="toy_A1", **changes) -> Slide:
    return dataclasses.replace(make_toy_slide(slide_id, spots_per_side=2, num_genes=20, image_px=80), **changes)


def failing(error):
    yield small()
    raise error


@pytest.mark.parametrize("error", [ValueError("bad slide"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_failed_run_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        write_dataset(failing(error), tmp_path / "d", **SIZE)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_appears_only_when_it_is_complete(tmp_path):
    output, seen = tmp_path / "d", []

    def generate():
        for name in ("toy_A1", "toy_B1"):
            seen.append((output.exists(), {path.name[:14] for path in tmp_path.iterdir()}))
            yield small(name)

    write_dataset(generate(), output, **SIZE)
    assert seen == [(False, {".d.lock", ".d.incomplete-"})] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_an_existing_dataset_is_replaced_only_when_asked_and_only_by_a_complete_one(tmp_path):
    output = tmp_path / "d"
    write_dataset([small()], output, **SIZE)
    before = (output / "README.md").read_text()
    with pytest.raises(FileExistsError, match="already holds a dataset.*--overwrite"):
        write_dataset([small("toy_B1")], output, **SIZE)
    with pytest.raises(ValueError, match="bad slide"):
        write_dataset(failing(ValueError("bad slide")), output, overwrite=True, **SIZE)
    assert (output / "README.md").read_text() == before
    write_dataset([small("toy_B1")], output, overwrite=True, **SIZE)
    assert set(load_dataset(str(output))["train"]["slide_id"]) == {"toy_B1"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_folders_of_one_name_are_not_mixed_up_in_the_cache(tmp_path):
    for parent in ("one", "two"):
        write_dataset([small("toy_A1" if parent == "one" else "toy_B1")], tmp_path / parent / "toy", **SIZE)
    for config in ("spots", "slides"):
        ids = [
            set(load_dataset(str(tmp_path / parent / "toy"), config)["train"]["slide_id"]) for parent in ("one", "two")
        ]
        assert ids == [{"toy_A1"}, {"toy_B1"}]


def test_what_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    write_dataset([small()], tmp_path / "d", **SIZE)
    (tmp_path / "d" / "notes.txt").write_text("mine")
    for name, found in (("thesis", "chapter.tex"), ("file", "no complete dataset"), ("d", "notes.txt")):
        with pytest.raises(FileExistsError, match=f"not only a dataset folder .*{found}.*Choose another output"):
            write_dataset([small()], tmp_path / name, overwrite=True, **SIZE)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert (tmp_path / "d" / "notes.txt").exists()
    (tmp_path / "empty").mkdir()
    write_dataset([small()], tmp_path / "empty", **SIZE)
    assert (tmp_path / "empty" / "README.md").is_file()


def test_the_remains_of_a_killed_run_are_reported_and_not_used(tmp_path, caplog):
    stale = tmp_path / ".d.incomplete-123-abc" / "spots"
    stale.mkdir(parents=True)
    (stale / "toy_Z1.parquet").write_bytes(b"half")
    write_dataset([small()], tmp_path / "d", **SIZE)
    assert "removed " in caplog.text and "left unfinished by a killed run" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert set(load_dataset(str(tmp_path / "d"))["train"]["slide_id"]) == {"toy_A1"}


def never():
    raise AssertionError("a slide was read before the arguments were checked")
    yield


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"patch_um": -1}, "patch_um is -1"),
        ({"patch_px": 0}, "patch_px is 0"),
        ({"image_format": "gif"}, "image_format is 'gif'. Allowed: 'jpeg', 'png'"),
        ({"quality": 0}, "quality is 0. Allowed: 1 to 100"),
        ({"outside": "keep"}, "outside is 'keep'. Allowed: 'error', 'drop'"),
    ],
)
def test_arguments_are_checked_before_any_work(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        write_dataset(never(), tmp_path / "d", **{**SIZE, **options})
    assert list(tmp_path.iterdir()) == []


def test_slides_are_validated_and_named_once(tmp_path):
    with pytest.raises(ValueError, match="'toy_A1' is given twice.*--slide-id"):
        write_dataset([small(), small()], tmp_path / "d", **SIZE)
    with pytest.raises(ValueError, match="there are no slides"):
        write_dataset([], tmp_path / "d", **SIZE)
    with pytest.raises(ValueError, match="mpp is 0"):
        write_dataset([small(mpp=0)], tmp_path / "d", **SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_patch_larger_than_the_slide_is_told(tmp_path, caplog):
    write_dataset([small()], tmp_path / "d", **{**SIZE, "patch_um": 500})
    assert re.search(
        r"a patch of 500 um is \d+ px, larger than the whole image of \d+ x \d+ px: lower --pat", caplog.text
    )


def test_spots_outside_are_refused_or_dropped(tmp_path):
    slide = small()
    slide.spots.loc["0x1", "x"] = 500.0
    with pytest.raises(ValueError, match="1 of 4 spots lie outside.*--drop-outside"):
        write_dataset([slide], tmp_path / "d", **SIZE)
    write_dataset([slide], tmp_path / "d", outside="drop", **SIZE)
    rows = load_dataset(str(tmp_path / "d"))["train"]
    assert rows["barcode"][:] == ["0x0", "1x0", "1x1"]
    np.testing.assert_array_equal(rows["total_counts"][:], np.asarray(slide.counts.sum(axis=1)).ravel()[[0, 1, 3]])


def test_enlarged_patches_are_reported(tmp_path, caplog):
    write_dataset([small()], tmp_path / "d", patch_um=40, patch_px=100)
    assert "a patch of 40 um is 20 px of the image, enlarged to 100 px" in caplog.text
