"""The scale of a slide, measured on the lattice of its spots.

The spot_diameter_fullres of Space Ranger is no safe measure: on real slides 55 um over it makes the pitch 85 um instead of the
100 um that are printed, because the diameter it states is that of a wider spot (65 um).
"""

import logging
from typing import Any

import numpy as np
import pandas as pd

from .values import number

logger = logging.getLogger(__name__)

# Distance of the centres of neighbouring spots of Visium, and of the legacy Spatial Transcriptomics array.
PITCH_UM, LEGACY_PITCH_UM = 100.0, 200.0


def visium_lattice_mpp(array: np.ndarray, pixels: np.ndarray) -> float | None:
    """Micrometres per pixel from the hexagonal lattice of a Visium slide, whatever the rotation or mirroring of the image.

    Args:
        array: (spots, 2) array_row, array_col; a step of a row is 86.6 um, a step of a column 50 um.
        pixels: (spots, 2) y, x in pixels.

    Returns:
        None if the spots do not lie on that lattice.
    """
    return _lattice_mpp(array, pixels, (PITCH_UM * np.sqrt(3) / 2, PITCH_UM / 2), 0.25 * PITCH_UM)


def square_lattice_mpp(array: np.ndarray, pixels: np.ndarray, pitch_um: float) -> float | None:
    """The same from squares of `pitch_um`: the array of legacy Spatial Transcriptomics, whose spots jitter, or bins."""
    return _lattice_mpp(array, pixels, (pitch_um, pitch_um), 0.5 * pitch_um)


def lattice_pitch_um(technology: str, bin_um: float | None = None) -> float:
    """Distance of neighbouring spots of a technology, in um; `bin_um` is the side of a bin of Visium HD."""
    known = {"spatial transcriptomics": LEGACY_PITCH_UM, "visium hd": bin_um}
    return known.get(technology.lower()) or PITCH_UM


def lattice_mpp(technology: str, array: np.ndarray, pixels: np.ndarray, bin_um: float | None = None) -> float | None:
    """Micrometres per pixel from the lattice of a technology: squares of legacy arrays and of bins, else that of Visium."""
    pitch = lattice_pitch_um(technology, bin_um)
    return visium_lattice_mpp(array, pixels) if pitch == PITCH_UM else square_lattice_mpp(array, pixels, pitch)


def mpp_from_pitch(spots: pd.DataFrame, slide_id: str) -> float:
    """Pitch of the array (200 um) over its pitch in pixels: the median slope of pixel against array position, per axis.

    The median of neighbour distances would be too small: the spots of one array jitter, and the nearest is taken.
    """
    from scipy.stats import theilslopes

    if spots["x"].nunique() < 2 or spots["y"].nunique() < 2:
        raise ValueError(f"slide {slide_id!r}: too few spots to measure the array's pitch. Give mpp (--mpp).")
    pitch_x, pitch_y = (abs(float(theilslopes(spots[f"pixel_{axis}"], spots[axis])[0])) for axis in "xy")
    if not (pitch_x > 0 and pitch_y > 0) or abs(pitch_x - pitch_y) > 0.1 * max(pitch_x, pitch_y):
        raise ValueError(
            f"slide {slide_id!r}: the pitch is {pitch_x:.1f} px along x and {pitch_y:.1f} px along y; they should be "
            "equal. Check pixel_x and pixel_y, or give mpp (--mpp)."
        )
    mpp = 2 * LEGACY_PITCH_UM / (pitch_x + pitch_y)
    logger.info("%s: pitch %.1f x %.1f px = %g um, so mpp = %.4f", slide_id, pitch_x, pitch_y, LEGACY_PITCH_UM, mpp)
    return mpp


def _lattice_mpp(array: np.ndarray, pixels: np.ndarray, steps: tuple[float, float], farthest: float) -> float | None:
    """Least squares of pixels over micrometres; None unless the axes agree and no spot is `farthest` um from its place."""
    if len(array) < 4 or min(len(np.unique(array[:, 0])), len(np.unique(array[:, 1]))) < 2:
        return None
    um = array * steps
    um, centred = um - um.mean(0), pixels - pixels.mean(0)
    fitted, _, rank, _ = np.linalg.lstsq(um, centred, rcond=None)
    scales = np.linalg.svd(fitted, compute_uv=False)
    residual = np.abs(um @ fitted - centred).max()
    if rank < 2 or scales[1] <= 0 or scales[0] / scales[1] > 1.03 or residual > farthest * scales[0]:
        return None
    return float(1 / np.sqrt(scales[0] * scales[1]))


def stated_length(value: Any, scale: float = 1.0) -> float | None:
    """A length of a file's metadata, times `scale`; None where there is none, or none that could be."""
    found = number(value)
    return found * scale if found is not None and found > 0 else None
