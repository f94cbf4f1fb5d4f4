"""How far to trust the prediction of a patch, as one number: the rank of the confidence that the study found best."""

import numpy as np
import pandas as pd

RADIUS = "image radius, as a rank within the slide"
DISTANCE = "nearness to the reference, as a rank within the slide"


def reliability(
    radius: np.ndarray, distance: np.ndarray | None, slides: np.ndarray
) -> tuple[np.ndarray, str] | tuple[None, str]:
    """Rank the patches of each slide by how far to trust their prediction.

    The confidence is the radius of the image embedding: of all confidences tried, it follows the accuracy of a spot's profile
    best, though not significantly better than its rivals (docs/reliability.md has the evidence). A cosine model has no radius:
    there the confidence is the nearness to the reference, where there is one. The result is a rank because a confidence tells
    patches of one slide apart but does not compare slides.

    Args:
        radius: (patches,) distance of the image embedding from the origin; NaN where the geometry has none.
        distance: (patches,) mean distance to the nearest spots of a reference; None without one.
        slides: (patches,) the slide of each.

    Returns:
        The share of its slide's patches that are trusted less (patches,), in (0, 1) with a mean of 0.5 per slide, where ties
        share their rank; and the name of the confidence. None and "" where there is no confidence.

    Examples:
        >>> reliability(np.array([2.0, 1.0, 3.0, 5.0]), None, np.array(["a", "a", "a", "a"]))[0].tolist()
        [0.375, 0.125, 0.625, 0.875]
    """
    if np.isfinite(radius).any():
        confidence, name = radius, RADIUS
    elif distance is not None:
        confidence, name = -distance, DISTANCE
    else:
        return None, ""
    by_slide = pd.Series(confidence).groupby(np.asarray(slides), sort=False)
    ranks = (by_slide.rank() - 0.5) / by_slide.transform("size")
    return ranks.to_numpy(np.float32), name
