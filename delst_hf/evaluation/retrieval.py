"""Measure how well an embedding of one modality finds its partner of the other in the complete pool.

Ranks are fair to ties: where several targets score the same as the true one, every order of them is taken as equally
likely. An embedding that collapsed to one point scores at chance and not at rank 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import digamma

from .neighbours import blocks
from .preparation import finite_matrix, group_names

GEOMETRIES = ("cosine", "euclidean", "lorentz")
_ROWS_AT_ONCE = 64  # of a tile: 0.5 MB of differences, which stay in a processor's cache
Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]


def retrieval(query_embeds: ArrayLike, target_embeds: ArrayLike, **options: Any) -> dict[str, float]:
    """Rank all targets for every query. The answer to the i-th query is the i-th target.

    Memory is that of the embeddings in float64 and of one tile, so a pool of a million 256-dimensional pairs fits in 10 GB.
    Its 10^12 scores are hours of work: `num_queries` ranks a random sample of queries against the complete pool.

    Args:
        query_embeds: (pool, dim). For "lorentz" the space part of points on the hyperboloid of curvature -c.
        target_embeds: (pool, dim), alike.
        options: Those of `retrieval_scores`: similarity (required), curvature, ks, chunk_size, num_queries and seed.

    Returns:
        recall@k: probability that the true target is among the first k; high is good, chance is k / pool_size.
        median_rank and mean_rank: low is good, 1 is perfect, chance is (pool_size + 1) / 2. mrr: mean reciprocal rank,
        high is good. pool_size: all others depend on it. Each is the expectation over random orders of tied targets.

    Raises:
        ValueError: If the shapes differ, a value is not finite, or an option is not one of those allowed.

    Examples:
        >>> scores = retrieval(np.eye(4), np.eye(4), similarity="cosine", ks=(1,))
        >>> scores["recall@1"], scores["median_rank"]
        (1.0, 1.0)
    """
    scores = retrieval_scores(query_embeds, target_embeds, **options)
    means = {key: float(values.mean()) for key, values in scores.items() if key not in ("query", "rank")}
    return means | {
        "median_rank": float(np.median(scores["rank"])),
        "mean_rank": float(scores["rank"].mean()),
        "pool_size": float(len(np.asarray(target_embeds))),
    }


def retrieval_scores(
    query_embeds: ArrayLike,
    target_embeds: ArrayLike,
    *,
    similarity: str | Similarity,
    curvature: float | None = None,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 1024,
    num_queries: int | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the scores of each query, which `retrieval` averages and a bootstrap resamples; errors as there.

    Args:
        query_embeds: (pool, dim), as `retrieval` takes them.
        target_embeds: (pool, dim), alike.
        similarity: "cosine", "euclidean" (negative distance), "lorentz" (negative geodesic distance), or a function of
            queries (m, dim) and targets (n, dim) that returns scores (m, n), high for similar, where the score of a
            pair does not depend on the rest of its chunk.
        curvature: The positive c, needed by "lorentz" and ignored by the others.
        ks: Depths of recall. A k beyond the pool gives 1.0.
        chunk_size: Rows and columns of the similarity tile held at a time.
        num_queries: Rank only so many queries, drawn without replacement; None ranks all. The pool stays complete.
        seed: Seed of that draw.

    Returns:
        query (queries,), its row; recall@k (queries,) in [0, 1]; rank (queries,), 1 is perfect; mrr (queries,), 1 / rank.
    """
    if any(k != int(k) or k < 1 for k in ks):
        raise ValueError(f"ks are {list(ks)}; allowed are whole numbers from 1 up, such as (1, 5, 10).")
    queries, targets = finite_matrix(query_embeds, "query_embeds"), finite_matrix(target_embeds, "target_embeds")
    if queries.shape[0] != targets.shape[0]:
        raise ValueError(
            f"{len(queries)} queries and {len(targets)} targets; allowed are equal numbers, as the answer to the i-th "
            "query is the i-th target. Embed both modalities of the same spots."
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; allowed is 1 or more. 1024 holds 8 MB at a time.")
    own = sampled_queries(len(targets), num_queries, seed)
    if len(own) < len(queries):
        queries = queries[own]
    if callable(similarity):
        score, rounding = similarity, None
    else:
        queries, targets = as_inner_product(queries, targets, similarity, curvature)
        # Rounding of a dot product grows with the lengths of both vectors, not with its own value.
        largest = np.linalg.norm(queries, axis=1) * np.linalg.norm(targets, axis=1).max()
        score, rounding = _product, 16 * np.finfo(np.float64).eps * largest
    above, equal = _count(queries, targets, own, score, rounding, chunk_size)
    return {"query": own, **expected_scores(above, equal, ks)}


def _product(queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return queries @ targets.T


def expected_scores(above: np.ndarray, equal: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Compute expectations over random orders of tied targets, for each query.

    Args:
        above: (queries,) targets that score above the true one.
        equal: (queries,) targets that score the same, the true one included.
        ks: Depths of recall.

    Returns:
        recall@k, rank and mrr (queries,).

    Examples:
        >>> {name: values.tolist() for name, values in expected_scores(np.array([0]), np.array([2]), ks=[1]).items()}
        {'recall@1': [0.5], 'rank': [1.5], 'mrr': [0.75]}
    """
    result = {f"recall@{int(k)}": np.clip(k - above, 0, equal) / equal for k in ks}
    result["rank"] = 1 + above + (equal - 1) / 2
    # 1/(above+1) + ... + 1/(above+equal) is a difference of two digammas.
    result["mrr"] = (digamma(above + equal + 1) - digamma(above + 1)) / equal
    return result


def sampled_queries(pool: int, num_queries: int | None, seed: int = 0) -> np.ndarray:
    """Return all rows of a pool, or `num_queries` of them drawn without replacement, in order."""
    if num_queries is not None and num_queries < 1:
        raise ValueError(f"num_queries is {num_queries}; allowed is 1 or more, or None for all of them.")
    if num_queries is None or num_queries >= pool:
        return np.arange(pool)
    return np.sort(np.random.default_rng(seed).choice(pool, num_queries, replace=False))


def retrieval_within(
    image_embeds: ArrayLike,
    gene_embeds: ArrayLike,
    slides: Sequence[Any] | np.ndarray,
    geometry: str,
    curvature: float | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Return `bidirectional_retrieval` with the pool of each query limited to its own slide, averaged over spots.

    A model that only knows staining and depth finds the right slide, which explains much of the recall in a pool of all slides;
    within a slide it does not help.

    Args:
        image_embeds: As in `bidirectional_retrieval`.
        gene_embeds: As in `bidirectional_retrieval`.
        geometry: As in `bidirectional_retrieval`.
        curvature: As in `bidirectional_retrieval`.
        ks: As in `bidirectional_retrieval`.
        slides: (pool,) the slide of each spot.

    Returns:
        The keys of `bidirectional_retrieval`, weighted by the spots of a slide (ranks and chance too); num_slides.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(20, 4))
        >>> scores = retrieval_within(x, x, ["a"] * 10 + ["b"] * 10, "cosine", ks=(1,))
        >>> scores["image_to_gene_recall@1"], scores["chance_recall@1"]
        (1.0, 0.1)
    """
    image, gene = finite_matrix(image_embeds, "image_embeds"), finite_matrix(gene_embeds, "gene_embeds")
    names = group_names(slides, len(image), "slides")
    parts = [names == slide for slide in np.unique(names)]
    scores = pd.DataFrame([bidirectional_retrieval(image[i], gene[i], geometry, curvature, ks) for i in parts])
    means: dict[Any, float] = scores.mul([rows.mean() for rows in parts], axis=0).sum().to_dict()
    return {**means, "num_slides": float(len(parts))}


def bidirectional_retrieval(
    image_embeds: ArrayLike,
    gene_embeds: ArrayLike,
    geometry: str,
    curvature: float | None = None,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 1024,
    num_queries: int | None = None,
) -> dict[str, float]:
    """Retrieve genes by image and images by gene over the complete pool, with chance beside the scores.

    Args:
        image_embeds: (pool, dim); the space part for "lorentz".
        gene_embeds: (pool, dim), of the same spots in the same order.
        geometry: "cosine", "euclidean" or "lorentz".
        curvature: The positive c, needed by "lorentz" and ignored by the others.
        ks: As in `retrieval`.
        chunk_size: As in `retrieval`.
        num_queries: As in `retrieval`.

    Returns:
        The keys of `retrieval` with the prefixes image_to_gene_ and gene_to_image_, once pool_size, chance_recall@k
        and chance_median_rank.

    Raises:
        ValueError: As `retrieval`.

    Examples:
        >>> bidirectional_retrieval(np.eye(4), np.eye(4), "cosine")["gene_to_image_recall@1"]
        1.0
    """
    result: dict[str, float] = {}
    directions = (("image_to_gene", image_embeds, gene_embeds), ("gene_to_image", gene_embeds, image_embeds))
    options: dict[str, Any] = {"ks": ks, "chunk_size": chunk_size, "num_queries": num_queries}
    for name, queries, targets in directions:
        scores = retrieval(queries, targets, similarity=geometry, curvature=curvature, **options)
        pool_size = scores.pop("pool_size")
        result |= {f"{name}_{key}": value for key, value in scores.items()}
    result["pool_size"] = pool_size
    result |= {f"chance_recall@{int(k)}": min(1.0, k / pool_size) for k in ks}
    result["chance_median_rank"] = (pool_size + 1) / 2
    return result


def as_inner_product(
    queries: np.ndarray, targets: np.ndarray, geometry: str, curvature: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rewrite both sides so that their plain dot product orders the targets of a query as the geometry does.

    cosine     unit vectors
    euclidean  -|q - t|^2 / 2 = q.t - |t|^2 / 2 - |q|^2 / 2, whose last term is the same for all targets
    lorentz    -acosh(-c <q,t>_L) / sqrt(c) rises with <q,t>_L = q.t - q_time t_time
    """
    if geometry not in GEOMETRIES:
        raise ValueError(f"similarity is {geometry!r}; allowed are {', '.join(GEOMETRIES)} or a function.")
    if queries.shape[1] != targets.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions and targets {targets.shape[1]}; they must be equal. "
            "Pass the projected embeddings, not the features of the towers."
        )
    if geometry == "cosine":
        return _unit(queries), _unit(targets)
    if geometry == "euclidean":
        # Moving both sides keeps their distances, and near the origin the squares cancel least.
        centre = targets.mean(axis=0)
        queries, targets = queries - centre, targets - centre
        half_square = (targets**2).sum(axis=1, keepdims=True) / 2
        return np.hstack([queries, np.ones((len(queries), 1))]), np.hstack([targets, -half_square])
    if curvature is None or not (np.isfinite(curvature) and curvature > 0):
        raise ValueError(
            f"curvature is {curvature}; 'lorentz' needs a positive number c, where the hyperboloid has curvature -c. "
            "Pass the curvature of the model that made the embeddings."
        )
    return np.hstack([queries, -_time(queries, curvature)]), np.hstack([targets, _time(targets, curvature)])


def _count(
    queries: np.ndarray,
    targets: np.ndarray,
    own: np.ndarray,
    score: Similarity,
    rounding: np.ndarray | None,
    chunk_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Count, tile by tile, the targets that score above and equal to the true one, which is target `own` (queries,).

    Scores that differ by no more than `rounding` (queries,) count as equal: a matrix product may give two copies of one
    vector different last bits. When it is None, rounding is judged by the precision and size of the scores.
    """
    above, equal = np.zeros(len(queries), dtype=np.int64), np.zeros(len(queries), dtype=np.int64)
    everyone = len(own) == len(targets)
    for rows in blocks(len(queries), chunk_size):
        tile = _scores(score, queries[rows], targets[own[rows]])
        true = np.diagonal(tile)[:, None].astype(np.float64)
        if rounding is None:
            largest = np.abs(tile).max(axis=1, keepdims=True)
            margin = 16 * float(np.finfo(tile.dtype).eps) * largest.astype(np.float64)
        else:
            margin = rounding[rows][:, None]
        if everyone:  # then this tile is on the diagonal
            _add(tile, true, margin, above[rows], equal[rows])
        for columns in blocks(len(targets), chunk_size):
            if everyone and columns == rows:
                continue
            del tile  # before the next one takes as much memory
            tile = _scores(score, queries[rows], targets[columns])
            _add(tile, true, margin, above[rows], equal[rows])
        del tile
    return above, np.maximum(equal, 1)


def _add(tile: np.ndarray, true: np.ndarray, margin: np.ndarray, above: np.ndarray, equal: np.ndarray) -> None:
    """Add the counts of a tile to `above` and `equal` (queries,), some rows at a time: temporary arrays are as large as it."""
    for rows in blocks(len(tile), _ROWS_AT_ONCE):
        above[rows] += (tile[rows] > true[rows] + margin[rows]).sum(axis=1)
        equal[rows] += (np.abs(tile[rows] - true[rows]) <= margin[rows]).sum(axis=1)


def _scores(score: Similarity, queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
    tile = np.asarray(score(queries, targets))
    tile = tile if np.issubdtype(tile.dtype, np.floating) else tile.astype(np.float64)
    if tile.shape != (len(queries), len(targets)) or not np.isfinite(tile).all():
        raise ValueError(
            f"the similarity returned scores of the shape {tile.shape}, finite: {bool(np.isfinite(tile).all())}; allowed are "
            f"finite scores of the shape {(len(queries), len(targets))}, one row per query."
        )
    return tile


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1. A zero row has no direction and stays zero: equally similar to all, hence at chance."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def _time(space: np.ndarray, curvature: float) -> np.ndarray:
    """Return the time part (rows, 1) of points on the hyperboloid, sqrt(1/c + |x|^2) (MERU, arXiv 2304.09172)."""
    return np.sqrt(1 / curvature + (space**2).sum(axis=1, keepdims=True))
