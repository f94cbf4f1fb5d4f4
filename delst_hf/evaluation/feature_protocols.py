"""Protocols that read features, of any model: labels, expression and spatial domains.

Whatever is fitted is fitted on spots outside the group that is scored, and only test spots are scored.
"""

from typing import Any

import numpy as np

from ..model.normalization import log_normalize
from .expression import most_variable_genes
from .findings import Rows
from .preparation import missing_rows, nanmean
from .protocols.domains import centred_intervals, domain_statistics, spatial_domains
from .protocols.hest import HEST_GENES, ExpressionResult, expression_protocol, hest_genes
from .protocols.probes import label_probe
from .protocols.stimage1k4m import stimage1k4m_predictions
from .resampled import f1_statistic, fold_pearson, pearson_statistic, recall_statistic, within_slides
from .uncertainty import Bootstrap, Statistic

STIMAGE_LEAST = 50  # labelled spots: a tenth of them tests
MAX_PAIRED_SPOTS = 20_000  # beyond, predictions by gene would make the results too large
HEST_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"alpha": "cv"}, {"pcc": "per_slide"}, {"pca": None})


def probes(found: Rows) -> None:
    """Linear, kNN and hyperbolic nearest-prototype probe, each group predicted from the others."""
    spots, space = found.spots, found.space
    if not spots.labelled:
        return found.skip("probes", "no two labels among the spots")
    groups, split = spots.groups
    runs: list[tuple[str, str, np.ndarray, dict[str, Any]]] = [
        (arm, "linear", values, {}) for arm, values in found.features.items()
    ]
    runs += [(arm, "knn", values, {"geometry": "cosine"}) for arm, values in found.features.items()]
    if space is not None:
        geometry = {"geometry": space.geometry, "curvature": space.curvature}
        runs = [run for run in runs if run[:2] != (space.arm, "knn")] + [(space.arm, "knn", space.image, geometry)]
        if space.geometry == "lorentz":
            runs.append((space.arm, "prototype", space.image, geometry))
    statistics: dict[str, dict[str, Statistic]] = {}
    for arm, probe, values, options in runs:
        scores, predicted = label_probe(
            values, spots.labels, groups, split=split, probe=probe, seed=found.seed, test=spots.test, **options
        )
        rows = np.flatnonzero(~missing_rows(predicted))
        truth, answer = spots.labels[rows].astype(str), predicted[rows].astype(str)
        whole = {"macro_f1": f1_statistic(truth, answer), "balanced_accuracy": recall_statistic(truth, answer)}
        statistics.setdefault(probe, {})[arm] = whole["macro_f1"]
        for slide in np.unique(spots.slides[rows]):
            scores[f"macro_f1_on_{slide}"] = whole["macro_f1"](np.flatnonzero(spots.slides[rows] == slide))
        found.add(f"{probe}_probe", arm, scores, whole, rows, split=split)
        if arm in found.own:
            found.keep(f"predicted:{probe}:{arm}", np.arange(len(predicted)), predicted)
    for probe, by_arm in statistics.items():
        found.compare(f"{probe}_probe", "macro_f1", by_arm, rows)


def stimage1k4m(found: Rows) -> None:
    """The linear probe of STimage-1K4M on its own split by spot."""
    test = found.spots.test
    labelled = int((~missing_rows(found.spots.labels[test])).sum())
    if not found.spots.labelled or labelled < STIMAGE_LEAST:
        return found.skip("stimage1k4m", f"{labelled} labelled spots of two classes or more; it needs {STIMAGE_LEAST}")
    for arm, values in found.features.items():
        scores, truth, answer, splits = stimage1k4m_predictions(values[test], found.spots.labels[test])
        # Each of the five test sets is resampled by itself.
        statistic = within_slides(f1_statistic(truth, answer, everywhere=True), splits)
        bootstrap = Bootstrap(len(truth), splits, resamples=found.resamples, seed=found.seed)
        interval = {"macro_f1_mean": bootstrap.interval(statistic)}
        note = "neighbouring spots leak; the sd is over five splits"
        found.add("stimage1k4m", arm, scores, intervals=interval, split="spot", note=note)


def hest(found: Rows) -> None:
    """HEST-Benchmark's expression prediction and its variants."""
    spots, rows = found.spots, found.test_rows
    groups, split = spots.groups
    genes = _target_genes(found)
    position = {name: index for index, name in enumerate(spots.genes)}
    targets = np.log1p(spots.counts[:, [position[name] for name in genes]].toarray().astype(np.float64))
    measured, statistics = targets[rows], {}
    for arm, values in found.features.items():
        for variant in HEST_VARIANTS:
            result = expression_protocol(
                values, targets, genes, groups, slides=spots.slides, test=spots.test, **variant
            )
            parts = spots.slides if variant.get("pcc") == "per_slide" else groups
            statistic = pearson_statistic(result.predicted[rows], measured, groups[rows], parts[rows])
            metrics = {**result.metrics, **_by_slide(result, measured, spots.slides[rows], rows)}
            found.add(result.name, arm, metrics, {"pearson_mean": statistic}, rows, split=split, genes=result.genes)
            if variant.get("alpha") == "cv":
                statistics[arm] = statistic
                if arm in found.own:
                    _keep_genes(found, arm, result, measured, groups[rows])
    found.compare("hest[alpha=cv]", "pearson_mean", statistics, rows)


def domains(found: Rows) -> None:
    """Clusters of embeddings against labels and against the layout of the tissue."""
    spots, rows = found.spots, found.test_rows
    labels = spots.labels[rows] if spots.labelled else None
    arrays = (spots.positions[rows], spots.slides[rows])
    arms = dict(found.features)
    if found.space is not None:
        arms[f"{found.space.name} gene embedding"] = found.space.tangent(found.space.gene)
    for arm, every in arms.items():
        values = np.asarray(every[rows], dtype=np.float64)
        scores, answer = spatial_domains(values, *arrays, labels, method=found.domain_method, seed=found.seed)
        statistics = domain_statistics(values, *arrays, labels, answer)
        intervals = centred_intervals(values, labels, answer, found.bootstrap(rows))
        found.add("domains", arm, scores, statistics, rows, intervals=intervals, method=found.domain_method)
        if arm == found.own[-1]:
            found.keep("domain", rows, np.array([f"domain {number + 1}" for number in answer], dtype=object))


def _target_genes(found: Rows) -> list[str]:
    """HEST's choice on spots that are not scored; the most variable genes where a panel or a slide is too shallow for it."""
    spots = found.spots
    counts, slides = spots.counts[spots.reference], spots.slides[spots.reference]
    try:
        return hest_genes(counts, slides, spots.genes, HEST_GENES)
    except ValueError:
        number = min(HEST_GENES, counts.shape[1])
        return sorted(spots.genes[i] for i in most_variable_genes(log_normalize(counts), number))


def _by_slide(result: ExpressionResult, measured: np.ndarray, slides: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Mean Pearson within each slide that is scored."""
    scores = {}
    for slide in np.unique(slides):
        part = slides == slide
        by_gene = fold_pearson(result.predicted[rows[part]], measured[part], slides[part])
        scores[f"pearson_on_{slide}"] = float(nanmean(by_gene))
    return scores


def _keep_genes(found: Rows, arm: str, result: ExpressionResult, measured: np.ndarray, groups: np.ndarray) -> None:
    """Pearson of each gene with its interval; of the first own arm also the predictions, and the best gene for the map."""
    predicted = result.predicted[found.test_rows]
    bootstrap = found.bootstrap(found.test_rows)
    scores = fold_pearson(predicted, measured, groups)
    draws = np.array([fold_pearson(predicted[rows], measured[rows], groups[rows]) for rows in bootstrap.draws()])
    for i, gene in enumerate(result.genes):
        if np.isfinite(scores[i]):
            interval = bootstrap.interval_of(float(scores[i]), draws[:, i])
            row = {"pearson": interval["value"], "low": interval["low"], "high": interval["high"]}
            found.per_gene.append({"arm": arm, "gene": gene, **row})
    if arm != found.own[0] or not np.isfinite(scores).any():
        return
    best = int(np.nanargmax(scores))
    found.keep(f"gene:measured:{result.genes[best]}", found.test_rows, measured[:, best])
    found.keep(f"gene:predicted:{result.genes[best]}", found.test_rows, predicted[:, best])
    if len(predicted) <= MAX_PAIRED_SPOTS:
        found.expression = {
            "protocol": result.name,
            "arm": arm,
            "genes": result.genes,
            "groups": groups.tolist(),
            "measured": measured.round(4).tolist(),
            "predicted": predicted.round(4).tolist(),
        }
