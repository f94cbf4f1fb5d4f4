"""Predict gene expression from features by ridge regression, and score it by Pearson correlation gene by gene."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .preparation import (
    MAX_INNER_FOLDS,
    SCALE_FLOOR,
    SCALE_FLOORS,
    FlooredScaler,
    finite_matrix,
    group_folds,
    group_names,
)

RIDGE_ALPHAS: tuple[float, ...] = tuple(float(alpha) for alpha in np.logspace(-1, 6, 15))


@dataclass(frozen=True)
class RidgePrediction:
    """Expression predicted for the test rows, and how the penalty was chosen.

    Attributes:
        predicted: (test rows, genes) in the unit of the training targets.
        alpha: the penalty chosen on the training groups.
        floor: the floor of the feature scales, chosen likewise (see `preparation.FlooredScaler`); 0 is plain standardisation.
        alphas: (alphas,) the penalties tried, ascending.
        validation_pearson: (alphas,) mean gene-wise Pearson on the left-out training groups; higher is better.
        num_folds: folds behind `validation_pearson`.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(40, 5))
        >>> found = ridge_prediction(x[:30], x[:30, :2], x[30:], ["a"] * 15 + ["b"] * 15)
        >>> found.predicted.shape, found.num_folds, found.alpha in found.alphas
        ((10, 2), 2, True)
    """

    predicted: np.ndarray
    alpha: float
    floor: float
    alphas: np.ndarray
    validation_pearson: np.ndarray
    num_folds: int


def gene_pearson(predicted: ArrayLike, measured: ArrayLike) -> np.ndarray:
    """Return the Pearson correlation of prediction and measurement over spots, gene by gene. 1 is perfect, 0 is chance.

    Args:
        predicted: (spots, genes).
        measured: (spots, genes).

    Returns:
        (genes,) correlations in [-1, 1]. A constant prediction has learnt nothing and gets 0.0. A gene whose
        measurement is constant cannot be scored at all and gets NaN: leave it out of means and count it.

    Raises:
        ValueError: If the shapes differ or a value is not finite.

    Examples:
        >>> gene_pearson([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], [[2.0, 0.0], [4.0, 1.0], [6.0, 2.0]]).round(6).tolist()
        [1.0, -1.0]
    """
    first, second = finite_matrix(predicted, "predicted"), finite_matrix(measured, "measured")
    if first.shape != second.shape:
        raise ValueError(
            f"predicted has the shape {first.shape} and measured {second.shape}; they must be equal. "
            "Pass the same spots and genes, in the same order."
        )
    first_constant, second_constant = _constant_columns(first), _constant_columns(second)
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    # Scaling by the largest value first keeps squares of very small expression from underflowing to zero.
    first /= np.where(first_constant, 1.0, np.abs(first).max(axis=0))
    second /= np.where(second_constant, 1.0, np.abs(second).max(axis=0))
    norms = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    correlation = (first * second).sum(axis=0) / np.where(first_constant | second_constant, 1.0, norms)
    correlation = np.where(first_constant, 0.0, np.clip(correlation, -1.0, 1.0))
    return np.where(second_constant, np.nan, correlation)


class RidgeReadout:
    """Ridge regressions from one set of features, decomposed once for any number of targets and penalties.

    Args:
        train_features: (train rows, columns).
        test_features: (test rows, columns).
        train_groups: (train rows,) the slide or patient of each row.
        floor: Floor of the feature scales (see `preparation.FlooredScaler`).

    Raises:
        ValueError: If shapes do not match or a value is not finite.
    """

    def __init__(
        self,
        train_features: ArrayLike,
        test_features: ArrayLike,
        train_groups: Sequence[Any] | np.ndarray,
        floor: float = SCALE_FLOOR,
    ):
        features, unseen = (
            finite_matrix(train_features, "train_features"),
            finite_matrix(test_features, "test_features"),
        )
        if features.shape[1] != unseen.shape[1]:
            raise ValueError(
                f"train_features {features.shape} and test_features {unseen.shape} do not match; give both features the same "
                "columns."
            )
        names = group_names(train_groups, len(features), "train_groups")
        self.floor, self.num_rows = floor, len(features)
        self._folds = [
            (fit, held, _Decomposition.of(features[fit], features[held], floor))
            for fit, held in group_folds(names, MAX_INNER_FOLDS)
        ]
        self._whole = _Decomposition.of(features, unseen, floor)

    def predict(self, train_targets: ArrayLike, alphas: Sequence[float] = RIDGE_ALPHAS) -> RidgePrediction:
        """Predict targets of the test rows, with the penalty chosen on left-out training groups.

        Raises:
            ValueError: If targets do not match the training rows, a penalty is not positive, or no training gene varies.
        """
        targets, penalties = finite_matrix(train_targets, "train_targets"), _checked_alphas(alphas)
        if len(targets) != self.num_rows:
            raise ValueError(
                f"train_targets {targets.shape} do not match the {self.num_rows} rows of train_features; features and targets "
                "need the same training rows."
            )
        scores = np.array([_fold_scores(targets, fit, held, fold, penalties) for fit, held, fold in self._folds])
        best, validation, usable = choose_penalty(scores)
        predicted = self._whole.predict(targets, penalties[best : best + 1])[0]
        return RidgePrediction(predicted, float(penalties[best]), self.floor, penalties, validation, usable)


def choose_penalty(scores: np.ndarray) -> tuple[int, np.ndarray, int]:
    """Choose the penalty with the highest mean score over left-out training groups; on a tie the larger.

    The evaluation and the heads of `delst fit` choose by this rule.

    Args:
        scores: (groups, penalties) mean gene-wise Pearson on each group, penalties ascending; NaN where no gene varies.

    Returns:
        The index of the chosen penalty, the means (penalties,), and the number of groups behind them.

    Raises:
        ValueError: If no group could be scored.

    Examples:
        >>> choose_penalty(np.array([[0.1, 0.3, 0.3], [0.1, 0.5, 0.5], [np.nan] * 3]))
        (2, array([0.1, 0.4, 0.4]), 2)
    """
    usable = ~np.isnan(scores).any(axis=1)
    if not usable.any():
        raise ValueError(
            "no gene varies within a left-out training group, so no alpha can be chosen. Give more training spots, or "
            "genes that vary."
        )
    means = scores[usable].mean(axis=0)
    return int(np.flatnonzero(means >= means.max() - 1e-12)[-1]), means, int(usable.sum())


def best_floor(predictions: Sequence[RidgePrediction]) -> RidgePrediction:
    """Return the prediction with the floor that is best on left-out training groups; the first on a tie."""
    return max(predictions, key=lambda prediction: float(prediction.validation_pearson.max()))


def ridge_prediction(
    train_features: ArrayLike,
    train_targets: ArrayLike,
    test_features: ArrayLike,
    train_groups: Sequence[Any] | np.ndarray,
    alphas: Sequence[float] = RIDGE_ALPHAS,
    floors: Sequence[float] = SCALE_FLOORS,
) -> RidgePrediction:
    """Predict expression by ridge regression on standardised features, penalty and floor chosen on training groups alone.

    The scaler and the mean of the targets are fitted anew in each fold. The penalty alpha in
    |Y - X W|^2 + alpha |W|^2 is the one with the highest mean gene-wise Pearson on left-out groups (five at most, or
    contiguous blocks where there is one group only); on a tie the larger. Nothing here is random.

    Args:
        train_features: (train rows, columns).
        train_targets: (train rows, genes) log-normalised expression.
        test_features: (test rows, columns).
        train_groups: (train rows,) the slide or patient of each row.
        alphas: positive penalties to choose from.
        floors: floors of the feature scales to choose from; 0 is plain standardisation.

    Raises:
        ValueError: If shapes do not match, a value is not finite, a penalty is not positive, or no training gene varies.

    Examples:
        >>> features = np.arange(40.0).reshape(20, 2) % 7
        >>> fitted = ridge_prediction(features[:15], 3 * features[:15, :1], features[15:], ["a"] * 15)
        >>> fitted.predicted.shape
        (5, 1)
    """
    readouts = [RidgeReadout(train_features, test_features, train_groups, floor) for floor in floors]
    return best_floor([readout.predict(train_targets, alphas) for readout in readouts])


def expression_prediction(
    train_features: ArrayLike,
    train_targets: ArrayLike,
    test_features: ArrayLike,
    test_targets: ArrayLike,
    train_groups: Sequence[Any] | np.ndarray,
    alphas: Sequence[float] = RIDGE_ALPHAS,
    floors: Sequence[float] = SCALE_FLOORS,
) -> dict[str, float]:
    """Score features by the expression that `ridge_prediction` predicts from them on unseen spots.

    Args:
        train_features: As in `ridge_prediction`.
        train_targets: As in `ridge_prediction`.
        test_features: As in `ridge_prediction`.
        train_groups: As in `ridge_prediction`.
        alphas: As in `ridge_prediction`.
        floors: As in `ridge_prediction`.
        test_targets: (test rows, genes) in the unit and gene order of `train_targets`.

    Returns:
        pearson_mean and pearson_median: over the genes that vary on the test rows, pooled over these rows; 1 is
        perfect and 0 is chance. validation_pearson: the same on left-out training groups, at the chosen alpha.
        alpha; floor; alpha_at_edge: 1.0 when alpha is the smallest or largest tried, so that a wider grid might do better.
        num_genes, num_constant_genes (constant on the test rows, left out of the means), num_constant_predictions
        (scored 0.0), num_train, num_test, num_folds.

    Raises:
        ValueError: As `ridge_prediction`, or if every gene is constant on the test rows.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(40, 5))
        >>> scores = expression_prediction(x[:30], x[:30, :2], x[30:], x[30:, :2], ["a"] * 15 + ["b"] * 15)
        >>> round(scores["pearson_mean"], 2)
        1.0
    """
    prediction = ridge_prediction(train_features, train_targets, test_features, train_groups, alphas, floors)
    measured = finite_matrix(test_targets, "test_targets")
    correlation = gene_pearson(prediction.predicted, measured)
    scored = ~np.isnan(correlation)
    if not scored.any():
        raise ValueError(
            f"all {len(scored)} genes are constant over the {len(measured)} test rows, so there is nothing to "
            "correlate with. Test on more spots, or choose genes that are expressed."
        )
    chosen = prediction.alphas == prediction.alpha
    return {
        "pearson_mean": float(correlation[scored].mean()),
        "pearson_median": float(np.median(correlation[scored])),
        "validation_pearson": float(prediction.validation_pearson[chosen][0]),
        "alpha": prediction.alpha,
        "floor": prediction.floor,
        "alpha_at_edge": float(len(chosen) > 1 and bool(chosen[0] or chosen[-1])),
        "num_genes": float(len(scored)),
        "num_constant_genes": float((~scored).sum()),
        "num_constant_predictions": float(_constant_columns(prediction.predicted).sum()),
        "num_train": float(len(np.asarray(train_features))),
        "num_test": float(len(measured)),
        "num_folds": float(prediction.num_folds),
    }


def _fold_scores(
    targets: np.ndarray, fit: np.ndarray, held: np.ndarray, fold: "_Decomposition", alphas: np.ndarray
) -> np.ndarray:
    """Return the mean gene-wise Pearson (alphas,) on the rows `held` after fitting on `fit`; NaN where no gene varies."""
    scored = ~_constant_columns(targets[held])
    if not scored.any():
        return np.full(len(alphas), np.nan)
    predictions = fold.predict(targets[fit][:, scored], alphas)
    return np.array([gene_pearson(predicted, targets[held][:, scored]).mean() for predicted in predictions])


@dataclass(frozen=True)
class _Decomposition:
    """One eigendecomposition that serves every target and every penalty.

    With X standardised (rows, columns), Y centred and Z the unseen rows,
        X'X = V L V'   gives   Z W = (Z V) (L + alpha)^-1 (V' X' Y)          (columns x columns: the primal)
        X X' = U L U'  gives   Z W = (Z X' U) (L + alpha)^-1 (U' Y)          (rows x rows: the dual)
    Both hold for every alpha > 0; the smaller matrix is the one decomposed.

    Attributes:
        left: Z V or Z X' U (unseen rows, eigenvalues).
        eigenvalues: L (eigenvalues,).
        right: V' X' or U' (eigenvalues, rows).
    """

    left: np.ndarray
    eigenvalues: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, unseen: np.ndarray, floor: float) -> "_Decomposition":
        scaler = FlooredScaler.fit(features, floor)
        inputs, queries = scaler.transform(features), scaler.transform(unseen)
        if inputs.shape[1] <= inputs.shape[0]:
            eigenvalues, vectors = np.linalg.eigh(inputs.T @ inputs)
            left, right = queries @ vectors, vectors.T @ inputs.T
        else:
            eigenvalues, vectors = np.linalg.eigh(inputs @ inputs.T)
            left, right = (queries @ inputs.T) @ vectors, vectors.T
        return cls(left, np.maximum(eigenvalues, 0.0), right)  # rounding may leave the zero ones slightly negative

    def predict(self, targets: np.ndarray, alphas: np.ndarray) -> list[np.ndarray]:
        """Return predictions (unseen rows, genes), one per alpha."""
        mean = targets.mean(axis=0)
        projected = self.right @ (targets - mean)
        return [(self.left / (self.eigenvalues + alpha)) @ projected + mean for alpha in alphas]


def _constant_columns(values: np.ndarray) -> np.ndarray:
    """Tell which columns (columns,) do not vary beyond rounding."""
    return np.ptp(values, axis=0) <= 8 * np.finfo(np.float64).eps * np.abs(values).max(axis=0)


def _checked_alphas(alphas: Sequence[float]) -> np.ndarray:
    penalties = np.unique(np.asarray(alphas, dtype=np.float64))
    if penalties.size == 0 or not np.isfinite(penalties).all() or penalties[0] <= 0:
        raise ValueError(
            f"alphas are {list(alphas)}; allowed is at least one positive number. "
            "Leave the argument out for 0.1 to 1e6 in half decades."
        )
    return penalties
