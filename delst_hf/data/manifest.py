"""The manifest of a dataset folder, or of a part: its files with sizes, rows and checksums, written last.

    {"format": "delst-dataset-1", "fingerprint": "...", "genes": 200,
     "slides": {"toy_A1": 36},
     "files": {"spots/toy_A1.parquet": {"bytes": 81224, "rows": 36, "sha256": "..."}, "README.md": {}, ...}}

README.md stands there without a checksum, because a license or a description may be written into it by hand.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..atomic.files import write_text

MANIFEST = "manifest.json"
FORMAT = "delst-dataset-1"
# Every file that a dataset folder has; anything else in it is a stranger's.
LAYOUT = re.compile(
    r"README\.md|spots/((train|validation|test)/)?[A-Za-z0-9][\w.-]*\.parquet|genes/genes\.parquet|slides/slides\.parquet"
    r"|previews/[A-Za-z0-9][\w.-]*\.png|examples/\d+\.(jpg|png)",
    re.ASCII,
)
_SHARD = re.compile(r"--\d{5}$")

Entry = dict[str, Any]


def describe_files(folder: Path, known: Mapping[str, Entry] | None = None) -> dict[str, Entry]:
    """Every file of a folder by its name in it, with what the manifest says of it.

    Args:
        folder: A dataset folder or a part.
        known: What is known of files already, so that they are not read again.
    """
    known = known or {}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: known.get(name) or describe(folder / name) for name in names if name != MANIFEST}


def write_manifest(folder: Path, files: Mapping[str, Entry] | None = None, **facts: Any) -> dict[str, Any]:
    """Write the manifest of a folder that is otherwise finished.

    Args:
        folder: A dataset folder or a part.
        files: What `describe_files` says of it; found out by default.
        **facts: What else to say in it, such as ``parts=``.

    Returns:
        The manifest.
    """
    files = describe_files(folder) if files is None else files
    slides: dict[str, int] = {}
    for name, entry in files.items():
        if name.startswith("spots/"):
            slides[slide_of(name)] = slides.get(slide_of(name), 0) + entry["rows"]
    manifest = {
        "format": FORMAT,
        "fingerprint": content_fingerprint(files),
        "genes": files["genes/genes.parquet"]["rows"],
        "slides": slides,
        "files": files,
        **facts,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def describe(path: Path) -> Entry:
    """Size, rows and SHA-256 of a file; nothing of README.md, which people edit."""
    if path.name == "README.md":
        return {}
    entry: Entry = {"bytes": path.stat().st_size}
    if path.suffix == ".parquet":
        entry["rows"] = pq.read_metadata(path).num_rows
    return entry | {"sha256": sha256(path)}


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_fingerprint(files: Mapping[str, Entry]) -> str:
    """Hash (16 hex digits) of all parquet files of a folder, from their checksums in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: Path(name).parts):
        if name.endswith(".parquet"):
            digest.update(bytes.fromhex(files[name]["sha256"]))
    return digest.hexdigest()[:16]


def slide_of(name: str) -> str:
    """Return the slide whose spots a file holds, by its name: spots/toy_A1--00002.parquet is of toy_A1."""
    return _SHARD.sub("", Path(name).stem)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder; None where there is none, as in folders of versions before 0.2.

    Raises:
        ValueError: If it cannot be read, is of another version, or names files that a dataset folder does not have.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    again = "Make the folder again with delst prepare, or copy it again from where it came from."
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, slides = dict(manifest["files"]), dict(manifest["slides"])
        sizes = [entry["bytes"] for name, entry in files.items() if name != "README.md"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not the manifest of a dataset folder ({type(error).__name__}). {again}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path} is of format {manifest.get('format')!r}; this version reads {FORMAT!r}. Update delst-hf, or make the "
            "folder again with delst prepare."
        )
    strange = [name for name in files if not LAYOUT.fullmatch(name)]
    numbers = [*sizes, *slides.values(), manifest.get("genes")]
    if strange or not all(isinstance(value, int) and value >= 0 for value in numbers):
        raise ValueError(
            f"{path} names {strange[:3] or 'sizes that are not numbers'}, which a dataset folder does not have. {again}"
        )
    return manifest


def problems_of_files(folder: Path, manifest: Mapping[str, Any], verify: bool = False) -> list[str]:
    """Return what is wrong with the files of a folder, in words; empty where all are as the manifest says.

    Args:
        folder: The folder.
        manifest: Its manifest.
        verify: Also read every file and compare its checksum.
    """
    problems = []
    for name, entry in manifest["files"].items():
        path = folder / name
        found = regular_size(path)
        if found is None:
            problems.append(f"{name} is missing or not a regular file")
        elif entry and found != entry["bytes"]:
            problems.append(f"{name} has {found:,} bytes instead of {entry['bytes']:,}")
        elif verify and entry and sha256(path) != entry.get("sha256"):
            problems.append(f"{name} has another content (SHA-256) than when it was written")
    return problems


def regular_size(path: Path) -> int | None:
    """Bytes of a regular file, links followed; None for anything else (a pipe, a link to itself, nothing)."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
