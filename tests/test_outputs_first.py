"""Outputs that cannot be written, or that another run writes, are found before the work."""

import pytest

from delst_hf.atomic.locks import locked
from delst_hf.cli import main

pytestmark = pytest.mark.fault("outputs that cannot be written")


def never(*arguments, **options):
    raise AssertionError("the work began before the output was looked at")


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Every command's work fails the test."""
    for name in (
        "evaluation.results.read_results",
        "data.study.Study.load",
        "data.vocabulary.choose_genes",
        "hub.card.model_card",
        "prediction.fit.load_predictor",
        "prediction.reference.load_predictor",
        "prediction.predict.load_predictor",
        "prediction.annotate.open_anndata",
        "data.part.write_part",
        "data.merge.open_folder",
    ):
        monkeypatch.setattr(f"delst_hf.{name}", never)


def commands(output):
    return {
        "evaluate": ["evaluate", "a-model", "me/a-dataset", "--output", output],
        "report": ["report", "results.json", "--output", output],
        "model-index": ["report", "results.json", "--output", "report.html", "--model-index", output],
        "vocabulary": ["vocabulary", "me/a-dataset", "--output", output],
        "card": ["card", "a-model", "me/name", "--output", output],
        "predict": ["predict", "a-model", "slide.png", "--output", f"{output}.parquet"],
        "predict zarr": ["predict", "a-model", "slide.png", "--output", f"{output}.zarr"],
        "embed": ["embed", "a-model", "mine.h5ad", "--output", output],
        "fit": ["fit", "a-model", "me/a-dataset", "--output", output],
        "prepare": ["prepare", "toy", "--output", output],
        "merge": ["merge", "me/a-dataset", "--output", output],
    }


# Those that make a folder, which a folder at that place does not prevent.
FOLDERS = ("fit", "prepare", "merge")


@pytest.mark.parametrize("name", list(commands("")))
def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    below = "file/below" if name.startswith("predict") else "file/below.json"
    cases = [(below, "is a file, not a folder"), (".", "is a folder"), ("file", "file")]
    cases.append(("x" * 300, "name is too long"))
    if name.startswith("predict"):  # the names there end in .parquet and .zarr
        cases = [cases[0], cases[3]]
    elif name not in FOLDERS:
        cases.pop(2)
    else:
        cases.pop(1)
    for output, match in cases:
        assert main(commands(output)[name]) == 2
        assert match in capsys.readouterr().err, output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_reference_that_cannot_be_written_is_found_before_the_work(tmp_path, capsys):
    (tmp_path / "reference").write_text("x")
    assert main(["reference", str(tmp_path), "me/a-dataset"]) == 2
    assert "reference is not a folder" in capsys.readouterr().err
    (tmp_path / "reference").unlink()
    with locked(tmp_path / "reference"):
        assert main(["reference", str(tmp_path), "me/a-dataset"]) == 2
    assert "another run is writing to this reference" in capsys.readouterr().err


def test_a_second_evaluation_into_one_file_is_refused(tmp_path, capsys):
    with locked(tmp_path / "results.json"):
        assert main(commands(str(tmp_path / "results.json"))["evaluate"]) == 2
    assert "another run is writing to this file of results" in capsys.readouterr().err
