"""10x Genomics Visium HD: the cells that Space Ranger 4 segments on the H&E image, one row per cell.

OUTS/segmented_outputs/filtered_feature_cell_matrix.h5 (or the folder of that name)   barcodes cellid_000000001-1
OUTS/segmented_outputs/cell_segmentations.geojson    a Polygon per cell, full-resolution pixels; properties.cell_id
OUTS/segmented_outputs/nucleus_segmentations.geojson the same for nuclei, with the number of the cell
OUTS/segmented_outputs/spatial/scalefactors_json.json with microns_per_pixel, tissue_hires_image.png (else OUTS/spatial)
"""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import reader
from ..cells import outlines
from ..images import check_readable
from ..notes import Notes
from ..scale import Witness, given, image_states, settle_scale, stated
from ..slide import Slide
from .joined import join_spots
from .matrices import Counts, read_10x
from .visium import outs_name, scale_factors, scaled_image

logger = logging.getLogger(__name__)

CELLS, NUCLEI = "cell_segmentations.geojson", "nucleus_segmentations.geojson"
_BARCODE = re.compile(r"(?:cellid_)?(\d+)(?:-(\d+))?", re.I)


@reader
def read_visium_cells(
    path: str | Path,
    *,
    slide_id: str | None = None,
    image: str | Path | None = None,
    image_scale: float | None = None,
    mpp: float | None = None,
    patient_id: str | None = None,
    technology: str = "Visium HD",
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read the segmented cells of a Visium HD slide; each is placed at the centroid of its outline.

    Args:
        path: the folder `outs`, its parent, or `segmented_outputs`.
        slide_id: by default the name of the folder that holds `outs`.
        image: the full-resolution image; by default the reduced one.
        image_scale: pixels of `image` per full-resolution pixel; by default 1, and an image of another size is refused.
        mpp: micrometres per FULL-RESOLUTION pixel; by default microns_per_pixel of the scale factors.
        patient_id: by default the slide id.
        technology: for the slides table.
        tissue: for example "breast".
        species: for example "human"; by default from the Ensembl ids.

    Returns:
        The slide; `cell_area_um2` of its spots is the area of the outline. Where only nuclei have outlines, cells are placed
        at their nuclei and have no area.

    Raises:
        FileNotFoundError: no segmented_outputs, or a file of it is missing.
        ValueError: no microns_per_pixel and no `mpp`, a damaged file, or outlines and counts that share no cell.
    """
    folder = _segmented(Path(path).expanduser())
    slide_id = slide_id or outs_name(folder.parent)
    places = [folder / "spatial", folder.parent / "spatial"]
    spatial = next((one for one in places if (one / "scalefactors_json.json").is_file()), places[0])
    factors = scale_factors(spatial)
    pixels, factor, image_name = scaled_image(image, places, factors, slide_id, image_scale)
    scale = settle_scale(
        slide_id,
        [*given(mpp), *_by_frame(factors.get("microns_per_pixel")), *image_states(pixels, image_name, factor)],
        frame="full-resolution pixel",
        unknown=f"no usable microns_per_pixel in scalefactors_json.json of {spatial}, which has {factors}",
    )
    counts = _counts(folder)
    table, name = _outlines(folder, slide_id, counts.notes)
    table.index = pd.Index(_barcodes(table.index, counts.barcodes))
    cells, matrix = join_spots(table, counts, slide_id)
    spots = pd.DataFrame({"x": cells["x"] * factor, "y": cells["y"] * factor}, index=cells.index)
    if name == CELLS:
        spots["cell_area_um2"] = cells["area"] * scale.mpp**2
    return Slide(
        slide_id=slide_id, image=pixels, spots=spots, counts=matrix, genes=counts.genes, mpp=scale.mpp / factor, scale=scale,
        patient_id=patient_id or slide_id, technology=technology, tissue=tissue, species=species, notes=counts.notes,
        source=f"visium-hd: {counts.name}, {name}, {image_name}",
    )  # fmt: skip


def _by_frame(value: Any) -> list[Witness]:
    """Return the witness of microns_per_pixel: a geometry, as it is measured on the printed frame, unless a placeholder."""
    found = stated("microns_per_pixel of scalefactors_json.json", value)
    return [one if one.placeholder else replace(one, kind="geometry") for one in found]


def _segmented(path: Path) -> Path:
    for folder in (path, path / "segmented_outputs", path / "outs" / "segmented_outputs"):
        if (folder / CELLS).is_file() or (folder / NUCLEI).is_file():
            return folder
    raise FileNotFoundError(
        f"no segmented_outputs with {CELLS} in {path}. Give the folder `outs` of Space Ranger 4 with cell segmentation, or "
        "read the bins (--unit bin)."
    )


def _counts(folder: Path) -> Counts:
    if (found := read_10x(folder, "filtered_feature_cell_matrix")) is not None:
        return found
    raise FileNotFoundError(
        f"no filtered_feature_cell_matrix.h5 and no folder of that name in {folder}. Give the whole `outs` folder, or read the "
        "bins (--unit bin)."
    )


def _outlines(folder: Path, slide_id: str, notes: Notes) -> tuple[pd.DataFrame, str]:
    """Return x, y and area in full-resolution pixels by the number of the cell, and the name of the file."""
    name = CELLS if (folder / CELLS).is_file() else NUCLEI
    if name == NUCLEI:
        logger.warning(
            "%s: there is no %s, so cells lie at the centres of their nuclei and have no area", slide_id, CELLS
        )
        notes.remarks.append(f"There is no {CELLS}: cells lie at the centres of their nuclei.")
    path = check_readable(folder / name, "outlines")
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        numbers = [feature["properties"]["cell_id"] for feature in features]
        table = outlines([_polygons(feature["geometry"]) for feature in features])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(
            f"cannot read {path}: {type(error).__name__}: {error}. Allowed: a FeatureCollection of polygons with "
            "properties.cell_id, as Space Ranger 4 writes it. It is damaged, incomplete or something else: download it again."
        ) from error
    table.index = pd.Index([str(number) for number in numbers])
    placed = table["x"].notna() & table["y"].notna()
    if not placed.all():
        logger.warning("%s: left out %d of %d cells without an outline", slide_id, (~placed).sum(), len(placed))
        notes.leave_out_spots("without an outline", (~placed).sum())
    return table[placed], name


def _polygons(geometry: dict[str, Any] | None) -> list[Any]:
    if geometry is None:
        return []
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"a geometry is a {geometry['type']}")
    return [geometry["coordinates"]] if geometry["type"] == "Polygon" else list(geometry["coordinates"])


def _barcodes(names: pd.Index, known: pd.Index) -> list[str]:
    """Return the names of outlines (1, "1", "cellid_000000001-1") as the matrix spells them; others as they are."""
    spelled: dict[int, str] = {}
    for name in known:
        match = _BARCODE.fullmatch(str(name))
        if match and spelled.setdefault(int(match[1]), name) != name:
            raise ValueError(
                f"cell {int(match[1])} stands in the matrix as {spelled[int(match[1])]!r} and as {name!r}: several sections "
                "were joined. Give the outputs of one section."
            )
    found = [_BARCODE.fullmatch(str(name).removesuffix(".0")) for name in names]
    return [spelled.get(int(match[1]), name) if match else name for match, name in zip(found, names, strict=True)]
