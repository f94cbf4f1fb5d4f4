"""Choose the genes to predict: the most variable ones, or those of HEST-Benchmark."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from .preparation import finite_matrix, group_names, row_blocks

HEST_GENES = 50


def most_variable_genes(values: Any, num_genes: int = 100, rows: np.ndarray | None = None) -> np.ndarray:
    """Choose the genes of highest variance. Pass training spots only, or the choice leaks.

    Args:
        values: (spots, genes) log-normalised expression, dense or sparse.
        num_genes: Number of genes to choose.
        rows: (spots,) bool, the training spots; all by default. Rows of a sparse matrix are not copied.

    Returns:
        (num_genes,) column indices, most variable first; equal variances in the order of the columns.

    Raises:
        ValueError: If fewer than `num_genes` genes are there, or `values` are empty or not finite.

    Examples:
        >>> most_variable_genes(np.array([[0.0, 1.0, 5.0], [1.0, 1.0, 0.0]]), num_genes=2).tolist()
        [2, 0]
    """
    num_columns = values.shape[1] if len(values.shape) == 2 else 0
    if not 1 <= num_genes <= num_columns:
        raise ValueError(
            f"num_genes is {num_genes}; allowed is 1 to {num_columns}, the genes of these values. "
            "Ask for fewer genes, as with --num-genes, when the panel is small."
        )
    if sparse.issparse(values):
        mean, square = _column_moments(sparse.csr_matrix(values), rows)
        variance = square - mean**2
    else:
        variance = finite_matrix(values if rows is None else np.asarray(values)[rows], "values").var(axis=0)
    return _highest(variance, num_genes)


def most_variable_of_blocks(blocks: Iterable[tuple[np.ndarray, np.ndarray]], num_genes: int = 100) -> np.ndarray:
    """Choose as `most_variable_genes` does, in one pass over blocks of rows; a gene varies over the spots that measure it.

    Args:
        blocks: Pairs of log-normalised expression (rows, genes) and bool (rows, genes), where it was measured.
        num_genes: Number of genes to choose; all where there are fewer.

    Returns:
        (num_genes,) column indices, most variable first; equal variances in the order of the columns.

    Examples:
        >>> values, measured = np.array([[0.0, 1.0, 5.0], [1.0, 1.0, 0.0]]), np.array([[True] * 3, [True, True, False]])
        >>> most_variable_of_blocks([(values[:1], measured[:1]), (values[1:], measured[1:])], num_genes=2).tolist()
        [0, 1]
    """
    count, total, square = np.zeros((3, 1))
    for values, measured in blocks:
        known = np.where(measured, values, 0.0).astype(np.float64)
        count, total, square = count + measured.sum(axis=0), total + known.sum(axis=0), square + (known**2).sum(axis=0)
    seen = np.maximum(count, 1)
    return _highest(square / seen - (total / seen) ** 2, num_genes)


def _highest(variance: np.ndarray, num_genes: int) -> np.ndarray:
    return np.argsort(-variance, kind="stable")[:num_genes]


def _column_moments(matrix: sparse.csr_matrix, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of columns and of their squares (columns,) float64 over some rows, a block of rows at a time.

    Sums run row by row, as in scipy, so the size of the blocks makes no difference.
    """
    share = 1.0 / (matrix.shape[0] if rows is None else int(rows.sum()))
    mean, square = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1])
    for block in row_blocks(matrix):
        part = matrix[block] if rows is None else matrix[block][rows[block]]
        if part.nnz:
            data = finite_matrix(part.data.reshape(-1, 1), "values").reshape(-1)
            np.add.at(mean, part.indices, data * share)
            np.add.at(square, part.indices, data * data * share)
    return mean, square


def hest_genes(
    counts: Any, slides: Sequence[Any] | np.ndarray, genes: Sequence[str], num_genes: int = HEST_GENES
) -> list[str]:
    """Return the benchmark's genes: of those expressed in a tenth of the spots of every slide, the most dispersed.

    The dispersion is scanpy's default ("seurat"): log of variance / mean of counts, as a z-score among genes of a similar mean
    (20 bins), as scanpy 1.10 computes it from log1p data, whose expm1 are the counts. The benchmark chooses from all slides,
    test slides included; pass the counts of training slides only to avoid that leak.

    Args:
        counts: (spots, genes) raw counts, dense or sparse.
        slides: (spots,) the slide of each spot.
        genes: (genes,) names; those with "BLANK" or "Control" in them are left out.
        num_genes: Number of genes to choose.

    Returns:
        Names, in alphabetical order as in the benchmark.

    Raises:
        ValueError: If fewer genes than asked for are expressed in a tenth of every slide.

    Examples:
        >>> counts = np.random.default_rng(0).poisson([1, 5, 20], size=(40, 3))
        >>> hest_genes(counts, ["a"] * 20 + ["b"] * 20, ["ACTB", "CD3E", "ERBB2"], num_genes=2)
        ['ACTB', 'CD3E']
    """
    dense = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts, dtype=np.float64)
    names, order = group_names(slides, len(dense), "slides"), np.argsort(np.asarray(genes, dtype=str), kind="stable")
    common = np.array(["BLANK" not in gene and "Control" not in gene for gene in genes])
    for slide in np.unique(names):
        part = dense[names == slide]
        common &= (part > 0).sum(axis=0) >= np.ceil(0.10 * len(part))
    kept = [index for index in order if common[index]]
    if len(kept) < num_genes:
        raise ValueError(
            f"{len(kept)} genes are expressed in 10 % of the spots of every slide; {num_genes} were asked for. Ask for fewer "
            "genes, or leave a shallow slide out."
        )
    mean, variance = dense[:, kept].mean(axis=0), dense[:, kept].var(axis=0, ddof=1)
    dispersion = np.log(np.maximum(variance, 1e-12) / mean)
    location = np.log1p(mean)
    edges = np.linspace(location.min(), location.max(), 21)
    bins = np.clip(np.searchsorted(edges, location, side="left"), 1, 20)
    peers = pd.Series(dispersion).groupby(bins)
    scaled = (dispersion - peers.transform("mean")) / peers.transform("std")
    scaled = scaled.mask(
        peers.transform("size") == 1, 1.0
    ).to_numpy()  # a gene alone in its bin is scored 1, as scanpy does
    chosen = sorted(np.argsort(-scaled, kind="stable")[:num_genes])
    return [str(genes[kept[index]]) for index in chosen]
