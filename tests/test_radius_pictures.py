"""The partial correlations of docs/radius.md."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from delst_hf.evaluation.protocols.hierarchy import rank_correlation

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_columns_are_correlated_at_once_as_one_by_one(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rank_correlations = importlib.import_module("radius_pictures").rank_correlations
    generator = np.random.default_rng(1)
    columns = np.column_stack([generator.poisson(2, (50, 3)), np.ones(50)])  # with ties; the last is constant
    level, given = generator.normal(size=50), generator.poisson(3, 50)
    found = rank_correlations(columns, level, given)
    assert found.tolist() == pytest.approx([rank_correlation(one, level, given=given) for one in columns.T])
    assert found[-1] == 0.0
