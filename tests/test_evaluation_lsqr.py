import numpy as np
import pytest
from sklearn.linear_model import Ridge

from delst_hf.evaluation.lsqr import lsqr_ridge

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(80, 12), (30, 50)])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_all_columns_at_once_equal_one_ridge_each(shape, kind):
    """Stopped early as scipy stops, each target with each penalty."""
    inputs = GENERATOR.normal(size=shape).astype(kind) * np.geomspace(1, 0.01, shape[1]).astype(kind)
    targets, alphas = GENERATOR.normal(size=(shape[0], 5)), np.array([1e-3, 0.1, 1.0, 30.0, 1e4])
    found = lsqr_ridge(inputs, targets, alphas)
    assert found.shape == (5, shape[1], 5)
    for column, alpha in enumerate(alphas):  # the first target with the first penalty, and so on
        ridge = Ridge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000).fit(inputs, targets[:, column])

        def cost(weights, column=column, alpha=alpha):
            return ((inputs @ weights - targets[:, column]) ** 2).sum() + alpha * (weights**2).sum()

        assert cost(found[column, :, column]) == pytest.approx(cost(ridge.coef_), rel=1e-5)
        if alpha >= 1 and kind is np.float64:  # else the last steps before the stop follow rounding
            np.testing.assert_allclose(found[column, :, column], ridge.coef_, atol=1e-5 * np.abs(ridge.coef_).max())


def test_targets_and_penalties_do_not_meet():
    """Each column is what it is alone, though all share one bidiagonalisation and leave it at different steps."""
    inputs, targets = GENERATOR.normal(size=(40, 10)), GENERATOR.normal(size=(40, 3))
    alphas = np.array([1e-3, 1.0, 1e4])
    together = lsqr_ridge(inputs, targets, alphas)
    for number, alpha in enumerate(alphas):
        for column in range(3):
            alone = lsqr_ridge(inputs, targets[:, [column]], np.array([alpha]))[0, :, 0]
            np.testing.assert_allclose(together[number, :, column], alone, atol=1e-9)


def test_a_target_of_zeros_has_no_coefficients():
    inputs, targets = GENERATOR.normal(size=(20, 4)), np.zeros((20, 2))
    targets[:, 1] = inputs[:, 0]
    found = lsqr_ridge(inputs, targets, np.ones(1))[0]
    assert (found[:, 0] == 0).all() and found[0, 1] == pytest.approx(1, abs=0.2)
