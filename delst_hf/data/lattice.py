"""The scale of a slide, measured on the lattice of its spots.

The spot_diameter_fullres of Space Ranger is no safe measure: on real slides 55 um over it makes the pitch 85 um instead of the
100 um that are printed, because the diameter it states is that of a wider spot (65 um).
"""

from typing import Any

import numpy as np

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
    try:
        number = float(value) * scale
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None
