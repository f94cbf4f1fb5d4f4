"""Files and folders that hold either all of the old or all of the new, whenever a run is killed."""

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
# The kernel or the file system does not know these renames.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_LONGEST_NAME = 255  # bytes, on every common disk


@contextmanager
def write_file(path: str | os.PathLike, mode: str = "wb", replace: bool = True, **options: Any) -> Iterator[IO[Any]]:
    """Open a hidden file beside `path` for writing; it takes the place of `path` on success and is removed on any exception.

    The old file stays whole until the new one is on the disk, whenever the process is killed or the disk runs full. Folders
    that are missing on the way are made. A link is followed, and what is not a regular file (a pipe, /dev/stdout) is written
    as it is.

    Args:
        path: The file.
        mode: "wb" or "w".
        replace: Whether a file at `path` may be replaced, also one that appeared during the work.
        **options: Passed to `open`, for example ``newline=``; text is UTF-8 by default.

    Yields:
        The open file.

    Raises:
        IsADirectoryError: If `path` is a folder.
        FileExistsError: If `replace` is False and there is a file when the new one is done.
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
    """Rename a file to a name that nothing has: a second name is made, which fails where there is one, the first removed."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise FileExistsError(
            f"{target} was made by somebody else while this run was working; it is left as it is. Choose another output, and "
            "run the same command again."
        ) from None
    except OSError:  # a disk without hard links
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists. Choose another output.") from None
        os.rename(source, target)
        return
    os.unlink(source)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all (see `write_file`).

    Examples:
        >>> write_text("notes/genes.txt", "ERBB2")
        >>> Path("notes/genes.txt").read_text()
        'ERBB2'
    """
    with write_file(path, "w") as file:
        file.write(text)


def check_file_output(path: str | os.PathLike) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Nothing is left behind, neither a file nor a folder.

    Args:
        path: The file that is to be written later.

    Raises:
        OSError: With the reason: a folder of this name, a file where a folder should be, no permission, a read-only disk.

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
    """Refuse a folder that could not be made, before the work whose result it is to hold; nothing is left behind.

    Args:
        path: The folder that is to be made, or replaced, later.

    Raises:
        OSError: With the reason, as `check_file_output`.

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
    """Refuse a place in which nothing can be made: it is tried."""
    parent = path.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {parent} is a file, not a folder. Choose another name.")
    try:
        with tempfile.TemporaryFile(prefix=".delst-", dir=parent):
            pass  # without a name where the system allows that: a kill then leaves nothing
    except OSError as error:
        raise type(error)(
            f"{path} cannot be written ({error.strerror or error}). Choose a {kind} in a folder that you may write to."
        ) from error


def fsync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk.

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
    """Bring a new folder and all in it to the disk, its files readable for whom the umask allows.

    safetensors writes for its user alone, so that a colleague could not load a model from a shared disk.

    Args:
        folder: One that this run made, so that its permissions tell the umask.

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
    """Give a file a second name; where the disk does not allow that, copy it. The first name stays in either case.

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
    """Return a new hidden name beside `path`, short enough for any."""
    return path.parent / f".{path.name[:50]}.incomplete-{os.getpid()}-{uuid.uuid4().hex[:8]}"


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
        fsync_folder(folder)
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
