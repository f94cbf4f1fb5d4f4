"""Embed a dataset with a model, each process a share of it."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..atomic.processes import give_back_freed_memory
from ..data.collator import DelstCollator, FeatureCollator
from ..data.study import SpotRows, Study
from ..model.configuration_delst import DelstFeaturesConfig
from ..model.distributed import process_rank, world_size
from ..model.modeling_delst import DelstModel
from ..model.processing_delst import DelstProcessor
from .backbone import InferenceBackbone, on_cpu, one_late

if TYPE_CHECKING:
    from ..data.patch_features import FeatureTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the spots of a dataset, in its order.

    Attributes:
        features: Pooled output of the vision backbone (spots, width), before the hyperbolic head.
        image_embeds: Image embeddings (spots, projection_dim).
        gene_embeds: Gene embeddings (spots, projection_dim).

    Examples:
        >>> embeddings = Embeddings(np.zeros((4, 8)), np.zeros((4, 2)), np.zeros((4, 2)))
        >>> embeddings.features.shape, embeddings.image_embeds.shape
        ((4, 8), (4, 2))
    """

    features: np.ndarray
    image_embeds: np.ndarray
    gene_embeds: np.ndarray


def model_collator(
    model: DelstModel, processor: DelstProcessor, study: Study, features: "FeatureTable | None" = None
) -> DelstCollator:
    """Make the collator of a model: of patches or, if the model reads these, of features made elsewhere.

    Raises:
        ValueError: If the model reads features and there are none, or the reverse, or the features have another width.
    """
    vision = model.config.vision_config
    check_features(vision, None if features is None else features.width, None if features is None else features.encoder)
    if features is None:
        return DelstCollator.of(processor, study)
    return FeatureCollator.of(processor, study, features=features)


def check_features(vision: PreTrainedConfig, width: int | None, encoder: str | None = None) -> None:
    """Check that a model can read the patches or features that are given.

    Args:
        vision: Configuration of its backbone, or of the features that replace one.
        width: Width of the features made elsewhere; None where there are patches.
        encoder: Name of the encoder that made them.

    Raises:
        ValueError: If a model of patches is given features, one of features patches, or features of another width.
    """
    reads = vision.hidden_size if isinstance(vision, DelstFeaturesConfig) else None
    if reads is None and width is not None:
        raise ValueError(
            f"the model has a {vision.model_type} backbone and reads patches, not features made elsewhere. Leave "
            "--features out, or train a model on them: accelerate launch training/pretrain.py CONFIG --features DIR."
        )
    if reads is not None and width is None:
        raise ValueError(
            f"the model reads features of {reads} numbers that {vision.encoder or 'another program'} made of patches, "
            "and cannot read the patches themselves. Give the features of these slides: --features DIR beside a dataset, "
            "or their file in place of a slide."
        )
    if reads != width:
        raise ValueError(
            f"the model reads features of {reads} numbers ({vision.encoder or 'encoder unknown'}), and these have "
            f"{width} ({encoder or 'encoder unknown'}). Give features of the encoder that it was trained on."
        )
    if encoder and vision.__dict__.get("encoder") not in (None, "", encoder):
        logger.warning(
            "the model was trained on %s and gets %s. Check that both name the same encoder.", vision.encoder, encoder
        )


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
        On the first process all embeddings, in the order of `spots`; on the others arrays without rows, to save their
        memory.

    Examples:
        >>> from delst_hf import DelstCollator, DelstModel, DelstProcessor, Study
        >>> model = DelstModel.from_pretrained("runs/toy/pretrain/model").eval()
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> study = Study.load("runs/toy/data")
        >>> collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
        >>> embeddings = embed(model, study.subset(["toy_D1"]), collator, progress=False)
        >>> len(embeddings.image_embeds) == len(study.subset(["toy_D1"]))
        True
    """
    share, local = _shares(len(spots))[process_rank()], [torch.empty(0, 0)] * 3
    for start, *parts in embed_share(model, spots, collator, batch_size, num_workers, progress):
        if start == share.start:  # allocate all rows: joining batches at the end would take twice the memory
            local = [part.new_empty(len(share), part.shape[1]) for part in parts]
        for rows, part in zip(local, parts, strict=True):
            rows[start - share.start :][: len(part)] = part
    give_back_freed_memory()  # that of the batches
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
        Position of the batch's first spot in `spots`, features, image embeddings and gene embeddings, on the CPU.
    """
    model.eval()
    rank = process_rank()
    shard = _shares(len(spots))[rank]
    if not shard:  # more processes than spots
        return
    rows = spots.select(shard)
    fast = isinstance(collator, DelstCollator)
    backbone = InferenceBackbone(model)
    loader: DataLoader = DataLoader(
        SpotRows(rows) if fast else rows,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=model.device.type == "cuda",
    )

    def begun() -> Iterator[tuple[int, Callable[[], dict[str, Tensor]]]]:
        start = shard.start
        for batch in tqdm(loader, desc="embed", unit="batch", disable=not progress or rank > 0, leave=False):
            names = ("pixel_values", "gene_values", "gene_mask")
            inputs = {name: batch[name].to(model.device, non_blocking=True) for name in names}
            inputs = collator.finish(inputs) if isinstance(collator, DelstCollator) else inputs
            pooled = backbone(inputs["pixel_values"])
            genes = model.get_gene_features(inputs["gene_values"], inputs["gene_mask"]).pooler_output
            image = model.embed_features(pooled, "image")
            yield start, on_cpu({"features": pooled.float(), "image": image, "gene": genes})
            start += len(pooled)

    for start, parts in one_late(begun()):
        yield start, parts["features"], parts["image"], parts["gene"]


def _shares(spots: int) -> list[range]:
    """Return the range of spots of each process; lengths differ by one at most, and the first range is one of the longest."""
    ends = [-(-spots * rank // world_size()) for rank in range(world_size() + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def _on_the_first_process(rows: Tensor, spots: int, device: torch.device) -> np.ndarray:
    """Return the rows of all processes, in order, on the first, and no rows on the others; they are sent one by one."""
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
