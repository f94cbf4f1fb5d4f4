"""What all readers of AnnData share: the file, its raw counts, its genes and its spots on tissue."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ...errors import reading
from ..counts import (
    as_counts,
    check_counts,
    check_places,
    describe_bad_counts,
    make_genes,
    with_whole_indices,
)
from ..declared import check_hdf5, check_zarr
from ..features import holds_ids, holds_ids_of_genes, holds_symbols
from ..files import without
from ..images import check_readable
from ..notes import Notes
from ..scratch import PACKED, plain_file
from ..values import texts
from .tables import TRUE

if TYPE_CHECKING:
    from anndata import AnnData

# Names of these columns of var in scanpy, squidpy, cell2location, Seurat's converters, BioMart and CELLxGENE, in lower case
# and without separators.
_ID_COLUMNS = (
    "geneids", "geneid", "ensemblid", "ensemblgeneid", "ensembl", "ensemblids", "genestableid", "featureid", "id",
)  # fmt: skip
_SYMBOL_COLUMNS = (
    "symbol", "genesymbols", "genesymbol", "featurename", "genename", "genenames", "geneshortname", "externalgenename",
    "hgncsymbol", "mgisymbol", "symbols", "name",
)  # fmt: skip
_TYPE_COLUMNS = (
    "featuretypes", "featuretype", "featurebiotype", "modality", "genetype", "genebiotype", "biotype", "assay",
)  # fmt: skip
_INCLUDED_COLUMNS, _FILTERED_COLUMNS = ("filteredprobes", "included"), ("featureisfiltered",)


def open_anndata(path: str | Path) -> "AnnData":
    """Read an .h5ad or .zarr.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: another suffix, or a damaged file.
    """
    import anndata

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}. Give the path of an .h5ad file or a .zarr folder.")
    if not without(path.name, PACKED).endswith((".h5ad", ".zarr")):
        raise ValueError(
            f"{path} is not an .h5ad file or .zarr folder. Write one with adata.write_h5ad(...), in R with "
            "anndataR or zellkonverter."
        )
    path = plain_file(path) if path.is_file() else path
    if path.is_file():
        check_readable(path, "AnnData")
    with reading(path, "AnnData"):
        check_zarr(path) if path.is_dir() else _check_h5ad(path)
        adata = anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)
        check_places(adata.X, f"{path}: X")
        for name, matrix in _layers(adata).items():
            check_places(matrix, f"{path}: {name}")
        return adata


def _check_h5ad(path: Path) -> None:
    """Refuse impossible sizes, and a matrix X without the attribute that says how it is stored."""
    import h5py

    check_hdf5(path)
    with h5py.File(path, "r") as file:
        matrix = file.get("X")
        if isinstance(matrix, h5py.Group) and not {"encoding-type", "h5sparse_format"} & set(matrix.attrs):
            raise ValueError(
                f"{path}: X is a group {sorted(matrix)} without the attribute 'encoding-type', so its storage format is "
                "unknown. Write the file again, in Python with adata.write_h5ad, in R with anndataR or zellkonverter."
            )


def raw_counts(
    adata: "AnnData", layer: str | None, slide_id: str, notes: Notes | None = None
) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Return the chosen matrix as int32 counts (spots, genes), and its genes: gene_id, symbol; antibodies are left out.

    Args:
        adata: the AnnData.
        layer: the layer, "raw" for adata.raw; None for X.
        slide_id: for messages.
        notes: where to note the other layers with whole numbers, for `warn_of_unlikely_counts`.

    Raises:
        KeyError: no such layer.
        ValueError: values that are not counts; the message names the layers that are.
    """
    layers = _layers(adata)
    if layer is not None and layer not in layers:
        raise KeyError(f"slide {slide_id!r}: no layer {layer!r}. Available: {list(layers)}; without --layer X is used.")
    matrix = adata.X if layer is None else layers[layer]
    if matrix is None:
        raise ValueError(f"slide {slide_id!r}: X is empty. Choose a layer (--layer): {list(layers)}.")
    found = [name for name, values in layers.items() if describe_bad_counts(values) is None]
    matrix = with_whole_indices(matrix, f"slide {slide_id!r}: the matrix")
    hint = (
        f"layers with counts in this file: {found}; choose one (--layer)"
        if found
        else ("give raw counts as X, adata.layers['counts'] or adata.raw; this file has none")
    )
    check_counts(matrix, slide_id, hint=hint)
    counts = as_counts(matrix)
    if notes is not None:
        notes.other_layers = [name for name in found if name != layer]
    return counts, _genes(adata.raw.var if layer == "raw" and adata.raw is not None else adata.var, counts)


def _layers(adata: "AnnData") -> dict[str, Any]:
    """Return the layers of a file by name, and adata.raw as "raw"; X, which has no name, is left out."""
    names = sorted(name for name in adata.layers if name is not None)  # from anndata 0.13 on, None is X
    return {name: adata.layers[name] for name in names} | ({"raw": adata.raw.X} if adata.raw is not None else {})


def _genes(var: pd.DataFrame, counts: sp.csr_matrix) -> pd.DataFrame:
    """Return the features of var; its index may be symbols, with ids in a column, or ids, with symbols in a column."""
    names = [str(name) for name in var.index]
    ids, symbols = _column(var, _ID_COLUMNS) or _column_of(var, holds_ids_of_genes), _column(var, _SYMBOL_COLUMNS)
    if holds_ids(names):
        symbols = symbols or _column_of(var, lambda column: holds_symbols(column) and not holds_ids(column))
        ids, names = (ids if ids is not None and not holds_ids_of_genes(names) else names), symbols or [""] * len(names)
    included: Sequence[object] | None = _column(var, _INCLUDED_COLUMNS)
    filtered = _column(var, _FILTERED_COLUMNS)
    if filtered is not None:  # CELLxGENE: the counts of these genes were emptied, not measured as zero
        empty = np.asarray(counts.sum(axis=0, dtype=np.int64)).ravel() == 0
        measured = [value.lower() not in TRUE or not none for value, none in zip(filtered, empty, strict=True)]
        included = measured if included is None else included
    return make_genes(names, ids, feature_type=_column(var, _TYPE_COLUMNS), included=included)


def _column_of(var: pd.DataFrame, what: Callable[[list[str]], bool]) -> list[str] | None:
    """Return the first text column whose values fulfil `what`, whatever its name; missing values are ""."""
    named = (texts(var[column]) for column in var if var[column].dtype.kind not in "biufc")
    return next((names for names in named if what(names)), None)


def _column(var: pd.DataFrame, names: tuple[str, ...]) -> list[str] | None:
    """Return the first column with one of these names, in any case and with any separators; missing values are ""."""
    found = {re.sub(r"[\W_]", "", str(column)).lower(): column for column in reversed(list(var.columns))}
    column = next((found[name] for name in names if name in found), None)
    return None if column is None else texts(var[column])
