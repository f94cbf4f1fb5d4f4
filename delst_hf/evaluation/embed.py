"""Embed a dataset with a model, each process a share of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.collator import DelstCollator
from ..data.study import SpotRows
from ..model.distributed import process_rank, world_size
from ..model.modeling_delst import DelstModel

CPU_SPOTS = 8  # spots that go through the model at once where there is no accelerator


@dataclass(frozen=True)
class Embeddings:
    """What a model makes of the spots of a dataset, in its order.

    Attributes:
        features: Pooled output of the vision backbone (spots, width), before the hyperbolic head.
        image_embeds: Image embeddings (spots, projection_dim).
        gene_embeds: Gene embeddings (spots, projection_dim).
    """

    features: np.ndarray
    image_embeds: np.ndarray
    gene_embeds: np.ndarray


def embed(
    model: DelstModel,
    spots: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Embeddings:
    """Embed spots on the model's device, each process a share of them.

    Args:
        model: The model; it is put in eval mode.
        spots: Spots of a `Study`.
        collator: A `DelstCollator` without augmentation.
        batch_size: Spots per batch.
        num_workers: Worker processes of the loader.
        progress: Show a progress bar, on the first process.

    Returns:
        On the first process the whole, in the order of `spots`; on the others, whose memory a large dataset need not fill as
        well, arrays of no rows.
    """
    batches = [each for _, *each in embed_share(model, spots, collator, batch_size, num_workers, progress)]
    local = map(torch.cat, zip(*batches, strict=True)) if batches else [torch.empty(0, 0)] * 3
    return Embeddings(*(_on_the_first_process(rows, len(spots), model.device) for rows in local))


@torch.no_grad()
def embed_share(
    model: DelstModel,
    spots: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Embed this process's share, a batch at a time; arguments are those of `embed`.

    Yields:
        The place of the batch's first spot among all, features, image embeddings and gene embeddings, on the CPU.
    """
    model.eval()
    on_cpu = model.device.type == "cpu"
    if on_cpu:  # convolutions there are half as fast with channels first
        model.vision_model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    rank = process_rank()
    shard = _shares(len(spots))[rank]
    if not shard:  # more processes than spots
        return
    rows = spots.select(shard)
    fast = isinstance(collator, DelstCollator)
    loader: DataLoader = DataLoader(
        SpotRows(rows) if fast else rows,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=model.device.type == "cuda",
    )
    start, earlier = shard.start, None
    for batch in tqdm(loader, desc="embed", unit="batch", disable=not progress or rank > 0, leave=False):
        inputs = {
            key: batch[key].to(model.device, non_blocking=True) for key in ("pixel_values", "gene_values", "gene_mask")
        }
        inputs = collator.finish(inputs) if isinstance(collator, DelstCollator) else inputs
        # A processor's cache holds the activations of a few patches only.
        size = CPU_SPOTS if on_cpu else len(inputs["pixel_values"])
        pieces = [_parts(model, inputs, slice(i, i + size)) for i in range(0, len(inputs["pixel_values"]), size)]
        here = [torch.cat(piece).to("cpu", non_blocking=True) for piece in zip(*pieces, strict=True)]
        features = here[0]
        arrived = torch.cuda.Event() if model.device.type == "cuda" else None
        if arrived is not None:
            arrived.record()
        if earlier is not None:  # handed on only now, so that the device has the next batch to work on
            yield _arrived(*earlier)
        earlier = start, here, arrived
        start += len(features)
    if earlier is not None:
        yield _arrived(*earlier)


def _parts(model: DelstModel, inputs: dict[str, Tensor], rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Features, image embeddings and gene embeddings of some rows of a batch, where the model is."""
    output = model(**{name: None if values is None else values[rows] for name, values in inputs.items()})
    return output.vision_model_output.pooler_output.float(), output.image_embeds, output.gene_embeds


def _arrived(start: int, parts: list[Tensor], event: Any) -> tuple[int, Tensor, Tensor, Tensor]:
    if event is not None:
        event.synchronize()
    return start, parts[0], parts[1], parts[2]


def _shares(spots: int) -> list[range]:
    """Which spots each process embeds: stretches that differ by one spot at most, the first of them never the shorter."""
    ends = [-(-spots * rank // world_size()) for rank in range(world_size() + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def _on_the_first_process(rows: Tensor, spots: int, device: torch.device) -> np.ndarray:
    """Rows of all processes, in order, on the first; no rows on the others. They go one process at a time."""
    if world_size() == 1:
        return rows.numpy()
    if process_rank() > 0:
        if len(rows):
            dist.send(rows.contiguous().to(device), 0)
        return rows[:0].numpy()
    joined = np.empty((spots, rows.shape[1]), dtype=np.float32)
    joined[: len(rows)] = rows.numpy()
    for rank, share in enumerate(_shares(spots)):
        if rank and len(share):
            part = torch.empty(len(share), rows.shape[1], device=device)
            dist.recv(part, rank)
            joined[share.start : share.stop] = part.cpu().numpy()
    return joined
