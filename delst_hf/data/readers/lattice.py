"""The scale of a Visium slide, measured on the lattice of its spots.

The spot_diameter_fullres of Space Ranger is no safe measure: on real slides 55 um over it makes the pitch 85 um instead of the
100 um that are printed, because the diameter it states is that of a wider spot (65 um).
"""

import numpy as np

# Distance of the centres of neighbouring spots.
PITCH_UM = 100.0


def visium_lattice_mpp(array: np.ndarray, pixels: np.ndarray) -> float | None:
    """Micrometres per pixel from the hexagonal lattice of a Visium slide, whatever the rotation or mirroring of the image.

    Args:
        array: (spots, 2) array_row, array_col; a step of a row is 86.6 um, a step of a column 50 um.
        pixels: (spots, 2) y, x in pixels.

    Returns:
        None if the spots do not lie on that lattice.
    """
    if len(array) < 4 or min(len(np.unique(array[:, 0])), len(np.unique(array[:, 1]))) < 2:
        return None
    um = array * (PITCH_UM * np.sqrt(3) / 2, PITCH_UM / 2)
    um, centred = um - um.mean(0), pixels - pixels.mean(0)
    fitted, _, rank, _ = np.linalg.lstsq(um, centred, rcond=None)
    scales = np.linalg.svd(fitted, compute_uv=False)
    residual = np.abs(um @ fitted - centred).max()
    if rank < 2 or scales[1] <= 0 or scales[0] / scales[1] > 1.03 or residual > 0.25 * PITCH_UM * scales[0]:
        return None
    return float(1 / np.sqrt(scales[0] * scales[1]))
