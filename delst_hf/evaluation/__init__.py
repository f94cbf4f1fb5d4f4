"""Evaluations of embeddings: arrays in, numbers with intervals out.

`run` scores a checkpoint, a backbone or given embeddings on a study by every protocol of `protocols`. Whatever is fitted
(scalers, gene choice, penalties) is fitted on training rows only. Modules are loaded on first use, so that importing one
does not import scikit-learn for all.
"""

import importlib
from typing import Any

_NAMES = {
    ".model.feature_extraction_delst": ("log_normalize",),
    "baselines": ("COLOUR_STATISTICS", "colour_statistics", "permutation_within", "shuffled"),
    "expression": (
        "RidgePrediction",
        "expression_prediction",
        "gene_pearson",
        "ridge_prediction",
    ),
    "linear_probe": ("linear_probe", "macro_f1"),
    "predicted_genes": ("hest_genes", "most_variable_genes"),
    "preparation": ("FlooredScaler", "group_folds"),
    "protocols.domains": ("spatial_domains",),
    "protocols.hest": ("expression_protocol",),
    "protocols.hierarchy": ("hierarchy_report",),
    "protocols.imputation": ("impute_by_retrieval",),
    "protocols.probes": ("label_probe",),
    "protocols.robustness": ("robustness_index",),
    "protocols.signatures": ("signature_map", "signature_profile"),
    "protocols.stimage1k4m": ("stimage1k4m_probe",),
    "resampled": ("region_auroc",),
    "retrieval": ("bidirectional_retrieval", "retrieval", "retrieval_within"),
    "uncertainty": ("Bootstrap",),
}
_LAZY = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
