"""Rows of a dataset folder -> a batch: patches decoded and normalised in one pass, sparse counts made dense."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..processing_delst import DelstProcessor


class DelstCollator:
    """Makes batches for `DelstModel` out of rows of the ``spots`` table.

    Args:
        processor: Processor of the model, with its vocabulary.
        gene_names: Names of all genes of the dataset, which the rows' ``gene_indices`` point into.
        slide_ids: Slides of the dataset; their positions become the integer ``slide_ids`` of a batch.
        measured_genes: Indices of the genes that each slide's panel measures; None means that all are.

    Raises:
        ValueError: If almost none of the vocabulary's genes are in the dataset.
    """

    def __init__(
        self,
        processor: DelstProcessor,
        gene_names: Sequence[str],
        slide_ids: Sequence[str],
        measured_genes: Mapping[str, np.ndarray] | None = None,
    ):
        self.processor = processor
        self.columns = processor.feature_extractor.match(gene_names)
        self.slide_index = {slide_id: i for i, slide_id in enumerate(slide_ids)}
        self.slide_mask = torch.from_numpy(self._panel_masks(measured_genes))
        self.pixel_transform = _PixelTransform.from_image_processor(processor.image_processor)

    def _panel_masks(self, measured_genes: Mapping[str, np.ndarray] | None) -> np.ndarray:
        """(slides, vocabulary) bool: which genes of the vocabulary each slide measures."""
        masks = np.zeros((len(self.slide_index), len(self.processor.feature_extractor.vocabulary)), dtype=bool)
        for slide_id, row in self.slide_index.items():
            columns = self.columns if measured_genes is None else self.columns[measured_genes[slide_id]]
            masks[row, columns[columns >= 0]] = True
        return masks

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows with ``image`` (PIL, or the undecoded dict with its bytes), ``gene_indices``, ``gene_counts``,
                ``slide_id``, ``total_counts``, ``n_genes`` and ``spot_index``; a column ``level`` takes the place of
                ``n_genes``.

        Returns:
            ``pixel_values``, ``gene_values``, ``gene_mask``, ``level``, ``slide_ids``, ``labels`` (the spot index) and
            ``return_loss``.
        """
        slides = torch.tensor([self.slide_index[row["slide_id"]] for row in rows])
        return {
            "pixel_values": self.pixel_values([row["image"] for row in rows]),
            "gene_values": torch.from_numpy(self.gene_values(rows)),
            "gene_mask": self.slide_mask[slides],
            "level": torch.tensor([row.get("level", row["n_genes"]) for row in rows], dtype=torch.float32),
            "slide_ids": slides,
            "labels": torch.tensor([row["spot_index"] for row in rows]),
            "return_loss": True,
        }

    def gene_values(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Normalised expression of the vocabulary's genes (batch, vocabulary) float32."""
        lengths = [len(row["gene_indices"]) for row in rows]
        spot = np.repeat(np.arange(len(rows)), lengths)
        column = self.columns[np.concatenate([np.asarray(row["gene_indices"], dtype=np.int64) for row in rows])]
        values = np.concatenate([np.asarray(row["gene_counts"], dtype=np.float64) for row in rows])
        known = column >= 0
        width = len(self.processor.feature_extractor.vocabulary)
        # bincount adds up, so several genes of one name are summed as in the feature extractor.
        dense = np.bincount(spot[known] * width + column[known], weights=values[known], minlength=len(rows) * width)
        totals = np.asarray([row["total_counts"] for row in rows], dtype=np.float64)
        return self.processor.feature_extractor.normalize(dense.reshape(len(rows), width), totals)

    def pixel_values(self, images: Sequence[Any]) -> Tensor:
        """Normalised patches (batch, 3, height, width) float32, equal to what the image processor returns."""
        opened = [_open(image) for image in images]
        if self.pixel_transform is not None and all(image.size == self.pixel_transform.size for image in opened):
            return self.pixel_transform(opened)
        return self.processor.image_processor(opened, return_tensors="pt")["pixel_values"]


class _PixelTransform:
    """Rescaling and normalisation of patches that already have the model's size: one fused pass over the uint8 batch."""

    def __init__(self, size: tuple[int, int], scale: Tensor, shift: Tensor):
        self.size, self.scale, self.shift = size, scale, shift

    @classmethod
    def from_image_processor(cls, image_processor: Any) -> "_PixelTransform | None":
        """None where the processor does more than resize, rescale and normalise."""
        size = image_processor.size
        crop: Any = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else size
        if "height" not in size or (crop["height"], crop["width"]) != (size["height"], size["width"]):
            return None
        factor = image_processor.rescale_factor if image_processor.do_rescale else 1.0
        channels = torch.ones(3)
        mean, std = 0 * channels, channels
        if image_processor.do_normalize:
            mean, std = torch.as_tensor(image_processor.image_mean), torch.as_tensor(image_processor.image_std)
        scale, shift = (factor / std).view(1, 3, 1, 1), (-mean / std).view(1, 3, 1, 1)
        return cls((size["width"], size["height"]), scale, shift)

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        # Left in channels-last memory order, in which convolutions run faster (by a third on a CPU), and no copy is made.
        return torch.addcmul(self.shift, pixels.permute(0, 3, 1, 2).float(), self.scale)


def _open(image: Any) -> Image.Image:
    """A PIL RGB image from a decoded or an undecoded cell."""
    if isinstance(image, Mapping):
        image = Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"])
    return image if image.mode == "RGB" else image.convert("RGB")
