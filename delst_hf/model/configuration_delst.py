"""Configuration of DELST: a Hugging Face vision backbone, a gene encoder and a hyperbolic head."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, ViTConfig

from .entailment import ENTAILMENT_FORMS


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known. Choose one of {', '.join(map(repr, allowed))}.")


def _check_range(name: str, value: float, low: float, high: float = math.inf, closed: bool = False) -> None:
    inside = low <= value <= high if closed else low < value <= high
    if not inside or not math.isfinite(value):
        bounds = f"{'at least' if closed else 'above'} {low}" + (f" and at most {high}" if high < math.inf else "")
        raise ValueError(f"{name}={value!r} is out of range: it must be {bounds}.")


@strict
class DelstGeneConfig(PreTrainedConfig):
    """Configuration of the gene encoder.

    Args:
        encoder: ``"linear"`` (one matrix, an interpretable baseline), ``"mlp"``, or ``"set"`` (learned gene embeddings
            weighted by expression and pooled by attention: for panels that differ, and for genes added later).
        num_genes: Size of the gene vocabulary, the width of ``gene_values``.
        hidden_size: Width of the encoder's output and of its hidden layers.
        num_hidden_layers: Number of blocks (linear, norm, GELU, dropout) of the ``"mlp"`` encoder, and of the ``"set"``
            encoder after the pooling.
        dropout: Dropout probability after each block.
        norm: Norm of each block: ``"layer_norm"``, ``"rms_norm"`` or ``"none"``.
        embedding_size: Width of the gene embeddings of the ``"set"`` encoder; None is `hidden_size`.
        num_attention_heads: Attention heads of the ``"set"`` encoder's pooling; must divide `hidden_size`.
        layer_norm_eps: Epsilon of the norms.
        initializer_range: Standard deviation of the normal initialisation, None for ``1/sqrt(fan_in)`` (gene embeddings: 1).
        vocabulary_hash: Hash of the genes in order (`DelstGeneFeatureExtractor.vocabulary_hash`), filled in when a checkpoint
            is saved: loading a processor with another vocabulary beside these weights is an error.

    Raises:
        ValueError: If a value is out of its range.

    >>> DelstGeneConfig(encoder="linear", num_genes=200).hidden_size
    512
    """

    model_type = "delst_gene"
    base_config_key = "gene_config"

    encoder: str = "mlp"
    num_genes: int = 1000
    hidden_size: int = 512
    num_hidden_layers: int = 2
    dropout: float | int = 0.1
    norm: str = "layer_norm"
    embedding_size: int | None = None
    num_attention_heads: int = 4
    layer_norm_eps: float = 1e-5
    initializer_range: float | int | None = None
    vocabulary_hash: str | None = None

    def __post_init__(self, **kwargs):
        _check_choice("encoder", self.encoder, ("linear", "mlp", "set"))
        _check_choice("norm", self.norm, ("layer_norm", "rms_norm", "none"))
        for name in ("num_genes", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            _check_range(name, getattr(self, name), 1, closed=True)
        if self.embedding_size is not None:
            _check_range("embedding_size", self.embedding_size, 1, closed=True)
        if self.encoder == "set" and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}. Choose "
                "numbers that do, for example 4 and 512."
            )
        _check_range("dropout", self.dropout, 0, 1, closed=True)
        _check_range("layer_norm_eps", self.layer_norm_eps, 0, 1, closed=True)
        if self.initializer_range is not None:
            _check_range("initializer_range", self.initializer_range, 0, closed=True)
        super().__post_init__(**kwargs)


@strict
class DelstFeaturesConfig(PreTrainedConfig):
    """Configuration in place of a backbone whose features are computed elsewhere: ``vision_config`` of `DelstConfig`.

    Args:
        hidden_size: Width of the features.
        encoder: Name of the encoder that computed them.
    """

    model_type = "delst_features"

    hidden_size: int = 768
    encoder: str = ""


@strict
class DelstConfig(PreTrainedConfig):
    """Configuration of `DelstModel`.

    Choices that the paper (arXiv 2503.00804) leaves open are options here, with defaults chosen on evidence (docs/results.md).

    Args:
        vision_config: Configuration of any backbone that ``AutoModel.from_config`` builds; a ViT-B/16 when omitted.
        gene_config: A `DelstGeneConfig` or its dict.
        projection_dim: Dimension of the joint embedding.
        geometry: ``"lorentz"`` (hyperbolic, the method), or the baselines ``"cosine"`` and ``"euclidean"``.
        curvature_init: Initial ``c`` of the hyperboloid of curvature ``-c``. Learned within [init/10, 10 init].
        learn_curvature: Whether ``c`` is learned.
        logit_scale_init: Logarithm of the initial similarity multiplier.
        logit_scale_max: Upper limit of the multiplier (not of its logarithm), which the trainer enforces.
        cross_entailment_weight: ``lambda`` of the loss; None is 0.2 for the Lorentz geometry and 0 elsewhere.
        intra_entailment_weight: ``beta`` of the loss; None is 0.1 for the Lorentz geometry and 0 elsewhere.
        cross_parent: Which modality is the more general one, ``"gene"`` or ``"image"``.
        intra_parent: Whether the spot with ``"fewer"`` or ``"more"`` expressed genes is the more general one.
        intra_min_level_ratio: Two spots form an ordered pair when their levels differ by at least this factor.
        min_radius: ``K`` of the half-aperture ``asin(2K / (sqrt(c) |x|))``.
        entailment: Penalty of an ordered pair: ``"cone"`` (the angle outside the cone, the method), ``"uncha"``,
            ``"argent"``, ``"negatives"``, ``"difference"`` or ``"radial"`` (docs/method.md has the equations), or ``"none"``
            for no entailment.
        radius_floor: Distance to the origin below which a parent is pushed outwards, so that cones do not widen as parents
            collapse onto the origin. 0 for none.
        regression_weight: Weight of the loss of expression predicted from the image embedding. 0 for none.
        cross_aperture_scale: ``eta``, the factor on the half-aperture of the cross-modal cones.
        intra_aperture_scale: ``eta`` of the cones within a modality.
        vision_pooling: ``"auto"`` (the backbone's pooler where it has one, else the mean), ``"pooler"``, ``"cls"`` (class
            token), ``"mean"`` (of the patch tokens) or ``"cls+mean"`` (both, one after the other).
        vision_feature_size: Width of the pooled backbone output; measured once and stored when None.
        head_inputs: Features that a task head reads: those of the ``"image"`` tower, of the ``"gene"`` tower, or ``"both"``.
        head_standardise: Whether a task head standardises its features over their channels before reading them.
        head_dropout: Dropout probability before the last layer of a task head.
        freeze_batch_norm: Keep BatchNorm statistics of the backbone fixed in training. Small batches ruin them, and
            batch statistics leak information between the pairs of a contrastive batch.
        save_backbone: Whether saved checkpoints hold the backbone. If not, they hold heads and LoRA, and loading fetches the
            backbone: for one that is gated or must not be republished. It must be frozen, or trained with LoRA.
        vision_source: Source of the backbone: ``id``, ``revision`` and ``fingerprint``. Filled in by
            ``from_vision_gene_pretrained``.

    Raises:
        ValueError: If a value is out of its range, or an entailment weight is set for a geometry without cones.

    >>> DelstConfig(geometry="cosine").cross_entailment_weight
    0.0
    """

    model_type = "delst"
    sub_configs = {"vision_config": AutoConfig, "gene_config": DelstGeneConfig}

    vision_config: dict | PreTrainedConfig | None = None
    gene_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    geometry: str = "lorentz"
    curvature_init: float | int = 1.0
    learn_curvature: bool = True
    logit_scale_init: float | int = math.log(1 / 0.07)
    logit_scale_max: float | int = 100.0
    cross_entailment_weight: float | int | None = None
    intra_entailment_weight: float | int | None = None
    cross_parent: str = "gene"
    intra_parent: str = "fewer"
    intra_min_level_ratio: float | int = 1.25
    min_radius: float | int = 0.1
    entailment: str = "cone"
    radius_floor: float | int = 0.0
    regression_weight: float | int = 0.0
    cross_aperture_scale: float | int = 1.0
    intra_aperture_scale: float | int = 1.0
    vision_pooling: str = "auto"
    vision_feature_size: int | None = None
    head_inputs: str = "image"
    head_standardise: bool = True
    head_dropout: float | int = 0.0
    freeze_batch_norm: bool = True
    save_backbone: bool = True
    vision_source: dict | None = None

    def __post_init__(self, **kwargs):
        self.vision_config = self._as_vision_config(self.vision_config)
        if self.gene_config is None:
            self.gene_config = DelstGeneConfig()
        elif isinstance(self.gene_config, dict):
            self.gene_config = DelstGeneConfig(**self.gene_config)

        has_cones = self.geometry == "lorentz" and self.entailment != "none"
        if self.cross_entailment_weight is None:
            self.cross_entailment_weight = 0.2 if has_cones else 0.0
        if self.intra_entailment_weight is None:
            self.intra_entailment_weight = 0.1 if has_cones else 0.0
        self._check_values(has_cones)
        super().__post_init__(**kwargs)

    @staticmethod
    def _as_vision_config(vision_config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
        if vision_config is None:
            return ViTConfig()
        if isinstance(vision_config, dict):
            vision_config = dict(vision_config)
            if "model_type" not in vision_config:
                raise ValueError(
                    f"vision_config has no 'model_type' (keys: {sorted(vision_config)[:8]}). Give the backbone's own "
                    "config, for example AutoConfig.from_pretrained(id), or add e.g. model_type='vit'."
                )
            model_type = vision_config.pop("model_type")
            if model_type == DelstFeaturesConfig.model_type:  # not one of transformers' own
                return DelstFeaturesConfig(**vision_config)
            return AutoConfig.for_model(model_type, **vision_config)
        return vision_config

    def _check_values(self, has_cones: bool) -> None:
        _check_choice("geometry", self.geometry, ("lorentz", "cosine", "euclidean"))
        _check_choice("cross_parent", self.cross_parent, ("gene", "image"))
        _check_choice("entailment", self.entailment, (*ENTAILMENT_FORMS, "none"))
        for name in ("radius_floor", "regression_weight"):
            _check_range(name, getattr(self, name), 0, closed=True)
        _check_choice("intra_parent", self.intra_parent, ("fewer", "more"))
        _check_choice("vision_pooling", self.vision_pooling, ("auto", "pooler", "cls", "mean", "cls+mean"))
        _check_choice("head_inputs", self.head_inputs, ("image", "gene", "both"))
        _check_range("head_dropout", self.head_dropout, 0, 1, closed=True)
        _check_range("projection_dim", self.projection_dim, 1, closed=True)
        for name in ("curvature_init", "min_radius", "cross_aperture_scale", "intra_aperture_scale"):
            _check_range(name, getattr(self, name), 0)
        _check_range("intra_min_level_ratio", self.intra_min_level_ratio, 1)
        _check_range("logit_scale_init", self.logit_scale_init, -50, 50, closed=True)
        _check_range("logit_scale_max", self.logit_scale_max, math.exp(self.logit_scale_init))
        for name in ("cross_entailment_weight", "intra_entailment_weight"):
            weight = getattr(self, name)
            _check_range(name, weight, 0, closed=True)
            if weight > 0 and not has_cones:
                raise ValueError(
                    f"{name}={weight} needs geometry='lorentz' and an entailment: there are no cones for geometry="
                    f"{self.geometry!r}, entailment={self.entailment!r}. Set the weight to 0, or leave it out."
                )


__all__ = ["DelstConfig", "DelstFeaturesConfig", "DelstGeneConfig"]
