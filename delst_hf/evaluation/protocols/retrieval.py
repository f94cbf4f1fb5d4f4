"""Retrieval in both directions, over all test spots and within the slide of the query, beside shuffled pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..findings import Findings
from ..resampled import mean_statistic, median_statistic, within_slides
from ..retrieval import retrieval_scores, sampled_queries
from ..uncertainty import Statistic
from . import Protocol

MAX_QUERIES = 20_000  # a larger pool is searched by a random sample of its queries
SCORED_BY_RANK = ("recall@1", "recall@5", "recall@10")


def run(findings: Findings) -> None:
    """Score retrieval over all test spots and within the slide of the query, also slide by slide, beside shuffled pairs."""
    space, rows = findings.need_space(), findings.test_rows
    image, gene, slides = space.image[rows], space.gene[rows], findings.spots.slides[rows]
    queries = sampled_queries(len(rows), MAX_QUERIES, findings.seed)
    order = np.random.default_rng(findings.seed).permutation(len(rows))
    for arm, targets, shuffled in ((space.name, gene, False), (f"{space.name}, shuffled pairs", gene[order], True)):
        facts: dict[str, Any] = {"own": not shuffled, "control": shuffled}
        for variant, pools in (("", None), ("within", slides)):
            ways = {
                "image_to_gene": _scores(image, targets, pools, queries, findings),
                "gene_to_image": _scores(targets, image, pools, queries, findings),
            }
            statistics = _statistics(ways, None if pools is None else slides[queries])
            chance = _chance(slides, pools, queries)
            findings.add("retrieval", arm, chance, statistics, rows[queries], variant=variant, **facts)
            if pools is None and not shuffled:
                for name, scores in ways.items():
                    findings.keep(f"rank:{name}", rows[queries], scores["rank"])
                    # Where spots tie, their mean rank does not tell the recall.
                    if np.any((scores["rank"] <= 10) != scores["recall@10"]):
                        findings.keep(f"recall@10:{name}", rows[queries], scores["recall@10"])
        names = np.unique(slides)
        for slide in names if len(names) > 1 else ():
            here = slides[queries] == slide
            part = {name: {key: values[here] for key, values in scores.items()} for name, scores in ways.items()}
            everyone = np.arange(here.sum())
            metrics = {key: statistic(everyone) for key, statistic in _statistics(part, None).items()}
            metrics |= _chance(slides, slides, queries[here])
            findings.add("retrieval", arm, metrics, variant="within", slide=str(slide), **facts)


def _statistics(ways: Mapping[str, Mapping[str, np.ndarray]], pools: np.ndarray | None) -> dict[str, Statistic]:
    """Return the metrics of both directions, each as a function of resampled queries.

    The median within slides is the mean of their medians.
    """
    result: dict[str, Statistic] = {}
    for name, scores in ways.items():
        means = {"mean_rank": scores["rank"], **{key: scores[key] for key in (*SCORED_BY_RANK, "mrr")}}
        result |= {f"{name}_{key}": mean_statistic(values) for key, values in means.items()}
        rank = scores["rank"]
        whole = median_statistic(rank) if pools is None else within_slides(median_statistic, [rank], pools)
        result[f"{name}_median_rank"] = whole
    return result


def _scores(
    left: np.ndarray, right: np.ndarray, pools: np.ndarray | None, queries: np.ndarray, findings: Findings
) -> dict[str, np.ndarray]:
    """Return `retrieval_scores` of the queries, each within its pool, in the order of the queries."""
    space = findings.need_space()
    options: dict[str, Any] = {"similarity": space.geometry, "curvature": space.curvature, "seed": findings.seed}
    if pools is None:
        return retrieval_scores(left, right, num_queries=MAX_QUERIES, **options)
    result: dict[str, np.ndarray] = {}
    for pool in np.unique(pools):
        rows = np.flatnonzero(pools == pool)
        for key, values in retrieval_scores(left[rows], right[rows], **options).items():
            result.setdefault(key, np.empty(len(pools)))[rows] = values
    return {key: values[queries] for key, values in result.items()}


def _chance(slides: np.ndarray, pools: np.ndarray | None, queries: np.ndarray) -> dict[str, float]:
    """Return the chance levels, averaged over queries."""
    sizes = np.full(len(slides), len(slides))
    if pools is not None:
        _, numbers, counts = np.unique(pools, return_inverse=True, return_counts=True)
        sizes = counts[numbers]
    sizes = sizes[queries]
    chance = {f"chance_recall@{k}": float(np.minimum(1.0, k / sizes).mean()) for k in (1, 5, 10)}
    facts = {"pool_size": float(sizes.mean()), "num_queries": float(len(queries))}
    return facts | chance | {"chance_median_rank": float((sizes.mean() + 1) / 2)}


_RANKS = tuple(f"{way}_{kind}_rank" for way in ("image_to_gene", "gene_to_image") for kind in ("median", "mean"))
PROTOCOL = Protocol(
    name="retrieval",
    run=run,
    title="Retrieval",
    headline="image_to_gene_recall@10",
    also=("gene_to_image_recall@10",),
    shown=(
        "chance_recall@10",
        "image_to_gene_mean_rank",
        "image_to_gene_median_rank",
        "image_to_gene_mrr",
        "pool_size",
    ),
    chance={
        **{f"{way}_recall@{k}": f"chance_recall@{k}" for way in ("image_to_gene", "gene_to_image") for k in (1, 5, 10)},
        # Ranks at chance are uniform: mean and median agree.
        **dict.fromkeys(_RANKS, "chance_median_rank"),
    },
    lower_is_better=_RANKS,
    task="image-gene-retrieval",
    note="Recall depends on the size of the pool, so chance is shown beside it.",
    variants={
        "": "The pool is all test spots.",
        "within": "Each query against its own slide only: knowing the slide does not help.",
    },
    drawn=("within",),
)
