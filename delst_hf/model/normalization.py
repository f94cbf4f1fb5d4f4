"""The one normalisation of counts: to equal library sizes, then log(1 + x)."""

from typing import Any

import numpy as np


def log_normalize(counts: Any, target_sum: float = 1e4, total_counts: Any = None) -> Any:
    """Scale every spot to the same library size and take log(1 + x). A spot without counts stays zero.

    Args:
        counts: (spots, genes) raw counts, dense or any scipy sparse matrix.
        target_sum: Counts per spot after scaling. For what a model reads, that of its processor.
        total_counts: (spots,) counts of all genes of each spot, where `counts` holds some of them only. By default the sums of
            the rows.

    Returns:
        (spots, genes) float32, dense for dense counts and csr for sparse ones.

    Raises:
        ValueError: If a count is negative, NaN or infinite, the counts are not a matrix, or `target_sum` is not positive.

    >>> np.expm1(log_normalize([[1, 3], [0, 0]], target_sum=100)).round().tolist()
    [[25.0, 75.0], [0.0, 0.0]]
    """
    if not (np.isfinite(target_sum) and target_sum > 0):
        raise ValueError(f"target_sum is {target_sum}; allowed is a positive number. The usual value is 1e4.")
    # In float64, where the sum of a million counts is exact, and in a copy, so that the caller's counts stay.
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
    """Factors (spots,) that bring the totals to `target_sum`, 0 for an empty spot; `stored` holds all counts."""
    # NaN fails every comparison.
    if stored.size and not (stored.min() >= 0 and stored.max() < np.inf):
        raise ValueError(
            "counts hold negative, NaN or infinite values; allowed are counts from 0 up. Pass the raw counts, "
            "not scaled or centred expression."
        )
    totals = np.asarray(totals, dtype=np.float64)
    return np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
