"""Backbones of every kind that the documentation names, on tiny random configurations, and the arithmetic of pooling."""

import importlib.util
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPImageProcessorPil, PreTrainedConfig, ViTConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from delst_hf import DelstConfig, DelstModel
from delst_hf.model.vision_delst import (
    count_prefix_tokens,
    encode_images,
    load_image_processor,
    measure_vision_model,
    pool_vision_output,
    without_classes,
)

SIZE, BATCH, GENES = 32, 3, 8
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": SIZE,
    "patch_size": 8,
}
STAGES = {"depths": [1, 1]}
BACKBONES = {
    "vit": VIT,
    "deit": VIT,
    "dinov2": {**VIT, "mlp_ratio": 2},
    "dinov2_with_registers": {**VIT, "mlp_ratio": 2, "num_register_tokens": 3},
    "dinov3_vit": {**VIT, "num_register_tokens": 3},
    "clip_vision_model": VIT,
    "siglip_vision_model": VIT,
    "swin": {**STAGES, "image_size": SIZE, "patch_size": 4, "embed_dim": 8, "num_heads": [1, 2], "window_size": 4},
    "beit": VIT,
    "hiera": {
        **STAGES,
        "image_size": [SIZE, SIZE],
        "patch_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "embed_dim": 8,
        "num_heads": [1, 2],
        "num_query_pool": 1,
        "masked_unit_size": [4, 4],
    },
    "ijepa": VIT,
    "convnext": {**STAGES, "hidden_sizes": [8, 12], "num_stages": 2},
    "convnextv2": {**STAGES, "hidden_sizes": [8, 12], "num_stages": 2},
    "resnet": {**STAGES, "embedding_size": 8, "hidden_sizes": [8, 12], "layer_type": "basic"},
    "regnet": {**STAGES, "embedding_size": 8, "hidden_sizes": [8, 12], "groups_width": 4},
    "bit": {**STAGES, "embedding_size": 8, "hidden_sizes": [8, 16], "num_groups": 4},
    "efficientnet": {
        "image_size": SIZE,
        "width_coefficient": 0.1,
        "depth_coefficient": 0.1,
        "hidden_dim": 128,
        "num_block_repeats": [1],
        "in_channels": [32],
        "out_channels": [16],
        "kernel_sizes": [3],
        "strides": [1],
        "expand_ratios": [1],
        "depthwise_padding": [],
    },
    "mobilenet_v2": {"image_size": SIZE, "depth_multiplier": 0.25},
    "pvt_v2": {
        **STAGES,
        "image_size": SIZE,
        "hidden_sizes": [8, 16],
        "num_encoder_blocks": 2,
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "sr_ratios": [2, 1],
    },
}
# Class token, distillation token and registers before the 16 tokens of the patches.
PREFIX = {
    "vit": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 4,
    "dinov3_vit": 4,
    "clip_vision_model": 1,
    "beit": 1,
}
ATTENTION = [*PREFIX, "siglip_vision_model", "swin", "ijepa"]
CHECKPOINTING = [*ATTENTION, "hiera", "pvt_v2"]


def make_vision_config(backbone: str, **changes) -> PreTrainedConfig:
    return AutoConfig.for_model(backbone, **{**BACKBONES[backbone], **changes})


def make_model(backbone: str, **changes) -> DelstModel:
    torch.manual_seed(0)
    gene = {"num_genes": GENES, "hidden_size": 8, "dropout": 0.0}
    return DelstModel(
        DelstConfig(vision_config=make_vision_config(backbone), gene_config=gene, projection_dim=6, **changes)
    ).eval()


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(BATCH, 3, SIZE, SIZE, generator=generator),
        "gene_values": torch.rand(BATCH, GENES, generator=generator),
        "level": torch.tensor([5.0, 50.0, 500.0]),
    }


def loss_and_gradients(model: DelstModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(2)  # some backbones drop paths, or move the positions of the patches
    loss = model(**make_batch(), return_loss=True).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_forward_backward_save_and_load(backbone, tmp_path):
    model = make_model(backbone)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # else a deep network with the statistics of none is silent
            module.reset_running_stats()
    output = model(**make_batch())
    width = output.vision_model_output.pooler_output.shape[-1]
    assert width == model.config.vision_feature_size == model.visual_projection.in_features
    assert output.vision_model_output.pooler_output.shape == (BATCH, width)
    loss, gradients = loss_and_gradients(model.train())
    assert torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert sum(gradient.abs().max() > 0 for name, gradient in gradients.items() if "vision_model" in name) > 2
    model.eval().save_pretrained(tmp_path)
    loaded, info = DelstModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info  # backbones whose weights are renamed in the file too
    assert loaded.vision_model.config.model_type == backbone
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        one, two = model(**make_batch()), loaded(**make_batch())
    torch.testing.assert_close(two.image_embeds, one.image_embeds)
    torch.testing.assert_close(two.gene_embeds, one.gene_embeds)


@pytest.mark.parametrize("backbone", ATTENTION)
def test_attention_implementations_agree(backbone, tmp_path):
    make_model(backbone).save_pretrained(tmp_path)
    eager, sdpa = (DelstModel.from_pretrained(tmp_path, attn_implementation=name).eval() for name in ("eager", "sdpa"))
    assert eager.vision_model.config._attn_implementation == "eager"
    assert sdpa.vision_model.config._attn_implementation == "sdpa"
    pixel_values = make_batch()["pixel_values"]
    with torch.no_grad():
        attended = eager.get_image_features(pixel_values, output_attentions=True)
        expected = attended.pooler_output
        assert len(attended.attentions) == 2
        torch.testing.assert_close(sdpa.get_image_features(pixel_values).pooler_output, expected)
        sdpa.set_attn_implementation("eager")
        assert torch.equal(sdpa.get_image_features(pixel_values).pooler_output, expected)


@pytest.mark.parametrize("backbone", CHECKPOINTING)
def test_gradient_checkpointing_changes_memory_only(backbone):
    model = make_model(backbone).train()
    loss, gradients = loss_and_gradients(model)
    model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.vision_model.modules())
    again, checkpointed = loss_and_gradients(model)
    torch.testing.assert_close(again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


# --- pooling --------------------------------------------------------------------------------------------------------


def test_pooling_by_hand():
    tokens = torch.arange(24.0).reshape(2, 3, 4)
    pooled = torch.ones(2, 4, 1, 1)
    both = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)
    alone = BaseModelOutputWithPooling(last_hidden_state=tokens)
    a_map = BaseModelOutputWithPooling(last_hidden_state=torch.arange(16.0).reshape(1, 4, 2, 2))
    for pooling in ("auto", "pooler"):
        assert pool_vision_output(both, pooling).tolist() == [[1] * 4] * 2
    assert pool_vision_output(both, "mean").tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert pool_vision_output(alone, "auto").tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert pool_vision_output(both, "cls", 1).tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert pool_vision_output(both, "mean", 1).tolist() == [[6, 7, 8, 9], [18, 19, 20, 21]]
    assert pool_vision_output(both, "mean", 2).tolist() == [[8, 9, 10, 11], [20, 21, 22, 23]]
    assert pool_vision_output(both, "cls+mean", 2).tolist() == [
        [0, 1, 2, 3, 8, 9, 10, 11],
        [12, 13, 14, 15, 20, 21, 22, 23],
    ]
    assert pool_vision_output(a_map, "mean").tolist() == [[1.5, 5.5, 9.5, 13.5]]


@pytest.mark.parametrize("pooling", ["auto", "pooler", "cls", "mean", "cls+mean"])
def test_features_that_are_pooled_already_are_left_alone(pooling):
    features = torch.randn(2, 4)
    assert torch.equal(pool_vision_output(BaseModelOutputWithPooling(pooler_output=features), pooling), features)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_prefix_tokens_are_counted(backbone):
    model = AutoModel.from_config(make_vision_config(backbone)).train()
    assert measure_vision_model(model, "mean")[1] == PREFIX.get(backbone, 0)
    assert model.training


def test_prefix_tokens_at_another_size_than_the_backbones():
    model = AutoModel.from_config(make_vision_config("dinov2_with_registers")).eval()
    for height, width in ((32, 32), (48, 40), (35, 39)):  # a rim of less than a patch is not seen
        hidden = model(torch.zeros(1, 3, height, width)).last_hidden_state
        assert count_prefix_tokens(model, hidden, height, width) == 4


@pytest.mark.parametrize("backbone", PREFIX)
def test_registers_do_not_enter_the_mean(backbone):
    model = AutoModel.from_config(make_vision_config(backbone)).eval()
    pixels = make_batch()["pixel_values"]
    with torch.no_grad():
        hidden = model(pixels).last_hidden_state
        both = encode_images(model, pixels, "cls+mean").pooler_output
        mean = encode_images(model, pixels, "mean").pooler_output
    expected = torch.stack([hidden[:, -16 + i] for i in range(16)]).sum(0) / 16
    torch.testing.assert_close(both, torch.cat([hidden[:, 0], expected], dim=-1))
    torch.testing.assert_close(mean, expected)


def test_class_token_and_mean_double_the_width(tmp_path):
    model = make_model("dinov2_with_registers", vision_pooling="cls+mean")
    assert model.config.vision_feature_size == model.visual_projection.in_features == 32
    model.save_pretrained(tmp_path)
    loaded = DelstModel.from_pretrained(tmp_path)
    assert loaded.config.vision_pooling == "cls+mean"
    with torch.no_grad():
        torch.testing.assert_close(loaded(**make_batch()).image_embeds, model(**make_batch()).image_embeds)


@pytest.mark.parametrize(
    ("backbone", "pooling", "reason"),
    [
        ("ijepa", "pooler", "has no pooler. Use 'mean'"),
        ("resnet", "cls", "returns a feature map. Use 'auto', 'pooler' or 'mean'"),
        ("siglip_vision_model", "cls", "has patch tokens only, no class token"),
        ("swin", "cls+mean", "has patch tokens only, no class token"),
    ],
)
def test_a_pooling_that_the_backbone_lacks_is_refused_when_the_model_is_built(backbone, pooling, reason):
    with pytest.raises(ValueError, match=f"vision_pooling='{pooling.replace('+', '[+]')}', but this backbone {reason}"):
        make_model(backbone, vision_pooling=pooling)


@pytest.mark.parametrize(("backbone", "pooling"), [("vit", "cls"), ("siglip_vision_model", "mean")])
def test_a_pooler_without_weights_is_not_used(backbone, pooling, tmp_path, caplog):
    AutoModel.from_config(make_vision_config(backbone)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name and "head." not in name}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        loaded = DelstModel.from_vision_gene_pretrained(tmp_path, gene_config={"num_genes": GENES})
    assert loaded.config.vision_pooling == pooling
    assert f"vision_pooling='{pooling}' is used" in caplog.text


# --- image processors -----------------------------------------------------------------------------------------------


def test_the_image_processor_of_a_backbone_and_its_size(tmp_path):
    CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    own = load_image_processor(tmp_path)
    assert type(own) is CLIPImageProcessorPil and list(own.image_mean) == [0.1, 0.2, 0.3] and own.do_center_crop
    resized = load_image_processor(tmp_path, 48)
    assert (resized.size["height"], resized.size["width"], resized.do_center_crop) == (48, 48, False)


def test_the_image_processor_of_a_timm_checkpoint_needs_no_timm(tmp_path):
    timm = {"input_size": [3, 28, 28], "mean": [0.7, 0.6, 0.5], "std": [0.2, 0.2, 0.1], "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": timm}))
    processor = load_image_processor(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    expected = (pixels / 255 - timm["mean"]) / timm["std"]
    prepared = processor(pixels, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(prepared, expected.transpose(2, 0, 1), rtol=1e-4, atol=1e-5)
    assert (processor.size["height"], processor.resample) == (28, 2)
    assert load_image_processor(tmp_path, 14).size["width"] == 14


def test_the_classes_of_a_timm_checkpoint_are_not_said_twice():
    config = SimpleNamespace(model_args={"num_classes": 5, "img_size": [64, 64], "in_chans": 3, "global_pool": "token"})
    assert without_classes(config).model_args == {"img_size": [64, 64], "in_chans": 3, "global_pool": "token"}
    assert without_classes(ViTConfig()) == ViTConfig()


# --- timm -----------------------------------------------------------------------------------------------------------


def timm_imports() -> bool:
    if importlib.util.find_spec("timm") is None:
        return False
    try:
        importlib.import_module("timm")
    except Exception:  # next to a CPU build of torch, torchvision does not import, and timm needs it
        return False
    return True


@pytest.mark.skipif(not timm_imports(), reason="timm does not import here (it is not installed, or torchvision fails)")
@pytest.mark.parametrize(
    ("architecture", "prefix", "pooling"),
    [("vit_tiny_patch16_224", 1, "cls+mean"), ("vit_small_patch16_dinov3", 5, "cls+mean"), ("resnet18", 0, "auto")],
)
def test_timm_through_its_wrapper(architecture, prefix, pooling, tmp_path):
    vision = AutoConfig.for_model("timm_wrapper", architecture=architecture, do_pooling=True)
    model = DelstModel(DelstConfig(vision_config=vision, gene_config={"num_genes": GENES}, vision_pooling=pooling))
    assert measure_vision_model(model.vision_model, "auto")[1] == prefix
    pixel_values = torch.randn(2, 3, 224, 224)
    model.train().get_image_features(pixel_values).pooler_output.sum().backward()
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.get_image_features(pixel_values).pooler_output
        loaded = DelstModel.from_pretrained(tmp_path).get_image_features(pixel_values).pooler_output
    torch.testing.assert_close(loaded, expected)


@pytest.mark.skipif(not timm_imports(), reason="timm does not import here (it is not installed, or torchvision fails)")
@pytest.mark.parametrize(
    ("architecture", "options"),
    [("vit_tiny_patch16_224", {"num_classes": 5}), ("vit_tiny_patch16_224", {"img_size": 64}), ("resnet10t", {})],
)
def test_a_folder_as_timm_writes_it_loads(architecture, options, tmp_path):
    """The oracle is timm: its features without the head."""
    import timm

    theirs = timm.create_model(architecture, pretrained=False, **options)
    timm.models.save_for_hf(theirs, tmp_path / "timm", safe_serialization=True)
    model = DelstModel.from_vision_gene_pretrained(str(tmp_path / "timm"), {"num_genes": GENES})
    size = load_image_processor(tmp_path / "timm").size["height"]
    pixel_values = torch.randn(2, 3, size, size)
    theirs.eval().reset_classifier(0)
    model.eval().save_pretrained(tmp_path / "delst")
    with torch.no_grad():
        expected = theirs(pixel_values)
        for one in (model, DelstModel.from_pretrained(tmp_path / "delst")):
            features = encode_images(one.vision_model, pixel_values, one.config.vision_pooling).pooler_output
            torch.testing.assert_close(features, expected)
