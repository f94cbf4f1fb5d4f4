"""Protocols that read a space of images and genes: retrieval, imputation, zero-shot maps and the hierarchy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..model.normalization import log_normalize
from .expression import most_variable_genes
from .findings import Rows
from .preparation import missing_rows
from .protocols.hierarchy import hierarchy_report, hierarchy_statistics
from .protocols.signatures import imputation_scores, impute_by_retrieval, region_auroc, signature_map
from .resampled import auroc_statistic, mean_statistic, median_statistic, pearson_statistic, within_slides
from .retrieval import retrieval_scores, sampled_queries, summary
from .uncertainty import Statistic

MAX_QUERIES = 20_000  # of a larger pool a random sample is ranked, against all of it
IMPUTED_GENES = 100
SCORED_BY_RANK = ("recall@1", "recall@5", "recall@10")


def retrieval(found: Rows) -> None:
    """Both directions, over all test spots and within the slide of the query, beside shuffled pairs."""
    space, rows = found.space, found.test_rows
    if space is None:
        return found.skip("retrieval", "there are no gene embeddings")
    image, gene, slides = space.image[rows], space.gene[rows], found.spots.slides[rows]
    queries = sampled_queries(len(rows), MAX_QUERIES, found.seed)
    order = np.random.default_rng(found.seed).permutation(len(rows))
    for arm, targets in ((space.name, gene), (f"{space.name}, shuffled pairs", gene[order])):
        for protocol, pools in (("retrieval", None), ("retrieval_within", slides)):
            metrics: dict[str, float] = {}
            statistics: dict[str, Statistic] = {}
            for name, left, right in (("image_to_gene", image, targets), ("gene_to_image", targets, image)):
                scores = _scores(left, right, pools, queries, found)
                numbers, functions = _by_query(scores, None if pools is None else pools[scores["query"]])
                metrics |= {f"{name}_{key}": value for key, value in numbers.items()}
                statistics |= {f"{name}_{key}": value for key, value in functions.items()}
                if pools is None and arm == space.name:
                    found.keep(f"rank:{name}", rows[queries], scores["rank"])
            pool = "all test spots" if pools is None else "the query's slide"
            found.add(protocol, arm, metrics | _chance(slides, pools, queries), statistics, rows[queries], pool=pool)


def _scores(
    left: np.ndarray, right: np.ndarray, pools: np.ndarray | None, queries: np.ndarray, found: Rows
) -> dict[str, np.ndarray]:
    """`retrieval_scores` of the queries, each within its pool, in the order of the queries."""
    space = found.space
    options: dict[str, Any] = {"similarity": space.geometry, "curvature": space.curvature, "seed": found.seed}  # type: ignore[union-attr]
    if pools is None:
        return retrieval_scores(left, right, num_queries=MAX_QUERIES, **options)
    parts = []
    for pool in np.unique(pools):
        rows = np.flatnonzero(pools == pool)
        scores = retrieval_scores(left[rows], right[rows], **options)
        parts.append({**scores, "query": rows})
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["query"])
    return {key: values[order][queries] for key, values in joined.items()}


def _by_query(
    scores: Mapping[str, np.ndarray], pools: np.ndarray | None
) -> tuple[dict[str, float], dict[str, Statistic]]:
    """Metrics, and each as a function of resampled queries; the median within slides is the mean of the slides' medians."""
    statistics: dict[str, Statistic] = {key: mean_statistic(scores[key]) for key in (*SCORED_BY_RANK, "mrr")}
    statistics["mean_rank"] = mean_statistic(scores["rank"])
    median = median_statistic(scores["rank"])
    statistics["median_rank"] = median if pools is None else within_slides(median, pools)
    everyone = np.arange(len(scores["rank"]))
    return {**summary(scores), "median_rank": statistics["median_rank"](everyone)}, statistics


def _chance(slides: np.ndarray, pools: np.ndarray | None, queries: np.ndarray) -> dict[str, float]:
    """What a model that knows nothing gets, averaged over queries."""
    sizes = np.full(len(slides), len(slides))
    if pools is not None:
        _, numbers, counts = np.unique(pools, return_inverse=True, return_counts=True)
        sizes = counts[numbers]
    sizes = sizes[queries]
    chance = {f"chance_recall@{k}": float(np.minimum(1.0, k / sizes).mean()) for k in (1, 5, 10)}
    facts = {"pool_size": float(sizes.mean()), "num_queries": float(len(queries))}
    return facts | chance | {"chance_median_rank": float((sizes.mean() + 1) / 2)}


def imputation(found: Rows) -> None:
    """Expression of an image as that of the spots whose genes lie nearest to it, beside shuffled pairs."""
    space, spots, rows = found.space, found.spots, found.test_rows
    if space is None:
        return found.skip("imputation", "there are no gene embeddings")
    expression = log_normalize(spots.counts)
    columns = most_variable_genes(expression[spots.reference], min(IMPUTED_GENES, expression.shape[1]))
    expression = expression[:, columns].toarray()
    for arm, shuffle in ((space.name, False), (f"{space.name}, shuffled pairs", True)):
        predicted = np.full(expression.shape, np.nan)
        for fit, scored in spots.folds:
            known = expression[fit]
            known = known[np.random.default_rng(found.seed).permutation(len(fit))] if shuffle else known
            predicted[scored] = impute_by_retrieval(
                space.image[scored], space.gene[fit], known, space.geometry, space.curvature
            )
        scores = imputation_scores(predicted[rows], expression[rows], spots.slides[rows])
        one = np.zeros(len(rows))
        statistics = {
            "imputation_pearson": pearson_statistic(predicted[rows], expression[rows], one),
            "imputation_pearson_within": pearson_statistic(predicted[rows], expression[rows], spots.slides[rows]),
        }
        found.add("imputation", arm, scores, statistics, rows, k=20, genes=[spots.genes[i] for i in columns])


def signatures(found: Rows) -> None:
    """Zero-shot maps, and with labels how well each finds its region and every other."""
    space, spots = found.space, found.spots
    if space is None or not space.signatures:
        reason = (
            "there are no gene embeddings"
            if space is None
            else "no signature was given and no training spot has a label"
        )
        return found.skip("signatures", reason)
    known = np.flatnonzero(spots.test & ~missing_rows(spots.labels))
    for name, embeds in space.signatures.items():
        scores = signature_map(embeds[None], space.image, space.geometry, space.curvature, space.mean_profile)[:, 0]
        found.keep(f"signature:{name}", found.test_rows, scores[found.test_rows])
        if not len(known):
            continue
        by_label = region_auroc(scores[known], spots.labels[known])
        metrics = {f"auroc_of_{label}": value for label, value in by_label.items()}
        region = space.regions.get(name)
        wanted = {label: f"auroc_of_{label}" for label in by_label}
        if region in by_label:
            metrics["auroc"], wanted[""] = by_label[region], "auroc"  # type: ignore[index]
        statistics = {
            key: auroc_statistic(scores[known], spots.labels[known], label or str(region))
            for label, key in wanted.items()
        }
        if metrics:
            found.add("zero_shot", name, metrics, statistics, known, region=region)


def hierarchy(found: Rows) -> None:
    """What the order of the space is made of, slide by slide and over all."""
    space, spots = found.space, found.spots
    if space is None or space.geometry != "lorentz":
        return found.skip("hierarchy", "only a Lorentz space has one")
    genes, totals = np.diff(spots.counts.indptr).astype(float), np.asarray(spots.counts.sum(axis=1)).reshape(-1)
    slides = list(np.unique(spots.slides[spots.test]))
    for slide in [*(slides if len(slides) > 1 else []), None]:
        rows = np.flatnonzero(spots.test if slide is None else spots.test & (spots.slides == slide))
        if len(rows) < 3:
            found.skip("hierarchy", f"slide {slide} has {len(rows)} spots")
            continue
        arrays: dict[str, Any] = {"num_genes": genes[rows], "total_counts": totals[rows], "slides": spots.slides[rows]}
        options: dict[str, Any] = {"labels": spots.labels[rows], "parent": space.parent, "min_radius": space.min_radius}
        image, gene, curvature = space.image[rows], space.gene[rows], float(space.curvature)  # type: ignore[arg-type]
        scores = hierarchy_report(
            image, gene, curvature, **arrays, **options, curvature_bounds=space.curvature_bounds, seed=found.seed
        )
        statistics = hierarchy_statistics(image, gene, curvature, **arrays, **options) if slide is None else {}
        where = "all test slides" if slide is None else str(slide)
        found.add("hierarchy", space.name, scores, statistics, rows, slide=where)
