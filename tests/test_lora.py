import copy
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from delst_hf import DelstConfig, DelstForSpotClassification, DelstModel, DelstTrainingArguments
from delst_hf.pretraining.lora import add_lora, merge_lora

pytest.importorskip("peft", reason="the optional extra 'lora' is not installed")


@pytest.fixture
def inputs(tiny_model):
    torch.manual_seed(1)
    genes = tiny_model.config.gene_config.num_genes
    return {"pixel_values": torch.randn(5, 3, 32, 32), "gene_values": torch.rand(5, genes)}


def trained(model, inputs):
    """A model with LoRA after three real steps on its trained parameters."""
    model = add_lora(copy.deepcopy(model), rank=2).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs, level=torch.arange(1.0, 6.0), return_loss=True).loss.backward()
        optimizer.step()
    return model.eval()


def with_backbone_of(folder, model):
    """The model again, its backbone loaded from a folder."""
    loaded = DelstModel.from_vision_gene_pretrained(
        folder, gene_config=model.config.gene_config, projection_dim=model.config.projection_dim
    )
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vision_model.")}
    loaded.load_state_dict(own, strict=False)
    return loaded


@torch.no_grad()
def embeds(model, inputs):
    return model.eval()(**inputs).image_embeds


def test_lora_starts_as_no_change_and_trains_beside_the_backbone(tiny_model, inputs):
    before = embeds(tiny_model, inputs)
    model = add_lora(copy.deepcopy(tiny_model), rank=2)
    assert torch.equal(embeds(model, inputs), before)
    names = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("vision_model.")}
    # Two layers of four attention and two MLP matrices, and the pooler; an A and a B each.
    assert len(names) == 2 * (2 * 6 + 1) and all(".lora_" in name for name in names)
    after = trained(tiny_model, inputs)
    assert not torch.allclose(embeds(after, inputs), before, atol=1e-2)
    base = {name.replace(".base_layer", ""): p for name, p in after.state_dict().items()}
    assert all(torch.equal(p, base["vision_model." + name]) for name, p in tiny_model.vision_model.state_dict().items())


def test_merged_is_a_plain_model_that_computes_the_same(tiny_model, inputs, tmp_path):
    model = trained(tiny_model, inputs)
    expected = embeds(model, inputs)
    merge_lora(model)
    torch.testing.assert_close(embeds(model, inputs), expected, rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == set(tiny_model.state_dict())
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(embeds(DelstModel.from_pretrained(tmp_path), inputs), expected, rtol=1e-5, atol=1e-5)


def test_saved_without_the_backbone_it_loads_without_peft(tiny_model, inputs, tmp_path, monkeypatch):
    tiny_model.vision_model.save_pretrained(tmp_path / "vit")
    model = add_lora(with_backbone_of(tmp_path / "vit", tiny_model), rank=2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    expected = embeds(model, inputs)
    assert not torch.allclose(expected, embeds(tiny_model, inputs), atol=1e-2)
    model.save_pretrained(tmp_path / "adapter", save_backbone=False)
    saved = load_file(tmp_path / "adapter" / "model.safetensors")
    vision = {name for name in saved if name.startswith("vision_model.")}
    assert len(vision) == 2 * (2 * 6 + 1) and all(".lora_" in name for name in vision)
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = DelstModel.from_pretrained(tmp_path / "adapter", vision_path=tmp_path / "vit")
    torch.testing.assert_close(embeds(loaded, inputs), expected, rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(saved)
    with torch.no_grad():
        loaded.vision_model.layernorm.weight.mul_(2)
    with pytest.raises(ValueError, match="are no longer those of 'vit'"):
        loaded.save_pretrained(tmp_path / "trained")

    name = next(name for name in saved if ".lora_A." in name)
    save_file({name.replace("layers.0", "layer.0"): tensor for name, tensor in saved.items()},
              tmp_path / "adapter" / "model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=r"The checkpoint has LoRA for 'vision_model.layer.0.*names it otherwise"):
        DelstModel.from_pretrained(tmp_path / "adapter", vision_path=tmp_path / "vit")


def test_loaded_without_its_backbone_it_is_saved_so_again_with_a_head_and_with_more_lora(tiny_model, inputs, tmp_path):
    tiny_model.vision_model.save_pretrained(tmp_path / "vit")
    model = add_lora(with_backbone_of(tmp_path / "vit", tiny_model), rank=2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "first", save_backbone=False)
    more = add_lora(DelstModel.from_pretrained(tmp_path / "first", vision_path=tmp_path / "vit"), rank=3)
    for name, parameter in more.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = embeds(more, inputs)
    more.save_pretrained(tmp_path / "second")
    head = DelstForSpotClassification.from_pretrained(tmp_path / "second", vision_path=tmp_path / "vit", num_labels=2)
    head.save_pretrained(tmp_path / "head")
    for name in ("second", "head"):
        again = DelstModel.from_pretrained(tmp_path / name, vision_path=tmp_path / "vit")
        torch.testing.assert_close(embeds(again, inputs), expected, rtol=1e-4, atol=1e-5)


def test_mistakes(tiny_model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="lora_rank=0 must be 1 or more"):
        add_lora(tiny_model, 0)
    with pytest.raises(ValueError, match="Choose one of the two"):
        DelstTrainingArguments(output_dir=str(tmp_path), lora=True, freeze_vision=True)
    config = AutoConfig.for_model("resnet", embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    convolutions = DelstModel(DelstConfig(vision_config=config, gene_config={"num_genes": 3}, projection_dim=4))
    with pytest.raises(ValueError, match="'resnet' has no linear layers"):
        add_lora(convolutions)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'delst-hf\[lora\]'"):
        add_lora(tiny_model)
