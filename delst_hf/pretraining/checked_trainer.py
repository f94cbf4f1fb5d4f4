"""Guarantees of every run: it ends at the first number that is not finite, and its checkpoints are known to be complete.

Checking that numbers are finite does not wait for the device.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from .checkpoints import (
    begin_checkpoint,
    check_metric,
    check_same_run,
    check_there_are_steps,
    delete_oldest,
    mark_complete,
    own_output,
    run_identity,
    whole_checkpoint,
)

TERMS = ("contrastive_loss", "cross_entailment_loss", "intra_entailment_loss", "regression_loss")
SCALARS = ("logit_scale", "log_curvature", "log_image_scale", "log_gene_scale")
_FEW = 32  # spots of the last batch on which weights are tried before they are saved
_LOWEST_SCALAR = math.log(torch.finfo(torch.float32).tiny)


class NotFiniteError(ValueError):
    """A loss, a gradient or a weight of a run is not finite."""


class FiniteWatch:
    """Reads whether each step was finite: on a CPU at once, on an accelerator one step late, so that nothing waits.

    The copy to the host starts in the step itself; by the next one it has arrived.
    """

    def __init__(self) -> None:
        self._late: list[tuple[Tensor, Any, int, Any]] = []

    def failed(self, finite: Tensor, step: int, grad_norm: Any) -> tuple[int, Any] | None:
        """Return step and gradient norm of the earliest step now known not to be finite, if any.

        Args:
            finite: Whether this step is finite (0-d bool).
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
        """Do as `failed` for steps that are not read yet: before a checkpoint is written, and at the end."""
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
    """Make the next step of a fused optimizer on an accelerator change nothing if its gradient is not finite.

    torch's own scaler of float16 gradients does the same: the kernel reads the flag on the device.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    if finite.is_cuda and isinstance(optimizer, torch.optim.Optimizer) and optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]


def why_not_finite(trainer: Any, sums: Mapping[str, Any], step: int, grad_norm: Any) -> str:
    """Say in which step a run ended, what its terms and scalars are, and what to change.

    Args:
        trainer: A `CheckedTrainer`.
        sums: Sums of its loss terms since the last log, and the number of ``batches``.
        step: The step, from 1.
        grad_norm: Norm of the gradient of this step.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    numbers = {name: float(sums[name]) / sums["batches"] for name in TERMS if name in sums}
    numbers["gradient norm"] = float("nan" if grad_norm is None else grad_norm)
    numbers |= {name: getattr(model, name).item() for name in SCALARS if hasattr(model, name)}
    named = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return (
        f"Step {step}: the loss or its gradient is not finite ({named}; terms are means since the last log). The run ends and "
        f"saves nothing of this step; earlier checkpoints stay. {what_to_lower(args)}"
    )


def what_to_lower(args: Any) -> str:
    """Return a sentence on what to change in a run whose numbers are not finite, with its current rates."""
    rates = [f"--learning_rate (now {args.learning_rate:g})"]
    if hasattr(args, "scalar_learning_rate"):
        vision = args.learning_rate if args.vision_learning_rate is None else args.vision_learning_rate
        rates += [f"--vision_learning_rate ({vision:g})", f"--scalar_learning_rate ({args.scalar_learning_rate:g})"]
    named = " or ".join([", ".join(rates[:-1]), rates[-1]] if len(rates) > 1 else rates)
    return (
        f"Lower {named}, warm up with --warmup_steps 0.1, and check --weight_decay ({args.weight_decay:g}) and the weights of "
        "the losses."
    )


def seeds_of_workers(args: Any) -> torch.Generator | None:
    """Return the generator from which a loader draws the seeds of its workers, None for torch's own.

    Workers that outlive an epoch are seeded once in a run, and once more when it is resumed: if torch's generator drew these
    seeds, the resumed run would draw other numbers afterwards.

    Args:
        args: Arguments of the run.
    """
    return torch.Generator() if args.dataloader_persistent_workers else None


class StepsAsGiven(TrainerCallback):
    """Logs, scores and saves as often as the arguments say: a resumed state has the steps of its checkpoint."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Read the steps from the arguments."""
        state.compute_steps(args, state.max_steps)


class CheckedTrainer(Trainer):
    """transformers' Trainer whose runs end at the first number that is not finite, and whose checkpoints are complete.

    A complete checkpoint has a marker file with checksums and the identity of the run; resuming checks both. An output
    folder belongs to one run at a time.

    Args:
        *args: As in the base class.
        processor: Processor of the model, saved with it; the base class would look for a tokenizer in it.
        run_facts: Facts that determine the run, for the record and for resuming.
        **kwargs: As in the base class.
    """

    def __init__(self, *args: Any, processor: Any = None, run_facts: dict[str, Any] | None = None, **kwargs: Any):
        self.processor, self.run_facts = processor, run_facts or {}
        super().__init__(*args, **kwargs)
        self.add_callback(StepsAsGiven)
        self._begin_to_watch()

    def _begin_to_watch(self) -> None:
        """Forget the numbers of an earlier training by this trainer: a search runs one after another."""
        self._sums: dict[str, dict[str, Any]] = {"train": defaultdict(float), "eval": defaultdict(float)}
        self._finite: Any = True  # whether all losses since the last optimiser step were finite
        self._last_inputs: dict[str, Any] = {}
        self._watch = FiniteWatch()

    def watch_loss(self, loss: Tensor, inputs: Mapping[str, Any]) -> None:
        """Note whether the loss of a training batch is finite, and keep the batch until the next one."""
        self._finite = self._finite & torch.isfinite(loss.detach())
        self._last_inputs = dict(inputs)

    def loss_again(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Compute again the loss of a batch that `compute_loss` gave to `watch_loss`, and note nothing.

        Args:
            model: The unwrapped model, on one process.
            inputs: As given to `watch_loss`.
        """
        with self.compute_loss_context_manager():
            loss: Any = super().compute_loss(model, dict(inputs))
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the base class does, and end a training if a loss is not finite.

        Raises:
            ValueError: If a loss of the evaluation is not finite, while training.
        """
        metrics = super().evaluate(*args, **kwargs)
        wrong = [f"{name} {value:g}" for name, value in metrics.items() if "loss" in name and not math.isfinite(value)]
        if wrong and self.is_in_train:
            raise NotFiniteError(
                f"The evaluation after step {self.state.global_step} is not finite ({', '.join(wrong)}). The run ends; earlier "
                f"checkpoints stay. {what_to_lower(self.args)}"
            )
        return metrics

    def evaluation_names(self) -> set[str] | None:
        """Return the names of what an evaluation gives, None if the caller's ``compute_metrics`` or data decide on them."""
        return {"loss"} if self.compute_metrics is None and not isinstance(self.eval_dataset, dict) else None

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with before a run resumes from it: see `checkpoints.run_identity`."""
        return run_identity(self.args, self.processor, self.run_facts, self.train_dataset)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as the base class does, but resume only from a complete checkpoint of this run.

        Args:
            resume_from_checkpoint: True for the last complete checkpoint of the output folder, or the folder of one.
            *args: Passed to the base class.
            **kwargs: Passed to the base class.

        Raises:
            ValueError: If there is no complete checkpoint, the one given is damaged or of another run, the training data
                hold no full batch, no evaluation gives ``metric_for_best_model``, or a loss, gradient or weight is not finite.
        """
        check_there_are_steps(self.args, self.train_dataset)
        if self.model is not None:  # a search has none between its trials
            check_metric(self.args, self.evaluation_names)
        if resume_from_checkpoint:
            resume_from_checkpoint = whole_checkpoint(resume_from_checkpoint, self.args.output_dir or ".")
            check_same_run(resume_from_checkpoint, self.identity(), getattr(self.args, "resume_anyway", False))
        self._begin_to_watch()
        with own_output(self.args.output_dir), self._training():
            result = super().train(resume_from_checkpoint, *args, **kwargs)
            self._refuse(self._watch.settle())
            self._check_finite(f"after step {self.state.global_step}")
        self._last_inputs = {}
        return result

    def _training(self) -> AbstractContextManager[Any]:
        """Return the context of a training."""
        return nullcontext()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do as in the base class, but make no step beyond the last: it made one if a run was resumed after its last step."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        loader: Any = super()._get_dataloader(*args, **kwargs)
        if self.args.dataloader_persistent_workers:
            loader.base_dataloader.generator = seeds_of_workers(self.args)
        return loader

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Do as in the base class; end the run on a loss or gradient that is not finite.

        On a CPU the run ends at once. On an accelerator it ends a step later, so that no step waits for its numbers: meanwhile
        the fused optimizer leaves the weights alone, and no checkpoint is written before its step is known to be finite.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # Scaled gradients of float16 may overflow: such a step is skipped and the scale lowered.
        scaled = self.args.fp16 and (self.accelerator.scaler is not None or self.is_deepspeed_enabled)
        finite, self._finite = torch.as_tensor(self._finite), True
        if not scaled:
            norm_is_finite = torch.as_tensor(0.0 if grad_norm is None else grad_norm).isfinite()
            finite = finite & getattr(norm_is_finite, "full_tensor", lambda: norm_is_finite)()
            if not self.is_fsdp_enabled:
                leave_weights_alone(self.optimizer, finite)
        self._refuse(self._watch.failed(finite, self.state.global_step + 1, grad_norm))
        return grad_norm

    def _refuse(self, failed: tuple[int, Any] | None) -> None:
        if failed is not None:
            raise NotFiniteError(why_not_finite(self, self._sums["train"], *failed))

    def _check_finite(self, when: str) -> None:
        from ..hub.checkpoint_folder import check_finite

        try:
            check_finite(self.accelerator.unwrap_model(self.model), when)
        except ValueError as error:
            raise NotFiniteError(str(error)) from error
        if self._last_inputs and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:  # these hold shards
            self._check_goes_on(when)

    def _check_goes_on(self, when: str) -> None:
        """Refuse finite weights with which no further step is finite: only the weights reveal that the last step diverged."""
        model = self.accelerator.unwrap_model(self.model)
        scalars = {name: getattr(model, name).item() for name in SCALARS if hasattr(model, name)}
        lost = [f"{name} is {value:.4g}" for name, value in scalars.items() if value < _LOWEST_SCALAR]
        few = getattr(self.args, "contrastive_micro_batch_size", None) or _FEW
        was_training = model.training
        model.eval()
        try:
            finite = _gradient_is_finite(model, self.loss_again(model, _some_of(self._last_inputs, min(few, _FEW))))
        finally:
            model.train(was_training)
        if lost or not self.accelerator.gather(finite.reshape(1)).all():
            raise NotFiniteError(
                f"The weights {when} are finite, but {', '.join(lost) or 'the loss or its gradient with them'}"
                f"{', whose exponential is 0' if lost else ' is not'}: the run has diverged. Nothing of this step is saved; "
                f"earlier checkpoints stay. {what_to_lower(self.args)}"
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The default format renames the weights of some backbones (vit, dinov2, swin, ...), and resuming loads the file
        # without renaming them back: they would be lost with no more than a warning.
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled:  # a class made by FSDP, whose own source would be saved beside the weights
            type(model)._auto_class = None
        model.save_pretrained = functools.partial(
            type(model).save_pretrained, model, save_original_format=False, save_backbone=True
        )
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained
        # A pickle that nothing reads, with the token and the paths of the run.
        (Path(output_dir or self.args.output_dir or ".") / "training_args.bin").unlink(missing_ok=True)
        if self.processor is not None and self.args.should_save:
            self.processor.save_pretrained(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, step = Path(self._get_output_dir(trial=trial)), self.state.global_step
        self._refuse(self._watch.settle())
        self._check_finite(f"after step {step}")
        if self.args.should_save:
            begin_checkpoint(run, step)
        self.accelerator.wait_for_everyone()
        # The base class deletes the oldest folders of that name, whoever made them, and before the new one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(run / f"checkpoint-{step}", self.identity())
            delete_oldest(run, limit, self.state.best_model_checkpoint)


def _some_of(inputs: Mapping[str, Any], few: int) -> dict[str, Any]:
    """Return at most `few` spots of a batch, spread over all of it."""
    rows = {len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()}
    if len(rows) != 1 or max(rows) <= few:
        return dict(inputs)
    step = -(-max(rows) // few)
    return {
        name: value[::step] if isinstance(value, Tensor) and value.dim() else value for name, value in inputs.items()
    }


def _gradient_is_finite(model: nn.Module, loss: Tensor) -> Tensor:
    """Return whether a loss and its gradient are finite, 0-d; nothing is added to the gradients of the model."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.stack([part.isfinite().all() for part in (loss, *found) if part is not None]).all()
