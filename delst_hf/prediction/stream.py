"""Batches of patches, read ahead by threads: decoding and resizing leave Python's lock, so they run beside the model."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def read_ahead(
    read: Callable[[Sequence[int]], _T], positions: np.ndarray, batch_size: int, num_workers: int
) -> Iterator[tuple[np.ndarray, _T]]:
    """Read batches in order, at most two per thread ahead of whoever takes them.

    Args:
        read: Positions -> their patches; called by several threads at a time.
        positions: What to read, in order.
        batch_size: Positions per batch.
        num_workers: Threads; 0 reads each batch when it is asked for.

    Yields:
        The positions of a batch and what `read` made of them.

    >>> [(p.tolist(), int(b)) for p, b in read_ahead(sum, np.arange(5), batch_size=2, num_workers=1)]
    [([0, 1], 1), ([2, 3], 5), ([4], 4)]
    """
    batches = (positions[start : start + batch_size] for start in range(0, len(positions), batch_size))
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
