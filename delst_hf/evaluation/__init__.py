"""Evaluations of embeddings: numpy arrays in, a flat dict of numbers out, and no model class anywhere.

Whatever is fitted (scalers, gene choice, penalties) is fitted on training rows only.
"""

from .baselines import COLOUR_STATISTICS, colour_statistics, permutation_within, shuffled
from .domains import spatial_domains
from .expression import (
    RidgePrediction,
    expression_prediction,
    gene_pearson,
    log_normalize,
    most_variable_genes,
    ridge_prediction,
)
from .expression_protocols import expression_protocol, hest_genes
from .hierarchy_report import hierarchy_report
from .linear_probe import linear_probe, macro_f1
from .preparation import FlooredScaler, group_folds
from .probes import label_probe
from .retrieval import bidirectional_retrieval, retrieval, retrieval_within
from .signatures import impute_by_retrieval, region_auroc, signature_map, signature_profile
from .stimage1k4m import stimage1k4m_probe
from .uncertainty import Bootstrap

__all__ = [
    "COLOUR_STATISTICS",
    "Bootstrap",
    "FlooredScaler",
    "RidgePrediction",
    "bidirectional_retrieval",
    "colour_statistics",
    "expression_prediction",
    "expression_protocol",
    "gene_pearson",
    "group_folds",
    "hest_genes",
    "hierarchy_report",
    "impute_by_retrieval",
    "label_probe",
    "linear_probe",
    "log_normalize",
    "macro_f1",
    "most_variable_genes",
    "permutation_within",
    "region_auroc",
    "retrieval",
    "retrieval_within",
    "ridge_prediction",
    "shuffled",
    "signature_map",
    "signature_profile",
    "spatial_domains",
    "stimage1k4m_probe",
]
