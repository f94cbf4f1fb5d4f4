"""Splits: nothing of a patient on two sides, unless asked for by name."""

from functools import partial

import numpy as np
import pytest

from delst_hf.data.dataset import write_dataset
from delst_hf.data.splits import SplitRequest, plan_split

SLIDES = [(f"s{i}", f"p{i // 2}") for i in range(20)]


def test_by_patient_is_seeded_and_clean():
    plan = plan_split(SLIDES, SplitRequest("patient", test=0.2, validation=0.1, seed=3))
    assert plan.of_slide == plan_split(SLIDES[::-1], SplitRequest("patient", 0.2, 0.1, 3)).of_slide
    assert plan.of_slide != plan_split(SLIDES, SplitRequest("patient", 0.2, 0.1, 4)).of_slide
    sides = {}
    for slide, patient in SLIDES:
        sides.setdefault(patient, set()).add(plan.of_slide[slide])
    assert sorted(map(len, sides.values())) == [1] * 10
    assert sorted(next(iter(side)) for side in sides.values()) == ["test"] * 2 + ["train"] * 7 + ["validation"]
    assert "Split by **patient** (seed 3); no patient is in two splits. train: s" in plan.describe()


def test_a_patient_on_two_sides_is_refused_unless_asked_for_by_name():
    with pytest.raises(ValueError, match=r"leaves patient 'p0' in test and train.*--split patient.*split='spot'"):
        plan_split(SLIDES, SplitRequest("slide", test_slides=("s0",)))
    with pytest.raises(ValueError, match="leaves patient"):
        plan_split(SLIDES, SplitRequest("slide", test=0.5))
    alone = [(f"s{i}", f"s{i}") for i in range(10)]
    assert sorted(plan_split(alone, SplitRequest("slide", test=0.2)).of_slide.values()) == ["test"] * 2 + ["train"] * 8
    plan = plan_split(SLIDES, SplitRequest("slide", test_slides=("s0", "s1"), validation_slides=("s4", "s5")))
    assert [name for name, split in plan.of_slide.items() if split == "test"] == ["s0", "s1"]
    assert "slides named by the user" in plan.describe()


def test_by_spot_says_so():
    plan = plan_split(SLIDES, SplitRequest("spot", test=0.25, validation=0.1, seed=1))
    drawn = plan.of_spots("s3", 1000)
    assert {name: int((drawn == name).sum()) for name in set(drawn)} == {"test": 250, "validation": 100, "train": 650}
    np.testing.assert_array_equal(drawn, plan.of_spots("s3", 1000))
    assert (drawn != plan.of_spots("s4", 1000)).any()
    assert "test scores are too good" in plan.describe()


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (SplitRequest("cell"), "split is 'cell'. Allowed: 'patient', 'slide', 'spot'"),
        (SplitRequest(test=0.7, validation=0.3), "must be 0 or more and leave something to train on"),
        (SplitRequest(test=0.0), "together more than 0"),
        (SplitRequest("spot", test_slides=("s0",)), "split='spot' draws spots of every slide"),
        (SplitRequest("slide", test_slides=("x",)), r"slides \['x'\] are not in the data"),
        (SplitRequest("slide", test_slides=("s0",), validation_slides=("s0",)), "both test and validation"),
        (SplitRequest("slide", test_slides=tuple(name for name, _ in SLIDES)), "no slide is left to train on"),
    ],
)
def test_requests_that_cannot_be(request_, match):
    with pytest.raises(ValueError, match=match):
        plan_split(SLIDES, request_)


def test_too_few_patients():
    with pytest.raises(ValueError, match="1 patients are too few to split.*--patient-id"):
        plan_split(SLIDES[:2], SplitRequest("patient"))


@pytest.mark.parametrize(
    ("patients", "request_", "match"),
    [
        (["P1", "P1", "P2"], SplitRequest("slide", test_slides=("S0",)), "leaves patient 'P1' in test and train"),
        (["P1", "P1", "P1"], SplitRequest("patient"), "patient"),
        (
            [None, "P1", "P1"],
            SplitRequest("slide", test_slides=("S0",)),
            "S0 is read",
        ),  # only reading tells its patient
        (["P1", "P2", "P3"], SplitRequest("patient", test_slides=("S 9",)), "S0 is read"),  # a name may be spelt anew
    ],
)
def test_what_a_sheet_tells_is_refused_before_a_slide_is_read(patients, request_, match, tmp_path):
    def read(slide_id, patient_id):
        raise ValueError(f"{slide_id} is read")

    slides = [partial(read, slide_id=f"S{i}", patient_id=patient) for i, patient in enumerate(patients)]
    with pytest.raises(ValueError, match=match):
        write_dataset(slides, tmp_path / "data", split=request_)
