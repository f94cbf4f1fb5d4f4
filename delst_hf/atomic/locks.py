"""One run at a time per output: a file beside it that says who writes there, held for as long as the run takes."""

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

# Locks of one process do not exclude each other: its own are kept here.
_HELD: set[str] = set()
_GUARD = threading.Lock()
_TRIES = 10  # to read who holds a lock


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

    The lock ends with the process, however that ends; what a dead one left is taken over. Where the disk knows no locks, the
    process id decides, and a lock of another host stands until its file is deleted. A pipe or device, such as /dev/stdout, is
    not locked: nothing is left there half-written.

    Args:
        output: File or folder that the run writes; it need not exist.
        what: What it is, for the message.

    Yields:
        The path of the output, absolute and with links followed.

    Raises:
        BusyError: If another run holds it, saying which.
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
    """Do as `locked`, and clear up first what runs into the output left that were killed (see `files.recover`).

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
    """Return the hidden folder beside an output in which a run keeps what it, or the next run like it, goes on from.

    Args:
        output: The file or folder that the run writes.
        key: What tells runs apart that make something else.

    Examples:
        >>> kept_folder("slide.h5ad", "1a2b").name
        '.slide.h5ad.shards-1a2b'
    """
    path = Path(output)
    # A name has no more than 255 bytes; two long ones that begin alike are two outputs.
    told = os.fsencode(path.name)
    return path.parent / f".{path.name if len(told) <= 200 else sha256(told).hexdigest()[:32]}.shards-{key}"


def kept_folders(output: str | os.PathLike) -> list[Path]:
    """Return each `kept_folder` of an output that is there, by whatever key."""
    first = kept_folder(output, "")
    return sorted(first.parent.glob(f"{glob.escape(first.name)}*"))


def clear_finished(output: str | os.PathLike, what: str = "output") -> None:
    """Remove what a run left that was killed after its output was in its place: its lock, and what it had kept to go on from.

    For a command that refuses an output that exists, and so never comes to `writing` it. Of the `kept_folders` those stay that
    hold anything newer than the output.

    Raises:
        BusyError: If another run is writing it.

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
    """Say whether this process holds the lock of an output already.

    Example:
        >>> is_held("runs/mine")
        False
    """
    output = Path(os.path.realpath(Path(output).expanduser()))
    with _GUARD:
        return os.fspath(output.parent / f".{output.name}.lock") in _HELD


def _acquire(path: Path, output: Path, what: str) -> int:
    """Return the descriptor of the lock file, locked and with our name in it."""
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
        os.close(descriptor)  # the one who held it deleted the file after we opened it: it locks nothing


def _holder(descriptor: int) -> dict[str, Any] | None:
    """Tell who holds the lock; None when nobody does, and it is ours from now on."""
    if fcntl is not None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return _says_who(descriptor) or {"pid": "unknown"}
        except OSError:
            logger.debug("this disk knows no locks; the process id decides")
        else:
            return None
    left = _parsed(_read(descriptor))
    return left if left and (left.get("host") != socket.gethostname() or _alive(left["pid"])) else None


def _says_who(descriptor: int) -> dict[str, Any]:
    """Return what the holder of a lock says of itself, which it writes right after it has it."""
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
    """Return what a lock file says; empty for a file that was cut."""
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
