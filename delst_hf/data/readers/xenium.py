"""10x Genomics Xenium: transcripts summed on a grid of square pseudo-spots. Its cells are read by `xenium_cells`.

DIR/transcripts.parquet (or .csv.gz, .csv)   feature_name, x_location, y_location (um), qv; is_gene and codeword_category from
                                             version 3 of the onboard analysis on
DIR/experiment.xenium                        JSON with pixel_size (um) of the morphology images
DIR/gene_panel.json                          Ensembl ids of the panel
an H&E image and, from Xenium Explorer, its 3 x 3 alignment matrix: pixels of the H&E -> pixels of the morphology image
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp

from ...errors import reader
from ..counts import make_genes
from ..feature_kinds import kind_of_name
from ..files import only_one, visible
from ..notes import Notes
from ..slide import Slide, make_slide_id
from ..values import texts
from .tables import read_table
from .xenium_image import place_on_image, species_of_panel

logger = logging.getLogger(__name__)

# The lowest quality score at which 10x counts a transcript.
MIN_QV = 20.0
_COLUMNS = ["feature_name", "x_location", "y_location", "qv", "is_gene", "codeword_category"]
# Rows and columns are numbered from -32,768 to 32,767, so that a key of 64 bits holds row, column and gene.
_OFFSET = 1 << 15


@reader
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
    """Read one region; every square of the grid that holds a transcript is a spot.

    Args:
        path: the output folder of Xenium.
        image: the H&E image.
        grid_um: side of a square in micrometres.
        alignment: CSV with the 3 x 3 matrix of Xenium Explorer's image alignment; without one, the H&E is taken to cover the
            morphology image exactly.
        mpp: micrometres per pixel of the H&E; by default from the alignment; without one, from the size of the morphology
            image; else the pixel size in experiment.xenium if the transcripts then fill the image; else what a TIFF states.
        min_qv: transcripts of lower quality are left out.
        slide_id: by default the name of the folder.
        patient_id: by default the slide id.
        tissue: for example "breast".
        species: for example "human"; by default that of the Ensembl ids, else the organism of the panel.

    Returns:
        The slide; array_row and array_col are the row and column in the grid, spot_um is grid_um.

    Raises:
        FileNotFoundError: a file is missing.
        KeyError: a missing column.
        ValueError: a damaged file, a grid that is not positive, no transcript left, or an alignment that is not a 3 x 3 matrix.

    Examples:
        >>> slide = read_xenium("xenium", "xenium/he.png", grid_um=40, slide_id="X1")
        >>> slide.counts.shape, slide.spot_um
        ((12, 5), 40)
    """
    folder = Path(path).expanduser()
    if not (np.isfinite(grid_um) and grid_um > 0):
        raise ValueError(f"grid_um is {grid_um}. Allowed: a positive side in micrometres, e.g. 100 (--grid-um).")
    slide_id = slide_id or make_slide_id(folder.resolve().name)
    notes = Notes()
    matrix, squares, names = _binned(_transcripts(folder), grid_um, min_qv, slide_id, notes)
    centre = (squares[:, ::-1] + 0.5) * grid_um
    pixels, places, scale = place_on_image(centre, folder, image, alignment, mpp, slide_id)
    spots = pd.DataFrame(
        {"x": places[:, 0], "y": places[:, 1], "array_row": squares[:, 0], "array_col": squares[:, 1]},
        index=[f"{row}x{column}" for row, column in squares],
    )
    genes = _genes(folder, names)
    return Slide(
        slide_id=slide_id, image=pixels, spots=spots, counts=matrix, genes=genes, mpp=scale.mpp, scale=scale,
        patient_id=patient_id or slide_id, technology="Xenium", tissue=tissue,
        species=species or species_of_panel(folder, genes), spot_um=grid_um, notes=notes,
        source=f"xenium: {folder.resolve().name}, squares of {grid_um:g} um, {Path(image).name}",
    )  # fmt: skip


def _transcripts(folder: Path) -> Iterator[pd.DataFrame]:
    """Yield the transcripts in tables of up to 500,000 rows."""
    parquet = folder / "transcripts.parquet"
    tables = [folder / name for name in ("transcripts.csv.gz", "transcripts.csv") if (folder / name).is_file()]
    only_one([] if parquet.is_file() else tables, "the transcripts", "Keep one of them.")
    if not parquet.is_file() and not tables:
        cells = any((folder / f"cells.{kind}").is_file() for kind in ("parquet", "csv.gz", "csv"))
        advice = "Give the output folder of Xenium" + (", or read its cells (--unit cell)." if cells else ".")
        if named := visible(folder, "*transcripts.parquet", "*transcripts.csv.gz", "*transcripts.csv"):
            advice = (
                f"There is {named[0].name}: remove what stands before 'transcripts' from the names of this run's files."
            )
        raise FileNotFoundError(f"no transcripts.parquet, .csv.gz or .csv in {folder}. {advice}")
    names = set(pq.read_schema(parquet).names) if parquet.is_file() else set(read_table(tables[0], nrows=1).columns)
    missing = sorted(set(_COLUMNS[:3]) - names)
    if missing:
        raise KeyError(
            f"transcripts in {folder}: columns {missing} are missing; found {sorted(names)}. Give the table that Xenium wrote."
        )
    wanted = [name for name in _COLUMNS if name in names]
    if parquet.is_file():
        for batch in pq.ParquetFile(parquet).iter_batches(batch_size=500_000, columns=wanted):
            yield batch.to_pandas()
    else:
        yield from pd.read_csv(tables[0], usecols=wanted, chunksize=500_000)


def _binned(
    batches: Iterator[pd.DataFrame], grid_um: float, min_qv: float, slide_id: str, notes: Notes
) -> tuple[sp.csr_matrix, np.ndarray, list[str]]:
    """Return the counts (squares, genes), the squares (squares, 2) as row and column, and the genes' names, sorted."""
    gene_of: dict[str, int] = {}
    keys, counts = np.array([], np.int64), np.array([], np.int64)
    seen, left_out = 0, Counter[str]()
    for table in batches:
        kept, names = _counted(table, min_qv, left_out)
        seen += len(table)
        codes, used = pd.factorize(names)
        number = np.array([gene_of.setdefault(name, len(gene_of)) for name in used], np.int64)[codes]
        key = (_squares(table[kept], grid_um, slide_id) << 24) + number
        keys, place = np.unique(np.concatenate([keys, key]), return_inverse=True)
        counts = np.bincount(place, weights=np.concatenate([counts, np.ones(len(key))])).astype(np.int64)
    told = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
    if not len(keys):
        raise ValueError(
            f"slide {slide_id!r}: none of {seen} transcripts is of a gene, with a name, a position and a quality of {min_qv:g} "
            f"or more ({told or 'the table is empty'}). Lower --min-qv, or give the complete table of transcripts."
        )
    logger.info("%s: %d transcripts; left out %s", slide_id, seen, told or "none")
    notes.remarks.append(
        f"Of {seen} transcripts, those of quality {min_qv:g} and more were added up; left out: {told or 'none'}."
    )
    squares, spot = np.unique(keys >> 24, return_inverse=True)
    sorted_names = sorted(gene_of)
    column_of = np.empty(len(gene_of), np.int64)
    column_of[[gene_of[name] for name in sorted_names]] = np.arange(len(gene_of))
    genes = column_of[keys & (1 << 24) - 1]
    matrix = sp.csr_matrix((counts.astype(np.int32), (spot, genes)), shape=(len(squares), len(gene_of)))
    return matrix, np.column_stack([(squares >> 16) - _OFFSET, (squares & (1 << 16) - 1) - _OFFSET]), sorted_names


def _counted(table: pd.DataFrame, min_qv: float, left_out: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return which transcripts count (transcripts,) bool, and their names; tally the others in `left_out` by first reason."""
    names, gene = _features(table)
    kept = np.ones(len(table), dtype=bool)
    position = np.column_stack([pd.to_numeric(table[name], errors="coerce") for name in ("x_location", "y_location")])
    quality = (
        pd.to_numeric(table["qv"], errors="coerce").to_numpy(float) if "qv" in table else np.full(len(table), np.inf)
    )
    for reason, good in (
        # NaN fails the comparison: a transcript without a quality is left out.
        (f"below quality {min_qv:g}", quality >= min_qv),
        ("without a name", names != ""),
        ("controls", gene),
        ("without a position", np.isfinite(position).all(1)),
    ):
        left_out[reason] += int((kept & ~good).sum())
        kept &= good
    return kept, names[kept]


def _squares(table: pd.DataFrame, grid_um: float, slide_id: str) -> np.ndarray:
    """Return the row and column of the square that each transcript lies in, as one number (transcripts,)."""
    places = np.floor(table[["y_location", "x_location"]].to_numpy(float) / grid_um)
    beyond = (places < -_OFFSET) | (places >= _OFFSET)
    if beyond.any():
        row, axis = np.argwhere(beyond)[0]
        found = float(table["yx"[axis] + "_location"].iloc[row])
        raise ValueError(
            f"slide {slide_id!r}: a transcript at {'yx'[axis]} = {found:g} um is {abs(places[row, axis]):.0f} squares of "
            f"{grid_um:g} um from the origin. Allowed: up to {_OFFSET} squares, {_OFFSET * grid_um:g} um. Use larger squares "
            "(--grid-um), or, if no slide is that large, correct the positions."
        )
    row, column = places.astype(np.int64).T
    return np.asarray((row + _OFFSET << 16) + column + _OFFSET)


def _features(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the names (transcripts,) as text, "" for none, and which transcripts are of genes (transcripts,) bool."""
    codes, names = pd.factorize(table["feature_name"])  # -1 for a missing name: it indexes the "" at the end
    text = np.array([*(name.strip() for name in texts(names)), ""], dtype=object)
    if "is_gene" in table:
        gene = table["is_gene"].map(lambda value: str(value).lower() in ("true", "1", "1.0")).to_numpy(bool)
    elif "codeword_category" in table:
        gene = np.array([category.endswith("_gene") for category in texts(table["codeword_category"])], dtype=bool)
    else:
        gene = np.ones(len(table), dtype=bool)
    # Find controls by name too: the first versions of the onboard analysis do not mark them.
    named = np.array([kind_of_name(name) == "" for name in text], dtype=bool)
    return text[codes], gene & named[codes]


def _genes(folder: Path, names: list[str]) -> pd.DataFrame:
    """Return the gene table, with Ensembl ids if the folder has gene_panel.json."""
    path = folder / "gene_panel.json"
    if not path.is_file():
        return make_genes(names)
    try:
        found = [target["type"]["data"] for target in json.loads(path.read_text())["payload"]["targets"]]
    except (ValueError, KeyError, TypeError):
        logger.warning("%s: cannot be read, so genes have no Ensembl ids", path)
        return make_genes(names)
    ids = {str(one.get("name")): str(one.get("id") or "") for one in found if isinstance(one, dict)}
    return make_genes(names, [ids.get(name, "") for name in names])
