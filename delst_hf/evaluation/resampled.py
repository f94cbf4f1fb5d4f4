"""Metrics as functions of resampled rows, computed for all resamples at once; each gives the values of the plain metric.

A resample is a row of weights: how often each spot was drawn. Sums over drawn spots are then one matrix product for a
thousand resamples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .preparation import NarrowRows, finite_matrix, missing_rows, nanmean
from .uncertainty import Bootstrap, Weighted

# Below this share of the sum of squares a resample's variance is rounding: all of its drawn values are equal.
_CONSTANT = 1e-11


def mean_statistic(values: np.ndarray, weights: np.ndarray | None = None) -> Weighted:
    """Return the mean of values (rows,), weighted if there are weights (rows,); NaN values are left out."""
    there = ~np.isnan(values) * (np.ones(len(values)) if weights is None else weights)
    filled = np.where(np.isnan(values), 0.0, values) * there
    return Weighted(len(values), lambda drawn: _ratio(drawn @ filled, drawn @ there))


def median_statistic(values: np.ndarray) -> Weighted:
    """Return the median of values (rows,)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]

    def of(weights: np.ndarray) -> np.ndarray:
        passed = np.cumsum(weights[:, order], axis=1)
        total = passed[:, -1]
        # The middle one, or the two middle ones of an even number, counted from 0.
        middle = [(passed <= np.floor((total - shift) / 2)[:, None]).sum(axis=1) for shift in (1, 0)]
        low, high = (ordered[np.minimum(place, len(ordered) - 1)] for place in middle)
        return np.where(total > 0, (low + high) / 2, np.nan)

    return Weighted(len(values), of)


def within_slides(statistic_of: Callable[..., Weighted], columns: Sequence[np.ndarray], slides: np.ndarray) -> Weighted:
    """Return the mean over slides, weighted by their rows, of a statistic of columns (rows,); undefined ones are left out."""
    parts = [np.flatnonzero(slides == slide) for slide in np.unique(slides)]
    statistics = [statistic_of(*(column[rows] for column in columns)) for rows in parts]

    def of(weights: np.ndarray) -> np.ndarray:
        drawn = [weights[:, rows] for rows in parts]
        values = np.stack([statistic.of(each) for statistic, each in zip(statistics, drawn, strict=True)])
        sizes = np.stack([each.sum(axis=1) for each in drawn])
        sizes = np.where(np.isnan(values), 0.0, sizes)
        return _ratio((np.where(sizes > 0, values, 0.0) * sizes).sum(axis=0), sizes.sum(axis=0))

    return Weighted(len(slides), of)


def f1_statistic(truth: np.ndarray, answer: np.ndarray, everywhere: bool = False) -> Weighted:
    """Return macro-F1, from the confusion matrix.

    The mean is over the classes of `truth`, as in `macro_f1`, or with `everywhere` over those of `answer` too, as in sklearn.
    """

    def of(table: np.ndarray) -> np.ndarray:
        rows, columns = table.sum(axis=2), table.sum(axis=1)
        scores = 2 * np.diagonal(table, axis1=1, axis2=2) / np.maximum(rows + columns, 1)
        return _mean_where(scores, (rows > 0) | (everywhere & (columns > 0)))

    return _of_confusion(truth, answer, of)


def recall_statistic(truth: np.ndarray, answer: np.ndarray) -> Weighted:
    """Return balanced accuracy."""

    def of(table: np.ndarray) -> np.ndarray:
        rows = table.sum(axis=2)
        return _mean_where(np.diagonal(table, axis1=1, axis2=2) / np.maximum(rows, 1), rows > 0)

    return _of_confusion(truth, answer, of)


def _of_confusion(truth: np.ndarray, answer: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> Weighted:
    """Turn a function of confusion matrices (resamples, classes, classes) into one of weights."""
    classes, numbers = np.unique(np.concatenate([truth, answer]).astype(str), return_inverse=True)
    cells = _indicators(numbers[: len(truth)] * len(classes) + numbers[len(truth) :], len(classes) ** 2)
    return Weighted(len(truth), lambda weights: of((weights @ cells).reshape(len(weights), len(classes), len(classes))))


def gene_statistic(predicted: np.ndarray, measured: np.ndarray, groups: np.ndarray) -> Weighted:
    """Return Pearson per gene (resamples, genes), averaged over the groups in which the gene varies; NaN where it never does.

    A gene whose predictions are NaN in a group was not predicted there and does not count.
    """
    parts = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    functions = [(part, _pearson(predicted[part], measured[part])) for part in parts]

    def of(weights: np.ndarray) -> np.ndarray:
        return nanmean(np.stack([function(weights[:, part]) for part, function in functions]))

    return Weighted(len(measured), of)


def fold_pearson(predicted: np.ndarray, measured: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return Pearson per gene (genes,), averaged over the groups in which the gene varies; NaN where it never does."""
    return gene_statistic(predicted, measured, groups)(np.arange(len(measured)))


def pearson_statistic(
    predicted: np.ndarray, measured: np.ndarray, folds: np.ndarray, parts: np.ndarray | None = None
) -> Weighted:
    """Return Pearson averaged over the `parts` of a fold, then over genes, then over folds (as in `expression_protocol`)."""
    parts = folds if parts is None else parts
    members = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    functions = [(rows, gene_statistic(predicted[rows], measured[rows], parts[rows])) for rows in members]

    def of(weights: np.ndarray) -> np.ndarray:
        by_fold = [nanmean(function.of(weights[:, rows]), axis=1) for rows, function in functions]
        return nanmean(np.stack(by_fold))

    return Weighted(len(measured), of)


def _pearson(predicted: np.ndarray, measured: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Map weights (resamples, rows) to Pearson per gene, with 0 and NaN where `expression.gene_pearson` has them."""
    absent = np.isnan(predicted).any(axis=0)
    first, second = (_scaled(np.where(absent, 0.0, values)) for values in (predicted, measured))
    columns = np.concatenate([first, second, first**2, second**2, first * second], axis=1)

    def of(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)[:, None]
        x, y, xx, yy, xy = np.split(weights @ columns, 5, axis=1)
        total = np.maximum(total, 1.0)
        variances = xx - x * x / total, yy - y * y / total
        constant = [rest <= _CONSTANT * squares for rest, squares in zip(variances, (xx, yy))]
        norm = np.sqrt(np.where(constant[0] | constant[1], 1.0, variances[0] * variances[1]))
        correlation = np.where(constant[0], 0.0, np.clip((xy - x * y / total) / norm, -1.0, 1.0))
        return np.where(constant[1] | absent, np.nan, correlation)

    return of


def _scaled(values: np.ndarray) -> np.ndarray:
    """Centre columns and scale each to a maximum of 1, so that sums of squares cancel as little as possible."""
    values = values - values.mean(axis=0)
    largest = np.abs(values).max(axis=0)
    return values / np.where(largest > 0, largest, 1.0)


def region_auroc(scores: ArrayLike, labels: Sequence[str | None] | np.ndarray) -> dict[str, float]:
    """Score how well one map finds each region: AUROC, the region's spots against all other labelled spots.

    Args:
        scores: (spots,) of one signature.
        labels: (spots,) strings, None where nobody labelled the spot.

    Returns:
        Label -> probability that a spot of the region scores above one outside it (ties count half): 1 is perfect, 0.5 is
        chance, below 0.5 the signature is elsewhere. A label that all or none of the labelled spots have is left out.

    Raises:
        ValueError: If scores and labels differ in number or a score is not finite.

    Examples:
        >>> region_auroc([0.9, 0.8, 0.1, 0.2], ["tumour", "tumour", "stroma", None])
        {'stroma': 0.0, 'tumour': 1.0}
    """
    values = finite_matrix(np.asarray(scores, dtype=np.float64).reshape(-1, 1), "scores")[:, 0]
    if len(values) != len(labels):
        raise ValueError(
            f"{len(values)} scores and {len(labels)} labels; pass one label per spot, None where there is none."
        )
    kept = ~missing_rows(labels)
    values, truth = values[kept], np.asarray(labels, dtype=object)[kept].astype(str)
    names = np.unique(truth).tolist()
    if len(names) < 2:
        return {}
    return {name: auroc_statistic(values, truth, name)(np.arange(len(truth))) for name in names}


def auroc_statistic(scores: np.ndarray, labels: np.ndarray, region: str) -> Weighted:
    """Return `region_auroc` of one region."""
    known = ~missing_rows(labels)
    inside = known & (np.asarray(labels, dtype=object) == region)
    sums = _by_value(scores)

    def of(weights: np.ndarray) -> np.ndarray:
        above, below = sums(weights * inside), sums(weights * (known & ~inside))
        wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        return _ratio(wins, above.sum(axis=1) * below.sum(axis=1))

    return Weighted(len(scores), of)


def spearman_statistic(values: np.ndarray, level: np.ndarray, given: np.ndarray | None = None) -> Weighted:
    """Return the Spearman correlation, partial on ranks with `given`; 0 where an argument is constant."""
    rank = [_ranks(array) for array in (values, level, *([] if given is None else [given]))]

    def of(weights: np.ndarray) -> np.ndarray:
        ranks = [function(weights) for function in rank]
        squares = [(weights * each**2).sum(axis=1) for each in ranks]

        def correlation(i: int, j: int) -> np.ndarray:
            return _ratio((weights * ranks[i] * ranks[j]).sum(axis=1), np.sqrt(squares[i] * squares[j]), 0.0)

        first = correlation(0, 1)
        defined = (weights.sum(axis=1) >= 3) & (squares[0] > 0) & (squares[1] > 0)
        if given is not None:
            second, last = correlation(0, 2), correlation(1, 2)
            rest = (1 - second**2) * (1 - last**2)
            partial = np.clip((first - second * last) / np.sqrt(np.where(rest < 1e-9, 1.0, rest)), -1, 1)
            first = np.where(squares[2] > 0, np.where(rest < 1e-9, 0.0, partial), first)
        return np.where(defined, first, 0.0)

    return Weighted(len(values), of)


def _ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Map weights (resamples, rows) to the centred ranks of the rows among those drawn, ties at their mean."""
    numbers, sums = np.unique(values, return_inverse=True)[1], _by_value(values)

    def of(weights: np.ndarray) -> np.ndarray:
        counts = sums(weights)
        middle = np.cumsum(counts, axis=1) - counts / 2 - weights.sum(axis=1)[:, None] / 2
        return middle[:, numbers]

    return of


def _by_value(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Map weights (resamples, rows) to sums over rows of equal value (resamples, distinct values), in ascending order."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) != 0]))
    return lambda weights: np.add.reduceat(weights[:, order], starts, axis=1)


def rand_statistic(truth: np.ndarray, answer: np.ndarray) -> Weighted:
    """Return the adjusted Rand index over pairs of different spots: two copies of one spot always agree, and would raise it."""
    cells, left, right = (_indicators(numbers) for numbers in _cells(truth, answer))

    def pairs(weights: np.ndarray, members: np.ndarray) -> np.ndarray:
        return (((weights @ members) ** 2).sum(axis=1) - (weights**2).sum(axis=1)) / 2

    def of(weights: np.ndarray) -> np.ndarray:
        same, first, second = (pairs(weights, members) for members in (cells, left, right))
        everyone = pairs(weights, np.ones((len(truth), 1)))
        chance = _ratio(first * second, everyone, 0.0)
        return np.where(first + second == 2 * chance, 1.0, _ratio(same - chance, (first + second) / 2 - chance, np.nan))

    return Weighted(len(truth), of)


def information_statistic(truth: np.ndarray, answer: np.ndarray) -> Weighted:
    """Return normalised mutual information (arithmetic mean of entropies)."""
    members = [_indicators(numbers) for numbers in _cells(truth, answer)]

    def of(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)[:, None]
        joint, *margins = (_entropy(weights @ each / total) for each in members)
        both = margins[0] + margins[1]
        return np.where(both == 0, 1.0, np.maximum(0.0, _ratio(2 * (both - joint), both)))

    return Weighted(len(truth), of)


def dispersion_draws(rows: np.ndarray, groups: np.ndarray, bootstrap: Bootstrap) -> dict[str, np.ndarray]:
    """Return Calinski-Harabasz and Davies-Bouldin of every resample, computed from sums over groups."""
    names, numbers = np.unique(groups, return_inverse=True)
    points = NarrowRows.of(rows - rows.mean(axis=0)).rows
    members = [np.flatnonzero(numbers == number) for number in range(len(names))]
    blocks = [_dispersion(points, members, weights) for weights in bootstrap.weights()]
    scores = np.concatenate(blocks, axis=1)
    return {"calinski_harabasz": scores[0], "davies_bouldin": scores[1]}


def _dispersion(points: np.ndarray, members: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return both scores (2, resamples); NaN where fewer than two groups, or one spot each, are drawn."""
    squares = (points**2).sum(axis=1)
    sizes = np.stack([weights[:, part].sum(axis=1) for part in members], axis=1)
    centres, spread = np.zeros((len(members), len(weights), points.shape[1])), np.zeros((len(weights), len(members)))
    for group, part in enumerate(members):
        size = np.maximum(sizes[:, group], 1.0)
        centres[group] = (weights[:, part] @ points[part]) / size[:, None]
        distances = squares[part] - 2 * centres[group] @ points[part].T + (centres[group] ** 2).sum(axis=1)[:, None]
        spread[:, group] = (weights[:, part] * np.sqrt(np.maximum(distances, 0))).sum(axis=1) / size
    total, drawn = sizes.sum(axis=1), (sizes > 0).sum(axis=1)
    middle = np.einsum("rg,grd->rd", sizes, centres) / total[:, None]
    between = np.einsum("rg,grd->r", sizes, (centres - middle) ** 2)
    within = weights @ squares - np.einsum("rg,grd->r", sizes, centres**2)
    worst = np.zeros_like(spread)
    for group in range(len(members)):
        apart = np.linalg.norm(centres - centres[group], axis=2).T
        usable = (apart > 0) & (sizes > 0)
        ratios = (spread[:, group, None] + spread) / np.where(usable, apart, np.inf)
        worst[:, group] = ratios.max(axis=1)
    valid = (drawn >= 2) & (drawn < total)
    inside = np.where(within > 0, within / np.maximum(total - drawn, 1), 1.0)
    calinski = np.where(within > 0, between / np.maximum(drawn - 1, 1) / inside, 1.0)
    davies = _ratio((worst * (sizes > 0)).sum(axis=1), drawn)
    return np.where(valid, np.stack([calinski, davies]), np.nan)


def _cells(truth: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each spot its cell in the contingency table, and the row and column of this cell."""
    left, right = (np.unique(np.asarray(side).astype(str), return_inverse=True)[1] for side in (truth, answer))
    return left * (right.max() + 1) + right, left, right


def _indicators(numbers: np.ndarray, size: int | None = None) -> np.ndarray:
    """Return one-hot rows (rows, numbers); without `size` only numbers that occur get a column."""
    if size is None:
        _, numbers = np.unique(numbers, return_inverse=True)
        size = int(numbers.max()) + 1
    return (numbers[:, None] == np.arange(size)).astype(np.float64)


def _entropy(shares: np.ndarray) -> np.ndarray:
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)


def _ratio(numerator: Any, denominator: Any, otherwise: float = np.nan) -> np.ndarray:
    """Return the quotient, or `otherwise` where the denominator is 0."""
    there = denominator != 0
    return np.where(there, numerator / np.where(there, denominator, 1.0), otherwise)


def _mean_where(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    return _ratio((values * there).sum(axis=1), there.sum(axis=1).astype(float))
