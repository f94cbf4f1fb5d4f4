"""Where a dataset may be written, what is kept of a run that was killed, and what to do where the disk is full."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..atomic.files import check_folder_output
from .schema import CONFIGS, MANIFEST

_ENTRIES = {"README.md", *CONFIGS}
_OPTIONAL = {"previews", "examples", MANIFEST}


def check_output(output: str | Path, overwrite: bool = False) -> Path:
    """Return the absolute output path if a dataset may be written there, without touching anything.

    Raises:
        FileExistsError: something is there that may not be replaced.
        OSError: no folder can be made there.
    """
    output = Path(output).expanduser().resolve()
    if not os.path.isfile(output):  # what stands there is told below
        check_folder_output(output)
    entries = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if not entries and (output.is_dir() or not output.exists()):
        return output
    strangers = entries - _ENTRIES - _OPTIONAL
    if strangers or not entries >= _ENTRIES:
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
    """Return the hidden folder beside an output in which finished slides wait for the others."""
    return output.parent / f".{output.name}.parts"


def clear_unfinished(parts: Path) -> None:
    """Remove slides that a killed run had begun, and the folder itself if no finished one is in it."""
    if not parts.is_dir():
        return
    for pattern in (".*.incomplete-*", "*.once-*"):
        for path in parts.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    if not any(parts.iterdir()):
        parts.rmdir()


@contextmanager
def disk_explained(output: Path, then: str) -> Iterator[None]:
    """Say what to do where the disk runs full.

    Args:
        output: What is written.
        then: What became of it and what to do, without a full stop.

    Raises:
        OSError: In place of any error that says that there is no space left.
    """
    try:
        yield
    except Exception as error:  # safetensors and h5py have classes of their own for it
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full or "the disk is full" in str(error):
            raise
        free = shutil.disk_usage(output.parent if output.parent.exists() else ".").free / 2**30
        told = f"the disk is full ({free:.1f} GiB free where {output} is written). {then}"
        raise OSError(errno.ENOSPC, told) from error
