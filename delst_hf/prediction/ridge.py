"""Ridge regression from sums alone: rows are read once, and memory does not depend on how many there are.

With the sums of x, y, x x' and x y' of the fitting rows, everything a ridge needs is there, and with those of held-out rows
everything its Pearson correlation needs: the covariance of prediction and target is W' Cxy, the variance W' Cxx W.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..evaluation.expression import RIDGE_ALPHAS
from ..evaluation.preparation import SCALE_FLOOR, nanmean


@dataclass
class Moments:
    """Sums over rows of features x (width,) and targets y (genes,), in float64."""

    width: int
    genes: int
    count: int = 0
    x: np.ndarray = field(init=False)
    y: np.ndarray = field(init=False)
    xx: np.ndarray = field(init=False)
    xy: np.ndarray = field(init=False)
    yy: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.x, self.y, self.yy = np.zeros(self.width), np.zeros(self.genes), np.zeros(self.genes)
        self.xx, self.xy = np.zeros((self.width, self.width)), np.zeros((self.width, self.genes))

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
        """Add the sums of other rows, of these genes (genes,) only."""
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
    """A ridge at every penalty, from one decomposition; features standardised with a floor (see `FlooredScaler`)."""

    mean: np.ndarray
    scale: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    right: np.ndarray
    target_mean: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> "RidgePath":
        """Decompose the moments of the fitting rows."""
        xx, xy, _ = moments.centred()
        deviation = np.sqrt(np.maximum(np.diag(xx), 0) / moments.count)
        varies = deviation > 1e-9 * np.sqrt(np.diag(moments.xx) / moments.count)
        typical = float(np.median(deviation[varies])) if varies.any() else 1.0
        scale = np.maximum(deviation, SCALE_FLOOR * typical)
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
    tiny = 1e-9  # sums of thousands of values in float64 are off by less
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.clip(covariance / np.sqrt(predicted * measured), -1, 1)
    return np.where(measured <= tiny, np.nan, np.where(predicted <= tiny, 0.0, value))


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge, and those of its folds.

    Attributes:
        weight: (width, genes).
        bias: (genes,).
        alpha: The penalty.
        alphas: The penalties tried, ascending.
        validation_pearson: (penalties,) mean over genes of the Pearson on held-out folds.
        folds: Fold -> weight and bias fitted on all the others.
    """

    weight: np.ndarray
    bias: np.ndarray
    alpha: float
    alphas: np.ndarray
    validation_pearson: np.ndarray
    folds: dict[str, tuple[np.ndarray, np.ndarray]]


def fit_ridge(moments: Mapping[tuple[str, bytes], Moments], alphas: Sequence[float] = RIDGE_ALPHAS) -> Ridge:
    """Fit a ridge, the penalty chosen by the mean Pearson on folds that are left out; on a tie the larger.

    Args:
        moments: (fold, panel) -> sums of its rows; a panel is the measured genes, ``bool (genes,).tobytes()``, so that a gene
            is learned from the slides alone that measure it.
        alphas: Penalties to choose from.

    Raises:
        ValueError: If there are fewer than two folds, or a gene is measured in fewer than two.
    """
    folds = sorted({fold for fold, _ in moments})
    if len(folds) < 2:
        raise ValueError(
            f"the penalty is chosen on slides that are left out, and there is only {', '.join(folds) or 'none'}. Train on two "
            "slides or more (--train-slides)."
        )
    masks = {panel: np.frombuffer(panel, dtype=bool) for _, panel in moments}
    first = next(iter(moments.values()))
    penalties = np.sort(np.asarray(alphas, dtype=float))
    scores = {fold: np.full((len(penalties), first.genes), np.nan) for fold in folds}
    paths: dict[tuple[str, int], RidgePath] = {}
    patterns = list(_patterns(masks, first.genes))
    for number, (panels, genes) in enumerate(patterns):
        for fold in folds:
            held = _sum(moments, [fold], panels, genes)
            fitting = _sum(moments, [one for one in folds if one != fold], panels, genes)
            if not fitting.count:
                raise ValueError(
                    f"{len(genes)} genes are measured in {fold} only, so that they cannot be scored. Train on further slides "
                    "that measure them, or leave that one out (--train-slides)."
                )
            path = paths[fold, number] = RidgePath.of(fitting)
            if held.count > 1:
                scores[fold][:, genes] = [path.pearson(alpha, held) for alpha in penalties]
    validation = np.nanmean(nanmean(np.stack(list(scores.values()))), axis=1)
    alpha = float(penalties[len(penalties) - 1 - int(np.nanargmax(validation[::-1]))])
    whole = [(RidgePath.of(_sum(moments, folds, panels, genes)), genes) for panels, genes in patterns]
    every = _joined(whole, alpha, first.genes)
    left_out = {
        fold: _joined([(paths[fold, number], genes) for number, (_, genes) in enumerate(patterns)], alpha, first.genes)
        for fold in folds
    }
    return Ridge(*every, alpha, penalties, validation, left_out)


def _patterns(masks: Mapping[bytes, np.ndarray], genes: int) -> Iterable[tuple[list[bytes], np.ndarray]]:
    """Yield panels, and the genes that just these panels measure, which are solved together."""
    panels = list(masks)
    measured = np.stack([masks[panel] for panel in panels])
    patterns, which = np.unique(measured, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        if patterns[:, number].any():
            yield (
                [panel for panel, there in zip(panels, patterns[:, number]) if there],
                np.flatnonzero(which.ravel() == number),
            )


def _sum(
    moments: Mapping[tuple[str, bytes], Moments], folds: Sequence[str], panels: Sequence[bytes], genes: np.ndarray
) -> Moments:
    first = next(iter(moments.values()))
    total = Moments(first.width, len(genes))
    for (fold, panel), one in moments.items():
        if fold in folds and panel in panels:
            total.include(one, genes)
    return total


def _joined(parts: Sequence[tuple[RidgePath, np.ndarray]], alpha: float, genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and biases of all genes; those that no slide measures stay 0."""
    weight, bias = np.zeros((len(parts[0][0].mean), genes)), np.zeros(genes)
    for path, places in parts:
        weight[:, places], bias[places] = path.coefficients(alpha)
    return weight, bias
