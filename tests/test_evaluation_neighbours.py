"""Nearest targets block by block are those of one stable sort over all pairs."""

import numpy as np
import pytest

from delst_hf.evaluation.neighbours import highest, most_similar


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("values", ["all different", "many equal", "all equal"])
def test_the_highest_are_the_first_of_a_stable_sort(values, k):
    generator = np.random.default_rng(k)
    scores = {
        "all different": generator.normal(size=(40, 9)),
        "many equal": generator.integers(0, 3, (40, 9)).astype(float),
        "all equal": np.zeros((40, 9)),
    }[values]
    expected = [sorted(range(9), key=lambda column: (-row[column], column))[:k] for row in scores.tolist()]
    assert highest(scores, k).tolist() == expected


@pytest.mark.parametrize("pairs", [1, 20, 10**6])
def test_blocks_cover_each_query_once_and_change_nothing(pairs):
    generator = np.random.default_rng(0)
    queries, targets = generator.normal(size=(11, 3)), generator.normal(size=(7, 3))
    found = np.full((11, 7), -1)
    for rows, nearest in most_similar(queries, targets, k=20, pairs=pairs):
        assert (found[rows] == -1).all()
        found[rows] = nearest
    assert (found == np.argsort(-(queries @ targets.T), axis=1)).all()
