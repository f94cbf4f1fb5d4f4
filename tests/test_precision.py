"""Dtypes, devices and compilers: the head stays in float32 in all of them, and the answer is the same."""

import copy

import pytest
import torch
from torch import nn

from delst_hf import DelstConfig, DelstModel

SCALARS = ("logit_scale", "log_curvature", "log_image_scale", "log_gene_scale")
BACKBONES = {
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 8,
    },
    # Has a logit_scale of its own, which is not the head's.
    "swinv2": {"patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
}
ENCODERS = ["mlp", "set"]


def make_model(backbone: str = "vit", encoder: str = "mlp", **changes) -> DelstModel:
    torch.manual_seed(0)
    vision = {"model_type": backbone, "image_size": 32, **BACKBONES[backbone]}
    gene = {"num_genes": 12, "hidden_size": 8, "encoder": encoder}
    model = DelstModel(DelstConfig(vision_config=vision, gene_config=gene, projection_dim=6, **changes)).eval()
    with torch.no_grad():
        model.log_curvature.fill_(0.3217)  # numbers that bfloat16 would round
        model.logit_scale.fill_(2.6593)
    return model


def make_batch(batch: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(batch, 3, 32, 32, generator=generator),
        "gene_values": torch.rand(batch, 12, generator=generator),
        "gene_mask": torch.rand(batch, 12, generator=generator) > 0.2,
        "level": torch.arange(1.0, 10 * batch, 10),
    }


def head_of(model: DelstModel) -> dict[str, torch.Tensor]:
    names = [*SCALARS, "visual_projection.weight", "gene_projection.weight"]
    return {name: model.get_parameter(name) for name in names}


def assert_head_is_kept(model: DelstModel, original: DelstModel):
    for name, tensor in head_of(original).items():
        assert head_of(model)[name].dtype == torch.float32, name
        assert torch.equal(head_of(model)[name].cpu(), tensor), name


def assert_head_computes_in_float32(model: DelstModel, original: DelstModel):
    """From the towers' features on, the embeddings and logits are those of the float32 head, to its last digit."""
    output = model(**make_batch(), return_loss=True)
    image = original.embed_features(output.vision_model_output.pooler_output, "image")
    gene = original.embed_features(output.gene_model_output.pooler_output, "gene")
    for mine, expected in ((output.image_embeds, image), (output.gene_embeds, gene)):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
    assert output.loss.dtype == torch.float32
    terms = original.loss_terms(image, gene, make_batch()["level"])
    torch.testing.assert_close(output.loss, terms["loss"], rtol=1e-5, atol=1e-6)


CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "to(dtype=)": lambda model: model.to(dtype=torch.float16),
    "bfloat16()": lambda model: model.bfloat16(),
    "half()": lambda model: model.half(),
    "to(device, dtype)": lambda model: model.to("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_no_cast_reaches_the_head(cast):
    original = make_model()
    model = CASTS[cast](copy.deepcopy(original))
    half = torch.float16 if "half" in cast or "dtype=" in cast else torch.bfloat16
    assert model.dtype == half
    own = set(head_of(model))
    assert all(p.dtype == half for name, p in model.named_parameters() if name not in own)
    assert_head_is_kept(model, original)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_cast_model_computes_with_the_float32_head(backbone, encoder):
    original = make_model(backbone, encoder)
    assert_head_computes_in_float32(copy.deepcopy(original).to(torch.bfloat16), original)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_loading_in_bfloat16_leaves_the_head_in_float32(backbone, encoder, tmp_path):
    original = make_model(backbone, encoder)
    original.save_pretrained(tmp_path / "one")
    model = DelstModel.from_pretrained(tmp_path / "one", dtype=torch.bfloat16)
    own = set(head_of(model))
    assert all(p.dtype == torch.bfloat16 for name, p in model.named_parameters() if name not in own)
    assert_head_is_kept(model, original)
    assert_head_computes_in_float32(model, original)
    # Saved in bfloat16, it comes back as it is: the dtype stands in the configuration.
    model.save_pretrained(tmp_path / "two")
    again = DelstModel.from_pretrained(tmp_path / "two")
    assert again.dtype == torch.bfloat16
    assert_head_is_kept(again, original)


def test_casts_to_wider_types_and_moves_are_left_alone():
    model = make_model().double()
    assert all(p.dtype == torch.float64 for p in model.parameters())
    batch = make_batch()
    wide = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    output, expected = model(**wide, return_loss=True), make_model()(**batch, return_loss=True)
    assert output.image_embeds.dtype == output.gene_embeds.dtype == output.loss.dtype == torch.float64
    torch.testing.assert_close(output.loss.float(), expected.loss)
    meta = make_model().to("meta")
    assert all(p.device.type == "meta" for p in meta.parameters())
    empty = meta.to_empty(device="cpu")
    assert all(p.device.type == "cpu" for p in empty.parameters())


def test_gradients_of_a_bfloat16_model_reach_the_head_in_float32():
    model = make_model().to(torch.bfloat16).train()
    model(**make_batch(), return_loss=True).loss.backward()
    for name, parameter in head_of(model).items():
        assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all(), name


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_device_map(backbone, encoder, tmp_path):
    original = make_model(backbone, encoder)
    original.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = original(**make_batch())
    split = dict.fromkeys(["vision_model", "gene_model"], "disk")
    split |= dict.fromkeys([*SCALARS, "visual_projection", "gene_projection"], "cpu")
    for device_map in ("auto", split):
        model = DelstModel.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload")
        ).eval()
        with torch.no_grad():
            output = model(**make_batch())
        for name in ("image_embeds", "gene_embeds", "logits_per_image"):
            torch.testing.assert_close(output[name], expected[name], msg=lambda m, n=name: f"{n}: {m}")


def test_modules_that_are_not_split():
    assert {"DelstGeneModel", "ViTLayer"} <= set(make_model()._no_split_modules)


# --- compilers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "encoder"), [("lorentz", "mlp"), ("lorentz", "set"), ("cosine", "mlp"), ("euclidean", "mlp")]
)
def test_compile(geometry, encoder):
    """One graph, traced as for any compiler; the code that a backend then writes is not ours."""
    model, batch = make_model(encoder=encoder, geometry=geometry), make_batch()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected, output = model(**batch), compiled(**batch)
    for name in ("image_embeds", "gene_embeds", "logits_per_image"):
        torch.testing.assert_close(output[name], expected[name])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_tower_with_its_head_is_one_graph(encoder):
    model, batch = make_model(encoder=encoder), make_batch()
    torch.compiler.reset()
    image = torch.compile(model.get_image_features, backend="aot_eager", fullgraph=True)
    gene = torch.compile(model.get_gene_features, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model(**batch)
        torch.testing.assert_close(image(batch["pixel_values"]).pooler_output, expected.image_embeds)
        torch.testing.assert_close(gene(batch["gene_values"], batch["gene_mask"]).pooler_output, expected.gene_embeds)


def test_compiled_training_step():
    model, batch = make_model(), make_batch()
    torch.compiler.reset()
    loss = torch.compile(model, backend="aot_eager")(**batch, return_loss=True).loss
    loss.backward()
    compiled = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = model(**batch, return_loss=True).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, gradient in compiled.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-3, atol=1e-5)


class ImageTower(nn.Module):
    """What docs/models.md shows."""

    def __init__(self, model: DelstModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values).pooler_output


@pytest.mark.parametrize(
    ("backbone", "dtype"), [("vit", torch.float32), ("vit", torch.bfloat16), ("resnet", torch.float32)]
)
def test_export_of_the_image_tower(backbone, dtype, tmp_path):
    tower = ImageTower(make_model(backbone).to(dtype)).eval()
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(tower, (make_batch(3)["pixel_values"],), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "tower.pt2")
    exported = torch.export.load(tmp_path / "tower.pt2").module()
    for batch in (1, 2, 7):
        pixel_values = make_batch(batch)["pixel_values"]
        with torch.no_grad():
            output, expected = exported(pixel_values), tower(pixel_values)
        assert output.dtype == torch.float32 and output.shape == (batch, 6)
        torch.testing.assert_close(output, expected, **({} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}))
