"""Square patches of physical size: cut from an image or stored before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# From the position of a spot to its patch, uint8 (patch_px, patch_px, 3).
Cutter = Callable[[int], np.ndarray]
# Beyond these no patch is meant: of the image's longer side, and in pixels as stored.
_LARGEST_SHARE, _LARGEST_PX = 4, 8192
# A side within a twentieth of a pixel of patch_px moves no border of the patch by more than that.
_SAME_SCALE_PX = 0.05


@dataclass(frozen=True)
class StoredPatches:
    """Patches that a data set brings along.

    Attributes:
        pixels: uint8 (patches, px, px, 3), an array or a dataset of h5py.
        rows: (spots,) the patch of each spot.
        patch_um: side of a patch in micrometres.
    """

    pixels: Any
    rows: np.ndarray
    patch_um: float

    def cutter(self, patch_um: float, patch_px: int) -> Cutter:
        """Do as `Slide.cutter`: the centre of the stored patch, resampled if its pixels are of another size.

        Raises:
            ValueError: a larger patch than the stored one was asked for.
        """
        if patch_um > self.patch_um * 1.001:
            raise ValueError(
                f"patch_um is {patch_um:g}, but the stored patches are {self.patch_um:g} um wide. Ask for at most that "
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
    """Return a function from a position in `centres` to the patch there.

    Args:
        image: uint8 (height, width, 3), anything with `.shape` and `[y0:y1, x0:x1]` slicing.
        centres: (spots, 2) x, y in pixels.
        side: of the region in pixels.
        patch_px: side of the patch; where it equals `side`, no pixel is resampled.

    Raises:
        ValueError: the region is several times as large as the image.
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
    """Raise a ValueError unless both sizes are positive, and what is stored is no larger than a patch can be."""
    if not (np.isfinite(patch_um) and patch_um > 0):
        raise ValueError(f"patch_um is {patch_um}. Allowed: a positive number of micrometres, e.g. 112.")
    if int(patch_px) != patch_px or not 1 <= patch_px <= _LARGEST_PX:
        raise ValueError(
            f"patch_px is {patch_px}. Allowed: a whole number of pixels from 1 to {_LARGEST_PX}, e.g. 224."
        )
