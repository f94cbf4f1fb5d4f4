"""Losses of small batches on a CUDA device as CUDA graphs: a hundred launches of short kernels become one.

A launch takes the host about 10 us, and the losses of a few hundred spots are hundreds of kernels of 2 us each: while the host
launches them, the device idles. A graph holds the launches of a loss and of its gradients and is replayed for every batch of
the same shape. It runs the kernels of the plain call, so results agree to rounding.
"""

import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_ROWS = 2048
"""Most rows of a batch for a graph: up to here launches cost more than kernels, and its memory is small beside a backbone's."""

MOST_GRAPHS = 8
"""Most graphs per process: each keeps its own memory."""

Losses = Callable[..., Sequence[Tensor]]


class _Graph:
    """Losses and their gradients by the inputs that need them, recorded once at fixed addresses."""

    def __init__(self, losses: Losses, inputs: Sequence[Tensor], needed: tuple[bool, ...]):
        self.inputs = [x.detach().clone().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
        self.wanted = [x for x in self.inputs if x.requires_grad]
        self.values, self.gradients, self.replay = _record(lambda: self._compute(losses), inputs[0].device)

    def _compute(self, losses: Losses) -> tuple[Tensor, Tensor]:
        """Compute values (losses,) and gradients (losses, numbers of all wanted inputs)."""
        with torch.enable_grad():
            values = torch.stack(list(losses(*self.inputs)))
            # The gradients of several losses take one pass with a batch dimension: as many kernels as those of one loss.
            several = len(values) > 1
            seeds = torch.eye(len(values), device=values.device) if several else torch.ones_like(values)
            found = torch.autograd.grad(values, self.wanted, seeds, is_grads_batched=several, allow_unused=True)
            shape = len(values), -1
            rows = [
                (x.new_zeros(len(values), *x.shape) if g is None else g).reshape(shape)
                for x, g in zip(self.wanted, found, strict=True)
            ]
        return values.detach(), torch.cat(rows, 1)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given)
            self.replay()
            return self.values.clone(), self.gradients.clone()


def _record(
    compute: Callable[[], tuple[Tensor, Tensor]], device: torch.device
) -> tuple[Tensor, Tensor, Callable[[], None]]:
    """Return the tensors of results and a function that recomputes them; the first replay is compared with the plain call."""
    with torch.cuda.device(device):
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # the first allocates the workspaces of libraries
                expected = compute()
        torch.cuda.current_stream().wait_stream(side)
        # Threads that pin memory or watch a process group keep running meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            values, gradients = compute()
        graph.replay()
        for found, plain in zip((values, gradients), expected, strict=True):
            torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-6, equal_nan=True)
    return values, gradients, graph.replay


class _Replay(torch.autograd.Function):
    """Losses of a graph. Gradients are computed along with them, so the graph holds nothing for the backward pass."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        values, gradients = graph(inputs)
        ctx.save_for_backward(gradients)
        ctx.shapes = [x.shape for x in inputs]
        return tuple(value.clone() for value in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradients,) = ctx.saved_tensors
        joined = gradients[0] * outer[0] if len(outer) == 1 else (gradients * torch.stack(outer)[:, None]).sum(0)
        shapes = [shape for shape, need in zip(ctx.shapes, ctx.needs_input_grad[1:], strict=True) if need]
        parts = iter(joined.split([shape.numel() for shape in shapes]))
        return None, *(
            next(parts).view(shape) if need else None
            for shape, need in zip(ctx.shapes, ctx.needs_input_grad[1:], strict=True)
        )


_graphs: dict[Hashable, _Graph] = {}
"""Recorded graphs, by everything that they depend on."""

_serves = {"all": True}


def _is_on_device(x: Tensor) -> bool:
    """Tell whether a CUDA graph can record computations on `x` now."""
    return x.is_cuda and torch.version.hip is None and not torch.cuda.is_current_stream_capturing()


def replayed(losses: Losses, constants: Hashable, inputs: Sequence[Any]) -> Sequence[Tensor]:
    """Compute ``losses(*inputs)``, by a CUDA graph where that is faster; the first call of each kind records its graph.

    The first call is a replay like all others, so the steps of a resumed run compute the same as those of an uninterrupted one.

    Args:
        losses: Function of the inputs alone that returns 0-d losses and never makes the host wait.
        constants: Everything else that the losses depend on: other constants get another graph.
        inputs: Tensors; the first of shape (batch, ...). Other inputs use the plain call.

    Returns:
        The losses. They can be differentiated once.
    """
    if torch.compiler.is_compiling():
        return losses(*inputs)
    needed = tuple(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    if (
        not (_serves["all"] and torch.is_grad_enabled() and any(needed))
        or threading.current_thread() is not threading.main_thread()  # DataParallel: one recording disturbs another
        or not all(isinstance(x, Tensor) and x.device == inputs[0].device for x in inputs)
        or not _is_on_device(inputs[0])
        or len(inputs[0]) > MOST_ROWS
        or any(need and x.dtype != torch.float32 for x, need in zip(inputs, needed, strict=True))
    ):
        return losses(*inputs)
    device = inputs[0].device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = constants, needed, device, stream, tuple((x.shape, x.dtype) for x in inputs)
    if key not in _graphs:
        if len(_graphs) >= MOST_GRAPHS:
            return losses(*inputs)
        try:
            _graphs[key] = _Graph(losses, inputs, needed)
        except Exception as error:  # a driver or a library that cannot be recorded: the plain call always remains
            _serves["all"] = False
            warnings.warn(f"CUDA graphs do not work on {device} ({error}): losses run without them.", stacklevel=2)
            return losses(*inputs)
    return _Replay.apply(_graphs[key], *inputs)
