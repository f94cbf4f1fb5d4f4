"""Folders that are either there and whole, or not there."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_or_nothing(output: Path) -> Iterator[Path]:
    """Gives a hidden sibling folder to write in; it becomes `output` on success and is removed on any exception."""
    output.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder = output.parent / f".{output.name}.incomplete-{mark}"
    folder.mkdir()
    try:
        yield folder
        for path in sorted(folder.rglob("*"), reverse=True):
            fsync(path)
        fsync(folder)
        if output.exists() and any(output.iterdir()):
            old = output.parent / f".{output.name}.replaced-{mark}"
            os.replace(output, old)
            try:
                os.replace(folder, output)
            except BaseException:
                os.replace(old, output)
                raise
            shutil.rmtree(old)
        else:
            os.replace(folder, output)
        fsync(output.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def fsync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
