"""A dataset folder to the Hub: card and all configs, as they are on disk."""

from pathlib import Path

from ..push import push_folder
from .schema import CONFIGS


def push_dataset(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Uploads a dataset folder; afterwards `load_dataset(repo_id)` opens it like the folder.

    Args:
        folder: written by `write_dataset` or `merge_datasets`.
        repo_id: "user/name"; the repository is made if it is not there.
        private: make a new repository private.
        revision: branch.
        token: by default that of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: no complete dataset folder.
        OSError: as `push_folder` says.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in ("README.md", *CONFIGS) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no complete dataset folder: {missing} missing. Make it with delst prepare; a checkpoint is pushed "
            "without --dataset."
        )
    return push_folder(
        folder, repo_id, "dataset", private=private, revision=revision, token=token, message="Upload dataset",
        marks=("slides/slides.parquet",),
        allow_patterns=["README.md", "examples/*", "previews/*", *(f"{name}/**" for name in CONFIGS)],
        delete_patterns=["spots/**", "genes/**", "slides/**", "examples/*", "previews/*"],
    )  # fmt: skip
