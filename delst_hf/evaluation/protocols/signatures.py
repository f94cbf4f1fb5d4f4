"""Draw zero-shot maps of gene signatures in a shared space of images and genes, without fitting anything.

A gene signature becomes an expression profile, the model embeds the profile, and every spot gets the similarity of its image
to that profile. No label is used; labels only score the map.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import did_you_mean, reading
from ...model.feature_extraction_delst import log_normalize
from ..evidence import Spots
from ..findings import Findings
from ..preparation import finite_matrix, missing_rows
from ..resampled import auroc_statistic
from ..retrieval import as_inner_product
from . import Protocol


def read_signatures(path: str | None) -> dict[str, Any]:
    """Read the gene signatures of a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a mapping of name to {"genes": ...} or {"profile": ...}.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"no signatures at {path}. Give the path of a JSON file.")
    with reading(path, "signatures", "Give a JSON file in UTF-8."):
        signatures = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(signatures, dict) or not all(
        isinstance(value, dict) and (value.get("genes") or value.get("profile")) for value in signatures.values()
    ):
        raise ValueError(
            f'{path} must be JSON such as {{"HER2": {{"genes": ["ERBB2", "GRB7"], "region": "invasive cancer"}}}}: a name, '
            "its genes (a list, or a mapping to weights) or a profile (a mapping to counts), and a label to find, if any."
        )
    return signatures


def signature_profile(
    signature: Mapping[str, float] | Sequence[str],
    genes: Sequence[str],
    mean: ArrayLike,
    spread: ArrayLike,
    strength: float = 2.0,
) -> np.ndarray:
    """Turn a signature into the profile of a spot that has it: the mean profile with the signature's genes raised.

    Genes outside the signature stay at their mean, so that the profile resembles those that a gene encoder was trained on; all
    zeros would be a spot without RNA.

    Args:
        signature: Gene name -> weight (negative: lowered), or names, each of weight 1.
        genes: (genes,) names of the columns.
        mean: (genes,) mean normalised expression of reference spots, usually training spots.
        spread: (genes,) their standard deviation.
        strength: How many standard deviations a weight of 1 raises a gene.

    Returns:
        (genes,) float64 normalised expression, never below 0. A reference profile needs no such step: pass its own
        normalised expression to the model.

    Raises:
        ValueError: If fewer than half of the signature's genes are among `genes`.

    Examples:
        >>> signature_profile(["ERBB2"], ["ERBB2", "KRT8"], mean=[1.0, 2.0], spread=[0.5, 0.5]).tolist()
        [2.0, 2.0]
    """
    weights = dict(signature) if isinstance(signature, Mapping) else dict.fromkeys(signature, 1.0)
    known_genes("the signature", {"genes": weights}, genes)
    profile, width = np.array(mean, dtype=np.float64), np.asarray(spread, dtype=np.float64)
    for index, name in enumerate(map(str, genes)):
        if name in weights:
            profile[index] += strength * weights[name] * width[index]
    return np.maximum(profile, 0.0)


def known_genes(name: str, signature: Mapping[str, Any], genes: Sequence[str]) -> str:
    """Count the genes of a signature, or of a reference profile, that a model reads.

    A map of less than half of its genes would not show the signature that it is named after, so half of them must be known;
    a reference profile, which names thousands of genes, needs one.

    Args:
        name: What to call it in an error.
        signature: {"genes": ...} or {"profile": ...}, as in `reference_profiles`.
        genes: The genes that the model reads and the dataset has.

    Returns:
        Such as "3 of 5 genes".

    Raises:
        ValueError: If too few are known.

    Examples:
        >>> known_genes("HER2", {"genes": ["ERBB2", "GRB7", "STARD3"]}, ["ERBB2", "GRB7", "KRT8"])
        '2 of 3 genes'
    """
    wanted = list(signature.get("genes") or signature.get("profile") or ())
    readable = set(map(str, genes))
    absent = [gene for gene in wanted if gene not in readable]
    number = len(wanted) - len(absent)
    least = len(wanted) / 2 if signature.get("genes") else 1
    if number < max(least, 1):
        shown = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
        raise ValueError(
            f"{name}: {number} of {len(wanted)} genes are among the {len(readable)} that the model reads; "
            f"{'half of them' if signature.get('genes') else 'one'} is the least. Absent: {shown}."
            f"{did_you_mean(absent[:8], readable)} Give names of the same kind "
            "(symbol or Ensembl id), species and case, leave the signature out, or train with a vocabulary that holds them."
        )
    return f"{number} of {len(wanted)} genes"


def reference_profiles(
    vocabulary: Sequence[str], spots: Spots, signatures: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Collect the profiles of genes that are to be embedded.

    Args:
        vocabulary: (genes,) names of the genes that the model reads.
        spots: The spots; means and standard deviations are taken over `Spots.reference`.
        signatures: Name -> {"genes": {gene: weight} or [genes]} or {"profile": {gene: counts}}, and "region": the label that it
            should find, if there is one.

    Returns:
        Name -> normalised expression (genes,): "mean profile", each signature and, where some spots are not scored, the mean
        profile of each label among these spots. And name -> label, for the profiles that have a label to find.

    Raises:
        ValueError: If fewer than half of the genes of a signature are in the vocabulary and the dataset.
    """
    column = {name: index for index, name in enumerate(spots.genes)}
    rows = np.flatnonzero(spots.reference)
    shared = [index for index, name in enumerate(vocabulary) if name in column]
    expression = np.zeros((len(rows), len(vocabulary)), dtype=np.float32)
    expression[:, shared] = log_normalize(spots.counts[rows], spots.target_sum)[
        :, [column[vocabulary[i]] for i in shared]
    ].toarray()
    mean, spread = expression.mean(axis=0), expression.std(axis=0)
    profiles, regions = {"mean profile": mean.astype(np.float64)}, {}
    for name, signature in signatures.items():
        if "profile" in signature:
            profiles[name] = _measured_profile(signature["profile"], vocabulary, mean, spots.target_sum)
        else:
            profiles[name] = signature_profile(signature["genes"], vocabulary, mean, spread)
        if signature.get("region"):
            regions[name] = str(signature["region"])
    labels = spots.labels[rows]
    for label in np.unique(labels[~missing_rows(labels)].astype(str)) if not spots.test.all() else ():
        profiles[f"mean profile of {label}"] = expression[labels == label].mean(axis=0).astype(np.float64)
        regions[f"mean profile of {label}"] = str(label)
    return profiles, regions


def _measured_profile(
    counts: Mapping[str, float], vocabulary: Sequence[str], mean: np.ndarray, target_sum: float
) -> np.ndarray:
    """Normalise a profile of counts, such as a cell type of an atlas; genes that it does not name stay at the mean."""
    total = float(sum(counts.values()))
    known = [index for index, name in enumerate(vocabulary) if name in counts]
    if not known or total <= 0:
        raise ValueError(
            f"{len(known)} of the profile's {len(counts)} genes ({', '.join(list(counts)[:5])}) are among the "
            f"{len(vocabulary)} genes of the model, and its counts add up to {total:g}. Give counts by names of the same kind, "
            "species and case."
        )
    profile = np.array(mean, dtype=np.float64)
    profile[known] = np.log1p([counts[vocabulary[index]] * target_sum / total for index in known])
    return profile


def signature_map(
    signature_embeds: ArrayLike,
    spot_embeds: ArrayLike,
    geometry: str,
    curvature: float | None = None,
    reference_embeds: ArrayLike | None = None,
) -> np.ndarray:
    """Return the similarity of every spot to every signature, in the geometry of the model.

    Args:
        signature_embeds: (signatures, dim) gene embeddings of the profiles.
        spot_embeds: (spots, dim) image (or gene) embeddings.
        geometry: "cosine", "euclidean" or "lorentz".
        curvature: positive c, for "lorentz".
        reference_embeds: (1, dim) embedding of the mean profile. Its similarity is subtracted from that of the signature, so
            that spots far from every profile do not look as if they lacked the signature.

    Returns:
        (spots, signatures) scores, high where the signature is: cosine, or the negative distance.

    Examples:
        >>> spots = np.random.default_rng(0).normal(size=(6, 3))
        >>> scores = signature_map(spots[2:3], spots, "cosine")
        >>> scores.shape, int(scores.argmax())
        ((6, 1), 2)
    """
    signatures = finite_matrix(signature_embeds, "signature_embeds")
    spots = finite_matrix(spot_embeds, "spot_embeds")
    scores = _similarity(spots, signatures, geometry, curvature)
    if reference_embeds is not None:
        scores = scores - _similarity(spots, finite_matrix(reference_embeds, "reference_embeds"), geometry, curvature)
    return scores


def _similarity(queries: np.ndarray, targets: np.ndarray, geometry: str, curvature: float | None) -> np.ndarray:
    """Return cosine, or negative distance, (queries, targets)."""
    left, right = as_inner_product(queries, targets, geometry, curvature)
    if geometry == "cosine":
        return left @ right.T
    if geometry == "euclidean":
        return -np.linalg.norm(queries[:, None] - targets[None], axis=2)
    c = float(curvature)  # type: ignore[arg-type]  # as_inner_product has refused None
    return -np.arccosh(np.maximum(-c * (left @ right.T), 1.0)) / np.sqrt(c)


def run(findings: Findings) -> None:
    """Draw zero-shot maps and, with labels, score how well each finds its region and every other region."""
    space, spots = findings.need_space(), findings.spots
    if not space.signatures:
        raise ValueError("no signature was given and no training spot has a label")
    known = np.flatnonzero(spots.test & ~missing_rows(spots.labels))
    truth = spots.labels[known]
    labels = np.unique(truth.astype(str)).tolist()
    for name, embeds in space.signatures.items():
        scores = signature_map(embeds[None], space.image, space.geometry, space.curvature, space.mean_profile)[:, 0]
        findings.keep(f"signature:{name}", findings.test_rows, scores[findings.test_rows])
        if len(labels) < 2:
            continue
        statistics = {f"auroc_of_{label}": auroc_statistic(scores[known], truth, label) for label in labels}
        region = space.regions.get(name)
        if region in labels:
            statistics["auroc"] = statistics[f"auroc_of_{region}"]
        facts: dict[str, Any] = {"region": region, "genes": space.gene_shares.get(name)}
        findings.add("signatures", name, {}, statistics, known, own=True, **facts)


PROTOCOL = Protocol(
    name="signatures",
    run=run,
    title="Zero-shot maps of signatures",
    headline="auroc",
    chance={"auroc": 0.5},
    note="AUROC of a signature's map for the region that it should find. The map itself uses no labels.",
    cost=1.0,
)
