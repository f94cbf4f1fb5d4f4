"""transformers' own common suites on our classes. What does not apply is skipped, with the reason in one line.

Of its other mixins, GenerationTesterMixin is for models that generate text, and PipelineTesterMixin fetches tiny checkpoints of
transformers' own models from the Hub: our pipelines are tested in test_pipelines.py.
"""

import unittest
from unittest import skip
from unittest.mock import patch

import numpy as np
import torch
from transformers import ViTConfig, ViTImageProcessorPil
from transformers_suites import (
    ConfigTester,
    FeatureExtractionSavingTestMixin,
    ModelTesterMixin,
    ProcessorTesterMixin,
)

from delst_hf import (
    DelstConfig,
    DelstForGeneExpressionPrediction,
    DelstForSpotClassification,
    DelstGeneConfig,
    DelstGeneFeatureExtractor,
    DelstGeneModel,
    DelstModel,
    DelstProcessor,
)

BATCH, GENES, SIZE, WIDTH, LAYERS = 7, 11, 32, 16, 2
SYMBOLS = [f"GENE{i}" for i in range(GENES)]


class GeneModelTester:
    """Configuration and inputs of the gene encoder, as the suites ask for them."""

    batch_size, hidden_size, num_hidden_layers = BATCH, WIDTH, LAYERS
    is_training = False  # the encoder alone has no loss; DelstModel trains it

    def __init__(self, encoder: str):
        self.encoder = encoder

    def get_config(self) -> DelstGeneConfig:
        return DelstGeneConfig(
            encoder=self.encoder, num_genes=GENES, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2
        )

    def prepare_config_and_inputs_for_common(self):
        measured = torch.rand(BATCH, GENES) > 0.2
        return self.get_config(), {"gene_values": torch.rand(BATCH, GENES) * 3, "gene_mask": measured}


class VisionTester:
    num_hidden_layers = LAYERS

    def prepare_config_and_inputs_for_common(self):
        config = ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            intermediate_size=WIDTH,
            image_size=SIZE,
            patch_size=8,
        )
        return config, {"pixel_values": torch.rand(BATCH, 3, SIZE, SIZE)}


class DelstModelTester:
    """The same for image and genes together."""

    batch_size, num_hidden_layers, is_training = BATCH, LAYERS, True

    def __init__(self):
        self.vision_model_tester, self.gene_model_tester = VisionTester(), GeneModelTester("set")

    def prepare_config_and_inputs_for_common(self):
        vision_config, image = self.vision_model_tester.prepare_config_and_inputs_for_common()
        gene_config, genes = self.gene_model_tester.prepare_config_and_inputs_for_common()
        config = DelstConfig(vision_config=vision_config, gene_config=gene_config, projection_dim=8)
        return config, {**image, **genes, "level": 10.0 * torch.arange(BATCH)}


class HeadsTester(DelstModelTester):
    """Task heads on the patch alone, whose tokens are those of the backbone."""

    seq_length, hidden_size, num_attention_heads = (SIZE // 8) ** 2 + 1, WIDTH, 2

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        return config, {"pixel_values": inputs["pixel_values"]}


class DelstModelNamedAsCLIP(DelstModel):
    """The suite compares attention implementations by the logits when they have the name that CLIP gives them."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output["logits_per_text"] = output.logits_per_gene
        return output


class DelstGeneModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DelstGeneModel,)
    test_resize_embeddings = False  # there are no token embeddings
    test_can_init_all_missing_weights_before_2023 = True  # the suite asks for it where a file names no year
    has_attentions = False
    encoder = "mlp"

    def setUp(self):
        self.model_tester = GeneModelTester(self.encoder)

    def test_config(self):
        ConfigTester(self, DelstGeneConfig, has_text_modality=False, num_genes=5, dropout=0.5).run_common_tests()

    @skip("A gene profile is a vector of expression, not a sequence of tokens: there are no hidden states per token")
    def test_hidden_states_output(self):
        pass

    @skip("No hidden states and no attentions to retain the gradient of")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @skip("Expression values are continuous: there is no nn.Embedding at the input")
    def test_model_get_set_embeddings(self):
        pass


class DelstGeneSetModelTest(DelstGeneModelTest):
    encoder = "set"


class DelstModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DelstModel,)
    additional_model_inputs = ["gene_values"]
    test_resize_embeddings = False  # there are no token embeddings
    test_can_init_all_missing_weights_before_2023 = True
    _is_composite = True

    def setUp(self):
        self.model_tester = DelstModelTester()
        if "eager_matches_sdpa" in self._testMethodName:
            self.all_model_classes = (DelstModelNamedAsCLIP,)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "return_loss": True} if return_labels else inputs

    def test_config(self):
        ConfigTester(
            self, DelstConfig, has_text_modality=False, projection_dim=8, common_properties=["projection_dim"]
        ).run_common_tests()

    @skip("Those of the backbone are tested by test_get_image_features_attentions")
    def test_attention_outputs(self):
        pass

    @skip("Those of the backbone are tested by test_get_image_features_hidden_states")
    def test_hidden_states_output(self):
        pass

    @skip("They belong to the backbone's output, which the common test does not look into")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @skip("Neither pixels nor expression pass through an nn.Embedding")
    def test_model_get_set_embeddings(self):
        pass

    @skip("A checkpoint without its weights is refused, not filled up; tests/test_pretraining_faults.py has it")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass


class DelstHeadsTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DelstForSpotClassification, DelstForGeneExpressionPrediction)
    test_resize_embeddings = False  # there are no token embeddings
    test_can_init_all_missing_weights_before_2023 = True
    test_all_params_have_gradient = False  # a head on the patch leaves the gene encoder as it is
    _is_composite = True

    def setUp(self):
        self.model_tester = HeadsTester()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            is_class = model_class is DelstForSpotClassification
            inputs["labels"] = torch.ones(BATCH, dtype=torch.long) if is_class else torch.ones(BATCH, GENES)
        return inputs

    @skip("Neither pixels nor expression pass through an nn.Embedding")
    def test_model_get_set_embeddings(self):
        pass

    @skip("A checkpoint without its weights is refused, not filled up; tests/test_pretraining_faults.py has it")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass


class DelstGeneFeatureExtractorTest(FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = DelstGeneFeatureExtractor
    feat_extract_dict = {"vocabulary": SYMBOLS, "target_sum": 1e3, "min_match_rate": 0.4}


# Saving a processor that carries its code sets its `auto_map`, which loading takes away again: not comparable.
@patch.object(DelstProcessor, "_auto_class", None)
class DelstProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = DelstProcessor

    @classmethod
    def _setup_image_processor(cls):
        return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})

    @classmethod
    def _setup_feature_extractor(cls):
        return DelstGeneFeatureExtractor(vocabulary=SYMBOLS)

    def prepare_inputs(self) -> dict:
        counts = np.random.default_rng(0).poisson(2.0, (1, GENES))
        return {"images": self.prepare_images_inputs(), "counts": counts, "gene_names": SYMBOLS}

    def test_model_input_names(self):
        processor = self.get_processor()
        inputs = processor(**self.prepare_inputs(), return_tensors="pt")
        assert list(inputs) == processor.model_input_names

    def test_processor_with_multiple_inputs(self):
        inputs = self.get_processor()(**self.prepare_inputs(), images_kwargs={"do_resize": False})
        assert inputs["pixel_values"][0].shape == (3, 30, 400)
        assert inputs["gene_values"].shape == (1, GENES)

    @skip("The feature extractor reads counts of genes, not audio")
    def test_subprocessor_defaults_3_audio(self):
        pass
