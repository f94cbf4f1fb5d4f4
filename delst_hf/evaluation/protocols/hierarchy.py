"""Diagnose a learned hierarchy: biology or sequencing depth, right cones or merely wide ones, hyperbolic or flat.

The docstring of `hierarchy_report` says what a high and a low value of each number mean, and the table quotes it.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from ...model.entailment import cone_membership, cone_statistics
from ...model.lorentz import half_aperture, log_map0, pairwise_distance, radius
from ..baselines import permutation_within
from ..entailment import entailment_rankings
from ..findings import Findings
from ..preparation import finite_matrix, group_names, missing_rows
from ..resampled import mean_statistic, spearman_statistic, within_slides
from ..uncertainty import Statistic
from . import Protocol


def hierarchy_report(
    image_embeds: ArrayLike,
    gene_embeds: ArrayLike,
    curvature: float,
    *,
    num_genes: ArrayLike,
    total_counts: ArrayLike,
    slides: Sequence[Any] | np.ndarray,
    labels: Sequence[str | None] | np.ndarray | None = None,
    curvature_bounds: tuple[float, float] | None = None,
    parent: str = "gene",
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
    seed: int = 0,
    statistics: Mapping[str, Statistic] | None = None,
) -> dict[str, float]:
    """Compute the numbers that describe a learned hierarchy.

    Args:
        image_embeds: Space parts (spots, dim).
        gene_embeds: Space parts (spots, dim).
        curvature: ``c > 0``.
        num_genes: Expressed genes of each spot (spots,).
        total_counts: Counts of each spot (spots,).
        slides: (spots,) the slide of each spot.
        labels: (spots,) strings, None where nobody labelled the spot.
        curvature_bounds: The range that training allowed.
        parent: "gene" or "image".
        min_radius: ``K`` of the half-aperture.
        aperture_scale: ``eta`` that widens the cones.
        seed: Seed of the shuffled control and of the sample for delta.
        statistics: Result of `hierarchy_statistics` for these spots, if it is already there.

    Returns:
        The numbers below (those of labels only with labels), and mean radii: ``{modality}_radius_of_{label}``, and
        ``{modality}_radius_of_quarter_1`` to 4, by quarters of expressed genes within each slide, few to many.

        image_radius: Mean distance of images to the origin. Low: general; high: specific.
        gene_radius: Mean distance of gene profiles to the origin. It should be lower for the parent modality.
        image_half_aperture: Mean half-angle of the images' cones in degrees. Near 90 a cone is a half-space and holds nearly
            anything.
        gene_half_aperture: Mean half-angle of the genes' cones in degrees. Near 90: cone collapse, parents at the origin.
        in_cone_matched: Share of spots whose child lies in its parent's cone. Meaningful only above its control.
        in_cone_mismatched: Control: the same share with the child of another spot of the slide. As high as the matched share:
            the cones are wide, not right.
        entailment_auc: Probability that a parent's own child fits its cone better than the child of another spot. 1: perfect;
            0.5: chance. Does not depend on the aperture.
        entailment_ap: Average precision of that ranking: one over the rank of the own child. 1: always first; chance: about 0.
        entailment_asymmetry: That AUC minus the AUC with parent and child exchanged. High: the cones point one way; 0 or
            below: they show no more than proximity.
        entailment_auc_decile: Probability that a child fits its own parent's cone better than that of another parent in the
            same decile of radius, which is as wide. 0.5: chance.
        entailment_auc_shuffled: Control: that AUC with children shuffled within slides. Above 0.5: what the slide alone tells.
        entailment_asymmetry_shuffled: Control: that asymmetry with children shuffled within slides. Above 0: the slide alone.
        entailment_auc_decile_shuffled: Control: that AUC with children shuffled within slides. Above 0.5: the slide alone.
        image_radius_level_rho: Spearman of image radius with expressed genes, over all spots. Mixes slides.
        gene_radius_level_rho: Spearman of gene radius with expressed genes, over all spots. Mixes slides.
        image_radius_genes_within: Spearman of image radius with expressed genes within slides: free of slide effects.
        gene_radius_genes_within: Spearman of gene radius with expressed genes within slides: free of slide effects.
        image_radius_counts_within: Spearman of image radius with total counts within slides. As high as with genes: depth.
        gene_radius_counts_within: Spearman of gene radius with total counts within slides. As high as with genes: depth.
        image_radius_genes_given_counts: Partial Spearman within slides of radius and genes, total counts held fixed. High:
            more than depth; 0: nothing beyond depth.
        gene_radius_genes_given_counts: Partial Spearman within slides of radius and genes, total counts held fixed. High: more
            than depth; 0: nothing beyond depth.
        image_radius_genes_shuffled: Control: the numbers of expressed genes shuffled within slides. Must be near 0.
        gene_radius_genes_shuffled: Control: the numbers of expressed genes shuffled within slides. Must be near 0.
        image_radius_label_eta: Share of the variance of within-slide image radius ranks that labels explain. High: the radius
            differs between tissues.
        gene_radius_label_eta: Share of the variance of within-slide gene radius ranks that labels explain.
        delta_hyperbolic: Gromov delta of the embedding's distances, 2 delta / diameter. 0: a tree; near 1: no tree at all.
        delta_euclidean: The same for straight distances of tangent coordinates. As low: the hyperbolic geometry is not used.
        curvature: c, where the space has curvature -c. Toward 0: the space has become flat.
        curvature_at_clamp: 1 when c is at an end of its allowed range: training would have moved it further.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> image, gene = rng.normal(size=(2, 40, 8)) * 0.5
        >>> levels = {"num_genes": np.arange(40), "total_counts": np.arange(40) * 2}
        >>> found = hierarchy_report(image, gene, 1.0, slides=["a"] * 40, **levels)
        >>> 0.3 < found["entailment_auc"] < 0.7  # random points: chance
        True
    """
    image, gene = finite_matrix(image_embeds, "image_embeds"), finite_matrix(gene_embeds, "gene_embeds")
    names = group_names(slides, len(image), "slides")
    genes, counts = np.asarray(num_genes, dtype=float), np.asarray(total_counts, dtype=float)
    cone: dict[str, Any] = {"parent": parent, "min_radius": min_radius, "aperture_scale": aperture_scale}
    if statistics is None:
        statistics = hierarchy_statistics(
            image, gene, curvature, num_genes=genes, total_counts=counts, slides=names, labels=labels, **cone
        )
    everyone = np.arange(len(image))
    result = {name: statistic(everyone) for name, statistic in statistics.items()}
    # In float32, as in the log of a training, whose control does not know slides.
    logged = cone_statistics(torch.from_numpy(image), torch.from_numpy(gene), curvature, **cone)
    result |= {name: value for name, value in logged.items() if name != "in_cone_mismatched"}
    order = permutation_within(names, seed)
    apex, child = (gene, image) if parent == "gene" else (image, gene)
    foreign = entailment_rankings(apex, child[order], curvature, min_radius)
    result |= {f"{name}_shuffled": float(np.nanmean(foreign[name])) for name in _RANKED}
    shuffled = genes[order]
    kept = np.zeros(len(image), dtype=bool) if labels is None else ~missing_rows(labels)
    for modality, embeds in (("image", image), ("gene", gene)):
        radii = radius(torch.from_numpy(embeds), curvature).numpy()
        result[f"{modality}_radius_genes_shuffled"] = rank_correlation(radii, shuffled, names)
        if kept.any():
            truth = np.asarray(labels, dtype=object)[kept].astype(str)
            result[f"{modality}_radius_label_eta"] = explained_by_labels(radii[kept], truth, names[kept])
    both = np.concatenate([image, gene])
    result["delta_hyperbolic"] = delta_hyperbolicity(both, curvature, seed=seed)
    tangent = log_map0(torch.from_numpy(both), curvature).numpy()
    result["delta_euclidean"] = delta_hyperbolicity(tangent, None, seed=seed)
    result["curvature"] = float(curvature)
    if curvature_bounds is not None:
        low, high = np.log(curvature_bounds)
        result["curvature_at_clamp"] = float(min(np.log(curvature) - low, high - np.log(curvature)) < 1e-3)
    return result


# Their chance is what the slide alone tells: an embedding of the slide and nothing else has an AUC of 0.74 over two slides.
_RANKED = ("entailment_auc", "entailment_asymmetry", "entailment_auc_decile")
# Number -> what a high and a low value mean, read from the docstring above.
MEANINGS = {
    name: " ".join(text.split())
    for name, text in re.findall(
        r"^ {4}(\w+): (.*(?:\n {8}.*)*)",
        (inspect.getdoc(hierarchy_report) or "").partition("Returns:\n")[2],
        re.MULTILINE,
    )
}


def hierarchy_statistics(
    image_embeds: np.ndarray,
    gene_embeds: np.ndarray,
    curvature: float,
    *,
    num_genes: np.ndarray,
    total_counts: np.ndarray,
    slides: np.ndarray,
    labels: Sequence[str | None] | np.ndarray | None = None,
    parent: str = "gene",
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
) -> dict[str, Statistic]:
    """Return numbers of `hierarchy_report` as functions of resampled spots; arguments are those.

    Left out are the curvature, which does not depend on spots, and Gromov's delta, a maximum, for which a bootstrap is invalid.
    """
    image, gene = (torch.from_numpy(np.asarray(embeds)).double() for embeds in (image_embeds, gene_embeds))
    apex, child = (gene, image) if parent == "gene" else (image, gene)
    # In float32, like `cone_statistics` of a model's own output.
    matched, mismatched = np.empty((2, len(apex)))
    for slide in np.unique(slides):
        rows = np.flatnonzero(slides == slide)
        pairs = apex[rows].float(), child[rows].float()
        matched[rows], mismatched[rows] = cone_membership(*pairs, curvature, min_radius, aperture_scale)
    rankings = entailment_rankings(apex.numpy(), child.numpy(), curvature, min_radius)
    means = {"in_cone_matched": matched, "in_cone_mismatched": mismatched, **rankings}
    result: dict[str, Statistic] = {}
    groups = {f"quarter_{i + 1}": rows for i, rows in enumerate(_quarters(num_genes, slides))}
    if labels is not None:
        known, names = ~missing_rows(labels), np.asarray(labels, dtype=object).astype(str)
        groups |= {str(label): known & (names == label) for label in np.unique(names[known])}
    for modality, embeds in (("image", image), ("gene", gene)):
        radii, prefix = radius(embeds, curvature).numpy(), f"{modality}_radius"
        means[prefix] = radii
        means[f"{modality}_half_aperture"] = torch.rad2deg(half_aperture(embeds, curvature, min_radius)).numpy()
        means |= {f"{prefix}_of_{name}": np.where(rows, radii, np.nan) for name, rows in groups.items()}
        result[f"{prefix}_level_rho"] = spearman_statistic(radii, num_genes)
        for name, columns in (
            ("genes_within", [radii, num_genes]),
            ("counts_within", [radii, total_counts]),
            ("genes_given_counts", [radii, num_genes, total_counts]),
        ):
            result[f"{prefix}_{name}"] = within_slides(spearman_statistic, columns, slides)
    return result | {name: mean_statistic(values) for name, values in means.items()}


def _quarters(level: np.ndarray, slides: np.ndarray) -> list[np.ndarray]:
    """Return masks (spots,) of the four quarters of a level within each slide, low to high."""
    of_slide = pd.Series(level).groupby(slides)
    place = ((of_slide.rank(method="first") - 1) / of_slide.transform("size")).to_numpy()
    return [(place >= i / 4) & (place < (i + 1) / 4) for i in range(4)]


def rank_correlation(
    values: np.ndarray, level: np.ndarray, slides: np.ndarray | None = None, given: np.ndarray | None = None
) -> float:
    """Return the Spearman correlation: with `slides` the mean over them weighted by spots, with `given` partial on ranks.

    Returns:
        In [-1, 1]; 0.0 where an argument is constant or `given` explains the level entirely.
    """
    columns = [values, level] if given is None else [values, level, given]
    whole = spearman_statistic(*columns) if slides is None else within_slides(spearman_statistic, columns, slides)
    return whole(np.arange(len(values)))


def explained_by_labels(values: np.ndarray, labels: np.ndarray, slides: np.ndarray) -> float:
    """Return the share (0 to 1) of the variance of within-slide ranks that the labels explain, less chance (epsilon squared).

    Examples:
        >>> explained_by_labels(np.arange(6.0), np.repeat(["a", "b"], 3), np.repeat("s", 6)) > 0.5
        True
    """
    ranks = pd.Series(values).groupby(slides).rank(pct=True)
    groups = ranks.groupby(labels)
    if ranks.nunique() < 2 or groups.ngroups < 2 or len(ranks) <= groups.ngroups:
        return 0.0
    within = ((ranks - groups.transform("mean")) ** 2).sum() / (len(ranks) - groups.ngroups)
    return float(max(0.0, 1 - within / ranks.var()))


def delta_hyperbolicity(points: ArrayLike, curvature: float | None, max_points: int = 300, seed: int = 0) -> float:
    """Return the relative Gromov delta, 2 delta / diameter, of some points by the four-point condition from one base point.

    Source: Khrulkov et al., arXiv 1904.02239. The base point is the first of the sample, so delta is exact within a factor 2.

    Args:
        points: (points, dim); space parts when `curvature` is given.
        curvature: Positive c for geodesic distances, None for straight ones.
        max_points: Sample size; the work grows with its cube.
        seed: Seed of the sample.

    Returns:
        0 for a tree (then hyperbolic space is the right one) up to 1; a sphere or a cloud of noise lies near 0.3 to 0.6.
    """
    matrix = finite_matrix(points, "points")
    if len(matrix) > max_points:
        matrix = matrix[np.random.default_rng(seed).choice(len(matrix), max_points, replace=False)]
    tensor = torch.from_numpy(matrix)
    if curvature is None:
        distances = torch.cdist(tensor, tensor, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    else:
        distances = pairwise_distance(tensor, tensor, curvature).numpy()
    return relative_delta(distances)


def relative_delta(distances: np.ndarray) -> float:
    """Return 2 delta / diameter of a matrix of distances (points, points), with the first point as the base point."""
    diameter = distances.max()
    if diameter == 0:
        return 0.0
    products = (distances[0][:, None] + distances[0][None] - distances) / 2
    deepest = np.full_like(products, -np.inf)
    for column in range(len(products)):
        np.maximum(deepest, np.minimum(products[:, column][:, None], products[column][None]), out=deepest)
    return float(2 * (deepest - products).max() / diameter)


def run(findings: Findings) -> None:
    """Report the hierarchy of the space, slide by slide and over all."""
    space, spots = findings.space, findings.spots
    if space is None or space.geometry != "lorentz":
        raise ValueError("only a Lorentz space has a hierarchy")
    genes, totals = np.diff(spots.counts.indptr).astype(float), np.asarray(spots.counts.sum(axis=1)).reshape(-1)
    slides = list(np.unique(spots.slides[spots.test]))
    for slide in [*(slides if len(slides) > 1 else []), None]:
        rows = np.flatnonzero(spots.test if slide is None else spots.test & (spots.slides == slide))
        if len(rows) < 3:
            where = "the evaluation" if slide is None else f"slide {slide}"
            findings.skip("hierarchy", f"{where} has {len(rows)} test spots; 3 are needed")
            continue
        given: dict[str, Any] = {
            "image_embeds": space.image[rows],
            "gene_embeds": space.gene[rows],
            "curvature": float(space.curvature),  # type: ignore[arg-type]
            "num_genes": genes[rows],
            "total_counts": totals[rows],
            "slides": spots.slides[rows],
            "labels": spots.labels[rows],
            "parent": space.parent,
            "min_radius": space.min_radius,
            "aperture_scale": space.aperture_scale,
        }
        statistics = hierarchy_statistics(**given)
        scores = hierarchy_report(
            **given, curvature_bounds=space.curvature_bounds, seed=findings.seed, statistics=statistics
        )
        if slide is None:
            findings.add("hierarchy", space.name, scores, statistics, rows, own=True)
        else:
            findings.add("hierarchy", space.name, scores, own=True, slide=str(slide))


PROTOCOL = Protocol(
    name="hierarchy",
    run=run,
    title="Hierarchy",
    headline="entailment_auc",
    chance={
        **{name: f"{name}_shuffled" for name in _RANKED},
        "in_cone_matched": "in_cone_mismatched",
        "image_radius_genes_within": "image_radius_genes_shuffled",
        "gene_radius_genes_within": "gene_radius_genes_shuffled",
    },
    note="The radius is the distance to the origin: low is general, high is specific. The share of children in their parents' "
    "cones is meaningful only above its control.",
    meanings=MEANINGS,
    cost=2.0,
)
