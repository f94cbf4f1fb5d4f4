"""Check raw counts and sparse matrices, and make the table of a source's features."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .notes import Notes
from .schema import GENE_ID, SYMBOL
from .values import whole_numbers

logger = logging.getLogger(__name__)

_MAX_COUNT = np.iinfo(np.int32).max
# Fewer spots, genes or counts do not show whether whole numbers are counts; more spots and genes than these are not needed.
_FEW_SPOTS, _FEW_GENES, _FEW_COUNTS = 20, 10, 500
_SPOTS_LOOKED_AT, _GENES_LOOKED_AT = 5_000, 50
# The standard deviation of the totals of spots is half of their mean or more for raw counts, and 0 to 8 % for normalised and
# rounded ones (HER2ST). With few counts, rounding itself makes totals differ.
_ALIKE = 0.15
# Counts vary at least as much as by chance (variance = mean, Poisson). For the commonest genes with a mean of 0.5 or more, the
# median of variance / mean was 0.95 to 47 in 1,300 samples of 20 spots or more of HER2ST and mouse olfactory bulb, also when
# thinned to a tenth and a fiftieth; for their rounded logarithms it was 0.1 to 0.7 in five of six slides.
_LEAST_VARIATION, _LEAST_MEAN = 0.75, 0.5
# The largest base-2 logarithm of counts per million. For genes that are zero in a tenth of the spots or more, one is the
# commonest other count (40 to 99 %), while logarithms of normalised counts begin at 3 or more.
_MAX_LOGARITHM, _MOST_DETECTED, _LEAST_ONES = 20, 0.9, 0.1


def describe_bad_counts(counts: Any) -> str | None:
    """Return why a matrix (dense or sparse) does not hold raw counts; None if it does."""
    values = counts.data if sp.issparse(counts) else np.asarray(counts)
    if values.dtype.kind not in "iufb":
        return f"values of type {values.dtype}"
    if values.size == 0 or values.dtype.kind == "b":
        return None
    if values.dtype.kind == "f":
        undefined = int((~np.isfinite(values)).sum())
        if undefined:
            return f"{undefined} values are NaN or infinite"
    if values.min() < 0:
        return f"{int((values < 0).sum())} values are negative, the smallest {values.min():g}; they look already scaled"
    if values.dtype.kind == "f":
        fractions = values[values != np.floor(values)]
        if fractions.size:
            found = f"{fractions.size} values are not whole numbers, e.g. {fractions[0]:g}"
            return f"{found}; they look already normalised or log-transformed"
    return f"the largest value is {values.max():g}, above {_MAX_COUNT}" if values.max() > _MAX_COUNT else None


def describe_unlikely_counts(counts: sp.csr_matrix) -> str:
    """Return why whole numbers (spots, genes) look like rounded normalised counts or logarithms, not raw counts; else "".

    Examples:
        >>> describe_unlikely_counts(sp.csr_matrix(np.full((30, 40), 20)))
        'all spots have about 800 counts (give or take 0.0%): they look normalised to one total and rounded; give raw counts'
    """
    counts = counts[:: max(1, counts.shape[0] // _SPOTS_LOOKED_AT)]
    if counts.shape[0] < _FEW_SPOTS or counts.nnz == 0:
        return ""
    sums = np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()
    if sums.mean() >= _FEW_COUNTS and sums.std() < _ALIKE * sums.mean():
        return (
            f"all spots have about {sums.mean():,.0f} counts (give or take {sums.std() / sums.mean():.1%}): they look "
            "normalised to one total and rounded; give raw counts"
        )
    means = np.asarray(counts.sum(axis=0, dtype=np.int64)).ravel() / counts.shape[0]
    common = np.argsort(-means)[:_GENES_LOOKED_AT]
    common = common[means[common] >= _LEAST_MEAN]
    variation = counts[:, common].toarray().var(axis=0, ddof=1) / means[common]
    if len(common) >= _FEW_GENES and np.median(variation) < _LEAST_VARIATION:
        what = "presence and absence" if counts.data.max() == 1 else "rounded logarithms"
        return (
            f"the {len(common)} commonest genes vary less from spot to spot than counts can (the median of variance over mean "
            f"is {np.median(variation):.2f}, of counts 1 or more): they look like {what}; give raw counts"
        )
    detected = counts.getnnz(axis=0)
    sparse = np.flatnonzero((detected >= _FEW_SPOTS) & (detected <= _MOST_DETECTED * counts.shape[0]))
    values = counts[:, sparse].data
    if len(sparse) >= _FEW_GENES and counts.data.max() <= _MAX_LOGARITHM and (values == 1).mean() < _LEAST_ONES:
        return (
            f"{len(sparse)} genes are absent from many spots and yet have a count of one in {(values == 1).mean():.1%} of the "
            f"others, and none has more than {counts.data.max()}: they look like rounded logarithms of normalised counts; give "
            "raw counts"
        )
    return ""


def warn_of_unlikely_counts(counts: sp.csr_matrix, name: str, notes: Notes) -> None:
    """Warn of, and note, whole numbers (spots, genes) that are probably not counts, and name other layers of their file.

    Args:
        counts: the counts.
        name: of the slide, for the message.
        notes: of the slide.
    """
    if told := describe_unlikely_counts(counts):
        if notes.other_layers:
            told += f"; other layers with whole numbers in this file: {notes.other_layers}; choose one (--layer)"
        logger.warning("%s: %s", name, told)
        notes.remarks.append(told)


def check_counts(
    counts: Any, slide_id: str, hint: str = "give raw counts, e.g. adata.layers['counts'] or adata.raw"
) -> None:
    """Raise a ValueError that ends in `hint` unless the matrix (dense or sparse) holds raw counts."""
    problem = describe_bad_counts(counts)
    if problem:
        raise ValueError(
            f"slide {slide_id!r}: these are not counts: {problem}. Allowed: whole numbers from 0. Next: {hint}."
        )


def make_genes(names: Iterable[str], gene_ids: Iterable[str] | None = None, **columns: Any) -> pd.DataFrame:
    """Return the table of a source's features under its own names; `clean_genes` tells genes, ids and symbols apart.

    Args:
        names: (features,) symbols, or whatever names the source has.
        gene_ids: (features,) ids, where the source has them.
        columns: further columns: `feature_type`, `included`, `feature` (see `features.identify`); None leaves one out.
    """
    symbols = list(names)
    ids = list(gene_ids) if gene_ids is not None else [""] * len(symbols)
    told = {name: list(values) for name, values in columns.items() if values is not None}
    return pd.DataFrame({GENE_ID: ids, SYMBOL: symbols, **told}, dtype=object)


def with_whole_indices(matrix: Any, what: str) -> Any:
    """Return a sparse matrix with integer indices, which R writes as floats; any other matrix is returned unchanged.

    Raises:
        ValueError: indices that are not whole numbers; the message begins with `what`.
    """
    if sp.issparse(matrix) and matrix.format in ("csr", "csc"):
        for name in ("indices", "indptr"):
            if getattr(matrix, name).dtype.kind == "f":
                setattr(matrix, name, whole_numbers(getattr(matrix, name), f"{what}: {name}"))
    return matrix


def check_places(matrix: Any, what: str) -> Any:
    """Return a matrix whose sparse indices, if it has any, are within bounds: one outside would crash the process.

    Raises:
        ValueError: indices that are negative, beyond the matrix or out of order; the message begins with `what`.

    Examples:
        >>> check_places(sp.csr_matrix(([1], [7], [0, 1]), (1, 3)), "X")
        Traceback (most recent call last):
        ValueError: X is damaged: its indices go from 0 to 7 in 3 columns. Write or download the file again.
    """
    if not sp.issparse(matrix) or matrix.format not in ("csr", "csc"):
        return matrix
    matrix = with_whole_indices(matrix, what)
    starts, places, lines = matrix.indptr, matrix.indices, matrix.shape[0 if matrix.format == "csr" else 1]
    wide, problem = matrix.shape[1 if matrix.format == "csr" else 0], ""
    if len(starts) != lines + 1 or starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] > len(places):
        problem = f"its index pointers do not fit {lines} lines of {len(places)} entries"
    elif len(places) != len(matrix.data):
        problem = f"it has {len(places)} indices for {len(matrix.data)} values"
    elif len(places) and (places.min() < 0 or places.max() >= wide):
        problem = (
            f"its indices go from {min(0, places.min())} to {places.max()} in {wide} "
            f"{'columns' if matrix.format == 'csr' else 'rows'}"
        )
    if problem:
        raise ValueError(f"{what} is damaged: {problem}. Write or download the file again.")
    return matrix


def as_counts(matrix: Any) -> sp.csr_matrix:
    """Return a checked matrix (spots, features), dense or sparse, as int32: no stored zeros, no duplicate entries.

    Raises:
        ValueError: duplicate entries add up to more than 32 bits hold.
    """
    if not sp.issparse(matrix) and np.asarray(matrix).dtype == np.float16:  # scipy has no matrix of these
        matrix = np.asarray(matrix, dtype=np.float32)
    counts = sp.csr_matrix(matrix)
    if not counts.has_canonical_format:
        counts = counts.astype(np.int64)
        counts.sum_duplicates()
        problem = describe_bad_counts(counts)
        if problem:
            raise ValueError(f"these are not counts: {problem}. Check that the matrix holds raw counts.")
    if not counts.data.all():
        counts = counts.copy()  # the caller's matrix stays unchanged
        counts.eliminate_zeros()
    return counts.astype(np.int32, copy=False)
