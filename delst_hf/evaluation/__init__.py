"""Evaluations of embeddings: arrays in, numbers with intervals out.

`run` scores a checkpoint, a backbone or given embeddings on a study by every protocol of `protocols`. Whatever is fitted
(scalers, gene choice, penalties) is fitted on training rows only. Modules are loaded on first use, so that importing one
does not import scikit-learn for all.
"""

import importlib
from typing import Any

_LAZY = {
    "Bootstrap": "uncertainty",
    "COLOUR_STATISTICS": "baselines",
    "FlooredScaler": "preparation",
    "RidgePrediction": "expression",
    "bidirectional_retrieval": "retrieval",
    "colour_statistics": "baselines",
    "expression_prediction": "expression",
    "expression_protocol": "protocols.hest",
    "gene_pearson": "expression",
    "group_folds": "preparation",
    "hest_genes": "protocols.hest",
    "hierarchy_report": "protocols.hierarchy",
    "impute_by_retrieval": "protocols.imputation",
    "label_probe": "protocols.probes",
    "linear_probe": "linear_probe",
    "log_normalize": ".model.feature_extraction_delst",
    "macro_f1": "linear_probe",
    "most_variable_genes": "expression",
    "permutation_within": "baselines",
    "region_auroc": "resampled",
    "retrieval": "retrieval",
    "retrieval_within": "retrieval",
    "ridge_prediction": "expression",
    "robustness_index": "protocols.robustness",
    "shuffled": "baselines",
    "signature_map": "protocols.signatures",
    "signature_profile": "protocols.signatures",
    "spatial_domains": "protocols.domains",
    "stimage1k4m_probe": "protocols.stimage1k4m",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
