"""Register the classes with transformers when imported: auto classes, pipelines, and the code that travels."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_delst import DelstConfig, DelstGeneConfig
from .model.feature_extraction_delst import DelstGeneFeatureExtractor
from .model.modeling_delst import DelstGeneModel, DelstModel
from .model.modeling_delst_heads import DelstForGeneExpressionPrediction, DelstForSpotClassification
from .model.processing_delst import DelstProcessor
from .pipelines import GeneExpressionPipeline, SpotEmbeddingPipeline

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

# A saved checkpoint carries the code that defines it, so that it loads where this package is not installed.
DelstConfig.register_for_auto_class("AutoConfig")
DelstModel.register_for_auto_class("AutoModel")
DelstForSpotClassification.register_for_auto_class("AutoModelForImageClassification")
DelstForGeneExpressionPrediction.register_for_auto_class("AutoModel")  # transformers has no auto class for this task
DelstGeneFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
DelstProcessor.register_for_auto_class("AutoProcessor")
