"""Where a dataset may be written, and what is kept of a run that was killed."""

import glob
import logging
import shutil
from pathlib import Path

from .schema import CONFIGS

logger = logging.getLogger(__name__)

_ENTRIES = {"README.md", *CONFIGS}
_OPTIONAL = {"previews", "examples"}


def check_output(output: str | Path, overwrite: bool = False) -> Path:
    """Returns the absolute output path if a dataset may be written there, without touching anything.

    Raises:
        FileExistsError: something is there that may not be replaced.
    """
    output = Path(output).expanduser().resolve()
    for stale in output.parent.glob(f".{glob.escape(output.name)}.incomplete-*"):
        logger.warning(
            "%s is left over from a run that was killed or is still running; if none is running, delete it", stale
        )
    if not output.exists():
        return output
    entries = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if output.is_dir() and not entries:
        return output
    strangers = entries - _ENTRIES - _OPTIONAL
    if not output.is_dir() or not entries >= _ENTRIES or strangers:
        raise FileExistsError(
            f"{output} exists and is not just a dataset folder (it holds {sorted(strangers)[:3] or 'no complete dataset'}), "
            "so it is never replaced. Choose another output."
        )
    if not overwrite:
        raise FileExistsError(
            f"{output} already holds a dataset. Choose another output, or replace it with overwrite=True (--overwrite)."
        )
    return output


def parts_folder(output: Path) -> Path:
    """The hidden folder beside an output in which finished slides wait for the others."""
    return output.parent / f".{output.name}.parts"


def clear_unfinished(parts: Path) -> None:
    """Removes slides that a killed run had begun, and the folder itself if no finished one is in it."""
    if not parts.is_dir():
        return
    for path in parts.glob("*.unfinished-*"):
        shutil.rmtree(path, ignore_errors=True)
    if not any(parts.iterdir()):
        parts.rmdir()
