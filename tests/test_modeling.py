"""DelstModel: backbones of every kind, its outputs, its checkpoints, and the arithmetic it promises."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    IJepaConfig,
    MobileNetV2Config,
    MobileNetV2Model,
    ResNetConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from delst_hf import DelstConfig, DelstGeneConfig, DelstGeneModel, DelstModel, DelstOutput
from delst_hf.model.entailment import entailment_loss, intra_entailment_loss
from delst_hf.model.lorentz import exp_map0, log_map0, rapidity
from delst_hf.model.losses import contrastive_loss
from delst_hf.model.vision_delst import pool_vision_output

GENES, DIM, BATCH, SIZE = 12, 6, 5, 32
TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": SIZE,
    "patch_size": 16,
}
BACKBONES = {
    "vit": ViTConfig(**TRANSFORMER),
    "mobilenet_v2": MobileNetV2Config(image_size=SIZE, depth_multiplier=0.25),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
    "ijepa": IJepaConfig(**TRANSFORMER),
}


def make_config(backbone: str = "vit", **changes) -> DelstConfig:
    vision = BACKBONES[backbone].to_dict()
    gene = {"num_genes": GENES, "hidden_size": 10, "dropout": 0.0, **changes.pop("gene", {})}
    return DelstConfig(**{"vision_config": vision, "gene_config": gene, "projection_dim": DIM, **changes})


def make_model(backbone: str = "vit", **changes) -> DelstModel:
    torch.manual_seed(0)
    return DelstModel(make_config(backbone, **changes)).eval()


def make_batch(**changes):
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(BATCH, 3, SIZE, SIZE, generator=generator),
        "gene_values": torch.rand(BATCH, GENES, generator=generator) * 3,
        "level": torch.tensor([100.0, 10.0, 40.0, 400.0, 20.0]),
        "slide_ids": torch.tensor([0, 0, 0, 0, 0]),
        **changes,
    }


def assert_equal_outputs(first: DelstModel, second: DelstModel):
    batch = make_batch()
    with torch.no_grad():
        one, two = first(**batch), second(**batch)
    for name in ("image_embeds", "gene_embeds", "logits_per_image"):
        assert torch.equal(one[name], two[name]), name


def standardised(features: torch.Tensor) -> torch.Tensor:
    centred = features.float() - features.float().mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


# --- forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_forward_of_each_backbone(backbone):
    model = make_model(backbone)
    output = model(**make_batch())
    width = {"vit": 16, "mobilenet_v2": 1280, "resnet": 12, "ijepa": 16}[backbone]
    assert model.config.vision_feature_size == width == model.visual_projection.in_features
    assert isinstance(output, DelstOutput)
    assert output.image_embeds.shape == output.gene_embeds.shape == (BATCH, DIM)
    assert output.logits_per_image.shape == (BATCH, BATCH)
    assert torch.equal(output.logits_per_gene, output.logits_per_image.T)
    assert output.vision_model_output.pooler_output.shape == (BATCH, width)
    assert output.gene_model_output.pooler_output.shape == (BATCH, 10)
    assert output.loss is None and output.contrastive_loss is None
    assert torch.isfinite(output.logits_per_image).all()


def test_the_names_of_the_output():
    names = ["loss", "contrastive_loss", "cross_entailment_loss", "intra_entailment_loss", "regression_loss"]
    names += ["logits_per_image", "logits_per_gene", "image_embeds", "gene_embeds"]
    names += ["vision_model_output", "gene_model_output"]
    assert list(DelstOutput.__dataclass_fields__) == names
    output = make_model()(**make_batch(), return_loss=True)
    assert list(output.keys()) == [name for name in names if not name.startswith(("logits", "regression"))]


def test_logits_are_negative_distances_times_the_scale():
    model = make_model()
    output = model(**make_batch())
    image, gene = output.image_embeds.double(), output.gene_embeds.double()
    c = model.curvature.item()
    times = [(1 / c + x.square().sum(-1)).sqrt() for x in (image, gene)]
    cosh = c * (torch.outer(*times) - image @ gene.T)
    expected = -torch.acosh(cosh) / math.sqrt(c) / 0.07
    torch.testing.assert_close(output.logits_per_image.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parent", ["gene", "image"])
def test_the_loss_is_the_weighted_sum_of_its_terms(parent):
    options = {"cross_aperture_scale": 0.8, "intra_aperture_scale": 1.2, "min_radius": 0.2, "intra_parent": "more"}
    weights = {"cross_entailment_weight": 0.3, "intra_entailment_weight": 0.7}
    model = make_model(cross_parent=parent, intra_min_level_ratio=2.0, curvature_init=0.5, **weights, **options)
    batch = make_batch()
    output = model(**batch, return_loss=True)
    image, gene, c = output.image_embeds, output.gene_embeds, torch.tensor(0.5)
    contrastive = contrastive_loss(image, gene, 1 / 0.07, c)
    cross = entailment_loss(*((gene, image) if parent == "gene" else (image, gene)), c, 0.8, 0.2)
    intra = [
        intra_entailment_loss(x, batch["level"], c, batch["slide_ids"], "more", 2.0, 1.2, 0.2) for x in (image, gene)
    ]
    assert cross > 0 and intra[0] > 0 and intra[1] > 0 and intra[0] != intra[1]
    torch.testing.assert_close(output.contrastive_loss, contrastive)
    torch.testing.assert_close(output.cross_entailment_loss, cross)
    torch.testing.assert_close(output.intra_entailment_loss, sum(intra) / 2)
    torch.testing.assert_close(output.loss, contrastive + 0.3 * cross + 0.7 * sum(intra) / 2)
    assert output.logits_per_image is None


def test_nested_views_are_composed_as_hycoclip():
    """Parts against wholes of the other modality; parts entail wholes; no level is read."""
    model = make_model(cross_entailment_weight=0.3, intra_entailment_weight=0.7, cross_aperture_scale=0.7)
    batch = {key: value for key, value in make_batch().items() if key != "level"}
    crops = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    kept = torch.arange(GENES).expand(BATCH, GENES) % 2 == 0
    output = model(**batch, return_loss=True, part_pixel_values=crops, part_gene_mask=kept)
    image, gene = output.image_embeds, output.gene_embeds
    part = (
        model.get_image_features(crops).pooler_output,
        model.get_gene_features(batch["gene_values"], kept).pooler_output,
    )
    c, scale = torch.tensor(1.0), 1 / 0.07
    parts = contrastive_loss(part[0], gene, scale, c) / 2 + contrastive_loss(part[1], image, scale, c) / 2
    contrastive = (contrastive_loss(image, gene, scale, c) + parts) / 2
    cross = (entailment_loss(gene, image, c, 0.7) + entailment_loss(part[1], part[0], c, 0.7)) / 2
    intra = (entailment_loss(part[0], image, c) + entailment_loss(part[1], gene, c)) / 2
    torch.testing.assert_close(output.contrastive_loss, contrastive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.cross_entailment_loss, cross)
    torch.testing.assert_close(output.intra_entailment_loss, intra)
    torch.testing.assert_close(output.loss, contrastive + 0.3 * cross + 0.7 * intra, rtol=1e-5, atol=1e-6)


def test_two_levels_are_composed_as_hyperst():
    """Spots and niches are contrasted each with their kind; a spot entails its niche; no level is read."""
    model = make_model(cross_entailment_weight=0.3, intra_entailment_weight=0.7, intra_aperture_scale=1.2)
    batch = {key: value for key, value in make_batch().items() if key != "level"}
    generator = torch.Generator().manual_seed(2)
    wide, summed = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator), torch.rand(BATCH, GENES, generator=generator)
    output = model(**batch, return_loss=True, niche_pixel_values=wide, niche_gene_values=summed)
    image, gene = output.image_embeds, output.gene_embeds
    niche = model.get_image_features(wide).pooler_output, model.get_gene_features(summed).pooler_output
    c, scale = torch.tensor(1.0), 1 / 0.07
    contrastive = (contrastive_loss(image, gene, scale, c) + contrastive_loss(*niche, scale, c)) / 2
    cross = (entailment_loss(gene, image, c) + entailment_loss(niche[1], niche[0], c)) / 2
    intra = (entailment_loss(image, niche[0], c, 1.2) + entailment_loss(gene, niche[1], c, 1.2)) / 2
    torch.testing.assert_close(output.contrastive_loss, contrastive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.cross_entailment_loss, cross)
    torch.testing.assert_close(output.intra_entailment_loss, intra)
    torch.testing.assert_close(output.loss, contrastive + 0.3 * cross + 0.7 * intra, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
def test_regression_beside_the_contrastive_term(geometry):
    plain = make_model(geometry=geometry)
    model = make_model(geometry=geometry, regression_weight=0.5)
    assert set(model.state_dict()) - set(plain.state_dict()) == {"expression_head.weight", "expression_head.bias"}
    model.gene_model.set_missing_values(torch.full((GENES,), 2.0))
    batch = make_batch(gene_mask=torch.arange(GENES).expand(BATCH, GENES) < 7)
    output = model(**batch, return_loss=True)
    flat = log_map0(output.image_embeds, 1.0) if geometry == "lorentz" else output.image_embeds
    predicted = flat @ model.expression_head.weight.T + model.expression_head.bias + 2.0
    error = (predicted - batch["gene_values"])[:, :7].square().mean()
    torch.testing.assert_close(output.regression_loss, error)
    torch.testing.assert_close(model.predict_expression(output.image_embeds), predicted)
    terms = output.contrastive_loss + 0.5 * error
    if geometry == "lorentz":
        terms = terms + 0.2 * output.cross_entailment_loss + 0.1 * output.intra_entailment_loss
    torch.testing.assert_close(output.loss, terms)
    model.resize_gene_embeddings(GENES + 2)
    grown = model.predict_expression(output.image_embeds)
    torch.testing.assert_close(grown[:, :GENES], predicted)
    assert (grown[:, GENES:] == 0).all()
    with pytest.raises(ValueError, match="no expression head: it was trained with regression_weight=0"):
        plain.predict_expression(output.image_embeds)


def test_slide_ids_keep_pairs_within_a_slide():
    model = make_model()
    alone = model(**make_batch(slide_ids=torch.arange(BATCH)), return_loss=True)
    assert alone.intra_entailment_loss == 0
    assert model(**make_batch(slide_ids=None), return_loss=True).intra_entailment_loss > 0


@pytest.mark.parametrize("geometry", ["cosine", "euclidean"])
def test_the_baselines_have_a_contrastive_loss_only(geometry):
    model = make_model(geometry=geometry)
    output = model(**make_batch(level=None), return_loss=True)
    assert output.cross_entailment_loss is None and output.intra_entailment_loss is None
    assert output.loss == output.contrastive_loss
    expected = contrastive_loss(output.image_embeds, output.gene_embeds, 1 / 0.07, geometry=geometry)
    torch.testing.assert_close(output.loss, expected)


def test_a_level_is_needed_for_the_intra_loss_only():
    with pytest.raises(ValueError, match="intra_entailment_weight=0.1 needs `level`.*DelstProcessor returns"):
        make_model()(**make_batch(level=None), return_loss=True)
    output = make_model(intra_entailment_weight=0.0)(**make_batch(level=None), return_loss=True)
    assert output.intra_entailment_loss is None and output.cross_entailment_loss > 0


def test_a_plain_tuple_on_request():
    model, batch = make_model(), make_batch()
    output, plain = model(**batch, return_loss=True), model(**batch, return_loss=True, return_dict=False)
    assert type(plain) is tuple and len(plain) == len(output.keys())
    assert torch.equal(plain[0], output.loss)
    assert torch.equal(plain[4], output.image_embeds)
    assert type(plain[-1]) is tuple and torch.equal(plain[-1][1], output.gene_model_output.pooler_output)
    no_loss = model(**batch, return_dict=False)
    assert torch.equal(no_loss[0], model(**batch).logits_per_image)


def test_towers_alone_give_the_embeddings_of_forward():
    model, batch = make_model(), make_batch()
    output = model(**batch)
    image = model.get_image_features(batch["pixel_values"])
    gene = model.get_gene_features(batch["gene_values"])
    assert isinstance(image, BaseModelOutputWithPooling) and isinstance(gene, BaseModelOutputWithPooling)
    assert torch.equal(image.pooler_output, output.image_embeds)
    assert torch.equal(gene.pooler_output, output.gene_embeds)
    assert image.last_hidden_state.shape == (BATCH, 5, 16)


def test_embeddings_lie_at_the_length_of_the_scaled_projection():
    model = make_model(curvature_init=2.0)
    output = model(**make_batch())
    for embeds, features, weight in (
        (output.image_embeds, output.vision_model_output.pooler_output, model.visual_projection.weight),
        (output.gene_embeds, output.gene_model_output.pooler_output, model.gene_projection.weight),
    ):
        tangent = standardised(features) @ weight.T / math.sqrt(DIM)
        torch.testing.assert_close(embeds, exp_map0(tangent, 2.0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rapidity(embeds, 2.0), math.sqrt(2) * tangent.norm(dim=-1))


@pytest.mark.parametrize("modality", ["image", "gene"])
def test_new_models_start_near_radius_one_whatever_the_size_of_the_features(modality):
    model = make_model(projection_dim=64)
    features = torch.randn(50, 16 if modality == "image" else 10, generator=torch.Generator().manual_seed(0))
    embeds = model.embed_features(features, modality)
    assert 0.7 < rapidity(embeds, 1.0).mean() < 1.3
    torch.testing.assert_close(model.embed_features(100 * features + 7, modality), embeds, rtol=1e-3, atol=1e-4)


def test_cosine_embeddings_are_unit_vectors():
    output = make_model(geometry="cosine")(**make_batch())
    for embeds in (output.image_embeds, output.gene_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(BATCH))
    torch.testing.assert_close(output.logits_per_image, output.image_embeds @ output.gene_embeds.T / 0.07)


def test_gene_values_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="gene_values has 13 genes, this model's vocabulary 12.*DelstProcessor"):
        make_model()(**make_batch(gene_values=torch.rand(BATCH, GENES + 1)))


def test_checkpoints_of_another_vocabulary_are_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    config = make_config(gene={"num_genes": GENES + 1})
    with pytest.raises(RuntimeError, match="(?i)size mismatch|mismatched"):
        DelstModel.from_pretrained(tmp_path, config=config)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "geometry", "encoder"),
    [(backbone, "lorentz", "mlp") for backbone in BACKBONES]
    + [("vit", "lorentz", "linear"), ("vit", "cosine", "mlp"), ("vit", "euclidean", "linear")],
)
def test_every_trainable_parameter_has_a_finite_gradient(backbone, geometry, encoder):
    model = make_model(backbone, geometry=geometry, gene={"encoder": encoder}).train()
    model(**make_batch(), return_loss=True).loss.backward()
    zero = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if parameter.grad.abs().max() == 0:
            zero.append(name)
    # In the backbone, a key bias cancels in its softmax and a ReLU may be shut.
    assert [name for name in zero if "vision_model" not in name] == []


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({"geometry": "lorentz"}, {"logit_scale", "log_curvature", "log_image_scale", "log_gene_scale"}),
        ({"geometry": "lorentz", "learn_curvature": False}, {"logit_scale", "log_image_scale", "log_gene_scale"}),
        ({"geometry": "euclidean"}, {"logit_scale", "log_image_scale", "log_gene_scale"}),
        ({"geometry": "cosine"}, {"logit_scale"}),
    ],
)
def test_scalars_are_trained_where_the_geometry_uses_them(changes, trained):
    parameters = dict(make_model(**changes).named_parameters())
    scalars = {"logit_scale", "log_curvature", "log_image_scale", "log_gene_scale"}
    assert {name for name in scalars if parameters[name].requires_grad} == trained
    assert all(parameters[name].dim() == 0 for name in scalars)


def test_initial_values():
    model = make_model(curvature_init=0.5, logit_scale_init=1.5)
    assert model.curvature.item() == pytest.approx(0.5)
    assert model.logit_scale.item() == pytest.approx(1.5)
    assert model.log_image_scale.exp().item() == pytest.approx(DIM**-0.5)
    assert model.log_gene_scale.exp().item() == pytest.approx(DIM**-0.5)
    wide = DelstGeneModel(DelstGeneConfig(num_genes=400, hidden_size=300, encoder="linear"))
    assert wide.layers[0].weight.std().item() == pytest.approx(400**-0.5, rel=0.05)
    given = DelstGeneModel(DelstGeneConfig(num_genes=400, hidden_size=300, encoder="linear", initializer_range=0.5))
    assert given.layers[0].weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert wide.layers[0].bias.abs().max() == 0


def test_gene_encoders_have_the_layers_they_say():
    mlp = DelstGeneModel(DelstGeneConfig(num_genes=7, hidden_size=5, num_hidden_layers=3))
    assert [block[0].in_features for block in mlp.layers] == [7, 5, 5]
    linear = DelstGeneModel(DelstGeneConfig(num_genes=7, hidden_size=5, encoder="linear"))
    values = torch.rand(2, 7)
    expected = values @ linear.layers[0].weight.T + linear.layers[0].bias
    torch.testing.assert_close(linear(values).pooler_output, expected)


def test_clamp_scalars_brings_them_into_their_bounds():
    model = make_model(curvature_init=0.5, logit_scale_max=50.0)
    assert model.curvature_bounds == (0.05, 5.0)
    scalars = (model.log_curvature, model.logit_scale, model.log_image_scale, model.log_gene_scale)

    def set_all(value: float):
        with torch.no_grad():
            for scalar in scalars:
                scalar.fill_(value)
        model.clamp_scalars()
        return [scalar.item() for scalar in scalars]

    assert set_all(20.0) == pytest.approx([math.log(5.0), math.log(50.0), 0.0, 0.0], abs=1e-6)
    assert set_all(-20.0) == pytest.approx([math.log(0.05), -20.0, -20.0, -20.0])
    assert set_all(-0.5) == [-0.5] * 4


def test_forward_writes_no_parameter():
    model = make_model()
    with torch.no_grad():
        for scalar in (model.log_curvature, model.logit_scale, model.log_image_scale):
            scalar.fill_(6.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(**make_batch(), return_loss=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("frozen", [True, False])
def test_freeze_batch_norm(frozen):
    model = make_model("mobilenet_v2", freeze_batch_norm=frozen).train()
    norms = [module for module in model.vision_model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    with torch.no_grad():
        model(**make_batch())
    moved = [not torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True)]
    assert len(norms) > 20
    assert all(norm.training != frozen for norm in norms)
    assert any(moved) != frozen
    assert model.training and model.vision_model.training and model.gene_model.training
    assert all(norm.weight.requires_grad for norm in norms)
    assert not any(module.training for module in model.eval().modules())


# --- missing genes --------------------------------------------------------------------------------------------------


def test_masked_genes_have_no_influence():
    model = make_model()
    mask = torch.rand(BATCH, GENES, generator=torch.Generator().manual_seed(2)) > 0.4
    values = make_batch()["gene_values"]
    expected = model.get_gene_features(values, mask).pooler_output
    for other in (torch.where(mask, values, 99.0), torch.where(mask, values, math.nan)):
        assert torch.equal(model.get_gene_features(other, mask).pooler_output, expected)
    changed = values.clone()
    changed[0, mask[0].nonzero()[0]] += 1
    assert not torch.equal(model.get_gene_features(changed, mask).pooler_output, expected)
    assert torch.equal(model(**make_batch(gene_mask=mask)).gene_embeds, expected)


def test_nan_under_the_mask_does_not_reach_the_gradients():
    model = make_model().train()
    values = make_batch()["gene_values"]
    mask = torch.ones(BATCH, GENES, dtype=torch.bool)
    mask[:, 3] = False
    values[:, 3] = math.nan
    output = model(**make_batch(gene_values=values, gene_mask=mask), return_loss=True)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_missing_values_stand_in_and_are_saved(tmp_path):
    model = make_model()
    values = make_batch()["gene_values"]
    means = values.mean(0)
    model.gene_model.set_missing_values(means)
    mask = torch.ones(BATCH, GENES, dtype=torch.bool)
    mask[:, [0, 5]] = False
    filled = values.clone()
    filled[:, [0, 5]] = means[[0, 5]]
    expected = model.get_gene_features(filled).pooler_output
    assert torch.equal(model.get_gene_features(values, mask).pooler_output, expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(DelstModel.from_pretrained(tmp_path).gene_model.missing_values, means)


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ["lorentz", "cosine", "euclidean"])
def test_the_head_stays_in_float32_under_autocast(geometry):
    model, batch = make_model(geometry=geometry), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch, return_loss=True)
        logits = model.similarity(output.image_embeds, output.gene_embeds)
    assert output.gene_model_output.pooler_output.dtype in (torch.bfloat16, torch.float32)
    assert output.loss.dtype == output.image_embeds.dtype == output.gene_embeds.dtype == logits.dtype == torch.float32
    features = output.vision_model_output.pooler_output
    assert torch.equal(output.image_embeds, model.embed_features(features.float(), "image"))
    assert torch.equal(logits, model.similarity(output.image_embeds, output.gene_embeds))
    expected = contrastive_loss(
        output.image_embeds, output.gene_embeds, model.logit_scale.exp(), model.curvature, geometry=geometry
    )
    assert torch.equal(output.contrastive_loss, expected)


@pytest.mark.parametrize("geometry", ["lorentz", "cosine", "euclidean"])
def test_the_head_stays_in_float32_in_a_bfloat16_model(geometry):
    model = make_model(geometry=geometry).to(torch.bfloat16)
    output = model(**make_batch(), return_loss=True)
    features = output.vision_model_output.pooler_output
    assert features.dtype == torch.bfloat16
    assert output.loss.dtype == output.image_embeds.dtype == output.gene_embeds.dtype == torch.float32
    projected = F.linear(standardised(features), model.visual_projection.weight.float())
    scaled = projected * model.log_image_scale.float().exp()
    by_geometry = {
        "cosine": F.normalize(projected, dim=-1),
        "euclidean": scaled,
        "lorentz": exp_map0(scaled, model.curvature),
    }
    torch.testing.assert_close(output.image_embeds, by_geometry[geometry], rtol=1e-5, atol=1e-6)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_checkpoints_come_back_bit_for_bit(backbone, tmp_path):
    model = make_model(backbone)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.01 * torch.randn_like(parameter) + 1e-3 * number / 100)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.add_(0.1)
            norm.num_batches_tracked.add_(3)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".py") == ["config.json", "model.safetensors"]
    assert {"logit_scale", "log_curvature"} <= set(load_file(tmp_path / "model.safetensors"))
    for loaded in (DelstModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is DelstModel and not loaded.training
        state, expected = loaded.state_dict(), model.state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        assert loaded.config.vision_feature_size == model.config.vision_feature_size
        assert_equal_outputs(loaded, model)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DelstConfig


def test_a_second_round_trip_changes_nothing(tmp_path):
    make_model().save_pretrained(tmp_path / "one")
    DelstModel.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_loading_loses_and_invents_nothing(tmp_path):
    make_model().save_pretrained(tmp_path)
    _, info = DelstModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_auto_model_builds_from_a_config():
    assert type(AutoModel.from_config(make_config())) is DelstModel
    assert type(AutoModel.from_config(DelstGeneConfig(num_genes=4, hidden_size=3))) is DelstGeneModel


# --- pretrained backbones -------------------------------------------------------------------------------------------

GENE_CONFIG = DelstGeneConfig(num_genes=GENES, hidden_size=10)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_from_vision_gene_pretrained_takes_the_weights_of_a_folder(backbone, tmp_path):
    torch.manual_seed(3)
    vision = AutoModel.from_config(BACKBONES[backbone])
    vision.save_pretrained(tmp_path)
    model = DelstModel.from_vision_gene_pretrained(
        tmp_path, gene_config=GENE_CONFIG, projection_dim=DIM, min_radius=0.3
    )
    assert not model.training and model.dtype == torch.float32
    assert (model.config.projection_dim, model.config.min_radius) == (DIM, 0.3)
    state, expected = model.vision_model.state_dict(), vision.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
    assert model.config.vision_pooling == "auto"
    assert model.log_image_scale.item() == pytest.approx(-0.5 * math.log(DIM))
    with torch.no_grad():
        features = pool_vision_output(vision.eval()(make_batch()["pixel_values"]), "auto")
        # Not bit by bit: where weights lie in memory decides how a convolution sums.
        torch.testing.assert_close(model(**make_batch()).vision_model_output.pooler_output, features)


def test_from_vision_gene_pretrained_takes_a_backbone_in_memory():
    vision = MobileNetV2Model(BACKBONES["mobilenet_v2"])
    before = {name: value.clone() for name, value in vision.state_dict().items()}
    model = DelstModel.from_vision_gene_pretrained(vision, gene_config={"num_genes": GENES}, projection_dim=DIM)
    assert model.vision_model is vision
    assert all(torch.equal(value, before[name]) for name, value in model.vision_model.state_dict().items())


def test_the_gene_side_is_new_but_initialised_the_same_way(tmp_path):
    ViTModel(BACKBONES["vit"]).save_pretrained(tmp_path)
    gene = DelstGeneConfig(num_genes=400, hidden_size=100)
    model = DelstModel.from_vision_gene_pretrained(tmp_path, gene_config=gene)
    assert model.gene_model.layers[0][0].weight.std().item() == pytest.approx(400**-0.5, rel=0.05)
    assert model.visual_projection.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)


@pytest.mark.parametrize("relative", [True, False])
def test_a_folder_that_is_not_there_is_named(relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "./nowhere" if relative else str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No folder at .*nowhere.*config.json and model.safetensors"):
        DelstModel.from_vision_gene_pretrained(path)


def test_a_two_tower_checkpoint_gives_its_vision_tower(tmp_path):
    vision = {**TRANSFORMER, "projection_dim": 8}
    text = {key: value for key, value in TRANSFORMER.items() if "size" not in key} | {
        "hidden_size": 16,
        "vocab_size": 20,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    clip.save_pretrained(tmp_path)
    model = DelstModel.from_vision_gene_pretrained(tmp_path, gene_config=GENE_CONFIG, projection_dim=DIM)
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert model.config.vision_pooling == "auto"
    expected = {key.removeprefix("vision_model."): value for key, value in clip.vision_model.state_dict().items()}
    state = {key.removeprefix("vision_model."): value for key, value in model.vision_model.state_dict().items()}
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
    model.save_pretrained(tmp_path / "delst")
    assert_equal_outputs(DelstModel.from_pretrained(tmp_path / "delst"), model)


def test_a_classifier_without_a_pooler_is_pooled_by_its_class_token(tmp_path, caplog):
    ViTForImageClassification(BACKBONES["vit"]).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = DelstModel.from_vision_gene_pretrained(tmp_path, gene_config=GENE_CONFIG, projection_dim=DIM)
    assert model.config.vision_pooling == "cls"
    assert "vision_pooling='cls' is used" in caplog.text
    output = model(**make_batch()).vision_model_output
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    chosen = DelstModel.from_vision_gene_pretrained(tmp_path, gene_config=GENE_CONFIG, vision_pooling="mean")
    assert chosen.config.vision_pooling == "mean"
    model.save_pretrained(tmp_path / "delst")
    assert_equal_outputs(DelstModel.from_pretrained(tmp_path / "delst"), model)
