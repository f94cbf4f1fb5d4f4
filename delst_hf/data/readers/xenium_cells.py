"""10x Genomics Xenium: its segmented cells, one row per cell.

DIR/cells.parquet (or .csv.gz, .csv)                      cell_id, x_centroid, y_centroid (um), cell_area (um2)
DIR/cell_feature_matrix.h5, or the folder with matrix.mtx.gz, or .zarr.zip   counts of the transcripts of quality 20 and more
DIR/experiment.xenium, the H&E image and its alignment    as in `xenium`
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ...errors import reader
from ..counts import make_genes
from ..notes import Notes
from ..slide import Slide, make_slide_id
from ..values import texts
from .joined import join_spots
from .matrices import Counts, read_10x
from .tables import need_columns, read_table
from .xenium import MIN_QV
from .xenium_image import place_on_image, species_of_panel

logger = logging.getLogger(__name__)

_TABLES = ("cells.parquet", "cells.csv.gz", "cells.csv")
_COLUMNS = ("cell_id", "x_centroid", "y_centroid")


@reader
def read_xenium_cells(
    path: str | Path,
    image: str | Path,
    *,
    alignment: str | Path | None = None,
    mpp: float | None = None,
    slide_id: str | None = None,
    patient_id: str | None = None,
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read one region with a row per cell, at the centroid of its segmentation.

    Args:
        path: the output folder of Xenium.
        image: the H&E image.
        alignment: see `read_xenium`.
        mpp: see `read_xenium`.
        slide_id: by default the name of the folder.
        patient_id: by default the slide id.
        tissue: for example "breast".
        species: see `read_xenium`.

    Returns:
        The slide; `cell_area_um2` of its spots is the area of the segmented cell where the table states it.

    Raises:
        FileNotFoundError: no table of cells, or no matrix of their counts.
        KeyError: a missing column.
        ValueError: a damaged file, or cells and counts that share no cell.
    """
    folder = Path(path).expanduser()
    slide_id = slide_id or make_slide_id(folder.resolve().name)
    notes = Notes()
    cells, name = _cells(folder, slide_id, notes)
    counts = _counts(folder)
    counts.notes = notes
    cells, matrix = join_spots(cells, counts, slide_id)
    centres = cells[["x_centroid", "y_centroid"]].to_numpy(float)
    pixels, places, scale = place_on_image(centres, folder, image, alignment, mpp, slide_id)
    spots = pd.DataFrame(places, columns=["x", "y"], index=cells.index)
    if "cell_area" in cells:
        spots["cell_area_um2"] = pd.to_numeric(cells["cell_area"], errors="coerce").to_numpy(float)
    quality = f"Counts are those of {counts.name}: transcripts of quality {MIN_QV:g} and more within the cell."
    logger.info("%s: %s", slide_id, quality)
    notes.remarks.append(quality)
    return Slide(
        slide_id=slide_id, image=pixels, spots=spots, counts=matrix, genes=counts.genes, mpp=scale.mpp, scale=scale,
        patient_id=patient_id or slide_id, technology="Xenium", tissue=tissue,
        species=species or species_of_panel(folder, counts.genes), notes=notes,
        source=f"xenium: {folder.resolve().name}, cells of {name}, {counts.name}, {Path(image).name}",
    )  # fmt: skip


def _cells(folder: Path, slide_id: str, notes: Notes) -> tuple[pd.DataFrame, str]:
    """Return the table of cells by cell_id, without cells that have no position, and its file name."""
    found = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no {', '.join(_TABLES)} in {folder}. Give the output folder of Xenium, or add transcripts up on squares "
            "(--unit grid)."
        )
    table = (
        read_table(found, "cells") if found.suffix == ".parquet" else read_table(found, "cells", dtype={"cell_id": str})
    )
    need_columns(table, _COLUMNS, found.name, "Give the table that Xenium wrote.")
    table = table.set_index(pd.Index(texts(table["cell_id"])))  # bytes in versions up to 2
    position = table[["x_centroid", "y_centroid"]].apply(pd.to_numeric, errors="coerce")
    placed = np.isfinite(position.to_numpy(float)).all(1)
    if not placed.all():
        logger.warning("%s: left out %d of %d cells without a position", slide_id, (~placed).sum(), len(placed))
        notes.leave_out_spots("without a position", (~placed).sum())
    return table.assign(**position)[placed], found.name


def _counts(folder: Path) -> Counts:
    if (found := read_10x(folder, "cell_feature_matrix")) is not None:
        return found
    for name in ("cell_feature_matrix.zarr.zip", "cell_feature_matrix.zarr"):
        if (folder / name).exists():
            return _read_zarr(folder / name)
    raise FileNotFoundError(
        f"no cell_feature_matrix.h5, no folder cell_feature_matrix and no cell_feature_matrix.zarr.zip in {folder}. Give the "
        "whole output folder of Xenium, or add transcripts up on squares (--unit grid)."
    )


def _read_zarr(path: Path) -> Counts:
    """Return the matrix as Xenium Explorer reads it: genes x cells, compressed by gene."""
    import zarr

    try:
        store = zarr.storage.ZipStore(path, mode="r", read_only=True) if path.suffix == ".zip" else str(path)
        group: Any = zarr.open_group(store, mode="r")["cell_features"]
        told = dict(group.attrs)
        data, indices, indptr, cells = (np.asarray(group[name][:]) for name in ("data", "indices", "indptr", "cell_id"))
        names, ids = list(map(str, told["feature_keys"])), list(map(str, told["feature_ids"]))
        matrix = sp.csr_matrix((data, indices, indptr), shape=(len(names), len(cells))).T.tocsr()
        kinds = [str(kind) for kind in told["feature_types"]]
        genes = make_genes(names, ids, feature_type=kinds)
    except Exception as error:  # errors of zarr, numcodecs, zipfile and scipy share no class
        raise ValueError(
            f"cannot read {path}: {type(error).__name__}: {error}. It is damaged, incomplete or not a cell-feature matrix of "
            "Xenium: download it again, or put cell_feature_matrix.h5 beside it."
        ) from error
    return Counts(matrix, pd.Index(_cell_names(cells)), genes, path.name)


def _cell_names(cells: np.ndarray) -> list[str]:
    """Return the names of cells (cells,) from numbers (cells,), or from prefix and suffix (cells, 2), hexadecimal in a to p.

    >>> _cell_names(np.array([[1, 1], [1437536272, 2]], dtype=np.uint32))
    ['aaaaaaab-1', 'ffkpbaba-2']
    """
    if cells.ndim == 1:  # versions before 1.3
        return [str(number) for number in cells.tolist()]
    letters = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    return [f"{prefix:08x}".translate(letters) + f"-{suffix}" for prefix, suffix in cells.tolist()]
