"""transformers-mlinter, the linter of transformers' own models, on the files that travel to the Hub.

A finding at one place is answered there (``# trf-ignore: TRFxxx why``), a rule that does not fit this package below.
"""

from pathlib import Path

import pytest

mlinter = pytest.importorskip("mlinter", reason="transformers-mlinter is in the extra [dev]")

PACKAGE = Path(__file__).resolve().parents[1] / "delst_hf"
ANSWERED = {
    "TRF028": "The license stands once, in LICENSE and in the card of every checkpoint; no file repeats it.",
    "TRF041": "Branches follow options that users choose and ablate (geometry, losses, encoder), not checkpoints.",
    "TRF057": "Docstrings are written by hand, with shapes, units and errors; auto_docstring knows none of our inputs.",
}
FILES = list(mlinter.iter_modeling_files(search_paths=[PACKAGE]))


def test_the_linter_sees_the_model_files():
    names = {path.name for path in FILES}
    assert {"configuration_delst.py", "modeling_delst.py", "processing_delst.py"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_finding_is_left_without_an_answer(path):
    rules = mlinter.DEFAULT_ENABLED_TRF_RULES - set(ANSWERED)
    findings = mlinter.analyze_file(path, path.read_text(encoding="utf-8"), enabled_rules=rules)
    assert [mlinter.format_violation(finding) for finding in findings] == []


@pytest.mark.parametrize("rule", ANSWERED)
def test_no_answer_is_left_without_a_finding(rule):
    texts = [(path, path.read_text(encoding="utf-8")) for path in FILES]
    assert any(mlinter.analyze_file(path, text, enabled_rules={rule}) for path, text in texts)
