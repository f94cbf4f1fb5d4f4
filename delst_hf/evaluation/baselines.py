"""Baselines that a trained embedding must beat: colour statistics of the patch, and shuffled pairs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .preparation import group_names

COLOUR_STATISTICS = (
    "red_mean",
    "green_mean",
    "blue_mean",
    "red_sd",
    "green_sd",
    "blue_sd",
    "haematoxylin_mean",
    "haematoxylin_sd",
    "eosin_mean",
    "saturation_mean",
    "tissue_fraction",
)

# Optical density of haematoxylin and of eosin in red, green and blue: Ruifrok and Johnston, "Quantification of
# histochemical staining by color deconvolution", Anal. Quant. Cytol. Histol. 23 (2001) 291-299; unit length below.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_UNMIX = np.linalg.pinv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True))
# A byte has 256 optical densities, -log10(I / 255); 0 is taken as 1, since 0 has no logarithm.
_OPTICAL_DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255)
# Mean optical density above which a pixel is tissue: darker than 85 % of white.
_TISSUE_DENSITY = 0.07


def colour_statistics(images: np.ndarray | Iterable[Any]) -> np.ndarray:
    """Describe each patch by eleven numbers that ignore shape.

    Colour alone predicts expression about as well as a frozen ImageNet network on some slides, so every table of
    results includes it. All statistics lie within about one order of magnitude, as `FlooredScaler` assumes.

    Args:
        images: (patches, height, width, 3) uint8, or an iterable of PIL images or of (height, width, 3) uint8 arrays,
            which may differ in size. They are read one by one, so a generator saves memory.

    Returns:
        (patches, 11) float32 in the order of `COLOUR_STATISTICS`: mean and standard deviation of red, green and blue
        (255 = 1), of the haematoxylin density, mean eosin density (both unmixed from -log10 of the light by least
        squares), mean saturation (0 grey to 1), fraction of pixels that are tissue (0 to 1).

    Raises:
        ValueError: If there is no image, or one is not uint8 with three channels.

    Examples:
        >>> white = np.full((1, 8, 8, 3), 255, dtype=np.uint8)
        >>> colour_statistics(white)[0, :3].tolist(), colour_statistics(white)[0, -1].item()
        ([1.0, 1.0, 1.0], 0.0)
    """
    rows = [_patch_statistics(_pixels(image, index)) for index, image in enumerate(images)]
    if not rows:
        raise ValueError("images is empty; pass at least one patch, and check that the slides asked for have spots.")
    return np.stack(rows).astype(np.float32)


def shuffled(rows: Any, groups: Sequence[Any] | np.ndarray, seed: int) -> Any:
    """Permute rows at random within each group: a control in which partners no longer belong together.

    A permutation within slides keeps the differences between slides (staining, depth). What the control still scores is
    therefore the slide effect, and what true pairs score above it was learnt from spots. Every permutation is
    equally likely, so a few rows stay in place, and the row of a group of one always does.

    Args:
        rows: (rows, ...) array, scipy csr matrix or list.
        groups: (rows,) the slide of each row.
        seed: Seed of the permutation; equal seeds and groups give equal permutations.

    Returns:
        A copy of `rows`, of the same type, permuted.

    Raises:
        ValueError: If there is not exactly one group for each row.

    Examples:
        >>> sorted(shuffled([1, 2, 3, 4], ["a", "a", "b", "b"], seed=0)[:2])
        [1, 2]
    """
    num_rows = rows.shape[0] if hasattr(rows, "shape") else len(rows)
    order = permutation_within(group_names(groups, num_rows, "groups"), seed)
    return [rows[index] for index in order] if isinstance(rows, list) else rows[order]


def permutation_within(groups: np.ndarray, seed: int) -> np.ndarray:
    """Return row indices (rows,) permuted at random within each group, to shuffle several arrays alike.

    Examples:
        >>> groups = np.array(["a", "a", "b", "b"])
        >>> order = permutation_within(groups, seed=0)
        >>> (groups[order] == groups).all()
        np.True_
    """
    generator = np.random.default_rng(seed)
    order = np.arange(len(groups))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        order[members] = generator.permutation(members)
    return order


def _pixels(image: Any, index: int) -> np.ndarray:
    """Return one image as uint8 (pixels, 3)."""
    if hasattr(image, "convert"):  # a PIL image, of any mode
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(
            f"image {index} has the type {pixels.dtype} and the shape {pixels.shape}; allowed are PIL images and uint8 "
            "(height, width, 3). Pass the patches as they are stored, before the image processor."
        )
    return pixels.reshape(-1, 3)


def _patch_statistics(pixels: np.ndarray) -> np.ndarray:
    """Return the statistics (11,) of the uint8 pixels (pixels, 3), in the order of `COLOUR_STATISTICS`."""
    # One row per channel: reductions along a short axis take three times as long.
    light = np.ascontiguousarray(pixels.T) / 255.0
    density = _OPTICAL_DENSITY[pixels]
    haematoxylin, eosin = (density @ _UNMIX).T
    brightest, darkest = light.max(axis=0), light.min(axis=0)
    saturation = (brightest - darkest) / np.maximum(brightest, 1 / 255)
    return np.array(
        [
            *light.mean(axis=1),
            *light.std(axis=1),
            haematoxylin.mean(),
            haematoxylin.std(),
            eosin.mean(),
            saturation.mean(),
            (density @ np.full(3, 1 / 3) > _TISSUE_DENSITY).mean(),
        ]
    )
