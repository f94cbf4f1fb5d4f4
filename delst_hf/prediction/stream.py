"""Batches of patches, prefetched by threads: decoding and resizing release Python's lock, so they run beside the model."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ..evaluation.neighbours import blocks

_T = TypeVar("_T")


def check_reading(batch_size: int, num_workers: int) -> None:
    """Raise a ValueError for an empty batch or a negative number of threads."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}. Allowed: 1 or more patches (--batch-size).")
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}. Allowed: 0 or more threads (--num-workers).")


def in_batches(positions: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield positions (rows,) in their order, `batch_size` at a time.

    >>> [batch.tolist() for batch in in_batches(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    return (positions[rows] for rows in blocks(len(positions), batch_size))


def read_ahead(
    read: Callable[[Sequence[int]], _T], batches: Iterable[np.ndarray], num_workers: int
) -> Generator[tuple[np.ndarray, _T]]:
    """Read batches in order, at most two per thread ahead of the consumer.

    Args:
        read: Positions -> their patches; called by several threads at a time.
        batches: The positions of each batch.
        num_workers: Number of threads; 0 reads each batch on demand.

    Yields:
        The positions of a batch and the result of `read` for them.

    >>> [(p.tolist(), int(b)) for p, b in read_ahead(sum, in_batches(np.arange(5), 2), num_workers=1)]
    [([0, 1], 1), ([2, 3], 5), ([4], 4)]
    """
    if num_workers == 0:
        yield from ((batch, read(batch)) for batch in batches)  # type: ignore[arg-type]
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="patches") as pool:
        waiting: deque[tuple[np.ndarray, Future[_T]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(read, batch)))  # type: ignore[arg-type]
                if len(waiting) > 2 * num_workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
