"""Slides without an image: prepared into a split of their own, merged, and refused where an image is needed."""

from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from delst_hf.cli import main
from delst_hf.data.cells import pool_cells
from delst_hf.data.collator import open_patch
from delst_hf.data.dataset import merge_datasets, write_dataset
from delst_hf.data.folder import open_folder
from delst_hf.data.names import check_split_of_named
from delst_hf.data.readers.her2st import find_her2st_sections, read_her2st
from delst_hf.data.schema import SPOTS_SCHEMA
from delst_hf.data.splits import SplitRequest
from delst_hf.data.streamed import StreamedStudy
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide
from delst_hf.data.understood import dataset_pages
from delst_hf.data.vocabulary import training_slides
from delst_hf.evaluation.slides import choose_slides
from delst_hf.prediction.source import dataset_source

SIZE = {"patch_um": 40, "patch_px": 20}
small = partial(make_toy_slide, spots_per_side=4, num_genes=20, image_px=100)


def blind(name):
    return replace(small(name), image=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two slides with an image, of which one is held out, and two without; of patients A, B, A and C."""
    goal = tmp_path_factory.mktemp("unpaired") / "data"
    slides = [small("toy_A1"), blind("toy_A2"), small("toy_B1"), blind("toy_C1")]
    write_dataset(slides, goal, split=SplitRequest("patient", test_slides=("toy_B1",)), **SIZE)
    return goal


@pytest.fixture(scope="module")
def study(folder):
    return Study.load(folder, verify=True)


def test_their_spots_are_a_split_without_images(folder):
    found = load_dataset(str(folder))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 16, "test": 16, "unpaired": 32}
    assert found["unpaired"]["image"][:] == [None] * 32 and found["unpaired"]["tissue_fraction"][:] == [None] * 32
    assert all(image is not None for name in ("train", "test") for image in found[name]["image"])
    slide = small("toy_A2")
    first = found["unpaired"].filter(lambda row: row["slide_id"] == "toy_A2")
    np.testing.assert_array_equal(first["total_counts"], np.asarray(slide.counts.sum(axis=1)).ravel())
    rows = load_dataset(str(folder), "slides")["train"]
    assert rows["split"][:] == ["train", "unpaired", "test", "unpaired"]
    assert rows["thumbnail"][1] is None and rows["thumbnail"][0] is not None
    assert rows["image_width"][:] == [100, 0, 100, 0]


def test_the_card_and_the_check_say_so(folder, capsys):
    card = (folder / "README.md").read_text()
    assert "split: unpaired\n    path: spots/unpaired/*.parquet" in card
    assert "are in the split `unpaired`, including those of held-out patients: toy_A2, toy_C1." in card
    pages = dataset_pages(folder)
    assert "image    none: counts alone, to train the gene side (--unpaired_slides)" in pages[1]
    assert "image    100 x 100 px" in pages[0]
    assert main(["check", str(folder)]) == 0
    assert "patch    none" in capsys.readouterr().out


def test_a_study_tells_them_apart(study):
    assert study.unpaired_slides == ["toy_A2", "toy_C1"] and study.paired_slides == ["toy_A1", "toy_B1"]
    assert len(study.spots) == 64 and study.spots["image"][40] is None
    study.check_images(["toy_A1"])
    with pytest.raises(
        ValueError, match=r"Slides \['toy_C1'\] have no image \(split 'unpaired'\).*Slides with an image"
    ):
        study.check_images(["toy_A1", "toy_C1"])
    with pytest.raises(ValueError, match=r"No slide \['toy_X'\]"):
        study.check_images(["toy_X"])


def test_a_stream_has_the_same_slides(folder, study):
    streamed = StreamedStudy.load(str(folder))
    assert streamed.unpaired_slides == study.unpaired_slides and streamed.is_split
    assert streamed.subset(["toy_A1"]).num_rows == 16


def test_a_folder_with_nothing_but_unpaired_beside_train_is_not_split(tmp_path):
    write_dataset([small("toy_A1"), blind("toy_B1")], tmp_path / "data", **SIZE)
    study = Study.load(tmp_path / "data")
    assert not study.is_split and study.split_of_slide == {"toy_A1": "train", "toy_B1": "unpaired"}


def test_slides_without_an_image_alone_make_a_dataset_to_merge(tmp_path):
    write_dataset([blind("toy_B1")], tmp_path / "blind", preview=True, **SIZE)
    assert load_dataset(str(tmp_path / "blind"))["unpaired"].num_rows == 16
    card = (tmp_path / "blind" / "README.md").read_text()
    assert 'load_dataset(path)["unpaired"]' in card and "image patch" not in card and "![" not in card
    write_dataset([small("toy_A1"), small("toy_C1")], tmp_path / "seen", **SIZE)
    both = tmp_path / "both"
    merge_datasets([tmp_path / "seen", tmp_path / "blind"], both)
    assert {name: len(rows) for name, rows in load_dataset(str(both)).items()} == {"train": 32, "unpaired": 16}
    split = SplitRequest("patient", test=0.5)
    merge_datasets([both], tmp_path / "split", split=split)
    assert set(Study.load(tmp_path / "split").split_of_slide.values()) == {"train", "test", "unpaired"}
    merge_datasets([both], tmp_path / "spots", split=SplitRequest("spot", test=0.25))
    torn = Study.load(tmp_path / "spots", verify=True)
    assert torn.split_of_slide == {"toy_A1": "spot", "toy_C1": "spot", "toy_B1": "unpaired"}
    assert "Split by **spot**" in (tmp_path / "spots" / "README.md").read_text()


def test_a_split_is_looked_at_before_reading_without_them():
    split = SplitRequest("patient", test_slides=("toy_A1",))
    check_split_of_named([small("toy_A1"), blind("toy_A2"), small("toy_B1")], split)
    with pytest.raises(ValueError, match="leaves patient 'A' in test and train"):
        check_split_of_named([small("toy_A1"), small("toy_A2"), small("toy_B1")], split)
    jobs = [partial(read_her2st, "root", section=name, patient_id="A", without_image=True) for name in ("A1", "A2")]
    check_split_of_named(jobs, SplitRequest("patient"))  # only reading tells which have an image


def test_they_cannot_be_held_out(tmp_path):
    split = SplitRequest("slide", test_slides=("toy_B1",))
    with pytest.raises(ValueError, match=r"slides \['toy_B1'\] have no image, so they belong to the split 'unpaired'"):
        write_dataset([small("toy_A1"), blind("toy_B1")], tmp_path / "data", split=split, **SIZE)


def without_images(path):
    """The file with its images gone."""
    table = pq.read_table(path)
    place = table.column_names.index("image")
    table = table.set_column(place, table.schema.field("image"), pa.nulls(len(table), SPOTS_SCHEMA.field("image").type))
    pq.write_table(table, path)


def test_an_image_missing_elsewhere_is_found(folder, tmp_path):
    goal = tmp_path / "data"
    merge_datasets([folder], goal)
    without_images(goal / "spots" / "train" / "toy_A1.parquet")
    (goal / "manifest.json").unlink()
    with pytest.raises(ValueError, match="images of spots/train/toy_A1.parquet are missing"):
        open_folder(goal)


def test_an_image_missing_from_a_folder_that_is_not_split_is_found(tmp_path):
    goal = tmp_path / "data"
    write_dataset([small("toy_A1")], goal, **SIZE)
    without_images(goal / "spots" / "toy_A1.parquet")
    (goal / "manifest.json").unlink()
    with pytest.raises(
        ValueError, match="holds 16 spots without an image, which are not exactly those of the split 'unpaired'"
    ):
        Study.load(goal)


def test_what_needs_an_image_refuses_them(study, folder):
    with pytest.raises(ValueError, match=r"Slides \['toy_C1'\] have no image"):
        choose_slides(study, [], ["toy_A1"], ["toy_C1"])
    # Of the patients of unpaired slides nothing is scored by default, and nothing is fitted on them.
    assert choose_slides(study, ["toy_A1", "toy_C1"]) == (["toy_A1"], ["toy_B1"])
    with pytest.raises(ValueError, match=r"Slides \['toy_A2'\] have no image"):
        dataset_source(str(folder), study, ["toy_A2"])
    with pytest.raises(ValueError, match=r"slides \['toy_A2'\] are not in the split train"):
        training_slides(study, ["toy_A2"])
    assert training_slides(study) == ["toy_A1"]
    with pytest.raises(ValueError, match="A spot has no image: it is of the split 'unpaired'"):
        open_patch(study.spots[40]["image"])
    with pytest.raises(ValueError, match="slide 'toy_A1' has no image, so nothing can be cut"):
        blind("toy_A1").thumbnail()


def test_her2st_takes_sections_without_an_image_when_asked(tmp_path, capsys):
    from test_readers_her2st import write_counts, write_section

    root = write_section(tmp_path / "her2st")
    data = root / "data"
    write_counts(data / "ST-cnts" / "Y1.tsv.gz", ["1x1", "2x2", "3x1", "1x2"])
    (data / "ST-spotfiles" / "Y1_selection.tsv").write_text((data / "ST-spotfiles" / "Z1_selection.tsv").read_text())
    assert find_her2st_sections(root) == ["Z1"] and find_her2st_sections(root, without_image=True) == ["Y1", "Z1"]
    with pytest.raises(FileNotFoundError, match="section 'Y1' has no image.*add --without-image"):
        read_her2st(root, "Y1")
    slide = read_her2st(root, "Y1", without_image=True)
    slide.validate()
    assert (
        slide.image is None and slide.mpp == pytest.approx(5) and slide.source == "her2st: Y1.tsv.gz, Y1_selection.tsv"
    )
    assert read_her2st(root, "Z1", without_image=True).image is not None
    command = [
        "prepare",
        "her2st",
        str(root),
        "--without-image",
        "--output",
        str(tmp_path / "out"),
        "--allow-off-tissue",
    ]
    assert main([*command, "--patch-px", "16", "--quiet"]) == 0
    assert Study.load(tmp_path / "out").split_of_slide == {"Y1": "unpaired", "Z1": "train"}
    assert "splits   unpaired 4, train 4" in capsys.readouterr().out


def test_tables_and_anndata_without_an_image(tmp_path, capsys):
    slide = small("toy_A1")
    places = slide.spots[["x", "y"]].rename_axis("barcode")
    places.to_csv(tmp_path / "xy.csv")
    counts = slide.spots[[]].copy()
    counts[slide.genes["symbol"].tolist()] = slide.counts.toarray()
    counts.to_csv(tmp_path / "counts.csv")
    files = ["--counts", str(tmp_path / "counts.csv"), "--coordinates", str(tmp_path / "xy.csv"), "--allow-scale"]
    assert main(["prepare", "table", *files, "--output", str(tmp_path / "t"), "--quiet"]) == 2
    assert "the following arguments are required: --image, or --without-image" in capsys.readouterr().err
    assert (
        main(["prepare", "table", *files, "--image", "x.png", "--without-image", "--output", str(tmp_path / "t")]) == 2
    )
    assert "--without-image is for slides that have no image" in capsys.readouterr().err
    assert main(["prepare", "table", *files, "--without-image", "--output", str(tmp_path / "t"), "--quiet"]) == 0
    assert load_dataset(str(tmp_path / "t"))["unpaired"].num_rows == 16

    import anndata

    adata = anndata.AnnData(slide.counts.astype(np.float32), obs=slide.spots[["label"]].astype(str))
    adata.var_names = slide.genes["symbol"].tolist()
    adata.obsm["spatial"] = slide.spots[["x", "y"]].to_numpy(float)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    with h5py.File(tmp_path / "counts.h5ad") as file:
        assert "spatial" not in file["uns"]
    command = ["prepare", "anndata", str(tmp_path / "counts.h5ad"), "--mpp", "2", "--allow-scale", "--quiet"]
    assert main([*command, "--output", str(tmp_path / "h")]) != 0
    assert main([*command, "--without-image", "--output", str(tmp_path / "h")]) == 0
    found = Study.load(tmp_path / "h")
    assert found.unpaired_slides == ["counts"]
    assert found.spots["total_counts"][:] == np.asarray(slide.counts.sum(axis=1)).ravel().tolist()


def test_cells_without_an_image_are_added_up_as_far_as_there_are_cells():
    slide = blind("toy_A1")
    pooled = pool_cells(slide, 100.0)  # 50 px of the 100 that the cells lie on
    assert pooled.image is None and pooled.counts.shape[0] == 4
    assert pooled.counts.sum() == slide.counts.sum()


def test_real_sections_without_an_image(shared_dir, tmp_path):
    slide = read_her2st(shared_dir / "data" / "her2st", "B1", without_image=True)
    write_dataset([slide], tmp_path / "b1", patch_px=32)
    study = Study.load(tmp_path / "b1")
    assert study.unpaired_slides == ["B1"] and len(study.spots) == 295
    assert sum(label is not None for label in study.spots["label"]) == 295
