"""One run at a time per output: a lock file beside it names the process that writes, and is held until the run ends."""

import glob
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows)
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# File locks of one process do not exclude each other, so its own locks are also listed here.
_HELD: set[str] = set()
_GUARD = threading.Lock()
_TRIES = 10  # attempts to read who holds a lock


class BusyError(FileExistsError):
    """Another run is writing to the same output.

    Examples:
        >>> with locked("results.json"):
        ...     try:
        ...         with locked("results.json"):
        ...             pass
        ...     except BusyError as error:
        ...         print(str(error).split(",")[0])
        another run is writing to this output
    """


@contextmanager
def locked(output: str | os.PathLike, what: str = "output") -> Iterator[Path]:
    """Hold the lock of an output: the file ``.NAME.lock`` beside it, with process id, host and start.

    The lock ends with the process, however that ends; a lock file of a dead process is taken over. On a file system without
    locks, the process id decides, and a lock of another host is valid until its file is deleted. A pipe or device, such as
    /dev/stdout, is not locked, since nothing can be left half-written there.

    Args:
        output: File or folder that the run writes; it need not exist.
        what: Kind of the output, for the message.

    Yields:
        The path of the output, absolute and with symlinks resolved.

    Raises:
        BusyError: If another run holds the lock; the message names its process.
        OSError: If no file can be made beside the output.

    Examples:
        >>> import tempfile
        >>> with locked(tempfile.mkdtemp() + "/dataset") as output:
        ...     (output.parent / ".dataset.lock").exists()
        True
    """
    output = Path(output).expanduser()
    if output.exists() and not (output.is_file() or output.is_dir()):
        yield output
        return
    output = Path(os.path.realpath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.parent / f".{output.name}.lock"
    key = os.fspath(path)
    with _GUARD:
        if key in _HELD:
            raise BusyError(_refusal(output, what, path, _record()))
        _HELD.add(key)
    try:
        descriptor = _acquire(path, output, what)
        try:
            yield output
        finally:
            if _parsed(_read(descriptor)).get("pid") == os.getpid():  # not in a fork of ours
                path.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        with _GUARD:
            _HELD.discard(key)


@contextmanager
def writing(output: str | os.PathLike, what: str = "output") -> Iterator[Path]:
    """Hold the lock of an output as `locked` does, after cleaning up what killed runs have left (see `files.recover`).

    Examples:
        >>> Path(".results.json.incomplete-1").touch()
        >>> with writing("results.json"):
        ...     Path(".results.json.incomplete-1").exists()
        False
    """
    from .files import recover

    with locked(output, what) as goal:
        recover(goal)
        yield goal


def kept_folder(output: str | os.PathLike, key: str) -> Path:
    """Return the hidden folder beside an output in which a run keeps results, to be resumed by the same command.

    Args:
        output: The file or folder that the run writes.
        key: Key that differs between runs with different results.

    Examples:
        >>> kept_folder("slide.h5ad", "1a2b").name
        '.slide.h5ad.shards-1a2b'
    """
    path = Path(output)
    # A file name has at most 255 bytes; a long one is hashed, since two outputs may share their beginning.
    told = os.fsencode(path.name)
    return path.parent / f".{path.name if len(told) <= 200 else sha256(told).hexdigest()[:32]}.shards-{key}"


def kept_folders(output: str | os.PathLike) -> list[Path]:
    """Return all existing folders of `kept_folder` of an output, with any key."""
    first = kept_folder(output, "")
    return sorted(first.parent.glob(f"{glob.escape(first.name)}*"))


def clear_finished(output: str | os.PathLike, what: str = "output") -> None:
    """Remove what a run has left that was killed after its output was in place: its lock, and the results it kept to resume.

    It is for commands that refuse an existing output, and so never reach `writing`. Folders of `kept_folders` stay if they hold
    anything newer than the output.

    Raises:
        BusyError: If another run is writing the output.

    Examples:
        >>> _ = Path("done.parquet").write_bytes(b"whole")
        >>> Path(".done.parquet.lock").touch()
        >>> clear_finished("done.parquet")
        >>> Path(".done.parquet.lock").exists()
        False
    """
    with writing(output, what) as path:
        for stale in kept_folders(path):
            if all(file.stat().st_mtime <= path.stat().st_mtime for file in stale.iterdir()):
                shutil.rmtree(stale, ignore_errors=True)


def is_held(output: str | os.PathLike) -> bool:
    """Tell whether this process already holds the lock of an output.

    Example:
        >>> is_held("runs/mine")
        False
    """
    output = Path(os.path.realpath(Path(output).expanduser()))
    with _GUARD:
        return os.fspath(output.parent / f".{output.name}.lock") in _HELD


def _acquire(path: Path, output: Path, what: str) -> int:
    """Return the descriptor of the lock file, locked and with our process in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            holder = _holder(descriptor)
            if holder is not None:
                raise BusyError(_refusal(output, what, path, holder))
            if _same_file(descriptor, path):
                left = _parsed(_read(descriptor))
                if left:
                    logger.warning(
                        "took over %s of process %s on %s, which has ended", path, left["pid"], left.get("host")
                    )
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_record()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous holder deleted the file after we opened it, so it locks nothing


def _holder(descriptor: int) -> dict[str, Any] | None:
    """Return the record of the process that holds the lock; None if nobody did, so that it is now ours."""
    if fcntl is not None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return _says_who(descriptor) or {"pid": "unknown"}
        except OSError:
            logger.debug("this file system has no locks; the process id decides")
        else:
            return None
    left = _parsed(_read(descriptor))
    return left if left and (left.get("host") != socket.gethostname() or _alive(left["pid"])) else None


def _says_who(descriptor: int) -> dict[str, Any]:
    """Return the record of the holder of a lock, which it writes right after locking."""
    for _ in range(_TRIES):
        if found := _parsed(_read(descriptor)):
            return found
        time.sleep(0.05)
    return {}


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _record() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, 4096, 0)


def _parsed(text: bytes) -> dict[str, Any]:
    """Return the record in a lock file; empty for a truncated file."""
    try:
        record = json.loads(text or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("pid"), int) else {}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _refusal(output: Path, what: str, path: Path, holder: dict[str, Any]) -> str:
    return (
        f"another run is writing to this {what}, {output}: process {holder.get('pid')} on {holder.get('host', 'this host')}, "
        f"since {holder.get('started', 'an unknown time')}. Wait for it, choose another output, or end it; if it has ended "
        f"already, delete {path}."
    )
