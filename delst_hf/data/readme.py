"""What the README of a dataset folder states in its YAML header."""

from pathlib import Path
from typing import Any

import yaml

from .manifest import regular_size


def read_header(folder: Path) -> dict[str, Any]:
    """The YAML between the first two lines ``---`` of README.md; empty where there is none.

    Raises:
        ValueError: If it is not YAML.
    """
    path = folder / "README.md"
    if regular_size(path) is None:
        return {}
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    marks = [number for number, line in enumerate(lines) if line.rstrip() == "---"]
    if len(marks) < 2 or marks[0] != 0:
        return {}
    try:
        header = yaml.safe_load("\n".join(lines[1 : marks[1]]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the header of {path} is not YAML ({said}). Correct what stands between the first two lines '---'."
        ) from error
    return header if isinstance(header, dict) else {}


def license_of(folder: Path) -> str | None:
    """License that README.md states: its name where the identifier is "other"; None where it states none."""
    header = read_header(folder)
    found = header.get("license")
    if isinstance(found, list):
        found = ", ".join(map(str, found))
    if found == "other":
        found = header.get("license_name") or found
    return None if found is None else str(found)
