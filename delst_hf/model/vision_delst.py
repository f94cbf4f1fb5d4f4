"""Any vision backbone of transformers as one function of patches: loading it, and pooling its output per patch."""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,  # from its own module: imported elsewhere, 5.17 requires torchvision
)

from .configuration_delst import DelstFeaturesConfig

logger = logging.getLogger(__name__)


class GivenFeatures(nn.Module):
    """Stand-in for a backbone whose features are already computed: ``pixel_values`` are the features.

    Args:
        config: Configuration of the backbone, or a `DelstFeaturesConfig`.
    """

    dtype = torch.float32

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the features (batch, width) unchanged: without a last hidden state, no pooling is applied to them."""
        if isinstance(self.config, DelstFeaturesConfig) and pixel_values.shape[1:] != (self.config.hidden_size,):
            raise ValueError(
                f"the model reads features of width {self.config.hidden_size} that were computed elsewhere, but was "
                f"given {tuple(pixel_values.shape)}. Pass pixel_values (batch, {self.config.hidden_size}): the "
                f"features of {self.config.encoder or 'the encoder it was trained with'}, not patches."
            )
        return BaseModelOutputWithPooling(pooler_output=pixel_values)


def build_vision_model(config: Any) -> Any:
    """Build a backbone with random weights, or the stand-in for one whose features are computed elsewhere."""
    return GivenFeatures(config) if isinstance(config, DelstFeaturesConfig) else AutoModel.from_config(config)


def encode_images(vision_model: PreTrainedModel, pixel_values: Tensor, pooling: str, **kwargs: Any) -> Any:
    """Run a backbone, and pool its output.

    Args:
        vision_model: The backbone.
        pixel_values: Patches (batch, channels, height, width).
        pooling: As in `pool_vision_output`.
        **kwargs: Passed to the backbone.

    Returns:
        A `BaseModelOutputWithPooling` whose ``pooler_output`` are the pooled features (batch, width), whatever the backbone.
    """
    outputs = vision_model(pixel_values=pixel_values.to(vision_model.dtype), return_dict=True, **kwargs)
    hidden = outputs.last_hidden_state
    prefix = count_prefix_tokens(vision_model, hidden, *pixel_values.shape[2:])
    return BaseModelOutputWithPooling(
        last_hidden_state=hidden,
        pooler_output=pool_vision_output(outputs, pooling, prefix),
        hidden_states=getattr(outputs, "hidden_states", None),
        attentions=getattr(outputs, "attentions", None),
    )


def count_prefix_tokens(vision_model: PreTrainedModel, hidden: Tensor | None, *image_size: int) -> int:
    """Count the tokens before those of the patches: class token, distillation token, registers.

    Configurations do not agree on a name for it, so it is the number of tokens less the number of patches.

    Args:
        vision_model: The backbone.
        hidden: Its last hidden state; only tokens (batch, tokens, width) have a prefix.
        *image_size: Height and width of its input in pixels.
    """
    if hidden is None or hidden.dim() != 3:
        return 0
    if (timm_model := getattr(vision_model, "timm_model", None)) is not None:
        return getattr(timm_model, "num_prefix_tokens", 0)
    config = vision_model.config
    if config.model_type == "dinov3_convnext":  # its mean feature, before the flattened map
        return 1
    side = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)
    if side is None:
        return 0
    sides = (side, side) if isinstance(side, int) else side
    patches = (image_size[0] // sides[0]) * (image_size[1] // sides[1])
    return max(hidden.shape[1] - patches, 0)  # hierarchical backbones merge patches and have no prefix


def pool_vision_output(outputs: Any, pooling: str, num_prefix_tokens: int = 0) -> Tensor:
    """Return one vector per patch from the output of any vision backbone.

    Args:
        outputs: Output with ``pooler_output`` (batch, width) or (batch, width, 1, 1), or with ``last_hidden_state`` as
            tokens (batch, tokens, width) or as a map (batch, width, height, width). An output without a last hidden
            state is pooled already.
        pooling: ``"auto"``, ``"pooler"``, ``"cls"``, ``"mean"`` or ``"cls+mean"``. The mean is that of the patch tokens.
        num_prefix_tokens: Tokens before those of the patches, the first of them the class token (see
            `count_prefix_tokens`).

    Returns:
        Pooled features (batch, width), twice the width for ``"cls+mean"``.

    Raises:
        ValueError: If the backbone does not offer that kind of pooling.
    """
    pooled: Any = getattr(outputs, "pooler_output", None)
    hidden = outputs.last_hidden_state
    if pooling == "auto":
        pooling = "mean" if pooled is None else "pooler"
    if pooling == "pooler" and pooled is None:
        raise ValueError(
            "vision_pooling='pooler', but this backbone has no pooler. Use 'mean', or 'cls' if it has a class token."
        )
    if pooling == "pooler" or hidden is None:
        return pooled.flatten(1)
    if pooling == "mean":
        return hidden.flatten(2).mean(-1) if hidden.dim() == 4 else hidden[:, num_prefix_tokens:].mean(1)
    if num_prefix_tokens == 0:
        kind = "returns a feature map" if hidden.dim() == 4 else "has patch tokens only, no class token"
        raise ValueError(f"vision_pooling={pooling!r}, but this backbone {kind}. Use 'auto', 'pooler' or 'mean'.")
    class_token = hidden[:, 0]
    return class_token if pooling == "cls" else torch.cat([class_token, hidden[:, num_prefix_tokens:].mean(1)], dim=-1)


@torch.no_grad()
def measure_vision_model(vision_model: PreTrainedModel, pooling: str) -> tuple[int, int]:
    """Return the width of the pooled features and the number of prefix tokens, from a blank image of the backbone's size.

    Configurations do not agree on a name for either.

    Args:
        vision_model: The backbone.
        pooling: As in `pool_vision_output`.
    """
    if isinstance(vision_model.config, DelstFeaturesConfig):
        return vision_model.config.hidden_size, 0
    size = _image_size(vision_model)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision_model.config, "num_channels", 3)
    blank = torch.zeros(1, channels, height, width, device=vision_model.device)
    was_training = vision_model.training
    outputs = encode_images(vision_model.eval(), blank, pooling)
    vision_model.train(was_training)
    return outputs.pooler_output.shape[-1], count_prefix_tokens(vision_model, outputs.last_hidden_state, height, width)


def _image_size(vision_model: PreTrainedModel) -> Any:
    """Return the side, or height and width, of the images that a backbone was trained on, in pixels."""
    if (timm_model := getattr(vision_model, "timm_model", None)) is not None:
        size = getattr(getattr(timm_model, "patch_embed", None), "img_size", None)
        return size or timm_model.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
    return getattr(vision_model.config, "image_size", None) or 64  # convolutions take any size


def read_vision_model(vision: str, options: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """Load a backbone, in float32 unless `options` says otherwise; for a two-tower model such as CLIP, its vision tower.

    Args:
        vision: Hub id or local folder.
        options: Passed to ``AutoModel.from_pretrained``.

    Returns:
        The backbone, and the names of the weights that its checkpoint lacks.

    Raises:
        FileNotFoundError: If `vision` looks like a local path and is not a folder.
        ValueError: If it is a DELST checkpoint.
    """
    if (vision.startswith(".") or os.path.isabs(vision)) and not os.path.isdir(vision):
        raise FileNotFoundError(
            f"No folder at {vision!r}. Give a folder that holds config.json and model.safetensors, or a Hub id "
            "such as 'facebook/dinov2-small'."
        )
    vision_config: PreTrainedConfig = AutoConfig.from_pretrained(vision, **options)
    if vision_config.model_type == "delst":
        raise ValueError(
            f"{vision!r} is a DELST checkpoint, not a vision backbone. Continue it with --init_from {vision}, or load it by "
            "DelstModel.from_pretrained; its backbone alone is DelstModel.from_pretrained(...).vision_model."
        )
    vision_config = without_classes(getattr(vision_config, "vision_config", vision_config))
    model, info = AutoModel.from_pretrained(
        vision, **{"dtype": torch.float32, **options, "config": vision_config, "output_loading_info": True}
    )
    return model, info["missing_keys"]


def without_classes(vision_config: Any) -> Any:
    """Remove the number of classes from the arguments of a timm model, in place; other configurations do not change.

    timm's ``save_for_hf`` writes it there, and transformers, which loads the model without a head, would pass it twice.

    Args:
        vision_config: Configuration of a backbone.
    """
    arguments = getattr(vision_config, "model_args", None)
    if isinstance(arguments, dict):
        vision_config.model_args = {name: value for name, value in arguments.items() if name != "num_classes"}
    return vision_config


def load_vision_model(
    vision: str, vision_kwargs: dict[str, Any], config: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a backbone; if its checkpoint has no weights for its pooler, choose another pooling.

    Checkpoints of image classifiers have no pooler, and transformers then adds a random one. Such a network was trained for
    pooling by the class token, or by the mean if it has none.

    Args:
        vision: Hub id or local folder.
        vision_kwargs: Passed to ``AutoModel.from_pretrained``.
        config: Arguments of `DelstConfig`.

    Returns:
        The backbone, and `config` with the pooling that was chosen.

    Raises:
        FileNotFoundError: If `vision` looks like a local path and is not a folder.
        ValueError: If it is a DELST checkpoint, or lacks weights other than those of a pooler.
    """
    model, missing = read_vision_model(vision, vision_kwargs)
    absent = sorted(name for name in missing if not belongs_to_pooler(name))
    if absent:
        raise ValueError(
            f"{vision} lacks {len(absent)} weights of its backbone, such as {absent[0]!r}, which would be random. Give a "
            "checkpoint whose weights match its config.json, or train from scratch with --vision_config."
        )
    if config.get("vision_pooling", "auto") == "auto" and any(map(belongs_to_pooler, missing)):
        pooling = "cls" if measure_vision_model(model, "mean")[1] else "mean"
        logger.warning(
            "%s has no pooler weights: vision_pooling=%r is used instead of a random pooler.", vision, pooling
        )
        config = {**config, "vision_pooling": pooling}
    return model, config


def load_image_processor(vision: str | os.PathLike, image_size: int | None = None, **kwargs: Any) -> Any:
    """Load the image processor of a backbone; it needs PIL only.

    For a timm checkpoint it is made from the configuration, because timm's own transforms need torchvision.

    Args:
        vision: Hub id or local folder of the backbone.
        image_size: Side of the model's input in pixels; by default that of the backbone. Patches have one physical size: they
            are resized, never cropped.
        **kwargs: Passed on, for example ``revision`` or ``token``.

    Returns:
        An image processor.
    """
    options: dict[str, Any] = {}
    if image_size is not None:
        options = {"size": {"height": image_size, "width": image_size}, "do_center_crop": False}
    timm = PreTrainedConfig.get_config_dict(vision, **kwargs)[0].get("pretrained_cfg")
    if timm is None:
        return AutoImageProcessor.from_pretrained(vision, backend="pil", **kwargs, **options)
    size = dict(zip(("height", "width"), timm.get("input_size", (3, 224, 224))[1:], strict=True))
    resample = {"bilinear": 2, "bicubic": 3}.get(timm.get("interpolation", "bicubic"), 3)
    normalisation = {"image_mean": timm["mean"], "image_std": timm["std"]}
    return ViTImageProcessorPil(**{"size": size, "resample": resample, **normalisation, **options})


def check_image_size(config: Any, image_size: int) -> None:
    """Refuse an input size that the patch grid of a backbone would not cover: pixels left over at the border are not seen.

    Args:
        config: Configuration of the backbone; one without a ``patch_size`` takes any size.
        image_size: Side of its input in pixels.

    Raises:
        ValueError: If the side is not a multiple of the backbone's patch size.

    Examples:
        >>> from transformers import ViTConfig
        >>> check_image_size(ViTConfig(patch_size=16), 100)
        Traceback (most recent call last):
        ValueError: image_size is 100, and the backbone (vit) cuts its input into squares of 16 px: 4 px of each ...
    """
    given = getattr(config, "patch_size", None)
    for side in (given,) if isinstance(given, int) else tuple(given or ()):
        if side and image_size % side:
            fits = max(image_size // side, 1) * side
            raise ValueError(
                f"image_size is {image_size}, and the backbone ({config.model_type}) cuts its input into squares of {side} px: "
                f"{image_size % side} px of each side would not fit. Give a multiple of {side}, such as {fits} or "
                f"{fits + side}."
            )


def belongs_to_pooler(name: str) -> bool:
    """Tell whether a weight of a backbone belongs to its pooler, which SigLIP calls ``head``."""
    return "pooler" in name or name.startswith("head.")


__all__ = [
    "GivenFeatures",
    "belongs_to_pooler",
    "build_vision_model",
    "check_image_size",
    "count_prefix_tokens",
    "encode_images",
    "load_image_processor",
    "load_vision_model",
    "measure_vision_model",
    "pool_vision_output",
    "read_vision_model",
]
