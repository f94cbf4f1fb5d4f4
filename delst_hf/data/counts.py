"""What counts may be, and the table of their genes."""

import logging
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

logger = logging.getLogger(__name__)

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?")
GENE_EXPRESSION = "Gene Expression"
_MAX_COUNT = np.iinfo(np.int32).max


def describe_bad_counts(counts: Any) -> str | None:
    """Says what keeps a matrix (dense or sparse) from being raw counts; None when it is."""
    values = counts.data if sp.issparse(counts) else np.asarray(counts)
    if values.dtype.kind not in "iufb":
        return f"values of type {values.dtype}"
    if values.size == 0 or values.dtype.kind == "b":
        return None
    if values.dtype.kind == "f":
        undefined = int((~np.isfinite(values)).sum())
        if undefined:
            return f"{undefined} values are NaN or infinite"
    if values.min() < 0:
        return f"{int((values < 0).sum())} values are negative, the smallest {values.min():g}; it looks already scaled"
    if values.dtype.kind == "f":
        fractions = values[values != np.floor(values)]
        if fractions.size:
            found = f"{fractions.size} values are not whole numbers, e.g. {fractions[0]:g}"
            return f"{found}; it looks already normalised or log-transformed"
    return f"the largest value is {values.max():g}, above {_MAX_COUNT}" if values.max() > _MAX_COUNT else None


def check_counts(
    counts: Any, slide_id: str, hint: str = "give raw counts, e.g. adata.layers['counts'] or adata.raw"
) -> None:
    """Raises a ValueError that ends in `hint` unless the matrix (dense or sparse) holds raw counts."""
    problem = describe_bad_counts(counts)
    if problem:
        raise ValueError(
            f"slide {slide_id!r}: these are not counts: {problem}. Allowed: whole numbers from 0. Next: {hint}."
        )


def make_genes(names: Sequence[str], gene_ids: Sequence[str] | None = None) -> pd.DataFrame:
    """Makes the gene table of a Slide; without ids, names that look like Ensembl gene ids are taken as ids."""
    symbols = pd.Series(names, dtype=object).astype(str)
    if gene_ids is not None:
        ids = pd.Series(gene_ids, dtype=object).fillna("").astype(str)
    else:
        is_id = symbols.map(lambda name: _ENSEMBL.fullmatch(name) is not None)
        ids, symbols = symbols.where(is_id, ""), symbols.where(~is_id, "")
    return pd.DataFrame({"gene_id": ids.to_numpy(), "symbol": symbols.to_numpy()})


def sum_duplicate_genes(
    counts: sp.csr_matrix, genes: pd.DataFrame, slide_id: str
) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Adds up the columns of genes that share both gene_id and symbol, with a warning."""
    group = genes.groupby(["gene_id", "symbol"], sort=False).ngroup().to_numpy()
    if len(group) == group.max(initial=-1) + 1:
        return counts, genes
    first = ~pd.Series(group).duplicated().to_numpy()
    repeated = genes[~first].iloc[0]
    logger.warning(
        "%s: summed %d duplicated gene columns, e.g. %s",
        slide_id,
        (~first).sum(),
        repeated["symbol"] or repeated["gene_id"],
    )
    summing = sp.csr_matrix((np.ones(len(group), counts.dtype), (np.arange(len(group)), group)))
    return (counts @ summing).tocsr(), genes[first].reset_index(drop=True)


def gene_features(kinds: Collection[str], name: str) -> np.ndarray | None:
    """Which features (features,) are genes by their type; None where all are, or no type says so."""
    keep = np.asarray([str(kind) == GENE_EXPRESSION for kind in kinds])
    if keep.all() or not keep.any():
        return None
    logger.info("%s: left out %d features that are no %s", name, (~keep).sum(), GENE_EXPRESSION)
    return keep
