"""Collect what protocols find: rows of metrics with intervals, paired comparisons, values per gene and per spot."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from ..model.feature_extraction_delst import log_normalize
from .evidence import Arm, Evaluation, Space, Spots
from .preparation import row_blocks
from .uncertainty import Bootstrap, Statistic

# With at least this many slides, intervals are over slides: fewer say too little about how slides vary.
MIN_SLIDES = 5
Row = dict[str, Any]


class Findings:
    """What protocols read, and the results that they add.

    Attributes:
        spots: The spots.
        arms: Name -> arm, baselines first.
        own: Names of the model's own arms. The first one represents the model in figures.
        space: The space of images and genes, None where the model has none.
        evaluation: Options of the evaluation.
        rows, comparisons, per_gene, skipped: The results, and the protocols that could not run.
        facts: Protocol -> facts that hold for all of its rows, such as its genes.
        per_spot: Name -> one value per spot.
        expression: The HEST prediction of the first own arm, for paired comparisons of two models.
    """

    def __init__(
        self, spots: Spots, arms: Sequence[Arm], space: Space | None = None, evaluation: Evaluation | None = None
    ):
        self.spots, self.space, self.evaluation = spots, space, evaluation or Evaluation()
        self.arms = {arm.name: arm for arm in arms}
        self.own = tuple(arm.name for arm in arms if arm.own)
        self.seed = self.evaluation.seeds[0]
        self.test_rows = np.flatnonzero(spots.test)
        self.unit = "slides" if len(np.unique(spots.slides[spots.test])) >= MIN_SLIDES else "spots"
        self.rows: list[Row] = []
        self.comparisons: list[Row] = []
        self.per_gene: list[Row] = []
        self.skipped: list[Row] = []
        self.facts: dict[str, dict[str, Any]] = {}
        self.per_spot: dict[str, np.ndarray] = {}
        self._bootstrap: tuple[np.ndarray, Bootstrap] | None = None
        self.expression: dict[str, Any] = {}

    @cached_property
    def log_expression(self) -> sparse.csr_matrix:
        """Log-normalised expression of all spots (spots, genes), at the library size of the model's processor.

        It shares its indices with the counts, to save memory.
        """
        counts, target_sum = self.spots.counts, self.spots.target_sum
        if not counts.has_canonical_format:
            return log_normalize(counts, target_sum)
        values = np.empty(counts.nnz, np.float32)
        for rows in row_blocks(counts):
            values[counts.indptr[rows.start] : counts.indptr[rows.stop]] = log_normalize(counts[rows], target_sum).data
        return sparse.csr_matrix((values, counts.indices, counts.indptr), counts.shape)

    def need_space(self) -> Space:
        """Return the space of images and genes.

        Raises:
            ValueError: If there is none; the suite then skips the protocol.
        """
        if self.space is None:
            raise ValueError("there are no gene embeddings")
        return self.space

    def add(
        self,
        protocol: str,
        arm: str,
        metrics: Mapping[str, float],
        statistics: Mapping[str, Statistic] | None = None,
        rows: np.ndarray | None = None,
        *,
        variant: str = "",
        own: bool | None = None,
        control: bool | None = None,
        intervals: Mapping[str, Row] | None = None,
        **facts: Any,
    ) -> None:
        """Add a row.

        Args:
            protocol: Name of the protocol.
            arm: What was scored: the name of one of `arms`, of the space or of a signature.
            metrics: Metric -> number, beside the values of `statistics`.
            statistics: The metrics that get an interval, each as a function of positions in `rows`.
            rows: The spots behind these metrics; by default all that are scored.
            variant: Variant of the protocol.
            own: Whether the arm is the model's own; by default as `arms` says.
            control: Whether its pairs were shuffled, so that it must score at chance; by default as `arms` says.
            intervals: Metric -> interval, where it is already computed.
            **facts: Further entries of the row, such as `slide` if it is of one slide.
        """
        known = self.arms.get(arm)
        computed = dict(intervals or {})
        if statistics:
            bootstrap = self.bootstrap(self.test_rows if rows is None else rows)
            computed |= {key: bootstrap.interval(statistic) for key, statistic in statistics.items()}
            metrics = {**{key: computed[key]["value"] for key in statistics}, **metrics}
        self.rows.append(
            {
                "protocol": protocol,
                "variant": variant,
                "arm": arm,
                "own": bool(known and known.own) if own is None else own,
                "control": bool(known and known.control) if control is None else control,
                **facts,
                "metrics": dict(metrics),
                "intervals": computed,
            }
        )

    def bootstrap(self, rows: np.ndarray) -> Bootstrap:
        """Return the bootstrap over positions in `rows`, the rows of some spots; the last one is cached with its values."""
        if self._bootstrap is None or not np.array_equal(self._bootstrap[0], rows):
            slides = self.spots.slides[rows]
            unit = self.unit if len(np.unique(slides)) >= MIN_SLIDES else "spots"
            drawn = Bootstrap(len(rows), slides, unit=unit, resamples=self.evaluation.resamples, seed=self.seed)
            self._bootstrap = np.array(rows), drawn
        return self._bootstrap[1]

    def compare(
        self,
        protocol: str,
        metric: str,
        statistics: Mapping[str, Statistic],
        rows: np.ndarray,
        variant: str = "",
        own: Sequence[str] | None = None,
    ) -> None:
        """Compare each of the model's arms, or those named by `own`, with every other arm, on the same rows."""
        own = self.own if own is None else own
        bootstrap, everyone = self.bootstrap(rows), np.arange(len(rows))
        values = {arm: float(statistic(everyone)) for arm, statistic in statistics.items()}
        drawn = {arm: bootstrap.resampled(statistic) for arm, statistic in statistics.items()}
        names = {"protocol": protocol, "variant": variant, "metric": metric}
        for ours in own:
            for other in statistics:
                if ours in statistics and other not in own:
                    difference = bootstrap.difference_of(values[ours] - values[other], drawn[ours] - drawn[other])
                    if np.isnan([difference["difference"], difference["low"]]).any():
                        continue  # no gene varies on a single spot: nothing to compare
                    self.comparisons.append({**names, "first": ours, "second": other, **difference})

    def keep(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Keep one value per spot of `rows`: strings, with None for all other spots, or numbers, with NaN for them."""
        text = values.dtype.kind in "OU"
        full = np.full(len(self.spots.slides), None if text else np.nan, dtype=object if text else float)
        full[rows] = values
        self.per_spot[name] = full

    def skip(self, protocol: str, reason: str) -> None:
        """Record why a protocol was not run."""
        self.skipped.append({"protocol": protocol, "reason": reason})
