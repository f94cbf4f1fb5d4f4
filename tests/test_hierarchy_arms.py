"""Which trainings the study makes, of what data, and in which order its results are kept."""

import argparse
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def arms(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("hierarchy_arms")


def options(**given):
    plain = {"action": "run", "seeds": [0, 1], "arms": None, "splits": None, "tuned": None, "her2st": "a", "mob": "b"}
    return argparse.Namespace(**{**plain, "her2st_wide": None, "mob_wide": None, "her2st_unpaired": None, **given})


def test_arms_whose_dataset_is_not_given_are_left_out_aloud(arms, capsys):
    few = {unit.arm for unit in arms.units_of(options(), set())}
    assert not few & {"niche cone", "niche, none", "niche, euclidean", "cone, unpaired"}
    assert "not given: cone, unpaired; niche cone; niche, euclidean; niche, none" in capsys.readouterr().out
    every = arms.units_of(options(her2st_wide="c", mob_wide="d", her2st_unpaired="e"), set())
    assert {unit.arm for unit in every} == {*arms.ARMS, arms.BASELINES}
    # One training slide leaves nothing to mask, and only HER2ST has sections without an image.
    assert {unit.split for unit in every if unit.arm == "cone, unpaired"} == {"HER2ST"}
    assert {unit.split for unit in every if unit.arm == "cone, slides masked"} == {"HER2ST"}


def test_seeds_are_outermost_and_what_is_done_is_not_done_again(arms):
    units = arms.units_of(options(arms=["none", "cone"]), {"HER2ST|cone|0"})
    assert [unit.seed for unit in units] == sorted(unit.seed for unit in units)
    assert len(units) == 2 * 6 * 3 - 1  # seeds, splits, two arms and the baselines, less the one that is done
    assert "HER2ST|cone|0" not in {unit.key for unit in units}


def test_results_are_kept_by_split_arm_and_seed(arms):
    given = [
        "MOB1|none|0",
        "HER2ST|cone, tuned|0",
        "HER2ST|cone|1",
        "HER2ST|cone|0",
        "HER2ST|baselines|2",
        "HER2ST|none|0",
    ]
    assert list(arms.in_order(dict.fromkeys(given))) == [
        "HER2ST|baselines|2", "HER2ST|none|0", "HER2ST|cone|0", "HER2ST|cone|1", "HER2ST|cone, tuned|0", "MOB1|none|0",
    ]  # fmt: skip


def test_no_test_slide_is_trained_on(arms):
    for split in [*arms.SPLITS.values(), *arms.TUNING.values()]:
        assert not set(split.train) & set(split.test)
    patients = {name: {slide[0] for slide in arms.SPLITS[name].train} for name in arms.LEFT_OUT}
    assert all(slide[0] not in patients[name] for name in arms.LEFT_OUT for slide in arms.SPLITS[name].test)
