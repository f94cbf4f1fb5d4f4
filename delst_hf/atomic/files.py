"""Atomic writes of files and folders: whenever a run is killed, they are either completely old or completely new."""

import ctypes
import errno
import glob
import logging
import os
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
# Errors of a kernel or a file system without renameat2's flags.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_LONGEST_NAME = 255  # bytes, on every common disk


@contextmanager
def write_file(path: str | os.PathLike, mode: str = "wb", replace: bool = True, **options: Any) -> Iterator[IO[Any]]:
    """Open a hidden file beside `path` for writing; it replaces `path` on success and is removed on any exception.

    The old file stays complete until the new one is on disk, even if the process is killed or the disk is full. Missing parent
    folders are made. A symlink is followed, and anything that is not a regular file (a pipe, /dev/stdout) is written directly.

    Args:
        path: The file.
        mode: "wb" or "w".
        replace: Whether a file at `path` may be replaced, including one that appeared during the work.
        **options: Passed to `open`, for example ``newline=``; text is UTF-8 by default.

    Yields:
        The open file.

    Raises:
        IsADirectoryError: If `path` is a folder.
        FileExistsError: If `replace` is False and `path` exists when the new file is complete.
        OSError: If the file cannot be written.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "genes.txt"
        >>> with write_file(path, "w") as file:
        ...     _ = file.write("ERBB2")
        >>> path.read_text()
        'ERBB2'
    """
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the name of a file.")
    if path.exists() and not path.is_file():
        with open(path, mode, **options) as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(path)
    try:
        with open(partial, mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(partial, stat.S_IMODE(path.stat().st_mode))
        if replace:
            os.replace(partial, path)
        else:
            _rename_to_free(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def _rename_to_free(source: Path, target: Path) -> None:
    """Rename a file to a name that must be free: make a hard link, which fails if the name exists, and remove the old name."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise FileExistsError(
            f"{target} was made by another program while this run was working; it is left unchanged. Choose another output, "
            "and run the same command again."
        ) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists. Choose another output.") from None
        os.rename(source, target)
        return
    os.unlink(source)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8 atomically (see `write_file`).

    Examples:
        >>> write_text("notes/genes.txt", "ERBB2")
        >>> Path("notes/genes.txt").read_text()
        'ERBB2'
    """
    with write_file(path, "w") as file:
        file.write(text)


def check_file_output(path: str | os.PathLike) -> None:
    """Refuse a path at which no file could be written, before the work whose result it is to hold.

    No file or folder is left behind.

    Args:
        path: The file that is to be written later.

    Raises:
        OSError: A folder has this name, a parent is a file, permission is missing, or the disk is read-only.

    Examples:
        >>> check_file_output("results.json")
        >>> Path("results.json").exists()
        False
    """
    path = _absolute(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the name of a file to write.")
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout
        return
    _check_parent(path, "file")


def check_folder_output(path: str | os.PathLike) -> None:
    """Refuse a path at which no folder could be made, before the work whose result it is to hold; leave nothing behind.

    Args:
        path: The folder that is to be made, or replaced, later.

    Raises:
        OSError: As in `check_file_output`.

    Example:
        >>> import tempfile
        >>> check_folder_output(tempfile.mkdtemp() + "/run")
    """
    path = _absolute(path)
    if os.path.lexists(path) and not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder. Give the name of a folder to make.")
    _check_parent(path, "folder")


def _absolute(path: str | os.PathLike) -> Path:
    path = Path(os.path.realpath(Path(path).expanduser()))
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise OSError(f"{path} cannot be written: its name is too long. Allowed: {_LONGEST_NAME} bytes.")
    return path


def _check_parent(path: Path, kind: str) -> None:
    """Refuse a path whose nearest existing parent is not a folder, or does not allow to make a file, which is tried."""
    parent = path.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {parent} is a file, not a folder. Choose another name.")
    try:
        with tempfile.TemporaryFile(prefix=".delst-", dir=parent):
            pass  # nameless where the system allows that, so that a kill leaves nothing
    except OSError as error:
        raise type(error)(
            f"{path} cannot be written ({error.strerror or error}). Choose a {kind} in a folder that you may write to."
        ) from error


def fsync(path: Path) -> None:
    """Write a file, or the entries of a folder, through to the disk.

    Examples:
        >>> Path("genes.txt").write_text("ERBB2")
        5
        >>> fsync(Path("genes.txt"))
        >>> fsync(Path("."))
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Write a new folder and all its content through to the disk, and give its files the permissions of the umask.

    safetensors makes files that only their owner can read, so that a colleague could not load a model from a shared disk.

    Args:
        folder: A folder that this run made, whose own permissions show the umask.

    Examples:
        >>> write_text("model/config.json", "{}")
        >>> os.chmod("model/config.json", 0o600)
        >>> fsync_folder(Path("model"))
        >>> oct((Path("model").stat().st_mode ^ Path("model/config.json").stat().st_mode) & 0o666)
        '0o0'
    """
    allowed = folder.stat().st_mode & 0o666
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_file() and not path.is_symlink():
            os.chmod(path, stat.S_IMODE(path.stat().st_mode) | allowed)
        fsync(path)


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link to a file; on a file system without hard links, copy it. The source stays in either case.

    Examples:
        >>> write_text("genes.txt", "ERBB2")
        >>> link_or_copy(Path("genes.txt"), Path("same.txt"))
        >>> Path("same.txt").read_text()
        'ERBB2'
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)


def _sibling(path: Path) -> Path:
    """Return a new hidden name beside `path`, short enough for any file system."""
    return path.parent / f".{path.name[:50]}.incomplete-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@contextmanager
def complete_or_nothing(
    output: Path, *, replace: bool = True, check: Callable[[], object] | None = None
) -> Iterator[Path]:
    """Make a hidden sibling folder to write in; it becomes `output` on success and is removed on any exception.

    An older folder at `output` stays until the new one is on disk; then the two are exchanged in one step.

    Args:
        output: The folder to make.
        replace: Whether a folder with content may be replaced, including one that appeared during the work.
        check: Called right before `output` is replaced; if it raises, nothing is changed.

    Yields:
        The folder to write in.

    Raises:
        FileExistsError: If `replace` is False and `output` exists when the work is done.

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
        fsync_folder(folder)
        if check is not None:
            check()
        _put_in_place(folder, output, replace, mark)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def recover(output: Path) -> None:
    """Clean up after killed runs into `output`; call it while its lock is held.

    A folder that was moved aside by a run that died before the new one was in place is put back. Unfinished files and folders
    are removed.

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
            logger.warning("%s was moved aside by a killed run; it was put back", output)
    for stale in output.parent.glob(f".{name}.incomplete-*"):
        logger.warning("removed %s, left unfinished by a killed run", stale)
        shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)


def _put_in_place(folder: Path, output: Path, replace: bool, mark: str) -> None:
    """Give a finished folder its name atomically."""
    if output.is_dir() and not any(output.iterdir()):
        try:
            output.rmdir()
        except OSError:  # something was just written into it
            logger.debug("%s is no longer empty", output)
    if not replace or not os.path.lexists(output):
        try:
            _rename(folder, output, _NOREPLACE)
        except FileExistsError:
            raise FileExistsError(
                f"{output} was made by another program while this run was working; it is left unchanged. Choose another "
                "output, and run the same command again."
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
    """Replace a folder on a file system without exchange; `recover` puts the old one back if the run dies in between."""
    old = output.parent / f".{output.name}.replaced-{mark}"
    os.rename(output, old)
    try:
        os.rename(folder, output)
    except BaseException:
        os.rename(old, output)
        raise
    return old


def _rename(source: Path, target: Path, flag: int) -> None:
    """Rename with a flag of renameat2(2); without that call, NOREPLACE checks the target first, and EXCHANGE fails."""
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
