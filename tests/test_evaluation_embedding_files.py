"""Embeddings on the disk, one file per process: written by several, read by `delst evaluate` for the slides that it scores."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ranks import in_ranks

from delst_hf import DelstModel, DelstProcessor
from delst_hf.cli import main
from delst_hf.evaluation.arrays import read_embeddings
from delst_hf.evaluation.embed import embed, model_collator
from delst_hf.evaluation.embedding_files import embedding_files, read_embedding_files


def command_of_one_rank(rank: int, said: str, words: list[str]) -> None:
    with open(f"{said}-{rank}", "w") as file, contextlib.redirect_stdout(file):
        assert main(words) == 0


@pytest.fixture(scope="module")
def embedded(toy_checkpoint, toy_folder, tmp_path_factory) -> Path:
    """The toy study embedded by two processes, as the help of `delst embed` says."""
    folder = tmp_path_factory.mktemp("embedded") / "out"
    words = ["embed", str(toy_checkpoint), str(toy_folder), "--output", str(folder), "--batch-size", "7"]
    in_ranks(command_of_one_rank, str(folder.with_name("said")), [*words, "--num-workers", "0"])
    said = [folder.with_name(f"said-{rank}").read_text() for rank in (0, 1)]
    assert "".join(said).count("Next: delst evaluate") == 1
    return folder


def test_two_processes_write_a_file_each_of_what_one_embeds(embedded, toy_checkpoint, toy_study):
    assert [path.name for path in embedding_files(embedded)] == [f"embeddings-0000{i}-of-00002.parquet" for i in (0, 1)]
    assert [pq.read_metadata(path).num_rows for path in embedding_files(embedded)] == [54, 54]
    model, processor = (one.from_pretrained(toy_checkpoint) for one in (DelstModel, DelstProcessor))
    whole = embed(model, toy_study.spots, model_collator(model, processor, toy_study), progress=False)
    table = pq.ParquetDataset(embedding_files(embedded)).read()
    assert table["barcode"].to_pylist() == toy_study.spots["barcode"][:]
    assert table["slide_id"].to_pylist() == toy_study.spots["slide_id"][:]
    for name in ("features", "image_embeds", "gene_embeds"):
        np.testing.assert_allclose(np.stack(table[name].to_numpy()), getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_only_the_slides_that_are_scored_are_read(embedded, toy_study):
    spots = toy_study.subset(["toy_B1"])
    arrays = read_embeddings(embedded, spots, len(toy_study.spots))
    assert arrays["image"].shape == arrays["gene"].shape == (36, 8)
    assert set(read_embedding_files(embedded, ["toy_B1"])["slide_id"]) == {"toy_B1"}
    every = read_embeddings(embedded, toy_study.spots, len(toy_study.spots))["image"]
    np.testing.assert_array_equal(arrays["image"], every[np.asarray(spots["spot_index"][:])])


def test_evaluate_reads_the_folder_with_its_space_and_its_record(
    embedded, toy_checkpoint, toy_folder, tmp_path, capsys
):
    words = [str(toy_folder), "--protocols", "retrieval", "--no-baselines", "--resamples", "5"]
    scores = []
    for subject in (embedded, toy_checkpoint):
        output = str(tmp_path / "results.json")
        assert main(["evaluate", str(subject), *words, "--test-slides", "toy_B1", "--output", output]) == 0
        results = json.loads(Path(output).read_text())
        assert results["train_slides"] == ["toy_A1", "toy_A2"]
        scores.append([row["metrics"] for row in results["protocols"] if row["own"]])
    # Embeddings made by two processes differ in a last digit, which may turn no rank of so few spots.
    assert scores[0] == scores[1] and len(scores[0]) == 2
    capsys.readouterr()
    assert (
        main(["evaluate", str(embedded), *words, "--test-slides", "toy_A1", "--output", str(tmp_path / "seen.json")])
        == 2
    )
    assert "trained on ['toy_A1']" in capsys.readouterr().err


def test_a_part_that_is_missing_is_an_error(embedded, toy_checkpoint, toy_folder, tmp_path, capsys):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "embeddings-00001-of-00002.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="embeddings-00001-of-00002.parquet, which are not all the files of one run"):
        embedding_files(tmp_path / "part")
    assert main(["embed", str(toy_checkpoint), str(toy_folder)]) == 2
    assert "Name it with --output DIR" in capsys.readouterr().err
    assert main(["embed", str(toy_checkpoint), str(toy_folder), "--output", str(embedded)]) == 2
    assert "is not empty. Choose another --output" in capsys.readouterr().err


def test_what_processes_left_that_were_killed_at_their_end_is_embedded_again(toy_checkpoint, toy_folder, tmp_path):
    """One of two was done with its file, and the same command was refused until the folder was removed by hand."""
    folder = tmp_path / "out"
    words = ["embed", str(toy_checkpoint), str(toy_folder), "--output", str(folder), "--num-workers", "0"]
    folder.mkdir()
    for name in (
        "embeddings-00001-of-00002.parquet",
        ".embeddings-00000-of-00002.parquet.incomplete-7-a",
        "training.json",
    ):
        (folder / name).write_bytes(b"{}")
    assert main(words) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["embeddings-00000-of-00001.parquet", "training.json"]
