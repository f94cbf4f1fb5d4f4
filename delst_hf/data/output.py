"""Check where a dataset may be written, manage the parts of killed runs, and explain a full disk."""

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
    if not os.path.isfile(output):  # a file is refused below
        check_folder_output(output)
    entries = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if not entries and (output.is_dir() or not output.exists()):
        return output
    strangers = entries - _ENTRIES - _OPTIONAL
    if strangers or not entries >= _ENTRIES:
        raise FileExistsError(
            f"{output} exists and is not only a dataset folder (it holds {sorted(strangers)[:3] or 'no complete dataset'}), "
            "so it is never replaced. Choose another output."
        )
    if not overwrite:
        raise FileExistsError(
            f"{output} already holds a dataset. Choose another output, or replace it with overwrite=True (--overwrite)."
        )
    return output


def parts_folder(output: Path) -> Path:
    """Return the hidden folder beside an output that keeps finished slides until all are done."""
    return output.parent / f".{output.name}.parts"


def clear_unfinished(parts: Path) -> None:
    """Remove slides that a killed run left unfinished, and the folder itself if it holds no finished slide."""
    if not parts.is_dir():
        return
    for pattern in (".*.incomplete-*", "*.once-*"):
        for path in parts.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    if not any(parts.iterdir()):
        parts.rmdir()


@contextmanager
def disk_explained(output: Path, then: str) -> Iterator[None]:
    """Explain errors of a full disk that are raised within this context.

    Args:
        output: The output that is being written.
        then: Its state and the next step, without a full stop.

    Raises:
        OSError: In place of any error that reports that there is no space left.
    """
    try:
        yield
    except Exception as error:  # safetensors and h5py raise their own classes for it
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full or "the disk is full" in str(error):
            raise
        free = shutil.disk_usage(output.parent if output.parent.exists() else ".").free / 2**30
        told = f"the disk is full ({free:.1f} GiB free where {output} is written). {then}"
        raise OSError(errno.ENOSPC, told) from error
