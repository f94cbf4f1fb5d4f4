"""Zero-shot maps and expression by retrieval: what a shared space of images and genes gives without fitting anything.

A gene signature becomes an expression profile, the model embeds the profile, and every spot gets the similarity of its image
to it. No label is used; labels only score the map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from ...model.normalization import log_normalize
from ..evidence import Spots
from ..expression import gene_pearson
from ..preparation import finite_matrix, group_names, missing_rows
from ..retrieval import as_inner_product


def signature_profile(
    signature: Mapping[str, float] | Sequence[str],
    genes: Sequence[str],
    mean: ArrayLike,
    spread: ArrayLike,
    strength: float = 2.0,
) -> np.ndarray:
    """Turn a signature into the profile of a spot that has it: the mean spot, its genes raised.

    Genes outside the signature stay at their mean, so that the profile is one that a gene encoder has seen the like of; all
    zeros would be a spot without RNA.

    Args:
        signature: Gene name -> weight (negative: lowered), or names, each of weight 1.
        genes: (genes,) names of the columns.
        mean: (genes,) mean normalised expression of reference spots, training spots as a rule.
        spread: (genes,) their standard deviation.
        strength: how many standard deviations a weight of 1 raises a gene.

    Returns:
        (genes,) float64 normalised expression, never below 0. A reference profile needs no such step: pass its own
        normalised expression to the model.

    Raises:
        ValueError: if no gene of the signature is among `genes`.
    """
    weights = dict(signature) if isinstance(signature, Mapping) else dict.fromkeys(signature, 1.0)
    position = {str(name): index for index, name in enumerate(genes)}
    known = {name: weight for name, weight in weights.items() if name in position}
    if not known:
        raise ValueError(
            f"none of the signature's {len(weights)} genes ({', '.join(list(weights)[:5])}) is among the {len(position)} genes "
            "of the model. Give names of the same kind (symbol or Ensembl id), species and case."
        )
    profile, width = np.array(mean, dtype=np.float64), np.asarray(spread, dtype=np.float64)
    for name, weight in known.items():
        profile[position[name]] += strength * weight * width[position[name]]
    return np.maximum(profile, 0.0)


def reference_profiles(
    vocabulary: Sequence[str], spots: Spots, signatures: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Everything that is to be embedded as a profile of genes.

    Args:
        vocabulary: (genes,) names of the genes that the model reads.
        spots: The spots; means and spreads are those of `Spots.reference`.
        signatures: Name -> {"genes": {gene: weight} or [genes]} or {"profile": {gene: counts}}, and "region": the label that it
            should find, if there is one.

    Returns:
        Name -> normalised expression (genes,): "mean profile", each signature, and the mean profile of each label, the last
        only from spots that are not scored. And name -> label, for those that have a label to find.

    Raises:
        ValueError: if no gene of a signature is in the vocabulary.
    """
    column = {name: index for index, name in enumerate(spots.genes)}
    rows = np.flatnonzero(spots.reference)
    shared = [index for index, name in enumerate(vocabulary) if name in column]
    expression = np.zeros((len(rows), len(vocabulary)), dtype=np.float32)
    expression[:, shared] = log_normalize(spots.counts[rows])[:, [column[vocabulary[i]] for i in shared]].toarray()
    mean, spread = expression.mean(axis=0), expression.std(axis=0)
    profiles, regions = {"mean profile": mean.astype(np.float64)}, {}
    for name, signature in signatures.items():
        if "profile" in signature:
            profiles[name] = _measured_profile(signature["profile"], vocabulary, mean)
        else:
            profiles[name] = signature_profile(signature["genes"], vocabulary, mean, spread)
        if signature.get("region"):
            regions[name] = str(signature["region"])
    labels = spots.labels[rows]
    for label in np.unique(labels[~missing_rows(labels)].astype(str)) if not spots.test.all() else ():
        profiles[f"mean profile of {label}"] = expression[labels == label].mean(axis=0).astype(np.float64)
        regions[f"mean profile of {label}"] = str(label)
    return profiles, regions


def _measured_profile(counts: Mapping[str, float], vocabulary: Sequence[str], mean: np.ndarray) -> np.ndarray:
    """Normalised expression of a profile of counts, such as a cell type of an atlas; genes not named stay at the mean."""
    total = float(sum(counts.values()))
    known = [index for index, name in enumerate(vocabulary) if name in counts]
    if not known or total <= 0:
        raise ValueError(
            f"{len(known)} of the profile's {len(counts)} genes ({', '.join(list(counts)[:5])}) are among the "
            f"{len(vocabulary)} genes of the model, and its counts add up to {total:g}. Give counts by names of the same kind, "
            "species and case."
        )
    profile = np.array(mean, dtype=np.float64)
    profile[known] = np.log1p([counts[vocabulary[index]] * 1e4 / total for index in known])
    return profile


def signature_map(
    signature_embeds: ArrayLike,
    spot_embeds: ArrayLike,
    geometry: str,
    curvature: float | None = None,
    reference_embeds: ArrayLike | None = None,
) -> np.ndarray:
    """Similarity of every spot to every signature, in the geometry of the model.

    Args:
        signature_embeds: (signatures, dim) gene embeddings of the profiles.
        spot_embeds: (spots, dim) image (or gene) embeddings.
        geometry: "cosine", "euclidean" or "lorentz".
        curvature: positive c, for "lorentz".
        reference_embeds: (1, dim) embedding of the mean profile: with it the map is how much more similar a spot is to the
            signature than to the average spot, so that spots far from everything do not look like signatures missing.

    Returns:
        (spots, signatures) scores, high where the signature is; cosine, or the negative distance.
    """
    signatures = finite_matrix(signature_embeds, "signature_embeds")
    spots = finite_matrix(spot_embeds, "spot_embeds")
    scores = _similarity(spots, signatures, geometry, curvature)
    if reference_embeds is not None:
        scores = scores - _similarity(spots, finite_matrix(reference_embeds, "reference_embeds"), geometry, curvature)
    return scores


def region_auroc(scores: ArrayLike, labels: Sequence[str | None] | np.ndarray) -> dict[str, float]:
    """How well one map finds each region: AUROC of its scores, the region's spots against all other labelled spots.

    Args:
        scores: (spots,) of one signature.
        labels: (spots,) strings, None where nobody labelled the spot.

    Returns:
        Label -> probability that a spot of the region scores above one outside it (ties count half): 1 is perfect, 0.5 is
        chance, below 0.5 the signature is elsewhere. A label that all or none of the labelled spots have is left out.

    Raises:
        ValueError: if scores and labels differ in number or a score is not finite.
    """
    values = finite_matrix(np.asarray(scores, dtype=np.float64).reshape(-1, 1), "scores")[:, 0]
    if len(values) != len(labels):
        raise ValueError(
            f"{len(values)} scores and {len(labels)} labels; pass one label per spot, None where there is none."
        )
    kept = ~missing_rows(labels)
    truth, ranks = np.asarray(labels, dtype=object)[kept].astype(str), rankdata(values[kept])
    result = {}
    for label in np.unique(truth):
        inside = truth == label
        n, m = int(inside.sum()), int((~inside).sum())
        if m:
            result[str(label)] = float((ranks[inside].sum() - n * (n + 1) / 2) / (n * m))
    return result


def impute_by_retrieval(
    query_embeds: ArrayLike,
    target_embeds: ArrayLike,
    target_expression: ArrayLike,
    geometry: str,
    curvature: float | None = None,
    k: int = 20,
) -> np.ndarray:
    """Predict expression of image spots as the mean profile of the k gene embeddings nearest to each (BLEEP's way).

    Args:
        query_embeds: (queries, dim) image embeddings of spots whose expression is wanted.
        target_embeds: (targets, dim) gene embeddings of spots whose expression is known: training spots.
        target_expression: (targets, genes).
        geometry: "cosine", "euclidean" or "lorentz".
        curvature: positive c, for "lorentz".
        k: neighbours; all of them when there are fewer.

    Returns:
        (queries, genes), to be scored by `gene_pearson`.

    Raises:
        ValueError: if k is not positive, or the targets differ in number.
    """
    queries, targets = finite_matrix(query_embeds, "query_embeds"), finite_matrix(target_embeds, "target_embeds")
    known = finite_matrix(target_expression, "target_expression")
    if len(known) != len(targets):
        raise ValueError(
            f"{len(targets)} target_embeds and {len(known)} rows of target_expression; they must be as many."
        )
    if k < 1:
        raise ValueError(f"k is {k}; allowed is 1 or more. 20 neighbours are usual.")
    left, right = as_inner_product(queries, targets, geometry, curvature)
    k = min(k, len(targets))
    predicted = np.empty((len(queries), known.shape[1]))
    for start in range(0, len(queries), 1024):
        rows = slice(start, start + 1024)
        nearest = np.argsort(-(left[rows] @ right.T), axis=1, kind="stable")[:, :k]
        predicted[rows] = known[nearest].mean(axis=1)
    return predicted


def imputation_scores(
    predicted: ArrayLike, measured: ArrayLike, slides: Sequence[Any] | np.ndarray | None = None
) -> dict[str, float]:
    """Mean gene-wise Pearson of imputed expression, pooled and, with `slides`, within slide: 1 is perfect, 0 is chance."""
    first, second = finite_matrix(predicted, "predicted"), finite_matrix(measured, "measured")
    scores = gene_pearson(first, second)
    result = {"imputation_pearson": float(np.nanmean(scores)), "num_genes": float((~np.isnan(scores)).sum())}
    if slides is not None:
        names = group_names(slides, len(first), "slides")
        by_slide = [gene_pearson(first[names == name], second[names == name]) for name in np.unique(names)]
        result["imputation_pearson_within"] = float(np.mean([np.nanmean(values) for values in by_slide]))
    return result


def _similarity(queries: np.ndarray, targets: np.ndarray, geometry: str, curvature: float | None) -> np.ndarray:
    """Cosine, or negative distance, (queries, targets)."""
    left, right = as_inner_product(queries, targets, geometry, curvature)
    if geometry == "cosine":
        return left @ right.T
    if geometry == "euclidean":
        return -np.linalg.norm(queries[:, None] - targets[None], axis=2)
    c = float(curvature)  # type: ignore[arg-type]  # as_inner_product has refused None
    return -np.arccosh(np.maximum(-c * (left @ right.T), 1.0)) / np.sqrt(c)
