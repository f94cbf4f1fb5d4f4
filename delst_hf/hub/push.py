"""A folder to the Hub in one commit, and every refusal in words that say what to do."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

# The errors of the client's own HTTP library, whichever it is built on, and those of sockets.
_NETWORK_ERRORS: tuple[Any, ...] = (OSError, *HfHubHTTPError.__bases__)


def push_folder(
    folder: Path,
    repo_id: str,
    repo_type: str,
    *,
    marks: Sequence[str],
    allow_patterns: Sequence[str] | None = None,
    delete_patterns: Sequence[str] = (),
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload",
) -> str:
    """Upload a folder; the repository changes by one commit, or not at all.

    Args:
        folder: What to upload.
        repo_id: "user/name"; made if it is not there.
        repo_type: "model", "dataset" or "space".
        marks: Files, one of which a repository that is not empty must hold to be one of this kind; otherwise its name is taken.
        allow_patterns: Files to upload, all by default.
        delete_patterns: Files of the repository to delete where the folder does not hold them.
        private: Make a new repository private.
        revision: Branch, made if it is not there.
        token: By default that of `hf auth login` or HF_TOKEN.
        message: Title of the commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the name is not one.
        PermissionError: Without a token, with a bad one, or without the right to write there.
        FileExistsError: If the name is taken by something else.
        ConnectionError: If the Hub cannot be reached or the connection breaks.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no name of a repository. Give it as user/name.")
    user = user_of(repo_id, repo_type, token)
    api = HfApi(token=token)
    with errors_explained(repo_id, repo_type, user):
        _check_free(api, repo_id, repo_type, marks)
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **_space(repo_type))
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=folder,
            revision=revision,
            allow_patterns=list(allow_patterns) if allow_patterns else None,
            delete_patterns=list(delete_patterns),
            commit_message=message,
        )
    return str(commit)


def user_of(repo_id: str, repo_type: str, token: str | None = None) -> str:
    """Name of the user whose token will be used.

    Args:
        repo_id: Repository that is to be written, for messages.
        repo_type: Its type.
        token: By default that of `hf auth login` or HF_TOKEN.

    Raises:
        PermissionError: Without a token, or with one that the Hub does not know.
        ConnectionError: If the Hub cannot be reached.
    """
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(
            "HF_HUB_OFFLINE=1 is set: nothing can be pushed. Unset it and run the same command again."
        )
    if not (token or get_token()):
        raise PermissionError(
            f"No token, so {repo_id} cannot be written. Log in by `hf auth login` (a token with the role write), or set "
            "HF_TOKEN."
        )
    with errors_explained(repo_id, repo_type):
        return HfApi(token=token).whoami()["name"]


def _space(repo_type: str) -> dict[str, Any]:
    return {"space_sdk": "static"} if repo_type == "space" else {}


def _check_free(api: HfApi, repo_id: str, repo_type: str, marks: Sequence[str]) -> None:
    """Refuse to write over what is of another kind."""
    try:
        files = api.list_repo_files(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return
    held = [name for name in files if name not in (".gitattributes", "README.md", "LICENSE")]
    if held and not any(name in files for name in marks):
        raise FileExistsError(
            f"The name {repo_id} is taken: the repository holds {held[:3]}{' and more' if len(held) > 3 else ''}, and none of "
            f"{', '.join(marks)}. Nothing was pushed. Choose another name."
        )


@contextmanager
def errors_explained(repo_id: str, repo_type: str, user: str | None = None) -> Iterator[None]:
    """Turns what the client raises into errors that say what happened and what to do.

    Args:
        repo_id: Repository that is asked for.
        repo_type: Its type.
        user: Name of the token's user, once it is known.
    """
    again = (
        "The repository is as it was before. Run the same command again: files that arrived already are not sent twice."
    )
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository: {error} Give it as user/name.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        said = error.server_message or str(error).splitlines()[0]
        if status == 401 and user is None:
            raise PermissionError(
                f"The Hub does not know your token ({said}). Log in again by `hf auth login`."
            ) from error
        if status in (401, 403):
            raise PermissionError(
                f"{user or 'You'} may not write to the {repo_type} {repo_id}: {said}. Give a name under your own account or an "
                f"organisation of yours (USER/NAME), and a token with the role write. Nothing was pushed."
            ) from error
        raise ConnectionError(f"The Hub answered with an error ({status}: {said}). {again}") from error
    except (RuntimeError, *_NETWORK_ERRORS) as error:
        # The client wraps what broke an upload into a RuntimeError.
        wrapped = isinstance(error, RuntimeError) and not isinstance(error.__cause__, _NETWORK_ERRORS)
        if wrapped or isinstance(error, (PermissionError, FileExistsError, FileNotFoundError)):
            raise
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        raise ConnectionError(
            f"The connection to {os.environ.get('HF_ENDPOINT', constants.ENDPOINT)} broke ({type(cause).__name__}: {cause}). "
            f"{again}"
        ) from error
