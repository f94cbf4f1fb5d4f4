"""Metrics as functions of resampled rows, fast enough for a thousand resamples; each equals the metric that it stands for."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from .expression import gene_pearson
from .preparation import finite_matrix, missing_rows, nanmean
from .uncertainty import Bootstrap, Statistic


def mean_statistic(values: np.ndarray, weights: np.ndarray | None = None) -> Statistic:
    if weights is None:
        return lambda rows: float(values[rows].mean())
    return lambda rows: float((values[rows] * weights[rows]).sum() / max(weights[rows].sum(), 1))


def mean_of_known(values: np.ndarray) -> Statistic:
    """The mean of what is not NaN."""
    return lambda rows: _mean(values[rows])


def median_statistic(values: np.ndarray) -> Statistic:
    return lambda rows: float(np.median(values[rows]))


def within_slides(statistic: Statistic, slides: np.ndarray) -> Statistic:
    """The mean over slides, weighted by their rows, of a statistic of the rows of one slide; undefined slides are left out."""
    numbers = np.unique(slides, return_inverse=True)[1]

    def mean(rows: np.ndarray) -> float:
        parts = [rows[numbers[rows] == number] for number in np.unique(numbers[rows])]
        found = np.array([statistic(part) for part in parts])
        there = ~np.isnan(found)
        return (
            float(np.average(found[there], weights=[len(p) for p, t in zip(parts, there) if t]))
            if there.any()
            else np.nan
        )

    return mean


def f1_statistic(truth: np.ndarray, answer: np.ndarray, everywhere: bool = False) -> Statistic:
    """Macro-F1 from a table of confusion: a thousand resamples through sklearn would take minutes.

    The mean is over the classes of `truth`, as in `macro_f1`, or with `everywhere` over those of `answer` too, as in sklearn.
    """
    table_of = _confusion(truth, answer)

    def statistic(rows: np.ndarray) -> float:
        table = table_of(rows)
        there = (table.sum(axis=1) > 0) | (everywhere & (table.sum(axis=0) > 0))
        scores = 2 * np.diagonal(table) / np.maximum(table.sum(axis=0) + table.sum(axis=1), 1)
        return float(scores[there].mean())

    return statistic


def recall_statistic(truth: np.ndarray, answer: np.ndarray) -> Statistic:
    """Balanced accuracy."""
    table_of = _confusion(truth, answer)

    def statistic(rows: np.ndarray) -> float:
        table = table_of(rows)
        there = table.sum(axis=1) > 0
        return float((np.diagonal(table)[there] / table.sum(axis=1)[there]).mean())

    return statistic


def _confusion(truth: np.ndarray, answer: np.ndarray):
    """Rows -> table (classes, classes) of truth and answer."""
    classes, numbers = np.unique(np.concatenate([truth, answer]).astype(str), return_inverse=True)
    cells = numbers[: len(truth)] * len(classes) + numbers[len(truth) :]
    return lambda rows: np.bincount(cells[rows], minlength=len(classes) ** 2).reshape(len(classes), len(classes))


def fold_pearson(predicted: np.ndarray, measured: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Pearson per gene, the mean over groups in which it varies; NaN where that is none."""
    parts = [groups == group for group in np.unique(groups)]
    scores = [gene_pearson(predicted[part], measured[part]) for part in parts if part.sum() > 1]
    return nanmean(np.array(scores)) if scores else np.full(measured.shape[1], np.nan)


def pearson_statistic(
    predicted: np.ndarray, measured: np.ndarray, folds: np.ndarray, parts: np.ndarray | None = None
) -> Statistic:
    """Mean over folds of the mean over genes of Pearson, itself the mean over the `parts` of a fold (`expression_protocol`)."""
    parts = folds if parts is None else parts

    def statistic(rows: np.ndarray) -> float:
        found = []
        for fold in np.unique(folds[rows]):
            members = rows[folds[rows] == fold]
            if len(members) > 1:
                found.append(_mean(fold_pearson(predicted[members], measured[members], parts[members])))
        return _mean(np.array(found))

    return statistic


def region_auroc(scores: ArrayLike, labels: Sequence[str | None] | np.ndarray) -> dict[str, float]:
    """How well one map finds each region: AUROC of its scores, the region's spots against all other labelled spots.

    Args:
        scores: (spots,) of one signature.
        labels: (spots,) strings, None where nobody labelled the spot.

    Returns:
        Label -> probability that a spot of the region scores above one outside it (ties count half): 1 is perfect, 0.5 is
        chance, below 0.5 the signature is elsewhere. A label that all or none of the labelled spots have is left out.

    Raises:
        ValueError: if scores and labels differ in number or a score is not finite.
    """
    values = finite_matrix(np.asarray(scores, dtype=np.float64).reshape(-1, 1), "scores")[:, 0]
    if len(values) != len(labels):
        raise ValueError(
            f"{len(values)} scores and {len(labels)} labels; pass one label per spot, None where there is none."
        )
    kept = ~missing_rows(labels)
    truth, ranks = np.asarray(labels, dtype=object)[kept].astype(str), rankdata(values[kept])
    result = {}
    for label in np.unique(truth):
        inside = truth == label
        n, m = int(inside.sum()), int((~inside).sum())
        if m:
            result[str(label)] = float((ranks[inside].sum() - n * (n + 1) / 2) / (n * m))
    return result


def auroc_statistic(scores: np.ndarray, labels: np.ndarray, region: str) -> Statistic:
    return lambda rows: region_auroc(scores[rows], labels[rows]).get(region, float("nan"))


def spearman_statistic(values: np.ndarray, level: np.ndarray, given: np.ndarray | None = None) -> Statistic:
    """Spearman correlation, partial on ranks with `given`; as `hierarchy_report.rank_correlation` of one slide."""

    def statistic(rows: np.ndarray) -> float:
        if len(rows) < 3 or np.ptp(values[rows]) == 0 or np.ptp(level[rows]) == 0:
            return 0.0
        ranks = [_centred_ranks(array[rows]) for array in (values, level)]
        first = float(ranks[0] @ ranks[1])
        if given is None or np.ptp(given[rows]) == 0:
            return first
        third = _centred_ranks(given[rows])
        second, last = float(ranks[0] @ third), float(ranks[1] @ third)
        rest = (1 - second**2) * (1 - last**2)
        return 0.0 if rest < 1e-9 else float(np.clip((first - second * last) / np.sqrt(rest), -1, 1))

    return statistic


def rand_statistic(truth: np.ndarray, found: np.ndarray) -> Statistic:
    """Adjusted Rand index over pairs of different spots: two copies of one spot always agree, and would raise it."""
    cells, left, right = _cells(truth, found)

    def pairs(groups: np.ndarray, weights: np.ndarray) -> float:
        sums, squares = np.bincount(groups, weights), np.bincount(groups, weights**2)
        return float((sums**2 - squares).sum() / 2)

    def statistic(rows: np.ndarray) -> float:
        weights = np.bincount(rows, minlength=len(cells)).astype(float)
        same, first, second = (pairs(groups, weights) for groups in (cells, left, right))
        everyone = pairs(np.zeros(len(cells), dtype=int), weights)
        chance = first * second / everyone if everyone else 0.0
        return 1.0 if first + second == 2 * chance else (same - chance) / ((first + second) / 2 - chance)

    return statistic


def information_statistic(truth: np.ndarray, found: np.ndarray) -> Statistic:
    """Normalised mutual information (arithmetic mean of entropies)."""
    cells, left, right = _cells(truth, found)

    def statistic(rows: np.ndarray) -> float:
        joint, *margins = (_entropy(np.bincount(groups[rows]) / len(rows)) for groups in (cells, left, right))
        return 1.0 if sum(margins) == 0 else max(0.0, 2 * (sum(margins) - joint) / sum(margins))

    return statistic


def _cells(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cell of each row in the table of contingency, its row there and its column."""
    left, right = (np.unique(np.asarray(side).astype(str), return_inverse=True)[1] for side in (truth, found))
    return left * (right.max() + 1) + right, left, right


def dispersion_draws(rows: np.ndarray, groups: np.ndarray, bootstrap: Bootstrap) -> dict[str, np.ndarray]:
    """Calinski-Harabasz and Davies-Bouldin of every resample, from sums over groups instead of a pass over all points each."""
    names, numbers = np.unique(groups, return_inverse=True)
    points = rows - rows.mean(axis=0)
    members = [np.flatnonzero(numbers == number) for number in range(len(names))]
    squares = (points**2).sum(axis=1)
    found: dict[str, list[float]] = {"calinski_harabasz": [], "davies_bouldin": []}
    for draw in bootstrap.draws():
        weights = np.bincount(draw, minlength=len(rows)).astype(float)
        kept = [part for part in members if weights[part].any()]
        sizes = np.array([weights[part].sum() for part in kept])
        if not 2 <= len(kept) < len(draw):
            found["calinski_harabasz"].append(np.nan)
            found["davies_bouldin"].append(np.nan)
            continue
        centres = np.stack([weights[part] @ points[part] for part in kept]) / sizes[:, None]
        middle = sizes @ centres / sizes.sum()
        between = float(sizes @ ((centres - middle) ** 2).sum(axis=1))
        within = float(weights @ squares - sizes @ (centres**2).sum(axis=1))
        spread = np.array([_spread(points[p], squares[p], c, weights[p]) for p, c in zip(kept, centres)])
        apart = np.sqrt(np.maximum(_squared_distances(centres), 0))
        np.fill_diagonal(apart, np.inf)
        free = (len(kept) - 1, len(draw) - len(kept))
        found["calinski_harabasz"].append(between / free[0] / (within / free[1]) if within > 0 else 1.0)
        ratios = (spread[:, None] + spread[None]) / np.where(apart == 0, np.inf, apart)
        found["davies_bouldin"].append(float(ratios.max(axis=1).mean()))
    return {name: np.array(values) for name, values in found.items()}


def _spread(points: np.ndarray, squares: np.ndarray, centre: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean distance of points to their centre."""
    distances = np.sqrt(np.maximum(squares - 2 * points @ centre + centre @ centre, 0))
    return float(weights @ distances / weights.sum())


def _squared_distances(points: np.ndarray) -> np.ndarray:
    squares = (points**2).sum(axis=1)
    return squares[:, None] - 2 * points @ points.T + squares[None]


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    ranks = rankdata(values)
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of what is defined, NaN where nothing is."""
    there = np.asarray(values)[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")
