"""Where protocols put what they find: rows of metrics with intervals, paired comparisons, values by gene and by spot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .evidence import Space, Spots
from .uncertainty import Bootstrap, Statistic

# From so many slides on, intervals are over slides: fewer say too little of how slides vary.
MIN_SLIDES = 5
Row = dict[str, Any]


class Rows:
    """What is evaluated, and what was found so far.

    Attributes:
        spots: The spots.
        features: Arm -> features (spots, columns).
        own: The arms that are the model's own; the others are baselines. The first stands for it in pictures.
        space: The space of images and genes, None where the model has none.
        seed: Of clusterings, probes, controls and resamples.
        resamples: Of every interval.
        domain_method: "kmeans" or "leiden".
        rows, comparisons, per_gene, skipped: What was found, and what could not be.
        per_spot: Name -> one value a spot.
        expression: The HEST prediction of the first own arm, so that two models can be paired.
    """

    def __init__(
        self,
        spots: Spots,
        features: Mapping[str, np.ndarray],
        own: Sequence[str],
        space: Space | None = None,
        *,
        seed: int = 0,
        resamples: int = 1000,
        domain_method: str = "kmeans",
    ):
        self.spots, self.features, self.own, self.space = spots, features, tuple(own), space
        self.seed, self.resamples, self.domain_method = seed, resamples, domain_method
        self.test_rows = np.flatnonzero(spots.test)
        self.unit = "slides" if len(np.unique(spots.slides[spots.test])) >= MIN_SLIDES else "spots"
        self.rows: list[Row] = []
        self.comparisons: list[Row] = []
        self.per_gene: list[Row] = []
        self.skipped: list[Row] = []
        self.per_spot: dict[str, np.ndarray] = {}
        self.expression: dict[str, Any] = {}

    def add(
        self,
        protocol: str,
        arm: str,
        metrics: Mapping[str, float],
        statistics: Mapping[str, Statistic] | None = None,
        rows: np.ndarray | None = None,
        *,
        intervals: Mapping[str, Row] | None = None,
        **facts: Any,
    ) -> None:
        """Add a row.

        Args:
            protocol, arm: Its name.
            metrics: Flat numbers.
            statistics: For the metrics that are to have an interval, the metric as a function of positions in `rows`.
            rows: The spots behind these metrics.
            intervals: Those that are known already.
            **facts: Whatever else belongs into the row.
        """
        found = dict(intervals or {})
        if statistics:
            bootstrap = self.bootstrap(self.test_rows if rows is None else rows)
            found |= {name: bootstrap.interval(statistic) for name, statistic in statistics.items() if name in metrics}
        self.rows.append({"protocol": protocol, "arm": arm, **facts, "metrics": dict(metrics), "intervals": found})

    def bootstrap(self, rows: np.ndarray) -> Bootstrap:
        """Resamples of positions in `rows`, which are spots."""
        slides = self.spots.slides[rows]
        unit = self.unit if len(np.unique(slides)) >= MIN_SLIDES else "spots"
        return Bootstrap(len(rows), slides, unit=unit, resamples=self.resamples, seed=self.seed)

    def compare(self, protocol: str, metric: str, statistics: Mapping[str, Statistic], rows: np.ndarray) -> None:
        """The model's arms against every other arm, on the same rows."""
        bootstrap = self.bootstrap(rows)
        for ours in self.own:
            for other in statistics:
                if ours in statistics and other not in self.own:
                    found = bootstrap.difference(statistics[ours], statistics[other])
                    self.comparisons.append(
                        {"protocol": protocol, "metric": metric, "first": ours, "second": other, **found}
                    )

    def keep(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Keep a value of the spots `rows`: strings, or numbers with NaN for all others."""
        text = values.dtype.kind in "OU"
        full = np.full(len(self.spots.slides), None if text else np.nan, dtype=object if text else float)
        full[rows] = values
        self.per_spot[name] = full

    def skip(self, protocol: str, reason: str) -> None:
        """Say why a protocol was not run."""
        self.skipped.append({"protocol": protocol, "reason": reason})
