"""Prepare one study by several runs: choose the slides of each run, and check that all of their folders are there."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from .folder import DatasetFolder

_T = TypeVar("_T")
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


def shard(jobs: Sequence[_T], index: int, number: int) -> Sequence[_T]:
    """Return the jobs of one of several runs; they are consecutive, so that merged outputs have the order of a single run.

    Raises:
        ValueError: an index outside 0 to number - 1.

    Examples:
        >>> shard(["A1", "A2", "B1"], 1, 2)
        ['A2', 'B1']
    """
    if number < 1 or not 0 <= index < number:
        raise ValueError(
            f"shard_index is {index} of {number} shards. Allowed: 0 to num_shards - 1 (--shard-index, --num-shards)."
        )
    return jobs[len(jobs) * index // number : len(jobs) * (index + 1) // number]


def shard_name(output: str | Path, index: int, number: int) -> str:
    """Return the name of the folder of one of several runs."""
    return f"{output}-{index:05d}-of-{number:05d}"


def check_shards(folders: Sequence[DatasetFolder]) -> None:
    """Refuse to merge only some of the folders that several runs made.

    The manifest of a run states its number, the number of runs, and the number of slides; without a manifest, the name of the
    folder does, DIR-00001-of-00003.

    Raises:
        ValueError: Folders are missing; the message names them.
    """
    given: dict[tuple[str, int], dict[int, int]] = {}
    for folder in folders:
        named = _NAME.fullmatch(folder.path.name)
        said = (folder.manifest or {}).get("shard")
        if said:
            index, number, slides = int(said["index"]), int(said["of"]), int(said["slides"])
        elif named:
            index, number, slides = int(named[2]), int(named[3]), int(named[3])
        else:
            continue
        stem = str(folder.path.parent / named[1]) if named else ""
        given.setdefault((stem, number), {})[index] = slides
    for (stem, number), found in given.items():
        slides = max(found.values())
        needed = [index for index in range(number) if shard(range(slides), index, number)]
        missing = [shard_name(stem or "DIR", index, number) for index in needed if index not in found]
        if missing:
            raise ValueError(
                f"these folders are parts of {number}, and {', '.join(missing[:5])} {'is' if len(missing) == 1 else 'are'} "
                "missing. Prepare them (delst prepare ... --shard-index I --num-shards N) and give all of them to delst merge."
            )
