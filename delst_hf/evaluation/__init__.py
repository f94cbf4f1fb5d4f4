"""Evaluations of embeddings: numpy arrays in, a flat dict of numbers out, and no model class anywhere.

Whatever is fitted (scalers, gene choice, penalties) is fitted on training rows only.
"""

from .baselines import COLOUR_STATISTICS, colour_statistics, permutation_within, shuffled
from .expression import (
    RidgePrediction,
    expression_prediction,
    gene_pearson,
    log_normalize,
    most_variable_genes,
    ridge_prediction,
)
from .linear_probe import linear_probe, macro_f1
from .preparation import FlooredScaler, group_folds
from .retrieval import bidirectional_retrieval, retrieval

__all__ = [
    "COLOUR_STATISTICS",
    "FlooredScaler",
    "RidgePrediction",
    "bidirectional_retrieval",
    "colour_statistics",
    "expression_prediction",
    "gene_pearson",
    "group_folds",
    "linear_probe",
    "log_normalize",
    "macro_f1",
    "most_variable_genes",
    "permutation_within",
    "retrieval",
    "ridge_prediction",
    "shuffled",
]
