"""Unpack files and archives into a scratch folder that is kept while a slide is read and cut.

Public archives compress every file (.gz) and offer folders as .tar.gz. Libraries that read parts of a file (images, HDF5)
need it uncompressed: `plain_file` and `unpack` provide it. Pixels are read while patches are cut, so `scratch` keeps the
folder until then.
"""

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import reading
from .files import is_hidden, is_packed, open_packed

PACKED = (".gz", ".bz2", ".xz")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PIECE = 1 << 22
# Free space that is always left on the disk.
_SPARE_BYTES = 1 << 29

_current: ContextVar["_Scratch | None"] = ContextVar("scratch", default=None)


class _Scratch:
    """A folder made on first use, and what was unpacked into it."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, int, int], Path] = {}

    @cached_property
    def folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="delst-unpacked-")


# For readers called outside of `scratch`: kept to the end of the process.
_of_process = _Scratch()


@contextmanager
def scratch() -> Iterator[None]:
    """Remove on exit what was unpacked within this context."""
    mine = _Scratch()
    token = _current.set(mine)
    try:
        yield
    finally:
        _current.reset(token)
        if "folder" in vars(mine):
            mine.folder.cleanup()


def new_folder(name: str) -> Path:
    """Return an empty folder in the scratch."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=(_current.get() or _of_process).folder.name))


def is_archive(path: Path) -> bool:
    """Tell whether a file is a tar archive by its name."""
    return path.name.lower().endswith(ARCHIVES)


def plain_file(path: Path) -> Path:
    """Return the file itself, or, if it is compressed, an unpacked copy whose name lacks the suffix.

    Raises:
        ValueError: a damaged file.
        OSError: the scratch disk is full.
    """
    if not is_packed(path):
        return path
    return _once(path, _unpacked)


def names_within(path: Path) -> list[str]:
    """Return the names of the files in a tar archive, without hidden ones; an empty list if it cannot be read."""
    try:
        with tarfile.open(path) as archive:
            return [one.name for one in archive if one.isfile() and not is_hidden(PurePosixPath(one.name).name)]
    except (OSError, EOFError, tarfile.TarError):
        return []  # the reader of the archive reports why


def _unpacked(path: Path) -> Path:
    goal = new_folder("plain") / (path.stem if path.suffix.lower() in PACKED else path.name)
    with reading(path, "compressed file"), open_packed(path) as source:
        _copy(source, goal, path)
    return goal


def unpack(path: Path) -> Path:
    """Unpack a tar archive and return the folder. Links, devices and names that lead out of the archive are refused.

    Raises:
        ValueError: a damaged archive, or one with such members.
        OSError: the scratch disk is full.
    """
    return _once(path, _extracted)


def _extracted(path: Path) -> Path:
    goal = new_folder("archive")
    with reading(path, "archive"), tarfile.open(path) as archive:
        for member in archive:
            inner = PurePosixPath(member.name)
            if member.isdir() or any(is_hidden(part) for part in inner.parts if part != "."):
                continue
            if not member.isfile() or inner.is_absolute() or ".." in inner.parts:
                raise ValueError(
                    f"the archive {path} holds {member.name!r}, which is a link or leads out of the archive. Unpack and "
                    "inspect it yourself, or download it again."
                )
            source = archive.extractfile(member)
            if source is not None:
                target = goal / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy(source, target, path)
    return goal


def _once(path: Path, make: Callable[[Path], Path]) -> Path:
    """Return what `make` makes of a file, making it again only if the file has changed."""
    where, status = _current.get() or _of_process, path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if key not in where.known:
        where.known[key] = make(path)
    return where.known[key]


def _copy(source: IO[bytes], goal: Path, path: Path) -> None:
    with goal.open("wb") as file:
        while piece := source.read(_PIECE):
            if shutil.disk_usage(goal.parent).free < _SPARE_BYTES:
                raise OSError(
                    f"{path} does not fit into {tempfile.gettempdir()} when it is unpacked. Free some space there, or set "
                    "TMPDIR to a folder on a larger disk."
                )
            file.write(piece)
