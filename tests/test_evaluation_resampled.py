"""Quick statistics of resampled rows against scikit-learn and scipy."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import (
    adjusted_rand_score,
    balanced_accuracy_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    f1_score,
    normalized_mutual_info_score,
)

from delst_hf.evaluation.expression import gene_pearson
from delst_hf.evaluation.linear_probe import macro_f1
from delst_hf.evaluation.resampled import (
    dispersion_draws,
    f1_statistic,
    information_statistic,
    pearson_statistic,
    rand_statistic,
    recall_statistic,
    spearman_statistic,
    within_slides,
)
from delst_hf.evaluation.uncertainty import Bootstrap

GENERATOR = np.random.default_rng(0)
TRUTH = GENERATOR.choice(["a", "b", "c"], 90, p=[0.6, 0.3, 0.1])
ANSWER = np.where(GENERATOR.random(90) < 0.5, TRUTH, GENERATOR.choice(["a", "b", "d"], 90))
DRAWS = [np.arange(90), *Bootstrap(90, resamples=4).draws()]


def test_labels_as_sklearn_scores_them():
    for rows in DRAWS:
        truth, answer = TRUTH[rows], ANSWER[rows]
        assert f1_statistic(TRUTH, ANSWER)(rows) == pytest.approx(macro_f1(truth, answer))
        everywhere = f1_score(truth, answer, average="macro", zero_division=0)
        assert f1_statistic(TRUTH, ANSWER, everywhere=True)(rows) == pytest.approx(everywhere)
        with np.errstate(all="ignore"):
            assert recall_statistic(TRUTH, ANSWER)(rows) == pytest.approx(
                np.mean([(answer[truth == c] == c).mean() for c in np.unique(truth)])
            )
    assert recall_statistic(TRUTH, TRUTH)(DRAWS[0]) == balanced_accuracy_score(TRUTH, TRUTH) == 1


def test_partitions_as_sklearn_scores_them():
    everyone = np.arange(90)
    assert rand_statistic(TRUTH, ANSWER)(everyone) == pytest.approx(adjusted_rand_score(TRUTH, ANSWER))
    for rows in DRAWS:
        expected = normalized_mutual_info_score(TRUTH[rows], ANSWER[rows])
        assert information_statistic(TRUTH, ANSWER)(rows) == pytest.approx(expected)


def test_copies_of_a_spot_do_not_raise_the_rand_index():
    """Partitions that know nothing of each other stay at 0 in resamples, where sklearn's rises with every copy."""
    left, right = GENERATOR.integers(0, 4, (2, 60)).astype(str)
    draws = list(Bootstrap(60, resamples=300).draws())
    ours = np.mean([rand_statistic(left, right)(rows) for rows in draws])
    theirs = np.mean([adjusted_rand_score(left[rows], right[rows]) for rows in draws])
    everyone = rand_statistic(left, right)(np.arange(60))
    assert abs(ours - everyone) < 0.01 and theirs - everyone > 0.005


def test_dispersion_of_resamples_as_sklearn_scores_them():
    points, groups = GENERATOR.normal(size=(80, 5)) + 3, GENERATOR.integers(0, 4, 80)
    bootstrap = Bootstrap(80, resamples=5)
    found = dispersion_draws(points, groups, bootstrap)
    for i, rows in enumerate(bootstrap.draws()):
        assert found["calinski_harabasz"][i] == pytest.approx(calinski_harabasz_score(points[rows], groups[rows]))
        assert found["davies_bouldin"][i] == pytest.approx(davies_bouldin_score(points[rows], groups[rows]))


def test_correlations_as_scipy_finds_them():
    values, level = GENERATOR.normal(size=(2, 90)).round(1)  # with ties
    for rows in DRAWS:
        assert spearman_statistic(values, level)(rows) == pytest.approx(spearmanr(values[rows], level[rows]).statistic)
    slides = np.repeat(["x", "y"], [30, 60])
    by_slide = [spearmanr(values[slides == s], level[slides == s]).statistic for s in ("x", "y")]
    whole = within_slides(spearman_statistic, [values, level], slides)(np.arange(90))
    assert whole == pytest.approx((30 * by_slide[0] + 60 * by_slide[1]) / 90)
    # What the condition explains entirely is nothing beyond it.
    assert spearman_statistic(level, level, given=level)(DRAWS[0]) == 0.0


def test_pearson_is_taken_in_parts_of_folds():
    predicted, measured = GENERATOR.normal(size=(2, 90, 3))
    folds, parts = np.repeat(["f", "g"], 45), np.repeat(["1", "2", "3"], 30)
    expected = [gene_pearson(predicted[folds == f], measured[folds == f]).mean() for f in ("f", "g")]
    assert pearson_statistic(predicted, measured, folds)(np.arange(90)) == pytest.approx(np.mean(expected))
    pieces = [(0, 30), (30, 45)], [(45, 60), (60, 90)]
    expected = [
        np.mean([gene_pearson(predicted[a:b], measured[a:b]) for a, b in fold], axis=0).mean() for fold in pieces
    ]
    assert pearson_statistic(predicted, measured, folds, parts)(np.arange(90)) == pytest.approx(np.mean(expected))
