"""Spatial domains: how well unsupervised clusters of embeddings recover the regions of the tissue."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sklearn
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    mutual_info_score,
    normalized_mutual_info_score,
    silhouette_samples,
    silhouette_score,
)
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information
from sklearn.neighbors import kneighbors_graph

from ...errors import optional_library
from ..baselines import permutation_within
from ..evidence import Arm
from ..findings import MIN_SLIDES, Findings
from ..preparation import finite_matrix, group_names, missing_rows
from ..resampled import dispersion_draws, information_statistic, mean_statistic, rand_statistic
from ..uncertainty import Bootstrap, Statistic
from . import Protocol

METHODS = ("kmeans", "leiden")
NEIGHBOURS = 6
# The silhouette needs all pairwise distances: with more spots it is computed on a random sample, without an interval.
MAX_SILHOUETTE = 10_000
_DISTANCES_MIB = 64  # distances held at a time; scikit-learn's default is 1,024 MiB


def spatial_domains(
    features: ArrayLike,
    positions: ArrayLike,
    slides: Sequence[Any] | np.ndarray,
    labels: Sequence[str | None] | np.ndarray | None = None,
    *,
    method: str = "kmeans",
    num_domains: int | None = None,
    resolution: float = 1.0,
    seed: int = 0,
) -> tuple[dict[str, float], np.ndarray]:
    """Cluster spots by their embeddings and compare the clusters with labels and with the tissue's layout.

    Args:
        features: (spots, columns), for hyperbolic embeddings the tangent coordinates (`lorentz.log_map0`).
        positions: (spots, 2) x and y.
        slides: (spots,) the slide of each spot; neighbours are spots of the same slide.
        labels: (spots,) strings, None where nobody labelled the spot; None in place of the array for no comparison.
        method: "kmeans", or "leiden" on the graph of 15 nearest neighbours (needs `pip install delst-hf[leiden]`).
        num_domains: Number of k-means clusters; by default the number of classes or, without labels, 7 (fewer for few spots).
        resolution: Resolution of Leiden; higher gives more clusters.
        seed: Seed of the clustering.

    Returns:
        Scores, and the domain of each spot (spots,) int. Scores of the clusters: num_domains; silhouette in [-1, 1], high for
        compact, separate clusters; calinski_harabasz, high is good; davies_bouldin, low is good; smoothness, the share
        of a spot's six nearest spots on its slide that are in its domain, high for contiguous regions; and
        smoothness_shuffled, the same after permuting domains within slides, which the sizes of the domains alone give.
        With labels also ari and nmi (1: the same partition; an unrelated one has an ari of 0 and a positive nmi, the more so
        the more domains and the fewer spots), nmi_shuffled, the nmi expected of the same domains on shuffled spots, and
        label_silhouette, label_calinski_harabasz and label_davies_bouldin: the three scores above for labels in place of
        clusters, as STimage-1K4M scores embeddings.

    Raises:
        ValueError: If an option is not one of those allowed, rows do not match, or the features are constant.
        ImportError: If method is "leiden" and its libraries are not installed.

    Examples:
        >>> rows, columns = (grid.ravel() for grid in np.mgrid[:6, :6])
        >>> features = np.where(columns[:, None] < 3, 0.0, 5.0) + np.random.default_rng(0).normal(size=(36, 4)) * 0.1
        >>> scores, domains = spatial_domains(features, np.stack([columns, rows], 1) * 100.0, ["a"] * 36, num_domains=2)
        >>> len(set(domains[columns < 3])), domains.shape
        (1, (36,))
    """
    rows, xy = _standardised(features), finite_matrix(positions, "positions")
    if xy.shape != (len(rows), 2):
        raise ValueError(
            f"positions have the shape {xy.shape}; allowed is ({len(rows)}, 2), the x and y of every spot."
        )
    names = group_names(slides, len(rows), "slides")
    domains = _clusters(rows, labels, method, num_domains, resolution, seed)
    return _scored(rows, domains, labels, names, spot_neighbours(xy, names), seed)[0], domains


def _standardised(features: ArrayLike) -> np.ndarray:
    """Centre features and divide all columns by one factor, so that their mean variance is 1.

    Clusters and their scores do not depend on that factor, but scikit-learn treats distances below 1e-8 as zero and calls
    such clusters perfect (Davies-Bouldin 0). Columns keep their relative scales, as in published scores.

    Raises:
        ValueError: If no column varies: such features hold no clusters.
    """
    rows = finite_matrix(features, "features")
    rows = rows / max(float(np.abs(rows).max()), np.finfo(float).tiny)
    centred = rows - rows.mean(axis=0)
    scale = float(np.sqrt((centred**2).mean()))
    if scale <= 1e-12:
        raise ValueError(
            f"features are constant over the {len(rows)} spots (they vary by {scale:.1g} of their size), so nothing can be "
            "clustered. Look for the cause: a collapsed model, or an array of one value."
        )
    return centred / scale


def _clusters(
    rows: np.ndarray,
    labels: Sequence[str | None] | np.ndarray | None,
    method: str,
    num_domains: int | None = None,
    resolution: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Return the domain of each spot (spots,) int64; arguments as for `spatial_domains`, with features standardised."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(METHODS)}. Choose one of them.")
    if num_domains is None:
        named = () if labels is None else np.asarray(labels, dtype=object)[~missing_rows(labels)]
        num_domains = max(2, len(set(map(str, named)))) if len(named) else min(7, max(2, len(rows) // 5))
    if not 2 <= num_domains < len(rows):
        raise ValueError(
            f"num_domains is {num_domains}; allowed is 2 to {len(rows) - 1}, fewer than the {len(rows)} spots. Choose one."
        )
    if method == "leiden":
        return _leiden(rows, resolution, seed)
    return KMeans(num_domains, n_init=10, random_state=seed).fit_predict(rows).astype(np.int64)


def _scored(
    rows: np.ndarray,
    domains: np.ndarray,
    labels: Sequence[str | None] | np.ndarray | None,
    slides: np.ndarray,
    neighbours: np.ndarray,
    seed: int,
) -> tuple[dict[str, float], dict[str, dict[str, Statistic]]]:
    """Return the scores of `spatial_domains`, and some of them as functions of resampled spots with the clusters kept.

    The functions are listed by the prefix of `_partitions`, whose spots they take.
    """
    there = (neighbours >= 0).sum(axis=1)
    smooth = mean_statistic(_same_domain(domains, neighbours) / np.maximum(there, 1), there)
    statistics: dict[str, dict[str, Statistic]] = {"": {"smoothness": smooth}, "label_": {}}
    scores = {
        "num_domains": float(len(np.unique(domains))),
        "smoothness": smoothness(domains, neighbours),
        "smoothness_shuffled": smoothness(domains[permutation_within(slides, seed)], neighbours),
    }
    for prefix, kept, groups in _partitions(labels, domains):
        number = len(np.unique(groups))
        if prefix and number > 1:
            scores["ari"] = float(adjusted_rand_score(groups, domains[kept]))
            scores["nmi"] = float(normalized_mutual_info_score(groups, domains[kept]))
            scores["nmi_shuffled"] = _expected_information(groups, domains[kept])
            statistics[prefix]["ari"] = rand_statistic(groups, domains[kept])
        if not 2 <= number < len(groups):  # one group, or one spot each: the shape of groups is undefined
            continue
        scores[f"{prefix}calinski_harabasz"] = float(calinski_harabasz_score(rows[kept], groups))
        scores[f"{prefix}davies_bouldin"] = float(davies_bouldin_score(rows[kept], groups))
        with sklearn.config_context(working_memory=_DISTANCES_MIB):
            if len(groups) > MAX_SILHOUETTE:
                silhouette = silhouette_score(rows[kept], groups, sample_size=MAX_SILHOUETTE, random_state=0)
            else:
                by_spot = silhouette_samples(rows[kept], groups)
                silhouette, statistics[prefix][f"{prefix}silhouette"] = by_spot.mean(), mean_statistic(by_spot)
        scores[f"{prefix}silhouette"] = float(silhouette)
    return scores, statistics


def _expected_information(truth: np.ndarray, answer: np.ndarray) -> float:
    """Return the mean NMI of all orders of `answer`, from the sizes of the groups alone; that of ARI is 0 by construction."""
    shared = expected_mutual_information(contingency_matrix(truth, answer, sparse=True), len(truth))
    both = mutual_info_score(truth, truth) + mutual_info_score(answer, answer)  # the sum of their entropies
    return float(2 * shared / both)


def _intervals(
    rows: np.ndarray,
    domains: np.ndarray,
    labels: Sequence[str | None] | np.ndarray | None,
    scored: tuple[Mapping[str, float], Mapping[str, Mapping[str, Statistic]]],
    bootstrap: Bootstrap,
) -> dict[str, dict[str, Any]]:
    """Return the intervals of the scores and statistics that `_scored` returned; those of labels resample the labelled spots.

    Resampling biases NMI, Calinski-Harabasz and Davies-Bouldin: copies of a spot coincide, so groups look tighter and purer.
    These are shifted so that the resamples' mean is the value itself.
    """
    scores, statistics = scored
    result: dict[str, dict[str, Any]] = {}
    for prefix, kept, groups in _partitions(labels, domains):
        if not kept.any():
            continue
        here, resampled = _restricted(bootstrap, kept), {}
        result |= {name: here.interval(statistic) for name, statistic in statistics[prefix].items()}
        if f"{prefix}calinski_harabasz" in scores:
            draws = dispersion_draws(rows[kept], groups, here)
            resampled = {prefix + name: values for name, values in draws.items()}
        if prefix and "nmi" in scores:
            resampled["nmi"] = here.resampled(information_statistic(groups, domains[kept]))
        for name, drawn in resampled.items():
            result[name] = here.interval_of(scores[name], drawn - np.nanmean(drawn) + scores[name])
    return result


def _partitions(
    labels: Sequence[str | None] | np.ndarray | None, domains: np.ndarray
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (prefix of the metrics, mask of spots, their groups) of the clusters and, where there are any, of the labels."""
    partitions = [("", np.ones(len(domains), dtype=bool), domains)]
    if labels is not None:
        kept = ~missing_rows(labels)
        partitions.append(("label_", kept, np.asarray(labels, dtype=object)[kept].astype(str)))
    return partitions


def _restricted(bootstrap: Bootstrap, kept: np.ndarray) -> Bootstrap:
    if kept.all():
        return bootstrap
    slides = None if bootstrap.slides is None else np.asarray(bootstrap.slides)[kept]
    unit = bootstrap.unit if slides is not None and len(np.unique(slides)) >= MIN_SLIDES else "spots"
    return replace(bootstrap, num_rows=int(kept.sum()), slides=slides, unit=unit)


def spot_neighbours(positions: np.ndarray, slides: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Return the rows (spots, k) of the k nearest spots of the same slide, -1 where the slide has fewer."""
    result = np.full((len(positions), k), -1)
    for slide in np.unique(slides):
        rows = np.flatnonzero(slides == slide)
        there = min(k, len(rows) - 1)
        if there > 0:
            nearest = cKDTree(positions[rows]).query(positions[rows], k=there + 1)[1]
            # Drop the spot itself by its row: of two spots at one position either may come first.
            for row, near in zip(rows, rows[nearest]):
                result[row, :there] = near[near != row][:there]
    return result


def smoothness(domains: np.ndarray, neighbours: np.ndarray) -> float:
    """Return the share of neighbouring spots that are in the same domain: 1 for a single region; shuffled domains give chance.

    Examples:
        >>> smoothness(np.array([0, 0, 1]), np.array([[1], [0], [1]]))
        0.6666666666666666
    """
    return float(_same_domain(domains, neighbours).sum() / max((neighbours >= 0).sum(), 1))


def _same_domain(domains: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Count the neighbours of each spot that are in its domain (spots,)."""
    return ((domains[neighbours] == domains[:, None]) & (neighbours >= 0)).sum(axis=1)


def _leiden(rows: np.ndarray, resolution: float, seed: int) -> np.ndarray:
    advice = (
        "method='leiden' needs igraph and leidenalg, which are not installed. Run `pip install 'delst-hf[leiden]'`, or use "
        "method='kmeans'."
    )
    igraph, leidenalg = (optional_library(name, advice) for name in ("igraph", "leidenalg"))
    graph = kneighbors_graph(rows, min(15, len(rows) - 1), mode="connectivity").tocoo()
    edges = {(min(i, j), max(i, j)) for i, j in zip(graph.row.tolist(), graph.col.tolist())}
    partition = leidenalg.find_partition(
        igraph.Graph(n=len(rows), edges=sorted(edges)),
        leidenalg.RBConfigurationVertexPartition,
        resolution_parameter=resolution,
        seed=seed,
    )
    return np.array(partition.membership, dtype=np.int64)


def run(findings: Findings) -> None:
    """Score clusters of every arm's test spots against labels and against the layout of the tissue."""
    spots, rows, method = findings.spots, findings.test_rows, findings.evaluation.domain_method
    labels = spots.labels[rows] if spots.labelled else None
    slides = spots.slides[rows]
    neighbours = spot_neighbours(spots.positions[rows], slides)
    arms = list(findings.arms.values())
    if findings.space is not None:
        space = findings.space
        arms.append(Arm(f"{space.name} gene embedding", [space.tangent(space.gene)], own=True))
    for arm in arms:
        values = _standardised(arm.features[rows])
        answer = _clusters(values, labels, method, seed=findings.seed)
        scored = _scored(values, answer, labels, slides, neighbours, findings.seed)
        intervals = _intervals(values, answer, labels, scored, findings.bootstrap(rows))
        findings.add("domains", arm.name, scored[0], intervals=intervals, own=arm.own, method=method)
        if arm.name == findings.own[-1]:
            findings.keep("domain", rows, np.array([f"domain {number + 1}" for number in answer], dtype=object))


PROTOCOL = Protocol(
    name="domains",
    run=run,
    title="Spatial domains",
    headline="ari",
    shown=("nmi", "nmi_shuffled", "silhouette", "smoothness", "smoothness_shuffled"),
    chance={"ari": 0.0, "nmi": "nmi_shuffled", "smoothness": "smoothness_shuffled"},
    note="Clusters of the test spots' embeddings. ARI and NMI are 1 for the partition by labels; for an unrelated one ARI is 0 "
    "and NMI the shuffled value beside it. Smoothness is meaningful only above its shuffled value.",
    lower_is_better=("davies_bouldin", "label_davies_bouldin"),
    cost=3.0,
)
