"""Matrices (3, 3) that transform the coordinates of one image to those of another."""

from pathlib import Path

import numpy as np

from .tables import read_table

# If one direction is stretched more than this against the other, a patch is not a square of tissue.
_LARGEST_STRETCH = 1.05


def to_pixels(places: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Convert points (points, 2) x, y to pixels of an image by a matrix (3, 3)."""
    xyw = np.column_stack([places, np.ones(len(places))]) @ matrix.T
    return np.asarray(xyw[:, :2] / xyw[:, 2:])


def read_transform(path: str | Path, what: str, advice: str) -> np.ndarray:
    """Read a matrix (3, 3) from a table without a header.

    Raises:
        ValueError: The file does not hold an invertible matrix; the message ends in `advice`.
    """
    table = read_table(path, what, header=None)
    try:
        matrix = table.to_numpy(float)
    except ValueError:
        matrix = np.empty((0, 0))
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError(f"{Path(path).name} is not an invertible 3 x 3 matrix: shape {table.shape}. {advice}")
    return matrix


def refuse_stretch(matrix: np.ndarray, what: str, advice: str) -> None:
    """Raise a ValueError that begins with `what` and ends in `advice` where one direction is stretched against the other."""
    longest, shortest = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if longest / shortest > _LARGEST_STRETCH:
        raise ValueError(
            f"{what} stretches the image by {longest / shortest:.2f} in one direction against the other. Allowed: rotation, "
            f"mirroring, one scale, and shear of up to 5 %, since patches are squares. {advice}"
        )
