"""Collect what a report draws beside numbers: values of every test spot, galleries of retrieval, paths to the origin."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.sparsefuncs import mean_variance_axis

from ..data.markers import is_housekeeping
from ..model.lorentz import exp_map0, log_map0, pairwise_distance, radius
from .evidence import Space
from .findings import Findings
from .preparation import finite_matrix, missing_rows
from .protocols.signatures import signature_map
from .retrieval import retrieval_scores

MAX_CANDIDATES = 5000  # reference spots to compare a path to the origin with; evenly spaced ones of a larger study
_SPACE_FACTS = ("geometry", "curvature", "curvature_bounds", "parent", "min_radius")
GALLERY_POOL = 20_000  # test spots that a gallery is chosen from


def illustrations(findings: Findings) -> dict[str, Any]:
    """Collect everything that is drawn, ready for JSON.

    Returns:
        ``spots`` (lists, one entry per test spot: slide, x, y, label, predictions, ranks, maps, radii and 2-D coordinates),
        ``space`` (geometry), ``gallery`` (queries at the quartiles of rank, not hand-picked) and ``traversals`` (from images
        to the origin); the last three are empty without a space of images and genes.
    """
    space = findings.space
    return {
        "spots": _per_spot(findings),
        "space": {} if space is None else {name: getattr(space, name) for name in _SPACE_FACTS},
        "gallery": [] if space is None else _gallery(findings, space),
        "traversals": [] if space is None else _traversals(findings, space),
    }


def _per_spot(findings: Findings) -> dict[str, list[Any]]:
    """Return one list per quantity, one entry per test spot, ready for JSON."""
    spots, space, rows = findings.spots, findings.space, findings.test_rows
    result: dict[str, list[Any]] = {
        "slide": spots.slides[rows].tolist(),
        "x": spots.positions[rows, 0].round(1).tolist(),
        "y": spots.positions[rows, 1].round(1).tolist(),
        "label": spots.labels[rows].tolist(),
        "n_genes": np.diff(spots.counts.indptr)[rows].tolist(),
        "total_counts": np.asarray(spots.counts.sum(axis=1)).reshape(-1)[rows].tolist(),
    }
    for name, values in findings.per_spot.items():
        result[name] = [_plain(value) for value in values[rows]]
    if space is None:
        return result
    image, gene = space.tangent(space.image)[rows], space.tangent(space.gene)[rows]
    for modality, tangent, plane in zip(("image", "gene"), (image, gene), leading_plane(image, gene)):
        result[f"{modality}_radius"] = np.linalg.norm(tangent, axis=1).round(5).tolist()
        result[f"{modality}_plane"] = plane.round(4).tolist()
    return result


def _gallery(findings: Findings, space: Space, retrieved: int = 5) -> list[dict[str, Any]]:
    """Return the image queries at the best rank and at the quartiles of rank, and the spots retrieved for each."""
    spots, rows = findings.spots, findings.test_rows[:GALLERY_POOL]
    options: dict[str, Any] = {"similarity": space.geometry, "curvature": space.curvature}
    ranks = retrieval_scores(space.image[rows], space.gene[rows], **options)["rank"]
    order = np.argsort(ranks, kind="stable")
    queries = order[[round(share * (len(order) - 1)) for share in (0.0, 0.25, 0.5, 0.75)]]
    scores = signature_map(space.gene[rows], space.image[rows[queries]], space.geometry, space.curvature)
    expression = findings.log_expression
    train = expression[spots.reference]
    mean, variance = mean_variance_axis(train, axis=0)
    spread = np.sqrt(variance) + 0.1
    # A top gene is high compared with training spots, expressed in half of them, and not a housekeeping gene.
    common = np.asarray((train > 0).mean(axis=0)).reshape(-1) > 0.5
    telling = common & ~np.array([is_housekeeping(gene) for gene in spots.genes])
    common = telling if telling.any() else common
    result = []
    for query, row in zip(queries, scores, strict=True):
        nearest = np.argsort(-row, kind="stable")[:retrieved]
        genes = []
        for spot in [query, *nearest]:
            score = np.where(common, (expression[rows[spot]].toarray()[0] - mean) / spread, -np.inf)
            genes.append([spots.genes[i] for i in np.argsort(-score, kind="stable")[:3]])
        result.append(
            {
                "query": int(query),
                "rank": float(ranks[query]),
                "retrieved": [int(i) for i in nearest],
                "top_genes": genes,
            }
        )
    return result


def _traversals(findings: Findings, space: Space) -> list[dict[str, Any]]:
    """Walk from each label's image of median radius to the origin, and find the nearest reference spots and mean profiles."""
    spots, rows = findings.spots, findings.test_rows
    if space.geometry != "lorentz":
        return []
    train = np.flatnonzero(spots.reference)
    train = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), MAX_CANDIDATES)).astype(int))]
    named = dict(space.signatures)
    if space.mean_profile is not None:
        named["mean profile of all spots"] = space.mean_profile[0]
    names = list(named)
    names += [f"a spot of {label}" if isinstance(label, str) else "an unlabelled spot" for label in spots.labels[train]]
    candidates = np.concatenate([*(embeds[None] for embeds in named.values()), space.gene[train]])
    radii = np.linalg.norm(space.tangent(space.image), axis=1)
    labels = np.where(missing_rows(spots.labels), "no label", spots.labels)
    result = []
    for label in np.unique(labels[rows].astype(str)):
        members = rows[labels[rows] == label]
        start = members[np.argsort(radii[members], kind="stable")[len(members) // 2]]
        steps = traversal(space.image[start], candidates, names, float(space.curvature), 8)  # type: ignore[arg-type]
        result.append({"from": label, "slide": str(spots.slides[start]), "steps": steps})
    return result


def traversal(
    point: ArrayLike, candidates: ArrayLike, names: Sequence[str], curvature: float, steps: int = 10
) -> list[dict[str, Any]]:
    """Walk straight from a point to the origin, from specific to general, and name the nearest candidate at each step.

    Args:
        point: Space part (dim,), such as one image.
        candidates: Space parts (candidates, dim), such as spots' genes or the mean profiles of labels.
        names: (candidates,) names of the candidates.
        curvature: ``c > 0``.
        steps: Number of stops, both ends included.

    Returns:
        One row per stop: radius, nearest (a name), distance, and origin_nearer: True once the origin is nearer than any
        candidate, so that nothing specific is near.

    Raises:
        ValueError: If names and candidates differ in number, or steps is below 2.
    """
    targets = torch.from_numpy(finite_matrix(candidates, "candidates"))
    if len(names) != len(targets) or steps < 2:
        raise ValueError(
            f"{len(names)} names for {len(targets)} candidates and {steps} steps; allowed are one name per candidate and 2 "
            "or more steps."
        )
    tangent = log_map0(torch.from_numpy(finite_matrix(np.atleast_2d(point), "point")), curvature)
    way = exp_map0(tangent * torch.linspace(1, 0, steps, dtype=tangent.dtype)[:, None], curvature)
    distances = pairwise_distance(way, targets, curvature)
    nearest = distances.argmin(dim=1)
    radii = radius(way, curvature)
    return [
        {
            "radius": float(radii[i]),
            "nearest": str(names[int(nearest[i])]),
            "distance": float(distances[i, nearest[i]]),
            "origin_nearer": bool(radii[i] < distances[i, nearest[i]]),
        }
        for i in range(steps)
    ]


def leading_plane(image: np.ndarray, gene: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tangent coordinates of both modalities in the plane of their two leading directions, each point at true length.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> image_plane, gene_plane = leading_plane(rng.normal(size=(10, 8)), rng.normal(size=(10, 8)))
        >>> image_plane.shape, gene_plane.shape
        ((10, 2), (10, 2))
    """
    both = np.concatenate([image, gene])
    _, _, axes = np.linalg.svd(both, full_matrices=False)
    flat = both @ axes[:2].T
    flat *= np.linalg.norm(both, axis=1, keepdims=True) / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return flat[: len(image)], flat[len(image) :]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return round(float(value), 5) if np.isfinite(value) else None
