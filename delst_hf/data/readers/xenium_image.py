"""Places transcripts on the H&E image of a Xenium region: by an alignment matrix, or because it shows the same field."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import reading
from ..genes import canonical_species
from ..images import open_image
from ..scale import Scale, Witness, given, image_states, settle_scale, stated_length
from ..schema import GENE_ID
from .transforms import read_transform, refuse_stretch, to_pixels

logger = logging.getLogger(__name__)

# Pixel size of the morphology images where experiment.xenium does not state it.
PIXEL_UM = 0.2125
_MORPHOLOGY = ("morphology.ome.tif", "morphology_mip.ome.tif", "morphology_focus.ome.tif", "morphology_focus/*.ome.tif")
# Transcripts reach at least this far across a field, as a share of its side, and not beyond it.
_LEAST_SHARE, _LARGEST_SHARE = 0.5, 1.02
# Aspect ratios of two images of one field may differ by this factor.
_SAME_PROPORTION = 1.05


def place_on_image(
    um: np.ndarray, folder: Path, image: str | Path, alignment: str | Path | None, mpp: float | None, slide_id: str
) -> tuple[Any, np.ndarray, Scale]:
    """Open the H&E image and convert positions in micrometres to its pixels.

    Args:
        um: The positions (positions, 2) x, y of transcripts or cells, in micrometres.
        folder: The output folder of Xenium.
        image: The H&E.
        alignment: CSV with the matrix of Xenium Explorer, pixels of the H&E -> pixels of the morphology image; None where the
            H&E shows the field of the morphology image.
        mpp: Micrometres per pixel of the H&E as the user gives it, if at all.
        slide_id: For messages.

    Returns:
        The H&E image, the positions (positions, 2) in its pixels, and its scale.

    Raises:
        ValueError: A matrix that is not an alignment, an unknown scale, or an H&E of another field.
    """
    pixels, name = open_image(image), Path(image).name
    pixel_um, tags = _pixel_um(folder), image_states(pixels, name)
    if alignment is not None:
        to_image = np.linalg.inv(_alignment(alignment)) @ np.diag([1 / pixel_um, 1 / pixel_um, 1.0])
        by_matrix = float(1 / np.sqrt(abs(np.linalg.det(to_image[:2, :2]))))
        witness = Witness("geometry", f"the alignment of {Path(alignment).name}", (by_matrix,))
        return pixels, to_pixels(um, to_image), settle_scale(slide_id, [*given(mpp), witness, *tags])
    stated = mpp is not None or any(not tag.placeholder for tag in tags)
    height, width = pixels.shape[:2]
    reach_um = float(um[:, 0].max()), float(um[:, 1].max())
    witnesses, unknown = _field(folder, (height, width), name, pixel_um, reach_um, stated)
    scale = settle_scale(slide_id, [*given(mpp), *witnesses, *tags], unknown=unknown)
    shares = reach_um[0] / (width * scale.mpp), reach_um[1] / (height * scale.mpp)
    if max(shares) < _LEAST_SHARE:
        logger.warning(
            "%s: at %.4f um per pixel %s is %.0f x %.0f um, but transcripts reach only to %.0f x %.0f um. Check the scale "
            "(--mpp), or align the image (--alignment)",
            slide_id, scale.mpp, name, width * scale.mpp, height * scale.mpp, *reach_um,
        )  # fmt: skip
    return pixels, to_pixels(um, np.diag([1 / scale.mpp, 1 / scale.mpp, 1.0])), scale


def facts_of_run(folder: Path) -> dict[str, Any]:
    """Return what experiment.xenium states of a run, such as pixel_size and panel_organism; nothing if it is missing.

    Raises:
        ValueError: If it is damaged.
    """
    path = folder / "experiment.xenium"
    if not path.is_file():
        return {}
    with reading(path, "facts of the run"):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def species_of_panel(folder: Path, genes: pd.DataFrame) -> str:
    """Return the organism of the panel, "human" or "mouse", if no gene has an id that tells it; else ""."""
    species = canonical_species(str(facts_of_run(folder).get("panel_organism", "")))
    return species if species in ("human", "mouse") and not genes[GENE_ID].any() else ""


def _pixel_um(folder: Path) -> float:
    path = folder / "experiment.xenium"
    told = facts_of_run(folder).get("pixel_size", PIXEL_UM)
    pixel_um = stated_length(told)
    if pixel_um is None:
        raise ValueError(f"{path}: pixel_size is {told!r}. Allowed: micrometres, such as {PIXEL_UM}. Correct it.")
    return pixel_um


def _field(
    folder: Path, size: tuple[int, int], name: str, pixel_um: float, reach_um: tuple[float, float], stated: bool
) -> tuple[list[Witness], str]:
    """Return the witnesses of an image that shows the field of the morphology image, or else why there is none."""
    found = next((path for pattern in _MORPHOLOGY for path in sorted(folder.glob(pattern))), None)
    morphology = None if found is None else _tiff_size(found)
    if found is not None and morphology is not None:
        field = morphology[0] * pixel_um / size[0], morphology[1] * pixel_um / size[1]
        if max(field) / min(field) > _SAME_PROPORTION:
            return [], (
                f"{name} ({size[1]} x {size[0]} px) does not show the field of {found.name} ({morphology[1]} x {morphology[0]} "
                "px): its aspect ratio differs. Align it in Xenium Explorer (--alignment)"
            )
        return [Witness("geometry", f"the field of {found.name}", (float(np.sqrt(field[0] * field[1])),))], ""
    share = reach_um[0] / (size[1] * pixel_um), reach_um[1] / (size[0] * pixel_um)
    # If another source states a scale, assume the morphology image's pixel size only where transcripts then fill the H&E.
    if max(share) <= _LARGEST_SHARE and (min(share) >= _LEAST_SHARE or not stated):
        return [Witness("geometry", "pixel_size of experiment.xenium", (pixel_um,))], ""
    return [], (
        f"with the pixel size of the morphology image ({pixel_um:g} um) {name} would be {size[1] * pixel_um:.0f} x "
        f"{size[0] * pixel_um:.0f} um, but transcripts reach to {reach_um[0]:.0f} x {reach_um[1]:.0f} um"
    )


def _tiff_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of a morphology image, a stack of fluorescence."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            return int(page.shape[-2]), int(page.shape[-1])
    except (tifffile.TiffFileError, OSError, IndexError, ValueError):
        return None


def _alignment(path: str | Path) -> np.ndarray:
    """Return the matrix (3, 3) from pixels of the H&E, as columns (x, y, 1), to pixels of the morphology image."""
    matrix = read_transform(path, "alignment", "Export it with Xenium Explorer's image alignment.")
    if np.allclose(matrix[:, 2], (0, 0, 1)) and not np.allclose(matrix[2], (0, 0, 1)):
        matrix = matrix.T  # written for rows: (x, y, 1) @ matrix
    refuse_stretch(matrix, Path(path).name, "Export it again with Xenium Explorer.")
    return matrix
