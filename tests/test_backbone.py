"""Checkpoints without their backbone: what they hold, how it is fetched, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, ViTConfig, ViTForImageClassification, ViTModel

from delst_hf import DelstConfig, DelstModel
from delst_hf.model.backbone_delst import tensor_fingerprint

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
HEADS = {"gene_config": {"num_genes": 5, "hidden_size": 16}, "projection_dim": 8}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone") / "vit"
    ViTModel(ViTConfig(num_hidden_layers=1, **SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(backbone):
    return DelstModel.from_vision_gene_pretrained(backbone, **HEADS)


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(3, 3, 32, 32), "gene_values": torch.rand(3, 5)}


def embeds(model, inputs):
    with torch.no_grad():
        return model(**inputs).image_embeds


@pytest.mark.parametrize("auto_class", [DelstModel, AutoModel])
def test_heads_only_come_back_with_the_same_outputs(model, backbone, inputs, tmp_path, auto_class):
    model.save_pretrained(tmp_path / "heads", save_backbone=False)
    assert not any("vision_model" in name for name in load_file(tmp_path / "heads" / "model.safetensors"))
    config = json.loads((tmp_path / "heads" / "config.json").read_text())
    assert config["save_backbone"] is False and config["vision_source"]["id"] == "vit"
    assert str(backbone.parent) not in (tmp_path / "heads" / "config.json").read_text()
    loaded, info = auto_class.from_pretrained(tmp_path / "heads", vision_path=backbone, output_loading_info=True)
    assert not any(info.values()) and not loaded.training
    assert torch.equal(embeds(loaded, inputs), embeds(model, inputs))
    # It stays without its backbone, also after training of the heads; whole when that is asked for.
    torch.nn.init.normal_(loaded.visual_projection.weight)
    loaded.save_pretrained(tmp_path / "again")
    again = auto_class.from_pretrained(tmp_path / "again", vision_path=backbone)
    assert torch.equal(embeds(again, inputs), embeds(loaded, inputs))
    loaded.save_pretrained(tmp_path / "whole", save_backbone=True)
    assert torch.equal(embeds(auto_class.from_pretrained(tmp_path / "whole"), inputs), embeds(loaded, inputs))
    assert loaded.config.save_backbone is False


def test_the_configuration_decides_and_dtype_is_obeyed(backbone, inputs, tmp_path):
    model = DelstModel.from_vision_gene_pretrained(backbone, save_backbone=False, **HEADS)
    model.save_pretrained(tmp_path)
    loaded = DelstModel.from_pretrained(tmp_path, vision_path=str(backbone), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.vision_model.parameters()} == {torch.bfloat16}
    assert loaded.visual_projection.weight.dtype == loaded.log_curvature.dtype == torch.float32
    torch.testing.assert_close(embeds(loaded, inputs).float(), embeds(model, inputs), rtol=0.1, atol=0.1)


def test_an_unused_random_pooler_does_not_count(inputs, tmp_path):
    classifier = ViTForImageClassification(ViTConfig(num_hidden_layers=1, **SMALL))
    classifier.save_pretrained(tmp_path / "classifier")
    model = DelstModel.from_vision_gene_pretrained(tmp_path / "classifier", **HEADS)
    assert model.config.vision_pooling == "cls"
    model.save_pretrained(tmp_path / "heads", save_backbone=False)
    loaded = DelstModel.from_pretrained(tmp_path / "heads", vision_path=tmp_path / "classifier")
    assert torch.equal(embeds(loaded, inputs), embeds(model, inputs))


def test_fingerprint():
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "pooler.weight": torch.ones(2)}
    found = tensor_fingerprint(weights, "auto")
    assert found == tensor_fingerprint(
        {"pooler.weight": torch.ones(2), "b.weight": weights["a.weight"].clone()}, "auto"
    )
    assert found != tensor_fingerprint({**weights, "a.weight": weights["a.weight"].reshape(3, 2)}, "auto")
    assert found != tensor_fingerprint({**weights, "a.weight": weights["a.weight"] + 1e-6}, "auto")
    assert found != tensor_fingerprint({**weights, "pooler.weight": torch.zeros(2)}, "auto")
    assert tensor_fingerprint(weights, "cls") == tensor_fingerprint({**weights, "pooler.weight": torch.zeros(2)}, "cls")


def test_refusals(model, backbone, tmp_path):
    model.save_pretrained(tmp_path / "heads", save_backbone=False)
    with pytest.raises(OSError, match=r"without its backbone 'vit'.*(?s:.)*hf auth login.*(?s:.)*vision_path=FOLDER"):
        DelstModel.from_pretrained(tmp_path / "heads")
    with pytest.raises(OSError, match=r"No folder at '/nowhere'"):
        DelstModel.from_pretrained(tmp_path / "heads", vision_path="/nowhere")
    ViTModel(ViTConfig(num_hidden_layers=1, **SMALL)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other' \(fingerprint \w{16}\) is not the one .* 'vit' \(\w{16}\)"):
        DelstModel.from_pretrained(tmp_path / "heads", vision_path=tmp_path / "other")

    torch.nn.init.normal_(next(model.vision_model.parameters()))
    with pytest.raises(ValueError, match=r"no longer those of 'vit' .*freeze_vision or lora"):
        model.save_pretrained(tmp_path / "trained", save_backbone=False)
    assert not (tmp_path / "trained").exists() and model.config.save_backbone is True
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"whole' holds its backbone. Leave vision_path out"):
        DelstModel.from_pretrained(tmp_path / "whole", vision_path=backbone)
    scratch = DelstModel(DelstConfig(vision_config=ViTConfig(num_hidden_layers=1, **SMALL), **HEADS))
    with pytest.raises(ValueError, match="was not loaded from a folder or the Hub"):
        scratch.save_pretrained(tmp_path / "scratch", save_backbone=False)


def test_a_backbone_is_not_taken_for_a_checkpoint(backbone):
    """transformers would build a DELST model with random weights of another kind."""
    with pytest.raises(
        ValueError, match=r"of the kind 'vit', not a DELST checkpoint. .*from_vision_gene_pretrained\('"
    ):
        DelstModel.from_pretrained(backbone)


def test_the_folder_of_a_run_or_of_a_dataset_is_told_from_a_model(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match="run is the folder of a run; its model is .*run/model. Give that"):
        DelstModel.from_pretrained(tmp_path / "run")
    assert isinstance(DelstModel.from_pretrained(tmp_path / "run", subfolder="model"), DelstModel)
    (tmp_path / "data" / "spots").mkdir(parents=True)
    with pytest.raises(ValueError, match="data is a dataset folder. Give the folder of a checkpoint"):
        DelstModel.from_pretrained(tmp_path / "data")
