"""Slides of any other format: an image, counts and a table of coordinates with named columns."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import reader
from ..cells import pool_cells
from ..images import open_image
from ..samples import SAMPLE_COLUMNS, keep_sample_columns, rows_of
from ..scale import array_of_spots, given, image_states, lattice_states, settle_scale
from ..slide import Slide, make_slide_id
from ..values import identifiers
from .joined import join_spots
from .matrices import read_counts
from .tables import (
    POSITION_COLUMNS,
    is_first_position,
    join_key,
    keep_array_columns,
    need_columns,
    on_tissue,
    read_table,
)
from .transforms import read_transform, to_pixels

# More columns than a table of coordinates has.
_MANY_COLUMNS = 100


@reader
def read_generic(
    image: str | Path | None,
    counts: str | Path,
    coordinates: str | Path,
    *,
    barcode_column: str = "barcode",
    x_column: str = "x",
    y_column: str = "y",
    label_column: str | None = None,
    area_column: str | None = None,
    slide_column: str | None = None,
    slide_value: str | None = None,
    scale: float = 1.0,
    transform: str | None = None,
    grid_um: float | None = None,
    orientation: str = "auto",
    layer: str | None = None,
    mpp: float | None = None,
    spot_um: float | None = None,
    slide_id: str | None = None,
    patient_id: str | None = None,
    technology: str = "",
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read one slide from three files.

    Args:
        image: the image; None where there is none, so that its spots train the gene side alone.
        counts: CSV, TSV, parquet, 10x .h5, .h5ad, .mtx, or a folder with matrix.mtx.
        coordinates: CSV, TSV or parquet, one row per spot; the table of positions of Space Ranger as it is. Spots whose
            in_tissue is 0 are left out.
        barcode_column: column of the coordinates with the spot's name in the counts; without a column barcode, the first one.
            Several, comma-separated ("fov,cell_ID"), are joined by "_"; the counts have these columns, or names so joined.
        x_column: column with x (to the right) in pixels, times `scale`.
        y_column: column with y (downwards).
        label_column: column with labels.
        area_column: column with the area of each cell in square micrometres.
        slide_column: column of the coordinates that names the sample of a spot, where they hold several.
        slide_value: the sample to read.
        scale: pixels of the image per unit of the coordinates.
        transform: in place of `scale`, a file with a 3 x 3 matrix from coordinates to pixels of the image, such as
            micron_to_mosaic_pixel_transform.csv; several, comma-separated, are applied in their order.
        grid_um: sum rows on squares of this side in micrometres, see `pool_cells`.
        orientation: "spots" or "genes" as the rows of a table of counts; "auto" decides by the names.
        layer: layer of an .h5ad with raw counts.
        mpp: micrometres per pixel of the image; by default from the lattice of the spots if it is that of a known array, else
            what a TIFF states.
        spot_um: diameter of a spot in micrometres.
        slide_id: by default the name of the counts without its suffixes.
        patient_id: by default the slide id.
        technology: for the slides table.
        tissue: for the slides table.
        species: for the slides and genes tables.

    Raises:
        FileNotFoundError: a file is missing.
        KeyError: a missing column; the message lists the columns found.
        ValueError: a damaged file, an unknown scale, or coordinates and counts that share no spot.

    Examples:
        >>> slide = read_generic("S1.png", "S1.csv", "xy.csv", mpp=5.0)
        >>> slide.slide_id, slide.counts.shape
        ('S1', (12, 6))
    """
    name = Path(coordinates).name
    needed = [x_column, y_column, *filter(None, (label_column, area_column))]
    table, key = _coordinates(coordinates, barcode_column, needed, filter(None, (label_column, slide_column)))
    if slide_column is not None:
        table = table[rows_of(table, slide_column, slide_value, name, "--slide-column")]
    slide_id = slide_id or make_slide_id(Path(counts).name.split(".")[0])
    found = read_counts(counts, orientation, layer, barcodes=identifiers(table.index), key=key)
    table = table[on_tissue(table, f"{name}: in_tissue", found.notes)]
    spots, matrix = join_spots(table, found, slide_id)
    pixels = None if image is None else open_image(image)
    x, y = _pixels_of(spots[[x_column, y_column]].to_numpy(float), scale, transform).T
    result = pd.DataFrame({"x": x, "y": y}, index=spots.index)
    if area_column is not None:
        result["cell_area_um2"] = pd.to_numeric(spots[area_column], errors="coerce").to_numpy(float)
    keep_array_columns(result, spots)
    stated = [] if image is None else image_states(pixels, Path(image).name)
    unknown = "there is no image to state it" if image is None else f"{Path(image).name} does not state it"
    lattice, array = array_of_spots(result, technology, bin_um=spot_um)
    if lattice is not None:
        unknown += f", and the spots lie on {lattice}, which is not the lattice of a known array"
    settled = settle_scale(slide_id, [*given(mpp), *lattice_states(lattice, array), *stated], unknown=unknown)
    if slide_column is None:
        keep_sample_columns(result, spots)
    if label_column is not None:
        result["label"] = spots[label_column].astype(object)
    slide = Slide(
        slide_id=slide_id, image=pixels, spots=result, counts=matrix, genes=found.genes, notes=found.notes, mpp=settled.mpp,
        scale=settled, patient_id=patient_id or slide_id, technology=technology, tissue=tissue, species=species,
        label_source="" if label_column is None else f"{name}: {label_column}", spot_um=spot_um,
        source=f"table: {', '.join(Path(each).name for each in (counts, coordinates, image) if each is not None)}",
    )  # fmt: skip
    return slide if grid_um is None else pool_cells(slide, grid_um)


def _coordinates(
    path: str | Path, barcode_column: str, needed: Sequence[str], text: Iterable[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of coordinates, its rows named as the counts name spots, and the columns that name them."""
    key = [column.strip() for column in barcode_column.split(",")]
    table = read_table(path, "coordinates", text=[0, *key, *text, *SAMPLE_COLUMNS])
    if is_first_position(table.columns.tolist()):
        table = read_table(path, "coordinates", text=[0], header=None, names=POSITION_COLUMNS)
    if needed[:2] == ["x", "y"] and not {"x", "y"} & set(table):
        table = table.rename(columns={"pxl_col_in_fullres": "x", "pxl_row_in_fullres": "y"})
    if key == ["barcode"] and "barcode" not in table and table.index.name != "barcode":
        key = [str(table.columns[0])]
    advice = "Name the right columns (--barcode-column, --x-column, --y-column, --label-column, --area-column)."
    if sum(re.fullmatch(r"-?\d+(\.\d+)*", str(name)) is not None for name in table.columns) > 1:
        advice = "Its first line seems to be a spot: put a line of names above it, e.g. barcode,x,y."
    elif table.shape[1] > _MANY_COLUMNS:
        advice = "It looks like a table of counts: --counts and --coordinates may be swapped."
    need_columns(table, [*key, *needed], Path(path).name, advice)
    for column in needed[:2]:
        places = pd.to_numeric(table[column], errors="coerce")
        odd = np.flatnonzero(places.isna() & table[column].notna())
        if len(odd):
            raise ValueError(
                f"{Path(path).name}: {column} of row {odd[0] + 1} is {table[column].iloc[odd[0]]!r}. Allowed: numbers. Correct "
                "the table, or name the column that holds them (--x-column, --y-column)."
            )
        table[column] = places
    if set(key) <= set(table):
        table.index = pd.Index(join_key([table[column] for column in key]), dtype=object)
    return table, key


def _pixels_of(places: np.ndarray, scale: float, transform: str | None) -> np.ndarray:
    """Convert coordinates x, y (spots, 2) to pixels of the image.

    Raises:
        ValueError: both a scale and a transform, or a file that is not an invertible 3 x 3 matrix.
    """
    if transform is None:
        return places * scale
    if scale != 1.0:
        raise ValueError("--scale and --transform both say where coordinates lie. Give one of them.")
    for file in transform.split(","):
        advice = "Give the one that brings the coordinates to pixels of the image (--transform)."
        places = to_pixels(places, read_transform(file.strip(), "transform", advice))
    return places
