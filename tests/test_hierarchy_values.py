"""The results files and the statistics of the study, against arithmetic by hand and simulation."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

_PATH = Path(__file__).parents[1] / "benchmarks" / "hierarchy_values.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("hierarchy_values", _PATH)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_interval_by_hand(module):
    """Sections and seeds that add up: rows differ by 2, columns by 1, nothing is left over."""
    table = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    # Mean squares: sections 3 * (1 + 1) / 1 = 6, seeds 2 * (1 + 0 + 1) / 2 = 2, rest 0; variance (6 + 2) / 6.
    error = math.sqrt(8 / 6)
    degrees = 8**2 / (6**2 / 1 + 2**2 / 2)  # Satterthwaite
    mean, low, high, p = module.crossed_interval(table)
    reach = student.ppf(0.975, degrees) * error
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - reach, 2.0 + reach))
    assert p == pytest.approx(2 * student.sf(2.0 / error, degrees))


def test_one_section_is_a_t_test_over_seeds(module):
    values = np.array([[0.1, 0.3, 0.2, 0.6]])
    mean, low, _, p = module.crossed_interval(values)
    error = values.std(ddof=1) / 2
    assert low == pytest.approx(mean - student.ppf(0.975, 3) * error)
    assert p == pytest.approx(2 * student.sf(mean / error, 3))
    assert all(math.isnan(x) for x in module.crossed_interval(np.array([[0.5]]))[1:])


def test_the_interval_covers_where_sections_and_seeds_vary(module):
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(600):
        table = (
            0.3 * generator.normal(size=(5, 1))
            + 0.2 * generator.normal(size=(1, 5))
            + 0.1 * generator.normal(size=(5, 5))
        )
        _, low, high, _ = module.crossed_interval(table)
        covered.append(low < 0 < high)
    assert 0.93 < np.mean(covered) <= 1.0


def test_holm_is_monotone_and_leaves_nan_out(module):
    assert module.holm([0.01, math.nan, 0.04, 0.03])[0] == pytest.approx(0.03)
    corrected = module.holm([0.01, math.nan, 0.04, 0.03])
    assert math.isnan(corrected[1]) and corrected[2] == corrected[3] == pytest.approx(0.06)
    assert module.holm([0.6, 0.9]) == [1.0, 1.0]


def test_results_are_packed_and_compared_by_pairs(module, tmp_path):
    def unit(**scores):
        return {"scores": {"X": scores}, "seconds": [1, 2]}

    units = {
        "MOB1|none|0": unit(a=1.0),
        "MOB1|none|1": unit(a=2.0),
        "MOB1|cone|0": unit(a=1.5, b=math.nan),
        "MOB1|cone|1": unit(a=2.5, b=7.0),
        "MOB1|cone|2": unit(a=99.0),
        "without A|cone|0": unit(a=50.0),
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(module.pack({"units": units})))
    loaded = module.load(path)["units"]
    assert loaded["MOB1|cone|0"]["scores"] == {"X": {"a": 1.5}} and loaded["MOB1|cone|1"]["scores"]["X"]["b"] == 7.0
    values = module.read([str(path)], ("MOB1",))
    differences = module.paired(values["cone", "a"], values["none", "a"])
    assert differences.tolist() == [[0.5, 0.5]]  # seed 2 has no partner
    assert module.crossed_interval(differences) == (0.5, 0.5, 0.5, 0.0)


def test_learning_rates_are_chosen_by_the_mean_over_seeds(module):
    def unit(value):
        return {"scores": {"C4": {"pearson:embedding": value}}}

    units = {
        "HER2ST|cosine 0.001 0.0002|0": unit(0.3),
        "HER2ST|cosine 0.001 0.0002|1": unit(0.1),
        "HER2ST|cosine 0.003 5e-05|0": unit(0.25),
        "HER2ST|cosine 0.003 5e-05|1": unit(0.25),
    }
    assert module.best_rates({"units": units}) == {"cosine": {"learning_rate": 0.003, "vision_learning_rate": 5e-05}}
