"""DelstConfig and DelstGeneConfig: defaults, round trips, and every refusal with its message."""

import json
import math

import pytest
from transformers import AutoConfig, MobileNetV2Config, ViTConfig

from delst_hf import DelstConfig, DelstGeneConfig

TINY_VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}


def test_defaults():
    config = DelstConfig()
    assert isinstance(config.vision_config, ViTConfig)
    assert isinstance(config.gene_config, DelstGeneConfig)
    assert config.model_type == "delst"
    assert config.gene_config.model_type == "delst_gene"
    assert (config.geometry, config.projection_dim, config.curvature_init) == ("lorentz", 512, 1.0)
    assert config.learn_curvature is True
    assert math.exp(config.logit_scale_init) == pytest.approx(1 / 0.07)
    assert config.logit_scale_max == 100
    assert (config.cross_entailment_weight, config.intra_entailment_weight) == (0.2, 0.1)
    assert (config.cross_parent, config.intra_parent) == ("gene", "fewer")
    assert (config.min_radius, config.cross_aperture_scale, config.intra_aperture_scale) == (0.1, 1.0, 1.0)
    assert config.vision_feature_size is None
    assert config.freeze_batch_norm is True
    assert (config.gene_config.encoder, config.gene_config.num_genes) == ("mlp", 1000)


def test_two_configs_share_no_sub_config():
    first, second = DelstConfig(), DelstConfig()
    first.gene_config.num_genes = 7
    assert second.gene_config.num_genes == 1000


@pytest.mark.parametrize("geometry", ["cosine", "euclidean"])
def test_geometries_without_cones_have_no_entailment_by_default(geometry):
    config = DelstConfig(geometry=geometry)
    assert (config.cross_entailment_weight, config.intra_entailment_weight) == (0, 0)


@pytest.mark.parametrize("name", ["cross_entailment_weight", "intra_entailment_weight"])
def test_a_weight_of_zero_is_not_replaced_by_the_default(name):
    assert getattr(DelstConfig(**{name: 0}), name) == 0


def test_json_round_trip(tmp_path):
    config = DelstConfig(
        vision_config=TINY_VIT,
        gene_config={"num_genes": 33, "encoder": "linear", "initializer_range": 0.02},
        projection_dim=24,
        curvature_init=0.5,
        intra_entailment_weight=0.7,
        cross_parent="image",
        intra_parent="more",
        vision_pooling="mean",
    )
    config.save_pretrained(tmp_path)
    for loaded in (DelstConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is DelstConfig
        assert type(loaded.vision_config) is ViTConfig
        assert type(loaded.gene_config) is DelstGeneConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert loaded.vision_config.hidden_size == 16
        assert loaded.gene_config.num_genes == 33
        assert (loaded.curvature_init, loaded.intra_entailment_weight) == (0.5, 0.7)
        assert (loaded.cross_parent, loaded.intra_parent, loaded.vision_pooling) == ("image", "more", "mean")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["vision_config"]["model_type"] == "vit"
    assert written["gene_config"]["model_type"] == "delst_gene"


def test_the_weights_of_a_cosine_config_survive_the_round_trip(tmp_path):
    DelstConfig(geometry="cosine").save_pretrained(tmp_path)
    assert DelstConfig.from_pretrained(tmp_path).cross_entailment_weight == 0


def test_gene_config_loads_out_of_a_model_folder(tmp_path):
    DelstConfig(gene_config={"num_genes": 12}).save_pretrained(tmp_path)
    assert DelstGeneConfig.from_pretrained(tmp_path).num_genes == 12


def test_sub_configs_as_objects_are_kept():
    vision, gene = MobileNetV2Config(image_size=64), DelstGeneConfig(num_genes=5)
    config = DelstConfig(vision_config=vision, gene_config=gene)
    assert config.vision_config is vision
    assert config.gene_config is gene


def test_sub_configs_as_dicts_are_built_and_the_dict_is_left_alone():
    given = dict(TINY_VIT)
    config = DelstConfig(vision_config=given, gene_config={"num_genes": 9})
    assert given == TINY_VIT
    assert type(config.vision_config) is ViTConfig
    assert config.vision_config.image_size == 32
    assert config.gene_config.num_genes == 9


def test_vision_config_without_model_type():
    with pytest.raises(ValueError, match=r"no 'model_type' \(keys: \['hidden_size'\]\).*AutoConfig.from_pretrained"):
        DelstConfig(vision_config={"hidden_size": 16})


INTEGERS_FOR_FLOATS = {
    "curvature_init": 2,
    "logit_scale_init": 1,
    "logit_scale_max": 50,
    "cross_entailment_weight": 1,
    "intra_entailment_weight": 1,
    "intra_min_level_ratio": 2,
    "min_radius": 1,
    "cross_aperture_scale": 2,
    "intra_aperture_scale": 2,
}


@pytest.mark.parametrize("name", INTEGERS_FOR_FLOATS)
def test_an_integer_is_taken_where_a_float_is_meant(name):
    assert getattr(DelstConfig(**{name: INTEGERS_FOR_FLOATS[name]}), name) == INTEGERS_FOR_FLOATS[name]


@pytest.mark.parametrize(("name", "value"), [("dropout", 0), ("initializer_range", 1)])
def test_an_integer_is_taken_where_the_gene_config_means_a_float(name, value):
    assert getattr(DelstGeneConfig(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"geometry": "poincare"}, "geometry='poincare' is not known.*'lorentz', 'cosine', 'euclidean'"),
        ({"cross_parent": "text"}, "cross_parent='text' is not known.*'gene', 'image'"),
        ({"intra_parent": "most"}, "intra_parent='most' is not known.*'fewer', 'more'"),
        ({"vision_pooling": "max"}, "vision_pooling='max' is not known.*'auto', 'pooler', 'cls', 'mean', 'cls\\+mean'"),
        ({"projection_dim": 0}, "projection_dim=0 is out of range: it must be at least 1"),
        ({"curvature_init": 0.0}, "curvature_init=0.0 is out of range: it must be above 0"),
        ({"curvature_init": -1.0}, "curvature_init=-1.0"),
        ({"curvature_init": math.nan}, "curvature_init=nan"),
        ({"curvature_init": math.inf}, "curvature_init=inf"),
        ({"min_radius": 0.0}, "min_radius=0.0"),
        ({"cross_aperture_scale": 0.0}, "cross_aperture_scale=0.0"),
        ({"intra_aperture_scale": -0.5}, "intra_aperture_scale=-0.5"),
        ({"intra_min_level_ratio": 1.0}, "intra_min_level_ratio=1.0 is out of range: it must be above 1"),
        ({"logit_scale_init": 5.0}, "logit_scale_max=100.0 is out of range: it must be above 148"),
        ({"logit_scale_max": 1}, "logit_scale_max=1 is out of range"),
        ({"cross_entailment_weight": -0.1}, "cross_entailment_weight=-0.1 is out of range: it must be at least 0"),
        ({"intra_entailment_weight": -1}, "intra_entailment_weight=-1"),
        ({"intra_entailment_weight": math.nan}, "intra_entailment_weight=nan"),
        (
            {"geometry": "cosine", "cross_entailment_weight": 0.2},
            "cross_entailment_weight=0.2 needs geometry='lorentz' and an entailment",
        ),
        ({"geometry": "cosine", "intra_entailment_weight": 0.1}, "intra_entailment_weight=0.1 .*'cosine'.*weight to 0"),
        (
            {"geometry": "euclidean", "intra_entailment_weight": 0.1},
            "no cones for geometry='euclidean', entailment='cone'",
        ),
        ({"gene_config": {"encoder": "cnn"}}, "encoder='cnn' is not known.*'linear', 'mlp', 'set'"),
    ],
)
def test_wrong_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DelstConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "transformer"}, "encoder='transformer' is not known. Choose one of 'linear', 'mlp', 'set'"),
        ({"num_genes": 0}, "num_genes=0 is out of range: it must be at least 1"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"dropout": 1.5}, "dropout=1.5 is out of range: it must be at least 0 and at most 1"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"norm": "batch"}, "norm='batch' is not known. Choose one of 'layer_norm', 'rms_norm', 'none'"),
        ({"embedding_size": 0}, "embedding_size=0 is out of range"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 is out of range"),
        (
            {"encoder": "set", "hidden_size": 10, "num_attention_heads": 4},
            "num_attention_heads=4 does not divide hidden_size=10",
        ),
    ],
)
def test_wrong_gene_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DelstGeneConfig(**arguments)
