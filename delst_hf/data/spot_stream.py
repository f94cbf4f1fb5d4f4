"""The order of streamed spots: which process reads which spots, how they are shuffled, and where a resumed run continues.

An epoch is a random order of stretches (`SpotFiles`), which every process draws alike from seed and epoch; it takes a few bytes
per hundred spots. Processes, and the workers of their loaders, take consecutive parts of it, so that all make the same number
of steps and no spot is seen twice. A worker reads its part block by block, and shuffles the spots of a block. The shuffle of a
block depends only on seed, epoch, process, worker and block, so the state of a stream is the number of batches already given,
and a resumed stream reads only the block that was in use.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .spot_files import SpotFiles, Stretch


@dataclass(frozen=True)
class Share:
    """The part of an epoch that one worker of one process reads: the spots at `start` to `stop` of its order."""

    epoch: int
    worker: int
    start: int
    stop: int


class SpotStream(IterableDataset):
    """Batches of spots as arrow tables, for a loader with ``batch_size=None``; every process makes its own.

    Args:
        spots: The spots to read.
        batch_size: Spots per batch of a process.
        shuffle_buffer: Spots that a worker shuffles at a time; it prefetches as many again.
        seed: Seed of all epochs.
        rank: Rank of this process.
        ranks: Number of processes that share the spots.
        drop_last: Drop spots that do not fill a batch of every process. Otherwise the last batch is smaller, and if the number
            of processes does not divide the number of spots, the last processes get some of the first spots again.

    Raises:
        ValueError: If there are too few spots for a batch, or the buffer is smaller than a batch.

    Examples:
        >>> from delst_hf.data.streamed import StreamedStudy
        >>> spots = StreamedStudy.load("runs/toy/data").subset(["toy_A1", "toy_A2"])
        >>> stream = SpotStream(spots, batch_size=16)
        >>> len(stream), [batch.num_rows for batch in stream]
        (4, [16, 16, 16, 16])
        >>> stream.state_dict()
        {'epoch': 0, 'batches': 0}
    """

    def __init__(
        self,
        spots: SpotFiles,
        batch_size: int,
        shuffle_buffer: int = 4096,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        drop_last: bool = True,
    ):
        if batch_size < 1 or shuffle_buffer < batch_size:
            raise ValueError(
                f"shuffle_buffer={shuffle_buffer} is smaller than a batch of {batch_size} spots. Set it to a few thousand, and "
                "to no less than a batch."
            )
        self.spots, self.batch_size, self.seed, self.rank, self.ranks = spots, batch_size, seed, rank, ranks
        self.block_size = shuffle_buffer // batch_size * batch_size
        total = spots.num_rows
        # The spots of this process are at `first` to `first + own` of the order of an epoch.
        own = total // ranks if drop_last else -(-total // ranks)
        self._batches = own // batch_size if drop_last else -(-own // batch_size)
        if not self._batches or total < ranks:
            raise ValueError(
                f"{total} training spots make no batch of {batch_size} for each of {ranks} processes. Lower "
                "--per_device_train_batch_size, train on more slides, or set --dataloader_drop_last false."
            )
        self._own = min(own, self._batches * batch_size)
        self._first = own * rank
        # Shared with the workers of a loader: persistent ones outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._resumed = {"epoch": 0, "batches": 0}

    @property
    def num_rows(self) -> int:
        """The number of spots of all processes together."""
        return self.spots.num_rows

    def __len__(self) -> int:
        """Return the number of batches of this process in an epoch, the same for every process."""
        return self._batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is read next; every epoch has another order."""
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return the position at which the stream begins: an epoch, and the number of its batches already given."""
        epoch = int(self._epoch)
        return {"epoch": epoch, "batches": self._resumed["batches"] if self._resumed["epoch"] == epoch else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin at a position: earlier batches are yielded as None, without being read.

        Args:
            state: ``epoch``, and ``batches``, the number of its batches already given.
        """
        self._resumed = {"epoch": int(state["epoch"]), "batches": int(state["batches"])}
        self.set_epoch(self._resumed["epoch"])

    def __iter__(self) -> Iterator[pa.Table | None]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        share = self.share(int(self._epoch), worker, workers)
        # The loader takes batches from its workers in turn.
        given = max(-(-(self.state_dict()["batches"] - worker) // workers), 0)
        yield from (None for _ in range(given))
        yield from self._read(share, given)

    def share(self, epoch: int, worker: int = 0, workers: int = 1) -> Share:
        """Return the part of an epoch that a worker of this process reads.

        Workers differ by at most one batch; the smaller last batch of the epoch is the last one of its worker.
        """
        last = (self._batches - 1) % workers
        ends = [self._first]
        for one in range(worker + 1):
            batches = max(-(-(self._batches - one) // workers), 0)
            missing = self._batches * self.batch_size - self._own if one == last else 0
            ends.append(ends[-1] + batches * self.batch_size - missing)
        return Share(epoch, worker, ends[-2], ends[-1])

    def _read(self, share: Share, given: int) -> Iterator[pa.Table]:
        """Yield the batches of a share after the first `given`, while prefetching the next block."""
        block, done = divmod(given * self.batch_size, self.block_size)
        blocks = -(-(share.stop - share.start) // self.block_size)
        if block >= blocks:
            return
        order = EpochOrder(self.spots, self.seed, share)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._block, order, share, block)
            for number in range(block, blocks):
                table = ahead.result()
                if number + 1 < blocks:
                    ahead = reader.submit(self._block, order, share, number + 1)
                for start in range(done, table.num_rows, self.batch_size):
                    yield table.slice(start, self.batch_size)
                done = 0

    def _block(self, order: "EpochOrder", share: Share, number: int) -> pa.Table:
        """Read a block of a share, and shuffle it."""
        start = share.start + number * self.block_size
        stretches = order.stretches(start, min(start + self.block_size, share.stop))
        table = pa.concat_tables(self.spots.read(stretches).iter(batch_size=self.block_size)).combine_chunks()
        draw = np.random.default_rng([self.seed, share.epoch, self.rank, share.worker, number])
        return table.take(pa.array(draw.permutation(table.num_rows)))


class EpochOrder:
    """The stretches of a share in the random order of an epoch; other stretches are drawn, but not kept.

    Args:
        spots: The spots to read.
        seed: Seed of all epochs.
        share: The part of the epoch.
    """

    def __init__(self, spots: SpotFiles, seed: int, share: Share):
        self.spots, self.total = spots, spots.num_rows
        kind = np.int32 if spots.num_stretches < 2**31 else np.int64
        order = np.random.default_rng([seed, share.epoch]).permutation(np.arange(spots.num_stretches, dtype=kind))
        ends = np.cumsum(spots.stretch_sizes()[order], dtype=np.int64)
        # A share that reaches beyond the last spot continues with the first.
        self.parts = []
        for start, stop in self._within(share.start, share.stop):
            low, high = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1
            self.parts.append((start, stop, order[low:high].copy(), ends[low:high].copy()))

    def _within(self, start: int, stop: int) -> list[tuple[int, int]]:
        pieces = [(start, min(stop, self.total)), (max(start, self.total) - self.total, stop - self.total)]
        return [(low, high) for low, high in pieces if low < high]

    def stretches(self, start: int, stop: int) -> list[Stretch]:
        """Return the stretches that hold the spots at `start` to `stop` of the order, cut at both ends."""
        found = []
        for low, high in self._within(start, stop):
            numbers, ends = next((part[2], part[3]) for part in self.parts if part[0] <= low and high <= part[1])
            for place in range(int(np.searchsorted(ends, low, side="right")), len(ends)):
                whole = self.spots.stretch(int(numbers[place]))
                first = int(ends[place]) - (whole.stop - whole.start)
                if first >= high:
                    break
                cut = max(low - first, 0), min(high - first, whole.stop - whole.start)
                found.append(Stretch(whole.file, whole.start + cut[0], whole.start + cut[1]))
        return found
