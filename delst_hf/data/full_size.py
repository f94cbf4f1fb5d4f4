"""Check the size of a full-resolution image against the reduced image made from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .images import open_image
from .scale import stated_length


@dataclass(frozen=True)
class FullSize:
    """The size that a full-resolution image should have, by a reduced image and its scale factor.

    Attributes:
        height, width: Size in pixels.
        rounding: Relative uncertainty of the size, because the reduced image has whole pixels.
        by: Source of the size, in words.
    """

    height: float
    width: float
    rounding: float
    by: str


def full_size(kind: str, size: Sequence[int], name: str, factors: Mapping[str, Any]) -> FullSize | None:
    """Return the full-resolution size from a reduced image of (height, width, ...); None without its scale factor."""
    factor = stated_length(factors.get(f"tissue_{kind}_scalef"))
    if factor is None:
        return None
    height, width = size[0], size[1]
    by = f"{name}, {width} x {height}, divided by tissue_{kind}_scalef"
    return FullSize(height / factor, width / factor, max(0.01, 1.5 / min(height, width)), by)


def open_full_size(image: str | Path, image_scale: float | None, expected: Iterable[FullSize], slide_id: str) -> Any:
    """Open a full-resolution image; unless its scale was given, its size must be the first expected one."""
    pixels, size = open_image(image), next(iter(expected), None)
    if size is not None and image_scale is None:
        check_image_size(slide_id, pixels.shape, Path(image).name, size)
    return pixels


def check_image_size(slide_id: str, size: Sequence[int], name: str, expected: FullSize, factor: float = 1.0) -> None:
    """Refuse an image of another size than the one that the spots refer to.

    Args:
        slide_id: For the message.
        size: (height, width, ...) of the image.
        name: Name of the image.
        expected: The size of the full resolution.
        factor: Pixels of this image per full-resolution pixel.

    Raises:
        ValueError: The sizes differ; the message states the factor if it is the same for both sides.
    """
    factors = size[0] / (expected.height * factor), size[1] / (expected.width * factor)
    if all(abs(one - 1) <= expected.rounding for one in factors):
        return
    found = (
        f"slide {slide_id!r}: positions refer to an image of {expected.width * factor:.0f} x {expected.height * factor:.0f} px "
        f"({expected.by}), but {name} has {size[1]} x {size[0]}"
    )
    if factor != 1:
        raise ValueError(f"{found}. Correct the scale factors, or give the full-resolution image (--image).")
    if abs(factors[0] / factors[1] - 1) <= expected.rounding:
        larger = float(np.sqrt(factors[0] * factors[1]))
        whole = round(larger) if larger > 1 else 1 / round(1 / larger)  # most images are made smaller by whole numbers
        raise ValueError(
            f"{found}. Give the image that they refer to; if this one shows the same field, add "
            f"--image-scale {whole if abs(larger / whole - 1) <= expected.rounding else larger:.6g}."
        )
    raise ValueError(
        f"{found}, which is cropped or of another slide. Give the image that they refer to (--image); to use this one as it "
        "is, add --image-scale 1."
    )
