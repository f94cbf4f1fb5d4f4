"""Selective prediction: whether a confidence says which predictions to believe.

Predictions are accepted in the order of their confidence, the most confident first. The *risk* at a *coverage* is the mean
error of the predictions accepted by then; the area under this curve (AURC) is low when errors come late (arXiv 1705.08500; the
excess over the best possible order, arXiv 1805.08206).
"""

from typing import Any

import numpy as np

from .preparation import finite_matrix
from .resampled import spearman_statistic


def risk_coverage(errors: Any, confidence: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute the risk at each coverage.

    Args:
        errors: (spots,) error of each prediction; any scale on which a mean makes sense.
        confidence: (spots,) high where the prediction is to be believed. Spots of equal confidence have no order, so each
            counts with the mean of their errors.

    Returns:
        Coverages ``1/n .. 1`` and the risks at them, both (spots,).

    Raises:
        ValueError: If the two differ in length, are empty, or hold values that are not finite.

    >>> coverage, risk = risk_coverage([0.0, 1.0, 2.0, 1.0], confidence=[9, 5, 1, 5])
    >>> risk.round(2).tolist()
    [0.0, 0.5, 0.67, 1.0]
    """
    errors, confidence = _checked(errors, confidence)
    _, group = np.unique(-confidence, return_inverse=True)
    expected = (np.bincount(group, weights=errors) / np.bincount(group))[group][np.argsort(group, kind="stable")]
    accepted = np.arange(1, len(errors) + 1)
    return accepted / len(errors), np.cumsum(expected) / accepted


def selective_prediction(errors: Any, confidence: Any) -> dict[str, float]:
    """Score how well a confidence predicts errors.

    Args:
        errors: (spots,) error of each prediction.
        confidence: (spots,) high where the prediction is to be believed.

    Returns:
        ``aurc`` (area under `risk_coverage`; low is better, the mean error is chance), ``excess_aurc`` (the same, rescaled to
        0 for the order of the errors themselves and 1 for chance; a misleading confidence is above 1), ``spearman`` (of
        confidence and accuracy, the negative error; high is better, 0 is chance) and ``error_of_confident_half``, to be
        compared with ``mean_error``. Where all errors are equal, ``excess_aurc`` is NaN and ``spearman`` 0.

    Raises:
        ValueError: As `risk_coverage`.

    >>> scores = selective_prediction(errors=[0.0, 1.0, 2.0, 3.0], confidence=[4, 3, 2, 1])
    >>> scores["excess_aurc"], round(scores["spearman"], 6), scores["error_of_confident_half"]
    (0.0, 1.0, 0.5)
    """
    errors, confidence = _checked(errors, confidence)
    risk = risk_coverage(errors, confidence)[1]
    best, mean = risk_coverage(errors, -errors)[1].mean(), errors.mean()
    half = (len(errors) + 1) // 2
    return {
        "aurc": float(risk.mean()),
        "excess_aurc": float((risk.mean() - best) / (mean - best)) if mean > best else float("nan"),
        "spearman": spearman_statistic(confidence, -errors)(np.arange(len(errors))),
        "error_of_confident_half": float(risk[half - 1]),
        "mean_error": float(mean),
    }


def _checked(errors: Any, confidence: Any) -> tuple[np.ndarray, np.ndarray]:
    columns = [
        finite_matrix(np.asarray(values, dtype=np.float64).reshape(-1, 1), name)[:, 0]
        for values, name in ((errors, "errors"), (confidence, "confidence"))
    ]
    if len(columns[0]) != len(columns[1]) or not len(columns[0]):
        raise ValueError(
            f"{len(columns[0])} errors and {len(columns[1])} confidences. Give one of each per spot, and one spot at least."
        )
    return columns[0], columns[1]
