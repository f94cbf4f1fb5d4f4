"""Embed a dataset with a model: the one place of the evaluation that knows what a model is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.collator import DelstCollator
from ..data.study import SpotRows
from ..losses import gather_across_ranks, process_rank, world_size
from ..modeling_delst import DelstModel


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


@torch.no_grad()
def embed(
    model: DelstModel,
    spots: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Embeddings:
    """Embed spots on the model's device, each process a share of them, all processes receiving the whole.

    Args:
        model: The model; it is put in eval mode.
        spots: Spots of a `Study`.
        collator: A `DelstCollator` without augmentation.
        batch_size: Spots a batch.
        num_workers: Worker processes of the loader.
        progress: Show a progress bar, on the first process.
    """
    model.eval()
    rank = process_rank()
    shard = np.array_split(np.arange(len(spots)), world_size())[rank]
    rows = spots.select(shard)
    fast = isinstance(collator, DelstCollator)
    loader: DataLoader = DataLoader(
        SpotRows(rows) if fast else rows,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=model.device.type == "cuda",
    )
    parts: list[tuple[Tensor, ...]] = []
    for batch in tqdm(loader, desc="embed", unit="batch", disable=not progress or rank > 0, leave=False):
        inputs = {
            key: batch[key].to(model.device, non_blocking=True) for key in ("pixel_values", "gene_values", "gene_mask")
        }
        output = model(**(collator.finish(inputs) if isinstance(collator, DelstCollator) else inputs))
        features = output.vision_model_output.pooler_output
        parts.append((features.float(), output.image_embeds, output.gene_embeds))
    joined = (gather_across_ranks(torch.cat(part))[0].cpu().numpy() for part in zip(*parts, strict=True))
    return Embeddings(*joined)
