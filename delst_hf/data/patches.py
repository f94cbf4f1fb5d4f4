"""Square patches of physical size, cut from an image or stored in a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# Function from the row of a spot to its patch, uint8 (patch_px, patch_px, 3).
Cutter = Callable[[int], np.ndarray]
# The largest side of a patch: as a multiple of the image's longer side, and in stored pixels.
_LARGEST_SHARE, _LARGEST_PX = 4, 8192
# If `side` differs from patch_px by less than this, no border of the patch moves farther without resampling.
_SAME_SCALE_PX = 0.05


@dataclass(frozen=True)
class StoredPatches:
    """Patches that a data set contains.

    Attributes:
        pixels: uint8 (patches, px, px, 3), an array or a dataset of h5py.
        rows: (spots,) index of the patch of each spot.
        patch_um: side of a patch in micrometres.
    """

    pixels: Any
    rows: np.ndarray
    patch_um: float

    def cutter(self, patch_um: float, patch_px: int) -> Cutter:
        """Return a function as `Slide.cutter` does: it takes the centre of the stored patch, resampled if its size differs.

        Raises:
            ValueError: the requested patch is larger than the stored one.
        """
        if patch_um > self.patch_um * 1.001:
            raise ValueError(
                f"patch_um is {patch_um:g}, but the stored patches are {self.patch_um:g} um wide. Lower it to that "
                "(--patch-um), or give the whole-slide image."
            )
        stored_px = self.pixels.shape[1]
        side = stored_px * min(1.0, patch_um / self.patch_um)

        def cut(position: int) -> np.ndarray:
            pixels = np.asarray(self.pixels[int(self.rows[position])])
            if side == stored_px == patch_px:
                return pixels
            return np.asarray(centre_of(Image.fromarray(pixels), side, patch_px))

        return cut


def centre_of(patch: Image.Image, side: float, patch_px: int) -> Image.Image:
    """Return the central square of `side` pixels of a square patch, resampled to `patch_px` at sub-pixel precision.

    >>> centre_of(Image.new("RGB", (96, 96)), 32.0, 32).size
    (32, 32)
    """
    start, stop = (patch.width - side) / 2, (patch.width + side) / 2
    return patch.resize((patch_px, patch_px), Image.Resampling.BICUBIC, box=(start, start, stop, stop))


def image_cutter(image: Any, centres: np.ndarray, side: float, patch_px: int) -> Cutter:
    """Return a function from a row of `centres` to the patch there.

    Args:
        image: uint8 (height, width, 3), anything with `.shape` and `[y0:y1, x0:x1]` slicing.
        centres: (spots, 2) x, y in pixels.
        side: side of the region in pixels of the image.
        patch_px: side of the patch; where it equals `side`, no pixel is resampled.

    Raises:
        ValueError: the region is several times larger than the image.
    """
    if side > _LARGEST_SHARE * max(image.shape[:2]):
        raise ValueError(
            f"a patch would be {side:.3g} px of an image of {image.shape[1]} x {image.shape[0]} px. Allowed: up to "
            f"{_LARGEST_SHARE} times its longer side. Give the side in micrometres (--patch-um), and check the scale (--mpp)."
        )
    if abs(side - patch_px) < _SAME_SCALE_PX:
        corners = np.rint(centres - side / 2)
        return lambda position: cut_patch(image, corners[position, 0], corners[position, 1], patch_px, patch_px)
    corners = centres - side / 2
    return lambda position: cut_patch(image, corners[position, 0], corners[position, 1], side, patch_px)


def cut_patch(image: Any, left: float, top: float, side: float, patch_px: int) -> np.ndarray:
    """Return the square of `side` pixels at (left, top), resampled once to (patch_px, patch_px, 3); white beyond the border."""
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1, y1 = int(np.ceil(left + side)), int(np.ceil(top + side))
    height, width = image.shape[:2]
    region = np.asarray(image[max(y0, 0) : max(min(y1, height), 0), max(x0, 0) : max(min(x1, width), 0)])
    if region.shape[:2] != (y1 - y0, x1 - x0):
        inner, region = region, np.full((y1 - y0, x1 - x0, 3), 255, dtype=np.uint8)
        row, column = max(-y0, 0), max(-x0, 0)
        region[row : row + inner.shape[0], column : column + inner.shape[1]] = inner
    if side == patch_px and (left, top) == (x0, y0):
        return region
    box = (left - x0, top - y0, left - x0 + side, top - y0 + side)
    resized = Image.fromarray(region).resize((patch_px, patch_px), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)


def check_patch_size(patch_um: float, patch_px: int) -> None:
    """Raise a ValueError unless patch_um is positive and patch_px is a whole number of pixels in its range."""
    if not (np.isfinite(patch_um) and patch_um > 0):
        raise ValueError(f"patch_um is {patch_um}. Allowed: a positive number of micrometres, e.g. 112.")
    if int(patch_px) != patch_px or not 1 <= patch_px <= _LARGEST_PX:
        raise ValueError(
            f"patch_px is {patch_px}. Allowed: a whole number of pixels from 1 to {_LARGEST_PX}, e.g. 224."
        )
