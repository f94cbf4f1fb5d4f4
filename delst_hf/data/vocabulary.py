"""Which genes the gene encoder reads: chosen on the spots of the training slides, and on nothing else."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse


def select_vocabulary(
    counts: scipy.sparse.csr_matrix,
    gene_names: Sequence[str],
    num_genes: int | None = 1000,
    min_spots: float = 0.02,
    target_sum: float = 1e4,
) -> list[str]:
    """Choose the most variable genes among those that are detected often enough.

    Args:
        counts: Raw counts of the training spots (spots, genes).
        gene_names: Names of the genes (genes,). Of a name given twice, the first is eligible.
        num_genes: How many genes to keep; None keeps all that are detected.
        min_spots: A gene must be detected in this share of the spots.
        target_sum: Library size of the normalisation.

    Returns:
        Names, the most variable first, by the variance of ``log1p`` of the normalised counts.

    Raises:
        ValueError: If no gene is detected often enough.
    """
    values = counts.astype(np.float64).tocsr(copy=True)
    totals = np.asarray(values.sum(1)).ravel()
    values.data = np.log1p(values.data * np.repeat(target_sum / np.maximum(totals, 1), np.diff(values.indptr)))
    mean = np.asarray(values.mean(0)).ravel()
    variance = np.asarray(values.multiply(values).mean(0)).ravel() - mean**2
    detected = np.asarray((values > 0).sum(0)).ravel() >= max(1.0, min_spots * len(totals))
    first_of_name = np.zeros(len(gene_names), dtype=bool)
    first_of_name[np.unique(np.asarray(gene_names, dtype=object).astype(str), return_index=True)[1]] = True
    eligible = np.flatnonzero(detected & first_of_name)
    if not len(eligible):
        raise ValueError(
            f"No gene is detected in {min_spots:.0%} of the {len(totals)} training spots. Lower min_spots, or check that "
            "the slides hold raw counts."
        )
    ranked = eligible[np.argsort(-variance[eligible], kind="stable")]
    return [str(gene_names[i]) for i in ranked[:num_genes]]
