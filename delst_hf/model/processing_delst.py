"""One processor for both modalities: the backbone's image processor joined with the gene feature extractor."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,  # from its own module: imported elsewhere, 5.17 requires torchvision
)
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import cached_file

from .feature_extraction_delst import DelstGeneFeatureExtractor

STAIN_NORMALIZATIONS = ("none", "reinhard", "macenko")


class DelstProcessor(ProcessorMixin):
    """Patches and counts -> model inputs. Saved in one folder with the model, loaded by ``AutoProcessor``.

    Args:
        image_processor: The image processor of the vision backbone (``AutoImageProcessor.from_pretrained(backbone)``).
        feature_extractor: The gene side, with the vocabulary.
        stain_normalization: Normalisation of the stains of every patch: ``"none"``, or ``"reinhard"`` or ``"macenko"`` to
            those of a reference (`stain_normalization.normalize_stains`).

    Raises:
        ValueError: If the normalisation is not known.

    Examples:
        >>> import numpy as np
        >>> from PIL import Image
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> names = processor.feature_extractor.vocabulary
        >>> images, counts = [Image.new("RGB", (32, 32))], np.ones((1, len(names)))
        >>> inputs = processor(images=images, counts=counts, gene_names=names, return_tensors="pt")
        >>> sorted(inputs)
        ['gene_mask', 'gene_values', 'level', 'pixel_values']
    """

    def __init__(
        self, image_processor: Any, feature_extractor: DelstGeneFeatureExtractor, stain_normalization: str = "none"
    ):
        super().__init__(image_processor, feature_extractor)
        if stain_normalization not in STAIN_NORMALIZATIONS:
            raise ValueError(
                f"stain_normalization={stain_normalization!r} is not known. Choose one of "
                f"{', '.join(map(repr, STAIN_NORMALIZATIONS))}."
            )
        self.stain_normalization = stain_normalization

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        # With torchvision installed, transformers would choose another image processor, whose resizing gives other pixels
        # than those that the model was trained on.
        return [
            AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, backend="pil", **kwargs),
            DelstGeneFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs),
        ]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, and check that the vocabulary is that of the weights in the same folder.

        Args:
            pretrained_model_name_or_path: Local folder or Hub id.
            *args: As in transformers.
            **kwargs: As in transformers.

        Raises:
            ValueError: If the genes, or their order, do not match the hash in config.json of the same folder.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        found = processor[0] if isinstance(processor, tuple) else processor
        trained = _vocabulary_hash(pretrained_model_name_or_path, kwargs)
        if trained is not None and trained != found.feature_extractor.vocabulary_hash():
            raise ValueError(
                f"{pretrained_model_name_or_path}: the vocabulary of processor_config.json (hash "
                f"{found.feature_extractor.vocabulary_hash()}) is not the one that the weights were trained with ({trained}), "
                "so each gene would be read by the weights of another. Copy the checkpoint again from where it was trained."
            )
        return processor

    def __repr__(self) -> str:
        parts = (self.image_processor, self.feature_extractor)
        return f"{type(self).__name__}, stain normalization: {self.stain_normalization}\n" + "\n".join(map(repr, parts))

    def __call__(
        self,
        images: Any = None,
        counts: Any = None,
        gene_names: Sequence[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Prepare patches, expression or both.

        Args:
            images: One patch or a list of patches: 8-bit PIL images, or arrays (height, width, 3) or (3, height, width) of
                uint8, or of floats from 0 to 1 or from 0 to 255. Transparent pixels become white.
            counts: Raw counts (batch, genes), as `DelstGeneFeatureExtractor` takes them.
            gene_names: Names of the genes (genes,).
            **kwargs: ``return_tensors`` (``"pt"`` or ``"np"``) and options of the image processor, flat or as
                ``images_kwargs``.

        Returns:
            ``pixel_values`` (batch, 3, height, width) for images; ``gene_values``, ``gene_mask`` (batch, genes) and ``level``
            (batch,) for counts.

        Raises:
            ValueError: If neither images nor counts are given, or their numbers differ.
        """
        if images is None and counts is None:
            raise ValueError("Nothing to process: pass images=, counts= with gene_names=, or both.")
        options = self._merge_kwargs(cast(Any, ProcessingKwargs), **kwargs)["images_kwargs"]
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.prepare_images(images, **options))
        if counts is not None:
            data.update(self.feature_extractor(counts, gene_names, return_tensors=options.get("return_tensors")))
        if images is not None and counts is not None and len(data["pixel_values"]) != len(data["gene_values"]):
            raise ValueError(
                f"{len(data['pixel_values'])} images but {len(data['gene_values'])} rows of counts: row i of both must be "
                "the same spot."
            )
        return BatchFeature(data)

    def prepare_images(self, images: Any, **options: Any) -> Mapping[str, Any]:
        """Prepare patches alone, by the image processor and the normalisation that `stain_normalization` names.

        Args:
            images: As in ``__call__``.
            **options: Options of the image processor, ``return_tensors`` included.
        """
        rescales = options.get("do_rescale")
        images = _of_bytes(images, getattr(self.image_processor, "do_rescale", False) if rescales is None else rescales)
        if self.stain_normalization == "none":
            return self.image_processor(images, **options)
        kind = options.pop("return_tensors", None)
        pixels = self.image_processor(images, return_tensors="pt", **options)["pixel_values"]
        pixels = self.normalize_stains(pixels, **options)
        return {"pixel_values": pixels if kind == "pt" else pixels.numpy() if kind == "np" else list(pixels.numpy())}

    def normalize_stains(self, pixel_values: Tensor, **options: Any) -> Tensor:
        """Normalise the stains of patches to those of the reference, unless `stain_normalization` is ``"none"``.

        Args:
            pixel_values: Patches (batch, 3, height, width) as the image processor returns them, on any device.
            **options: Options that replaced those of the image processor when it made the pixels.
        """
        if self.stain_normalization == "none":
            return pixel_values
        from .stain_normalization import normalize_stains

        mean, std = self.light_of_pixels(**options)
        return normalize_stains(pixel_values, self.stain_normalization, mean, std)

    def light_of_pixels(self, **options: Any) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the channels (3,), such that ``std * pixels + mean`` is light from 0 to 1.

        Args:
            **options: Options that replaced those of the image processor when it made the pixels.
        """

        def option(name: str) -> Any:
            return options[name] if options.get(name) is not None else getattr(self.image_processor, name)

        mean, std = torch.zeros(3), torch.ones(3)
        if option("do_normalize"):
            mean, std = torch.as_tensor(option("image_mean")), torch.as_tensor(option("image_std"))
        light = 1 / 255 / (option("rescale_factor") if option("do_rescale") else 1.0)
        return mean * light, std * light

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", *self.feature_extractor.model_input_names]


def _of_bytes(images: Any, rescales: bool) -> Any:
    """Return images in any accepted form as image processors expect them: RGB, from 0 to 255 if they rescale."""
    several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
    each = list(images) if several else [images]
    if rescales and each and all(_is_float(one) for one in each):
        arrays = [one.detach().float().cpu().numpy() if torch.is_tensor(one) else np.asarray(one) for one in each]
        if all(one.size and one.min() >= 0 and one.max() <= 1 for one in arrays):
            each = [np.rint(one * 255).astype(np.uint8) for one in arrays]
    each = [_rgb(one) for one in each]
    return each if several else each[0]


def _is_float(image: Any) -> bool:
    if torch.is_tensor(image):
        return bool(image.is_floating_point())
    return isinstance(image, np.ndarray) and image.dtype.kind == "f"


def _rgb(image: Any) -> Any:
    """Return an 8-bit PIL image, or an array with one channel or four channels last, as RGB over white; others unchanged."""
    mode = getattr(image, "mode", "")
    if mode in ("RGBA", "LA", "PA") or (mode and "transparency" in image.info):
        image = np.asarray(image.convert("RGBA"))
    elif mode not in ("", "RGB", "I", "F") and ";" not in mode:  # with more than 8 bits, white is unknown
        return image.convert("RGB")
    if getattr(image, "dtype", None) != np.uint8:
        return image
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=-1)
    if image.ndim == 3 and image.shape[-1] == 4:
        opacity = image[..., 3:] / 255
        return np.rint(image[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
    return image


def _vocabulary_hash(folder: Any, kwargs: dict[str, Any]) -> str | None:
    """Return the vocabulary hash in config.json of a processor's folder, None if there is none."""
    options = {name: kwargs[name] for name in ("revision", "subfolder", "cache_dir", "token") if name in kwargs}
    path = cached_file(
        folder,
        "config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **options,
    )
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return (json.load(file).get("gene_config") or {}).get("vocabulary_hash")


__all__ = ["STAIN_NORMALIZATIONS", "DelstProcessor"]
