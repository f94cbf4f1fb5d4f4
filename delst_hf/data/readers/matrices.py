"""Read count matrices: 10x HDF5, mtx, AnnData and tables."""

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

from ...errors import reading
from ..counts import check_places, make_genes
from ..declared import check_declared, check_hdf5
from ..feature_kinds import SPOT_COLUMNS, kind_of_name
from ..files import is_packed, only_one, open_packed, visible, without
from ..images import check_readable
from ..notes import Notes
from ..scratch import PACKED, plain_file
from ..values import identifiers, texts, whole_numbers
from .anndata_file import open_anndata, raw_counts
from .tables import as_written, dialect, join_key, key_columns, names_of_columns, read_table, unmarked

logger = logging.getLogger(__name__)

_TABLE_SUFFIXES = (
    *(kind + packed for packed in ("", ".gz", ".bz2", ".xz") for kind in (".csv", ".tsv", ".txt")),
    ".parquet",
)
_ROWS_AT_A_TIME = 500
# Names of the gene column in lists of molecules, which have a gene per row instead of a gene per column.
_NAMES_OF_A_GENE = {
    "geneid",
    "gene",
    "genename",
    "gene_name",
    "gene_id",
    "feature_name",
    "target",
    "target_name",
    "symbol",
}
_BESIDE_A_GENE = {
    "x",
    "y",
    "barcode",
    "cell",
    "cell_id",
    "count",
    "counts",
    "midcount",
    "midcounts",
    "umicount",
    "umi_count",
}
_MOST_COLUMNS_OF_A_LIST = 12
# The most bytes of text that one byte of gzip can stand for.
_DENSEST_TEXT = 1100


@dataclass
class Counts:
    """Counts with the names of their rows and columns.

    Attributes:
        matrix: (spots, genes) as stored.
        barcodes: (spots,).
        genes: columns gene_id and symbol.
        name: of the file, for messages.
        notes: what was left out when they were joined to spots.
    """

    matrix: sp.csr_matrix
    barcodes: pd.Index
    genes: pd.DataFrame
    name: str
    notes: Notes = field(default_factory=Notes)

    def __post_init__(self) -> None:
        self.barcodes = pd.Index(identifiers(self.barcodes), dtype=object)


def read_counts(
    path: str | Path,
    orientation: str = "auto",
    layer: str | None = None,
    barcodes: Collection[str] = (),
    key: Sequence[str] = (),
) -> Counts:
    """Read counts in any of these formats: CSV, TSV, parquet, 10x .h5, .h5ad, .zarr, .mtx or a folder with matrix.mtx.

    Args:
        path: the file, or the folder of an mtx matrix with its barcodes and features.
        orientation: of a table, "spots" if spots are the rows, "genes" if genes are; "auto" decides by the names.
        layer: of an AnnData.
        barcodes: names of spots, by which "auto" finds the rows; without them it looks for well-known genes.
        key: columns of a table that together name a row; if none of them is there, the first column does.

    Raises:
        FileNotFoundError: no such file, or an mtx without its barcodes or features.
        ValueError: a damaged file, an unknown format, or an unknown orientation.
    """
    path = Path(path).expanduser()
    name = path.name.lower()
    if orientation not in ("auto", "spots", "genes"):
        raise ValueError(f"orientation is {orientation!r}. Allowed: 'auto', 'spots' (as rows), 'genes' (as rows).")
    if without(name, PACKED).endswith((".h5ad", ".zarr")):
        adata = open_anndata(path)
        notes = Notes()
        matrix, genes = raw_counts(adata, layer, path.stem, notes)
        return Counts(matrix, adata.obs_names.astype(str), genes, path.name, notes)
    if path.is_dir() or without(name, PACKED).endswith(".mtx"):
        return read_mtx(path)
    check_readable(path, "counts", "Give a CSV, TSV, parquet, .h5, .h5ad or .mtx.")
    if without(name, PACKED).endswith(".h5"):
        return read_10x_h5(path)
    if not name.endswith(_TABLE_SUFFIXES):
        raise ValueError(
            f"{path.name}: unknown format of counts. Allowed: {', '.join(_TABLE_SUFFIXES)}, .h5, .h5ad, .mtx."
        )
    return _from_table(path, orientation, barcodes, key)


def read_10x_h5(path: str | Path) -> Counts:
    """Read a feature-barcode matrix in HDF5 of Space Ranger or Cell Ranger (version 2 writes one group per genome).

    Raises:
        ValueError: a damaged file or no such matrix.
    """
    import h5py

    path = plain_file(check_readable(path, "counts"))
    advice = "It is damaged, incomplete, or not a feature-barcode matrix of Space Ranger: download it again."
    with reading(path, "counts", advice):
        check_hdf5(path)
    with reading(path, "counts", advice), h5py.File(path, "r") as file:
        groups = {name: group for name, group in file.items() if isinstance(group, h5py.Group)}
        genomes = [name for name, group in groups.items() if "gene_names" in group]
        if not genomes and "matrix" not in groups:
            raise ValueError(
                f"{path} has no group 'matrix'; it holds {', '.join(file) or 'nothing'}. Needed: a feature-barcode matrix as "
                "Space Ranger and Cell Ranger write it. Give features of patches with --features."
            )
        if len(genomes) > 1:
            raise ValueError(
                f"{path} holds {len(genomes)} genomes ({genomes}), one matrix each. Write one of them to its own file."
            )
        group = file[genomes[0] if genomes else "matrix"]
        shape = whole_numbers(group["shape"][:], f"{path.name}: shape").ravel()
        indices, indptr = (whole_numbers(group[name][:], f"{path.name}: {name}") for name in ("indices", "indptr"))
        matrix = sp.csr_matrix((group["data"][:], indices, indptr), shape=tuple(shape[::-1].tolist()))
        check_places(matrix, f"{path}: the matrix")
        genes = _features_of(group, old_form=bool(genomes))
        barcodes = pd.Index(texts(group["barcodes"][:]))
    return Counts(matrix, barcodes, genes, path.name)


def read_10x(folder: Path, name: str) -> Counts | None:
    """Return the counts of a run from NAME.h5, else from the folder NAME; None if it has neither."""
    if (folder / f"{name}.h5").is_file():
        return read_10x_h5(folder / f"{name}.h5")
    return read_mtx(folder / name) if (folder / name).is_dir() else None


def _features_of(group: Any, old_form: bool) -> pd.DataFrame:
    """Return the features of an HDF5 matrix; for probes, their genes and whether Space Ranger counts them."""
    if old_form:
        return make_genes(texts(group["gene_names"][:]), texts(group["genes"][:]))
    known = ("id", "name", "feature_type", "gene_id", "gene_name", "filtered_probes", "included")
    told = {name: texts(group["features"][name][:]) for name in known if name in group["features"]}
    ids = told["id"]
    return make_genes(
        told.get("gene_name", told.get("name", ids)), told.get("gene_id", ids), feature=ids if "gene_id" in told else None,
        feature_type=told.get("feature_type"), included=told.get("filtered_probes", told.get("included")),
    )  # fmt: skip


def read_mtx(path: str | Path) -> Counts:
    """Read matrix.mtx(.gz) with barcodes.tsv(.gz) and features.tsv(.gz) (or genes.tsv) beside it.

    Args:
        path: the folder, or the .mtx file; the three files may share a prefix (`sample_matrix.mtx`). Genes are the rows of
            the matrix, or its columns if only that fits the numbers of features and barcodes.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a damaged file, or numbers of names that do not fit the matrix.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = only_one(
            visible(path, "*matrix.mtx", *(f"*matrix.mtx{one}" for one in PACKED)),
            "the matrix",
            "Give the file itself.",
        )
        if found is None:
            raise FileNotFoundError(
                f"no matrix.mtx or matrix.mtx.gz in {path}. Give the filtered_feature_bc_matrix folder."
            )
        path = found
    check_readable(path, "counts")
    with reading(path, "counts"), open_packed(path) as file:
        _check_mtx(path)
        matrix = sp.csr_matrix(scipy.io.mmread(_WithFractions(file))).T.tocsr()
    plain: dict[str, Any] = {"header": None, "sep": "\t", "dtype": str, "keep_default_na": False}
    barcodes = read_table(_neighbour(path, "barcodes"), "barcodes", **plain)[0]
    features = read_table(_neighbour(path, "features", "genes"), "features", **plain)
    if matrix.shape == (len(features), len(barcodes)) and len(features) != len(barcodes):
        matrix = matrix.T.tocsr()
    if matrix.shape != (len(barcodes), len(features)):
        raise ValueError(
            f"{path.name} is {matrix.shape[1]} x {matrix.shape[0]}, but there are {len(features)} features and {len(barcodes)} "
            "barcodes. The three files are not from one run: download them again."
        )
    if features.shape[1] > 1:
        genes = make_genes(features[1], features[0], feature_type=features[2] if features.shape[1] > 2 else None)
    else:
        genes = make_genes(features[0])
    return Counts(matrix, pd.Index(barcodes), genes, path.name)


class _WithFractions:
    """An open mtx file whose header says real instead of integer: under integer, scipy reads 1.7 and 1e400 as 1."""

    def __init__(self, file: Any):
        self._file, self._waiting = file, re.sub(rb"(?i)\b(unsigned-)?integer\b", b"real", file.readline(1 << 16))

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, as a file does."""
        if not self._waiting:
            return self._file.read(size)
        size = len(self._waiting) if size < 0 else size
        found, self._waiting = self._waiting[:size], self._waiting[size:]
        return found


def _check_mtx(path: Path) -> None:
    """Check the size that an mtx header declares against the file: scipy ends the process when memory runs out."""
    with open_packed(path) as file:
        banner, size = file.readline(1 << 16).lower(), file.readline(1 << 16)
        while size.startswith(b"%"):
            size = file.readline(1 << 16)
    numbers = [float(number) for number in size.split()]
    if len(numbers) not in (2, 3) or any(number < 0 for number in numbers):
        raise ValueError(f"{path} has no line of sizes. It is damaged, incomplete or not a matrix: download it again.")
    entries = numbers[2] if len(numbers) == 3 else numbers[0] * numbers[1]
    what = f"{'a sparse' if b'coordinate' in banner else 'a dense'} matrix of {numbers[0]:g} x {numbers[1]:g}"
    # An entry is two bytes or more as text, and 24 in memory; indices of rows and columns take 8 bytes each.
    stored = path.stat().st_size * (_DENSEST_TEXT if is_packed(path) else 1)
    check_declared(24 * entries + 8 * (numbers[0] + numbers[1]), path, f"{what} with {entries:g} entries", stored, 24)


def _from_table(path: Path, orientation: str, barcodes: Collection[str], key: Sequence[str]) -> Counts:
    matrix, rows, columns = _parquet_table(path, key) if path.suffix == ".parquet" else _text_table(path, key)
    rows, columns = (pd.Index(identifiers(names), dtype=object) for names in (rows, columns))
    if orientation == "genes" or (orientation == "auto" and _rows_are_genes(rows, columns, barcodes)):
        matrix, rows, columns = matrix.T.tocsr(), columns, rows
    return Counts(matrix, rows, make_genes(list(columns)), path.name)


def _text_table(path: Path, key: Sequence[str]) -> tuple[sp.csr_matrix, pd.Index, pd.Index]:
    """Return a table of counts, made sparse in blocks of rows, and the names of its rows and columns."""
    header, options = names_of_columns(path, "counts")
    _refuse_lists(header, path.name)
    places = key_columns(header, key, path.name) or [0]
    values = np.delete(np.arange(len(header)), places)
    options |= {"converters": as_written(places), "chunksize": _ROWS_AT_A_TIME}
    pieces, rows, text = [], list[str](), list[str]()
    with reading(path, "counts"), open_packed(path) as file:
        for piece in pd.read_csv(file, **(dialect(path) | options)):
            rows += join_key([unmarked(piece.iloc[:, place]) for place in places])
            piece = piece.iloc[:, values] if len(places) > 1 or places[0] else piece.drop(columns=piece.columns[0])
            piece = _without_words(piece)
            text += _text_columns(piece)
            pieces.append(sp.csr_matrix(piece.to_numpy()) if not text else sp.csr_matrix(piece.shape))
    _refuse_text(text, path.name)
    return sp.vstack(pieces).tocsr(), pd.Index(rows), pd.Index([header[place] for place in values])


def _parquet_table(path: Path, key: Sequence[str]) -> tuple[sp.csr_matrix, pd.Index, pd.Index]:
    table = read_table(path, "counts")
    _refuse_lists([str(name) for name in table.columns], path.name)
    if places := key_columns([str(name) for name in table.columns], key, path.name):
        table.index = pd.Index(join_key([table.iloc[:, place] for place in places]))
        table = table.drop(columns=table.columns[places])
    elif isinstance(table.index, pd.RangeIndex):
        table = table.set_index(table.columns[0])
    table = _without_words(table)
    _refuse_text(_text_columns(table), path.name)
    return sp.csr_matrix(table.to_numpy()), pd.Index(table.index.astype(str)), pd.Index(table.columns.astype(str))


def _text_columns(table: pd.DataFrame) -> list[str]:
    return [str(name) for name, kind in zip(table.columns, table.dtypes, strict=True) if kind.kind not in "iufb"]


def _without_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with 0 in place of text about spots (`cell` of CosMx), which is left out later, as it is no gene."""
    words = [name for name in _text_columns(table) if kind_of_name(name) == SPOT_COLUMNS]
    return table.assign(**dict.fromkeys(words, 0)) if words else table


def _refuse_lists(columns: Sequence[str], name: str) -> None:
    """Refuse a list of molecules or of counts with one gene per row, such as a GEM file of Stereo-seq."""
    names = {one.casefold().strip() for one in columns}
    if len(columns) <= _MOST_COLUMNS_OF_A_LIST and names & _NAMES_OF_A_GENE and names & _BESIDE_A_GENE:
        raise ValueError(
            f"{name} is a list with a gene in each row (columns {list(columns)}), not a table of counts. Sum it first to a "
            "row per spot and a column per gene, e.g. with pandas.crosstab or DataFrame.pivot_table(aggfunc='sum')."
        )


def _refuse_text(columns: list[str], name: str) -> None:
    if columns:
        raise ValueError(f"{name}: column {columns[0]!r} holds text. Allowed: counts. Correct or remove the column.")


def _rows_are_genes(rows: pd.Index, columns: pd.Index, barcodes: Collection[str]) -> bool:
    known = set(barcodes)
    spots = [sum(name in known for name in names) for names in (rows, columns)]
    return spots[1] > spots[0] if any(spots) else _looks_like_genes(rows) and not _looks_like_genes(columns)


def _looks_like_genes(names: pd.Index) -> bool:
    """Tell whether most names are Ensembl ids, or some are housekeeping genes of human or mouse."""
    sample = set(names[:50000].str.upper())
    common = {"ACTB", "GAPDH", "B2M", "RPLP0", "RPS27", "RPL13", "EEF1A1", "TMSB4X", "MT-CO1"}
    return len(sample & common) >= 2 or float(names.str.match(r"ENS[A-Z]*G\d{6,}").mean()) > 0.5


def _neighbour(path: Path, *names: str) -> Path:
    stem = path.name.split(".mtx")[0]
    prefixes = dict.fromkeys((stem.removesuffix("matrix"), f"{stem}_", f"{stem}.", ""))
    for prefix in prefixes:
        tried = [path.parent / f"{prefix}{name}.tsv{suffix}" for name in names for suffix in ("", *PACKED)]
        there = [candidate for candidate in tried if candidate.is_file()]
        found = only_one(there, f"the {names[0]} of {path.name}", "Keep the one of this matrix beside it.")
        if found is not None:
            return found
    raise FileNotFoundError(
        f"no {next(iter(prefixes))}{names[0]}.tsv.gz (or {names[-1]}.tsv) beside {path}. Put it there."
    )
