"""Predict expression by retrieval, as BLEEP does: average the training spots whose gene embeddings are nearest to an image."""

import numpy as np
from numpy.typing import ArrayLike

from ..evidence import Space
from ..expression import gene_pearson
from ..findings import Findings
from ..neighbours import most_similar
from ..predicted_genes import most_variable_genes
from ..preparation import finite_matrix
from ..resampled import pearson_statistic
from ..retrieval import as_inner_product
from . import Protocol

IMPUTED_GENES = 100
NEIGHBOURS = 20


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
    queries, targets = finite_matrix(query_embeds, "query_embeds"), finite_matrix(target_embeds, "target_embeds")
    known = finite_matrix(target_expression, "target_expression")
    if len(known) != len(targets):
        raise ValueError(
            f"{len(targets)} target_embeds and {len(known)} rows of target_expression; pass both for the same spots."
        )
    if k < 1:
        raise ValueError(f"k is {k}; allowed is 1 or more. 20 neighbours are usual.")
    left, right = as_inner_product(queries, targets, geometry, curvature)
    predicted = np.empty((len(queries), known.shape[1]))
    for rows, nearest in most_similar(left, right, k):
        predicted[rows] = known[nearest].mean(axis=1)
    return predicted


def variable_expression(findings: Findings) -> tuple[np.ndarray, np.ndarray]:
    """Return the most variable genes as columns, and their log-normalised expression (spots, genes)."""
    number = min(IMPUTED_GENES, len(findings.spots.genes))
    columns = most_variable_genes(findings.log_expression, number, findings.spots.reference)
    return columns, findings.log_expression[:, columns].toarray()


def imputed(findings: Findings, space: Space, expression: np.ndarray, shuffle: bool = False) -> np.ndarray:
    """Return expression (spots, genes) predicted for each image from spots of other groups, NaN where there are none."""
    predicted = np.full(expression.shape, np.nan)
    for fit, scored in findings.spots.folds:
        known = expression[fit]
        known = known[np.random.default_rng(findings.seed).permutation(len(fit))] if shuffle else known
        predicted[scored] = impute_by_retrieval(
            space.image[scored], space.gene[fit], known, space.geometry, space.curvature, NEIGHBOURS
        )
    return predicted


def run(findings: Findings) -> None:
    """Score the expression imputed for test images, and that imputed from shuffled pairs."""
    space, spots, rows = findings.need_space(), findings.spots, findings.test_rows
    columns, expression = variable_expression(findings)
    findings.facts["imputation"] = {"genes": [spots.genes[i] for i in columns]}
    for arm, shuffle in ((space.name, False), (f"{space.name}, shuffled pairs", True)):
        predicted = imputed(findings, space, expression, shuffle)
        both = predicted[rows], expression[rows]
        statistics = {
            "imputation_pearson": pearson_statistic(*both, np.zeros(len(rows))),
            "imputation_pearson_within": pearson_statistic(*both, spots.slides[rows]),
        }
        varying = {"num_genes": float(np.isfinite(gene_pearson(*both)).sum())}
        findings.add("imputation", arm, varying, statistics, rows, own=not shuffle, control=shuffle)


PROTOCOL = Protocol(
    name="imputation",
    run=run,
    title="Expression, imputation by retrieval",
    headline="imputation_pearson",
    shown=("imputation_pearson_within",),
    chance={"imputation_pearson": 0.0, "imputation_pearson_within": 0.0},
    task="expression-prediction",
    note="An image is given the mean expression of the 20 training spots with the nearest gene embeddings. Nothing is fitted.",
    drawn=("",),
)
