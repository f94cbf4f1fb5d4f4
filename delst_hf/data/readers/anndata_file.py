"""What all readers of AnnData share: the file, its raw counts, its genes and its spots on tissue."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..counts import check_counts, describe_bad_counts, gene_features, make_genes, sum_duplicate_genes
from ..images import check_readable
from ..scratch import plain_file
from ..values import texts

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

# What scanpy, squidpy, cell2location, Seurat's converters and CELLxGENE call these columns of var, in lower case.
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "ensembl_ids", "ensemblid", "id")
_SYMBOL_COLUMNS = (
    "symbol",
    "gene_symbols",
    "gene_symbol",
    "feature_name",
    "gene_name",
    "gene_names",
    "gene_short_name",
    "name",
)
_TYPE_COLUMNS = ("feature_types", "feature_type")
_TRUE, _FALSE = (
    {"1", "1.0", "true", "t", "yes", "in"},
    {"0", "0.0", "false", "f", "no", "out", "nan", "none", "", "<na>"},
)


def open_anndata(path: str | Path) -> "AnnData":
    """Reads an .h5ad or .zarr.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: another suffix, or a damaged file.
    """
    import anndata

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}. Give the path of an .h5ad file or a .zarr folder.")
    path = plain_file(path) if path.is_file() else path
    if path.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"{path} is not an .h5ad file or .zarr folder. Write one with adata.write_h5ad(...).")
    if path.is_file():
        check_readable(path, "AnnData")
    try:
        return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"cannot read {path}: {error}. The file is truncated or no AnnData: write or download it again."
        ) from error


def raw_counts(adata: "AnnData", layer: str | None, slide_id: str) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Returns the chosen matrix as int32 counts (spots, genes), and its genes: gene_id, symbol; antibodies are left out.

    Raises:
        KeyError: no such layer.
        ValueError: values that are not counts; the message names the layers that are.
    """
    if layer is None:
        matrix, var = adata.X, adata.var
    elif layer == "raw" and adata.raw is not None:
        matrix, var = adata.raw.X, adata.raw.var
    elif layer in adata.layers:
        matrix, var = adata.layers[layer], adata.var
    else:
        raise KeyError(f"slide {slide_id!r}: no layer {layer!r}. Available: {_layers(adata)}; X is used without layer.")
    if matrix is None:
        raise ValueError(f"slide {slide_id!r}: X is empty. Choose a layer (--layer): {_layers(adata)}.")
    found = [
        name
        for name in _layers(adata)
        if describe_bad_counts(adata.raw.X if name == "raw" else adata.layers[name]) is None
    ]
    hint = (
        f"layers with counts in this file: {found}; choose with layer (--layer)"
        if found
        else ("give raw counts as X, adata.layers['counts'] or adata.raw; this file has none")
    )
    check_counts(matrix, slide_id, hint=hint)
    counts = sp.csr_matrix(matrix).astype(np.int32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    kinds, genes = _column(var, _TYPE_COLUMNS), _genes(var)
    keep = None if kinds is None else gene_features(kinds, slide_id)
    if keep is not None:
        counts, genes = counts[:, keep], genes[keep].reset_index(drop=True)
    return sum_duplicate_genes(counts, genes, slide_id)


def _layers(adata: "AnnData") -> list[str]:
    return sorted(adata.layers) + (["raw"] if adata.raw is not None else [])


def _genes(var: pd.DataFrame) -> pd.DataFrame:
    """The genes of var; its index may be symbols, with ids in a column, or Ensembl ids, with symbols in a column."""
    names = [str(name) for name in var.index]
    table = make_genes(names)
    if (table["gene_id"] != "").mean() > 0.5:  # the index is Ensembl ids
        symbols = _column(var, _SYMBOL_COLUMNS)
        return table if symbols is None else make_genes(symbols, names)
    return make_genes(names, _column(var, _ID_COLUMNS))


def _column(var: pd.DataFrame, names: tuple[str, ...]) -> list[str] | None:
    """The first column with one of these names, in any case; missing values are ""."""
    found = {str(column).lower(): column for column in reversed(list(var.columns))}
    column = next((found[name] for name in names if name in found), None)
    return None if column is None else texts(var[column])


def tissue_flags(values: Iterable[Any], what: str) -> np.ndarray:
    """Which rows (rows,) bool are on tissue, by a column of numbers, booleans or text.

    Args:
        values: the column.
        what: the file and its column, for the message.

    Raises:
        ValueError: a value that says neither.
    """
    told = pd.Series([text.strip().lower() for text in texts(values)])
    odd = sorted(set(told) - _TRUE - _FALSE)
    if odd:
        raise ValueError(f"{what} holds {odd[0]!r}. Allowed: 1 or 0, True or False. Correct the column.")
    return told.isin(_TRUE).to_numpy()


def on_tissue(obs: pd.DataFrame, name: str) -> np.ndarray:
    """Spots on tissue (spots,) bool by obs["in_tissue"], which tools write as numbers, booleans, text or categories.

    Raises:
        ValueError: a value that says neither.
    """
    if "in_tissue" not in obs:
        return np.ones(len(obs), dtype=bool)
    keep = tissue_flags(obs["in_tissue"], f"{name}: obs['in_tissue']")
    if not keep.all():
        logger.info("%s: left out %d spots that are not in_tissue", name, (~keep).sum())
    return keep
