"""A grid of patches over the tissue of a slide."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .tissue import TissueMask

# More than ten per square of 56 um on the largest slide; their table takes a gigabyte.
_MOST_PATCHES = 2e7


def patch_grid(image_shape: Sequence[int], side: float, stride: float) -> pd.DataFrame:
    """Lay a grid of squares over an image, all inside it, with equal margins on opposite sides.

    Args:
        image_shape: (height, width) in pixels.
        side: side of a square in pixels.
        stride: distance between neighbouring centres in pixels.

    Returns:
        x and y of the centres in pixels, array_row and array_col, row by row.

    Raises:
        ValueError: a square larger than the image, a stride that is not positive, or too many squares.

    >>> patch_grid((100, 210), side=100, stride=100)[["x", "array_col"]].to_numpy().tolist()
    [[55.0, 0.0], [155.0, 1.0]]
    """
    height, width = int(image_shape[0]), int(image_shape[1])
    if not (np.isfinite(stride) and stride > 0):
        raise ValueError(f"the stride is {stride:g} px. Allowed: a positive number of micrometres (--stride-um).")
    if side > min(height, width):
        raise ValueError(
            f"a patch is {side:.0f} px wide, but the slide has only {width} x {height} px. Check the micrometres per pixel "
            "(--mpp), or give the full-resolution image."
        )
    if height * width / stride**2 > _MOST_PATCHES:
        raise ValueError(
            f"a stride of {stride:.3g} px lays {height * width / stride**2:.2g} patches on a slide of {width} x {height} px. "
            f"Allowed: up to {_MOST_PATCHES:.0e}. Give a larger stride, in micrometres (--stride-um)."
        )
    along = []
    for size in (height, width):
        number = int((size - side) / stride + 1e-9) + 1
        along.append((size - (number - 1) * stride) / 2 + stride * np.arange(number))
    rows, columns = (axis.ravel() for axis in np.indices((len(along[0]), len(along[1]))))
    return pd.DataFrame({"x": along[1][columns], "y": along[0][rows], "array_row": rows, "array_col": columns})


def on_tissue(grid: pd.DataFrame, tissue: TissueMask, side: float, min_tissue: float) -> pd.DataFrame:
    """Keep the squares with at least this share of tissue, and add the column tissue_fraction.

    Raises:
        ValueError: a share outside 0 to 1, or no square with so much tissue.
    """
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue is {min_tissue}. Allowed: a share from 0 to 1 (--min-tissue).")
    fraction = tissue.fractions(grid[["x", "y"]].to_numpy(float), side)
    # A patch without any tissue is never wanted, whatever the share.
    keep = (fraction >= min_tissue) & (fraction > 0)
    if not keep.any():
        raise ValueError(
            f"no patch has a share of {min_tissue:g} tissue; the highest share is {fraction.max():.2f}. Lower --min-tissue, or "
            "mark the tissue (--mask)."
        )
    return grid.assign(tissue_fraction=fraction)[keep].reset_index(drop=True)
