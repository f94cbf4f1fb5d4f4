"""Upload files to the Hub in one commit; every refusal says what to do."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from ..data.schema import sha256
from ..record import without_secrets

# File in the repository that lists what a push uploaded.
PUSHED = "delst_files.json"
_NOTHING_SENT = "Nothing was pushed. Run the same command again."
# The errors of the client's own HTTP library, whichever it is built on, and those of sockets.
_NETWORK_ERRORS: tuple[Any, ...] = (OSError, *HfHubHTTPError.__bases__)


def push_files(
    files: Mapping[str, Path],
    repo_id: str,
    repo_type: str,
    *,
    marks: Sequence[str],
    earlier: str = r"(?!)",
    overwrite_card: bool = False,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload",
) -> str:
    """Upload files; the repository changes by one commit, or not at all.

    A list of the files is uploaded with them; the next push deletes files on that list that it does not push itself. All other
    files in the repository stay.

    Args:
        files: Files to upload, by name in the repository.
        repo_id: "user/name"; the repository is created if it does not exist.
        repo_type: "model", "dataset" or "space".
        marks: Files that mark a repository of this kind: one that is not empty must hold one of them, else its name is taken.
        earlier: Regular expression of the files that versions without a list pushed.
        overwrite_card: Replace a README.md in the repository that is not the one pushed last.
        private: Create the repository private; an existing public one is refused.
        revision: Branch, created if it does not exist.
        token: By default that of `hf auth login` or HF_TOKEN.
        message: Title of the commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the name is not a repository name.
        PermissionError: Without a token, with an invalid one, without the right to write there, or if `private` is asked for
            and the repository is public.
        FileExistsError: If the name is taken by something else, or README.md there was written by somebody else.
        ConnectionError: If the Hub cannot be reached or the connection breaks.
    """
    target, user = open_target(repo_id, repo_type, marks=marks, private=private, revision=revision, token=token)
    # What goes into the repository's list: names of files, and the checksum of the card.
    card = {"card": sha256(files["README.md"])} if "README.md" in files else {}
    listed = {"format": 1, "files": sorted(files), **card}
    with errors_explained(repo_id, repo_type, user):
        there = target.files() or []
        last = target.read_list(there)
        if not overwrite_card:
            _check_card(target, files, there, last)
    owned = set(last["files"]) if last else {name for name in there if re.fullmatch(earlier, name)}
    gone = sorted((owned & set(there)) - set(files) - {PUSHED, ".gitattributes"})
    additions = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations = [
        *additions,
        CommitOperationAdd(PUSHED, json.dumps(listed, indent=1).encode()),
        *(CommitOperationDelete(name) for name in gone),
    ]
    head = target.head()
    with errors_explained(repo_id, repo_type, user, outcome=lambda: target.outcome(head, listed)):
        try:
            return str(target.commit(operations, message))
        except KeyboardInterrupt:  # SIGTERM too: the commit may have been made all the same
            raise KeyboardInterrupt(target.outcome(head, listed)) from None


def open_target(
    repo_id: str,
    repo_type: str,
    *,
    marks: Sequence[str],
    private: bool | None = False,
    revision: str | None = None,
    token: str | None = None,
) -> tuple["Target", str]:
    """Return the branch of a repository that may be written, made where it is missing, and the name of the user.

    Args:
        repo_id: "user/name".
        repo_type: "model", "dataset" or "space".
        marks: As in `push_files`.
        private: As in `push_files`; None for the default of the account.
        revision: As in `push_files`.
        token: As in `push_files`.

    Raises:
        ValueError: As in `push_files`.
        OSError: As in `push_files`, except for what README.md says.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is not a repository name; use user/name.")
    user = user_of(repo_id, repo_type, token)
    target = Target(HfApi(token=token), repo_id, repo_type, revision)
    with errors_explained(repo_id, repo_type, user):
        there = target.files(default_branch=True)
        _check_free(repo_id, there, marks)
        if private and there is not None and not target.api.repo_info(repo_id, repo_type=repo_type).private:
            raise PermissionError(
                f"The {repo_type} {repo_id} exists and is public, so --private would not hide what is pushed. Nothing was "
                "pushed. Make it private in its settings on the Hub first, choose another name, or leave --private out."
            )
        target.create(private)
    return target, user


@dataclass(frozen=True)
class Target:
    """The branch of a Hub repository that is to be written."""

    api: HfApi
    repo_id: str
    repo_type: str
    revision: str | None

    def files(self, default_branch: bool = False) -> list[str] | None:
        """Return the names of its files; None where there is no such repository (or branch)."""
        revision = None if default_branch else self.revision
        try:
            return self.api.list_repo_files(self.repo_id, repo_type=self.repo_type, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None

    def create(self, private: bool | None) -> None:
        """Make repository and branch where they are missing."""
        space: dict[str, Any] = {"space_sdk": "static"} if self.repo_type == "space" else {}
        self.api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True, **space)
        if self.revision is not None:
            self.api.create_branch(self.repo_id, branch=self.revision, repo_type=self.repo_type, exist_ok=True)

    def head(self) -> str | None:
        """Return its last commit; None where the Hub does not answer."""
        try:
            return self.api.repo_info(self.repo_id, repo_type=self.repo_type, revision=self.revision).sha
        except Exception:  # whatever the client's HTTP library raises
            return None

    def read(self, name: str) -> bytes:
        """Return the content of one of its files, from the Hub and not from a cache."""
        with tempfile.TemporaryDirectory(prefix="delst-read-") as folder:
            path = self.api.hf_hub_download(
                self.repo_id, name, repo_type=self.repo_type, revision=self.revision, local_dir=folder
            )
            return Path(path).read_bytes()

    def read_list(self, there: Sequence[str]) -> dict[str, Any] | None:
        """Return the list of files of our last push; None if it was by an earlier version or by somebody else."""
        if PUSHED not in there:
            return None
        try:
            listed = json.loads(self.read(PUSHED))
            return {"files": [str(name) for name in listed["files"]], "card": listed.get("card")}
        except (ValueError, KeyError, TypeError):
            return None

    def commit(self, operations: Sequence[Any], message: str) -> Any:
        """Write all operations in one commit."""
        return self.api.create_commit(
            self.repo_id, operations, commit_message=message, repo_type=self.repo_type, revision=self.revision
        )

    def outcome(self, before: str | None, listed: Mapping[str, Any]) -> str:
        """Ask the repository what became of a push whose answer was lost, and return it as a sentence."""
        again = "Run the same command again: files that arrived already are not sent twice."
        now = self.head()
        if now is None or before is None:
            return f"Whether the commit arrived is not known, because the Hub could not be asked. {again}"
        if now == before:
            return f"The repository is as it was before. {again}"
        try:
            arrived = json.loads(self.read(PUSHED)) == listed
        except Exception:  # whatever the client's HTTP library raises
            arrived = False
        if arrived:
            return f"The commit was made ({now}); only the answer was lost. There is nothing more to do."
        return f"The repository has another commit than before ({now}). Look at it on the Hub before you push again."


def _check_card(
    target: Target, files: Mapping[str, Path], there: Sequence[str], last: Mapping[str, Any] | None
) -> None:
    """Refuse to replace a README.md that is not the one pushed last."""
    if "README.md" not in there or "README.md" not in files:
        return
    content = target.read("README.md")
    ours = last is not None and last["card"] == hashlib.sha256(content).hexdigest()
    early = last is None and b"Written by `delst " in content
    if not (ours or early or content == files["README.md"].read_bytes()):
        raise FileExistsError(
            f"README.md in {target.repo_id} is not the one that was pushed last: somebody wrote or changed it there. "
            f"Nothing was pushed. Keep it by putting it into the folder (hf download {target.repo_id} README.md --repo-type "
            f"{target.repo_type}), or replace it with --overwrite-card."
        )


def user_of(repo_id: str, repo_type: str, token: str | None = None) -> str:
    """Return the name of the user whose token will be used.

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
            f"No token, so {repo_id} cannot be written. Log in with `hf auth login` (a token with the role write), or set "
            "HF_TOKEN."
        )
    with errors_explained(repo_id, repo_type):
        return HfApi(token=token).whoami()["name"]


def _check_free(repo_id: str, files: Sequence[str] | None, marks: Sequence[str]) -> None:
    """Refuse to overwrite a repository of another kind."""
    held = [name for name in files or () if name not in (".gitattributes", "README.md", "LICENSE")]
    if held and not any(name in held for name in marks):
        raise FileExistsError(
            f"The name {repo_id} is taken: the repository holds {held[:3]}{' and more' if len(held) > 3 else ''}, and none of "
            f"{', '.join(marks)}. Nothing was pushed. Choose another name."
        )


@contextmanager
def errors_explained(
    repo_id: str, repo_type: str, user: str | None = None, outcome: Callable[[], str] = lambda: _NOTHING_SENT
) -> Iterator[None]:
    """Turn errors of the client into errors that say what happened and what to do.

    Args:
        repo_id: Repository that is accessed.
        repo_type: Its type.
        user: Name of the token's user, once it is known.
        outcome: Returns a sentence on what became of the repository after an error, and what to do.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is not a repository name: {without_secrets(str(error))} Use user/name."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        said = without_secrets(error.server_message or str(error).splitlines()[0])
        if status == 401 and user is None:
            raise PermissionError(
                f"The Hub does not know your token ({said}). Log in again with `hf auth login`."
            ) from error
        if status in (401, 403):
            raise PermissionError(
                f"{user or 'You'} may not write to the {repo_type} {repo_id}: {said}. Give a name under your own account or an "
                f"organisation of yours (USER/NAME), and a token with the role write. Nothing was pushed."
            ) from error
        raise ConnectionError(f"The Hub answered with an error ({status}: {said}). {outcome()}") from error
    except (RuntimeError, *_NETWORK_ERRORS) as error:
        # The client wraps the error that broke an upload in a RuntimeError.
        wrapped = isinstance(error, RuntimeError) and not isinstance(error.__cause__, _NETWORK_ERRORS)
        if wrapped or isinstance(error, (PermissionError, FileExistsError, FileNotFoundError)):
            raise
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        raise ConnectionError(
            without_secrets(
                f"The connection to {os.environ.get('HF_ENDPOINT', constants.ENDPOINT)} broke "
                f"({type(cause).__name__}: {cause}). {outcome()}"
            )
        ) from error
