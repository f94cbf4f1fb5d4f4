"""Which slides an evaluation scores and fits on when none is named: those of the dataset's split."""

import logging

import pandas as pd
import pytest

from delst_hf.data.study import Study
from delst_hf.evaluation.slides import choose_slides


def study_of(**split: str) -> Study:
    """Slides A1, A2, B1, C1 of the patients A, B, C, each with its split."""
    names = list(split)
    table = pd.DataFrame({"slide_id": names, "patient_id": [name[0] for name in names], "split": list(split.values())})
    return Study(spots=None, genes=pd.DataFrame(), slides=table)  # type: ignore[arg-type]


SPLIT = {"A1": "train", "A2": "train", "B1": "validation", "C1": "test"}
WHOLE = dict.fromkeys(SPLIT, "train")


@pytest.mark.parametrize(
    ("split", "trained", "expected"),
    [
        (SPLIT, ["A1", "A2"], (["A1", "A2"], ["C1"])),
        (SPLIT, [], (["A1", "A2"], ["C1"])),
        (WHOLE, ["A1"], (["A1"], ["B1", "C1"])),
        (WHOLE, [], ([], ["A1", "A2", "B1", "C1"])),
        # The split "test" was trained on: what is left of other patients.
        (SPLIT, ["A1", "C1"], (["A1", "C1"], ["B1"])),
    ],
)
def test_without_names_the_split_decides(split, trained, expected):
    assert choose_slides(study_of(**split), trained) == expected


def test_other_sections_of_trained_patients_are_scored_only_by_name(caplog):
    caplog.set_level(logging.WARNING, "delst_hf")
    assert choose_slides(study_of(**WHOLE), ["A1"])[1] == ["B1", "C1"]
    assert "Not scored: A2, other sections of patients that were trained on" in caplog.text
    assert choose_slides(study_of(**WHOLE), ["A1"], test_slides=["A2"]) == (["A1"], ["A2"])
    assert "A2: other sections of patients that were trained on" in caplog.text
    with pytest.raises(ValueError, match=r"No slide is left to score.*\['A2'\] are other sections.*--test-slides"):
        choose_slides(study_of(A1="train", A2="train"), ["A1"])


def test_departing_from_the_split_is_said(caplog):
    caplog.set_level(logging.WARNING, "delst_hf")
    choose_slides(study_of(**SPLIT), [], train_slides=["A1", "C1"], test_slides=["A2"])
    assert "split of the dataset: C1, A2. Probes are fitted on: A1, C1. Scored: A2." in caplog.text
    caplog.clear()
    choose_slides(study_of(**WHOLE), [], train_slides=["A1"], test_slides=["C1"])
    assert "departed" not in caplog.text


def test_a_misspelt_slide_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"No slide \['a1'\].*It holds \['A1', 'A2', 'B1', 'C1'\]"):
        choose_slides(study_of(**WHOLE), [], test_slides=["a1"])
    with pytest.raises(ValueError, match=r"Did you mean 'toy_A1'\?"):
        choose_slides(study_of(toy_A1="train", toy_B1="train"), [], test_slides=["toyA1"])
