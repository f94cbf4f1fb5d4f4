"""Choose the spots of a batch: slides mixed in proportion, or one slide at a time, and no near-duplicate neighbours.

In a contrastive batch every other spot is a negative. With slides mixed in proportion, the negatives represent the study. With
one slide at a time they are hard, because colour and batch effects no longer distinguish spots. Spots that overlap or touch are
near-duplicates; as negatives they would punish the model for being right.
"""

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree
from torch.utils.data import Sampler

BATCH_SAMPLING = ("random", "balanced", "within_slide")


class SlideSampler(Sampler[int]):
    """Order of the spots of an epoch, to be cut into batches of `batch_size`, the joined batch of all processes.

    Every process draws the same order from seed and epoch, and the loader distributes the batches, so that processes do not
    overlap and a resumed run continues where it stopped. An epoch has ``spots // batch_size`` batches. Without a distance each
    spot occurs at most once; with one, spots are drawn again when too few distant ones are left.

    Args:
        slides: Slide of each spot (spots,), any type that can be compared.
        batch_size: Spots per joined batch: those of one process times the number of processes.
        mode: ``"random"``, ``"balanced"`` (slides mixed in proportion, to one spot) or ``"within_slide"`` (one slide per batch
            while a slide has enough spots, then as few slides as possible).
        positions_um: Positions (spots, 2) in micrometres, needed for a distance.
        min_distance_um: Spots of one slide that are closer than this are never in one batch.
        seed: Seed of all epochs.

    Raises:
        ValueError: If the mode is unknown, a batch is larger than the data, positions are missing, or no batch can keep
            the distance.

    Examples:
        >>> sampler = SlideSampler(np.array(["A", "A", "B", "B", "B", "B"]), batch_size=3, mode="balanced")
        >>> [len(batch) for batch in sampler.batches()]
        [3, 3]
    """

    def __init__(
        self,
        slides: np.ndarray,
        batch_size: int,
        mode: str = "balanced",
        positions_um: np.ndarray | None = None,
        min_distance_um: float = 0.0,
        seed: int = 0,
    ):
        if mode not in BATCH_SAMPLING:
            raise ValueError(
                f"batch_sampling={mode!r} is not known. Choose one of {', '.join(map(repr, BATCH_SAMPLING))}."
            )
        if not 1 <= batch_size <= len(slides):
            raise ValueError(
                f"A joined batch has {batch_size} spots, but there are {len(slides)}. Allowed: 1 to all of them. Lower "
                "--per_device_train_batch_size."
            )
        if min_distance_um < 0 or (min_distance_um > 0 and positions_um is None):
            raise ValueError(
                f"min_spot_distance_um={min_distance_um} must be 0 or more. Above 0 it needs the positions of the spots, the "
                "columns x_um and y_um that Study.with_positions_um adds."
            )
        self.slide = np.unique(slides, return_inverse=True)[1]
        self.sizes = np.bincount(self.slide)
        self.batch_size, self.mode, self.seed, self.epoch = batch_size, mode, seed, 0
        self.min_distance_um = min_distance_um
        self.neighbours = _neighbours(self.slide, positions_um, min_distance_um)
        # Work arrays of `_fill`, allocated once: the cost of a batch must not grow with the study.
        self._in_batch = np.zeros(len(slides), dtype=bool)
        self._place = np.full(len(slides), len(slides))

    def __len__(self) -> int:
        return len(self.slide) // self.batch_size * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next; every epoch has another order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches():
            yield from batch.tolist()

    def batches(self) -> list[np.ndarray]:
        """Return the joined batches of the epoch, each an array of spots (batch_size,)."""
        generator = np.random.default_rng([self.seed, self.epoch])
        batches: list[np.ndarray] = []
        if self.mode == "within_slide":
            leftovers = []
            for slide_spots in self._by_slide(generator):
                while len(slide_spots) >= self.batch_size:
                    batch, rest = self._fill(slide_spots)
                    if len(batch) < self.batch_size:
                        break
                    batches.append(batch)
                    slide_spots = rest
                leftovers.append(slide_spots)
            pending = np.concatenate(leftovers)
        else:
            pending = self._order(generator)
        while len(batches) < len(self) // self.batch_size:
            batch, pending = self._fill(pending)
            if len(batch) < self.batch_size:
                again = self._order(generator)
                left = np.concatenate([batch, pending])
                pending = np.concatenate([left, np.setdiff1d(again, left, assume_unique=True)])
                batch, pending = self._fill(pending)
            if len(batch) < self.batch_size:
                raise ValueError(
                    f"min_spot_distance_um={self.min_distance_um:g} allows batches of about {len(batch)} spots, not "
                    f"{self.batch_size}. Lower the distance or the batch size, or train on more slides."
                )
            batches.append(batch)
        shuffled = generator.permutation(len(batches)) if self.mode == "within_slide" else range(len(batches))
        return [batches[i] for i in shuffled]

    def _by_slide(self, generator: np.random.Generator) -> list[np.ndarray]:
        """Return the spots of each slide, with slides and spots in random order."""
        shuffled = generator.permutation(len(self.slide))
        grouped = shuffled[np.argsort(self.slide[shuffled], kind="stable")]
        groups = np.split(grouped, np.cumsum(self.sizes)[:-1])
        return [groups[i] for i in generator.permutation(len(groups))]

    def _order(self, generator: np.random.Generator) -> np.ndarray:
        """Return all spots in the order of the mode, ignoring the distance."""
        if self.mode == "random":
            return generator.permutation(len(self.slide))
        groups = self._by_slide(generator)
        if self.mode == "within_slide":
            return np.concatenate(groups)
        # The k-th of n spots of a slide is placed at (k + u) / n of the epoch, so any stretch has the slides in proportion.
        place = np.concatenate([(np.arange(len(group)) + generator.random()) / len(group) for group in groups])
        return np.concatenate(groups)[np.argsort(place, kind="stable")]

    def _fill(self, pending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first batch from `pending`, and the rest in its order; spots too close to the batch are postponed."""
        if self.neighbours is None:
            return pending[: self.batch_size], pending[self.batch_size :]
        in_batch = self._in_batch
        taken, put_off, at, missing = [], [], 0, self.batch_size
        while missing and at < len(pending):
            window = pending[at : at + missing]
            at += len(window)
            fits = self._fits(window, in_batch)
            in_batch[window[fits]] = True
            missing -= int(fits.sum())
            taken.append(window[fits])
            put_off.append(window[~fits])
        in_batch[np.concatenate(taken)] = False
        return np.concatenate(taken), np.concatenate([*put_off, pending[at:]])

    def _fits(self, window: np.ndarray, in_batch: np.ndarray) -> np.ndarray:
        """Return which spots of the window (window,) bool are far from the batch and from all earlier spots of the window."""
        starts, flat = self.neighbours  # type: ignore[misc]
        start, count = starts[window], starts[window + 1] - starts[window]
        owner = np.repeat(np.arange(len(window)), count)
        offset = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        near = flat[np.repeat(start, count) + offset]
        self._place[window] = np.arange(len(window))
        fits = np.ones(len(window), dtype=bool)
        fits[owner[in_batch[near] | (self._place[near] < owner)]] = False
        self._place[window] = len(self.slide)
        return fits


def _neighbours(
    slide: np.ndarray, positions_um: np.ndarray | None, distance: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return, for each spot, the spots of its slide closer than `distance`: starts (spots + 1,) and a flat array of spots."""
    if positions_um is None or distance == 0:
        return None
    pairs = [np.empty((0, 2), dtype=np.int64)]
    by_slide = np.argsort(slide, kind="stable")
    for rows in np.split(by_slide, np.cumsum(np.bincount(slide))[:-1]):
        # query_pairs includes the distance itself; "closer than" excludes it.
        found = cKDTree(positions_um[rows]).query_pairs(np.nextafter(distance, 0), output_type="ndarray")
        pairs.append(rows[found])
    both = np.concatenate(pairs)
    both = np.concatenate([both, both[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(both[:, 0], minlength=len(slide)))])
    return starts, both[:, 1]
