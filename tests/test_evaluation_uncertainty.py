import numpy as np
import pytest
from scipy.stats import bootstrap

from delst_hf.evaluation import uncertainty
from delst_hf.evaluation.resampled import mean_statistic
from delst_hf.evaluation.uncertainty import Bootstrap


def mean_of(values):
    return lambda rows: float(values[rows].mean())


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=200)
    found = Bootstrap(200, resamples=2000).interval(mean_of(values))
    oracle = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", random_state=1).confidence_interval
    assert found["value"] == pytest.approx(values.mean()) and found["unit"] == "spots" and found["num_units"] == 200
    assert found["low"] == pytest.approx(oracle.low, abs=0.015) and found["high"] == pytest.approx(
        oracle.high, abs=0.015
    )


def test_coverage_is_what_is_promised():
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(120):
        found = Bootstrap(60, resamples=200, seed=trial).interval(mean_of(generator.normal(size=60)))
        inside += found["low"] <= 0 <= found["high"]
    assert 0.87 <= inside / 120 <= 0.99


def test_few_slides_are_covered_too():
    """Plain percentiles of five slides would hold the truth in 83 % of cases."""
    generator = np.random.default_rng(1)
    slides = np.repeat(["a", "b", "c", "d", "e"], 4)
    inside = 0
    for trial in range(200):
        values = np.repeat(generator.normal(size=5), 4) + 0.3 * generator.normal(size=20)
        found = Bootstrap(20, slides, "slides", resamples=300, seed=trial).interval(mean_of(values))
        inside += found["low"] <= 0 <= found["high"]
    assert 0.87 <= inside / 200 <= 0.99


def test_difference_of_two_models_is_covered():
    """The pair shares what makes a spot hard; the truth is a difference of 0.2."""
    generator = np.random.default_rng(2)
    inside = 0
    for trial in range(150):
        common = 3 * generator.normal(size=50)
        first, second = common + 0.2 + generator.normal(size=50), common + generator.normal(size=50)
        found = Bootstrap(50, resamples=200, seed=trial).difference(mean_of(first), mean_of(second))
        inside += found["low"] <= 0.2 <= found["high"]
    assert 0.88 <= inside / 150 <= 0.99


def test_slides_give_a_wider_interval_where_slides_differ():
    generator = np.random.default_rng(0)
    slides = np.repeat([f"s{i}" for i in range(8)], 50)
    values = np.repeat(generator.normal(size=8), 50) + generator.normal(size=400)
    spots = Bootstrap(400, slides=slides).interval(mean_of(values))
    whole = Bootstrap(400, unit="slides", slides=slides).interval(mean_of(values))
    assert whole["high"] - whole["low"] > 3 * (spots["high"] - spots["low"]) and whole["num_units"] == 8


def test_spots_are_drawn_within_their_slide():
    slides = np.repeat(["a", "b"], [10, 90])
    found = Bootstrap(100, slides=slides, resamples=20).interval(lambda rows: float((rows < 10).mean()))
    assert found["low"] == found["high"] == pytest.approx(0.1)


@pytest.mark.parametrize("unit", ["spots", "slides"])
def test_resamples_are_those_of_numpy_called_slide_by_slide(unit, monkeypatch):
    slides = np.array(["b", "a", "b", "c", "a", "b"])
    members = [np.flatnonzero(slides == name) for name in "abc"]
    generator, expected = np.random.default_rng(3), []
    for _ in range(7):
        if unit == "spots":
            drawn = [rows[generator.integers(0, len(rows), len(rows))] for rows in members]
        else:
            drawn = [members[i] for i in generator.integers(0, 3, 3)]
        expected.append(np.bincount(np.concatenate(drawn), minlength=6))
    for block in (4_000_000, 12):  # all at once, and two at a time
        monkeypatch.setattr(uncertainty, "BLOCK", block)
        resamples = Bootstrap(6, slides, unit, resamples=7, seed=3)
        np.testing.assert_array_equal(np.concatenate(list(resamples.weights())), expected)
        np.testing.assert_array_equal([np.bincount(rows, minlength=6) for rows in resamples.draws()], expected)


def test_same_seed_same_interval():
    values = np.arange(30.0)
    first, second, other = (Bootstrap(30, seed=seed).interval(mean_of(values)) for seed in (1, 1, 2))
    assert first == second != other


def test_pairs_cancel_what_is_common():
    generator = np.random.default_rng(0)
    common = 10 * generator.normal(size=300)
    better, worse = common + 0.3 + 0.5 * generator.normal(size=300), common + 0.5 * generator.normal(size=300)
    found = Bootstrap(300).difference(mean_of(better), mean_of(worse))
    assert 0 < found["low"] < 0.3 < found["high"] < 0.5 and found["p_value"] <= 0.01
    alone = Bootstrap(300).interval(mean_of(better))
    assert alone["high"] - alone["low"] > 5 * (found["high"] - found["low"])


def test_equal_models_differ_by_nothing():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2, 200))
    found = Bootstrap(200).difference(mean_of(values[0]), mean_of(values[1]))
    assert found["low"] < 0 < found["high"] and found["p_value"] > 0.05
    same = Bootstrap(200).difference(mean_of(values[0]), mean_of(values[0]))
    assert same["difference"] == 0 and same["p_value"] == 1.0


def test_the_p_value_agrees_with_the_interval_for_few_slides():
    """Of five slides, a difference whose interval held 0 had p < 0.05 in 7 of 100 trials."""
    generator, slides = np.random.default_rng(3), np.repeat(["a", "b", "c", "d", "e"], 2)
    for trial in range(60):
        values = np.repeat(generator.normal(size=5) + 0.5, 2)
        first, second = mean_statistic(values), mean_statistic(np.zeros(10))
        found = Bootstrap(10, slides, "slides", seed=trial).difference(first, second)
        if abs(found["p_value"] - 0.05) > 0.01:
            assert (found["p_value"] < 0.05) == (found["low"] > 0 or found["high"] < 0)
    assert 0.04 < Bootstrap(10, slides, "slides").difference(mean_statistic(np.ones(10)), second)["p_value"] < 0.05


def test_undefined_resamples_are_left_out():
    found = Bootstrap(10, resamples=50).interval(lambda rows: np.nan if rows[0] % 2 else 1.0)
    assert found["low"] == found["high"] == 1.0


def test_errors_name_the_next_step():
    with pytest.raises(ValueError, match="unit is 'patients'; allowed are spots, slides"):
        Bootstrap(3, unit="patients").interval(mean_of(np.ones(3)))
    with pytest.raises(ValueError, match="slides is None; pass the slide"):
        Bootstrap(3, unit="slides").interval(mean_of(np.ones(3)))
    with pytest.raises(ValueError, match=r"one slide only \(a\)"):
        Bootstrap(3, unit="slides", slides=["a"] * 3).difference(mean_of(np.ones(3)), mean_of(np.ones(3)))
    with pytest.raises(ValueError, match="level is 95"):
        Bootstrap(3, level=95).interval(mean_of(np.ones(3)))
