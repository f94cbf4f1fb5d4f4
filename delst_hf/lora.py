"""LoRA on the vision backbone (arXiv 2106.09685): a few trained numbers beside weights that stay as they are.

Needs peft: ``pip install 'delst-hf[lora]'``. The trained model is saved merged, a plain `DelstModel`, or as an adapter: LoRA
and heads without the backbone, for backbones whose licence forbids to republish them.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from .atomic import complete_or_nothing
from .configuration_delst import DelstConfig
from .modeling_delst import DelstModel

ADAPTER_WEIGHTS = "adapter.safetensors"
ADAPTER_CONFIG = "adapter.json"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft, which is not installed: pip install 'delst-hf[lora]'.") from error
    return peft


def add_lora(model: DelstModel, rank: int = 8) -> DelstModel:
    """Freeze the backbone and put LoRA beside each of its linear layers, in place. It starts as no change at all.

    Args:
        model: The model.
        rank: Rank of the update; its scale is ``alpha / rank`` with ``alpha = 2 * rank``.

    Returns:
        The same model.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If the rank is not positive, or the backbone has no linear layers.
    """
    if rank < 1:
        raise ValueError(f"lora_rank={rank} must be 1 or more.")
    peft = _peft()
    targets = [name for name, module in model.vision_model.named_modules() if type(module) is nn.Linear]
    if not targets:
        raise ValueError(
            f"The backbone {model.config.vision_config.model_type!r} has no linear layers, which LoRA is put beside. Use a "
            "transformer such as a ViT, or --freeze_vision or full training."
        )
    model.vision_model.requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    peft.inject_adapter_in_model(config, model.vision_model)
    return model


def merge_lora(model: DelstModel) -> DelstModel:
    """Add what LoRA learned to the backbone's weights and take it away, in place: a plain model that computes the same."""
    layer_class = _peft().tuners.lora.LoraLayer
    for name, layer in list(model.vision_model.named_modules()):
        if isinstance(layer, layer_class):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.vision_model.get_submodule(parent), child, layer.get_base_layer())
    return model


def save_adapter(folder: str | os.PathLike, model: DelstModel, processor: Any, vision: str, rank: int) -> Path:
    """Write LoRA, heads, configuration and processor, but not the backbone's own weights.

    Args:
        folder: Where to write; it appears only when it is whole.
        model: A model with LoRA, not merged.
        processor: Its processor.
        vision: The backbone's Hub id or folder name, for the record.
        rank: Rank that `add_lora` was given.

    Returns:
        The folder.
    """
    own = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("vision_model.") or ".lora_" in name
    }
    with complete_or_nothing(Path(folder)) as partial:
        save_file(own, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        record = {"vision": os.path.basename(vision) if os.path.isdir(vision) else vision, "rank": rank}
        (partial / ADAPTER_CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        model.config.save_pretrained(partial)
        processor.save_pretrained(partial)
    return Path(folder)


def load_adapter(folder: str | os.PathLike, vision: str | os.PathLike) -> DelstModel:
    """A plain model out of an adapter folder and its backbone.

    Args:
        folder: Folder written by `save_adapter`.
        vision: Hub id or local folder of the backbone that it was trained beside.

    Returns:
        The merged model, in eval mode.

    Raises:
        FileNotFoundError: If the folder holds no adapter.
        ValueError: If the adapter does not fit the backbone.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(f"No {ADAPTER_WEIGHTS} in {folder}. Give the folder that --lora_saving adapter wrote.")
    record = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config = DelstConfig.from_pretrained(folder)
    backbone = AutoModel.from_pretrained(vision, config=config.vision_config, dtype=torch.float32)
    model = add_lora(DelstModel(config, vision_model=backbone), record["rank"])
    own = load_file(folder / ADAPTER_WEIGHTS)
    wanted = {name for name in model.state_dict() if not name.startswith("vision_model.") or ".lora_" in name}
    if set(own) != wanted:
        differing = sorted(set(own) ^ wanted)
        raise ValueError(
            f"The adapter in {folder} does not fit the backbone {vision}: {len(differing)} weights differ, such as "
            f"{differing[:2]}. It was trained beside {record['vision']}."
        )
    model.load_state_dict(own, strict=False)
    return merge_lora(model).eval()
