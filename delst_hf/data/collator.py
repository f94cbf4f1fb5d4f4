"""Collate rows of a dataset folder to a batch: patches decoded and normalised in one pass, sparse counts made dense."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import imagecodecs
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from ..model.processing_delst import DelstProcessor
from .folder import check_gene_indices

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


class DelstCollator:
    """Make batches for `DelstModel` from rows of the ``spots`` table.

    Args:
        processor: Processor of the model, with its vocabulary.
        gene_names: Names of all genes of the dataset, to which the rows' ``gene_indices`` refer.
        slide_ids: Slides of the dataset; their positions become the integer ``slide_ids`` of a batch.
        measured_genes: Indices of the genes that each slide's panel measures; None means all genes.
        defer_pixels: Leave patches of the model's size as uint8, a quarter of the bytes to send between processes and to the
            device, where `finish` normalises them. `DelstTrainer` and `embed` call `finish`.

    Raises:
        ValueError: If almost none of the vocabulary's genes are in the dataset.

    Examples:
        >>> from delst_hf import DelstProcessor, Study
        >>> study = Study.load("runs/toy/data")
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
        >>> batch = collator([study.spots[0], study.spots[1]])
        >>> batch["pixel_values"].shape, batch["gene_values"].shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 20]))
    """

    def __init__(
        self,
        processor: DelstProcessor,
        gene_names: Sequence[str],
        slide_ids: Sequence[str],
        measured_genes: Mapping[str, np.ndarray] | None = None,
        defer_pixels: bool = False,
    ):
        self.processor = processor
        # int32, like the rows' indices: most genes of a batch are looked up only to be left out.
        self.columns = processor.feature_extractor.match(gene_names).astype(np.int32)
        known = self.columns[self.columns >= 0]
        self.names_are_unique = len(np.unique(known)) == len(known)
        self.slide_index = {slide_id: i for i, slide_id in enumerate(slide_ids)}
        self.slide_mask = torch.from_numpy(self._panel_masks(measured_genes))
        self.pixel_transform = PixelTransform.from_processor(processor)
        self.defer_pixels = defer_pixels

    @classmethod
    def of(cls, processor: DelstProcessor, study: Any, **options: Any) -> Self:
        """Make the collator for a `Study`; options are those of the class.

        >>> from delst_hf import DelstProcessor, Study
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> DelstCollator.of(processor, Study.load("runs/toy/data")).slide_index["toy_A1"]
        0
        """
        return cls(processor, study.gene_names, study.slide_ids, study.measured_genes, **options)

    def _panel_masks(self, measured_genes: Mapping[str, np.ndarray] | None) -> np.ndarray:
        """Return which genes of the vocabulary each slide measures (slides, vocabulary) bool."""
        masks = np.zeros((len(self.slide_index), len(self.processor.feature_extractor.vocabulary)), dtype=bool)
        for slide_id, row in self.slide_index.items():
            columns = self.columns if measured_genes is None else self.columns[measured_genes[slide_id]]
            masks[row, columns[columns >= 0]] = True
        return masks

    def __call__(self, rows: Sequence[Mapping[str, Any]] | pa.Table) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows with ``image`` (PIL, or the undecoded dict with its bytes), ``gene_indices``, ``gene_counts``,
                ``slide_id``, ``total_counts``, ``n_genes`` and ``spot_index``; a column ``level`` replaces ``n_genes``. Or an
                arrow table with these columns (`SpotRows`), which is several times faster.

        Returns:
            ``pixel_values``, ``gene_values``, ``gene_mask``, ``level``, ``slide_ids``, ``labels`` (the spot index) and
            ``return_loss``.
        """
        return {"pixel_values": self.pixel_values(Columns(rows).values("image")), **self.all_but_pixels(rows)}

    def all_but_pixels(self, rows: Sequence[Mapping[str, Any]] | pa.Table) -> dict[str, Any]:
        """Return the batch without its patches; the rows need no ``image``."""
        columns = Columns(rows)
        level = columns.numbers("level" if "level" in columns else "n_genes")
        slides = torch.tensor([self.slide_index[slide] for slide in columns.values("slide_id")])
        return {
            "gene_values": torch.from_numpy(self.gene_values(rows)),
            "gene_mask": self.slide_mask[slides],
            "level": torch.from_numpy(level.astype(np.float32)),
            "slide_ids": slides,
            "labels": torch.from_numpy(columns.numbers("spot_index").astype(np.int64)),
            "return_loss": True,
        }

    def gene_values(self, rows: Sequence[Mapping[str, Any]] | pa.Table) -> np.ndarray:
        """Return the normalised expression of the vocabulary's genes (batch, vocabulary) float32."""
        columns = Columns(rows)
        indices, lengths = columns.lists("gene_indices")
        counts, _ = columns.lists("gene_counts")
        totals = columns.numbers("total_counts").astype(np.float64)
        check_gene_indices(indices, len(self.columns))
        column = np.take(self.columns, indices)
        known = np.flatnonzero(column >= 0)
        spot = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[known]
        column, counts = column[known], counts[known]
        width = len(self.processor.feature_extractor.vocabulary)
        normalize = self.processor.feature_extractor.normalize
        if self.names_are_unique:
            dense = np.zeros((len(lengths), width), dtype=np.float32)
            dense[spot, column] = normalize(counts[:, None], totals[spot])[:, 0]
            return dense
        # bincount sums several genes of one name before the logarithm, as the feature extractor does.
        summed = np.bincount(spot.astype(np.int64) * width + column, weights=counts, minlength=len(lengths) * width)
        return normalize(summed.reshape(len(lengths), width), totals)

    def pixel_values(self, images: Sequence[Any]) -> Tensor:
        """Return normalised patches (batch, 3, height, width) float32, equal to the output of the image processor.

        With `defer_pixels`, patches of the model's size are returned as uint8, for `finish`.
        """
        transform = self.pixel_transform
        if transform is None:
            return self._by_processor(images)
        width, height = transform.size
        pixels = np.empty((len(images), height, width, 3), dtype=np.uint8)
        # Decoded directly into the batch, one after the other, so that each stays in the CPU's cache.
        if not all(_decode_into(patch, image) for patch, image in zip(pixels, images)):
            return self._by_processor(images)
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return batch if self.defer_pixels else transform(batch)

    def _by_processor(self, images: Sequence[Any]) -> Tensor:
        """Return patches that the image processor resizes or crops (batch, 3, height, width) float32."""
        opened = [open_patch(image) for image in images]
        return self.processor.prepare_images(opened, return_tensors="pt")["pixel_values"]

    def finish(self, batch: dict[str, Any], choices: Tensor | None = None) -> dict[str, Any]:
        """Normalise patches that were left as uint8, on their device; leave other batches unchanged.

        Args:
            batch: A batch of the collator.
            choices: Result of `orientation_choices` for its patches, which are turned first; None leaves them upright.
        """
        pixels = batch.get("pixel_values")
        if pixels is not None and pixels.dtype == torch.uint8 and self.pixel_transform is not None:
            return {**batch, "pixel_values": self.pixel_transform(pixels, choices)}
        if pixels is None or choices is None:
            return batch
        return {**batch, "pixel_values": random_orientation(pixels, choices)}


class FeatureCollator(DelstCollator):
    """Make batches for a model that reads features of other programs in place of patches.

    Args:
        processor, gene_names, slide_ids, measured_genes: As in `DelstCollator`.
        features: Maps values of ``spot_index`` to features (rows, width), such as a `data.patch_features.FeatureTable`.
    """

    def __init__(self, *args: Any, features: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.features = features

    def __call__(self, rows: Sequence[Mapping[str, Any]] | pa.Table) -> dict[str, Any]:
        """Collate rows; ``pixel_values`` are the features (batch, width) float32 of their spots."""
        index = Columns(rows).numbers("spot_index")
        return {"pixel_values": torch.from_numpy(self.features[index]), **self.all_but_pixels(rows)}


class Columns:
    """Columns of a batch, given as a list of rows or as an arrow table."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] | pa.Table):
        self.table = rows if isinstance(rows, pa.Table) else None
        self.rows: Sequence[Mapping[str, Any]] = () if isinstance(rows, pa.Table) else rows

    def __contains__(self, name: str) -> bool:
        return name in (self.rows[0] if self.table is None else self.table.column_names)

    def values(self, name: str) -> list[Any]:
        """Return one Python object per row."""
        return [row[name] for row in self.rows] if self.table is None else self.table[name].to_pylist()

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers (rows,)."""
        return np.asarray(self.values(name)) if self.table is None else self.table[name].to_numpy()

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return all values of a column of lists, one list after the other, and the length of each list."""
        if self.table is not None:
            column = self.table[name].combine_chunks()
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            return column.flatten().to_numpy(), column.value_lengths().to_numpy()
        parts = [np.asarray(row[name], dtype=np.int64) for row in self.rows]
        return np.concatenate(parts), np.asarray([len(part) for part in parts])


class PixelTransform:
    """Rescale and normalise patches that already have the model's size, in one fused pass over the uint8 batch."""

    def __init__(self, size: tuple[int, int], scale: Tensor, shift: Tensor, processor: DelstProcessor):
        self.size, self.scale, self.shift, self.processor = size, scale, shift, processor
        self._lines: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}
        self._tables: dict[torch.device, Tensor] = {}

    @classmethod
    def from_processor(cls, processor: DelstProcessor) -> "PixelTransform | None":
        """Return the transform of a processor; None if its image processor does more than resize, rescale and normalise."""
        image_processor: Any = processor.image_processor
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
        return cls((size["width"], size["height"]), scale, shift, processor)

    def __call__(self, pixels: Tensor, choices: Tensor | None = None) -> Tensor:
        """Convert uint8 patches (batch, 3, height, width) to normalised float32 ones, in the memory order of the input.

        Patches of the collator are channels-last: convolutions run faster (by a third on a CPU), and no copy is made.

        Args:
            pixels: The patches.
            choices: Result of `orientation_choices`, by which they are turned first. A CUDA device does both in one pass.
        """
        if choices is None:
            return self.processor.normalize_stains(self._normalized(pixels))
        if pixels.is_cuda or os.environ.get("TRITON_INTERPRET") == "1":
            # This module is needed, and imported, only on a CUDA device.
            from .turned_kernel import kernel_serves, turned_and_normalised

            if kernel_serves(pixels):
                turned = turned_and_normalised(pixels, choices, self._table(pixels.device))
                return self.processor.normalize_stains(turned)
        return self.processor.normalize_stains(self._normalized(random_orientation(pixels, choices)))

    def _table(self, device: torch.device) -> Tensor:
        """Return the normalised value of each byte, per channel (256, 3) float32."""
        if device not in self._tables:
            every = torch.arange(256, device=device).to(torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
            self._tables[device] = self._normalized(every).permute(0, 2, 3, 1).reshape(256, 3)
        return self._tables[device]

    def _normalized(self, pixels: Tensor) -> Tensor:
        rows = pixels.permute(0, 2, 3, 1).float().contiguous()
        # A line of pixels at a time: three channels alone would leave vector units idle.
        lines = rows.flatten(2)
        key = pixels.device, rows.shape[2]
        if key not in self._lines:  # copied to the device once per run, not in each step
            scale, shift = (x.flatten().repeat(rows.shape[2]).to(pixels.device) for x in (self.scale, self.shift))
            self._lines[key] = scale, shift
        scale, shift = self._lines[key]
        torch.addcmul(shift, lines, scale, out=lines)
        return rows.permute(0, 3, 1, 2)


def _decode_into(patch: np.ndarray, image: Any) -> bool:
    """Write the pixels of a cell into `patch` (height, width, 3) uint8; return False if the image has another size.

    A JPEG is decoded by libjpeg-turbo directly. Pillow uses the same library with the same settings, but keeps four bytes per
    pixel and copies three of them. It decodes all else: other formats, CMYK, and files without their last bytes, which libjpeg
    would silently fill with grey and Pillow refuses.
    """
    data = image.get("bytes") if isinstance(image, Mapping) else None
    if data is not None and data[:2] == _JPEG_START and data[-2:] == _JPEG_END:
        try:
            imagecodecs.jpeg8_decode(data, outcolorspace="RGB", out=patch)
            return True
        except (ValueError, RuntimeError):  # another size, colour space or damage: left to Pillow
            pass
    opened = open_patch(image)
    if opened.size != (patch.shape[1], patch.shape[0]):
        return False
    patch[:] = np.asarray(opened)
    return True


def open_patch(image: Any) -> Image.Image:
    """Return a PIL RGB image from a decoded or an undecoded cell of the column ``image``."""
    if image is None:
        raise ValueError(
            "A spot has no image: it is of the split 'unpaired', which trains the gene side alone (--unpaired_slides). Use "
            "spots of other slides."
        )
    if isinstance(image, Mapping):
        image = Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"])
    return image if image.mode == "RGB" else image.convert("RGB")


def random_orientation(pixel_values: Tensor, choices: Tensor | None = None) -> Tensor:
    """Turn each patch to one of its eight orientations, since tissue has no preferred one.

    Mirroring or not at the diagonal, at the vertical and at the horizontal axis gives all eight. The choices come from the
    generator of the patches' device, whose state a checkpoint keeps, and the host does not wait for them.

    Args:
        pixel_values: Square patches (batch, channels, side, side).
        choices: Result of `orientation_choices`, to turn several batches alike; drawn here by default.

    Returns:
        The turned patches, of the same shape, in channels-last order.

    Raises:
        ValueError: If the patches are not square.

    >>> patch = torch.arange(4.0).view(1, 1, 2, 2)
    >>> sorted(random_orientation(patch).flatten().tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    choices = orientation_choices(pixel_values) if choices is None else choices
    diagonal, vertical, horizontal = choices.view(3, -1, 1)
    size, channels, side, width = pixel_values.shape
    if side != width:
        raise ValueError(
            f"Patches of {side} x {width} pixels cannot be turned: a quarter turn would change their shape. Prepare square "
            "patches, or train with --augment false."
        )
    # Source of the pixels of each line and column: one gather for all orientations. The indices take more memory than the
    # bytes, so they are int32 where possible.
    kind = torch.int32 if size * side * side < 2**31 else torch.int64
    line = torch.arange(side, dtype=kind, device=pixel_values.device)
    first = side * side * torch.arange(size, dtype=kind, device=pixel_values.device)[:, None]
    down, right = torch.where(horizontal, side - 1 - line, line), torch.where(vertical, side - 1 - line, line)
    down, right = torch.where(diagonal, down, side * down), torch.where(diagonal, side * right, right)
    source = ((first + down)[:, :, None] + right[:, None, :]).flatten()
    # Channels last, like all patches here: convolutions round differently in another memory order.
    rows = pixel_values.permute(0, 2, 3, 1).reshape(-1, channels)
    return rows.index_select(0, source).view(size, side, side, channels).permute(0, 3, 1, 2)


def orientation_choices(pixel_values: Tensor) -> Tensor:
    """Draw whether to mirror each patch at each of the three axes; return (3, batch, 1, 1, 1) bool."""
    return torch.randint(2, (3, len(pixel_values), 1, 1, 1), device=pixel_values.device).bool()
