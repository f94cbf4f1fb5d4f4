"""DELST for the Hugging Face ecosystem: hyperbolic image-gene pretraining on spatial transcriptomics.

Importing the package registers its classes with transformers' auto classes, which costs what importing those costs. The data
room, the trainer and the evaluation are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_delst import DelstConfig, DelstGeneConfig
from .model.feature_extraction_delst import DelstGeneFeatureExtractor
from .model.modeling_delst import DelstGeneModel, DelstModel, DelstOutput
from .model.modeling_delst_heads import DelstForGeneExpressionPrediction, DelstForSpotClassification
from .model.processing_delst import DelstProcessor
from .pipelines import GeneExpressionPipeline, SpotEmbeddingPipeline

if TYPE_CHECKING:
    from .data.collator import DelstCollator
    from .data.dataset import write_dataset
    from .data.slide import Slide
    from .data.study import Study
    from .evaluation.embed import embed
    from .evaluation.run import evaluate_checkpoint
    from .pretraining.arguments import DataArguments, DelstTrainingArguments, ModelArguments
    from .pretraining.run import assemble, pretrain, save_run
    from .pretraining.trainer import DelstTrainer

__version__ = "0.1.0"

AutoConfig.register("delst", DelstConfig)
AutoConfig.register("delst_gene", DelstGeneConfig)
AutoModel.register(DelstConfig, DelstModel)
AutoModel.register(DelstGeneConfig, DelstGeneModel)
AutoModelForImageClassification.register(DelstConfig, DelstForSpotClassification)
AutoFeatureExtractor.register(DelstConfig, DelstGeneFeatureExtractor)
AutoProcessor.register(DelstConfig, DelstProcessor)

PIPELINE_REGISTRY.register_pipeline("spot-embedding", SpotEmbeddingPipeline, pt_model=DelstModel, type="multimodal")
PIPELINE_REGISTRY.register_pipeline(
    "gene-expression-prediction", GeneExpressionPipeline, pt_model=DelstForGeneExpressionPrediction, type="image"
)

# What is saved carries the files that define it, so that it loads where this package is not installed.
DelstConfig.register_for_auto_class("AutoConfig")
DelstModel.register_for_auto_class("AutoModel")
DelstForSpotClassification.register_for_auto_class("AutoModelForImageClassification")
DelstForGeneExpressionPrediction.register_for_auto_class("AutoModel")  # no auto class of transformers is for this task
DelstGeneFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
DelstProcessor.register_for_auto_class("AutoProcessor")

_LAZY = {
    "DataArguments": "pretraining.arguments",
    "DelstCollator": "data.collator",
    "DelstTrainer": "pretraining.trainer",
    "DelstTrainingArguments": "pretraining.arguments",
    "ModelArguments": "pretraining.arguments",
    "Slide": "data.slide",
    "Study": "data.study",
    "assemble": "pretraining.run",
    "embed": "evaluation.embed",
    "evaluate_checkpoint": "evaluation.run",
    "pretrain": "pretraining.run",
    "save_run": "pretraining.run",
    "write_dataset": "data.dataset",
}

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
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
