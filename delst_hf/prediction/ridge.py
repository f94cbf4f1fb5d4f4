"""Ridge regression from sums alone: memory does not depend on how many rows there are.

It is the ridge of `evaluation.expression.ridge_prediction`, with penalty and floor chosen as there.

The sums of x, y, x x' and x y' of the fitting rows determine the ridge, and those of held-out rows its Pearson correlation: the
covariance of prediction and target is W' Cxy, the variance of the prediction W' Cxx W.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.expression import RIDGE_ALPHAS, choose_penalty
from ..evaluation.preparation import SCALE_FLOORS, nanmean

# A feature whose spread is below this share of its size is taken for constant: rounding alone leaves as much.
_ROUNDING = 1e-6
# (group, panel) -> sums of its rows. A panel is the mask of measured genes, ``bool (genes,).tobytes()``, so that a gene is
# learned only from slides that measure it.
Sums = Mapping[tuple[str, bytes], "Moments"]


class Moments:
    """Sums over rows of features x (width,) and targets y (genes,), in float64.

    Give features minus those of one row: the smaller they are, the fewer digits squares lose, and a constant one is exactly 0.
    """

    def __init__(self, width: int, genes: int):
        self.width, self.genes, self.count = width, genes, 0
        self.x, self.y, self.yy = np.zeros(width), np.zeros(genes), np.zeros(genes)
        self.xx, self.xy = np.zeros((width, width)), np.zeros((width, genes))

    def add(self, features: np.ndarray, targets: np.ndarray) -> None:
        """Add rows: features (rows, width) and targets (rows, genes)."""
        features, targets = features.astype(np.float64), targets.astype(np.float64)
        self.count += len(features)
        self.x += features.sum(axis=0)
        self.y += targets.sum(axis=0)
        self.yy += np.einsum("ij,ij->j", targets, targets)
        self.xx += features.T @ features
        self.xy += features.T @ targets

    def include(self, other: "Moments", genes: np.ndarray) -> None:
        """Add the sums of other rows, for these genes (genes,) only."""
        self.count += other.count
        self.x += other.x
        self.xx += other.xx
        self.y += other.y[genes]
        self.yy += other.yy[genes]
        self.xy += other.xy[:, genes]

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the scatter of x (width, width), of x with y (width, genes) and of y (genes,)."""
        mean = self.x / self.count
        scatter = self.xx - np.outer(self.x, mean), self.xy - np.outer(mean, self.y)
        return *scatter, np.maximum(self.yy - self.y**2 / self.count, 0)


@dataclass(frozen=True)
class RidgePath:
    """A ridge at every penalty, from one decomposition, on features standardised with a floor (see `FlooredScaler`)."""

    mean: np.ndarray
    scale: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    right: np.ndarray
    target_mean: np.ndarray

    @classmethod
    def of(cls, moments: Moments, floor: float) -> "RidgePath":
        """Decompose the moments of the fitting rows."""
        xx, xy, _ = moments.centred()
        deviation = np.sqrt(np.maximum(np.diag(xx), 0) / moments.count)
        varies = deviation > _ROUNDING * np.sqrt(np.diag(moments.xx) / moments.count)
        typical = float(np.median(deviation[varies])) if varies.any() else 1.0
        scale = np.where(varies, np.maximum(deviation, floor * typical), (floor or 1.0) * typical)
        values, vectors = np.linalg.eigh(xx / np.outer(scale, scale))
        right = vectors.T @ (xy / scale[:, None])
        mean = moments.x / moments.count, moments.y / moments.count
        return cls(mean[0], scale, np.maximum(values, 0.0), vectors, right, mean[1])

    def coefficients(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Return W (width, genes) and b (genes,) of prediction = x W + b on unscaled features."""
        weight = self.vectors @ (self.right / (self.values + alpha)[:, None]) / self.scale[:, None]
        return weight, self.target_mean - self.mean @ weight

    def pearson(self, alpha: float, held: Moments) -> np.ndarray:
        """Return the Pearson (genes,) on held-out rows; 0 for a constant prediction, NaN where the target is constant."""
        weight, _ = self.coefficients(alpha)
        xx, xy, yy = held.centred()
        covariance = np.einsum("ij,ij->j", weight, xy)
        variance = np.maximum(np.einsum("ij,ij->j", weight, xx @ weight), 0)
        return correlation(covariance, variance, yy)


def correlation(covariance: np.ndarray, predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return correlations from covariances and variances: 0 for a constant prediction, NaN for a constant target."""
    tiny = 1e-9  # above the rounding error of sums of thousands of values in float64
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.clip(covariance / np.sqrt(predicted * measured), -1, 1)
    return np.where(measured <= tiny, np.nan, np.where(predicted <= tiny, 0.0, value))


@dataclass(frozen=True)
class Choice:
    """The penalty and the floor of the feature scales that are best on held-out groups.

    Attributes:
        alpha: The penalty.
        floor: See `FlooredScaler`; 0 is plain standardisation.
        alphas: The penalties tried, ascending.
        validation_pearson: (penalties,) mean over groups of the mean Pearson of the genes, with this floor.
    """

    alpha: float
    floor: float
    alphas: np.ndarray
    validation_pearson: np.ndarray


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge, and those of its folds.

    Attributes:
        weight: (width, genes).
        bias: (genes,).
        folds: Fold -> weight and bias fitted on all other folds.
    """

    weight: np.ndarray
    bias: np.ndarray
    folds: dict[str, tuple[np.ndarray, np.ndarray]]


def choose_ridge(
    moments: Sums, alphas: Sequence[float] = RIDGE_ALPHAS, floors: Sequence[float] = SCALE_FLOORS
) -> Choice:
    """Choose penalty and floor by the mean Pearson on held-out groups, as `ridge_prediction` does.

    Args:
        moments: Sums of the rows by group, such as slides, and panel.
        alphas: Penalties to choose from.
        floors: Floors of the feature scales to choose from.

    Raises:
        ValueError: If there are fewer than two groups, a gene is measured in one group only, or no gene varies.
    """
    penalties, choices = np.sort(np.asarray(alphas, dtype=float)), []
    for floor in floors:
        place, validation, _ = choose_penalty(_left_out_scores(moments, penalties, floor))
        choices.append(Choice(float(penalties[place]), floor, penalties, validation))
    return max(choices, key=lambda choice: float(choice.validation_pearson.max()))  # the first on a tie


def fit_ridge(moments: Sums, alpha: float, floor: float) -> Ridge:
    """Fit a ridge on all rows, and one on all but those of each fold.

    Args:
        moments: Sums of the rows by fold and panel.
        alpha: The penalty.
        floor: Floor of the feature scales.

    Raises:
        ValueError: If there are fewer than two folds, or a gene is measured in one fold only.
    """
    genes = next(iter(moments.values())).genes
    folds, parts = _folds(moments), list(_patterns(moments))
    every = [(RidgePath.of(_sum(moments, folds, panels, some), floor), some) for panels, some in parts]
    left_out = {}
    for fold in folds:
        others = [(_others(moments, folds, fold, panels, some), some) for panels, some in parts]
        fitting = [(RidgePath.of(sums, floor), some) for sums, some in others]
        left_out[fold] = _joined(fitting, alpha, genes)
    return Ridge(*_joined(every, alpha, genes), left_out)


def _left_out_scores(moments: Sums, penalties: np.ndarray, floor: float) -> np.ndarray:
    """Return the mean Pearson over genes (groups, penalties) on each group, fitted on the others; NaN if no gene varies."""
    folds, genes = _folds(moments), next(iter(moments.values())).genes
    scores = np.full((len(folds), len(penalties), genes), np.nan)
    for panels, some in _patterns(moments):
        for place, fold in enumerate(folds):
            path = RidgePath.of(_others(moments, folds, fold, panels, some), floor)
            held = _sum(moments, [fold], panels, some)
            if held.count > 1:
                scores[place][:, some] = [path.pearson(alpha, held) for alpha in penalties]
    return nanmean(scores.transpose(2, 0, 1))


def _folds(moments: Sums) -> list[str]:
    folds = sorted({fold for fold, _ in moments})
    if len(folds) < 2:
        raise ValueError(
            f"the penalty is chosen on held-out slides, and there is only {', '.join(folds) or 'none'}. Train on two slides or "
            "more (--train-slides)."
        )
    return folds


def _patterns(moments: Sums) -> Iterable[tuple[list[bytes], np.ndarray]]:
    """Yield groups of genes that exactly the same panels measure, with these panels; they are solved together."""
    panels = list(dict.fromkeys(panel for _, panel in moments))
    measured = np.stack([np.frombuffer(panel, dtype=bool) for panel in panels])
    patterns, which = np.unique(measured, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        if patterns[:, number].any():
            yield (
                [panel for panel, there in zip(panels, patterns[:, number]) if there],
                np.flatnonzero(which.ravel() == number),
            )


def _others(moments: Sums, folds: Sequence[str], fold: str, panels: Sequence[bytes], genes: np.ndarray) -> Moments:
    """Return the sums of all rows but those of one fold."""
    found = _sum(moments, [one for one in folds if one != fold], panels, genes)
    if not found.count:
        raise ValueError(
            f"{len(genes)} genes are measured in {fold} only, so they cannot be scored. Train on further slides that measure "
            "them, or leave that one out (--train-slides)."
        )
    return found


def _sum(moments: Sums, folds: Sequence[str], panels: Sequence[bytes], genes: np.ndarray) -> Moments:
    first = next(iter(moments.values()))
    total = Moments(first.width, len(genes))
    for (fold, panel), one in moments.items():
        if fold in folds and panel in panels:
            total.include(one, genes)
    return total


def _joined(parts: Sequence[tuple[RidgePath, np.ndarray]], alpha: float, genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and biases of all genes; those of genes that no slide measures stay 0."""
    weight, bias = np.zeros((len(parts[0][0].mean), genes)), np.zeros(genes)
    for path, places in parts:
        weight[:, places], bias[places] = path.coefficients(alpha)
    return weight, bias
