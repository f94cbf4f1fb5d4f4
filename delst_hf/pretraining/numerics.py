"""Whether the numbers of a run are finite, asked without waiting for the device, and what to say once they are not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TERMS = ("contrastive_loss", "cross_entailment_loss", "intra_entailment_loss", "regression_loss")
SCALARS = ("logit_scale", "log_curvature", "log_image_scale", "log_gene_scale")


class FiniteWatch:
    """Reads of each step whether it was finite: on a CPU at once, of an accelerator a step late, so that nobody waits.

    The copy to the host is begun in the step itself; by the next one it has long arrived.
    """

    def __init__(self) -> None:
        self._late: list[tuple[Tensor, Any, int, Any]] = []

    def failed(self, finite: Tensor, step: int, grad_norm: Any) -> tuple[int, Any] | None:
        """Return step and gradient norm of the earliest step now known not to be finite, if any.

        Args:
            finite: Whether this step is (0-d bool).
            step: Its number.
            grad_norm: Norm of its gradient.
        """
        if finite.device.type == "cpu":
            return None if finite.numpy() else (step, grad_norm)
        pinned = torch.empty((), dtype=torch.bool, pin_memory=finite.is_cuda)
        pinned.copy_(finite, non_blocking=True)
        event = torch.cuda.Event() if finite.is_cuda else None
        if event is not None:
            event.record()
        before, self._late = self._late, [(pinned, event, step, grad_norm)]
        return _first_failure(before)

    def settle(self) -> tuple[int, Any] | None:
        """As `failed`, of what is not read yet: before a checkpoint is written, and at the end."""
        before, self._late = self._late, []
        return _first_failure(before)


def _first_failure(reads: list[tuple[Tensor, Any, int, Any]]) -> tuple[int, Any] | None:
    for finite, event, step, grad_norm in reads:
        if event is not None:
            event.synchronize()
        if not finite.numpy():
            return step, grad_norm
    return None


def leave_weights_alone(optimizer: Any, finite: Tensor) -> None:
    """Make the coming step of a fused optimizer on an accelerator change nothing if its gradient is not finite.

    It is what torch's own scaler of float16 gradients does: the kernel reads the number on the device.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    if finite.is_cuda and isinstance(optimizer, torch.optim.Optimizer) and optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]


def why_not_finite(trainer: Any, sums: Mapping[str, Any], step: int, grad_norm: Any) -> str:
    """Say in which step a run ended, what its terms and scalars are, and what to change.

    Args:
        trainer: A `DelstTrainer`.
        sums: Its loss terms added up since the last log, and the number of ``batches``.
        step: The step, from 1.
        grad_norm: Norm of the gradient of this step.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    numbers = {name: float(sums[name]) / sums["batches"] for name in TERMS if name in sums}
    numbers["gradient norm"] = float("nan" if grad_norm is None else grad_norm)
    numbers |= {name: getattr(model, name).item() for name in SCALARS}
    named = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    vision = args.learning_rate if args.vision_learning_rate is None else args.vision_learning_rate
    return (
        f"Step {step}: the loss or its gradient is not finite ({named}; terms are means since the "
        "last log). The run ends and saves nothing of this step; earlier checkpoints stay. Lower "
        f"--learning_rate (now {args.learning_rate:g}), --vision_learning_rate ({vision:g}) or --scalar_learning_rate "
        f"({args.scalar_learning_rate:g}), warm up with --warmup_steps 0.1, and check --weight_decay ({args.weight_decay:g}) "
        "and the weights of the losses."
    )
