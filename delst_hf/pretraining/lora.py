"""LoRA on the vision backbone (arXiv 2106.09685): few trained weights beside frozen ones.

Needs peft for training: ``pip install 'delst-hf[lora]'``. The trained model is saved merged, a plain `DelstModel`
(`merge_lora`), or with ``save_backbone=False`` as LoRA and heads, which load without peft (`backbone_delst`).
"""

from torch import nn

from ..errors import optional_library
from ..model.modeling_delst import DelstModel

_ADVICE = "LoRA needs peft, which is not installed: pip install 'delst-hf[lora]'."


def add_lora(model: DelstModel, rank: int = 8) -> DelstModel:
    """Freeze the backbone and add LoRA to each of its linear layers, in place. At first it changes no output.

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
    peft = optional_library("peft", _ADVICE)
    targets = [name for name, module in model.vision_model.named_modules() if type(module) is nn.Linear]
    if not targets:
        raise ValueError(
            f"The backbone {model.config.vision_config.model_type!r} has no linear layers to add LoRA to. Use a "
            "transformer such as a ViT, --freeze_vision true, or full training."
        )
    model.vision_model.requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    peft.inject_adapter_in_model(config, model.vision_model)
    return model


def merge_lora(model: DelstModel) -> DelstModel:
    """Merge LoRA into the backbone's weights and remove it, in place: the result is a plain model that computes the same."""
    layer_class = optional_library("peft", _ADVICE).tuners.lora.LoraLayer
    for name, layer in list(model.vision_model.named_modules()):
        if isinstance(layer, layer_class):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.vision_model.get_submodule(parent), child, layer.get_base_layer())
    return model
