"""Outputs that cannot be written, or that another run writes, are found before the work."""

import pytest

from delst_hf.atomic import locked
from delst_hf.cli import main


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
    ):
        monkeypatch.setattr(f"delst_hf.{name}", never)


def commands(output):
    return {
        "evaluate": ["evaluate", "a-model", "a-dataset", "--output", output],
        "report": ["report", "results.json", "--output", output],
        "model-index": ["report", "results.json", "--output", "report.html", "--model-index", output],
        "vocabulary": ["vocabulary", "a-dataset", "--output", output],
        "card": ["card", "a-model", "me/name", "--output", output],
    }


@pytest.mark.parametrize("name", list(commands("")))
def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    for output, match in ((".", "is a folder"), ("file/below.json", "is a file, not a folder")):
        assert main(commands(output)[name]) == 2
        assert match in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_evaluation_into_one_file_is_refused(tmp_path, capsys):
    with locked(tmp_path / "results.json"):
        assert main(commands(str(tmp_path / "results.json"))["evaluate"]) == 2
    assert "another run is writing to this file of results" in capsys.readouterr().err
