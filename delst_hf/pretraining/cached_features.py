"""Training the heads alone, fast: the frozen backbone encodes each spot once and its features are stored.

Without the backbone in every step, batches of 16,000 spots and more fit on one machine.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..atomic.files import fsync, write_text
from ..atomic.locks import locked
from ..data.collator import DelstCollator
from ..data.schema import sha256
from ..data.study import SpotRows
from ..evaluation.embed import embed_share
from ..model.distributed import process_rank, wait_for_all
from ..model.modeling_delst import DelstModel
from ..model.vision_delst import GivenFeatures

logger = logging.getLogger(__name__)


@contextmanager
def without_backbone(model: DelstModel) -> Iterator[None]:
    """Let the model take features instead of patches within this context; checkpoints then hold the heads only."""
    backbone = model.vision_model
    model.vision_model = GivenFeatures(backbone.config)
    try:
        yield
    finally:
        model.vision_model = backbone


class FeatureRows(SpotRows):
    """Spots with features in place of patches, read batch by batch; use `as_it_is` as the collator.

    Args:
        spots: Spots of a `Study`.
        features: Features of the same spots (spots, width); a memory map will do.
        collator: Collator of the model.
    """

    def __init__(self, spots: Dataset, features: np.ndarray, collator: DelstCollator):
        if len(features) != len(spots):
            raise ValueError(f"{len(features)} features but {len(spots)} spots: row i of both must be the same spot.")
        super().__init__(spots.remove_columns("image"))
        self.features, self.collator = features, collator

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:  # type: ignore[override]
        batch = self.collator.all_but_pixels(super().__getitems__(indices))
        return {"pixel_values": torch.from_numpy(self.features[indices]), **batch}


def as_it_is(batch: Any) -> Any:
    """Return a batch unchanged: the collator for a dataset that makes its own batches."""
    return batch


@contextmanager
def features_in_place_of_patches(trainer: Any) -> Iterator[None]:
    """Let a `DelstTrainer` train within this context on the features of its spots, which are computed first if missing."""
    args, collator, spots = trainer.args, trainer.data_collator, (trainer.train_dataset, trainer.eval_dataset)
    options = {"batch_size": args.eval_batch_size, "num_workers": args.dataloader_num_workers}

    def rows(part: Dataset | None) -> FeatureRows | None:
        if part is None:
            return None
        return FeatureRows(part, cached_features(trainer.model, part, collator, args.output_dir, **options), collator)

    # The random numbers of the run do not depend on whether the features were stored already.
    with torch.random.fork_rng():
        trainer.train_dataset, trainer.eval_dataset = map(rows, spots)
    trainer.data_collator = as_it_is
    try:
        with without_backbone(trainer.model):
            yield
    finally:
        trainer.data_collator, (trainer.train_dataset, trainer.eval_dataset) = collator, spots


def cached_features(
    model: DelstModel, spots: Dataset, collator: DelstCollator, folder: str | os.PathLike, **options: Any
) -> np.ndarray:
    """Return features of the backbone, computed by all processes unless `folder` holds those of this backbone and data.

    Args:
        model: The model, on the device that embeds.
        spots: Spots of a `Study`.
        collator: Collator of the model.
        folder: Where to keep ``features-<key>.npy`` and its checksum; the key hashes weights, preparation of the patches and
            spots.
        **options: batch_size, num_workers and progress, as in `embed`.

    Returns:
        (spots, width) float32, a memory map, of which the processes of a machine share one copy. Several machines need a
        shared folder.
    """
    folder = Path(folder)
    path = folder / f"features-{_key(model, spots, collator)}.npy"
    if process_rank() == 0 and path.exists() and not _as_written(path):
        logger.warning("%s does not match its checksum: the features are computed again.", path)
        path.unlink()
    wait_for_all()
    if not path.exists():
        with locked(path, "file of features") if process_rank() == 0 else nullcontext():
            _write_features(path, model, spots, collator, **options)
    wait_for_all()
    # Copy-on-write: torch requires writable memory, though nothing writes to it.
    return np.load(path, mmap_mode="c")


def _write_features(path: Path, model: DelstModel, spots: Dataset, collator: DelstCollator, **options: Any) -> None:
    """Embed all spots into a file that appears only when it is complete."""
    partial, first = path.with_suffix(".partial"), process_rank() == 0
    if first:
        _make_room(partial, (len(spots), model.config.vision_feature_size))
    try:
        wait_for_all()
        # Each process writes its own rows: none has to hold them all.
        table = np.lib.format.open_memmap(partial, "r+")
        for start, features, _, _ in embed_share(model, spots, collator, **options):
            table[start : start + len(features)] = features.numpy()
        table.flush()
        wait_for_all()
    except BaseException:
        if first:
            partial.unlink(missing_ok=True)
        raise
    if first:
        fsync(partial)
        write_text(path.with_suffix(".sha256"), sha256(partial) + "\n")
        os.replace(partial, path)
        fsync(path.parent)


def _as_written(path: Path) -> bool:
    """Tell whether a file of features matches its checksum."""
    listed = path.with_suffix(".sha256")
    return listed.is_file() and listed.read_text(encoding="utf-8").strip() == sha256(path)


def _make_room(path: Path, shape: tuple[int, int]) -> None:
    """Make the file and reserve its disk space now: on a full disk, writing to a memory map kills the process silently."""
    size = 4 * shape[0] * shape[1]
    try:
        np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
        if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # this file system cannot reserve space
            return
        path.unlink(missing_ok=True)
        raise OSError(
            f"The features need {size / 1e9:.2f} GB in {path.parent}, which is not free ({error.strerror}). Free that much, "
            "choose another --output_dir, or leave --cache_features out."
        ) from error


def _key(model: DelstModel, spots: Dataset, collator: DelstCollator) -> str:
    """Hash everything that the features depend on."""
    digest = hashlib.sha256()
    for name, tensor in model.vision_model.state_dict().items():
        digest.update(name.encode())
        # Flattened first: a 0-d tensor, such as the counter of a batch norm, cannot be viewed as bytes.
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    processor = collator.processor
    digest.update(json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str).encode())
    digest.update(processor.stain_normalization.encode())
    digest.update(model.config.vision_pooling.encode())
    table = spots.select_columns(["slide_id", "barcode", "spot_index"]).to_pandas()
    digest.update(table.to_csv(index=False).encode())
    return digest.hexdigest()[:16]
