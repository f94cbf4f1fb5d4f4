"""Checkpoints of a run that may be killed at any moment: which of them are whole, and how one becomes so."""

import os
import shutil
from pathlib import Path

from ..atomic import fsync

COMPLETE = "complete"


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The latest checkpoint that was written to its end, None when there is none.

    Args:
        output_dir: Output folder of a `DelstTrainer`.
    """
    whole = [marker.parent for marker in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[-1]))) if whole else None


def whole_checkpoint(wanted: str | bool, output_dir: str | os.PathLike) -> str:
    """The checkpoint that a user asked to go on from, known to be whole.

    Args:
        wanted: True for the last one of the run, or the folder of one.
        output_dir: Output folder of the run.

    Returns:
        Its folder.

    Raises:
        ValueError: If there is none, or the one given was never finished.
    """
    last = last_complete_checkpoint(output_dir)
    if wanted is True:
        if last is None:
            raise ValueError(
                f"{output_dir} holds no whole checkpoint to go on from. Train without resume_from_checkpoint."
            )
        return last
    if not (Path(str(wanted)) / COMPLETE).is_file():
        raise ValueError(
            f"{wanted} is no whole checkpoint: the file {COMPLETE!r} that is written last is not there. "
            + (f"Go on from {last}." if last else f"{output_dir} holds no whole one: train from the start.")
        )
    return str(wanted)


def prepare_for_checkpoint(run: Path, step: int) -> None:
    """Clear away what a killed run left half-written, and unmark an older checkpoint of this step before it is written over.

    Left lying, half-written folders would count as checkpoints when the oldest are deleted, and whole ones go in their place.
    """
    (run / f"checkpoint-{step}" / COMPLETE).unlink(missing_ok=True)
    for folder in run.glob("checkpoint-*"):
        if folder.is_dir() and not (folder / COMPLETE).is_file():
            shutil.rmtree(folder)


def mark_complete(checkpoint: Path) -> None:
    """Bring every file of a checkpoint to the disk, and only then say that it is whole."""
    for path in [*checkpoint.rglob("*"), checkpoint]:
        fsync(path)
    (checkpoint / COMPLETE).touch()
    fsync(checkpoint)
