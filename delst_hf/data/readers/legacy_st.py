"""Legacy Spatial Transcriptomics in the style of STUtility and of the ST spot detector: three files per section.

counts       TSV or CSV, spots named "XxY" as rows or as columns, the other side gene names
spots        the alignment table of the spot detector: x, y (array), pixel_x, pixel_y, and maybe new_x, new_y, selected; or,
             with the oldest data, a text file of the nine numbers of a 3 x 3 matrix: (x, y, 1) @ matrix = pixels, where x and
             y are those of the counts' names, fractions included
image        jpg, png or tif of the resolution that pixel_x and pixel_y refer to
"""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import reader
from ..counts import make_genes
from ..images import check_readable, open_image
from ..lattice import LEGACY, SpotArray, arrays_named, matching_array, measure_lattice, median_pitch
from ..scale import Witness, given, image_states, lattice_states, settle_scale
from ..schema import SYMBOL
from ..slide import Slide, make_slide_id
from .joined import join_spots
from .matrices import Counts, read_counts
from .tables import need_columns, read_table

logger = logging.getLogger(__name__)

_SPOT_ID = re.compile(r"X?(-?\d+(?:\.\d+)?)[x_](-?\d+(?:\.\d+)?)")


@reader
def read_legacy_st(
    counts: str | Path,
    spots: str | Path,
    image: str | Path | None,
    *,
    slide_id: str | None = None,
    mpp: float | None = None,
    patient_id: str | None = None,
    labels: str | Path | None = None,
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read one section; keep spots with selected == 1, in the order of the counts.

    Args:
        counts: table of counts; spots are rows or columns, recognised by their names.
        spots: alignment table, or the nine numbers of an affine matrix.
        image: image of the section; None where there is none, so that its spots train the gene side alone.
        slide_id: by default the name of the counts without its suffixes.
        mpp: micrometres per pixel; by default 200 um divided by the pitch (array of 1,007 spots), or 150 um divided by the
            distance of diagonal neighbours (array of 2,000 spots).
        patient_id: by default the slide id.
        labels: a table with columns id ("XxY") or x and y, and label; if it has a column section, rows of this slide only.
        tissue: for example "brain".
        species: for example "mouse".

    Raises:
        FileNotFoundError: a file is missing.
        KeyError: a missing column.
        ValueError: a damaged file, names that are not spots, counts that are not raw counts, or no spot in common.

    Examples:
        >>> slide = read_legacy_st("st/S1.tsv.gz", "st/spot_data-S1.tsv", "st/S1.png")
        >>> slide.slide_id, slide.counts.shape, round(slide.mpp, 2)
        ('S1', (12, 6), 5.0)
    """
    table, places = _by_spots(read_counts(counts, orientation="spots"))
    slide_id = slide_id or make_slide_id(Path(counts).name.split(".")[0])
    matrix = read_matrix(spots)
    positions = _positions(Path(spots)) if matrix is None else _transformed(places, table.barcodes, matrix)
    pixels = None if image is None else open_image(image)
    stated = [] if image is None else image_states(pixels, Path(image).name)
    by_array, array, unknown = _array_states(positions)
    scale = settle_scale(slide_id, [*given(mpp), *by_array, *stated], unknown=unknown)
    chosen = positions[positions["selected"] == 1] if "selected" in positions else positions
    kept, joined = join_spots(chosen, table, slide_id)
    rows, columns = (np.rint(kept[name].to_numpy(float)).astype(int) for name in "yx")
    result = pd.DataFrame(
        {"x": kept["pixel_x"], "y": kept["pixel_y"], "array_row": rows, "array_col": columns}, index=kept.index
    )
    named = {} if labels is None else read_labels(labels, slide_id)
    result["label"] = pd.Series([named.get(name) for name in result.index], index=result.index, dtype=object)
    if named and result["label"].isna().all():
        raise ValueError(
            f"slide {slide_id!r}: none of {len(named)} labels in {labels} names a spot. Allowed: ids such as '10x21', or x and "
            "y of the array."
        )
    return Slide(
        slide_id=slide_id, image=pixels, spots=result, counts=joined, genes=table.genes, mpp=scale.mpp, scale=scale,
        patient_id=patient_id or slide_id, technology="Spatial Transcriptomics", tissue=tissue, species=species,
        notes=table.notes,
        label_source=Path(labels).name if labels is not None and named else "",
        spot_um=None if array is None else array.spot_um,
        source=f"st: {', '.join(Path(name).name for name in (counts, spots, image) if name is not None)}",
    )  # fmt: skip


def _array_states(spots: pd.DataFrame) -> tuple[list[Witness], SpotArray | None, str]:
    """Return what the lattice of a legacy alignment table says of the scale.

    Args:
        spots: Columns x, y (array positions), pixel_x, pixel_y; all spots of the table, selected or not.

    Returns:
        The witness, if any; the array, None where the lattice matches none; and, for messages, why there is no witness.
    """
    array, pixels = spots[["y", "x"]].to_numpy(float), spots[["pixel_y", "pixel_x"]].to_numpy(float)
    lattice = measure_lattice(pixels, array)
    if lattice is None:
        return [], LEGACY, "too few spots to measure the array's pitch, or array positions that do not belong to them"
    known = matching_array(lattice, arrays_named("Spatial Transcriptomics"))
    if known is None:
        return [], None, (
            f"the spots lie on {lattice}; known arrays are squares of 200 um (1,007 spots on 31 x 33 positions) and a "
            "checkerboard of 150 um between diagonal neighbours (2,000 spots). Check pixel_x and pixel_y"
        )  # fmt: skip
    along_x, along_y, pitch = median_pitch(array, pixels, lattice)
    diagonal = "" if known is LEGACY else f", {pitch:.1f} px between diagonal neighbours"
    return lattice_states(lattice, known, pitch, f"{along_x:.1f} x {along_y:.1f} px{diagonal}"), known, ""


def read_labels(path: str | Path, section: str) -> dict[str, str]:
    """Read labels by spot from a table with columns label, and id or x and y; empty ones and "none" are left out.

    Args:
        path: the table.
        section: the section whose rows are read, where the table has a column section.

    Raises:
        KeyError: a missing column.
    """
    table = read_table(path, "labels", text=["section", "id", "label"])
    if "label" not in table or not ("id" in table or {"x", "y"} <= set(table)):
        raise KeyError(
            f"{Path(path).name}: columns label, and id or x and y, are needed; found {list(table.columns)}. Rename or add them."
        )
    if "section" in table:
        table = table[table["section"].astype(str) == section]
        if table.empty:
            logger.warning("%s: no labels in %s", section, Path(path).name)
    table = table[table["label"].notna()].dropna(subset=["id"] if "id" in table else ["x", "y"])
    ids = (
        table["id"].astype(str) if "id" in table else [_name(x, y) for x, y in zip(table["x"], table["y"], strict=True)]
    )
    pairs = zip(ids, table["label"].astype(str).str.strip(), strict=True)
    return {name: label for name, label in pairs if label.lower() not in ("", "none")}


def read_matrix(path: str | Path) -> np.ndarray | None:
    """Read nine numbers as an affine matrix (3, 3), (x, y, 1) @ matrix = (pixel_x, pixel_y, 1); None for another file.

    Raises:
        ValueError: Nine numbers that are not an affine matrix, or one that is not invertible.
    """
    path = check_readable(path, "spots", "Give the alignment table of the section.")
    if path.stat().st_size > 2000:
        return None
    try:
        words = re.split(r"[\s,;\[\]()]+", path.read_text().strip(" \n\r\t[](),;"))
        matrix = np.array([float(word) for word in words]).reshape(3, 3)
    except ValueError:  # a table, or not nine numbers
        return None
    if not np.allclose(matrix[:, 2], (0, 0, 1)) and np.allclose(matrix[2], (0, 0, 1)):
        matrix = matrix.T  # written for columns: matrix @ (x, y, 1)
    if not np.isfinite(matrix).all() or not np.allclose(matrix[:, 2], (0, 0, 1)) or abs(np.linalg.det(matrix)) < 1e-9:
        raise ValueError(
            f"{path.name}: {matrix.ravel().tolist()} is not an affine matrix. Allowed: nine numbers whose last column, or last "
            "row, is 0 0 1, and which can be inverted. Give that matrix, or the alignment table of the section."
        )
    return matrix


def _transformed(places: np.ndarray, names: pd.Index, matrix: np.ndarray) -> pd.DataFrame:
    """Return an alignment table from array positions (spots, 2) x, y and a matrix (3, 3)."""
    pixels = np.column_stack([places, np.ones(len(places))]) @ matrix
    columns = {"x": places[:, 0], "y": places[:, 1], "pixel_x": pixels[:, 0], "pixel_y": pixels[:, 1]}
    return pd.DataFrame(columns, index=names)


def _by_spots(counts: Counts) -> tuple[Counts, np.ndarray]:
    """Return the counts with spots as rows, named "XxY" in whole numbers, and x, y (spots, 2) as they were written."""
    columns = counts.genes[SYMBOL].tolist()
    places = _places(counts.barcodes)
    if places is not None:
        return Counts(counts.matrix, _names(places), counts.genes, counts.name), places
    places = _places(columns)
    if places is None:
        raise ValueError(
            f"{counts.name}: neither rows ({counts.barcodes[:2].tolist()}) nor columns ({columns[:2]}) are spots. Allowed: "
            "names such as '10x21'."
        )
    return Counts(counts.matrix.T.tocsr(), _names(places), make_genes(list(counts.barcodes)), counts.name), places


def _places(names: object) -> np.ndarray | None:
    """Return x, y (spots, 2) of names such as "10x21" and "10.02x20.97"; None unless all names are of this form."""
    matches = [_SPOT_ID.fullmatch(str(name)) for name in names]  # type: ignore[attr-defined]
    if not matches or not all(matches):
        return None
    return np.array([(float(match[1]), float(match[2])) for match in matches if match])


def _names(places: np.ndarray) -> pd.Index:
    return pd.Index([_name(x, y) for x, y in places.tolist()])


def _name(x: object, y: object) -> str:
    return f"{round(float(x))}x{round(float(y))}"  # type: ignore[arg-type]


def _positions(path: Path) -> pd.DataFrame:
    table = read_table(path, "spots")
    need_columns(table, ["pixel_x", "pixel_y", "x", "y"], path.name, "Add or rename them.")
    table = table.dropna(subset=["x", "y"])
    table[["x", "y"]] = np.rint(table[["x", "y"]].to_numpy(float)).astype(int)
    return table.set_index(pd.Index([_name(x, y) for x, y in zip(table["x"], table["y"], strict=True)]))
