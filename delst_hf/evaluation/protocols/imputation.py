"""Predict expression by retrieval, as BLEEP does: average the training spots whose gene embeddings are nearest to an image."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse

from ..evidence import Space
from ..expression import gene_pearson
from ..findings import Findings
from ..neighbours import most_similar
from ..predicted_genes import most_variable_genes
from ..preparation import finite_matrix
from ..resampled import pearson_statistic
from ..retrieval import as_inner_product
from ..uncertainty import Statistic
from . import Protocol

IMPUTED_GENES = 100
NEIGHBOURS = 20
# Many images retrieve the same few spots, so a single shuffle scores up to 0.1 by chance (HER2ST, 0.04 is the deviation).
SHUFFLES = 20
# Fitting spots, spots to predict, and the share of each of the former in the prediction of each of the latter.
Shares = list[tuple[np.ndarray, np.ndarray, sparse.csr_matrix]]


def impute_by_retrieval(
    query_embeds: ArrayLike,
    target_embeds: ArrayLike,
    target_expression: ArrayLike,
    geometry: str,
    curvature: float | None = None,
    k: int = 20,
) -> np.ndarray:
    """Predict the expression of each image as the mean profile of the k spots with the nearest gene embeddings (as BLEEP).

    Args:
        query_embeds: (queries, dim) image embeddings of spots whose expression is wanted.
        target_embeds: (targets, dim) gene embeddings of spots whose expression is known: training spots.
        target_expression: (targets, genes).
        geometry: "cosine", "euclidean" or "lorentz".
        curvature: Positive c, for "lorentz".
        k: Number of neighbours; all targets where there are fewer.

    Returns:
        (queries, genes), to be scored by `gene_pearson`.

    Raises:
        ValueError: If k is not positive, or target embeddings and expression differ in number.

    Examples:
        >>> impute_by_retrieval([[1.0, 0.0]], np.eye(2), [[5.0], [7.0]], "cosine", k=1).tolist()
        [[5.0]]
    """
    known, number = finite_matrix(target_expression, "target_expression"), len(np.asarray(target_embeds))
    if len(known) != number:
        raise ValueError(
            f"{number} target_embeds and {len(known)} rows of target_expression; pass both for the same spots."
        )
    if k < 1:
        raise ValueError(f"k is {k}; allowed is 1 or more. 20 neighbours are usual.")
    return _shares(query_embeds, target_embeds, geometry, curvature, k) @ known


def _shares(
    query_embeds: ArrayLike, target_embeds: ArrayLike, geometry: str, curvature: float | None, k: int
) -> sparse.csr_matrix:
    """Return the share of each target in the prediction of each query (queries, targets): equal for the k nearest ones."""
    queries, targets = finite_matrix(query_embeds, "query_embeds"), finite_matrix(target_embeds, "target_embeds")
    left, right = as_inner_product(queries, targets, geometry, curvature)
    nearest = np.concatenate([near for _, near in most_similar(left, right, k)])
    starts = np.arange(0, nearest.size + 1, nearest.shape[1])
    shape = len(queries), len(targets)
    return sparse.csr_matrix((np.full(nearest.size, 1 / nearest.shape[1]), nearest.reshape(-1), starts), shape)


def variable_expression(findings: Findings) -> tuple[np.ndarray, np.ndarray]:
    """Return the most variable genes as columns, and their log-normalised expression (spots, genes)."""
    number = min(IMPUTED_GENES, len(findings.spots.genes))
    columns = most_variable_genes(findings.log_expression, number, findings.spots.reference)
    return columns, findings.log_expression[:, columns].toarray()


def fold_shares(findings: Findings, space: Space) -> Shares:
    """Retrieve for each image the spots of other groups whose genes are nearest, fold by fold."""
    where = space.geometry, space.curvature, NEIGHBOURS
    return [
        (fit, scored, _shares(space.image[scored], space.gene[fit], *where)) for fit, scored in findings.spots.folds
    ]


def imputed(expression: np.ndarray, shares: Shares, seed: int | None = None) -> np.ndarray:
    """Return expression (spots, genes) predicted from other groups, NaN where there are none; a seed shuffles the pairs."""
    predicted = np.full(expression.shape, np.nan)
    for fit, scored, share in shares:
        known = expression[fit]
        predicted[scored] = share @ (known if seed is None else np.random.default_rng(seed).permutation(known))
    return predicted


def run(findings: Findings) -> None:
    """Score the expression imputed for test images, and that imputed from shuffled pairs, over many shuffles."""
    space, spots, rows = findings.need_space(), findings.spots, findings.test_rows
    columns, expression = variable_expression(findings)
    findings.facts["imputation"] = {"genes": [spots.genes[i] for i in columns]}
    shares, measured = fold_shares(findings, space), expression[rows]
    varying = {"num_genes": float(np.isfinite(gene_pearson(measured, measured)).sum())}

    def statistics(seed: int | None = None) -> dict[str, Statistic]:
        both = imputed(expression, shares, seed)[rows], measured
        return {
            "imputation_pearson": pearson_statistic(*both, np.zeros(len(rows))),
            "imputation_pearson_within": pearson_statistic(*both, spots.slides[rows]),
        }

    findings.add("imputation", space.name, varying, statistics(), rows, own=True)
    shuffles = range(findings.seed, findings.seed + SHUFFLES)
    repeats = pd.DataFrame(
        [{name: statistic(np.arange(len(rows))) for name, statistic in statistics(seed).items()} for seed in shuffles]
    )
    controls = {**varying, **repeats.mean(skipna=False), **repeats.std(skipna=False).add_suffix("_sd")}
    findings.add("imputation", f"{space.name}, shuffled pairs", controls, own=False, control=True)


PROTOCOL = Protocol(
    name="imputation",
    run=run,
    title="Expression, imputation by retrieval",
    headline="imputation_pearson",
    shown=("imputation_pearson_within",),
    chance={"imputation_pearson": 0.0, "imputation_pearson_within": 0.0},
    task="expression-prediction",
    note="An image is given the mean expression of the 20 training spots with the nearest gene embeddings. Nothing is fitted. "
    f"± is the standard deviation over {SHUFFLES} shuffles.",
    drawn=("",),
)
