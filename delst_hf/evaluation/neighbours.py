"""Find the nearest spots among many, some queries at a time.

The scores of all pairs at once would not fit in memory: 100,000 spots of Visium HD have 75 GiB of them.
"""

from collections.abc import Iterator

import numpy as np

PAIRS = 2**20  # scores that are held at a time


def query_blocks(queries: int, targets: int, pairs: int = PAIRS) -> Iterator[slice]:
    """Yield slices of the queries, in order, that have at most `pairs` pairs with all targets, or of one query.

    Examples:
        >>> [(rows.start, rows.stop) for rows in query_blocks(5, 3, pairs=6)]
        [(0, 2), (2, 4), (4, 5)]
    """
    yield from blocks(queries, max(1, pairs // max(targets, 1)))


def blocks(length: int, at_once: int) -> Iterator[slice]:
    """Yield slices that divide `length` rows, in order, into blocks of `at_once`.

    >>> [(rows.start, rows.stop) for rows in blocks(5, 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, length, at_once):
        yield slice(start, min(start + at_once, length))


def most_similar(
    queries: np.ndarray, targets: np.ndarray, k: int, pairs: int = PAIRS
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of the queries, and the k targets (rows, k) with the highest inner product with each query.

    Args:
        queries: (queries, dim), as `retrieval.as_inner_product` gives them.
        targets: (targets, dim).
        k: Number of targets, at most all.
        pairs: Number of scores held at a time.

    Examples:
        >>> for rows, nearest in most_similar(np.eye(2), np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), k=2):
        ...     nearest.tolist()
        [[1, 2], [0, 2]]
    """
    for rows in query_blocks(len(queries), len(targets), pairs):
        yield rows, highest(queries[rows] @ targets.T, min(k, len(targets)))


def highest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the columns (rows, k) of the k highest scores, highest first, equal ones in the order of the columns.

    The result is that of a stable sort, but only rows with a tie at the k-th position are sorted completely.

    Examples:
        >>> highest(np.array([[1.0, 3.0, 2.0, 3.0], [5.0, 5.0, 5.0, 0.0]]), k=2).tolist()
        [[1, 3], [0, 1]]
    """
    away = -scores
    last = np.partition(away, k - 1, axis=1)[:, k - 1 : k]
    rows, columns = np.nonzero(away <= last)
    number = np.bincount(rows, minlength=len(scores))
    result = np.empty((len(scores), k), dtype=np.intp)
    clear, tied = np.flatnonzero(number == k), np.flatnonzero(number > k)
    chosen = columns[number[rows] == k].reshape(len(clear), k)
    order = np.argsort(away[clear[:, None], chosen], axis=1, kind="stable")
    result[clear] = np.take_along_axis(chosen, order, axis=1)
    result[tied] = np.argsort(away[tied], axis=1, kind="stable")[:, :k]
    return result
