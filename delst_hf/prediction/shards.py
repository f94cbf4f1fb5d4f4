"""A model's outputs for patches, written to disk a few hundred at a time: memory stays flat, and a killed run resumes."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from tqdm.auto import tqdm

from ..atomic.files import write_file
from ..atomic.locks import kept_folder, kept_folders, writing
from ..data.appearance import patch_colours
from ..evaluation.backbone import one_late
from .predictor import Predictor
from .source import PatchSource
from .stream import check_reading, in_batches, read_ahead

logger = logging.getLogger(__name__)

# Patches per shard, the most that a killed run loses.
_ROWS = 512
# Number of patches per shard, evenly spread, whose colours are measured.
_COLOURS = 16


@dataclass(frozen=True)
class Shards:
    """Predictions of consecutive patches, one file each.

    Attributes:
        paths: The files, in the order of the patches.
    """

    paths: list[Path]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the arrays of each shard, one shard in memory at a time."""
        for path in self.paths:
            yield load_file(path)

    def column(self, name: str) -> np.ndarray:
        """Return one array for all patches (patches, ...); raise a KeyError if the model does not make it."""
        return np.concatenate([shard[name] for shard in self])


@contextmanager
def workspace(output: str | os.PathLike, told: Any, check: Callable[[], object]) -> Iterator[Path]:
    """Yield the hidden folder beside an output that holds its shards; it is removed once the output is written.

    Args:
        output: Path of the output.
        told: All that determines the content of the shards, as JSON; shards of other content are not resumed from.
        check: Refuses an output that must not be replaced: a run that had the lock until now may have made it.
    """
    # The size of a shard counts too: another version of this program may have another.
    key = hashlib.sha256(json.dumps([told, _ROWS], sort_keys=True, default=str).encode()).hexdigest()[:16]
    with writing(output) as path:
        check()
        folder = kept_folder(path, key)
        for stale in kept_folders(path):
            if stale != folder:
                shutil.rmtree(stale, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException:
            if not any(folder.glob("*.safetensors")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def run(
    source: PatchSource,
    predictor: Predictor,
    folder: Path,
    keep: Sequence[str],
    batch_size: int = 64,
    num_workers: int = 2,
    progress: bool = True,
    what: str = "predict",
) -> Shards:
    """Predict all patches of a source; resume from shards that an earlier run left.

    Args:
        source: The patches.
        predictor: The model.
        folder: Folder of the shards (see `workspace`).
        keep: Names of the predictor's arrays to keep; arrays that it does not make are left out.
        batch_size: Patches per batch.
        num_workers: Threads that read patches.
        progress: Show a bar with tiles per second and the time left.
        what: Name of the bar.
    """
    check_reading(batch_size, num_workers)
    for stale in folder.glob(".*.incomplete-*"):
        stale.unlink()
    paths = {start: folder / f"{start:010d}.safetensors" for start in range(0, len(source), _ROWS)}
    done = {start for start, path in paths.items() if path.exists()}
    taken = sum(min(_ROWS, len(source) - start) for start in done)
    if taken:
        logger.info("resumed with %d of %d patches from an earlier run", taken, len(source))
    todo = {start: source.order(start, min(start + _ROWS, len(source))) for start in paths if start not in done}
    # One stream for all shards: the next one is read while this one is finished.
    batches = read_ahead(
        source.read, (batch for order in todo.values() for batch in in_batches(order, batch_size)), num_workers
    )
    with (
        tqdm(total=len(source), initial=taken, desc=what, unit="tile", disable=not progress) as bar,
        closing(batches),
    ):
        predicted = one_late((patches, predictor.begin(patches)) for _, patches in batches)
        for start, order in todo.items():
            arrays = _one_shard(predicted, order, keep, batch_size, bar)
            with write_file(paths[start]) as file:
                file.write(save(arrays))
    return Shards(list(paths.values()))


def in_memory(
    source: PatchSource,
    predictor: Predictor,
    batch_size: int = 64,
    num_workers: int = 2,
    step: Callable[[float], Any] | None = None,
) -> dict[str, np.ndarray]:
    """Predict all patches of a source in memory, such as those of one slide.

    Args:
        source: The patches.
        predictor: The model.
        batch_size: Patches per batch.
        num_workers: Threads that read patches.
        step: Called with the share that is done.

    Returns:
        The predictor's arrays in the order of the source, without ``features``, which are large.
    """
    parts, done = [], 0
    batches = read_ahead(source.read, in_batches(np.arange(len(source)), batch_size), num_workers)
    for patches, found in one_late((patches, predictor.begin(patches)) for _, patches in batches):
        parts.append({name: value for name, value in found.items() if name != "features"})
        done += len(patches)
        if step is not None:
            step(done / len(source))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _one_shard(
    predicted: Iterator[tuple[list[np.ndarray], dict[str, np.ndarray]]],
    order: np.ndarray,
    keep: Sequence[str],
    batch_size: int,
    bar: Any,
) -> dict[str, np.ndarray]:
    """Return the arrays of one shard, in the order of the source, from the next batches."""
    places = order - order.min()
    arrays: dict[str, np.ndarray] = {}
    colours: list[np.ndarray] = []
    done, step = 0, max(len(order) // _COLOURS, 1)
    for patches, found in islice(predicted, -(-len(order) // batch_size)):
        looked_at = patches[-done % step :: step]
        here = places[done : done + len(patches)]
        done += len(patches)
        for name, value in found.items():
            if name in keep:
                arrays.setdefault(name, np.empty((len(order), *value.shape[1:]), np.float32))[here] = value
        if looked_at and patches[0].ndim == 3:  # features made elsewhere have no colours
            colours.append(patch_colours(looked_at))
        bar.update(len(patches))
    return {**arrays, "colours": np.concatenate([*colours, np.empty((0, 3))]).astype(np.float32)}
