"""Count matrices as they lie on disk, and what joins them to spots."""

import gzip
import logging
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

from ..images import check_readable
from ..slide import check_counts, make_genes

logger = logging.getLogger(__name__)

_TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet")
_BROKEN = (EOFError, OSError, KeyError, ValueError, zlib.error, zipfile.BadZipFile, UnicodeDecodeError)


@dataclass
class Counts:
    """Counts with the names of their rows and columns.

    Attributes:
        matrix: (spots, genes) as stored.
        barcodes: (spots,).
        genes: columns gene_id and symbol.
        name: of the file, for messages.
    """

    matrix: sp.csr_matrix
    barcodes: pd.Index
    genes: pd.DataFrame
    name: str


def read_table(path: str | Path, what: str = "table", **options: Any) -> pd.DataFrame:
    """Reads CSV, TSV (gzipped or not; the separator is told from the first line) or parquet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated or damaged file.
    """
    path = check_readable(path, what)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if "sep" not in options:
            with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
                first = file.readline()
            options["sep"] = max("\t,; ", key=first.count)
        return pd.read_csv(path, **options)  # type: ignore[no-any-return]
    except _BROKEN as error:
        raise ValueError(
            f"cannot read the {what} {path}: {error}. It is truncated or no table: download it again."
        ) from error


def read_counts(path: str | Path, orientation: str = "auto", layer: str | None = None) -> Counts:
    """Reads counts of any of these forms: CSV, TSV, parquet, 10x .h5, .h5ad, .mtx or a folder with matrix.mtx.

    Args:
        path: the file, or the folder of an mtx matrix with its barcodes and features.
        orientation: "spots" if spots are the rows, "genes" if genes are; "auto" tells it from the names where it can.
        layer: of an .h5ad.

    Raises:
        FileNotFoundError: no such file, or an mtx without its names.
        ValueError: a damaged file, an unknown form, or an orientation that cannot be.
    """
    path = Path(path).expanduser()
    name = path.name.lower()
    if orientation not in ("auto", "spots", "genes"):
        raise ValueError(f"orientation is {orientation!r}. Allowed: 'auto', 'spots' (as rows), 'genes' (as rows).")
    if path.is_dir() or name.endswith((".mtx", ".mtx.gz")):
        return read_mtx(path)
    check_readable(path, "counts", "Give a CSV, TSV, parquet, .h5, .h5ad or .mtx.")
    if name.endswith(".h5"):
        return read_10x_h5(path)
    if name.endswith(".h5ad"):
        return _read_h5ad(path, layer)
    if not name.endswith(_TABLE_SUFFIXES):
        raise ValueError(
            f"{path.name}: unknown form of counts. Allowed: {', '.join(_TABLE_SUFFIXES)}, .h5, .h5ad, .mtx."
        )
    return _from_table(path, orientation)


def read_10x_h5(path: str | Path, feature_type: str = "Gene Expression") -> Counts:
    """Reads a feature-barcode matrix in HDF5 as Cell Ranger 3 and Space Ranger write it.

    Raises:
        ValueError: a damaged file or no such matrix.
    """
    import h5py

    path = check_readable(path, "counts")
    try:
        with h5py.File(path, "r") as file:
            group = file["matrix"]
            shape = group["shape"][:]
            matrix = sp.csr_matrix(
                (group["data"][:], group["indices"][:], group["indptr"][:]), shape=tuple(shape[::-1])
            )
            barcodes = pd.Index(group["barcodes"].asstr()[:])
            features = group["features"]
            ids, names = features["id"].asstr()[:], features["name"].asstr()[:]
            kinds = features["feature_type"].asstr()[:] if "feature_type" in features else None
    except _BROKEN as error:
        raise ValueError(
            f"cannot read {path}: {error}. It is truncated, or no feature-barcode matrix of Space Ranger: download it again."
        ) from error
    return _only_genes(Counts(matrix, barcodes, make_genes(list(names), list(ids)), path.name), kinds, feature_type)


def read_mtx(path: str | Path, feature_type: str = "Gene Expression") -> Counts:
    """Reads matrix.mtx(.gz) with barcodes.tsv(.gz) and features.tsv(.gz) (or genes.tsv) beside it; genes are its rows.

    Args:
        path: the folder, or the .mtx file; a prefix of its name (`sample_matrix.mtx`) is that of its neighbours.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a damaged file, or names that do not fit the matrix.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = sorted([*path.glob("*matrix.mtx"), *path.glob("*matrix.mtx.gz")])
        if not found:
            raise FileNotFoundError(
                f"no matrix.mtx or matrix.mtx.gz in {path}. Give the filtered_feature_bc_matrix folder."
            )
        path = found[0]
    check_readable(path, "counts")
    prefix = path.name.split("matrix.mtx")[0]
    try:
        matrix = sp.csr_matrix(scipy.io.mmread(path)).T.tocsr()
    except _BROKEN as error:
        raise ValueError(f"cannot read {path}: {error}. It is truncated or no matrix: download it again.") from error
    plain: dict[str, Any] = {"header": None, "sep": "\t", "dtype": str, "keep_default_na": False}
    barcodes = read_table(_neighbour(path, prefix, "barcodes"), "barcodes", **plain)[0]
    features = read_table(_neighbour(path, prefix, "features", "genes"), "features", **plain)
    if matrix.shape != (len(barcodes), len(features)):
        raise ValueError(
            f"{path.name} is {matrix.shape[1]} x {matrix.shape[0]}, but there are {len(features)} features and {len(barcodes)} "
            "barcodes. The three files are not of one run: download them again."
        )
    names = list(features[1] if features.shape[1] > 1 else features[0])
    genes = make_genes(names, list(features[0])) if features.shape[1] > 1 else make_genes(names)
    kinds = features[2].to_numpy() if features.shape[1] > 2 else None
    return _only_genes(Counts(matrix, pd.Index(barcodes), genes, path.name), kinds, feature_type)


def join_spots(spots: pd.DataFrame, counts: Counts, slide_id: str) -> tuple[pd.DataFrame, sp.csr_matrix]:
    """Keeps what has both a position and counts, in the order of the counts; says what was left out.

    Args:
        spots: index = barcodes.
        counts: the counts.
        slide_id: for messages.

    Returns:
        The spots and their int32 counts.

    Raises:
        ValueError: barcodes given twice, a transposed or normalised matrix, or nothing in common.
    """
    for names, where in ((counts.barcodes, counts.name), (spots.index, "the positions")):
        twice = names[names.duplicated()]
        if len(twice):
            raise ValueError(
                f"slide {slide_id!r}: {len(twice)} barcodes are duplicated in {where}, e.g. {twice[0]!r}. Each spot needs its "
                "own; if several sections were joined, split them first."
            )
    shared = counts.barcodes.isin(spots.index)
    if not shared.any():
        both = spots.index.isin(counts.genes["symbol"]) | spots.index.isin(counts.genes["gene_id"])
        hint = (
            "The matrix is transposed: its columns are the spots. Transpose it, or say --orientation genes."
            if both.any()
            else "Check that both belong to one slide, and that barcodes have the same suffix (-1)."
        )
        raise ValueError(
            f"slide {slide_id!r}: no spot of the positions ({spots.index[:2].tolist()}) is in {counts.name} "
            f"({counts.barcodes[:2].tolist()}). {hint}"
        )
    lonely_counts, lonely_spots = int((~shared).sum()), len(spots) - int(shared.sum())
    if lonely_counts or lonely_spots:
        logger.warning("%s: left out %d counts without spot and %d spots without counts",
                       slide_id, lonely_counts, lonely_spots)  # fmt: skip
    check_counts(counts.matrix, slide_id, hint=f"put the raw counts into {counts.name}")
    matrix = counts.matrix.tocsr()[shared].astype(np.int32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return spots.loc[counts.barcodes[shared]], matrix


def _from_table(path: Path, orientation: str) -> Counts:
    table = read_table(path, "counts") if path.suffix == ".parquet" else read_table(path, "counts", index_col=0)
    if path.suffix == ".parquet" and isinstance(table.index, pd.RangeIndex):
        table = table.set_index(table.columns[0])
    if path.suffix != ".parquet":  # pandas renames the second of two equal names to "NAME.1"; the header knows better
        header = read_table(path, "counts", header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
        names = (
            header[-table.shape[1] :] if len(header) in (table.shape[1], table.shape[1] + 1) else list(table.columns)
        )
        table.columns = pd.Index(names)
    text = [str(name) for name, kind in zip(table.columns, table.dtypes, strict=True) if kind.kind not in "iufb"]
    if text:
        raise ValueError(f"{path.name}: column {text[0]!r} holds text. Allowed: counts. Correct or remove the column.")
    matrix = sp.csr_matrix(table.to_numpy())
    rows, columns = table.index.astype(str), table.columns.astype(str)
    if orientation == "genes" or (orientation == "auto" and _looks_like_genes(rows) and not _looks_like_genes(columns)):
        matrix, rows, columns = matrix.T.tocsr(), columns, rows
    return Counts(matrix, pd.Index(rows), make_genes(list(columns)), path.name)


def _looks_like_genes(names: pd.Index) -> bool:
    """Ensembl ids, or housekeeping genes of man or mouse among the names."""
    sample = set(names[:50000].str.upper())
    common = {"ACTB", "GAPDH", "B2M", "RPLP0", "RPS27", "RPL13", "EEF1A1", "TMSB4X", "MT-CO1"}
    return len(sample & common) >= 2 or float(names.str.match(r"ENS[A-Z]*G\d{6,}").mean()) > 0.5


def _read_h5ad(path: Path, layer: str | None) -> Counts:
    from .anndata_visium import open_anndata, raw_counts

    adata = open_anndata(path)
    matrix, var = raw_counts(adata, layer, path.stem)
    ids = next((var[name].astype(object).tolist() for name in ("gene_ids", "gene_id") if name in var), None)
    return Counts(matrix, adata.obs_names.astype(str), make_genes(list(var.index), ids), path.name)


def _neighbour(path: Path, prefix: str, *names: str) -> Path:
    tried = [path.parent / f"{prefix}{name}.tsv{suffix}" for name in names for suffix in (".gz", "")]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no {tried[0].name} (or {tried[1].name}) beside {path}. Put it there.")


def _only_genes(counts: Counts, kinds: np.ndarray | None, feature_type: str) -> Counts:
    """Leaves out antibodies, controls and the like."""
    if kinds is None or not (kinds == feature_type).any():
        return counts
    keep = kinds == feature_type
    if not keep.all():
        logger.info("%s: left out %d features that are no %s", counts.name, (~keep).sum(), feature_type)
    genes = counts.genes[keep].reset_index(drop=True)
    return Counts(counts.matrix[:, keep], counts.barcodes, genes, counts.name)
