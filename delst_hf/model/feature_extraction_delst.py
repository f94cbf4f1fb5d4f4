"""Counts by gene name -> inputs of the gene encoder: the vocabulary's genes, normalised, with a mask of those measured."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, FeatureExtractionMixin

logger = logging.getLogger(__name__)


class DelstGeneFeatureExtractor(FeatureExtractionMixin):
    """Aligns counts to a gene vocabulary and normalises them.

    The vocabulary is saved with the model. Counts are scaled to one library size over all given genes, then log1p-transformed.
    Missing is not zero: genes of the vocabulary that the input lacks are zero in ``gene_values`` and False in ``gene_mask``.

    Args:
        vocabulary: Gene names in the order of the model's input; unique.
        target_sum: Library size that every spot is scaled to, in counts.
        min_match_rate: Share of the vocabulary found in the input below which a warning is logged.
        error_match_rate: Share below which an error is raised: the names are then of another kind (Ensembl ids instead of
            symbols), or of another species.

    Raises:
        ValueError: If the vocabulary has duplicates.

    >>> extractor = DelstGeneFeatureExtractor(["ERBB2", "KRT19", "CD3E"])
    >>> inputs = extractor({"KRT19": 3, "ERBB2": 1, "ACTB": 6})
    >>> inputs["gene_mask"].tolist(), inputs["level"].tolist()
    ([[True, True, False]], [3.0])
    """

    model_input_names = ["gene_values", "gene_mask", "level"]

    def __init__(
        self,
        vocabulary: Sequence[str] = (),
        target_sum: float = 1e4,
        min_match_rate: float = 0.5,
        error_match_rate: float = 0.05,
        **kwargs: Any,
    ):
        self.vocabulary = [str(name) for name in vocabulary]
        if len(set(self.vocabulary)) != len(self.vocabulary):
            name, times = Counter(self.vocabulary).most_common(1)[0]
            raise ValueError(f"The vocabulary names {name!r} {times} times. Give unique gene names.")
        self.target_sum = target_sum
        self.min_match_rate = min_match_rate
        self.error_match_rate = error_match_rate
        super().__init__(**kwargs)

    def __repr__(self) -> str:
        genes = f"{len(self.vocabulary)} genes: {', '.join(self.vocabulary[:3])}{', ...' * (len(self.vocabulary) > 3)}"
        return f"{type(self).__name__} {json.dumps(self.to_dict() | {'vocabulary': genes}, indent=2, sort_keys=True)}"

    def vocabulary_hash(self) -> str:
        """Return the SHA-256 (16 hex digits) of the genes in order: models with the same hash read the same input.

        >>> DelstGeneFeatureExtractor(["ERBB2", "KRT19"]).vocabulary_hash()
        '0385571dcd06955f'
        """
        return hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()[:16]

    def add_genes(self, gene_names: Sequence[str]) -> int:
        """Add genes at the end of the vocabulary; the model then needs ``resize_gene_embeddings(len(vocabulary))``.

        Args:
            gene_names: Names of genes; those already in the vocabulary are skipped.

        Returns:
            The number of genes that were added.
        """
        known = set(self.vocabulary)
        new = [name for name in dict.fromkeys(map(str, gene_names)) if name not in known]
        self.vocabulary += new
        return len(new)

    def match(self, gene_names: Sequence[str]) -> np.ndarray:
        """Return the position in the vocabulary of each given gene.

        Args:
            gene_names: Names of the measured genes (genes,).

        Returns:
            (genes,) int64, -1 for genes outside the vocabulary.

        Raises:
            ValueError: If fewer than `error_match_rate` of the vocabulary's genes are among the names.
        """
        if not self.vocabulary:
            raise ValueError(
                "This feature extractor has no vocabulary. Build it with DelstGeneFeatureExtractor(vocabulary=[...]) or "
                "load it with from_pretrained from a model folder."
            )
        if not len(gene_names):
            raise ValueError(
                "There are no counts: no gene is given. A dataset of images alone (delst prepare image) has none; delst "
                "predict embeds its patches, and predicts what the model's heads know."
            )
        position = {name: i for i, name in enumerate(self.vocabulary)}
        columns = np.fromiter((position.get(str(name), -1) for name in gene_names), np.int64, len(gene_names))
        found = len(np.unique(columns[columns >= 0]))
        rate = found / len(self.vocabulary)
        if found == 0 or rate < self.error_match_rate:
            raise ValueError(
                f"Only {found} of the vocabulary's {len(self.vocabulary)} genes are among the {len(columns)} given names. "
                f"The vocabulary has names such as {self.vocabulary[:3]}, the input {[str(n) for n in gene_names[:3]]}: "
                "give names of the same kind (symbol or Ensembl id), species and case."
            )
        if rate < self.min_match_rate:
            logger.warning(
                "%d of the vocabulary's %d genes (%.0f %%) are among the given names; the others are masked as not measured.",
                found,
                len(self.vocabulary),
                100 * rate,
            )
        return columns

    def normalize(self, counts: np.ndarray, total_counts: np.ndarray) -> np.ndarray:
        """Return ``log1p(counts * target_sum / total_counts)``; a spot without counts stays zero.

        Args:
            counts: Counts of the vocabulary's genes (batch, vocabulary).
            total_counts: Counts of all measured genes of each spot (batch,).

        Returns:
            (batch, vocabulary) float32.
        """
        return log_normalize(counts, self.target_sum, total_counts)

    def __call__(
        self,
        counts: Any,
        gene_names: Sequence[str] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Turn counts into model inputs.

        Args:
            counts: Raw counts, (batch, genes) or (genes,): numpy, torch or scipy.sparse; or with their names a pandas DataFrame
                (its columns), a Series (its index), an AnnData (its X and var_names), a mapping from gene name to counts, or a
                list of such mappings, one per spot, with the same genes.
            gene_names: Names of the genes (genes,), where `counts` does not hold them. Names given twice are summed.
            return_tensors: ``"pt"`` or ``"np"``.

        Returns:
            ``gene_values`` (batch, vocabulary) float32, ``gene_mask`` (batch, vocabulary) bool, ``level`` (batch,) float32, the
            number of expressed genes among all that were given.

        Raises:
            ValueError: If there are no names, shapes disagree, the values are not counts, or almost no gene matches.
        """
        values, names = _as_matrix(counts, gene_names)
        _check_counts(values)
        columns = self.match(names)
        known = columns >= 0
        aligned = np.zeros((len(values), len(self.vocabulary)), dtype=np.float64)
        np.add.at(aligned.T, columns[known], values.T[known])
        mask = np.zeros(len(self.vocabulary), dtype=bool)
        mask[columns[known]] = True
        data = {
            "gene_values": self.normalize(aligned, values.sum(1)),
            "gene_mask": np.tile(mask, (len(values), 1)),
            "level": (values > 0).sum(1).astype(np.float32),
        }
        return BatchFeature(data, tensor_type=return_tensors)


def _as_matrix(counts: Any, gene_names: Sequence[str] | None) -> tuple[np.ndarray, Sequence[str]]:
    """Return any accepted form of counts as a dense (batch, genes) float64 array and its gene names."""
    if hasattr(counts, "var_names"):  # an AnnData
        counts, gene_names = counts.X, counts.var_names if gene_names is None else gene_names
    if isinstance(gene_names, str):
        gene_names = [gene_names]
    if gene_names is None:
        counts, gene_names = _named(counts)
    dense = counts.toarray() if hasattr(counts, "toarray") else counts
    values = np.atleast_2d(np.asarray(dense, dtype=np.float64))
    if values.ndim != 2 or values.shape[1] != len(gene_names):
        hint = " The matrix looks transposed: pass counts.T." if values.shape[0] == len(gene_names) else ""
        raise ValueError(f"counts has shape {values.shape}, but there are {len(gene_names)} gene names.{hint}")
    return values, gene_names


def _named(counts: Any) -> tuple[Any, Sequence[str]]:
    """Return counts, and the names of the genes that they hold."""
    if hasattr(counts, "columns"):
        return counts, [str(name) for name in counts.columns]
    if isinstance(counts, Mapping):
        return np.stack([np.asarray(column) for column in counts.values()], axis=-1), list(counts)
    if hasattr(counts, "index") and hasattr(counts, "to_numpy"):  # a Series
        return counts, [str(name) for name in counts.index]
    if isinstance(counts, Sequence) and counts and all(isinstance(spot, Mapping) for spot in counts):
        names = list(counts[0])
        if any(spot.keys() != counts[0].keys() for spot in counts):
            raise ValueError(
                "The spots of counts name different genes, and a gene that a spot lacks may be zero or not measured. Give the "
                "same genes for every spot."
            )
        return [[spot[name] for name in names] for spot in counts], names
    raise ValueError("gene_names is missing. Pass the names of the genes, in the order of the columns of counts.")


def _check_counts(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            "counts holds NaN or infinite values. Give raw counts; leave out genes that were not measured."
        )
    if (values < 0).any():
        raise ValueError(f"counts holds negative values (lowest {values.min():g}). Give raw counts, not scaled values.")
    if (values != np.floor(values)).any():
        raise ValueError(
            "counts holds fractions: it looks normalised or log-transformed already. Give raw counts (in AnnData often "
            "adata.layers['counts'] or adata.raw.X); this class normalises them."
        )


def log_normalize(counts: Any, target_sum: float = 1e4, total_counts: Any = None) -> Any:
    """Scale every spot to the same library size and take log(1 + x). A spot without counts stays zero.

    Args:
        counts: (spots, genes) raw counts, dense or any scipy sparse matrix.
        target_sum: Counts per spot after scaling. For inputs of a model, use that of its processor.
        total_counts: (spots,) counts of all genes of each spot, if `counts` holds only some of them. Default: the row sums.

    Returns:
        (spots, genes) float32, dense for dense counts and csr for sparse ones.

    Raises:
        ValueError: If a count is negative, NaN or infinite, the counts are not a matrix, or `target_sum` is not positive.

    >>> np.expm1(log_normalize([[1, 3], [0, 0]], target_sum=100)).round().tolist()
    [[25.0, 75.0], [0.0, 0.0]]
    """
    if not (np.isfinite(target_sum) and target_sum > 0):
        raise ValueError(f"target_sum is {target_sum}; allowed is a positive number. The usual value is 1e4.")
    # In float64, where the sum of a million counts is exact, and in a copy, so that the caller's counts do not change.
    if hasattr(counts, "tocsr"):
        matrix = counts.astype(np.float64).tocsr(copy=True)
        matrix.sum_duplicates()
        totals = np.asarray(matrix.sum(axis=1)).reshape(-1) if total_counts is None else total_counts
        factors = _library_factors(matrix.data, totals, target_sum)
        matrix.data = np.log1p(matrix.data * np.repeat(factors, np.diff(matrix.indptr)))
        return matrix.astype(np.float32)
    values = np.asarray(counts)
    if values.ndim != 2:
        raise ValueError(f"counts have the shape {values.shape}; allowed is (spots, genes). Pass one row per spot.")
    totals = values.sum(axis=1, dtype=np.float64) if total_counts is None else total_counts
    return np.log1p(values * _library_factors(values, totals, target_sum)[:, None]).astype(np.float32)


def _library_factors(stored: np.ndarray, totals: Any, target_sum: float) -> np.ndarray:
    """Return factors (spots,) that bring the totals to `target_sum`, 0 for an empty spot; `stored` holds all counts."""
    # NaN fails every comparison.
    if stored.size and not (stored.min() >= 0 and stored.max() < np.inf):
        raise ValueError(
            "counts hold negative, NaN or infinite values; allowed are counts from 0 up. Pass the raw counts, "
            "not scaled or centred expression."
        )
    totals = np.asarray(totals, dtype=np.float64)
    return np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)


__all__ = ["DelstGeneFeatureExtractor"]
