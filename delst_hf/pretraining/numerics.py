"""What to say of a run whose numbers are no longer finite."""

from collections.abc import Mapping
from typing import Any

TERMS = ("contrastive_loss", "cross_entailment_loss", "intra_entailment_loss")
SCALARS = ("logit_scale", "log_curvature", "log_image_scale", "log_gene_scale")


def why_not_finite(trainer: Any, sums: Mapping[str, Any], grad_norm: Any) -> str:
    """Say in which step a run ended, what its terms and scalars are, and what to change.

    Args:
        trainer: A `DelstTrainer`.
        sums: Its loss terms added up since the last log, and the number of ``batches``.
        grad_norm: Norm of the gradient of this step.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    numbers = {name: float(sums[name]) / sums["batches"] for name in TERMS if name in sums}
    numbers["gradient norm"] = float("nan" if grad_norm is None else grad_norm)
    numbers |= {name: getattr(model, name).item() for name in SCALARS}
    named = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    vision = args.learning_rate if args.vision_learning_rate is None else args.vision_learning_rate
    return (
        f"Step {trainer.state.global_step + 1}: the loss or its gradient is not finite ({named}; terms are means since the "
        "last log). The run ends before this step changes the weights, and saves nothing; earlier checkpoints stay. Lower "
        f"--learning_rate (now {args.learning_rate:g}), --vision_learning_rate ({vision:g}) or --scalar_learning_rate "
        f"({args.scalar_learning_rate:g}), warm up with --warmup_steps 0.1, and check --weight_decay ({args.weight_decay:g}) "
        "and the weights of the losses."
    )
