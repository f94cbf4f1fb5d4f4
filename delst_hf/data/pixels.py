"""Pixels of any kind to uint8 RGB."""

import numpy as np


def to_rgb(array: np.ndarray) -> np.ndarray:
    """Converts a grey, RGB or RGBA array to uint8 RGB.

    Args:
        array: (height, width) or (height, width, 1 to 4), where 2 and 4 channels end with opacity; uint8, uint16, or float
            in 0..1 or in 0..255.

    Returns:
        uint8 (height, width, 3); the input itself when it is that already.

    Raises:
        ValueError: another shape, another type, or floats outside 0..255 or not finite.
    """
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"the image has shape {array.shape}. Allowed: (height, width), or (height, width, channels) with 1 to 4 "
            "channels last. Transpose it, or pick the RGB image."
        )
    array = _to_uint8(array)
    if array.shape[2] in (2, 4):
        alpha = array[:, :, -1:].astype(np.float32) / 255
        array = np.rint(array[:, :, :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Scales uint16 and float images to uint8; which float range is meant is told by the largest value."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.rint(array / np.float32(257)).astype(np.uint8)
    if array.dtype.kind in "iuf":
        low, high = float(array.min()), float(array.max())
        # A float slightly off 0..1 is rounding of the tool that wrote it; NaN fails both comparisons.
        if low >= -1e-3 and high <= 255.5:
            scale = 255.0 if array.dtype.kind == "f" and high <= 1.001 else 1.0
            return np.clip(np.rint(array * np.float32(scale)), 0, 255).astype(np.uint8)
        raise ValueError(
            f"the image has {array.dtype} values from {low:g} to {high:g}. Allowed: uint8, uint16, or floats in 0..1 "
            "or 0..255. Rescale it before."
        )
    raise ValueError(f"the image has values of type {array.dtype}. Allowed: uint8, uint16 or float. Convert it before.")
