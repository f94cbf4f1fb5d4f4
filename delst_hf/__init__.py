"""DELST for the Hugging Face ecosystem: hyperbolic image-gene pretraining on spatial transcriptomics.

Importing the package registers its classes with transformers' auto classes, so it takes as long as importing AutoModel and
AutoProcessor. Everything else is loaded on first use. The `delst` command registers when a command needs it (see the end).
"""

import importlib
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.collator import DelstCollator
    from .data.dataset import write_dataset
    from .data.slide import Slide
    from .data.study import Study
    from .evaluation.embed import embed
    from .evaluation.run import evaluate_checkpoint
    from .model.configuration_delst import DelstConfig, DelstGeneConfig
    from .model.feature_extraction_delst import DelstGeneFeatureExtractor
    from .model.modeling_delst import DelstGeneModel, DelstModel, DelstOutput
    from .model.modeling_delst_heads import DelstForGeneExpressionPrediction, DelstForSpotClassification
    from .model.processing_delst import DelstProcessor
    from .pipelines import GeneExpressionPipeline, SpotEmbeddingPipeline
    from .pretraining.arguments import DataArguments, DelstTrainingArguments, ModelArguments
    from .pretraining.run import assemble, pretrain, save_run
    from .pretraining.trainer import DelstTrainer

__version__ = "0.1.0"

_NAMES = {
    "data.collator": ("DelstCollator",),
    "data.dataset": ("write_dataset",),
    "data.slide": ("Slide",),
    "data.study": ("Study",),
    "evaluation.embed": ("embed",),
    "evaluation.run": ("evaluate_checkpoint",),
    "model.configuration_delst": ("DelstConfig", "DelstGeneConfig"),
    "model.feature_extraction_delst": ("DelstGeneFeatureExtractor",),
    "model.modeling_delst": ("DelstGeneModel", "DelstModel", "DelstOutput"),
    "model.modeling_delst_heads": ("DelstForGeneExpressionPrediction", "DelstForSpotClassification"),
    "model.processing_delst": ("DelstProcessor",),
    "pipelines": ("GeneExpressionPipeline", "SpotEmbeddingPipeline"),
    "pretraining.arguments": ("DataArguments", "DelstTrainingArguments", "ModelArguments"),
    "pretraining.run": ("assemble", "pretrain", "save_run"),
    "pretraining.trainer": ("DelstTrainer",),
}
_LAZY = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "DataArguments",
    "DelstCollator",
    "DelstConfig",
    "DelstForGeneExpressionPrediction",
    "DelstForSpotClassification",
    "DelstGeneConfig",
    "DelstGeneFeatureExtractor",
    "DelstGeneModel",
    "DelstModel",
    "DelstOutput",
    "DelstProcessor",
    "DelstTrainer",
    "DelstTrainingArguments",
    "GeneExpressionPipeline",
    "ModelArguments",
    "Slide",
    "SpotEmbeddingPipeline",
    "Study",
    "assemble",
    "embed",
    "evaluate_checkpoint",
    "pretrain",
    "save_run",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        importlib.import_module(".registration", __name__)
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _registers_later() -> bool:
    """Tell whether this process is a program of this package or a worker of one, which register only when they need to."""
    program, words = sys.argv[0] if sys.argv else "", sys.orig_argv
    as_module = any(pair in _MODULES for pair in itertools.pairwise(words))
    return (
        as_module
        or os.path.basename(program) in ("delst", "delst.exe")
        or program.endswith(_CLI_FILE)
        or os.path.realpath(program) in _SCRIPTS
    )


# Python runs this file before those of the programs, and nobody uses a command whose help, or whose answer to a misspelt
# option, takes ten seconds. So only the programs skip registration here: `cli.main` imports it for the commands that load
# models, the scripts in their `main`, and `__getattr__` for everybody.
_MODULES = (("-m", "delst_hf.cli"), ("-m", "delst_hf.pretraining"))
_CLI_FILE = os.path.join("delst_hf", "cli.py")
_HERE = os.path.dirname(os.path.realpath(__file__))
_SCRIPTS = [os.path.join(os.path.dirname(_HERE), "training", f"{name}.py") for name in ("pretrain", "evaluate")]
if not _registers_later():
    from . import registration as registration
