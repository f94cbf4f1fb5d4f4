"""A dataset folder to the Hub: card and all configs, as they are on disk."""

from pathlib import Path

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
        ValueError: the Hub refuses the name of the repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    folder = Path(folder).expanduser()
    missing = [name for name in ("README.md", *CONFIGS) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no complete dataset folder: {missing} missing. Make it with delst prepare."
        )
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    except HFValidationError as error:
        raise ValueError(f"repo_id is {repo_id!r}: {error} Give it as user/name.") from error
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, repo_type="dataset", revision=revision,
        allow_patterns=["README.md", "examples/*", "previews/*", *(f"{name}/**" for name in CONFIGS)],
        delete_patterns=["spots/**", "genes/**", "slides/**", "examples/*", "previews/*"],
        commit_message="Upload dataset",
    )  # fmt: skip
    return str(commit)
