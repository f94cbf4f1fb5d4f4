"""Appearance of patches to a model: their colour in three numbers, and their encoding in a dataset.

The record of a training keeps both, so that a new slide can be compared with the training slides and encoded like them.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

# In each of the three numbers, a slide's mean may be off by this many standard deviations of the training patches.
_FAR = 4.0
# A smaller standard deviation means that few, similar patches were seen, not that colours are so certain.
_LEAST_SPREAD = 0.06
NAMES = ("red to green", "blue to green", "brightness")


def patch_colours(patches: Iterable[np.ndarray]) -> np.ndarray:
    """Return log(red/green), log(blue/green) and log(brightness/255) of the mean colour of each patch (patches, 3).

    H&E is above 0 in the first two, since haematoxylin and eosin both absorb green.

    Args:
        patches: uint8 (height, width, 3) each.

    >>> patch_colours([np.full((2, 2, 3), 255, dtype=np.uint8)]).tolist()
    [[0.0, 0.0, 0.0]]
    """
    means = np.array([patch.reshape(-1, 3).mean(axis=0) for patch in patches], dtype=np.float64).reshape(-1, 3)
    red, green, blue = np.log(np.maximum(means, 1.0)).T
    return np.column_stack([red - green, blue - green, np.log(np.maximum(means.mean(axis=1), 1.0) / 255)])


def picture_facts(spots: Any) -> dict[str, Any]:
    """Return the facts about patches for the record of a training: their ``colours`` and their ``patch_encoding``.

    Args:
        spots: Spots of a `Study`, or `SpotFiles`; up to 512 patches, spread evenly over all spots, are read.
    """
    from .collator import open_patch

    images = some_images(spots, 512)
    colours = patch_colours(np.asarray(open_patch(image)) for image in images)
    return {"colours": colour_record(colours), "patch_encoding": str(PatchEncoding.of(images) or "unknown")}


def colour_record(colours: np.ndarray) -> dict[str, list[float]]:
    """Return the mean and standard deviation of `patch_colours` (patches, 3), for the record of a training."""
    return {"mean": colours.mean(axis=0).round(4).tolist(), "sd": colours.std(axis=0).round(4).tolist()}


def describe_foreign_colour(colours: np.ndarray, trained: Mapping[str, Any] | None) -> str | None:
    """Return a warning if a slide differs in colour from the training patches; None if it does not, or that is not known.

    Args:
        colours: `patch_colours` of the slide (patches, 3).
        trained: `colour_record` of the training.
    """
    if not trained or not len(colours):
        return None
    mean, spread = np.asarray(trained["mean"]), np.maximum(np.asarray(trained["sd"]), _LEAST_SPREAD)
    away = (colours.mean(axis=0) - mean) / spread
    if np.abs(away).max() < _FAR:
        return None
    told = ", ".join(f"{name} {value:+.1f}" for name, value in zip(NAMES, away, strict=True))
    return (
        f"the colours are far from those of the slides that the model was trained on (in their standard deviations: {told}). "
        "Stain or scanner may differ, or it is fluorescence: do not trust the prediction without counts to compare with."
    )


def encode(pixels: np.ndarray, image_format: str, quality: int) -> bytes:
    """Encode uint8 (height, width, 3); JPEG keeps colour at full resolution, since stain carries much of the signal.

    JPEG is encoded by libjpeg directly from the array; Pillow gives the same pixels, but copies them twice.
    """
    if image_format == "jpeg":
        return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=quality, subsampling="444"))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class PatchEncoding:
    """Encoding of the patches of a dataset, which decides what a model sees of a patch in training.

    Attributes:
        image_format: "jpeg" or "png".
        quality: JPEG quality, 1 to 100.
    """

    image_format: str
    quality: int = 95

    def __str__(self) -> str:
        return f"jpeg {self.quality}" if self.image_format == "jpeg" else self.image_format

    def restored(self, pixels: np.ndarray) -> np.ndarray:
        """Return a patch (height, width, 3) as it would be after encoding and decoding.

        >>> patch = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        >>> [bool((PatchEncoding(name).restored(patch) == patch).all()) for name in ("png", "jpeg")]
        [True, False]
        """
        if self.image_format != "jpeg":
            return pixels
        return np.asarray(imagecodecs.jpeg8_decode(encode(pixels, "jpeg", self.quality), outcolorspace="RGB"))

    @classmethod
    def named(cls, name: str) -> "PatchEncoding | None":
        """Return the encoding that a text names in the form of `str`, such as "jpeg 95"; None for any other text."""
        kind, _, quality = name.partition(" ")
        if kind == "jpeg" and quality.isdecimal() and 1 <= int(quality) <= 100:
            return cls("jpeg", int(quality))
        return cls("png") if name == "png" else None

    @classmethod
    def of(cls, images: Iterable[Any]) -> "PatchEncoding | None":
        """Detect how patches are stored; None if they differ, or are not stored as `encode` does.

        Args:
            images: Undecoded cells of the column ``image``.
        """
        found = {_encoding_of(cell.get("bytes") if isinstance(cell, Mapping) else None) for cell in images}
        return found.pop() if len(found) == 1 else None


def _encoding_of(data: bytes | None) -> PatchEncoding | None:
    if not data or data[:2] != b"\xff\xd8":
        return PatchEncoding("png") if data and data[:4] == b"\x89PNG" else None
    tables, sampling = _tables(data)
    quality = _qualities().get(tables)
    return PatchEncoding("jpeg", quality) if quality and sampling == 0 else None


def _tables(data: bytes) -> tuple[str, int]:
    """Return the quantisation tables of a JPEG, which follow from its quality, and its subsampling of colour (0: none)."""
    from PIL.JpegImagePlugin import get_sampling

    with Image.open(io.BytesIO(data)) as image:
        return str(image.quantization), get_sampling(image)  # type: ignore[attr-defined]


@cache
def _qualities() -> dict[str, int]:
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    return {_tables(encode(grey, "jpeg", quality))[0]: quality for quality in range(1, 101)}


def some_images(spots: Any, number: int) -> list[Any]:
    """Return undecoded patches of up to `number` spots of a dataset, spread evenly over all.

    Args:
        spots: Spots of a `Study`, or `SpotFiles`.
        number: Largest number of patches.
    """
    if hasattr(spots, "some_images"):  # streamed: single patches here and there would read as much as all of them
        return list(spots.some_images(number))
    some = np.unique(np.linspace(0, len(spots) - 1, number).astype(int))
    return list(spots.select_columns("image").with_format("arrow")[some.tolist()]["image"].to_pylist())
