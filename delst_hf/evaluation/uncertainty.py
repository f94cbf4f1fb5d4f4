"""How sure a number is: bootstrap over spots or slides, and the paired comparison of two models on the same spots."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, t

from .preparation import group_names

UNITS = ("spots", "slides")
# Maps row indices (n,), with repeats, to a number; NaN where it is undefined.
Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of rows, the same ones for every statistic that it is asked about.

    Over spots an interval says how the number would vary with other spots of *these* slides; neighbouring spots are alike,
    so it is too narrow for a claim about patients. Over slides it says how it would vary with other slides, and needs
    several of them.

    Intervals are percentiles of the resamples, expanded for the number of units (Hesterberg, "What teachers should know
    about the bootstrap", Am. Stat. 69 (2015) 371-386): plain 95 % percentiles of five slides hold the truth in 83 % of cases,
    expanded ones in 92 %.

    Attributes:
        num_rows: Rows there are.
        slides: (num_rows,) the slide of each row, or None.
        unit: What is drawn with replacement: "spots" (within each slide when `slides` is given) or "slides".
        level: Of the interval, in (0, 1).
        resamples: How many.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: if an option is not one of those allowed, or there are fewer than two slides to draw from.
    """

    num_rows: int
    slides: Sequence[Any] | np.ndarray | None = None
    unit: str = "spots"
    level: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(
                f"unit is {self.unit!r}; allowed are {', '.join(UNITS)}. Choose what the interval shall speak of."
            )
        if not 0 < self.level < 1 or self.resamples < 1:
            raise ValueError(
                f"level is {self.level} and resamples {self.resamples}; allowed are 0 to 1, such as 0.95, and 1 or more."
            )
        if self.unit == "slides" and self.slides is None:
            raise ValueError("unit is 'slides' and slides is None; pass the slide of every row, or unit='spots'.")
        if self.unit == "slides" and len(self._members()) < 2:
            raise ValueError(
                f"there is one slide only ({self.slides[0]}), so slides cannot be drawn. "  # type: ignore[index]
                "Use unit='spots', and say that the interval holds for this slide."
            )

    def interval(self, statistic: Statistic) -> dict[str, Any]:
        """Interval of a statistic.

        Returns:
            value (of all rows), low, high, level, unit, resamples, and num_units: the spots or slides drawn from. Resamples in
            which the statistic is undefined are left out; low and high are NaN when that is all of them.
        """
        return self.interval_of(
            float(statistic(np.arange(self.num_rows))), np.array([statistic(rows) for rows in self.draws()])
        )

    def interval_of(self, value: float, resampled: np.ndarray) -> dict[str, Any]:
        """The same from values (resamples,) that were computed on `draws` elsewhere, all at once."""
        low, high = self._percentiles(resampled)
        return {"value": value, "low": low, "high": high, **self._facts(), "num_units": self._num_units()}

    def difference(self, first: Statistic, second: Statistic) -> dict[str, Any]:
        """Difference first - second of two models evaluated on the same rows and folds, resampled together.

        What both find easy or hard cancels, so the difference is known better than either number.

        Returns:
            difference (positive: the first is higher), low, high, p_value (two-sided: twice the smaller share of resamples
            on either side of 0, at least 1 / resamples), level, unit, resamples. An interval that holds 0 is no difference.
        """
        differences = np.array([first(rows) - second(rows) for rows in self.draws()])
        low, high = self._percentiles(differences)
        there = differences[~np.isnan(differences)]
        tail = min((there <= 0).mean(), (there >= 0).mean()) if len(there) else 0.5
        everyone = np.arange(self.num_rows)
        return {
            "difference": float(first(everyone) - second(everyone)),
            "low": low,
            "high": high,
            "p_value": float(min(1.0, max(2 * tail, 1 / self.resamples))),
            **self._facts(),
        }

    def draws(self) -> Iterator[np.ndarray]:
        """Row indices of each resample, made anew one after the other: a thousand of them would not fit for a large study."""
        generator = np.random.default_rng(self.seed)
        members = self._members()
        for _ in range(self.resamples):
            if self.unit == "spots":
                yield np.concatenate([rows[generator.integers(0, len(rows), len(rows))] for rows in members])
            else:
                yield np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))])

    def _members(self) -> list[np.ndarray]:
        """Rows of each slide, or all rows as of one."""
        if self.slides is None:
            return [np.arange(self.num_rows)]
        names = group_names(self.slides, self.num_rows, "slides")
        return [np.flatnonzero(names == name) for name in np.unique(names)]

    def _num_units(self) -> int:
        return self.num_rows if self.unit == "spots" else len(self._members())

    def _facts(self) -> dict[str, Any]:
        return {"level": self.level, "unit": self.unit, "resamples": self.resamples}

    def _percentiles(self, values: np.ndarray) -> tuple[float, float]:
        there = values[~np.isnan(values)]
        if not len(there):
            return float("nan"), float("nan")
        units = max(self._num_units(), 2)
        tail = norm.cdf(np.sqrt(units / (units - 1)) * t.ppf((1 - self.level) / 2, units - 1))
        low, high = np.quantile(there, [tail, 1 - tail])
        return float(low), float(high)
