"""Rank, world size, and rows gathered across processes with exact gradients."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Return the number of processes that train together, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the rank of this process among those that train together, 0 without torch.distributed.

    accelerate's ``PartialState`` is not used: under torchrun on a CPU it reports every process as the main one.
    """
    return dist.get_rank() if world_size() > 1 else 0


def wait_for_all() -> None:
    """Wait until every process has arrived. ``PartialState.wait_for_everyone`` does not wait under torchrun on a CPU."""
    if world_size() > 1:
        dist.barrier()


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean of a number (0-d) over the ranks, without a gradient; every rank must call it.

    A sum of local errors over such a mean of their weights is, averaged over the ranks as by DDP, the weighted mean of the
    joined batch, also where ranks hold different weights.
    """
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total / world_size()


def gather_across_ranks(x: Tensor) -> tuple[Tensor, int]:
    """Join the rows of all ranks in rank order, with exact gradients (summed over the ranks that used them).

    Every rank must call it. Ranks may hold different numbers of rows, as in an uneven last batch.

    Args:
        x: Local rows (local_batch, ...).

    Returns:
        The joined rows (global_batch, ...) and the index of this rank's first row in them.
    """
    if world_size() == 1:
        return x, 0
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(count) for count in counts]
    start = sum(sizes[: dist.get_rank()])
    padded = F.pad(x, [0, 0] * (x.dim() - 1) + [0, max(sizes) - len(x)])
    blocks = _AllGather.apply(padded)
    return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)]), start


class _AllGather(torch.autograd.Function):
    """Stack the tensors of all ranks; in the backward pass each rank gets the sum of all ranks' gradients for its own.

    The all_gather of torch.distributed.nn is deprecated from torch 2.13 on, and its successor is not in torch 2.6.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        blocks = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(blocks, x.contiguous())
        return torch.stack(blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> Tensor:  # type: ignore[override]
        if gradients.is_cuda:
            own = torch.empty_like(gradients[0])
            dist.reduce_scatter_tensor(own, gradients.contiguous())
            return own
        gradients = gradients.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradients)  # early versions of gloo lack reduce_scatter
        return gradients[dist.get_rank()]
