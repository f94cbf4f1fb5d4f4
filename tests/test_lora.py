import copy
import sys

import pytest
import torch
from transformers import AutoConfig

from delst_hf import DelstConfig, DelstModel, DelstTrainingArguments
from delst_hf.lora import ADAPTER_WEIGHTS, add_lora, load_adapter, merge_lora, save_adapter

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


def test_adapter_holds_no_weight_of_the_backbone_and_comes_back(tiny_model, tiny_processor, inputs, tmp_path):
    tiny_model.vision_model.save_pretrained(tmp_path / "vit")
    model = trained(tiny_model, inputs)
    expected = embeds(model, inputs)
    folder = save_adapter(tmp_path / "adapter", model, tiny_processor, str(tmp_path / "vit"), rank=2)
    size = (folder / ADAPTER_WEIGHTS).stat().st_size
    heads = sum(p.numel() for name, p in tiny_model.named_parameters() if not name.startswith("vision_model."))
    lora = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    genes = tiny_model.config.gene_config.num_genes
    assert size < 4 * (heads + lora + genes) + 10_000
    assert str(tmp_path) not in (folder / "adapter.json").read_text()
    loaded = load_adapter(folder, tmp_path / "vit")
    torch.testing.assert_close(embeds(loaded, inputs), expected, rtol=1e-5, atol=1e-5)

    with pytest.raises(FileNotFoundError, match=r"No adapter.safetensors"):
        load_adapter(tmp_path / "vit", tmp_path / "vit")
    record = (folder / "adapter.json").read_text().replace('"rank": 2', '"rank": 2, "more": 1')
    (folder / "adapter.json").write_text(record)
    deeper = copy.deepcopy(tiny_model.config)
    deeper.vision_config.num_hidden_layers = 3
    deeper.save_pretrained(folder)
    with pytest.raises(ValueError, match="does not fit the backbone .* weights differ"):
        load_adapter(folder, tmp_path / "vit")


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
