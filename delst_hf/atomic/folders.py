"""Folders that are either there and whole, or not there; the old one stays until the new one takes its place at once."""

import ctypes
import errno
import glob
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import fsync

logger = logging.getLogger(__name__)

_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
# The kernel or the file system does not know these renames.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@contextmanager
def complete_or_nothing(
    output: Path, *, replace: bool = True, check: Callable[[], object] | None = None
) -> Iterator[Path]:
    """Give a hidden sibling folder to write in; it becomes `output` on success and is removed on any exception.

    An older folder at `output` is there until the new one is on the disk, and the two then change places in one step.

    Args:
        output: The folder to make.
        replace: Whether a folder that holds something may be replaced, also one that appeared during the work.
        check: Called right before `output` is replaced; what it raises leaves everything as it was.

    Yields:
        The folder to write in.

    Raises:
        FileExistsError: If `replace` is False and `output` is taken when the work is done.

    Examples:
        >>> with complete_or_nothing(Path("model")) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        ...     Path("model").exists()
        False
        >>> [path.name for path in Path("model").iterdir()]
        ['config.json']
    """
    output = Path(os.path.realpath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder = output.parent / f".{output.name}.incomplete-{mark}"
    folder.mkdir()
    try:
        yield folder
        for path in sorted(folder.rglob("*"), reverse=True):
            fsync(path)
        fsync(folder)
        if check is not None:
            check()
        _put_in_place(folder, output, replace, mark)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def recover(output: Path) -> None:
    """Clear up after runs into `output` that were killed; to be called while its lock is held.

    A folder that was moved aside to be replaced, by a run that died before the new one was in place, is put back. Unfinished
    folders are removed.

    Args:
        output: The folder that runs make.

    Examples:
        >>> Path(".model.incomplete-1").mkdir()
        >>> recover(Path("model"))
        >>> Path(".model.incomplete-1").exists()
        False
    """
    name = glob.escape(output.name)
    for old in sorted(output.parent.glob(f".{name}.replaced-*")):
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, output)
            logger.warning("%s was moved aside by a run that was killed; it is back in its place", output)
    for stale in output.parent.glob(f".{name}.incomplete-*"):
        logger.warning("removed %s, left half-written by a run that was killed", stale)
        shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)


def _put_in_place(folder: Path, output: Path, replace: bool, mark: str) -> None:
    """Rename a finished folder to its name, in one step that either replaces all or nothing."""
    if output.is_dir() and not any(output.iterdir()):
        try:
            output.rmdir()
        except OSError:  # something came into it just now
            logger.debug("%s is not empty any more", output)
    if not replace or not os.path.lexists(output):
        try:
            _rename(folder, output, _NOREPLACE)
        except FileExistsError:
            raise FileExistsError(
                f"{output} was made by somebody else while this run was working; it is left as it is. Choose another output "
                "and run the same command again."
            ) from None
        fsync(output.parent)
        return
    try:
        _rename(folder, output, _EXCHANGE)
        old = folder
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        old = _replace_in_two_steps(folder, output, mark)
    fsync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _replace_in_two_steps(folder: Path, output: Path, mark: str) -> Path:
    """Replace a folder where the disk knows no exchange; `recover` puts the old one back if the run dies in between."""
    old = output.parent / f".{output.name}.replaced-{mark}"
    os.rename(output, old)
    try:
        os.rename(folder, output)
    except BaseException:
        os.rename(old, output)
        raise
    return old


def _rename(source: Path, target: Path, flag: int) -> None:
    """Rename with a flag of renameat2(2); without the call, NOREPLACE looks first and EXCHANGE is unknown."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        call = None
    code = errno.ENOSYS
    if call is not None:
        sys.audit("os.rename", os.fspath(source), os.fspath(target), -1, -1)
        if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flag)) == 0:
            return
        code = ctypes.get_errno()
    if flag == _NOREPLACE and code in _UNKNOWN:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
        os.rename(source, target)
        return
    raise OSError(code, os.strerror(code), os.fspath(source), None, os.fspath(target))
