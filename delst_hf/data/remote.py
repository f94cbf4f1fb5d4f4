"""Open a dataset of the Hub without its spots: the small tables are fetched, and the files of spots on the Hub are compared
with the manifest by name, size and checksum.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile

from .folder import DatasetFolder, files_of_slides, problems_of_slides, read_columns, refuse
from .places import check_dataset, is_dataset, near
from .schema import CONFIGS, MANIFEST, problems_of_files, read_manifest

# All that a manifest names: a folder that lacks a picture would be taken for damaged.
EVERYTHING = ("README.md", MANIFEST, *(f"{name}/**" for name in (*CONFIGS, "examples", "previews")))
_SMALL = ("README.md", MANIFEST, "genes/**", "slides/**")


def hub_name(path: str | os.PathLike) -> str:
    """Return a path that is not a local folder as an id of the Hub.

    Raises:
        FileNotFoundError: If it cannot be an id.

    >>> hub_name("me/toy-slides")
    'me/toy-slides'
    """
    name = os.fspath(path)
    check_dataset(name)
    return name


def fetch(name: str, patterns: Collection[str], revision: str | None = None, token: str | None = None) -> Path:
    """Fetch the files of a dataset of the Hub whose names match patterns, and return the folder that holds them.

    Raises:
        OSError: If the Hub cannot be reached or denies access.
    """
    with _hub_explained(name):
        wanted = list(patterns)
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, token=token, allow_patterns=wanted))


@contextmanager
def _hub_explained(name: str) -> Iterator[None]:
    """Explain errors of the Hub's client within this context: name the dataset and the next step.

    Args:
        name: Id of the dataset.

    Raises:
        OSError: In place of any error.
    """
    try:
        yield
    except Exception as error:  # the client and its HTTP library raise a dozen classes
        said = getattr(error, "server_message", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        said = said.split(". ")[0].rstrip(".")
        raise OSError(
            f"there is no dataset folder {name} here{near(Path(name), is_dataset)}, and the Hub does not give a dataset of "
            f"that name ({said}). Make a folder with delst prepare, or check the name; for a private dataset log in with `hf "
            "auth login`; HF_HUB_OFFLINE=1 allows only what was fetched before."
        ) from error


def open_remote(name: str, revision: str | None = None, token: str | None = None) -> DatasetFolder:
    """Open a dataset of the Hub without fetching its spots.

    Args:
        name: Id of the dataset.
        revision: Branch, tag or commit.
        token: Access token, by default that of ``hf auth login``.

    Returns:
        The folder of the small tables; its files of spots have the paths that they would have if fetched.

    Raises:
        ValueError: If the dataset has no manifest, or does not match it.
    """
    path = fetch(name, _SMALL, revision, token)
    with _hub_explained(name):
        tree = HfApi(token=token).list_repo_tree(name, "spots", repo_type="dataset", revision=path.name, recursive=True)
        there = {one.path: one for one in tree if isinstance(one, RepoFile)}
    manifest = read_manifest(path)
    if manifest is None:
        raise ValueError(
            f"the dataset {name} has no {MANIFEST} with the number of spots of each file: it is of an older version, and "
            "cannot be streamed. Make it again with delst prepare and push it, or leave --streaming out."
        )
    files: dict[str, Any] = manifest["files"]
    here = {file: entry for file, entry in files.items() if file.split("/")[0] in ("genes", "slides")}
    refuse(path, [*problems_of_files(path, {"files": here}), *_problems_there(there, files)])
    table = read_columns(path / "slides" / "slides.parquet", ["slide_id"])
    named = [file for file in files if file.startswith("spots/")]
    own = files_of_slides(path, table["slide_id"].to_pylist(), named)
    rows = {slide_id: sum(files[name]["rows"] for name in names) for slide_id, names in own.items()}
    slides = {slide_id: [path / name for name in names] for slide_id, names in own.items()}
    folder = DatasetFolder(path, slides, rows, manifest["genes"], manifest)
    refuse(path, list(problems_of_slides(folder)))
    return folder


def _problems_there(there: Mapping[str, RepoFile], files: Mapping[str, Any]) -> Iterator[str]:
    """Compare the files of spots on the Hub with the manifest."""
    named = {file for file in files if file.startswith("spots/")}
    yield from (f"{file} is not in {MANIFEST}" for file in sorted(there.keys() - named))
    for file in sorted(named):
        found, stated = there.get(file), files[file]
        if found is None:
            yield f"{file} is missing"
        elif found.size != stated["bytes"]:
            yield f"{file} has {found.size:,} bytes instead of {stated['bytes']:,}"
        elif found.lfs is not None and found.lfs.sha256 != stated["sha256"]:
            yield f"{file} does not match its checksum (SHA-256) in the manifest"
