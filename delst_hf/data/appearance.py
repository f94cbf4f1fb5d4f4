"""How patches look to a model: their colour in three numbers, and what a dataset stores of them.

The record of a training keeps both, so that a slide is compared with it, and made to look like it.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

# A slide's mean may be this many standard deviations (of the patches trained on) off in any of the three numbers.
_FAR = 4.0
# Below this a spread says that few alike patches were seen, not that colours are so certain.
_LEAST_SPREAD = 0.06
NAMES = ("red to green", "blue to green", "brightness")


def patch_colours(patches: Iterable[np.ndarray]) -> np.ndarray:
    """Return log(red/green), log(blue/green) and log(brightness/255) of the mean colour of each patch (patches, 3).

    H&E is above 0 in the first two: haematoxylin and eosin both take green away.

    Args:
        patches: uint8 (height, width, 3) each.

    >>> patch_colours([np.full((2, 2, 3), 255, dtype=np.uint8)]).tolist()
    [[0.0, 0.0, 0.0]]
    """
    means = np.array([patch.reshape(-1, 3).mean(axis=0) for patch in patches], dtype=np.float64).reshape(-1, 3)
    red, green, blue = np.log(np.maximum(means, 1.0)).T
    return np.column_stack([red - green, blue - green, np.log(np.maximum(means.mean(axis=1), 1.0) / 255)])


def picture_facts(spots: Any) -> dict[str, Any]:
    """Return what the record of a training says of its pictures: their ``colours``, and how they are stored.

    Args:
        spots: Spots of a `Study`, or `SpotFiles`; of at most 512, spread evenly over all, the patches are looked at.
    """
    from .collator import open_patch

    images = some_images(spots, 512)
    colours = patch_colours(np.asarray(open_patch(image)) for image in images)
    return {"colours": colour_record(colours), "patch_encoding": str(PatchEncoding.of(images) or "unknown")}


def colour_record(colours: np.ndarray) -> dict[str, list[float]]:
    """Return the mean and standard deviation of `patch_colours` (patches, 3), for the record of a training."""
    return {"mean": colours.mean(axis=0).round(4).tolist(), "sd": colours.std(axis=0).round(4).tolist()}


def describe_foreign_colour(colours: np.ndarray, trained: Mapping[str, Any] | None) -> str | None:
    """Say how a slide differs in colour from what a model was trained on; None where it does not, or nobody knows.

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
        "Another stain, another scanner or fluorescence: do not trust the prediction without counts to compare with."
    )


def encode(pixels: np.ndarray, image_format: str, quality: int) -> bytes:
    """Encode uint8 (height, width, 3); JPEG keeps colour at full resolution, since stain carries much of the signal.

    JPEG goes straight from the array to libjpeg; Pillow gives the same pixels, but copies them twice before.
    """
    if image_format == "jpeg":
        return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=quality, subsampling="444"))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class PatchEncoding:
    """How a dataset stores its patches. A model sees in training what is left of a patch after that.

    Attributes:
        image_format: "jpeg" or "png".
        quality: Of JPEG.
    """

    image_format: str
    quality: int = 95

    def __str__(self) -> str:
        return f"jpeg {self.quality}" if self.image_format == "jpeg" else self.image_format

    def restored(self, pixels: np.ndarray) -> np.ndarray:
        """Return a patch (height, width, 3) as it would come out of the dataset.

        >>> patch = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        >>> [bool((PatchEncoding(name).restored(patch) == patch).all()) for name in ("png", "jpeg")]
        [True, False]
        """
        if self.image_format != "jpeg":
            return pixels
        return np.asarray(imagecodecs.jpeg8_decode(encode(pixels, "jpeg", self.quality), outcolorspace="RGB"))

    @classmethod
    def named(cls, name: str) -> "PatchEncoding | None":
        """Return the encoding of a name as `str` gives it, such as "jpeg 95"; None for any other text."""
        kind, _, quality = name.partition(" ")
        if kind == "jpeg" and quality.isdecimal() and 1 <= int(quality) <= 100:
            return cls("jpeg", int(quality))
        return cls("png") if name == "png" else None

    @classmethod
    def of(cls, images: Iterable[Any]) -> "PatchEncoding | None":
        """Find out how patches are stored; None where they are not all stored alike, or not as `encode` stores them.

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
    """Return undecoded patches of some spots of a dataset, spread evenly over all (at most `number`).

    Args:
        spots: Spots of a `Study`, or `SpotFiles`.
        number: How many at most.
    """
    if hasattr(spots, "some_images"):  # they are streamed: a patch here and there would read as much as all of them
        return list(spots.some_images(number))
    some = np.unique(np.linspace(0, len(spots) - 1, number).astype(int))
    return list(spots.select_columns("image").with_format("arrow")[some.tolist()]["image"].to_pylist())
