"""A Hugging Face Hub on loopback, for the real clients: standard library, in memory, one thread a connection.

    python tests/hub_server.py --port 8765      # prints the environment that the clients need

It knows what huggingface_hub, transformers, datasets and evaluate ask for: repositories of models, datasets and spaces,
commits (also large files by LFS), revisions, downloads with ranges, tokens, private and gated repositories. Tests set
`HubServer.faults` to cut connections or to answer with an error. What is written is gone when the process ends.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
LARGE = 10_000  # bytes from which a file goes by LFS; the real Hub asks for it from 10 MB, and for some suffixes always
LARGE_SUFFIXES = {".safetensors", ".parquet", ".jpg", ".png", ".bin"}
DATE = "2025-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class User:
    """Who holds a token; a reader's token may not write."""

    name: str
    can_write: bool = True


@dataclass
class Fault:
    """What happens to the next requests that match, before anything is changed, or only to their answer.

    Attributes:
        method: HTTP method.
        path: Regular expression, searched in the path.
        status: Answer with this; None cuts the connection in the middle of the body.
        times: How many requests it befalls.
        answer_only: Do what is asked, and only then cut the connection, without an answer.
        until: It ends when this file is there, however often a client has tried.
    """

    method: str
    path: str
    status: int | None = None
    times: int = 1
    answer_only: bool = False
    until: Path | None = None

    def befalls(self, method: str, path: str) -> bool:
        """Tell whether it befalls a request, the next of its kind."""
        over = self.times < 1 or (self.until is not None and self.until.exists())
        return not over and self.method == method and re.search(self.path, path) is not None


@dataclass
class Kill:
    """What ends the client in the middle of a request.

    Attributes:
        at: The number of the request, counted from 0.
        client: File that its process id stands in.
        after: What was asked for is done first, so that only the answer does not come.
        how: The signal.
    """

    at: int
    client: Path
    after: bool = False
    how: int = signal.SIGKILL

    def strike(self) -> None:
        os.kill(int(self.client.read_text()), self.how)


@dataclass(frozen=True)
class Commit:
    """A revision: the whole tree, path -> SHA-256 of the content."""

    oid: str
    title: str
    tree: dict[str, str]


@dataclass
class Repository:
    kind: str
    name: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or an id names."""
        if revision in self.branches:
            return self.branches[revision][-1]
        wanted = self.tags.get(revision, revision)
        every = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every if commit.oid == wanted), None)


class Refusal(Exception):
    """An answer other than success, in the Hub's terms."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class HubServer(ThreadingHTTPServer):
    """The server and all it holds; use it as a context manager, which starts and stops its thread."""

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.users = {"hf_me": User("me"), "hf_guest": User("guest"), "hf_reader": User("me", can_write=False)}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.kill: Kill | None = None
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Any, token: str | None = "hf_me") -> dict[str, str]:
        """Environment variables for a client process; they are read when huggingface_hub is imported."""
        places = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": token or ""}
        return places | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may hang up
            super().handle_error(request, client_address)

    def create(self, name: str, kind: str = "model", private: bool = False, gated: bool = False) -> Repository:
        """Makes a repository with an empty first commit; tests use it too."""
        repository = Repository(kind, name, private, gated, readers={name.split("/")[0]})
        attributes = self.keep(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        repository.branches["main"] = [self.new_commit(repository, "initial commit", {".gitattributes": attributes})]
        self.repositories[kind, name] = repository
        return repository

    def put(self, name: str, folder: Path, kind: str = "model", **options: bool) -> str:
        """Makes a repository of a folder's files, as if they had been pushed; returns the id of the commit."""
        repository = self.create(name, kind, **options)
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        tree = {path.relative_to(folder).as_posix(): self.keep(path.read_bytes()) for path in files}
        repository.branches["main"].append(self.new_commit(repository, "upload", tree))
        return repository.branches["main"][-1].oid

    def edit_json(self, name: str, path: str, **changes: Any) -> None:
        """Changes entries of a JSON file, those that are mappings entry by entry, in a new commit."""
        repository = self.repositories["model", name]
        before = repository.branches["main"][-1]
        content = json.loads(self.blobs[before.tree[path]])
        for key, value in changes.items():
            content[key] = content[key] | value if isinstance(value, dict) else value
        tree = before.tree | {path: self.keep(json.dumps(content).encode())}
        repository.branches["main"].append(self.new_commit(repository, "edit", tree))

    def keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest

    def new_commit(self, repository: Repository, title: str, tree: dict[str, str]) -> Commit:
        seed = json.dumps([repository.kind, repository.name, title, sorted(tree.items()), time.time_ns()])
        return Commit(hashlib.sha1(seed.encode()).hexdigest(), title, tree)

    def files(self, name: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The content of every file of a revision."""
        commit = self.repositories[kind, name].commit(revision)
        return {path: self.blobs[digest] for path, digest in commit.tree.items()} if commit else {}


ROUTES: list[tuple[str, re.Pattern[str], str]] = []


def route(method: str, pattern: str) -> Any:
    """Marks the method that answers; `:repo` stands for kind and name, `:rev` for a quoted revision."""
    pattern = pattern.replace("/:repo", r"/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)")
    pattern = pattern.replace(":repository", r"(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+)")
    pattern = pattern.replace(":rev", r"(?P<rev>[^/]+)")

    def mark(function: Any) -> Any:
        for one in method.split("|"):
            ROUTES.append((one, re.compile(f"/{pattern}$"), function.__name__))
        return function

    return mark


class Handler(BaseHTTPRequestHandler):
    """One request: authentication, faults, and the endpoints."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.server.requests.append((self.command, url.path))
        fault, kill = self.next_fault(url.path), self.next_kill()
        try:
            if fault and fault.status is None and not fault.answer_only:
                return self.cut()
            if kill and not kill.after:
                kill.strike()
                return self.cut()
            self.body = self.read_body()
            self.answer_lost = bool(kill or (fault and fault.answer_only))
            if fault and not fault.answer_only:
                raise Refusal(fault.status or 500, "the server has a bad moment")
            self.user = self.authenticate()
            for method, pattern, name in ROUTES:
                if method == self.command and (match := pattern.match(url.path)):
                    arguments = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    with self.server.lock:
                        getattr(self, name)(**arguments)
                    return kill.strike() if kill else None
            raise Refusal(404, f"{self.command} {url.path} is not an endpoint of this server")
        except Refusal as refusal:
            if kill:
                return kill.strike()
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.send({"error": refusal.message}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def next_fault(self, path: str) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                if fault.befalls(self.command, path):
                    fault.times -= 1
                    return fault
        return None

    def next_kill(self) -> Kill | None:
        with self.server.lock:
            kill = self.server.kill
            if kill is None or kill.at:
                self.server.kill = kill and replace(kill, at=kill.at - 1)
                return None
            self.server.kill = None
            return kill

    def cut(self) -> None:
        """Takes half of what is sent and hangs up."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
        self.close_connection = True

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return b"".join(self.read_chunks())

    def read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def authenticate(self) -> User | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in self.server.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.server.users[token]

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if getattr(self, "answer_lost", False):
            self.close_connection = True
            return
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- who may do what ---------------------------------------------------------------------------------------

    def repository(self, kind: str, name: str, write: bool = False, content: bool = False) -> Repository:
        """The repository, if it is there and the caller may see it (`content`: read its files, `write`: change it)."""
        repository = self.server.repositories.get((kind, name))
        hidden = repository and repository.private and not (self.user and self.user.name in repository.readers)
        if repository is None or hidden:
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(name)
        if content and repository.gated and not (self.user and self.user.name in repository.readers):
            ask = "You must have access to it and be authenticated to access it. Please log in."
            raise Refusal(403 if self.user else 401, f"Access to {kind} {name} is restricted. {ask}", "GatedRepo")
        return repository

    def may_write(self, name: str) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if not self.user.can_write:
            raise Refusal(403, "Your token has the role 'read': a token with the role 'write' is needed")
        if name.split("/")[0] != self.user.name:
            raise Refusal(403, f"You don't have the rights to write under the namespace {name.split('/')[0]!r}")

    def commit_of(self, repository: Repository, revision: str) -> Commit:
        commit = repository.commit(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def address(self, repository: Repository) -> str:
        return f"{self.server.endpoint}/{PREFIXES[repository.kind]}{repository.name}"

    # --- accounts and repositories -----------------------------------------------------------------------------

    @route("GET", "api/whoami-v2")
    def whoami(self) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write" if self.user.can_write else "read"}
        auth = {"type": "access_token", "accessToken": token}
        self.send({"type": "user", "name": self.user.name, "fullname": self.user.name, "orgs": [], "auth": auth})

    @route("POST", "api/repos/create")
    def create_repository(self) -> None:
        asked = json.loads(self.body)
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        name = f"{asked.get('organization') or self.user.name}/{asked['name']}"
        self.may_write(name)
        kind = asked.get("type") or "model"
        taken = self.server.repositories.get((kind, name))
        if taken:
            url = self.address(taken)
            return self.send({"error": f"You already created this {kind} repo", "url": url}, 409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.send({"url": self.address(self.server.create(name, kind, private)), "name": name})

    @route("DELETE", "api/repos/delete")
    def delete_repository(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or (self.user.name if self.user else '')}/{asked['name']}"
        self.repository(asked.get("type") or "model", name, write=True)
        del self.server.repositories[asked.get("type") or "model", name]
        self.send({})

    @route("POST", "api/validate-yaml")
    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        header = re.match(r"---\n(.*?)\n---", content, re.S)
        errors = [] if header and header[1].strip() else [{"message": "the card has no YAML header"}]
        self.send({"errors": errors, "warnings": []}, 400 if errors else 200)

    @route("GET", "api/:repo(?:/revision/:rev)?")
    def information(self, kind: str, name: str, rev: str = "main") -> None:
        repository = self.repository(kind, name)
        commit = self.commit_of(repository, rev)
        siblings = [{"rfilename": path} for path in sorted(commit.tree)]
        facts = {"id": name, "sha": commit.oid, "private": repository.private, "lastModified": DATE, "tags": []}
        facts |= {"gated": "auto" if repository.gated else False, "siblings": siblings, "downloads": 0, "likes": 0}
        self.send({**facts, kind + "Id": name})

    @route("GET", "api/:repo/auth-check")
    def check_access(self, kind: str, name: str) -> None:
        self.repository(kind, name, content=True)
        self.send({})

    @route("GET", "api/:repo/refs")
    def references(self, kind: str, name: str) -> None:
        repository = self.repository(kind, name)
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commits[-1].oid}
            for branch, commits in repository.branches.items()
        ]
        tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": oid} for t, oid in repository.tags.items()]
        self.send({"branches": branches, "tags": tags, "converts": []})

    @route("GET", "api/:repo/commits/:rev")
    def history(self, kind: str, name: str, rev: str) -> None:
        repository = self.repository(kind, name)
        self.commit_of(repository, rev)
        commits = repository.branches.get(rev, repository.branches["main"])
        page = int(self.query.get("p", ["0"])[0])
        rows = [
            {"id": commit.oid, "title": commit.title, "message": "", "date": DATE, "authors": [{"user": "me"}]}
            for commit in reversed(commits)
        ]
        self.send(rows if page == 0 else [])

    @route("POST", "api/:repo/branch/:rev")
    def new_branch(self, kind: str, name: str, rev: str) -> None:
        repository = self.repository(kind, name, write=True)
        if rev in repository.branches:
            raise Refusal(409, f"Reference already exists: {rev}")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.branches[rev] = [self.commit_of(repository, start)]
        self.send({})

    @route("POST", "api/:repo/tag/:rev")
    def new_tag(self, kind: str, name: str, rev: str) -> None:
        repository = self.repository(kind, name, write=True)
        asked = json.loads(self.body)
        if asked["tag"] in repository.tags:
            raise Refusal(409, f"Reference already exists: {asked['tag']}")
        repository.tags[asked["tag"]] = self.commit_of(repository, rev).oid
        self.send({})

    # --- reading -----------------------------------------------------------------------------------------------

    def entry(self, commit: Commit, path: str) -> dict[str, Any] | None:
        """A file or a folder as the tree shows it."""
        digest = commit.tree.get(path)
        if digest is None:
            inside = sorted(item for item in commit.tree.items() if item[0].startswith(f"{path}/"))
            oid = hashlib.sha1(json.dumps(inside).encode()).hexdigest()
            return {"type": "directory", "path": path, "oid": oid, "size": 0} if inside else None
        content = self.server.blobs[digest]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if is_large(path, len(content)):
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        if self.query.get("expand", ["false"])[0].lower() == "true":
            entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": DATE}
        return entry

    @route("GET", "api/:repo/tree/:rev(?:/(?P<path>.+))?")
    def tree(self, kind: str, name: str, rev: str, path: str = "") -> None:
        commit = self.commit_of(self.repository(kind, name), rev)
        start = f"{path}/" if path else ""
        inside = [PurePosixPath(file) for file in commit.tree if file.startswith(start)]
        if not inside:
            raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
        depth = len(PurePosixPath(path).parts)
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        shown = set()
        for file in inside:
            levels = range(depth + 1, len(file.parts) + 1) if recursive else [depth + 1]
            shown |= {PurePosixPath(*file.parts[:level]).as_posix() for level in levels}
        self.send([self.entry(commit, one) for one in sorted(shown)])

    @route("POST", "api/:repo/paths-info/:rev")
    def paths_info(self, kind: str, name: str, rev: str) -> None:
        commit = self.commit_of(self.repository(kind, name), rev)
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        found = (self.entry(commit, path.strip("/")) for path in ([paths] if isinstance(paths, str) else paths))
        self.send([entry for entry in found if entry])

    @route("GET|HEAD", ":repository/resolve/:rev/(?P<path>.+)")
    def download(self, name: str, rev: str, path: str, kind: str = "model") -> None:
        repository = self.repository(kind, name, content=True)
        commit = self.commit_of(repository, rev)
        if path not in commit.tree:
            raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
        digest = commit.tree[path]
        content = self.server.blobs[digest]
        etag = digest if is_large(path, len(content)) else git_oid(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not (wanted[1] or wanted[2]):
            return self.send(content, headers=headers)
        first = int(wanted[1]) if wanted[1] else max(len(content) - int(wanted[2]), 0)
        last = min(int(wanted[2]), len(content) - 1) if wanted[1] and wanted[2] else len(content) - 1
        if first >= len(content):
            raise Refusal(416, "Range not satisfiable")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send(content[first : last + 1], 206, headers)

    # --- writing -----------------------------------------------------------------------------------------------

    @route("POST", "api/:repo/preupload/:rev")
    def preupload(self, kind: str, name: str, rev: str) -> None:
        repository = self.repository(kind, name, write=True)
        commit = self.commit_of(repository, rev)
        answers = []
        for file in json.loads(self.body)["files"]:
            large = is_large(file["path"], file["size"])
            digest = commit.tree.get(file["path"])
            known = None if digest is None else digest if large else git_oid(self.server.blobs[digest])
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self.send({"files": answers})

    @route("POST", r":repository\.git/info/lfs/objects/batch")
    def large_files(self, name: str, kind: str = "model") -> None:
        self.repository(kind, name, write=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.blobs:
                answer["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{one['oid']}"}}
            objects.append(answer)
        self.send({"transfer": "basic", "objects": objects})

    @route("PUT", "lfs/(?P<oid>[0-9a-f]{64})")
    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content is not what its id says")
        self.server.keep(self.body)
        self.send({})

    @route("POST", "api/:repo/commit/:rev")
    def write(self, kind: str, name: str, rev: str) -> None:
        repository = self.repository(kind, name, write=True)
        if rev not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        before = repository.branches[rev][-1]
        tree, title = dict(before.tree), "commit"
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, before.oid):
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif step["key"] == "file":
                tree[value["path"]] = self.server.keep(base64.b64decode(value["content"]))
            elif step["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise Refusal(400, f"{value['path']} was never uploaded")
                tree[value["path"]] = value["oid"]
            elif step["key"] == "deletedFile":
                tree.pop(value["path"], None)
            elif step["key"] == "deletedFolder":
                tree = {path: oid for path, oid in tree.items() if not path.startswith(value["path"].rstrip("/") + "/")}
            else:
                raise Refusal(400, f"{step['key']!r} is not known")
        commit = self.server.new_commit(repository, title, tree)
        repository.branches[rev].append(commit)
        url = f"{self.address(repository)}/commit/{commit.oid}"
        self.send({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})


def is_large(path: str, size: int) -> bool:
    return size >= LARGE or PurePosixPath(path).suffix in LARGE_SUFFIXES


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--gated", action="append", default=[], metavar="USER/NAME", help="an empty gated repository")
    options = parser.parse_args()
    server = HubServer(options.port)
    for name in options.gated:
        server.create(name, gated=True)
    print(f"A Hub at {server.endpoint}. In another shell:\n")
    for key, value in server.environment("/tmp/hub-home").items():
        print(f"export {key}={value}")
    print("\nThe token hf_me is that of the user 'me', hf_guest that of 'guest'. Ctrl-C ends it.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
