"""FSDP (version 2): preparing a `DelstModel` for sharding, and returning it in one piece."""

import copy
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.distributed import fsdp

from ..model.distributed import process_rank, world_size
from ..model.modeling_delst import DelstModel


def prepare_for_sharding(model: DelstModel, plugin: Any) -> None:
    """Keep the scalars out of FSDP, which refuses 0-d parameters: every process holds them, with averaged gradients.

    Args:
        model: The model, not yet wrapped.
        plugin: Accelerate's ``FullyShardedDataParallelPlugin``.

    Raises:
        ValueError: If the plugin is not of version 2, or torch is too old to leave parameters out.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version={plugin.fsdp_version} is not supported. Use 2, as training/configs/accelerate/fsdp.yaml does."
        )
    if "ignored_params" not in signature(fsdp.fully_shard).parameters:
        raise ValueError(
            f"FSDP needs torch 2.7 or later, and {torch.__version__} is installed. Update it, or train with DDP "
            "(training/configs/accelerate/multi_gpu.yaml)."
        )
    # Accelerate asks for the token embeddings, to shard them separately. There are none, and transformers raises an exception.
    model.get_input_embeddings = lambda: None  # type: ignore[method-assign, assignment, return-value]
    holder = nn.Module()
    for name, parameter in model.named_parameters(recurse=False):
        if parameter.dim() == 0:
            holder.register_parameter(name, parameter)
    plugin.ignored_modules = [holder]

    def average(parameter: nn.Parameter) -> None:
        # Also right with accumulated gradients: those of earlier passes are equal on all processes, so their mean is the same.
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= world_size()  # type: ignore[operator, assignment]

    for parameter in holder.parameters():
        if parameter.requires_grad and world_size() > 1:
            parameter.register_post_accumulate_grad_hook(average)


def whole_model(model: DelstModel, accelerator: Any) -> DelstModel | None:
    """Return a copy of a sharded model in one piece; every process must call it.

    Args:
        model: The model, wrapped in place by ``fully_shard``.
        accelerator: The accelerator that wrapped it.

    Returns:
        The copy on the CPU of the first process, None on the others.
    """
    state = accelerator.get_state_dict(model)
    if process_rank() > 0:
        return None
    copied = DelstModel(copy.deepcopy(model.config))
    copied.load_state_dict(state)
    return copied.eval()
