"""Check a checkpoint folder against its checksums before it is scored, used, trained further or pushed."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..data.schema import regular_size, sha256
from .checkpoint_folder import CHECKSUMS, COVERED, WEIGHTS

logger = logging.getLogger(__name__)

# Marker file of a checkpoint of a run in progress, which lists its files too (`pretraining.checkpoints`).
_MARKER = "complete"
_AGAIN = f"Copy it again from where it came from. If you changed it yourself, delete its {CHECKSUMS}."


def check_checksums(model: str | os.PathLike) -> None:
    """Refuse a checkpoint whose files do not match its checksums; log where it carries none.

    Args:
        model: Folder of a checkpoint, or its id on the Hub.

    Raises:
        ValueError: Naming what is missing, changed or added.
    """
    listed = _listed(model)
    if listed is None:
        logger.info("%s carries no %s, like those of version 0.1: its files are not checked.", model, CHECKSUMS)
        return
    problems = [*_problems(model, listed), *_added(model, listed)]
    if problems:
        raise ValueError(f"The checkpoint {model} does not match its checksums: {'; '.join(problems)}. {_AGAIN}")


def weights_fingerprint(model: str | os.PathLike) -> str | None:
    """Return a hash (16 hex digits) of the weights of a checkpoint, whatever its path; None where there are no weights.

    Args:
        model: Folder of a checkpoint, or its id on the Hub if its weights are in the cache already.

    >>> weights_fingerprint("runs/none") is None
    True
    """
    folder = Path(model) if os.path.isdir(model) else Path(_located(model, "config.json") or "none").parent
    digests = sorted(sha256(path) for path in folder.glob(WEIGHTS))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16] if digests else None


def _located(model: str | os.PathLike, name: str) -> Path | None:
    """Return the path of a file of a checkpoint, downloaded if it is on the Hub; None where there is none."""
    if os.path.isdir(model):
        return Path(model) / name
    found = cached_file(
        str(model),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)


def _fetched(model: str | os.PathLike, name: str) -> Path | None:
    """Return the path of a file that a checkpoint lists as `_located` does; where the Hub fails, that is said."""
    if os.path.isdir(model):
        return _located(model, name)
    try:
        found = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False)
    except Exception as error:  # the client and its HTTP library raise a dozen classes
        said = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise OSError(
            f"{name} of {model} could not be fetched from the Hub ({said[0].rstrip('.')}). Run the same command again."
        ) from error
    return None if found is None else Path(found)


def _listed(model: str | os.PathLike) -> Mapping[str, Any] | None:
    """Return name -> size and SHA-256 of the files that a checkpoint lists; None where it lists none."""
    for name in (CHECKSUMS, _MARKER) if os.path.isdir(model) else (CHECKSUMS,):
        path = _located(model, name)
        if path is None or regular_size(path) is None:
            continue
        try:
            text = path.read_text(encoding="utf-8")
            listed = json.loads(text)["files"] if text.strip() else {}
            entries = {
                str(key): (entry.get("bytes", entry.get("size")), entry["sha256"]) for key, entry in listed.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a list of checksums ({type(error).__name__}). {_AGAIN}") from error
        strange = [key for key in entries if Path(key).name != key]
        if strange and name == CHECKSUMS:
            raise ValueError(f"{path} names {strange[:3]}, which a checkpoint does not have. {_AGAIN}")
        if name == CHECKSUMS and not any(Path(key).match(WEIGHTS) for key in entries):
            raise ValueError(f"{path} lists no weights, so nothing could be compared. {_AGAIN}")
        if entries:
            return entries
    return None


def _problems(model: str | os.PathLike, listed: Mapping[str, Any]) -> Iterator[str]:
    for name, (size, digest) in listed.items():
        path = _fetched(model, name)
        found = None if path is None else regular_size(path)
        if path is None or found is None:
            yield f"{name} is missing"
        elif found != size:
            yield f"{name} has {found:,} bytes instead of {size:,}"
        elif sha256(path) != digest:
            yield f"{name} does not match its checksum (SHA-256)"


def _added(model: str | os.PathLike, listed: Mapping[str, Any]) -> list[str]:
    """Name files that were added to a checkpoint: added weights might be loaded, and other added files were never checked."""
    here = {path.name for pattern in COVERED for path in Path(model).glob(pattern)} if os.path.isdir(model) else set()
    return [f"{name} was not written with it" for name in sorted(here - set(listed))]
