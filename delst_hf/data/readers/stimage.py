"""STimage-1K4M (JiawenChenn/STimage-1K4M): ROOT/{ST,Visium,VisiumHD}/ with one file of each kind per slide.

image/{slide}.png           JPEG, TIFF or PNG, whatever the suffix says
coord/{slide}_coord.csv     spot (index), yaxis, xaxis, r: pixels of the image, r the radius of a spot
gene_exp/{slide}_count.csv  spots as rows, genes as columns
ROOT/annotation/{slide}_anno.csv  (or {study}_anno.csv) spot (index) and label (the column V2, or the last)
ROOT/meta/meta_all_gene.csv       slide, species, tissue, pmid, tech, ...
"""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import reader
from ..files import only_one, visible
from ..images import open_image
from ..lattice import arrays_named, matching_array, measure_lattice
from ..scale import (
    Scale,
    given,
    image_states,
    lattice_states,
    names_positions,
    settle_scale,
    spots_state,
    stated_diameters,
    stated_length,
)
from ..slide import Slide
from ..values import is_missing
from .joined import join_spots
from .matrices import read_counts
from .tables import need_columns, read_named_table, read_table

logger = logging.getLogger(__name__)

TECHNOLOGIES = {"ST": "Spatial Transcriptomics", "Visium": "Visium", "VisiumHD": "Visium HD"}
# The bins of Visium HD are 8 um unless `spot_um` says otherwise.
BIN_UM = 8.0


def find_stimage_slides(root: str | Path) -> list[str]:
    """Return the slides that have coordinates, counts and an image.

    Raises:
        FileNotFoundError: there is no folder ST, Visium, VisiumHD or coord.
    """
    names = []
    for folder in _technologies(Path(root).expanduser()):
        for path in visible(folder / "coord", "*_coord.csv"):
            name = path.name.removesuffix("_coord.csv")
            if (folder / "gene_exp" / f"{name}_count.csv").exists() and (folder / "image" / f"{name}.png").exists():
                names.append(name)
    return names


@reader
def read_stimage(
    root: str | Path,
    slide: str,
    *,
    mpp: float | None = None,
    spot_um: float | None = None,
    patient_id: str | None = None,
) -> Slide:
    """Read one slide.

    Args:
        root: the folder with ST, Visium, VisiumHD, annotation and meta, or one of the first three.
        slide: for example "Human_Breast_Andersson_10142021_ST_A1".
        mpp: micrometres per pixel; by default from the lattice of the spots, else the radius of a spot divided by r.
        spot_um: diameter of a spot; by default 100 (ST), 55 (Visium), 8 (Visium HD).
        patient_id: by default the slide id: the data set does not name patients.

    Raises:
        FileNotFoundError: a file is missing; the message lists the slides found.
        KeyError: a missing column.
        ValueError: a damaged file, or coordinates and counts that share no spot.

    Examples:
        >>> slide = read_stimage("stimage", "Human_Breast_Andersson_10142021_ST_A1")
        >>> slide.counts.shape, slide.spots["label"].tolist()[:2]
        ((12, 6), ['tumour', 'fat'])
    """
    root = Path(root).expanduser()
    there = [path for one in _technologies(root) if (path := one / "coord" / f"{slide}_coord.csv").is_file()]
    found = only_one(
        there, f"the coordinates of {slide}", "Give the folder of one technology (ROOT/ST, ROOT/Visium, ...)."
    )
    if found is None:
        raise FileNotFoundError(f"no slide {slide!r} in {root}. Available: {find_stimage_slides(root)[:20]}.")
    folder = found.parent.parent
    coordinates = read_named_table(folder / "coord" / f"{slide}_coord.csv", "coordinates", sep=",")
    need_columns(coordinates, ["xaxis", "yaxis"], f"{slide}_coord.csv", "Download the file again.")
    counts = read_counts(folder / "gene_exp" / f"{slide}_count.csv", orientation="spots")
    spots, matrix = join_spots(coordinates, counts, slide)
    technology = TECHNOLOGIES.get(folder.name, folder.name)
    image = open_image(folder / "image" / f"{slide}.png")
    scale, diameter = _scale(coordinates, technology, spot_um, mpp, image, slide)
    labels, label_source = _labels(root if root != folder else folder.parent, slide)
    table = pd.DataFrame({"x": spots["xaxis"].astype(float), "y": spots["yaxis"].astype(float)}, index=spots.index)
    table["label"] = pd.Series([labels.get(name) for name in table.index], index=table.index, dtype=object)
    meta = _meta(root if root != folder else folder.parent, slide)
    return Slide(
        slide_id=slide, image=image, spots=table, counts=matrix, genes=counts.genes, notes=counts.notes,
        mpp=scale.mpp, scale=scale, patient_id=patient_id or slide, technology=technology,
        tissue=str(meta.get("tissue", "")), species=str(meta.get("species", "")), spot_um=diameter,
        spot_px=stated_length(coordinates.get("r", pd.Series([None])).iloc[0], 2),
        label_source=label_source if table["label"].notna().any() else "",
        source=f"stimage: {folder.name}/{slide}",
    )  # fmt: skip


def _technologies(root: Path) -> list[Path]:
    found = [root / name for name in TECHNOLOGIES if (root / name / "coord").is_dir()]
    found = found or ([root] if (root / "coord").is_dir() else [])
    if not found:
        raise FileNotFoundError(
            f"none of {', '.join(TECHNOLOGIES)} (with coord, gene_exp and image) in {root}. Give the folder of STimage-1K4M."
        )
    return found


def _scale(
    coordinates: pd.DataFrame, technology: str, spot_um: float | None, mpp: float | None, image: Any, slide: str
) -> tuple[Scale, float | None]:
    """Return the scale, and the diameter of a spot in micrometres."""
    bin_um = (spot_um or BIN_UM) if technology == "Visium HD" else None
    pixels = coordinates[["yaxis", "xaxis"]].to_numpy(float)
    lattice = measure_lattice(pixels, names_positions(coordinates.index))
    candidates = arrays_named(technology, bin_um)
    array = matching_array(lattice, candidates)
    # Too few spots show no lattice: assume the array of the folder's technology.
    likely = array or next(iter(candidates), None)
    radius = coordinates["r"].dropna() if "r" in coordinates else pd.Series(dtype=float)
    diameter_px = stated_length(radius.iloc[0], 2) if len(radius) else None
    unknown = "no radius r in its coordinates" if diameter_px is None else ""
    if lattice is not None and array is None:
        unknown = f"the spots lie on {lattice}, which is not a lattice of {technology}"
    stated_um = stated_diameters(likely, spot_um) if array is not None or lattice is None or spot_um else ()
    witnesses = [
        *given(mpp),
        *lattice_states(lattice, array),
        *image_states(image, f"{slide}.png"),
        *spots_state(stated_um, diameter_px, "twice the radius r"),
    ]
    return settle_scale(slide, witnesses, unknown=unknown), spot_um or (None if likely is None else likely.spot_um)


def _labels(root: Path, slide: str) -> tuple[dict[str, str], str]:
    """Return the labels of a slide and their file; a study of several slides has one file, named by their common prefix."""
    files = sorted(visible(root / "annotation", "*_anno.csv"), key=lambda path: -len(path.name))
    # A prefix ends at a "_": the annotation of A1 is not that of A10.
    found = next((path for path in files if f"{slide}_".startswith(f"{path.name.removesuffix('_anno.csv')}_")), None)
    if found is None:
        return {}, ""
    table = read_named_table(found, "annotation")
    column = "V2" if "V2" in table else table.columns[-1]
    return dict(zip(table.index, table[column], strict=True)), f"annotation/{found.name}"


def _meta(root: Path, slide: str) -> dict[str, Any]:
    for path in (root / "meta" / "meta_all_gene.csv", root / "meta_all_gene.csv"):
        if path.is_file():
            table = read_table(path, "metadata", dtype=str)
            rows = table[table["slide"] == slide] if "slide" in table else table[:0]
            if len(rows):
                return {str(name): value for name, value in rows.iloc[0].items() if not is_missing(value)}
    logger.warning("%s: not in meta/meta_all_gene.csv: tissue and species are unknown", slide)
    return {}
