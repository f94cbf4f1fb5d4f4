"""STimage-1K4M (JiawenChenn/STimage-1K4M): ROOT/{ST,Visium,VisiumHD}/ with one file of each kind a slide.

image/{slide}.png           JPEG, TIFF or PNG, whatever the suffix says
coord/{slide}_coord.csv     spot (index), yaxis, xaxis, r: pixels of the image, r the radius of a spot
gene_exp/{slide}_count.csv  spots as rows, genes as columns
ROOT/annotation/{slide}_anno.csv  (or {study}_anno.csv) spot (index) and label (the column V2, or the last)
ROOT/meta/meta_all_gene.csv       slide, species, tissue, pmid, tech, ...
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import reader
from ..images import open_image
from ..lattice import stated_length
from ..slide import Slide
from ..values import is_missing
from .matrices import join_spots, read_counts, read_named_table, read_table

logger = logging.getLogger(__name__)

# Diameter of what a coordinate table's r is the radius of. The bins of Visium HD are 8 um unless said otherwise.
SPOT_UM = {"ST": 100.0, "Visium": 55.0, "VisiumHD": 8.0}


def find_stimage_slides(root: str | Path) -> list[str]:
    """Slides that have coordinates, counts and an image.

    Raises:
        FileNotFoundError: none of the folders ST, Visium, VisiumHD, nor coord itself.
    """
    names = []
    for folder in _technologies(Path(root).expanduser()):
        for path in sorted((folder / "coord").glob("*_coord.csv")):
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
    """Reads one slide.

    Args:
        root: the folder with ST, Visium, VisiumHD, annotation and meta, or one of the first three.
        slide: for example "Human_Breast_Andersson_10142021_ST_A1".
        mpp: micrometres per pixel; by default half the spot's diameter over r.
        spot_um: diameter of a spot; by default 100 (ST), 55 (Visium), 8 (Visium HD).
        patient_id: by default the slide id: the data set does not name patients.

    Raises:
        FileNotFoundError: a file is missing; the message lists the slides there are.
        KeyError: a missing column.
        ValueError: a damaged file, or nothing in common.
    """
    root = Path(root).expanduser()
    folder = next((one for one in _technologies(root) if (one / "coord" / f"{slide}_coord.csv").exists()), None)
    if folder is None:
        raise FileNotFoundError(f"no slide {slide!r} in {root}. Available: {find_stimage_slides(root)[:20]}.")
    coordinates = read_named_table(folder / "coord" / f"{slide}_coord.csv", "coordinates", sep=",")
    missing = sorted({"xaxis", "yaxis"} - set(coordinates.columns))
    if missing:
        raise KeyError(f"{slide}_coord.csv: columns {missing} are missing; found {list(coordinates.columns)}.")
    counts = read_counts(folder / "gene_exp" / f"{slide}_count.csv", orientation="spots")
    spots, matrix = join_spots(coordinates, counts, slide)
    diameter = spot_um or SPOT_UM.get(folder.name)
    if mpp is None:
        mpp = _mpp(coordinates, diameter, slide)
    labels, label_source = _labels(root if root != folder else folder.parent, slide)
    table = pd.DataFrame({"x": spots["xaxis"].astype(float), "y": spots["yaxis"].astype(float)}, index=spots.index)
    table["label"] = pd.Series([labels.get(name) for name in table.index], index=table.index, dtype=object)
    meta = _meta(root if root != folder else folder.parent, slide)
    return Slide(
        slide_id=slide, image=open_image(folder / "image" / f"{slide}.png"), spots=table, counts=matrix, genes=counts.genes,
        mpp=mpp, patient_id=patient_id or slide, technology={"ST": "Spatial Transcriptomics"}.get(folder.name, folder.name),
        tissue=str(meta.get("tissue", "")), species=str(meta.get("species", "")), spot_um=diameter,
        spot_px=stated_length(coordinates.get("r", pd.Series([None])).iloc[0], 2),
        label_source=label_source if table["label"].notna().any() else "",
        source=f"stimage: {folder.name}/{slide}",
    )  # fmt: skip


def _technologies(root: Path) -> list[Path]:
    found = [root / name for name in SPOT_UM if (root / name / "coord").is_dir()]
    found = found or ([root] if (root / "coord").is_dir() else [])
    if not found:
        raise FileNotFoundError(
            f"none of {', '.join(SPOT_UM)} (with coord, gene_exp and image) in {root}. Give the folder of STimage-1K4M."
        )
    return found


def _mpp(coordinates: pd.DataFrame, diameter: float | None, slide: str) -> float:
    radius = coordinates["r"].dropna() if "r" in coordinates else pd.Series(dtype=float)
    if diameter is None or radius.empty or not np.isfinite(radius.iloc[0]) or radius.iloc[0] <= 0:
        raise ValueError(f"slide {slide!r}: no radius r in its coordinates. Give the micrometres per pixel (--mpp).")
    return float(diameter / 2 / radius.iloc[0])


def _labels(root: Path, slide: str) -> tuple[dict[str, str], str]:
    """Labels of a slide; studies with several slides have one file, found by the beginning of the slide's name."""
    files = sorted((root / "annotation").glob("[!.]*_anno.csv"), key=lambda path: -len(path.name))
    # The beginning up to a "_": the annotation of A1 is not that of A10.
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
