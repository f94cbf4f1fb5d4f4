"""Legacy Spatial Transcriptomics in the style of STUtility and of the ST spot detector: three files a section.

counts       TSV or CSV, spots named "XxY" as rows or as columns, the other side gene names
spots        the alignment table of the spot detector: x, y (array), pixel_x, pixel_y, and maybe new_x, new_y, selected
image        jpg, png or tif of the resolution that pixel_x and pixel_y refer to
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import reader
from ..counts import make_genes
from ..images import open_image
from ..lattice import mpp_from_pitch
from ..slide import Slide, make_slide_id
from .matrices import Counts, join_spots, read_counts, read_table

SPOT_UM = 100.0
_SPOT_ID = re.compile(r"X?(-?\d+(?:\.\d+)?)[x_](-?\d+(?:\.\d+)?)")


@reader
def read_legacy_st(
    counts: str | Path,
    spots: str | Path,
    image: str | Path,
    *,
    slide_id: str | None = None,
    mpp: float | None = None,
    patient_id: str | None = None,
    labels: str | Path | None = None,
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Reads one section; spots with selected == 1 are kept, in the order of the counts.

    Args:
        counts: table of counts; which side the spots are on is told by their names.
        spots: alignment table.
        image: image of the section.
        slide_id: by default the name of the counts without its suffixes.
        mpp: micrometres per pixel; by default 200 um over the pitch of the array.
        patient_id: by default the slide id.
        labels: a table with columns id ("XxY") or x and y, and label.
        tissue: for example "brain".
        species: for example "mouse".

    Raises:
        FileNotFoundError: a file is missing.
        KeyError: a missing column.
        ValueError: a damaged file, names that are no spots, counts that are not counts, nothing in common.
    """
    table = _by_spots(read_counts(counts, orientation="spots"))
    slide_id = slide_id or make_slide_id(Path(counts).name.split(".")[0])
    positions = _positions(Path(spots))
    if mpp is None:
        mpp = mpp_from_pitch(positions, slide_id)
    chosen = positions[positions["selected"] == 1] if "selected" in positions else positions
    kept, matrix = join_spots(chosen, table, slide_id)
    result = pd.DataFrame(
        {"x": kept["pixel_x"], "y": kept["pixel_y"], "array_row": kept["y"], "array_col": kept["x"]}, index=kept.index
    )
    if labels is not None:
        named = read_labels(labels)
        result["label"] = pd.Series([named.get(name) for name in result.index], index=result.index, dtype=object)
    return Slide(
        slide_id=slide_id, image=open_image(image), spots=result, counts=matrix, genes=table.genes, mpp=mpp,
        patient_id=patient_id or slide_id, technology="Spatial Transcriptomics", tissue=tissue, species=species,
        label_source="" if labels is None else Path(labels).name, spot_um=SPOT_UM,
        source=f"st: {Path(counts).name}, {Path(spots).name}, {Path(image).name}",
    )  # fmt: skip


def read_labels(path: str | Path) -> dict[str, str]:
    """Labels by spot from a table with columns label, and id or x and y; empty ones and "none" are left out.

    Raises:
        KeyError: a missing column.
    """
    table = read_table(path, "labels")
    if "label" not in table or not ("id" in table or {"x", "y"} <= set(table)):
        raise KeyError(f"{Path(path).name}: columns label, and id or x and y, are needed; found {list(table.columns)}.")
    table = table[table["label"].notna()]
    ids = (
        table["id"].astype(str) if "id" in table else [_name(x, y) for x, y in zip(table["x"], table["y"], strict=True)]
    )
    pairs = zip(ids, table["label"].astype(str).str.strip(), strict=True)
    return {name: label for name, label in pairs if label.lower() not in ("", "none")}


def _by_spots(counts: Counts) -> Counts:
    """Names the spots "XxY" with whole numbers, and transposes where they are the columns."""
    columns = [
        symbol or gene_id for gene_id, symbol in zip(counts.genes["gene_id"], counts.genes["symbol"], strict=True)
    ]
    rows = _spot_names(counts.barcodes)
    if rows is None:
        spots = _spot_names(columns)
        if spots is None:
            raise ValueError(
                f"{counts.name}: neither rows ({counts.barcodes[:2].tolist()}) nor columns ({columns[:2]}) are spots. Allowed: "
                "names such as '10x21'."
            )
        return Counts(counts.matrix.T.tocsr(), pd.Index(spots), make_genes(list(counts.barcodes)), counts.name)
    return Counts(counts.matrix, pd.Index(rows), counts.genes, counts.name)


def _spot_names(names: object) -> list[str] | None:
    matches = [_SPOT_ID.fullmatch(str(name)) for name in names]  # type: ignore[attr-defined]
    return [_name(match[1], match[2]) for match in matches if match] if matches and all(matches) else None


def _name(x: object, y: object) -> str:
    return f"{round(float(x))}x{round(float(y))}"  # type: ignore[arg-type]


def _positions(path: Path) -> pd.DataFrame:
    table = read_table(path, "spots")
    missing = sorted({"x", "y", "pixel_x", "pixel_y"} - set(table.columns))
    if missing:
        raise KeyError(f"{path.name}: columns {missing} are missing; found {list(table.columns)}. Add or rename them.")
    table = table.dropna(subset=["x", "y"])
    table[["x", "y"]] = np.rint(table[["x", "y"]].to_numpy(float)).astype(int)
    return table.set_index(pd.Index([_name(x, y) for x, y in zip(table["x"], table["y"], strict=True)]))
