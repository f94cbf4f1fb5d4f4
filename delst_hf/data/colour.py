"""The colour of patches in three numbers, and whether a slide's is far from that of the slides a model was trained on."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# A slide's mean may be this many standard deviations (of the patches trained on) off in any of the three numbers.
_FAR = 4.0
# Below this a spread says that few alike patches were seen, not that colours are so certain.
_LEAST_SPREAD = 0.06
NAMES = ("red to green", "blue to green", "brightness")


def patch_colours(patches: Iterable[np.ndarray]) -> np.ndarray:
    """Return log(red/green), log(blue/green) and log(brightness/255) of the mean colour of each patch (patches, 3).

    H&E is above 0 in the first two: haematoxylin and eosin both take green away.

    Args:
        patches: uint8 (height, width, 3) each.

    >>> patch_colours([np.full((2, 2, 3), 255, dtype=np.uint8)]).tolist()
    [[0.0, 0.0, 0.0]]
    """
    means = np.array([patch.reshape(-1, 3).mean(axis=0) for patch in patches], dtype=np.float64).reshape(-1, 3)
    red, green, blue = np.log(np.maximum(means, 1.0)).T
    return np.column_stack([red - green, blue - green, np.log(np.maximum(means.mean(axis=1), 1.0) / 255)])


def colours_of_spots(spots: Any, number: int = 512) -> np.ndarray:
    """Return `patch_colours` of some spots of a dataset, spread evenly over all (at most `number`, 3).

    Args:
        spots: Spots of a `Study`, or `SpotFiles`.
        number: How many at most.
    """
    from .collator import open_patch

    if hasattr(spots, "some_images"):  # they are streamed: a patch here and there would read as much as all of them
        images = spots.some_images(number)
    else:
        some = np.unique(np.linspace(0, len(spots) - 1, number).astype(int))
        images = spots.select_columns("image").with_format("arrow")[some.tolist()]["image"].to_pylist()
    return patch_colours(np.asarray(open_patch(image)) for image in images)


def colour_record(colours: np.ndarray) -> dict[str, list[float]]:
    """Return the mean and standard deviation of `patch_colours` (patches, 3), for the record of a training."""
    return {"mean": colours.mean(axis=0).round(4).tolist(), "sd": colours.std(axis=0).round(4).tolist()}


def describe_foreign_colour(colours: np.ndarray, trained: Mapping[str, Any] | None) -> str | None:
    """Say how a slide differs in colour from what a model was trained on; None where it does not, or nobody knows.

    Args:
        colours: `patch_colours` of the slide (patches, 3).
        trained: `colour_record` of the training.
    """
    if not trained or not len(colours):
        return None
    mean, spread = np.asarray(trained["mean"]), np.maximum(np.asarray(trained["sd"]), _LEAST_SPREAD)
    away = (colours.mean(axis=0) - mean) / spread
    if np.abs(away).max() < _FAR:
        return None
    told = ", ".join(f"{name} {value:+.1f}" for name, value in zip(NAMES, away, strict=True))
    return (
        f"the colours are far from those of the slides that the model was trained on (in their standard deviations: {told}). "
        "Another stain, another scanner or fluorescence: do not trust the prediction without counts to compare with."
    )
