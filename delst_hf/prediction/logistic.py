"""Classes of tissue by logistic regression on frozen features, with the penalty chosen on held-out slides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.linear_probe import macro_f1
from ..evaluation.preparation import MAX_INNER_FOLDS, FlooredScaler, group_folds

# Inverse strengths of the penalty, per spot: scikit-learn's C is this over the number of spots.
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier.

    Attributes:
        weight: (width, classes), on unscaled features.
        bias: (classes,).
        classes: Names of the classes, in the order of the columns.
        strength: The chosen one of `STRENGTHS`.
        held_out: (rows,) the class predicted for each row by the fit that left its fold out; "" where no fold held it.
    """

    weight: np.ndarray
    bias: np.ndarray
    classes: list[str]
    strength: float
    held_out: np.ndarray


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, strengths: Sequence[float] = STRENGTHS
) -> Logistic:
    """Fit a multinomial logistic regression with balanced classes.

    The chosen strength has the highest mean macro-F1 over held-out groups; on a tie, the stronger penalty wins. Classes are
    balanced, so probabilities hold for a slide with equal shares of all classes.

    Args:
        features: (rows, width).
        labels: (rows,) names.
        groups: (rows,) the slide or patient of each row.
        strengths: Strengths to choose from, ascending.

    Raises:
        ValueError: If there are fewer than two classes, or no group can be held out.
    """
    classes = sorted(set(labels.tolist()))
    if len(classes) < 2:
        raise ValueError(
            f"the labelled spots hold {len(classes)} class(es): {classes}. A classifier needs two: train on slides that are "
            "annotated (--train-slides), or check --ignore-labels."
        )
    folds = [fold for fold in group_folds(groups, MAX_INNER_FOLDS) if len(set(labels[fold[0]].tolist())) > 1]
    if not folds:
        raise ValueError(
            "whichever slide is left out, a single class remains, so no penalty can be chosen. Train on more annotated slides."
        )
    best, held_out, chosen = -1.0, np.empty(0, dtype=object), strengths[0]
    for strength in strengths:
        predicted = np.full(len(labels), "", dtype=object)
        scores = []
        for fit, held in folds:
            weight, bias, names = _fit(features[fit], labels[fit], strength)
            predicted[held] = np.array(names, dtype=object)[(features[held] @ weight + bias).argmax(axis=1)]
            scores.append(macro_f1(labels[held], predicted[held].astype(str)))
        if np.mean(scores) > best:
            best, held_out, chosen = float(np.mean(scores)), predicted, strength
    weight, bias, names = _fit(features, labels, chosen)
    return Logistic(weight, bias, names, chosen, held_out)


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return weights and biases on unscaled features, one column per class."""
    from sklearn.linear_model import LogisticRegression

    scaler = FlooredScaler.fit(features)
    model = LogisticRegression(C=strength / len(features), class_weight="balanced", max_iter=2000)
    model.fit(scaler.transform(features), labels)
    weight, bias = model.coef_.T / scaler.scale[:, None], model.intercept_
    bias = bias - scaler.mean @ weight
    if weight.shape[1] == 1:  # for two classes scikit-learn keeps the difference only
        weight, bias = np.hstack([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return weight, bias, [str(name) for name in model.classes_]
