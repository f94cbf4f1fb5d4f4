"""The sampler of slide-aware batches, made from the columns of a dataset and the arguments of a run."""

from typing import Any

import numpy as np
from transformers import TrainerCallback

from ..data.sampler import SlideSampler
from .arguments import DelstTrainingArguments


class EpochOfSampler(TrainerCallback):
    """Tells a sampler its epoch, which the loader of several processes does not do when a run is resumed within one.

    Args:
        sampler: The sampler.
    """

    def __init__(self, sampler: SlideSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Count complete epochs."""
        self.sampler.set_epoch(int(state.epoch or 0))


def slide_sampler(spots: Any, args: DelstTrainingArguments) -> SlideSampler:
    """Return the sampler of slide-aware batches over the joined batch of all processes.

    Args:
        spots: Spots with ``slide_id``, and with ``x_um`` and ``y_um`` if a distance is required.
        args: Training arguments.

    Raises:
        ValueError: If a column is missing, or no batch can be made (see `SlideSampler`).
    """
    wanted = ["slide_id", "x_um", "y_um"] if args.min_spot_distance_um else ["slide_id"]
    missing = [name for name in wanted if name not in spots.column_names]
    if missing:
        raise ValueError(
            f"batch_sampling={args.batch_sampling!r} with min_spot_distance_um={args.min_spot_distance_um:g} needs the columns "
            f"{missing}. Give spots of a Study; Study.with_positions_um adds x_um and y_um."
        )
    columns = spots.with_format("numpy")
    positions = np.stack([columns["x_um"][:], columns["y_um"][:]], axis=1) if args.min_spot_distance_um else None
    return SlideSampler(
        np.asarray(columns["slide_id"][:]),
        args.train_batch_size * args.world_size,
        args.batch_sampling,
        positions,
        args.min_spot_distance_um,
        args.seed if args.data_seed is None else args.data_seed,
    )
