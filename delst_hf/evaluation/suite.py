"""Every protocol on one set of embeddings: arrays in, rows of numbers with intervals out, and what a report draws.

Whatever is fitted is fitted on spots outside the group that is scored, and only test spots are scored: slides that the model
has not seen. Intervals are bootstrapped over slides where there are at least `MIN_SLIDES` test slides, else over spots.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .domains import spatial_domains
from .evidence import Space, Spots
from .expression import log_normalize, most_variable_genes
from .expression_protocols import HEST_GENES, expression_protocol, hest_genes
from .hierarchy_report import hierarchy_report
from .preparation import missing_rows
from .probes import label_probe
from .retrieval import bidirectional_retrieval, retrieval_ranks, retrieval_within
from .signatures import imputation_scores, impute_by_retrieval, region_auroc, signature_map
from .stimage1k4m import stimage1k4m_probe
from .uncertainty import (
    Statistic,
    auroc_statistic,
    bootstrap_interval,
    f1_statistic,
    fold_pearson,
    mean_statistic,
    paired_comparison,
    pearson_statistic,
)

SUITE = ("probes", "stimage1k4m", "hest", "retrieval", "imputation", "signatures", "domains", "hierarchy")
MIN_SLIDES = 5
EMBEDDING = "DELST embedding"
BACKBONE = "DELST backbone"
Row = dict[str, Any]


class Suite:
    """Runs protocols and keeps their rows, paired comparisons and per-spot values."""

    def __init__(
        self, spots: Spots, features: Mapping[str, np.ndarray], space: Space, seed: int = 0, resamples: int = 1000
    ):
        self.spots, self.features, self.space, self.seed, self.resamples = spots, features, space, seed, resamples
        self.rows: list[Row] = []
        self.comparisons: list[Row] = []
        self.per_gene: list[Row] = []
        self.per_spot: dict[str, np.ndarray] = {}
        test_slides = np.unique(spots.slides[spots.test])
        self.unit = "slides" if len(test_slides) >= MIN_SLIDES else "spots"
        self.test_rows = np.flatnonzero(spots.test)

    def run(self, protocols: Sequence[str] = SUITE) -> "Suite":
        """Run the protocols named, those of labels only where there are labels, the hierarchy only for "lorentz".

        Raises:
            ValueError: if a protocol is not known.
        """
        unknown = [name for name in protocols if name not in SUITE]
        if unknown:
            raise ValueError(f"protocols {unknown} are not known; allowed are {', '.join(SUITE)}. Name some of them.")
        for name in SUITE:
            if name in protocols:
                getattr(self, f"_{name}")()
        return self

    def _add(
        self,
        protocol: str,
        arm: str,
        metrics: Mapping[str, float],
        intervals: Mapping[str, Row] | None = None,
        **facts: Any,
    ) -> None:
        self.rows.append(
            {"protocol": protocol, "arm": arm, **facts, "metrics": dict(metrics), "intervals": intervals or {}}
        )

    def _interval(self, statistic: Statistic, rows: np.ndarray) -> Row:
        """Bootstrap of a statistic of positions in `rows`, which are spots."""
        return bootstrap_interval(
            statistic,
            len(rows),
            unit=self.unit,
            slides=self.spots.slides[rows],
            resamples=self.resamples,
            seed=self.seed,
        )

    def _compare(self, protocol: str, metric: str, statistics: Mapping[str, Statistic], rows: np.ndarray) -> None:
        """The checkpoint's arms against every other arm, on the same rows."""
        for ours in (BACKBONE, EMBEDDING):
            for other in statistics:
                if ours in statistics and other not in (BACKBONE, EMBEDDING):
                    found = paired_comparison(
                        statistics[ours],
                        statistics[other],
                        len(rows),
                        unit=self.unit,
                        slides=self.spots.slides[rows],
                        resamples=self.resamples,
                        seed=self.seed,
                    )
                    self.comparisons.append(
                        {"protocol": protocol, "metric": metric, "first": ours, "second": other, **found}
                    )

    def _probes(self) -> None:
        if not self.spots.labelled:
            return
        groups, split = self.spots.groups
        statistics: dict[str, dict[str, Statistic]] = {}
        runs: list[tuple[str, str, np.ndarray, dict[str, Any]]] = [
            (arm, "linear", values, {}) for arm, values in self.features.items()
        ]
        geometry = {"geometry": self.space.geometry, "curvature": self.space.curvature}
        runs.append((EMBEDDING, "knn", self.space.image, geometry))
        if BACKBONE in self.features:
            runs.append((BACKBONE, "knn", self.features[BACKBONE], {"geometry": "cosine"}))
        if self.space.geometry == "lorentz":
            runs.append((EMBEDDING, "prototype", self.space.image, geometry))
        known = np.flatnonzero(self.spots.test & ~missing_rows(self.spots.labels))
        for arm, probe, values, options in runs:
            scores, predicted = label_probe(
                values,
                self.spots.labels,
                groups,
                split=split,
                probe=probe,
                seed=self.seed,
                test=self.spots.test,
                **options,
            )
            done = known[predicted[known] != None]  # noqa: E711, elementwise
            truth, answer = self.spots.labels[done].astype(str), predicted[done].astype(str)
            statistic = f1_statistic(truth, answer)
            statistics.setdefault(probe, {})[arm] = statistic
            self.per_spot[f"predicted:{probe}:{arm}"] = predicted
            self._add(f"{probe}_probe", arm, scores, {"macro_f1": self._interval(statistic, done)}, split=split)
        self._compare("linear_probe", "macro_f1", statistics["linear"], done)

    def _stimage1k4m(self) -> None:
        test = self.spots.test
        if not self.spots.labelled or (~missing_rows(self.spots.labels[test])).sum() < 50:
            return
        for arm, values in self.features.items():
            scores = stimage1k4m_probe(values[test], self.spots.labels[test])
            self._add(
                "stimage1k4m", arm, scores, split="spot", note="neighbouring spots leak; the sd is over five splits"
            )

    def _hest(self) -> None:
        groups, split = self.spots.groups
        counts, train = self.spots.counts, ~self.spots.test
        try:
            genes = hest_genes(counts[train], self.spots.slides[train], self.spots.genes, HEST_GENES)
        except ValueError:  # a small panel or a shallow slide: the most variable genes there are
            number = min(HEST_GENES, counts.shape[1])
            genes = [self.spots.genes[i] for i in most_variable_genes(log_normalize(counts[train]), number)]
        position = {name: index for index, name in enumerate(self.spots.genes)}
        targets = np.log1p(counts[:, [position[name] for name in genes]].toarray().astype(np.float64))
        variants: list[dict[str, Any]] = [{}, {"alpha": "cv"}, {"pcc": "per_slide"}, {"pca": None}]
        statistics: dict[str, Statistic] = {}
        measured = targets[self.test_rows]
        for arm, values in self.features.items():
            for variant in variants:
                found = expression_protocol(
                    values, targets, genes, groups, slides=self.spots.slides, test=self.spots.test, **variant
                )
                intervals = {}
                if not variant or variant == {"alpha": "cv"}:
                    statistic = pearson_statistic(found.predicted[self.test_rows], measured, groups[self.test_rows])
                    intervals["pearson_mean"] = self._interval(statistic, self.test_rows)
                    if variant:
                        statistics[arm] = statistic
                        self._per_gene(
                            arm, found.genes, found.predicted[self.test_rows], measured, groups[self.test_rows]
                        )
                self._add(found.name, arm, found.metrics, intervals, split=split, genes=found.genes)
        self._compare("hest[alpha=cv]", "pearson_mean", statistics, self.test_rows)

    def _per_gene(
        self, arm: str, genes: list[str], predicted: np.ndarray, measured: np.ndarray, groups: np.ndarray
    ) -> None:
        """Pearson of each gene with its interval, and the prediction of the best one for the map."""
        scores = fold_pearson(predicted, measured, groups)
        generator = np.random.default_rng(self.seed)
        draws = np.array(
            [
                fold_pearson(predicted[rows], measured[rows], groups[rows])
                for rows in (
                    generator.integers(0, len(measured), len(measured)) for _ in range(min(200, self.resamples))
                )
            ]
        )
        low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
        for i, gene in enumerate(genes):
            if np.isfinite(scores[i]):
                self.per_gene.append(
                    {
                        "arm": arm,
                        "gene": gene,
                        "pearson": float(scores[i]),
                        "low": float(low[i]),
                        "high": float(high[i]),
                    }
                )
        if arm == BACKBONE and np.isfinite(scores).any():
            best = int(np.nanargmax(scores))
            for kind, values in (("measured", measured), ("predicted", predicted)):
                full = np.full(len(self.spots.slides), np.nan)
                full[self.test_rows] = values[:, best]
                self.per_spot[f"gene:{kind}:{genes[best]}"] = full

    def _retrieval(self) -> None:
        space, test = self.space, self.spots.test
        image, gene, slides = space.image[test], space.gene[test], self.spots.slides[test]
        order = np.random.default_rng(self.seed).permutation(len(image))
        for arm, targets in (("DELST", gene), ("DELST, shuffled pairs", gene[order])):
            pool = bidirectional_retrieval(image, targets, space.geometry, space.curvature)
            intervals = {}
            for name, left, right in (("image_to_gene", image, targets), ("gene_to_image", targets, image)):
                ranks = retrieval_ranks(left, right, similarity=space.geometry, curvature=space.curvature)
                intervals[f"{name}_recall@10"] = self._interval(mean_statistic(ranks <= 10), self.test_rows)
                intervals[f"{name}_mean_rank"] = self._interval(mean_statistic(ranks), self.test_rows)
                if arm == "DELST":
                    full = np.full(len(test), np.nan)
                    full[self.test_rows] = ranks
                    self.per_spot[f"rank:{name}"] = full
            self._add("retrieval", arm, pool, intervals, pool="all test spots")
            within = retrieval_within(image, targets, slides, space.geometry, space.curvature)
            self._add("retrieval_within", arm, within, pool="the query's slide")

    def _imputation(self) -> None:
        train, test = np.flatnonzero(~self.spots.test), self.test_rows
        expression = log_normalize(self.spots.counts)
        columns = most_variable_genes(expression[train], min(100, expression.shape[1]))
        known, measured = expression[train][:, columns].toarray(), expression[test][:, columns].toarray()
        order = np.random.default_rng(self.seed).permutation(len(train))
        for arm, rows in (("DELST", known), ("DELST, shuffled pairs", known[order])):
            predicted = impute_by_retrieval(
                self.space.image[test], self.space.gene[train], rows, self.space.geometry, self.space.curvature
            )
            scores = imputation_scores(predicted, measured, self.spots.slides[test])
            statistic = pearson_statistic(predicted, measured, np.zeros(len(test)))
            self._add("imputation", arm, scores, {"imputation_pearson": self._interval(statistic, test)}, k=20)

    def _signatures(self) -> None:
        for name, embeds in self.space.signatures.items():
            scores = signature_map(
                embeds[None], self.space.image, self.space.geometry, self.space.curvature, self.space.mean_profile
            )[:, 0]
            self.per_spot[f"signature:{name}"] = np.where(self.spots.test, scores, np.nan)
            known = np.flatnonzero(self.spots.test & ~missing_rows(self.spots.labels))
            region = self.space.regions.get(name)
            if region is None or not len(known):
                continue
            found = region_auroc(scores[known], self.spots.labels[known])
            if region in found:
                statistic = auroc_statistic(scores[known], self.spots.labels[known], region)
                metrics = {"auroc": found[region]}
                self._add("zero_shot", name, metrics, {"auroc": self._interval(statistic, known)}, region=region)

    def _domains(self) -> None:
        test = self.spots.test
        arrays = (self.spots.positions[test], self.spots.slides[test])
        labels = self.spots.labels[test] if self.spots.labelled else None
        for arm, values in {**self.features, "DELST gene embedding": self.space.tangent(self.space.gene)}.items():
            scores, domains = spatial_domains(values[test], *arrays, labels, seed=self.seed)
            self._add("domains", arm, scores, method="kmeans")
            if arm == EMBEDDING:
                full = np.full(len(test), None, dtype=object)
                full[self.test_rows] = [f"domain {domain + 1}" for domain in domains]
                self.per_spot["domain"] = full

    def _hierarchy(self) -> None:
        if self.space.geometry != "lorentz":
            return
        counts, test = self.spots.counts, self.spots.test
        genes, totals = np.diff(counts.indptr).astype(float), np.asarray(counts.sum(axis=1)).reshape(-1)
        for slide in [*np.unique(self.spots.slides[test]), None]:
            rows = test if slide is None else test & (self.spots.slides == slide)
            scores = hierarchy_report(
                self.space.image[rows],
                self.space.gene[rows],
                float(self.space.curvature),  # type: ignore[arg-type]
                num_genes=genes[rows],
                total_counts=totals[rows],
                slides=self.spots.slides[rows],
                labels=self.spots.labels[rows],
                curvature_bounds=self.space.curvature_bounds,
                parent=self.space.parent,
                min_radius=self.space.min_radius,
                seed=self.seed,
            )
            self._add("hierarchy", "DELST", scores, slide="all test slides" if slide is None else str(slide))
