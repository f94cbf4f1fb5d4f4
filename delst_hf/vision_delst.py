"""Any vision backbone of transformers as one function of patches: loading it, and one vector a patch from its output."""

import logging
import os
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)


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


def load_vision_model(
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


__all__ = ["load_vision_model", "pool_vision_output"]
