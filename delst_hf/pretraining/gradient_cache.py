"""Gradient caching: the contrastive loss of a large batch at the memory of a small one (GradCache, arXiv 2101.06983).

Gradient accumulation shrinks the batch that a spot is contrasted with; this does not. The batch is embedded in micro-batches
without a graph, and the loss is computed once over all embeddings (of all processes). Each micro-batch is then embedded again
with a graph, through which the gradient of the loss by its embeddings is propagated back. It costs one more forward pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..model.modeling_delst import DelstModel, DelstOutput

TOWER_INPUTS = ("pixel_values", "gene_values", "gene_mask")


def check_gradient_caching(model: DelstModel, is_deepspeed_enabled: bool) -> None:
    """Refuse what gradient caching cannot do exactly.

    Raises:
        ValueError: With DeepSpeed, a regression_weight, or BatchNorm layers that are trained.
    """
    if is_deepspeed_enabled:
        raise ValueError(
            "contrastive_micro_batch_size needs several backward passes per step, which DeepSpeed does not support. "
            "Train with DDP (multi_gpu.yaml) or FSDP, or leave the option out."
        )
    if model.config.regression_weight > 0:
        raise ValueError(
            "contrastive_micro_batch_size propagates the gradients of embeddings only, and regression_weight "
            f"{model.config.regression_weight:g} trains a layer beside them. Leave one of the two out."
        )
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms and not model.config.freeze_batch_norm:
        raise ValueError(
            "contrastive_micro_batch_size with freeze_batch_norm=False would normalise each micro-batch by itself and "
            "count its statistics twice. Leave freeze_batch_norm at True."
        )


class _RandomState:
    """The state of torch's generators before a forward pass, so that its replay draws the same dropout."""

    def __init__(self, device: torch.device):
        self.module = None if device.type == "cpu" else torch.get_device_module(device)
        self.cpu = torch.get_rng_state()
        self.device = None if self.module is None else self.module.get_rng_state()

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.module is not None:
            self.module.set_rng_state(self.device)


def cached_loss(
    model: nn.Module,
    core: DelstModel,
    inputs: Mapping[str, Any],
    micro_batch_size: int,
    backward: Callable[[Tensor], None],
    across_ranks: bool = False,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> DelstOutput:
    """Return the losses of a batch, with the backward pass of all its micro-batches but the last already done.

    ``loss.backward()`` on the result does the last one. Dropout is drawn per micro-batch, the same in both passes.

    Args:
        model: The model as it is trained, wrapped for distributed training or not; called once per micro-batch and pass.
        core: The `DelstModel` inside of it.
        inputs: What `DelstModel.forward` takes, on the model's device.
        micro_batch_size: Spots that are embedded at a time.
        backward: Runs the backward pass of a loss, as ``accelerator.backward`` does.
        across_ranks: Take negatives and ordered pairs from all processes.
        no_sync: Makes the context in which gradients stay local. DDP then averages them once, with the last micro-batch.

    Returns:
        Loss (with a graph), its terms and the embeddings (both without).

    Raises:
        ValueError: If `micro_batch_size` is not positive.
    """
    if micro_batch_size < 1:
        raise ValueError(f"contrastive_micro_batch_size={micro_batch_size} must be 1 or more, or left out.")
    parts = list(_micro_batches(inputs, micro_batch_size))
    image_embeds, gene_embeds, states = _embed_without_graph(model, parts)
    terms, gradients, scalars = _gradients_of_the_loss(core, image_embeds, gene_embeds, inputs, across_ranks)
    image_gradients, gene_gradients = (gradient.split(micro_batch_size) for gradient in gradients)
    after = _RandomState(image_embeds.device)
    for i, part in enumerate(parts):
        last = i + 1 == len(parts)
        with nullcontext() if last else no_sync():
            states[i].restore()
            output = model(**part)
            surrogate = (output.image_embeds * image_gradients[i]).sum() + (
                output.gene_embeds * gene_gradients[i]
            ).sum()
            if not last:
                backward(surrogate)
    # The scalars' gradients from the loss itself are added to the last micro-batch, the one that DDP averages.
    surrogate = surrogate + sum((parameter * gradient).sum() for parameter, gradient in scalars)
    after.restore()
    loss = terms.pop("loss")
    # The value is that of the loss, the gradient that of the surrogate.
    loss = loss + (surrogate - surrogate.detach())
    named: dict[str, Any] = dict(terms)
    return DelstOutput(loss=loss, **named, image_embeds=image_embeds, gene_embeds=gene_embeds)


def _micro_batches(inputs: Mapping[str, Any], size: int) -> Iterator[dict[str, Tensor]]:
    towers = {key: inputs[key] for key in TOWER_INPUTS if inputs.get(key) is not None}
    for start in range(0, len(towers["pixel_values"]), size):
        yield {key: value[start : start + size] for key, value in towers.items()}


@torch.no_grad()
def _embed_without_graph(model: nn.Module, parts: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, list[_RandomState]]:
    """Return image and gene embeddings of the batch, both (batch, dim), and the random state before each micro-batch."""
    states, images, genes = [], [], []
    for part in parts:
        states.append(_RandomState(part["pixel_values"].device))
        output = model(**part)
        images.append(output.image_embeds)
        genes.append(output.gene_embeds)
        del output  # frees the hidden states of one micro-batch before the next
    return torch.cat(images), torch.cat(genes), states


def _gradients_of_the_loss(
    core: DelstModel, image_embeds: Tensor, gene_embeds: Tensor, inputs: Mapping[str, Any], across_ranks: bool
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor], list[tuple[nn.Parameter, Tensor]]]:
    """Return terms without graph, the loss's gradients on both embeddings, and those on the scalars that it uses directly."""
    image, gene = image_embeds.detach().requires_grad_(), gene_embeds.detach().requires_grad_()
    scalars = [parameter for parameter in core.parameters(recurse=False) if parameter.requires_grad]
    with torch.enable_grad():
        terms = core.loss_terms(
            image,
            gene,
            inputs.get("level"),
            inputs.get("slide_ids"),
            across_ranks=across_ranks,
            negative_groups=inputs.get("negative_groups"),
        )
        # autograd.grad, not backward: it fires no hooks, so DDP does not take the scalars for finished.
        found = torch.autograd.grad(terms["loss"], [image, gene, *scalars], allow_unused=True)
    used = [(scalar, gradient) for scalar, gradient in zip(scalars, found[2:]) if gradient is not None]
    return {name: term.detach() for name, term in terms.items()}, (found[0], found[1]), used
