"""Checkpoints of a run that may be killed at any moment: which are complete and undamaged, and of which run they are."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic.files import check_folder_output, fsync, fsync_folder, recover
from ..atomic.locks import is_held, locked
from ..model.distributed import process_rank
from ..record import hyperparameters

logger = logging.getLogger(__name__)

COMPLETE, BEGUN = "complete", "begun"
# Results that runs write into their output folder at the end.
RESULTS = ("model", "search.json", "curves.png")
# What the scripts advise when a run is interrupted; without a complete checkpoint the run starts over.
GOING_ON = "give the same command with --resume_from_checkpoint true"
_NAME = re.compile(r"checkpoint-(\d+)")
# Settings that the identity states in full elsewhere; that may change (the length of a run); and that change no result, or only
# its rounding.
_NOT_COMPARED = re.compile(
    "(train|validation|test|same_patient)_slides|vocabulary|per_device_.*|auto_find_batch_size"
    "|num_train_epochs|max_steps|resume_anyway"
    "|eval_.*|batch_eval_metrics|load_best.*|metric_for_best.*|greater_is_better|log_.*|project|debug|use_cpu"
    "|contrastive_micro_batch_size|(gradient|activation)_checkpointing.*|torch_compile.*|torch_empty_cache_steps|ddp_.*|fsdp.*|deepspeed"
    "|accelerator_config|skip_memory_metrics|include_.*|remove_unused_columns|restore_callback_states_from_checkpoint"
)

# What decides which spots, or which random numbers, a step gets, and is no hyper-parameter of the record.
_OF_THE_LOADER = ("dataloader_drop_last", "dataloader_persistent_workers")


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Return the latest complete checkpoint, None when there is none.

    Args:
        output_dir: Output folder of a `DelstTrainer`. Folders with other names than ``checkpoint-<number>`` do not count.

    >>> last_complete_checkpoint("runs/none") is None
    True
    """
    steps = {int(found[1]): path.parent for path in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}")
             if (found := _NAME.fullmatch(path.parent.name))}  # fmt: skip
    return str(steps[max(steps)]) if steps else None


def how_to_go_on(output: str) -> str:
    """Say how to resume a run that ended early.

    >>> how_to_go_on("runs/none").split(". ")[-1]
    'No checkpoint was saved yet, so it starts over; --save_strategy epoch saves one per epoch.'
    """
    last = last_complete_checkpoint(output)
    where = (
        f"It resumes from {last}."
        if last
        else ("No checkpoint was saved yet, so it starts over; --save_strategy epoch saves one per epoch.")
    )
    return f"what was finished is complete. To continue: {GOING_ON}. {where}"


@contextmanager
def interruption_explained(output_dir: str | os.PathLike | None) -> Iterator[None]:
    """Give an interruption of a run the message that says how to continue it.

    Args:
        output_dir: Output folder of the run.

    Raises:
        KeyboardInterrupt: With that message.
    """
    try:
        yield
    except (KeyboardInterrupt, RuntimeError) as error:
        from ..errors import was_interrupted  # imported late: most runs end without it

        if not was_interrupted(error):
            raise
        raise KeyboardInterrupt(how_to_go_on(str(output_dir or "."))) from None


@contextmanager
def own_output(output_dir: str | os.PathLike | None) -> Iterator[None]:
    """Lock the output folder of a run on the first process while the run lasts; do nothing within a run that holds the lock.

    Results that a killed run left half-written are cleaned up. The lock file is inside the folder (``.run.lock``), since the
    folder above may not be writable.

    Args:
        output_dir: Output folder of the run.

    Raises:
        OSError: If it cannot be written, or another run is writing there.
    """
    lock = Path(output_dir or ".") / "run"
    if process_rank() > 0 or is_held(lock):
        yield
        return
    check_folder_output(lock)
    with locked(lock, "run's output folder"):
        for result in RESULTS:
            recover(Path(os.path.realpath(output_dir or ".")) / result)
        yield


def resume_point(output_dir: str | os.PathLike, wanted: str | None) -> str | None:
    """Find the checkpoint to resume from; refuse to overwrite a run that is not resumed.

    Args:
        output_dir: Output folder of the run.
        wanted: ``"true"`` for the last complete checkpoint, the folder of one, or None or ``"false"``.

    Returns:
        The folder of a checkpoint, None to begin at the start.

    Raises:
        ValueError: If the folder holds a run and `wanted` does not name it, or the checkpoint is not complete.
    """
    last = last_complete_checkpoint(output_dir)
    if wanted is None or wanted.lower() == "false":
        if last or (Path(output_dir) / "model").exists():
            raise ValueError(
                f"{output_dir} holds a run already. Resume it with --resume_from_checkpoint true, or choose "
                "another --output_dir."
            )
        return None
    # A run that was killed before its first checkpoint starts over.
    return last if wanted.lower() == "true" else whole_checkpoint(wanted, output_dir)


def whole_checkpoint(wanted: str | bool, output_dir: str | os.PathLike) -> str:
    """Find the checkpoint that a user asked to resume from, and check every file of it.

    Args:
        wanted: True for the last one of the run, or the folder of one.
        output_dir: Output folder of the run.

    Returns:
        Its folder.

    Raises:
        ValueError: If there is none, the one given was never finished, or a file is missing or changed.
    """
    last = last_complete_checkpoint(output_dir)
    if wanted is True:
        if last is None:
            raise ValueError(
                f"{output_dir} holds no complete checkpoint to resume from. Train without resume_from_checkpoint."
            )
        wanted = last
    folder = Path(str(wanted))
    if not (folder / COMPLETE).is_file():
        raise ValueError(
            f"{wanted} is an incomplete checkpoint: its marker file {COMPLETE!r} is missing. "
            + (f"Resume from {last}." if last else f"{output_dir} holds no complete one: train from the start.")
        )
    damaged = damaged_files(folder)
    if damaged:
        raise ValueError(
            f"{folder} is damaged: {', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} missing or changed since "
            "it was saved. Resume from an earlier checkpoint with --resume_from_checkpoint FOLDER, or train from the start."
        )
    return str(folder)


def damaged_files(checkpoint: Path) -> list[str]:
    """Name the files of a checkpoint that are missing, or whose size or SHA-256 is not what its marker says."""
    files = _marker(checkpoint).get("files", {})
    if not files:
        logger.warning(
            "%s was written by an earlier version, which stored no checksums: its files are not checked.", checkpoint
        )
    return [name for name, facts in files.items() if _describe(checkpoint / name) != facts]


def begin_checkpoint(run: Path, step: int) -> None:
    """Remove checkpoints that a killed run left half-written, and begin the checkpoint of this step.

    Otherwise half-written folders would count as checkpoints when the oldest are deleted, and complete ones would be deleted
    in their place. Only folders that a run began are removed: those with the file `BEGUN`.
    """
    for folder in run.glob("checkpoint-*"):
        began = _NAME.fullmatch(folder.name) and (folder / BEGUN).is_file()
        if began and not (folder / COMPLETE).is_file():
            _remove(folder)
    checkpoint = run / f"checkpoint-{step}"
    ours = any((checkpoint / name).is_file() for name in (COMPLETE, BEGUN))
    if checkpoint.is_dir() and not ours and any(checkpoint.iterdir()):
        raise OSError(
            f"{checkpoint} holds neither {COMPLETE!r} nor {BEGUN!r}, so it was not made by a run and is not overwritten. Move "
            "it away, or choose another --output_dir."
        )
    if ours:
        _remove(checkpoint)
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / BEGUN).touch()


def mark_complete(checkpoint: Path, identity: Mapping[str, Any] | None = None) -> None:
    """Flush every file of a checkpoint to disk, and only then write the marker that calls it complete and lists its files.

    Args:
        checkpoint: Its folder.
        identity: `run_identity` of the run that wrote it.
    """
    fsync_folder(checkpoint)
    names = sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    files = {name: _describe(checkpoint / name) for name in names if name not in (COMPLETE, BEGUN)}
    partial = checkpoint / f".{COMPLETE}"
    partial.write_text(json.dumps({"run": dict(identity or {}), "files": files}, indent=1) + "\n", encoding="utf-8")
    fsync(partial)
    os.replace(partial, checkpoint / COMPLETE)
    fsync(checkpoint)


def delete_oldest(run: Path, limit: int | None, best: str | None = None) -> None:
    """Delete the oldest checkpoints of a run beyond a limit.

    Args:
        run: Its output folder. Folders that no run made, whatever their names, stay.
        limit: How many to keep, None for all.
        best: A checkpoint to keep whatever its age.
    """
    if not limit or limit < 1:
        return
    steps = {int(found[1]): path.parent for path in run.glob(f"checkpoint-*/{BEGUN}")
             if (found := _NAME.fullmatch(path.parent.name)) and (path.parent / COMPLETE).is_file()}  # fmt: skip
    kept = Path(best).resolve() if best else None
    removable = [steps[step] for step in sorted(steps) if steps[step].resolve() != kept]
    for folder in removable[: max(len(steps) - limit, 0)]:
        _remove(folder)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, `BEGUN` last: if the run is killed meanwhile, the next one knows what is left for a run's."""
    (checkpoint / BEGUN).touch()
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    for path in checkpoint.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != BEGUN:
            path.unlink()
    shutil.rmtree(checkpoint)


def _describe(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _marker(checkpoint: Path) -> dict[str, Any]:
    text = (checkpoint / COMPLETE).read_text(encoding="utf-8")
    try:
        return json.loads(text) if text.strip() else {}
    except json.JSONDecodeError:
        return {"files": {COMPLETE: None}}


def run_identity(args: Any, processor: Any, run_facts: Mapping[str, Any], spots: Any) -> dict[str, Any]:
    """Describe what determines the data, vocabulary and loss of a run: only the same run resumes from its checkpoints.

    Args:
        args: Its `DelstTrainingArguments`.
        processor: Processor of the model, None where there is none.
        run_facts: Facts of the run (`pretraining.run.assemble`).
        spots: Its training spots.
    """
    data = run_facts.get("data") or {}
    settings = {**hyperparameters(args), **(run_facts.get("hyperparameters") or {})}
    defaults = type(args).__dataclass_fields__
    loader = {name: getattr(args, name) for name in _OF_THE_LOADER if getattr(args, name) != defaults[name].default}
    return {
        "seed": args.seed,
        "spots_per_batch": args.train_batch_size * args.world_size,
        "processes": args.world_size,  # each has a random state of its own
        "training_spots": _number_of(spots),
        "train_slides": run_facts.get("train_slides"),
        "level_key": run_facts.get("level_key"),
        "vocabulary": processor.feature_extractor.vocabulary_hash() if processor is not None else None,
        "data": data.get("fingerprint"),
        **({"features": data["features_fingerprint"]} if "features_fingerprint" in data else {}),
        **loader,
        **{name: value for name, value in settings.items() if not _NOT_COMPARED.fullmatch(name)},
    }


def check_same_run(checkpoint: str, identity: Mapping[str, Any], resume_anyway: bool = False) -> None:
    """Refuse to resume from a checkpoint of a run with other settings.

    Args:
        checkpoint: Its folder, complete.
        identity: `run_identity` of the run to resume.
        resume_anyway: Resume all the same, and log what differs.

    Raises:
        ValueError: If settings differ, which the message names, or the checkpoint holds weights alone.
    """
    before = _marker(Path(checkpoint)).get("run", {})
    if not resume_anyway and not any(Path(checkpoint).glob("rng_state*")):
        raise ValueError(
            f"{checkpoint} holds weights alone (--save_only_model true), without the state of the optimizer: a resumed run "
            "would differ from an uninterrupted one. Train from the start, begin a new run with --init_from, or insist with "
            "--resume_anyway true."
        )
    now = json.loads(json.dumps(dict(identity)))
    names = [name for name in before | now if before.get(name) != now.get(name)] if before else []
    if not names:
        return
    differences = "; ".join(f"{name} was {_value(before, name)} and is {_value(now, name)}" for name in names)
    if not resume_anyway:
        raise ValueError(
            f"{checkpoint} is of another run: {differences}. Give the settings that it was started with, start a new run in "
            "another --output_dir, or insist with --resume_anyway true."
        )
    logger.warning("Resuming from %s although %s.", checkpoint, differences)


def _value(identity: Mapping[str, Any], name: str) -> str:
    return repr(identity[name]) if name in identity else "not given"


def check_metric(args: Any, evaluation_names: Callable[[], set[str] | None]) -> None:
    """Refuse a ``metric_for_best_model`` that no evaluation gives: the base class does so at the first one.

    Args:
        args: Arguments of the run.
        evaluation_names: Returns the names of what an evaluation gives, without ``eval_``; None if they are not known.

    Raises:
        ValueError: If it is another name; the message suggests the nearest.
    """
    metric = args.metric_for_best_model
    names = None if metric is None or args.eval_strategy == "no" else evaluation_names()
    if metric is None or names is None or metric.removeprefix("eval_") in names:
        return
    from ..errors import did_you_mean

    near = did_you_mean([metric.removeprefix("eval_")], names)
    raise ValueError(
        f"metric_for_best_model={metric!r} is not given by an evaluation of this run.{near} Choose one of "
        f"{', '.join(sorted(names))}."
    )


def check_there_are_steps(args: Any, spots: Any) -> None:
    """Refuse a run without a single step.

    Args:
        args: Its `DelstTrainingArguments`.
        spots: Its training spots.

    Raises:
        ValueError: If the spots make no full batch.
    """
    batch, number = args.train_batch_size * args.world_size, _number_of(spots)
    if number == 0:
        raise ValueError("There are no training spots, so there would be no step. Train on other slides.")
    if number is not None and args.dataloader_drop_last and number < batch:
        raise ValueError(
            f"{number} training spots make no batch of {batch} ({args.train_batch_size} for each of {args.world_size} "
            "processes), so there would be no step. Lower --per_device_train_batch_size, train on more slides, or set "
            "--dataloader_drop_last false."
        )


def _number_of(spots: Any) -> int | None:
    """Return the number of training spots, which for a stream is not its length (batches of one process)."""
    return getattr(spots, "num_rows", len(spots) if hasattr(spots, "__len__") else None)
