"""10x Genomics Xenium: single transcripts, added up on a grid of square pseudo-spots.

DIR/transcripts.parquet (or .csv.gz, .csv)   feature_name, x_location, y_location (um), qv, is_gene
DIR/experiment.xenium                        JSON with pixel_size (um) of the morphology images
an H&E image and, from Xenium Explorer, its 3 x 3 alignment matrix: pixels of the H&E -> pixels of the morphology image
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp

from ..images import open_image
from ..slide import Slide, make_genes
from .matrices import read_table

logger = logging.getLogger(__name__)

# The quality score from which on 10x counts a transcript.
MIN_QV = 20.0
_CONTROLS = ("NegControl", "BLANK", "antisense", "Unassigned", "Deprecated", "Intergenic")
_COLUMNS = ["feature_name", "x_location", "y_location", "qv"]


def read_xenium(
    path: str | Path,
    image: str | Path,
    *,
    grid_um: float = 100.0,
    alignment: str | Path | None = None,
    mpp: float | None = None,
    min_qv: float = MIN_QV,
    slide_id: str | None = None,
    patient_id: str | None = None,
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Reads one region; every square of the grid that holds a transcript is a spot.

    Args:
        path: the output folder of Xenium.
        image: the H&E image.
        grid_um: side of a square in micrometres.
        alignment: CSV with the 3 x 3 matrix of Xenium Explorer's image alignment; without one, the H&E is taken to cover the
            morphology image exactly.
        mpp: micrometres per pixel of the H&E; by default from the alignment, else what a TIFF states, else the pixel size of
            experiment.xenium.
        min_qv: transcripts of lower quality are left out.
        slide_id: by default the name of the folder.
        patient_id: by default the slide id.
        tissue: for example "breast".
        species: for example "human".

    Returns:
        The slide; array_row and array_col are the place in the grid, spot_um is grid_um.

    Raises:
        FileNotFoundError: a file is missing.
        KeyError: a missing column.
        ValueError: a damaged file, a grid that is not positive, no transcript left, or an alignment that is no 3 x 3 matrix.
    """
    folder = Path(path).expanduser()
    if not (np.isfinite(grid_um) and grid_um > 0):
        raise ValueError(f"grid_um is {grid_um}. Allowed: a positive side in micrometres, e.g. 100 (--grid-um).")
    slide_id = slide_id or folder.resolve().name
    matrix, squares, names = _binned(_transcripts(folder), grid_um, min_qv, slide_id)
    pixels = open_image(image)
    to_image, mpp = _transform(folder, alignment, mpp, pixels)
    centre = np.column_stack([(squares[:, 1] + 0.5) * grid_um, (squares[:, 0] + 0.5) * grid_um, np.ones(len(squares))])
    xy = centre @ to_image.T
    spots = pd.DataFrame(
        {"x": xy[:, 0] / xy[:, 2], "y": xy[:, 1] / xy[:, 2], "array_row": squares[:, 0], "array_col": squares[:, 1]},
        index=[f"{row}x{column}" for row, column in squares],
    )
    return Slide(
        slide_id=slide_id, image=pixels, spots=spots, counts=matrix, genes=make_genes(names), mpp=mpp,
        patient_id=patient_id or slide_id, technology="Xenium", tissue=tissue, species=species, spot_um=grid_um,
        source=f"xenium: {folder.resolve().name}, squares of {grid_um:g} um, {Path(image).name}",
    )  # fmt: skip


def _transcripts(folder: Path) -> Iterator[pd.DataFrame]:
    """The transcripts, some hundred thousand at a time."""
    parquet = folder / "transcripts.parquet"
    tables = [folder / name for name in ("transcripts.csv.gz", "transcripts.csv") if (folder / name).is_file()]
    if not parquet.is_file() and not tables:
        raise FileNotFoundError(
            f"no transcripts.parquet, .csv.gz or .csv in {folder}. Give the output folder of Xenium."
        )
    names = set(pq.read_schema(parquet).names) if parquet.is_file() else set(read_table(tables[0], nrows=1).columns)
    missing = sorted(set(_COLUMNS[:3]) - names)
    if missing:
        raise KeyError(f"transcripts in {folder}: columns {missing} are missing; found {sorted(names)}.")
    wanted = [name for name in _COLUMNS if name in names]
    if parquet.is_file():
        for batch in pq.ParquetFile(parquet).iter_batches(batch_size=500_000, columns=wanted):
            yield batch.to_pandas()
    else:
        yield from pd.read_csv(tables[0], usecols=wanted, chunksize=500_000)


def _binned(
    batches: Iterator[pd.DataFrame], grid_um: float, min_qv: float, slide_id: str
) -> tuple[sp.csr_matrix, np.ndarray, list[str]]:
    """Counts (squares, genes), the squares (squares, 2) as row and column, and the genes' names, sorted."""
    total: pd.Series | None = None
    seen = poor = controls = 0
    for table in batches:
        names = table["feature_name"].map(lambda name: name.decode() if isinstance(name, bytes) else str(name))
        low = table["qv"] < min_qv if "qv" in table else pd.Series(False, index=table.index)
        control = names.str.startswith(_CONTROLS)
        seen, poor, controls = seen + len(table), poor + int(low.sum()), controls + int((control & ~low).sum())
        kept = table[~low & ~control]
        row, column = np.floor(kept["y_location"] / grid_um), np.floor(kept["x_location"] / grid_um)
        keys = pd.MultiIndex.from_arrays([row.astype(int), column.astype(int), names[kept.index]])
        counted = pd.Series(1, index=keys).groupby(level=[0, 1, 2]).sum()
        total = counted if total is None else total.add(counted, fill_value=0)
    if total is None or total.empty:
        raise ValueError(
            f"slide {slide_id!r}: none of {seen} transcripts is a gene of quality {min_qv:g}. Lower --min-qv."
        )
    logger.info(
        "%s: %d transcripts; left out %d below quality %g and %d controls", slide_id, seen, poor, min_qv, controls
    )
    index = total.index.to_frame(index=False, name=["row", "column", "gene"])  # type: ignore[arg-type]
    genes, gene_names = pd.factorize(index["gene"], sort=True)
    spot, squares = pd.factorize(pd.MultiIndex.from_frame(index[["row", "column"]]), sort=True)
    shape = (len(squares), len(gene_names))
    matrix = sp.csr_matrix((total.to_numpy().astype(np.int32), (spot, genes)), shape=shape)
    return matrix, np.array(squares.tolist()), [str(name) for name in gene_names]


def _transform(
    folder: Path, alignment: str | Path | None, mpp: float | None, pixels: object
) -> tuple[np.ndarray, float]:
    """The matrix (3, 3) from micrometres to pixels of the image, and micrometres per pixel of the image."""
    stated = folder / "experiment.xenium"
    pixel_size = float(json.loads(stated.read_text()).get("pixel_size", 0.2125)) if stated.is_file() else 0.2125
    if alignment is None:
        mpp = mpp or getattr(pixels, "mpp", None) or pixel_size
        return np.diag([1 / mpp, 1 / mpp, 1.0]), float(mpp)
    matrix = read_table(alignment, "alignment", header=None).to_numpy(float)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise ValueError(
            f"{Path(alignment).name} is no invertible 3 x 3 matrix: shape {matrix.shape}. Export it with Xenium Explorer's "
            "image alignment."
        )
    to_image = np.linalg.inv(matrix) @ np.diag([1 / pixel_size, 1 / pixel_size, 1.0])
    return to_image, float(mpp or 1 / np.sqrt(abs(np.linalg.det(to_image[:2, :2]))))
