"""Find the file that is meant: hidden files are never data, and several candidates are an error that lists them."""

import bz2
import gzip
import hashlib
import lzma
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "lost+found"}
# The first bytes of compressed files, and what opens them.
_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))


def is_hidden(name: str) -> bool:
    """Tell whether a file belongs to a system or an editor: .x, ._x of a Mac, ~$x, x~, and the like."""
    return name.startswith((".", "~")) or name.endswith("~") or name.lower() in _SYSTEM_FILES


def visible(folder: str | Path, *patterns: str) -> list[Path]:
    """Return the entries of a folder that match one of the patterns, sorted by name, without hidden ones.

    Args:
        folder: the folder, which need not exist.
        patterns: patterns of names, such as "*.h5"; without one, all entries match.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir()
        if not is_hidden(path.name) and (not patterns or any(fnmatchcase(path.name, one) for one in patterns))
    )  # fmt: skip


def only_one(candidates: Iterable[Path], what: str, advice: str) -> Path | None:
    """Return the only candidate, or None if there is none; copies of one file, compressed or not, count as one.

    Args:
        candidates: files, or folders.
        what: the file that is looked for, for the message.
        advice: how to choose, a sentence.

    Raises:
        ValueError: several different candidates; the message lists them.
    """
    found = list(dict.fromkeys(candidates))
    if len(found) < 2:
        return found[0] if found else None
    if all(path.is_file() for path in found) and len({_content(path) for path in found}) == 1:
        return found[0]
    folder = found[0].parent
    names = [path.name if path.parent == folder else str(path) for path in found]
    raise ValueError(f"{folder} holds {len(found)} candidates for {what}: {', '.join(names)}. {advice}")


def split_prefix(name: str, ending: str) -> str | None:
    """Return the prefix before the ending of a name: "GSM1_S1" of "GSM1_S1_matrix.mtx", "" of "matrix.mtx"; else None.

    Args:
        name: name of a file, without the suffix of its compression.
        ending: a regular expression.
    """
    match = re.fullmatch(rf"(?:(.*?)[_.\-])?(?:{ending})", name)
    return None if match is None else match[1] or ""


def without(name: str, suffixes: Sequence[str]) -> str:
    """Return a name without the first of these suffixes that it has, ignoring case."""
    return next((name[: -len(one)] for one in suffixes if name.lower().endswith(one)), name)


def open_packed(path: Path) -> IO[bytes]:
    """Open a file that may be gzip, bzip2 or xz, by its first bytes: browsers may unpack a file without renaming it."""
    opener = _opener(path)
    return path.open("rb") if opener is None else opener(path, "rb")


def is_packed(path: Path) -> bool:
    """Tell whether a file is gzip, bzip2 or xz."""
    return _opener(path) is not None


def _opener(path: Path):
    with path.open("rb") as file:
        magic = file.read(6)
    return next((opener for known, opener in _OPENERS if magic.startswith(known)), None)


def _content(path: Path) -> str:
    """Return a checksum of the uncompressed content of a file."""
    try:
        with open_packed(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, EOFError, ValueError):
        return str(path)  # unreadable: equal to no other file
