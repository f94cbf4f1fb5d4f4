"""Prepare the rows of a probe before it is fitted: check them, split them by slide, scale their features.

Everything here that is fitted is fitted on training rows only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.linalg.lapack import dormqr

SCALE_FLOOR = 0.1
SCALE_FLOORS = (0.0, SCALE_FLOOR)  # from which a ridge chooses, on left-out training groups
CONTIGUOUS_FOLDS = 5
# Up to this many groups are left out one by one, more of them several at a time: to score, and to choose a penalty.
MAX_FOLDS, MAX_INNER_FOLDS = 10, 5


def finite_matrix(values: ArrayLike, name: str) -> np.ndarray:
    """Return `values` as a float64 matrix (rows, columns); refuse an empty one, NaN and infinity.

    Raises:
        ValueError: If `values` is not two-dimensional, is empty, is complex or is not finite.
    """
    given = np.asarray(values)
    if given.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} holds values of type {given.dtype}; allowed are real numbers. Pass real and imaginary parts of complex "
            "numbers as columns, and leave out text."
        )
    matrix = given.astype(np.float64, copy=False)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(
            f"{name} has the shape {matrix.shape}; allowed is a non-empty matrix (rows, columns). "
            "Pass one row per spot, and check that the slides asked for have spots."
        )
    bad_rows = ~np.isfinite(matrix).all(axis=1)
    if bad_rows.any():
        raise ValueError(
            f"{name} holds NaN or infinity in {int(bad_rows.sum())} of {len(matrix)} rows, first in row "
            f"{int(bad_rows.argmax())}; allowed are finite numbers. Look for the cause upstream (a diverged model, "
            "an unmeasured gene) or drop these rows from every array."
        )
    return matrix


def row_blocks(matrix: sparse.csr_matrix, entries: int = 2**20) -> Iterator[slice]:
    """Yield slices of the rows of a matrix, in order, that hold at most `entries` stored entries, or one row.

    Examples:
        >>> [(rows.start, rows.stop) for rows in row_blocks(sparse.csr_matrix(np.ones((5, 2))), entries=4)]
        [(0, 2), (2, 4), (4, 5)]
    """
    start = 0
    while start < matrix.shape[0]:
        last = int(np.searchsorted(matrix.indptr, matrix.indptr[start] + entries, side="right")) - 1
        stop = min(max(last, start + 1), matrix.shape[0])
        yield slice(start, stop)
        start = stop


def missing_rows(values: Iterable[Any]) -> np.ndarray:
    """Tell which values (rows,) are missing: None, NaN, pandas.NA, an empty string, or the 'nan' that numpy makes of NaN.

    Examples:
        >>> missing_rows(["tumour", None, "", "nan"]).tolist()
        [False, True, True, True]
    """
    return np.array([bool(pd.isna(value)) or str(value).strip() in ("", "nan") for value in values], dtype=bool)


def group_names(groups: Sequence[Any] | np.ndarray, num_rows: int, name: str) -> np.ndarray:
    """Return the group of each row (a slide, a patient) as an array of strings (rows,).

    Raises:
        ValueError: If there is not exactly one group for each row, or a group is missing.
    """
    names = list(groups)
    if len(names) != num_rows:
        raise ValueError(f"{name} has {len(names)} entries for {num_rows} rows; pass the slide of every row.")
    missing = missing_rows(names)
    if missing.any():
        raise ValueError(
            f"{name} is missing in {int(missing.sum())} rows, first in row {int(missing.argmax())}; every row needs "
            "the slide or patient it comes from, so that no slide is on both sides of a split."
        )
    return np.array([str(group) for group in names])


@dataclass(frozen=True)
class NarrowRows:
    """Rows of features rotated into fewer coordinates, which keep all their inner products and distances.

    Wide features of few spots span at most as many dimensions as there are spots. In these, a fit that depends on its rows
    through inner products alone (SGD from zero, distances) gives the same result at less cost. The rotation is kept as
    Householder reflections: rotating the few coefficients of a classifier back costs less than rotating all query rows.

    Attributes:
        rows: (rows, min(columns, rows)), the features themselves where they are not wide.
        reflections: Output of LAPACK's dgeqrf, vectors (columns, rows) and factors (rows,); None where nothing was rotated.

    Examples:
        >>> wide = np.arange(12.0).reshape(2, 6)
        >>> narrow = NarrowRows.of(wide)
        >>> narrow.rows.shape, bool(np.allclose(narrow.rows @ narrow.rows.T, wide @ wide.T))
        ((2, 2), True)
        >>> bool(np.allclose(narrow.widened(narrow.rows), wide))
        True
    """

    rows: np.ndarray
    reflections: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> "NarrowRows":
        """Rotate features (rows, columns)."""
        if features.shape[1] <= features.shape[0]:
            return cls(features)
        vectors, factors = np.linalg.qr(features.T, mode="raw")
        return cls(np.tril(vectors[:, : len(features)]), (vectors.T, factors))

    def widened(self, coefficients: np.ndarray) -> np.ndarray:
        """Turn coefficients of `rows` (outputs, coordinates) into coefficients of the features (outputs, columns)."""
        if self.reflections is None:
            return coefficients
        vectors, factors = self.reflections
        padded = np.zeros((vectors.shape[0], len(coefficients)), order="F")
        padded[: coefficients.shape[1]] = coefficients.T
        _, workspace, _ = dormqr("L", "N", vectors, factors, padded, lwork=-1)  # queries the size of the workspace
        return dormqr("L", "N", vectors, factors, padded, lwork=int(workspace[0]))[0].T


def nanmean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean over an axis of the values that are not NaN; NaN (without a warning) where all are NaN."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.where(there.any(axis=axis), total / np.maximum(there.sum(axis=axis), 1), np.nan)


def joined_groups(groups: np.ndarray, max_groups: int) -> np.ndarray:
    """Join groups (rows,) into at most `max_groups` of about equal size, to limit the folds; fewer groups stay as they are.

    A study of fifty patients would otherwise be fitted 2,500 times to choose one penalty.

    Examples:
        >>> joined_groups(np.array(["a", "a", "b", "c"]), 2).tolist()
        ['fold 1', 'fold 1', 'fold 2', 'fold 2']
    """
    names, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) <= max_groups:
        return groups
    joined, rows = np.zeros(len(names), dtype=int), np.zeros(max_groups, dtype=int)
    for number in np.argsort(-sizes, kind="stable"):
        joined[number] = rows.argmin()
        rows[joined[number]] += sizes[number]
    return np.array([f"fold {fold + 1}" for fold in joined])[numbers]


def group_folds(groups: np.ndarray, max_folds: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows into folds that never share a group: leave one group out.

    A single group cannot be left out, so its rows are cut into five contiguous blocks. Blocks rather
    than random rows, because neighbouring rows are usually neighbouring spots and would leak.

    Args:
        groups: (rows,) strings, as `group_names` returns them.
        max_folds: Leave several groups out at a time where there are more (see `joined_groups`).

    Returns:
        Pairs of row indices (fitting rows, validation rows), in the order of the sorted groups.

    Raises:
        ValueError: If one group has fewer than ten rows, too few for five blocks of two.

    Examples:
        >>> [(fit.tolist(), held.tolist()) for fit, held in group_folds(np.array(["a", "a", "b"]))]
        [([2], [0, 1]), ([0, 1], [2])]
    """
    rows = np.arange(len(groups))
    groups = groups if max_folds is None else joined_groups(groups, max_folds)
    unique = np.unique(groups)
    if len(unique) > 1:
        return [(rows[groups != group], rows[groups == group]) for group in unique]
    if len(rows) < 2 * CONTIGUOUS_FOLDS:
        raise ValueError(
            f"the only training group has {len(rows)} rows; {2 * CONTIGUOUS_FOLDS} is the least that can be cut into "
            f"{CONTIGUOUS_FOLDS} validation blocks. Train on more spots or on a second slide."
        )
    return [(np.setdiff1d(rows, block), block) for block in np.array_split(rows, CONTIGUOUS_FOLDS)]


@dataclass(frozen=True)
class FlooredScaler:
    """Standardisation whose scale cannot fall below a fraction of the typical one.

    A plain StandardScaler divides a nearly dead channel (ReLU6 networks have many) by its tiny training standard
    deviation. The same channel alive on another slide then arrives at hundreds of standard deviations and drowns the
    rest. Here no scale is below `SCALE_FLOOR` = 1/10 of the median over the channels that vary, so no channel is
    amplified more than ten times beyond a typical one. Channels are assumed to be of comparable units. Whether the floor
    helps depends on the tissue: `expression.ridge_prediction` chooses between it and none on training slides, and the
    protocol `arms` shows both (docs/evaluation.md).

    Attributes:
        mean: (columns,) means of the fitting rows.
        scale: (columns,) floored population standard deviations of the fitting rows, all positive.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(100, 3)) * [1, 1, 1e-6]
        >>> scaler = FlooredScaler.fit(x)
        >>> np.round(scaler.transform(x).std(axis=0), 1).tolist()
        [1.0, 1.0, 0.0]
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, floor: float = SCALE_FLOOR) -> "FlooredScaler":
        """Fit on the training rows `features` (rows, columns)."""
        mean = features.mean(axis=0)
        scale = features.std(axis=0)
        # The spread of a constant column is rounding noise, which must neither set the median nor divide anything.
        varies = np.ptp(features, axis=0) > 0
        typical = float(np.median(scale[varies])) if varies.any() else 1.0
        # Without a floor, a column that does not vary gets the typical scale.
        return cls(mean, np.where(varies, np.maximum(scale, floor * typical), (floor or 1.0) * typical))

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Return `features` (rows, columns) centred and scaled as the fitting rows were."""
        return (features - self.mean) / self.scale
