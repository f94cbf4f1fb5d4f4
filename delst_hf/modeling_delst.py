"""DELST: an image encoder and a gene encoder whose embeddings meet on a Lorentz hyperboloid (arXiv 2503.00804)."""

import logging
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from .configuration_delst import DelstConfig, DelstGeneConfig
from .lorentz import exp_map0
from .losses import contrastive_loss, entailment_loss, gather_across_ranks, intra_entailment_loss, similarity_logits

logger = logging.getLogger(__name__)


@dataclass
class DelstOutput(ModelOutput):
    """Output of `DelstModel`.

    Attributes:
        loss: Weighted sum of the terms (0-d), when ``return_loss=True``.
        contrastive_loss: Symmetric InfoNCE (0-d).
        cross_entailment_loss: Cross-modal entailment before its weight (0-d), None when its weight is 0.
        intra_entailment_loss: Intra-modal entailment before its weight, the mean of both modalities (0-d), None when its
            weight is 0.
        logits_per_image: Similarities (images, genes) times the logit scale; not formed when only the loss is asked for.
        logits_per_gene: Its transpose.
        image_embeds: Space parts on the hyperboloid (batch, projection_dim); unit vectors for ``geometry="cosine"``.
        gene_embeds: The same for the genes.
        vision_model_output: The backbone's output, ``pooler_output`` being the pooled features (batch, vision width).
        gene_model_output: The gene encoder's output, ``pooler_output`` its features (batch, hidden_size).
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    cross_entailment_loss: Tensor | None = None
    intra_entailment_loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_gene: Tensor | None = None
    image_embeds: Tensor | None = None
    gene_embeds: Tensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    gene_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class DelstPreTrainedModel(PreTrainedModel):
    """What the DELST models share: configuration, initialisation, capabilities of the backbone passed through."""

    config_class = DelstConfig
    config: DelstConfig
    base_model_prefix = "delst"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # 1/sqrt(fan_in) keeps unit variance through the projections, so that embeddings start at a radius near 1.
            std = getattr(self.config, "initializer_range", None) or module.in_features**-0.5
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DelstGeneModel):
            init.zeros_(module.missing_values)
        elif isinstance(module, DelstModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init)
            init.constant_(module.log_curvature, math.log(self.config.curvature_init))
            for log_scale in (module.log_image_scale, module.log_gene_scale):
                init.constant_(log_scale, -0.5 * math.log(self.config.projection_dim))


class DelstGeneModel(DelstPreTrainedModel):
    """Gene encoder: normalised expression of the vocabulary's genes -> one feature vector a spot."""

    config_class = DelstGeneConfig
    config: DelstGeneConfig
    base_model_prefix = "gene_model"
    main_input_name = "gene_values"
    input_modalities = ()

    def __init__(self, config: DelstGeneConfig):
        super().__init__(config)
        self.register_buffer("missing_values", torch.zeros(config.num_genes))
        if config.encoder == "linear":
            self.layers = nn.Sequential(nn.Linear(config.num_genes, config.hidden_size))
        else:
            widths = [config.num_genes] + [config.hidden_size] * config.num_hidden_layers
            self.layers = nn.Sequential(
                *(self._block(config, width_in, width_out) for width_in, width_out in pairwise(widths))
            )
        self.post_init()

    @staticmethod
    def _block(config: DelstGeneConfig, width_in: int, width_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width_in, width_out),
            nn.LayerNorm(width_out, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )

    @torch.no_grad()
    def set_missing_values(self, values: Tensor) -> None:
        """Set what stands in for a gene that a panel does not measure, usually its mean over the training spots (genes,)."""
        self.missing_values.copy_(values)

    def forward(
        self, gene_values: Tensor, gene_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode expression.

        Args:
            gene_values: Normalised expression (batch, num_genes).
            gene_mask: (batch, num_genes) bool, True where the gene was measured. Elsewhere `missing_values` stand in: a
                gene that the panel lacks is not a gene that the tissue lacks.

        Returns:
            ``pooler_output`` of shape (batch, hidden_size).

        Raises:
            ValueError: If the number of genes is not that of the vocabulary.
        """
        if gene_values.shape[-1] != self.config.num_genes:
            raise ValueError(
                f"gene_values has {gene_values.shape[-1]} genes, this model's vocabulary {self.config.num_genes}. Pass "
                "counts through the model's own processor: DelstProcessor.from_pretrained(folder)(counts=, gene_names=)."
            )
        gene_values = gene_values.to(self.missing_values.dtype)
        if gene_mask is not None:
            gene_values = torch.where(gene_mask, gene_values, self.missing_values)
        features = self.layers(gene_values)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)


def pool_vision_output(outputs: Any, pooling: str) -> Tensor:
    """One vector a patch from the output of any vision backbone.

    Args:
        outputs: Output with ``pooler_output`` (batch, width) or (batch, width, 1, 1), or with ``last_hidden_state`` as
            tokens (batch, tokens, width) or as a map (batch, width, height, width).
        pooling: ``"auto"``, ``"pooler"``, ``"cls"`` or ``"mean"``.

    Returns:
        Pooled features (batch, width).

    Raises:
        ValueError: If the backbone does not offer that kind of pooling.
    """
    pooled = getattr(outputs, "pooler_output", None)
    if pooling == "auto":
        pooling = "mean" if pooled is None else "pooler"
    if pooling == "pooler":
        if pooled is None:
            raise ValueError("vision_pooling='pooler', but this backbone has no pooler. Use 'cls' or 'mean'.")
        return pooled.flatten(1)
    hidden = outputs.last_hidden_state
    if pooling == "cls":
        if hidden.dim() != 3:
            raise ValueError("vision_pooling='cls', but this backbone returns a feature map. Use 'pooler' or 'mean'.")
        return hidden[:, 0]
    return hidden.flatten(2).mean(-1) if hidden.dim() == 4 else hidden.mean(1)


class DelstModel(DelstPreTrainedModel):
    """Image and gene encoders with a joint embedding on the Lorentz hyperboloid.

    Args:
        config: The configuration.
        vision_model: A backbone that is already built; by default it is built from ``config.vision_config``.
    """

    def __init__(self, config: DelstConfig, vision_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.vision_model = AutoModel.from_config(config.vision_config) if vision_model is None else vision_model
        # One object, so that settings such as the attention implementation reach the tower.
        self.vision_model.config = self.config.vision_config
        self.gene_model = DelstGeneModel(config.gene_config)
        if config.vision_feature_size is None:
            config.vision_feature_size = self._measure_vision_feature_size()
        self.visual_projection = nn.Linear(config.vision_feature_size, config.projection_dim, bias=False)
        self.gene_projection = nn.Linear(config.gene_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))
        # Scalars that the geometry does not use are kept (one checkpoint layout) but not trained.
        has_curvature, has_scale = config.geometry == "lorentz", config.geometry != "cosine"
        self.log_curvature = nn.Parameter(torch.zeros(()), requires_grad=has_curvature and config.learn_curvature)
        self.log_image_scale = nn.Parameter(torch.zeros(()), requires_grad=has_scale)
        self.log_gene_scale = nn.Parameter(torch.zeros(()), requires_grad=has_scale)
        self.post_init()

    @torch.no_grad()
    def _measure_vision_feature_size(self) -> int:
        """Width of the pooled features, from one blank image: configurations do not agree on a name for it."""
        size = getattr(self.config.vision_config, "image_size", None) or 64
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(self.config.vision_config, "num_channels", 3)
        was_training = self.vision_model.training
        blank = torch.zeros(1, channels, height, width, device=self.vision_model.device, dtype=self.vision_model.dtype)
        features = pool_vision_output(self.vision_model.eval()(blank, return_dict=True), self.config.vision_pooling)
        self.vision_model.train(was_training)
        return features.shape[-1]

    @classmethod
    def from_vision_gene_pretrained(
        cls,
        vision: str | os.PathLike | PreTrainedModel,
        gene_config: DelstGeneConfig | dict | None = None,
        vision_kwargs: dict[str, Any] | None = None,
        **config: Any,
    ) -> "DelstModel":
        """Start from a pretrained vision backbone; gene encoder, projections and scalars are new.

        Args:
            vision: Hub id or local folder of any vision backbone (of a two-tower model such as CLIP, its vision tower), or
                a backbone in memory.
            gene_config: Configuration of the gene encoder.
            vision_kwargs: Passed to ``AutoModel.from_pretrained``, for example ``{"revision": ...}``.
            **config: Any argument of `DelstConfig`, for example ``projection_dim=256``.

        Returns:
            The model, in float32 and in eval mode.

        Raises:
            FileNotFoundError: If `vision` looks like a local path and is not a folder.
        """
        if not isinstance(vision, PreTrainedModel):
            vision, config = _load_vision_model(os.fspath(vision), dict(vision_kwargs or {}), config)
        # A composite configuration resets the attention implementation of its parts; the backbone keeps its own.
        attention = {"attn_implementation": {"vision_config": vision.config._attn_implementation}}
        model_config = DelstConfig(vision_config=vision.config, gene_config=gene_config, **{**attention, **config})
        return cls(model_config, vision_model=vision).eval()

    def train(self, mode: bool = True) -> "DelstModel":
        """As in torch, except that the backbone's BatchNorm layers stay in eval mode (``config.freeze_batch_norm``)."""
        super().train(mode)
        if mode and self.config.freeze_batch_norm:
            for module in self.vision_model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @property
    def curvature(self) -> Tensor:
        """``c`` of the hyperboloid of curvature ``-c`` (0-d, float32)."""
        return self.log_curvature.float().exp()

    @torch.no_grad()
    def clamp_scalars(self) -> None:
        """Bring the scalars back into their ranges; the trainer calls it after each optimiser step.

        The curvature stays within a factor 10 of its start, the similarity multiplier at most ``logit_scale_max``, and the
        scale of each modality at most 1.
        """
        low, high = self.curvature_bounds
        self.log_curvature.clamp_(math.log(low), math.log(high))
        self.logit_scale.clamp_(max=math.log(self.config.logit_scale_max))
        self.log_image_scale.clamp_(max=0.0)
        self.log_gene_scale.clamp_(max=0.0)

    @property
    def curvature_bounds(self) -> tuple[float, float]:
        """Lowest and highest curvature that `clamp_scalars` allows."""
        return self.config.curvature_init / 10, self.config.curvature_init * 10

    def embed_features(self, features: Tensor, modality: str) -> Tensor:
        """Head of one modality, in float32 under any autocast: standardise, project, scale, map onto the manifold.

        Args:
            features: Pooled features of the backbone or of the gene encoder (batch, width).
            modality: ``"image"`` or ``"gene"``.

        Returns:
            Embeddings (batch, projection_dim).
        """
        projection, log_scale = (
            (self.visual_projection, self.log_image_scale)
            if modality == "image"
            else (self.gene_projection, self.log_gene_scale)
        )
        with torch.autocast(device_type=features.device.type, enabled=False):
            # Backbones differ a hundredfold in the size of their features. Standardised, every one of them starts near
            # radius 1, neither collapsed to the origin nor beyond the radius cap, where gradients vanish.
            standardised = F.layer_norm(features.float(), features.shape[-1:])
            projected = F.linear(standardised, projection.weight.float())
            if self.config.geometry == "cosine":
                return F.normalize(projected, dim=-1)
            projected = projected * log_scale.float().exp()
            return projected if self.config.geometry == "euclidean" else exp_map0(projected, self.curvature)

    def _encode_images(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        outputs = self.vision_model(pixel_values=pixel_values.to(self.vision_model.dtype), return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=pool_vision_output(outputs, self.config.vision_pooling),
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Embed patches.

        Args:
            pixel_values: Patches as the processor returns them (batch, 3, height, width).

        Returns:
            ``pooler_output`` holds the embeddings (batch, projection_dim), ``last_hidden_state`` that of the backbone.
        """
        outputs = self._encode_images(pixel_values, **kwargs)
        outputs.pooler_output = self.embed_features(outputs.pooler_output, "image")
        return outputs

    def get_gene_features(
        self, gene_values: Tensor, gene_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Embed expression profiles.

        Args:
            gene_values: Normalised expression (batch, genes).
            gene_mask: (batch, genes) bool, True where measured; None when all are.

        Returns:
            ``pooler_output`` holds the embeddings (batch, projection_dim).
        """
        outputs = self.gene_model(gene_values, gene_mask, **kwargs)
        outputs.pooler_output = self.embed_features(outputs.pooler_output, "gene")
        return outputs

    def forward(
        self,
        pixel_values: Tensor,
        gene_values: Tensor,
        gene_mask: Tensor | None = None,
        level: Tensor | None = None,
        slide_ids: Tensor | None = None,
        return_loss: bool | None = None,
        across_ranks: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DelstOutput | tuple[Any, ...]:
        """Embed pairs and, when asked, compute the losses.

        Args:
            pixel_values: Patches (batch, 3, height, width).
            gene_values: Normalised expression of the same spots (batch, genes).
            gene_mask: (batch, genes) bool, True where measured; None when all are.
            level: Hierarchy key (batch,), the number of expressed genes by default; needed by the intra-modal loss.
            slide_ids: Slide of each spot (batch,) int; None takes the batch for one slide.
            return_loss: Compute the losses instead of the logits.
            across_ranks: Take negatives and ordered pairs from the batches of all processes; all must call forward.
            return_dict: False for a plain tuple.
            **kwargs: Passed to the vision backbone.
        """
        vision_output = self._encode_images(pixel_values, **kwargs)
        gene_output = self.gene_model(gene_values, gene_mask)
        image_embeds = self.embed_features(vision_output.pooler_output, "image")
        gene_embeds = self.embed_features(gene_output.pooler_output, "gene")
        if return_loss:
            results = self._losses(image_embeds, gene_embeds, level, slide_ids, across_ranks)
        else:
            logits = self.similarity(image_embeds, gene_embeds)
            results = {"logits_per_image": logits, "logits_per_gene": logits.T}
        # Built at the end and in one piece: the order of a ModelOutput, and of its tuple, is that of assignment.
        output = DelstOutput(
            **results,
            image_embeds=image_embeds,
            gene_embeds=gene_embeds,
            vision_model_output=vision_output,
            gene_model_output=gene_output,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def similarity(self, image_embeds: Tensor, gene_embeds: Tensor) -> Tensor:
        """Similarity of every image to every gene embedding, in this model's geometry: (images, genes)."""
        with torch.autocast(device_type=image_embeds.device.type, enabled=False):
            scale = self.logit_scale.float().exp()
            return similarity_logits(image_embeds, gene_embeds, scale, self.curvature, self.config.geometry)

    def _losses(
        self, image: Tensor, gene: Tensor, level: Tensor | None, slide_ids: Tensor | None, across_ranks: bool
    ) -> dict[str, Tensor]:
        """Every term of the objective and, first, their weighted sum."""
        config, curvature = self.config, self.curvature
        with torch.autocast(device_type=image.device.type, enabled=False):
            contrastive = contrastive_loss(
                image, gene, self.logit_scale.float().exp(), curvature, config.geometry, across_ranks
            )
            terms = {"loss": contrastive, "contrastive_loss": contrastive}
            if across_ranks and config.geometry == "lorentz":
                image, gene = gather_across_ranks(image)[0], gather_across_ranks(gene)[0]
            if config.cross_entailment_weight > 0:
                parent, child = (gene, image) if config.cross_parent == "gene" else (image, gene)
                cross = entailment_loss(parent, child, curvature, config.cross_aperture_scale, config.min_radius)
                terms["cross_entailment_loss"] = cross
                terms["loss"] = terms["loss"] + config.cross_entailment_weight * cross
            if config.intra_entailment_weight > 0:
                intra = self._intra_loss(image, gene, level, slide_ids, across_ranks)
                terms["intra_entailment_loss"] = intra
                terms["loss"] = terms["loss"] + config.intra_entailment_weight * intra
        return terms

    def _intra_loss(
        self, image: Tensor, gene: Tensor, level: Tensor | None, slide_ids: Tensor | None, across_ranks: bool
    ) -> Tensor:
        """Intra-modal entailment, the mean of both modalities."""
        config = self.config
        if level is None:
            raise ValueError(
                f"intra_entailment_weight={config.intra_entailment_weight} needs `level`, the number of expressed genes of "
                "each spot (batch,), which DelstProcessor returns. Pass it, or set the weight to 0."
            )
        if across_ranks:
            level = gather_across_ranks(level)[0]
            slide_ids = None if slide_ids is None else gather_across_ranks(slide_ids)[0]
        terms = [
            intra_entailment_loss(
                embeds,
                level,
                self.curvature,
                slide_ids,
                config.intra_parent,
                config.intra_min_level_ratio,
                config.intra_aperture_scale,
                config.min_radius,
            )
            for embeds in (image, gene)
        ]
        return (terms[0] + terms[1]) / 2


def _load_vision_model(
    vision: str, vision_kwargs: dict[str, Any], config: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a backbone; choose its pooling where its pooler came without weights.

    Checkpoints of image classifiers have no pooler, and transformers then adds one at random: pooling by the class token
    is what such a network was trained for.
    """
    if (vision.startswith(".") or os.path.isabs(vision)) and not os.path.isdir(vision):
        raise FileNotFoundError(
            f"No folder at {vision!r}. Give a folder that holds config.json and model.safetensors, or a Hub id "
            "such as 'facebook/dinov2-small'."
        )
    vision_config: PreTrainedConfig = AutoConfig.from_pretrained(vision, **vision_kwargs)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    model, info = AutoModel.from_pretrained(
        vision, **{"dtype": torch.float32, **vision_kwargs, "config": vision_config, "output_loading_info": True}
    )
    if config.get("vision_pooling", "auto") == "auto" and any("pooler" in key for key in info["missing_keys"]):
        logger.warning("%s has no pooler weights: vision_pooling='cls' is taken in place of a random pooler.", vision)
        config = {**config, "vision_pooling": "cls"}
    return model, config


__all__ = ["DelstGeneModel", "DelstModel", "DelstOutput", "DelstPreTrainedModel", "pool_vision_output"]
