"""DELST: an image encoder and a gene encoder whose embeddings meet on a Lorentz hyperboloid (arXiv 2503.00804)."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_delst import DelstConfig, DelstGeneConfig
from .contrastive import similarity_logits
from .lorentz import exp_map0, log_map0
from .losses import objective
from .modeling_delst_gene import DelstGeneModel
from .vision_delst import build_vision_model, encode_images, load_vision_model, measure_vision_model


@dataclass
class DelstOutput(ModelOutput):
    """Output of `DelstModel`.

    Attributes:
        loss: Weighted sum of the terms (0-d), when ``return_loss=True``.
        contrastive_loss: Symmetric InfoNCE (0-d).
        cross_entailment_loss: Cross-modal entailment before its weight (0-d), None when its weight is 0.
        intra_entailment_loss: Intra-modal entailment before its weight, the mean of both modalities (0-d), None when its
            weight is 0.
        regression_loss: Squared error of the expression predicted from the image embedding, before its weight (0-d), None when
            its weight is 0.
        logits_per_image: Similarities (images, genes) times the logit scale; None with ``return_loss=True``.
        logits_per_gene: Transpose of ``logits_per_image``.
        image_embeds: Space parts on the hyperboloid (batch, projection_dim); unit vectors for ``geometry="cosine"``.
        gene_embeds: The same for the genes.
        vision_model_output: The backbone's output, ``pooler_output`` being the pooled features (batch, vision width).
        gene_model_output: The gene encoder's output, ``pooler_output`` its features (batch, hidden_size).

    Examples:
        >>> output = DelstOutput(loss=torch.tensor(0.5), image_embeds=torch.zeros(2, 8))
        >>> output.loss.item(), output["image_embeds"].shape, output.gene_embeds is None
        (0.5, torch.Size([2, 8]), True)
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    cross_entailment_loss: Tensor | None = None
    intra_entailment_loss: Tensor | None = None
    regression_loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_gene: Tensor | None = None
    image_embeds: Tensor | None = None
    gene_embeds: Tensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    gene_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class Float32Linear(nn.Linear):
    """A linear layer that computes and stays in float32 where the model around it is built in or cast to half precision."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None):
        super().__init__(in_features, out_features, bias, device, dtype=torch.float32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Linear":
        return super()._apply(keep_float32(fn), recurse)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


def keep_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap what ``Module.to`` and the like apply to a tensor: never cast to half precision, which casting back cannot undo."""

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return tensor.to(result.device) if result.dtype in (torch.float16, torch.bfloat16) else result

    return moved


class DelstPreTrainedModel(PreTrainedModel):
    """Base of the DELST models: configuration, initialisation, capabilities passed through from the backbone, checkpoints."""

    config_class: type[PreTrainedConfig] = DelstConfig
    config: Any
    base_model_prefix = "delst"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["DelstGeneModel"]
    # The head. Its logit_scale must not match that of a backbone (swinv2).
    _keep_in_fp32_modules_strict = [
        "(?:visual_projection|expression_head)",  # the second exists only with a regression weight
        "gene_projection",
        r"(?<!\.)(?:delst\.)?logit_scale",
        "log_curvature",
        "log_image_scale",
        "log_gene_scale",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # 1/sqrt(fan_in) keeps unit variance through the projections, so that embeddings start at a radius near 1.
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, DelstModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init)
            init.constant_(module.log_curvature, math.log(self.config.curvature_init))
            for log_scale in (module.log_image_scale, module.log_gene_scale):
                init.constant_(log_scale, -0.5 * math.log(self.config.projection_dim))
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load as transformers does, and fetch the backbone of a checkpoint that was saved without it.

        Args:
            pretrained_model_name_or_path: Local folder or Hub id.
            *model_args: As in transformers.
            **kwargs: As in transformers. In addition, for a checkpoint without its backbone: ``vision_path``, the local folder
                or Hub id of the backbone, by default the id and revision that the checkpoint names; and ``vision_kwargs``,
                options for loading the backbone, such as ``{"trust_remote_code": True}``.

        Raises:
            OSError: If the backbone cannot be reached.
            ValueError: If the backbone is not the one that the checkpoint was trained on, or ``vision_path`` is given although
                the checkpoint holds its backbone; if weights are missing, unknown or out of range (a new task head aside).
        """
        from .backbone_delst import load_checkpoint

        return load_checkpoint(cls, super().from_pretrained, pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, save_backbone: bool | None = None, **kwargs: Any) -> Any:
        """Save as transformers does; ``save_backbone=False`` leaves the backbone out.

        Args:
            save_directory: Where to write.
            *args: As in transformers.
            save_backbone: False writes heads and LoRA only, with the id, revision and fingerprint of the backbone.
                Default: ``config.save_backbone``.
            **kwargs: As in transformers.

        Raises:
            ValueError: If the backbone could not be fetched again unchanged.
        """
        setting = self.config.save_backbone
        self.config.save_backbone = setting if save_backbone is None else save_backbone
        try:
            if not self.config.save_backbone:
                from .backbone_delst import weights_without_backbone

                # The original format renames the layers of some backbones, and LoRA must find them under their current names.
                kwargs |= {"state_dict": weights_without_backbone(self), "save_original_format": False}
            return super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.save_backbone = setting


class DelstModel(DelstPreTrainedModel):
    """Image and gene encoders with a joint embedding on the Lorentz hyperboloid.

    Args:
        config: The configuration.
        vision_model: A backbone that is already built; by default it is built from ``config.vision_config``.

    >>> vision = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    ...           "patch_size": 8, "intermediate_size": 16}
    >>> config = DelstConfig(vision_config=vision, gene_config={"num_genes": 5, "hidden_size": 8}, projection_dim=4)
    >>> model = DelstModel(config).eval()
    >>> outputs = model(pixel_values=torch.zeros(2, 3, 16, 16), gene_values=torch.rand(2, 5))
    >>> outputs.image_embeds.shape, outputs.logits_per_image.shape
    (torch.Size([2, 4]), torch.Size([2, 2]))
    """

    def __init__(self, config: DelstConfig, vision_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.vision_model = build_vision_model(config.vision_config) if vision_model is None else vision_model
        # One shared object, so that settings such as the attention implementation reach the tower.
        self.vision_model.config = self.config.vision_config
        self.gene_model = DelstGeneModel(self.config.gene_config)
        if config.vision_feature_size is None:
            config.vision_feature_size = measure_vision_model(self.vision_model, config.vision_pooling)[0]
        self.visual_projection = Float32Linear(config.vision_feature_size, config.projection_dim, bias=False)
        self.gene_projection = Float32Linear(self.config.gene_config.hidden_size, config.projection_dim, bias=False)
        if config.regression_weight > 0:
            self.expression_head = Float32Linear(config.projection_dim, self.config.gene_config.num_genes)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init, dtype=torch.float32))
        # Scalars that the geometry does not use are kept (one checkpoint layout) but not trained.
        has_curvature, has_scale = config.geometry == "lorentz", config.geometry != "cosine"
        learned = has_curvature and config.learn_curvature
        self.log_curvature = nn.Parameter(torch.zeros((), dtype=torch.float32), requires_grad=learned)
        self.log_image_scale = nn.Parameter(torch.zeros((), dtype=torch.float32), requires_grad=has_scale)
        self.log_gene_scale = nn.Parameter(torch.zeros((), dtype=torch.float32), requires_grad=has_scale)
        self.post_init()

    @classmethod
    def from_vision_gene_pretrained(
        cls,
        vision: str | os.PathLike | PreTrainedModel,
        gene_config: DelstGeneConfig | dict | None = None,
        vision_kwargs: dict[str, Any] | None = None,
        **config: Any,
    ) -> "DelstModel":
        """Build a model on a pretrained vision backbone; gene encoder, projections and scalars are newly initialised.

        Args:
            vision: Hub id or local folder of any vision backbone (for a two-tower model such as CLIP, its vision tower is
                used), or a backbone in memory.
            gene_config: Configuration of the gene encoder.
            vision_kwargs: Passed to ``AutoModel.from_pretrained``, for example ``{"revision": ...}``.
            **config: Any argument of `DelstConfig`, for example ``projection_dim=256``.

        Returns:
            The model, in float32 and in eval mode.

        Raises:
            FileNotFoundError: If `vision` looks like a local path and is not a folder.
        """
        if not isinstance(vision, PreTrainedModel):
            from .backbone_delst import describe_source

            source = os.fspath(vision)
            vision, config = load_vision_model(source, dict(vision_kwargs or {}), config)
            config = {"vision_source": describe_source(source, vision, config.get("vision_pooling", "auto")), **config}
            vision.config._name_or_path = config["vision_source"]["id"]  # never a path of this machine
        # A composite configuration resets the attention implementation of its parts; the backbone keeps its own.
        attention = {"attn_implementation": {"vision_config": vision.config._attn_implementation}}
        model_config = DelstConfig(vision_config=vision.config, gene_config=gene_config, **{**attention, **config})
        return cls(model_config, vision_model=vision).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DelstModel":
        """Do as in torch, except that no cast reaches the head: its scalars and projections stay in float32."""
        if recurse:
            for module in self.children():
                module._apply(fn)
        return super()._apply(keep_float32(fn), recurse=False)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the towers; the head is always in float32."""
        return self.gene_model.dtype

    def train(self, mode: bool = True) -> "DelstModel":
        """Do as in torch, except that the backbone's BatchNorm layers stay in eval mode (``config.freeze_batch_norm``)."""
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
        """Clamp the scalars to their ranges; the trainer calls this after each optimiser step.

        The curvature stays within a factor of 10 of its initial value, the similarity multiplier is at most
        ``logit_scale_max``, and the scale of each modality at most 1.
        """
        for name, (low, high) in self.scalar_bounds().items():
            getattr(self, name).clamp_(low, high)

    def scalar_bounds(self) -> dict[str, tuple[float, float]]:
        """Return the range of each scalar of the head as it is stored, which is as a logarithm."""
        low, high = self.curvature_bounds
        return {
            "log_curvature": (math.log(low), math.log(high)),
            "logit_scale": (-math.inf, math.log(self.config.logit_scale_max)),
            "log_image_scale": (-math.inf, 0.0),
            "log_gene_scale": (-math.inf, 0.0),
        }

    @property
    def curvature_bounds(self) -> tuple[float, float]:
        """Lowest and highest curvature that `clamp_scalars` allows."""
        return self.config.curvature_init / 10, self.config.curvature_init * 10

    def resize_gene_embeddings(self, num_genes: int) -> None:
        """Make room for genes added by `DelstGeneFeatureExtractor.add_genes`: see `DelstGeneModel.resize_gene_embeddings`."""
        added = num_genes - self.config.gene_config.num_genes
        self.gene_model.resize_gene_embeddings(num_genes)
        if self.config.regression_weight > 0:
            head = self.expression_head
            head.weight = nn.Parameter(F.pad(head.weight.detach(), (0, 0, 0, added)))
            head.bias = nn.Parameter(F.pad(head.bias.detach(), (0, added)))
            head.out_features = num_genes

    def embed_features(self, features: Tensor, modality: str) -> Tensor:
        """Apply the head of one modality, in float32 under any autocast: standardise, project, scale, map onto the manifold.

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
            # Backbones differ a hundredfold in the size of their features. Standardised, all of them start near radius 1,
            # neither collapsed to the origin nor beyond the radius cap, where gradients vanish.
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            standardised = F.layer_norm(features, features.shape[-1:])
            projected = projection(standardised)
            if self.config.geometry == "cosine":
                return F.normalize(projected, dim=-1)
            projected = projected * log_scale.float().exp()
            return projected if self.config.geometry == "euclidean" else exp_map0(projected, self.curvature)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Embed patches.

        Args:
            pixel_values: Patches as the processor returns them (batch, 3, height, width).

        Returns:
            ``pooler_output`` holds the embeddings (batch, projection_dim), ``last_hidden_state`` that of the backbone.
        """
        outputs = encode_images(self.vision_model, pixel_values, self.config.vision_pooling, **kwargs)
        outputs.pooler_output = self.embed_features(outputs.pooler_output, "image")
        return outputs

    @can_return_tuple
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
        outputs = self.gene_model(gene_values, gene_mask, return_dict=True, **kwargs)
        outputs.pooler_output = self.embed_features(outputs.pooler_output, "gene")
        return outputs

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        gene_values: Tensor,
        gene_mask: Tensor | None = None,
        level: Tensor | None = None,
        slide_ids: Tensor | None = None,
        return_loss: bool | None = None,
        across_ranks: bool = False,
        negative_groups: Tensor | None = None,
        part_pixel_values: Tensor | None = None,
        part_gene_mask: Tensor | None = None,
        niche_pixel_values: Tensor | None = None,
        niche_gene_values: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DelstOutput:
        """Embed pairs and, when asked, compute the losses.

        Args:
            pixel_values: Patches (batch, 3, height, width).
            gene_values: Normalised expression of the same spots (batch, genes).
            gene_mask: (batch, genes) bool, True where measured; None when all are.
            level: Hierarchy key (batch,), the number of expressed genes by default; needed by the intra-modal loss.
            slide_ids: Slide of each spot (batch,) int; None treats the batch as one slide.
            return_loss: Compute the losses instead of the logits.
            across_ranks: Take negatives and ordered pairs from the batches of all processes; all must call forward.
            negative_groups: (batch,) int; spots of one group are not each other's negatives. None: all others are negatives.
            part_pixel_values: A crop of each patch, of the same shape as `pixel_values`; with it the loss is that of nested
                views: parts entail wholes, in place of the order by `level`.
            part_gene_mask: (batch, genes) bool, which genes are the part of each profile; needed with `part_pixel_values`.
            niche_pixel_values: A wide patch around each spot, of the same shape as `pixel_values`; with it the loss is that of
                two levels: spots entail their niches, in place of the order by `level`.
            niche_gene_values: Normalised expression of each niche (batch, genes); needed with `niche_pixel_values`.
            **kwargs: Passed to the vision backbone, except ``return_dict``: False returns a plain tuple.
        """
        vision_output = encode_images(self.vision_model, pixel_values, self.config.vision_pooling, **kwargs)
        gene_output = self.gene_model(gene_values, gene_mask, return_dict=True)
        image_embeds = self.embed_features(vision_output.pooler_output, "image")
        gene_embeds = self.embed_features(gene_output.pooler_output, "gene")
        if return_loss:
            parts = niches = None
            if part_pixel_values is not None:
                parts = self._embed_pair(part_pixel_values, gene_values, part_gene_mask, **kwargs)
            if niche_pixel_values is not None and niche_gene_values is not None:
                niches = self._embed_pair(niche_pixel_values, niche_gene_values, gene_mask, **kwargs)
            results = self.loss_terms(
                image_embeds,
                gene_embeds,
                level,
                slide_ids,
                across_ranks=across_ranks,
                negative_groups=negative_groups,
                parts=parts,
                niches=niches,
                gene_values=gene_values,
                gene_mask=gene_mask,
            )
        else:
            logits = self.similarity(image_embeds, gene_embeds)
            results = {"logits_per_image": logits, "logits_per_gene": logits.T}
        # Built at the end and at once: a ModelOutput, and its tuple, have the order of assignment.
        return DelstOutput(
            **results,
            image_embeds=image_embeds,
            gene_embeds=gene_embeds,
            vision_model_output=vision_output,
            gene_model_output=gene_output,
        )

    def _embed_pair(
        self, pixel_values: Tensor, gene_values: Tensor, gene_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Embed additional patches and profiles of the spots: a part of each spot, or its niche."""
        return (
            self.get_image_features(pixel_values, return_dict=True, **kwargs).pooler_output,
            self.get_gene_features(gene_values, gene_mask, return_dict=True).pooler_output,
        )

    def similarity(self, image_embeds: Tensor, gene_embeds: Tensor) -> Tensor:
        """Return the similarity of every image to every gene embedding, in this model's geometry: (images, genes)."""
        with torch.autocast(device_type=image_embeds.device.type, enabled=False):
            scale = self.logit_scale.float().exp()
            return similarity_logits(image_embeds, gene_embeds, scale, self.curvature, self.config.geometry)

    def loss_terms(
        self,
        image_embeds: Tensor,
        gene_embeds: Tensor,
        level: Tensor | None = None,
        slide_ids: Tensor | None = None,
        **given: Any,
    ) -> dict[str, Tensor]:
        """Return the losses of `forward` from embeddings alone: first the weighted sum, then every term of the objective.

        Args:
            image_embeds: Image embeddings (batch, projection_dim).
            gene_embeds: Gene embeddings of the same spots (batch, projection_dim).
            level: Hierarchy key (batch,), needed by the intra-modal loss without parts.
            slide_ids: Slide of each spot (batch,) int; None treats the batch as one slide.
            **given: Others of `losses.objective`: negative_groups, parts, niches, gene_values, gene_mask, across_ranks.

        Returns:
            ``loss``, ``contrastive_loss`` and the other terms whose weight is above 0 (0-d tensors).

        Raises:
            ValueError: If the intra-modal loss is asked for without `level`.
        """
        with torch.autocast(device_type=image_embeds.device.type, enabled=False):
            predicted = self.predict_expression(image_embeds) if self.config.regression_weight > 0 else None
            given |= {"level": level, "slide_ids": slide_ids, "predicted": predicted}
            pair, scale = (image_embeds, gene_embeds), self.logit_scale.float().exp()
            return objective(self.config, pair, scale, self.curvature, **given)

    def predict_expression(self, image_embeds: Tensor) -> Tensor:
        """Predict normalised expression (batch, genes) from image embeddings, by the head that ``regression_weight`` trains.

        The head predicts the deviation from the genes' means over the training spots, from the embedding in the tangent space.

        Raises:
            ValueError: If this model has no such head.
        """
        if self.config.regression_weight <= 0:
            raise ValueError(
                "This model has no expression head: it was trained with regression_weight=0. Train with "
                "--regression_weight 1, or fit a head on its features with `delst fit`."
            )
        flat = image_embeds if self.config.geometry != "lorentz" else log_map0(image_embeds, self.curvature)
        return self.expression_head(flat) + self.gene_model.missing_values.float()


__all__ = ["DelstGeneModel", "DelstModel", "DelstOutput", "DelstPreTrainedModel"]
