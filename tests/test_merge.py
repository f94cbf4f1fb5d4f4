"""Folders that are merged, split, made in parts, in parallel, and taken up again."""

import dataclasses
import errno
import os
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from delst_hf.data import dataset as dataset_module
from delst_hf.data import part as part_module
from delst_hf.data.dataset import merge_datasets, shard, write_dataset
from delst_hf.data.splits import SplitRequest
from delst_hf.data.toy import make_toy_slide

SIZE = {"patch_um": 40, "patch_px": 20}
small = partial(make_toy_slide, spots_per_side=4, num_genes=20, image_px=100)


def with_genes(slide, rows):
    """The slide with these (gene_id, symbol) as its genes, as many as it keeps columns."""
    genes = slide.genes.iloc[: len(rows)].reset_index(drop=True)
    genes["gene_id"], genes["symbol"] = [row[0] for row in rows], [row[1] for row in rows]
    return dataclasses.replace(slide, genes=genes, counts=slide.counts[:, : len(rows)], species="human")


def counts_by_gene(folder, slide_id):
    """Barcode -> {gene: count} as a user would read it."""
    genes = load_dataset(str(folder), "genes")["train"]
    rows = load_dataset(str(folder))
    names = [symbol or gene_id for symbol, gene_id in zip(genes["symbol"], genes["gene_id"], strict=True)]
    found = {}
    for split in rows.values():
        for row in split:
            if row["slide_id"] == slide_id:
                assert row["gene_indices"] == sorted(set(row["gene_indices"]))
                assert row["n_genes"] == len(row["gene_indices"]) == len(row["gene_counts"])
                assert sum(row["gene_counts"]) == row["total_counts"]
                named = zip([names[i] for i in row["gene_indices"]], row["gene_counts"], strict=True)
                found[row["barcode"]] = dict(named)
    return found


def test_panels_of_symbols_and_of_ids_become_one(tmp_path, caplog):
    first = with_genes(small("toy_A1"), [("", "ERBB2"), ("", "ONLY_A"), ("", "CD44")])
    e = "ENSG0000000000"
    second = with_genes(small("toy_B1"), [(f"{e}3.2", "CD44"), (f"{e}1.7", "ERBB2"), (f"{e}9", ""), (f"{e}4", "X1")])
    write_dataset([first], tmp_path / "a", image_format="png", license="cc-by-4.0", **SIZE)
    write_dataset([second], tmp_path / "b", image_format="png", license="cc-by-4.0", **SIZE)
    summary = merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    assert summary.slides == {"toy_A1": 16, "toy_B1": 16}
    genes = load_dataset(str(tmp_path / "ab"), "genes")["train"]
    assert genes["symbol"][:] == ["ERBB2", "ONLY_A", "CD44", "", "X1"]
    assert genes["gene_id"][:] == [f"{e}1", "", f"{e}3", f"{e}9", f"{e}4"]
    slides = load_dataset(str(tmp_path / "ab"), "slides")["train"]
    assert slides["measured_genes"][:] == [[0, 1, 2], [0, 2, 3, 4]]
    for slide, names in ((first, ["ERBB2", "ONLY_A", "CD44"]), (second, ["CD44", "ERBB2", f"{e}9", "X1"])):
        found = counts_by_gene(tmp_path / "ab", slide.slide_id)
        for barcode, row in zip(slide.spots.index, slide.counts.toarray(), strict=True):
            assert found[barcode] == {name: n for name, n in zip(names, row.tolist(), strict=True) if n}
    rows = load_dataset(str(tmp_path / "ab"))["train"]
    for row, patch in zip(rows, [*first.patches(**SIZE), *second.patches(**SIZE)], strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(patch))
    assert yaml.safe_load((tmp_path / "ab" / "README.md").read_text().split("---\n")[1])["license"] == "cc-by-4.0"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md",
        "examples",
        "genes",
        "manifest.json",
        "slides",
        "spots",
    ]


def test_columns_that_turn_out_to_be_one_gene_are_summed(tmp_path):
    e = "ENSG0000000000"
    first = with_genes(small("toy_A1"), [(f"{e}1", "ERBB2"), ("", "ERBB2"), (f"{e}2", "CD44")])
    write_dataset([first], tmp_path / "a", **SIZE)
    dense = first.counts.toarray()
    for barcode, found in counts_by_gene(tmp_path / "a", "toy_A1").items():
        i = list(first.spots.index).index(barcode)
        expected = {"ERBB2": dense[i, 0] + dense[i, 1], "CD44": dense[i, 2]}
        assert found == {name: n for name, n in expected.items() if n}


def test_panels_with_little_in_common_are_reported(tmp_path, caplog):
    write_dataset([with_genes(small("toy_A1"), [("", f"A{i}") for i in range(9)])], tmp_path / "a", **SIZE)
    write_dataset([with_genes(small("toy_B1"), [("", f"B{i}") for i in range(9)])], tmp_path / "b", **SIZE)
    merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    assert "toy_A1: only 0 % of its 9 genes are in another panel" in caplog.text


def test_merging_mistakes(tmp_path):
    write_dataset([small("toy_A1")], tmp_path / "a", **SIZE)
    with pytest.raises(ValueError, match="'toy_A1' is given twice"):
        merge_datasets([tmp_path / "a", tmp_path / "a"], tmp_path / "aa")
    with pytest.raises(FileNotFoundError, match=r"not a complete dataset folder: \['spots', 'genes'"):
        merge_datasets([tmp_path / "a", tmp_path], tmp_path / "aa")
    with pytest.raises(ValueError, match="no datasets to merge"):
        merge_datasets([], tmp_path / "aa")
    with pytest.raises(FileExistsError, match="already holds a dataset"):
        merge_datasets([tmp_path / "a"], tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


NAMES = ("toy_A1", "toy_A2", "toy_B1", "toy_C1")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_by_patient_is_what_load_dataset_gives(tmp_path, streaming):
    summary = write_dataset(map(small, NAMES), tmp_path / "d", split=SplitRequest("patient", test=0.3, seed=1), **SIZE)
    data = load_dataset(str(tmp_path / "d"), streaming=streaming)
    patients = {name: {row["patient_id"] for row in split} for name, split in data.items()}
    assert set(patients) == {"train", "test"}
    assert not patients["train"] & patients["test"]
    assert patients["train"] | patients["test"] == {"A", "B", "C"}
    assert sum(summary.splits.values()) == 64
    slides = load_dataset(str(tmp_path / "d"), "slides")["train"]
    assert {row["slide_id"]: row["split"] for row in slides} == {
        name: "test" if name.split("_")[1][0] in patients["test"] else "train" for name in NAMES
    }
    assert "Split by **patient** (seed 1)" in (tmp_path / "d" / "README.md").read_text()


def test_a_leak_is_refused_and_a_split_by_spot_is_named(tmp_path):
    with pytest.raises(ValueError, match="leaves patient 'A' in test and train"):
        write_dataset(map(small, NAMES), tmp_path / "d", split=SplitRequest("slide", test_slides=("toy_A1",)), **SIZE)
    assert list(tmp_path.iterdir()) == []
    write_dataset(map(small, NAMES), tmp_path / "d", split=SplitRequest("spot", test=0.25), **SIZE)
    data = load_dataset(str(tmp_path / "d"))
    assert (len(data["train"]), len(data["test"])) == (48, 16)
    keys = [{(row["slide_id"], row["barcode"]) for row in split} for split in data.values()]
    assert not keys[0] & keys[1]
    text = (tmp_path / "d" / "README.md").read_text()
    assert "Split by **spot**" in text and "too good" in text
    merge_datasets([tmp_path / "d"], tmp_path / "again")  # keeps its splits
    assert {name: len(split) for name, split in load_dataset(str(tmp_path / "again")).items()} == {
        "train": 48,
        "test": 16,
    }
    merge_datasets([tmp_path / "d"], tmp_path / "anew", split=SplitRequest("patient", test=0.3))
    again = load_dataset(str(tmp_path / "anew"))
    assert sum(map(len, again.values())) == 64
    assert not set(again["train"]["patient_id"]) & set(again["test"]["patient_id"])


def test_a_study_opens_all_splits(tmp_path):
    from delst_hf.data.study import Study

    write_dataset(map(small, NAMES), tmp_path / "d", split=SplitRequest("patient", test=0.3), **SIZE)
    assert len(Study.load(str(tmp_path / "d")).spots) == 64


def test_shards_merge_to_what_one_run_makes(tmp_path):
    write_dataset(map(small, NAMES), tmp_path / "whole", **SIZE)
    folders = []
    for index in range(3):
        names = shard(NAMES, index, 3)
        folders.append(tmp_path / f"part{index}")
        write_dataset(map(small, names), folders[-1], **SIZE)
    merge_datasets(folders, tmp_path / "merged")
    for config in ("spots", "genes", "slides"):
        pair = [pq.read_table(tmp_path / name / config) for name in ("whole", "merged")]
        assert pair[0].equals(pair[1])
    assert [list(shard(NAMES, i, 6)) for i in range(6)] == [[], ["toy_A1"], ["toy_A2"], [], ["toy_B1"], ["toy_C1"]]
    with pytest.raises(ValueError, match="shard_index is 3 of 3 shards"):
        shard(NAMES, 3, 3)


def test_a_large_slide_goes_on_in_further_files(tmp_path, monkeypatch):
    monkeypatch.setattr(part_module, "_ROWS_PER_GROUP", 3)
    slide = make_toy_slide("toy_A1", spots_per_side=4, num_genes=20, image_px=600)
    options = {"patch_um": 500, "patch_px": 250, "image_format": "png", "max_shard_bytes": 2**20}
    write_dataset([slide], tmp_path / "d", **options)
    names = sorted(path.name for path in (tmp_path / "d" / "spots").iterdir())
    assert len(names) > 1
    assert names == [f"toy_A1--{i:05d}.parquet" for i in range(len(names))]
    assert load_dataset(str(tmp_path / "d"))["train"]["barcode"][:] == list(slide.spots.index)
    with pytest.raises(ValueError, match="max_shard_bytes is 5"):
        write_dataset([slide], tmp_path / "e", max_shard_bytes=5)


def test_the_same_in_parallel(tmp_path):
    jobs = [partial(make_toy_slide, name, spots_per_side=4, num_genes=20, image_px=100) for name in NAMES[:2]]
    write_dataset(jobs, tmp_path / "one", **SIZE)
    write_dataset(jobs, tmp_path / "two", num_proc=2, **SIZE)
    for config in ("spots", "genes", "slides"):
        pair = [pq.read_table(tmp_path / name / config) for name in ("one", "two")]
        assert pair[0].equals(pair[1])
    with pytest.raises(ValueError, match="slides in memory cannot be distributed over processes"):
        write_dataset([small("toy_A1")], tmp_path / "x", num_proc=2, **SIZE)
    with pytest.raises(ValueError, match="num_proc is 0"):
        write_dataset(jobs, tmp_path / "x", num_proc=0, **SIZE)


calls: list[str] = []


def read(name, fail=""):
    calls.append(name)
    if fail and os.path.exists(fail):
        raise OSError(errno.ENOSPC, "No space left on device")
    return small(name)


def test_finished_slides_are_kept_and_taken_up(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    jobs = [partial(read, "toy_A1"), partial(read, "toy_B1", str(flag)), partial(read, "toy_C1")]
    calls.clear()
    with pytest.raises(
        OSError, match=r"the disk is full \(.* GiB free.*Nothing was left half-written.*run the same command"
    ):
        write_dataset(jobs, tmp_path / "d", resume=True, **SIZE)
    assert calls == ["toy_A1", "toy_B1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".d.parts", "flag"]
    killed = tmp_path / ".d.parts" / ".abc.incomplete-1"  # what a kill leaves
    killed.mkdir()
    jobs[1] = partial(read, "toy_B1")
    summary = write_dataset(jobs, tmp_path / "d", resume=True, **SIZE)
    assert calls == ["toy_A1", "toy_B1", "toy_B1", "toy_C1"]
    assert list(summary.slides) == ["toy_A1", "toy_B1", "toy_C1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "flag"]
    write_dataset([small(name) for name in summary.slides], tmp_path / "fresh", **SIZE)
    assert pq.read_table(tmp_path / "d" / "spots").equals(pq.read_table(tmp_path / "fresh" / "spots"))


def test_other_options_or_files_are_not_taken_up(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one")
    job = partial(read, str(source))
    key = dataset_module._key
    options = part_module.PatchOptions()
    first = key(job, options, 0)
    assert first == key(partial(read, str(source)), dataclasses.replace(options, progress=True), 3)
    assert first != key(job, dataclasses.replace(options, patch_px=32), 0)
    source.write_text("two!")
    assert first != key(job, options, 0)
