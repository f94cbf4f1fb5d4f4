"""A slide image without counts: a grid of patches over its tissue."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import reader
from ..grid import on_tissue, patch_grid
from ..images import open_image
from ..scale import Scale, given, image_states, settle_scale
from ..slide import Slide, check_mpp, make_slide_id, no_counts
from ..tissue import MASK_PX, find_tissue, read_tissue

logger = logging.getLogger(__name__)

# The given scale and the one that the file states may differ by this share: rounding, not another objective.
_SAME_SCALE = 0.1
# From this size on, warn of an image that cannot be read region by region and is held in memory as a whole.
_LARGE_BYTES = 2**31


@reader
def read_slide_image(
    path: str | Path,
    *,
    mpp: float | None = None,
    patch_um: float = 112.0,
    stride_um: float | None = None,
    min_tissue: float = 0.25,
    mask: str | Path | None = None,
    positions: pd.DataFrame | Callable[[tuple[int, ...]], pd.DataFrame] | None = None,
    slide_id: str | None = None,
    patient_id: str | None = None,
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read a slide without counts and lay a grid of patches over its tissue.

    Args:
        path: any image that `open_image` opens; large ones are read region by region.
        mpp: micrometres per pixel; by default what the file states.
        patch_um: side of a patch in micrometres.
        stride_um: distance between patches in micrometres; by default `patch_um`.
        min_tissue: share of a patch that must be tissue, 0 to 1.
        mask: file that marks the tissue (see `tissue.read_tissue`); by default tissue is found by its colour.
        positions: positions of the patches instead of a grid: columns x, y in pixels, names as index; or a function that
            returns them for the (height, width) of the image.
        slide_id: by default the name of the file.
        patient_id: by default the slide id.
        tissue: for the slides table, such as "breast".
        species: for the slides table, such as "human".

    Returns:
        A slide whose `counts` have no column. Its `spots` have the column tissue_fraction, where a grid was laid.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged image, an unknown or contradicted scale, no tissue, or patches larger than the slide.

    Examples:
        >>> slide = read_slide_image("he.png", mpp=2.0, patch_um=100)
        >>> slide.has_counts, len(slide.spots)
        (False, 48)
    """
    path = Path(path)
    slide_id = slide_id or make_slide_id(path.name.split(".")[0])
    stride_um = patch_um if stride_um is None else stride_um
    image = open_image(path)
    scale = _scale(image, mpp, path.name, slide_id)
    if isinstance(image, np.ndarray) and image.nbytes > _LARGE_BYTES:
        logger.warning(
            "%s is held in memory as a whole (%.1f GiB): a tiled TIFF would be read region by region", path.name,
            image.nbytes / 2**30,
        )  # fmt: skip
    nowhere = pd.DataFrame({"x": [], "y": []})
    slide = Slide(
        slide_id=slide_id, image=image, spots=nowhere, mpp=scale.mpp, scale=scale, patient_id=patient_id or slide_id,
        tissue=tissue, species=species, spot_um=stride_um, source=f"image: {path.name}", **no_counts(nowhere),
    )  # fmt: skip
    if positions is None:
        spots = _grid(slide, patch_um, stride_um, min_tissue, mask)
    else:
        spots = positions(image.shape[:2]) if callable(positions) else positions
        slide.spot_um = None
    return replace(slide, spots=spots, **no_counts(spots))


def _grid(slide: Slide, patch_um: float, stride_um: float, min_tissue: float, mask: str | Path | None) -> pd.DataFrame:
    side = patch_um / slide.mpp
    # Laid first: it refuses wrong sizes before the search for tissue, which may take a minute.
    grid = patch_grid(slide.image.shape, side, stride_um / slide.mpp)
    try:
        if mask is not None:
            found = read_tissue(mask, slide.image.shape)
        else:
            found = find_tissue(np.asarray(slide.thumbnail(MASK_PX)), slide.image.shape, slide.mpp)
        spots = on_tissue(grid, found, side, min_tissue)
    except ValueError as error:
        raise ValueError(f"slide {slide.slide_id!r}: {error}") from error
    spots.index = pd.Index(spots["array_row"].astype(str) + "x" + spots["array_col"].astype(str), name="barcode")
    logger.info("%s: %d of %d patches of %g um lie on tissue", slide.slide_id, len(spots), len(grid), patch_um)
    return spots


def _scale(image: Any, mpp: float | None, name: str, slide_id: str) -> Scale:
    """Return the user's scale, else the file's; refuse a contradiction, since no third witness could decide."""
    tags = image_states(image, name)
    scale = settle_scale(
        slide_id, [*given(mpp), *tags], unknown=f"{name} does not state it, but the scanner's software shows it"
    )
    check_mpp(scale.mpp, slide_id)
    for tag in tags:
        if mpp is not None and not tag.placeholder and max(mpp / tag.mpp[0], tag.mpp[0] / mpp) > 1 + _SAME_SCALE:
            raise ValueError(
                f"slide {slide_id!r}: --mpp is {mpp:g}, but {name} states {tag.mpp[0]:.4f} micrometres per pixel. Leave --mpp "
                "out to use the stated value; if the file is wrong, convert it to a TIFF that states the right one."
            )
    return scale
