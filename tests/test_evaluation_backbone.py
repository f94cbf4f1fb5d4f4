"""Backbones without gradients: batch norms folded into convolutions, against the network itself in float64."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import MobileNetV2Config, ResNetConfig, ViTConfig
from transformers.modeling_outputs import BaseModelOutputWithNoAttention

from delst_hf import DelstConfig, DelstModel
from delst_hf.evaluation.backbone import InferenceBackbone
from delst_hf.model.vision_delst import encode_images

CONVOLUTIONAL = {
    "MobileNetV2": (MobileNetV2Config(depth_multiplier=0.35, image_size=32), 52),
    "ResNet": (ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"), 10),
}


def model_of(config):
    torch.manual_seed(0)
    return DelstModel(DelstConfig(vision_config=config, gene_config={"num_genes": 4}, projection_dim=4)).eval()


def measured(network):
    """Put random statistics and weights into the batch norms, as after a training."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low in ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.weight.data, 0.5)):
                values.uniform_(low, low + 1)
    return network


def norms(network):
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def compared(backbone, network, pooling="auto"):
    """Features of eleven patches, and those of the network in float64."""
    pixels = torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = encode_images(deepcopy(network).double(), pixels.double(), pooling).pooler_output
        return backbone(pixels), exact.float()


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_batch_norms_are_folded_in_a_copy_and_features_are_those_of_float64(name):
    config, layers = CONVOLUTIONAL[name]
    model = model_of(config)
    measured(model.vision_model)
    assert norms(model.vision_model) == layers
    kept = {key: values.clone() for key, values in model.state_dict().items()}
    backbone = InferenceBackbone(model)
    found, exact = compared(backbone, model.vision_model)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
    assert norms(backbone._network) == 0
    assert norms(model.vision_model) == layers
    assert kept.keys() == model.state_dict().keys()
    assert all(torch.equal(kept[key], values) for key, values in model.state_dict().items())


class Shared(nn.Module):
    """A convolution whose output is read beside its batch norm, one that runs twice, and one read beside its activation."""

    def __init__(self, config, beside, twice, after):
        super().__init__()
        self.config, self.beside, self.twice, self.after = config, beside, twice, after
        self.convolution, self.norm, self.activation = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

    @property
    def dtype(self):
        return self.convolution.weight.dtype

    def forward(self, pixel_values, return_dict=True):
        found = self.convolution(pixel_values)
        hidden = self.norm(found)
        if self.twice:
            hidden = self.norm(self.convolution(hidden))
        if self.beside:
            hidden = hidden + found
        if self.after:
            hidden = self.activation(hidden) + 2 * hidden
        return BaseModelOutputWithNoAttention(last_hidden_state=hidden)


@pytest.mark.parametrize(
    ("beside", "twice", "after", "left"),
    [(False, False, False, 0), (True, False, False, 1), (False, True, False, 1), (False, False, True, 1)],
)
def test_what_folding_would_change_is_left_as_it_is(beside, twice, after, left):
    model = model_of(CONVOLUTIONAL["ResNet"][0])
    torch.manual_seed(0)
    model.vision_model = measured(Shared(model.config.vision_config, beside, twice, after).eval())
    backbone = InferenceBackbone(model)
    found, exact = compared(backbone, model.vision_model)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    assert norms(backbone._network) == left


def test_a_batch_norm_that_learns_and_a_transformer_stay_what_they_are():
    model = model_of(CONVOLUTIONAL["ResNet"][0])
    model.vision_model.train()
    with torch.no_grad():
        learning = InferenceBackbone(model)
        learning(torch.randn(4, 3, 32, 32))
    assert learning._network is model.vision_model
    model = model_of(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    )
    backbone = InferenceBackbone(model)
    found, exact = compared(backbone, model.vision_model)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    assert backbone._network is model.vision_model
