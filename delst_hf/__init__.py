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
    from .pretraining.trainer import DelstTrainer, DelstTrainingArguments

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
    "DelstCollator": "data.collator",
    "DelstTrainer": "pretraining.trainer",
    "DelstTrainingArguments": "pretraining.trainer",
    "Slide": "data.slide",
    "write_dataset": "data.dataset",
}

__all__ = [
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
    "Slide",
    "SpotEmbeddingPipeline",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
