"""How sure a number is: bootstrap over spots or slides, and the paired comparison of two models on the same spots."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .expression import gene_pearson
from .linear_probe import macro_f1
from .preparation import group_names
from .signatures import region_auroc

UNITS = ("spots", "slides")
Statistic = Callable[[np.ndarray], float]


def bootstrap_interval(
    statistic: Statistic,
    num_rows: int,
    *,
    unit: str = "spots",
    slides: Sequence[Any] | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Percentile bootstrap of a statistic of rows.

    Over spots the interval says how the number would vary with other spots of *these* slides; neighbouring spots are
    alike, so it is too narrow for a claim about patients. Over slides it says how it would vary with other slides, and
    needs several of them.

    Args:
        statistic: maps row indices (n,), with repeats, to a number; NaN where it is undefined.
        num_rows: rows there are.
        unit: what is drawn with replacement: "spots" (within each slide when `slides` is given) or "slides".
        slides: (num_rows,) the slide of each row.
        level: of the interval, in (0, 1).
        resamples: how many.
        seed: equal seeds give equal intervals.

    Returns:
        value (of all rows), low, high, level, unit, resamples, and num_units: the spots or slides drawn from.

    Raises:
        ValueError: if an option is not one of those allowed, or there are fewer than two slides to draw from.
    """
    _check(unit, level, resamples)
    draws = _draws(num_rows, unit, slides, resamples, seed)
    values = np.array([statistic(rows) for rows in draws])
    low, high = _percentiles(values, level)
    units = num_rows if unit == "spots" else len({str(slide) for slide in slides})  # type: ignore[union-attr]
    return {
        "value": float(statistic(np.arange(num_rows))),
        "low": low,
        "high": high,
        "level": level,
        "unit": unit,
        "resamples": resamples,
        "num_units": int(units),
    }


def paired_comparison(
    first: Statistic,
    second: Statistic,
    num_rows: int,
    *,
    unit: str = "spots",
    slides: Sequence[Any] | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference first - second of two models on the same rows, resampled together.

    What both find easy or hard cancels, so the difference is known better than either number.

    Args:
        first, second: as `statistic` of `bootstrap_interval`, of two models evaluated on the same rows and folds.
        num_rows, unit, slides, level, resamples, seed: as there.

    Returns:
        difference (positive: the first is higher), low, high, p_value (two-sided: twice the smaller share of resamples on
        either side of 0, at least 1 / resamples), level, unit, resamples. An interval that holds 0 is no difference.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    _check(unit, level, resamples)
    draws = _draws(num_rows, unit, slides, resamples, seed)
    differences = np.array([first(rows) - second(rows) for rows in draws])
    low, high = _percentiles(differences, level)
    there = differences[~np.isnan(differences)]
    tail = min((there <= 0).mean(), (there >= 0).mean()) if len(there) else 0.5
    everyone = np.arange(num_rows)
    return {
        "difference": float(first(everyone) - second(everyone)),
        "low": low,
        "high": high,
        "p_value": float(min(1.0, max(2 * tail, 1 / resamples))),
        "level": level,
        "unit": unit,
        "resamples": resamples,
    }


def _draws(
    num_rows: int, unit: str, slides: Sequence[Any] | np.ndarray | None, resamples: int, seed: int
) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    if slides is None:
        if unit == "slides":
            raise ValueError("unit is 'slides' and slides is None; pass the slide of every row, or unit='spots'.")
        return [generator.integers(0, num_rows, num_rows) for _ in range(resamples)]
    names = group_names(slides, num_rows, "slides")
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    if unit == "spots":
        return [
            np.concatenate([rows[generator.integers(0, len(rows), len(rows))] for rows in members])
            for _ in range(resamples)
        ]
    if len(members) < 2:
        raise ValueError(
            f"there is one slide only ({names[0]}), so slides cannot be drawn. Use unit='spots', and say that the interval "
            "holds for this slide."
        )
    return [
        np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))])
        for _ in range(resamples)
    ]


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    there = values[~np.isnan(values)]
    if not len(there):
        return float("nan"), float("nan")
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(unit: str, level: float, resamples: int) -> None:
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}; allowed are {', '.join(UNITS)}. Choose what the interval shall speak of.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"level is {level} and resamples {resamples}; allowed are 0 to 1, such as 0.95, and 1 or more."
        )


def f1_statistic(truth: np.ndarray, answer: np.ndarray) -> Statistic:
    """Macro-F1 from a table of confusion: a thousand resamples through sklearn would take minutes."""
    classes, numbers = np.unique(np.concatenate([truth, answer]), return_inverse=True)
    first, second = numbers[: len(truth)], numbers[len(truth) :]

    def statistic(rows: np.ndarray) -> float:
        table = np.bincount(first[rows] * len(classes) + second[rows], minlength=len(classes) ** 2)
        table = table.reshape(len(classes), len(classes))
        there = table.sum(axis=1) > 0
        scores = 2 * np.diagonal(table) / np.maximum(table.sum(axis=0) + table.sum(axis=1), 1)
        return float(scores[there].mean())

    if not np.isclose(statistic(np.arange(len(truth))), macro_f1(truth, answer)):  # pragma: no cover
        raise RuntimeError("the quick macro-F1 differs from scikit-learn's; please report this.")
    return statistic


def fold_pearson(predicted: np.ndarray, measured: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Pearson per gene, the mean over folds, as the protocol takes it."""
    parts = [groups == group for group in np.unique(groups)]
    scores = np.array([gene_pearson(predicted[part], measured[part]) for part in parts if part.sum() > 1])
    there = ~np.isnan(scores)
    total = np.where(there, scores, 0).sum(axis=0)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)


def pearson_statistic(predicted: np.ndarray, measured: np.ndarray, groups: np.ndarray) -> Statistic:
    return lambda rows: float(np.nanmean(fold_pearson(predicted[rows], measured[rows], groups[rows])))


def mean_statistic(values: np.ndarray) -> Statistic:
    return lambda rows: float(values[rows].mean())


def auroc_statistic(scores: np.ndarray, labels: np.ndarray, region: str) -> Statistic:
    return lambda rows: region_auroc(scores[rows], labels[rows]).get(region, float("nan"))
