"""Choose the genes that the gene encoder reads, on the spots of the training slides only.

`vocabulary_file` reads and writes vocabularies; `markers` lists well-known markers that a vocabulary may lack.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from datasets import Dataset
from scipy.spatial import cKDTree

from ..model.feature_extraction_delst import log_normalize
from .study import Study

logger = logging.getLogger(__name__)

METHODS = ("hvg", "spatial", "detected", "list", "all")
RANKINGS = ("pearson_residuals", "variance")
# Spots read at a time, and spots per dense block of residuals: both bound the memory.
_SPOTS, _BLOCK = 2048, 128
# Overdispersion of counts that share a mean (Lause, Berens and Kobak, 2021, and scanpy's default).
_THETA = 100.0
# Moran's I is computed on at most this many neighbouring spots of a slide, which bounds the memory.
_SPATIAL_SPOTS = 5000
_NEIGHBOURS = 6


@dataclass(frozen=True)
class GeneMoments:
    """Statistics by which a vocabulary is chosen; the means also replace genes that a panel lacks.

    Attributes:
        detected: Number of spots in which each gene was found (genes,).
        mean: Mean of the gene's normalised counts, ``log1p``, over the spots (genes,).
        variance: Variance of the same (genes,).
        total: Sum of the gene's raw counts (genes,).
        spots: Number of spots.
    """

    detected: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    total: np.ndarray
    spots: int


def _alone(*sums: Any) -> tuple[Any, ...]:
    """Return the sums unchanged, for a single process that reads all spots."""
    return sums


def gene_moments(
    batches: Iterable[scipy.sparse.csr_matrix], target_sum: float = 1e4, summed: Callable[..., tuple[Any, ...]] = _alone
) -> GeneMoments:
    """Return the moments of every gene, one batch of spots in memory at a time.

    Args:
        batches: Raw counts (spots, genes), for example `Study.count_batches`; at least one.
        target_sum: Library size of the normalisation, the processor's.
        summed: Function that sums over processes, each of which reads a part of the spots (`Study.summed`).
    """
    detected: Any = 0.0
    mean: Any = 0.0
    square: Any = 0.0
    total: Any = 0.0
    spots = 0
    for counts in batches:
        values = log_normalize(counts, target_sum).astype(np.float64)
        detected = detected + np.bincount(values.indices[values.data > 0], minlength=values.shape[1])
        mean = mean + np.asarray(values.sum(0)).ravel()
        square = square + np.bincount(values.indices, weights=values.data**2, minlength=values.shape[1])
        total = total + np.asarray(counts.sum(0, dtype=np.float64)).ravel()
        spots += counts.shape[0]
    detected, mean, square, total, spots = summed(detected, mean, square, total, spots)
    mean = mean / max(spots, 1)
    return GeneMoments(detected, mean, square / max(spots, 1) - mean**2, total, spots)


def residual_variance(
    batches: Iterable[scipy.sparse.csr_matrix], moments: GeneMoments, summed: Callable[..., tuple[Any, ...]] = _alone
) -> np.ndarray:
    """Return the variance of every gene's analytic Pearson residuals (genes,): its variation beyond what its mean explains.

    A residual is (x - mu) / sqrt(mu + mu^2 / 100), clipped to the square root of the number of spots, where mu is the share of
    the gene in all counts times the counts of the spot (Lause, Berens and Kobak, 2021; scanpy's
    ``experimental.pp.highly_variable_genes``). For Poisson noise it is about 1, or less for a highly expressed gene.

    Args:
        batches: Raw counts (spots, genes) of the same spots as the moments.
        moments: Moments of these spots.
        summed: As in `gene_moments`.
    """
    share = moments.total / max(moments.total.sum(), 1.0)
    clip = np.sqrt(max(moments.spots, 1))
    total, square = np.zeros_like(share), np.zeros_like(share)
    for counts in batches:
        depth = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
        # For a count of 0, as are all but a few per cent, the square of the residual is mu / (1 + mu / 100).
        for start in range(0, len(depth), _BLOCK):
            zeros = np.outer(depth[start : start + _BLOCK], share)
            zeros /= 1 + zeros / _THETA
            np.minimum(zeros, clip**2, out=zeros)
            square += zeros.sum(0)
            total -= np.sqrt(zeros, out=zeros).sum(0)
        found = counts.tocoo()
        mean = depth[found.row] * share[found.col]
        zero = np.minimum(np.sqrt(mean / (1 + mean / _THETA)), clip)
        with np.errstate(invalid="ignore"):  # a stored zero of a gene without any count
            own = np.nan_to_num(np.clip((found.data - mean) / np.sqrt(mean + mean**2 / _THETA), -clip, clip))
        square += np.bincount(found.col, weights=own**2 - zero**2, minlength=len(share))
        total += np.bincount(found.col, weights=own + zero, minlength=len(share))
    square, total = summed(square, total)
    return np.asarray(square / max(moments.spots, 1) - (total / max(moments.spots, 1)) ** 2)


def choose_genes(
    study: Study,
    slides: Sequence[str] | None = None,
    *,
    method: str = "hvg",
    ranking: str = "pearson_residuals",
    num_genes: int | None = 1000,
    min_spots: float = 0.02,
    wanted: Sequence[str] | None = None,
    include: Sequence[str] = (),
    seed: int = 0,
    target_sum: float = 1e4,
    moments: GeneMoments | None = None,
) -> list[str]:
    """Choose genes on the training slides of a study, reading some thousand spots at a time.

    Args:
        study: The study.
        slides: Training slides; by default those of the split ``train``, see `training_slides`. If the spots of a slide are
            split, only its training spots are used.
        method: ``"hvg"``, highly variable genes by `ranking`; ``"spatial"``, the highest Moran's I over neighbouring spots,
            averaged over slides; ``"detected"``, genes found in the most spots; ``"list"``, genes of ``wanted`` that are in the
            dataset; ``"all"``.
        ranking: Ranking for ``"hvg"``: ``"pearson_residuals"``, the variance beyond what the mean of a gene explains
            (`residual_variance`), or ``"variance"``, the variance of ``log1p`` of normalised counts, which favours genes of
            medium means over markers.
        num_genes: Number of genes to keep, including ``include``; None keeps all. Not used by ``"list"`` and ``"all"``.
        min_spots: Least share of the spots in which a gene must be detected; not used by ``"list"`` and ``"all"``.
        wanted: Names or Ensembl ids for ``"list"``.
        include: Names or Ensembl ids that come first, whatever their rank.
        seed: Seed of the neighbourhood that ``"spatial"`` reads of a large slide.
        target_sum: Library size of the normalisation.
        moments: Moments of the training spots, if they are known already.

    Returns:
        Names: those of ``include``, then the best first (for ``"list"`` and ``"all"`` in the given order).

    Raises:
        ValueError: If the method or ranking is unknown, slides are not in the study, or no gene is left.

    Examples:
        >>> from delst_hf import Study
        >>> study = Study.load("runs/toy/data")
        >>> genes = choose_genes(study, ["toy_A1", "toy_A2"], num_genes=20)
        >>> len(genes), set(genes) <= set(study.gene_names)
        (20, True)
    """
    for name, value, allowed in (("method", method, METHODS), ("ranking", ranking, RANKINGS)):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}. Allowed: {', '.join(map(repr, allowed))} (--{name}).")
    if not 0 <= min_spots <= 1:
        raise ValueError(f"min_spots is {min_spots}. Allowed: a share of the spots, 0 to 1 (--min-spots).")
    names, ids = np.asarray(study.gene_names, dtype=object), study.genes["gene_id"].tolist()
    if method == "list":
        return find_genes(names.tolist(), ids, wanted or (), "--genes FILE")
    if not len(names):
        raise ValueError(
            "There are no counts: the slides are images alone (delst prepare image). Give slides with counts."
        )
    first = np.zeros(len(names), dtype=bool)
    first[np.unique(names.astype(str), return_index=True)[1]] = True
    if method == "all":
        return [str(name) for name in names[first]]
    chosen = find_genes(names.tolist(), ids, include, "--include GENES") if include else []
    slides = training_slides(study) if slides is None else slides
    spots = study.subset(slides, spot_split="train")
    moments = moments or gene_moments(study.own_count_batches(spots, _SPOTS), target_sum, study.summed)
    eligible = np.flatnonzero(first & (moments.detected >= max(1.0, min_spots * moments.spots)))
    if not len(eligible):
        raise ValueError(
            f"No gene is detected in {min_spots:.0%} of the {moments.spots} training spots. Lower min_spots (--min-spots), or "
            "check that the slides hold raw counts."
        )
    score = _score(study, spots, moments, method, ranking, seed, target_sum)
    ranked = eligible[np.argsort(-score[eligible], kind="stable")]
    number = None if num_genes is None else max(num_genes, len(chosen))
    return list(dict.fromkeys([*chosen, *map(str, names[ranked])]))[:number]


def training_slides(study: Study, slides: Sequence[str] | None = None) -> list[str]:
    """Return the slides of the split "train", or the given ones, in the order of the folder.

    Raises:
        ValueError: If a slide is not in the study, or is held out.
    """
    study.check_slides(slides or ())
    own = study.split_of_slide
    held_out = [slide for slide in slides or () if own[slide] in ("validation", "test", "unpaired")]
    if held_out:
        raise ValueError(
            f"slides {held_out} are not in the split train. Choose genes on training slides only (--slides)."
        )
    return [slide for slide in study.slide_ids if (slide in slides if slides else own[slide] in ("train", "spot"))]


def find_genes(names: Sequence[str], ids: Sequence[str], wanted: Sequence[str], option: str) -> list[str]:
    """Find listed genes among those of a dataset, and log how many were found.

    Args:
        names: Genes of the dataset (genes,).
        ids: Their Ensembl ids, "" where unknown (genes,).
        wanted: Names or ids, in any case, with or without versions.
        option: The option by which the list was given, for the message.

    Raises:
        ValueError: If the list is empty, or none of it is in the dataset.
    """
    if not wanted:
        raise ValueError(f"no gene is listed. Give names or Ensembl ids ({option}).")
    known = {name.casefold(): name for name in map(str, reversed(list(names)))}
    known |= {gene_id.casefold(): str(name) for gene_id, name in zip(ids, names, strict=True) if gene_id}
    keys = [(name.split(".")[0] if name.startswith("ENS") else name).casefold() for name in wanted]
    found = list(dict.fromkeys(known[key] for key in keys if key in known))
    missing = [name for name, key in zip(wanted, keys, strict=True) if key not in known]
    report = logger.info if 2 * len(found) >= len(wanted) else logger.warning
    report("%d of %d listed genes (%.0f %%) are in the dataset%s", len(found), len(wanted), 100 * len(found) / len(wanted),
           f"; not {', '.join(missing[:5])}" if missing else "")  # fmt: skip
    if not found:
        raise ValueError(
            f"none of the {len(wanted)} listed genes, e.g. {wanted[0]!r}, is in the dataset. Check their species and spelling."
        )
    return found


def _score(
    study: Study, spots: Dataset, moments: GeneMoments, method: str, ranking: str, seed: int, target_sum: float
) -> np.ndarray:
    """Return the score of each gene (genes,); the highest ranks first."""
    if method == "detected":
        return moments.detected
    if method == "spatial":
        return _spatial_score(study, spots, seed, target_sum)
    if ranking == "variance":
        return moments.variance
    return residual_variance(study.own_count_batches(spots, _SPOTS), moments, study.summed)


def _spatial_score(study: Study, spots: Dataset, seed: int, target_sum: float) -> np.ndarray:
    """Return Moran's I of every gene, averaged over slides (genes,); -1 to 1, 0 for a gene that does not vary."""
    slide_of_spot = np.asarray(spots.with_format("numpy")["slide_id"][:])
    names = list(dict.fromkeys(slide_of_spot.tolist()))
    scores = np.zeros(len(study.genes))
    for index, name in enumerate(names):
        of_slide = spots.select(np.flatnonzero(slide_of_spot == name))
        columns = of_slide.select_columns(["x", "y"]).with_format("numpy")
        xy = np.column_stack([columns["x"][:], columns["y"][:]])
        if len(xy) > _SPATIAL_SPOTS:
            centre = xy[np.random.default_rng([seed, index]).integers(len(xy))]
            near = np.sort(np.argpartition(((xy - centre) ** 2).sum(1), _SPATIAL_SPOTS)[:_SPATIAL_SPOTS])
            of_slide, xy = of_slide.select(near), xy[near]
        values = [
            log_normalize(counts, target_sum).astype(np.float64) for counts in study.count_batches(of_slide, _SPOTS)
        ]
        scores += morans_i(scipy.sparse.vstack(values).tocsr(), xy)
    return scores / max(len(names), 1)


def morans_i(values: scipy.sparse.csr_matrix, xy: np.ndarray, neighbours: int = _NEIGHBOURS) -> np.ndarray:
    """Return Moran's I of every column over each spot's nearest neighbours (Moran, 1950); high values mean smooth patterns.

    Args:
        values: Sparse (spots, genes).
        xy: Positions (spots, 2).
        neighbours: Number of neighbours per spot, each of weight 1.

    Returns:
        Moran's I (genes,), 0 for a gene that does not vary.
    """
    spots = len(xy)
    count = min(neighbours, spots - 1)
    if count < 1:
        return np.zeros(values.shape[1])
    nearest = cKDTree(xy).query(xy, k=count + 1)[1][:, 1:]
    weights = scipy.sparse.csr_matrix(
        (np.ones(spots * count), (np.repeat(np.arange(spots), count), nearest.ravel())), shape=(spots, spots)
    )
    mean = np.asarray(values.mean(0)).ravel()
    lagged = weights @ values
    # sum_ij w_ij (x_i - m)(x_j - m), with the sums over sparse x only
    cross = np.asarray(values.multiply(lagged).sum(0)).ravel()
    given, taken = np.asarray(weights.sum(1)).ravel(), np.asarray(weights.sum(0)).ravel()
    cross += -mean * (values.T @ given + values.T @ taken) + mean**2 * weights.sum()
    variance = np.asarray(values.multiply(values).sum(0)).ravel() - spots * mean**2
    return np.where(variance > 1e-12, spots / weights.sum() * cross / np.maximum(variance, 1e-12), 0.0)
