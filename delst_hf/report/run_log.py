"""A readable log: one line per logged step, with the loss terms by name and problems in words; curves as a picture."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from ..atomic.files import write_file

logger = logging.getLogger(__name__)

CURVES = "curves.png"
_TERMS = {
    "contrastive": "contrastive_loss",
    "cross": "cross_entailment_loss",
    "intra": "intra_entailment_loss",
    "unpaired contrastive": "unpaired_contrastive_loss",
    "unpaired intra": "unpaired_entailment_loss",
}
# A problem, as a line of the log names it -> what it means and what to do, printed once.
ADVICE = {
    "curvature at its clamp": "The curvature has reached the end of its range and cannot follow the loss any more: lower "
    "--scalar_learning_rate, or start from another value with --curvature_init.",
    "cones empty": "No child lies in the cone of its parent: the entailment losses act, but no pair satisfies them yet. If it "
    "stays so, raise --min_radius (0.3) or the weights of the entailment losses (1).",
    "cones collapsed": "Parents have moved to the origin, where a cone is half of the space and holds any child, even those of "
    "other spots: set --radius_floor (0.3), or lower the weights of the entailment losses.",
    "no better than chance": "After a fifth of the run the contrastive loss is still that of guessing: raise --learning_rate, "
    "or check that images and counts belong together (delst check DATASET).",
}


def log_line(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """Return one line of the log.

    Args:
        logs: What the trainer logs: a row of ``log_history``.
        step: Optimiser steps made.
        steps: Optimiser steps of the run.

    >>> log_line({"loss": 3.5, "contrastive_loss": 3.1, "contrastive_chance": 4.16, "epoch": 1.5}, 30, 60)
    'step 30/60  epoch 1.50  loss 3.500 = contrastive 3.100 (chance 4.160)'
    """
    if "train_runtime" in logs:
        rate = logs.get("train_samples_per_second", 0.0)
        return f"trained {step} steps in {_duration(logs['train_runtime'])}, {rate:.0f} spots per second"
    held_out = "eval_loss" in logs
    prefix = "eval_" if held_out else ""
    if f"{prefix}loss" not in logs:
        return "  ".join(f"{name} {_number(value)}" for name, value in logs.items())
    own = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
    parts = [f"step {step}/{steps}", f"epoch {logs.get('epoch', 0):.2f}"]
    if held_out:
        parts.append("VALIDATION")
    terms = [f"{name} {own[key]:.3f}" for name, key in _TERMS.items() if key in own]
    if terms and "contrastive_chance" in own:
        terms[0] += f" (chance {own['contrastive_chance']:.3f})"
    parts.append(f"loss {own['loss']:.3f}" + (f" = {', '.join(terms)}" if terms else ""))
    if held_out and "image_to_gene_recall@10" in own:
        parts.append(f"recall@10 {own['image_to_gene_recall@10']:.1%}")
    if "image_radius" in own:
        parts.append(f"radius image {own['image_radius']:.2f}, gene {own['gene_radius']:.2f}")
        parts.append(f"in cone {own['in_cone_matched']:.0%} (foreign {own['in_cone_mismatched']:.0%})")
    if "curvature" in own:
        parts.append(f"curvature {own['curvature']:.3f}")
    if "learning_rate" in own:
        parts.append(f"lr {own['learning_rate']:.3g}")
    return "  ".join(parts)


def what_is_wrong(logs: Mapping[str, Any], step: int, steps: int, entailed: bool = True) -> Iterator[str]:
    """Yield the problems of a run that a row of its log shows, as keys of `ADVICE`.

    Args:
        logs: A row of ``log_history``.
        step: Optimiser steps made.
        steps: Optimiser steps of the run.
        entailed: Whether an entailment loss has a weight; without one cones mean nothing.

    >>> list(what_is_wrong({"in_cone_matched": 0.0, "in_cone_mismatched": 0.0, "curvature_at_clamp": 1.0}, 9, 10))
    ['curvature at its clamp', 'cones empty']
    """
    if logs.get("curvature_at_clamp"):
        yield "curvature at its clamp"
    if entailed and "in_cone_matched" in logs:
        if logs["in_cone_matched"] < 0.01:
            yield "cones empty"
        elif logs["in_cone_mismatched"] > 0.9:
            yield "cones collapsed"
    late = step > steps / 5
    if late and "contrastive_chance" in logs and logs["contrastive_loss"] > 0.99 * logs["contrastive_chance"]:
        yield "no better than chance"


class ReadableLog(TrainerCallback):
    """Print each log as one line in place of a dictionary, with its problems at the end."""

    training_bar: Any = None

    def __init__(self, entailed: bool = True):
        super().__init__()
        self.entailed, self.advised = entailed, set[str]()

    def _write(self, text: str) -> None:
        if self.training_bar is not None:
            self.training_bar.write(text)
        else:
            print(text, flush=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        wrong = list(what_is_wrong(logs, state.global_step, state.max_steps, self.entailed))
        line = log_line(logs, state.global_step, state.max_steps)
        self._write(f"{line}  ! {', '.join(wrong)}" if wrong else line)
        for each in wrong:
            if each not in self.advised:
                self._write(f"  {each}: {ADVICE[each]}")
        self.advised.update(wrong)


class ReadableLogWithBar(ReadableLog, ProgressCallback):
    """Print the same lines above transformers' progress bar."""


class LearningCurves(TrainerCallback):
    """Draw the log as OUTPUT_DIR/curves.png at each checkpoint and at the end."""

    def __init__(self) -> None:
        self.drawn_at = -1

    def on_save(self, args, state, control, **kwargs):
        # The curves of a run that ends at a checkpoint are complete already.
        if state.is_world_process_zero and state.global_step != self.drawn_at:
            self.drawn_at = state.global_step
            write_curves(state.log_history, args.output_dir)

    on_train_end = on_save


def write_curves(log: Sequence[Mapping[str, Any]], folder: str | Path) -> Path | None:
    """Draw the learning curves of a log.

    Args:
        log: ``log_history`` of a run.
        folder: Where ``curves.png`` is written.

    Returns:
        The picture; None where the log holds fewer than two losses.
    """
    if sum("loss" in row for row in log) < 2:
        return None
    from .plots import training_curves

    path = Path(folder) / CURVES
    try:
        with write_file(path) as file:
            training_curves(log).savefig(file, format="png", dpi=110, facecolor="white")
    except OSError as error:  # a run must not end for a picture
        logger.warning("The learning curves were not written: %s", error)
        return None
    return path


def make_readable(trainer: Trainer) -> None:
    """Replace transformers' printing callbacks by these, so that each line is printed once."""
    removed = [trainer.pop_callback(printing) for printing in (PrinterCallback, ProgressCallback)]
    if not any(removed):
        return  # a notebook, whose table shows the log
    config = cast(Any, trainer.model).config
    weights = (config.cross_entailment_weight, config.intra_entailment_weight)
    entailed = config.geometry == "lorentz" and any(weight is None or weight > 0 for weight in weights)
    readable = ReadableLog if trainer.args.disable_tqdm else ReadableLogWithBar
    trainer.add_callback(readable(entailed))
    trainer.add_callback(LearningCurves())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    """Return a duration in readable units.

    >>> _duration(75.2), _duration(7300), _duration(3.21)
    ('1 min 15 s', '2 h 1 min', '3.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
