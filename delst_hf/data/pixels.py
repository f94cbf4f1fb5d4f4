"""Convert pixels of any kind to uint8 RGB, by one rule for every file and array.

First the value of white is found for the whole image (`white_level`): by the stated number of significant bits, else the
smallest of 8, 10, 12, 14 and 16 bits that holds the largest value; for floats 1 or 255. All values are scaled by it.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_DEPTHS = (8, 10, 12, 14, 16)
# This share of the samples may be brighter than white: dead camera pixels at the end of the range.
_DEAD = 1e-3
# The last of 2 or 4 channels is opacity if at least this share of it is fully opaque or fully transparent.
_OPAQUE_SHARE = 0.5
# Names of fluorescence channels, as microscopes write them.
_FLUORESCENCE = re.compile(
    r"\b(dapi|hoechst|fitc|gfp|tritc|txred|texas ?red|rhodamine|alexa|cy ?[357](\.5)?|draq5|sytox)", re.I
)


def white_level(sample: np.ndarray, name: str = "the image", stated_bits: int | None = None) -> float:
    """Return the value of white.

    Args:
        sample: Values of the image that include bright ones: the complete image, or regions spread over it.
        name: For messages.
        stated_bits: Significant bits that the file states, such as 12 of the 16 stored ones.

    Raises:
        ValueError: Negative values, or floats outside 0..255, or a type that holds no samples.

    >>> white_level(np.array([0, 4000], dtype=np.uint16))
    4095.0
    """
    kind = sample.dtype.kind
    if sample.dtype == np.uint8:
        return 255.0
    if kind == "b":
        return 1.0
    if kind not in "iuf":
        raise ValueError(
            f"{name} has values of type {sample.dtype}. Allowed: uint8, uint16 or float. Convert it first."
        )
    low, high = (float(sample.min()), float(sample.max())) if sample.size else (0.0, 0.0)
    # A float slightly off 0..1 is rounding of the tool that wrote it; NaN fails both comparisons.
    if kind == "f" and low >= -1e-3 and high <= 255.5:
        return 1.0 if high <= 1.001 else 255.0
    if kind == "f" or low < 0 or high >= 2**16:
        raise ValueError(
            f"{name} has {sample.dtype} values from {low:g} to {high:g}. Allowed: uint8, whole numbers of up to 16 bits, or "
            "floats in 0..1 or 0..255. Rescale it first."
        )
    needed = _bits(sample, high)
    if 2**needed <= high:
        logger.warning("%s: a share below %g of its samples, up to %g, is brighter than its white", name, _DEAD, high)
    if stated_bits is not None and stated_bits < 16 and high < 2**stated_bits:
        needed, by = stated_bits, "as it states"
    else:
        by = f"its largest value is {high:g}"
        if stated_bits is not None and high >= 2**stated_bits:
            logger.warning("%s states %d significant bits, but holds values up to %g", name, stated_bits, high)
    logger.info("%s: samples of %d significant bits of %d (%s)", name, needed, 8 * sample.dtype.itemsize, by)
    return float(2**needed - 1)


def _bits(sample: np.ndarray, high: float) -> int:
    """Return the smallest known depth that holds all samples except dead pixels; at most 15 bits for signed ones."""
    needed = next(bits for bits in _DEPTHS if high < 2**bits)
    bright = float(np.quantile(sample, 1 - _DEAD)) if needed > _DEPTHS[0] else high
    needed = next(bits for bits in _DEPTHS if bright < 2**bits)
    return min(needed, 15) if sample.dtype == np.int16 else needed


def to_rgb(
    array: np.ndarray, white: float | None = None, premultiplied: bool = False, name: str = "the image"
) -> np.ndarray:
    """Convert a grey, RGB or RGBA array to uint8 RGB.

    Args:
        array: (height, width) or (height, width, 1 to 4), where 2 and 4 channels end with opacity; uint8, whole numbers of up
            to 16 bits, or float in 0..1 or in 0..255.
        white: the value of white; by default found from the array, which must then be the whole image.
        premultiplied: whether colours were multiplied by their opacity before they were stored.
        name: for messages.

    Returns:
        uint8 (height, width, 3), transparent parts on white; the input itself if it already has this form.

    Raises:
        ValueError: another shape, another type, values that `white_level` refuses, or a last channel that is not opacity.
    """
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}. Allowed: (height, width), or (height, width, channels) with 1 to 4 "
            "channels last. Transpose it, or pick the RGB image."
        )
    if white is None:
        colours = array[:, :, :-1] if array.shape[2] in (2, 4) else array  # opacity may have all its bits
        white = white_level(colours, name)
        check_opacity(array, white, name)
    array = to_eight_bits(array, white)
    if array.shape[2] in (2, 4):
        alpha = array[:, :, -1:].astype(np.float32) / 255
        colours = array[:, :, :-1] if premultiplied else array[:, :, :-1] * alpha
        array = np.rint(np.minimum(colours + 255 * (1 - alpha), 255)).astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def borders(region: Any, shape: Sequence[int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return start, stop and step of the rows and of the columns that `[y0:y1, x0:x1]` selects from an image of this shape."""
    rows, columns = region[:2] if isinstance(region, tuple) else (region, slice(None))
    return rows.indices(shape[0]), columns.indices(shape[1])


def to_eight_bits(array: np.ndarray, white: float) -> np.ndarray:
    """Scale samples so that `white` becomes 255; return uint8 unchanged."""
    if array.dtype == np.uint8:
        return array
    return np.clip(np.rint(array * np.float32(255 / white)), 0, 255).astype(np.uint8)


def check_opacity(array: np.ndarray, white: float, name: str = "the image") -> None:
    """Raise a ValueError if an array (height, width, channels) has 2 or 4 channels and the last one is not opacity."""
    if array.shape[2] not in (2, 4):
        return
    last = array[:, :, -1]
    if ((last <= 0) | (last >= white)).mean() < _OPAQUE_SHARE:
        raise ValueError(
            f"{name} has {array.shape[2]} channels, of which the last is not opacity: it is mostly neither 0 nor {white:g}. "
            "Allowed: grey, RGB, and these with opacity. A fluorescence stack is not a histology image: give the H&E as RGB."
        )


def check_channels(names: Iterable[object], name: str) -> None:
    """Raise a ValueError if a channel has the name of a fluorescence channel."""
    found = [str(one) for one in names if _FLUORESCENCE.search(str(one))]
    if found:
        raise ValueError(
            f"{name} is a fluorescence image: its channels are called {found}. Allowed: H&E, or another stain seen in "
            "transmitted light. Give that image."
        )
