"""The Hub of the tests, as the real client sees it. What rests on it is only as good as this."""

import pytest
from hub_client import answer_of
from hub_server import Fault, HubServer

PREAMBLE = """
import json, os, sys, time
from urllib.request import Request, urlopen
from huggingface_hub import HfApi, errors

def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
"""

ROUND_TRIP = """
api = HfApi()
os.makedirs("up/sub")
weights = os.urandom(100_000)
open("up/w.safetensors", "wb").write(weights)
open("up/a.txt", "w").write("one")
open("up/sub/b.txt", "w").write("b")
url = api.create_repo("me/x")
first = api.upload_folder(repo_id="me/x", folder_path="up")
open("up/a.txt", "w").write("two")
second = api.upload_folder(repo_id="me/x", folder_path="up", delete_patterns=["sub/*"], ignore_patterns=["sub/*"])
again = api.upload_folder(repo_id="me/x", folder_path="up", ignore_patterns=["sub/*"])
api.create_tag("me/x", tag="v1", revision=first.oid)
api.create_branch("me/x", branch="dev")
folder = api.snapshot_download("me/x")
old = api.hf_hub_download("me/x", "a.txt", revision="v1")
asked = Request(f"{api.endpoint}/me/x/resolve/main/w.safetensors", headers={"Range": "bytes=10-19"})
with urlopen(asked) as response:
    ranged = response.status, response.read()
print(json.dumps({
    "user": api.whoami()["name"], "url": str(url), "same": open(folder + "/w.safetensors", "rb").read() == weights,
    "now": open(folder + "/a.txt").read(), "then": open(old).read(), "files": sorted(api.list_repo_files("me/x")),
    "first": sorted(api.list_repo_files("me/x", revision=first.oid)), "unchanged": again.oid == second.oid,
    "commits": len(api.list_repo_commits("me/x")), "branches": [b.name for b in api.list_repo_refs("me/x").branches],
    "range": ranged == (206, weights[10:20]),
    "tree": sorted(entry.path for entry in api.list_repo_tree("me/x", revision=first.oid, recursive=True)),
    "no_file": error_of(api.hf_hub_download, "me/x", "none"),
    "no_revision": error_of(api.hf_hub_download, "me/x", "a.txt", revision="none"),
    "no_repo": error_of(api.hf_hub_download, "me/none", "a.txt"),
}))
"""

REFUSALS = """
me, guest, reader, bad, nobody = (HfApi(token=t) for t in ("hf_me", "hf_guest", "hf_reader", "hf_bad", False))
put = {"path_or_fileobj": b"x", "path_in_repo": "x.txt"}
print(json.dumps({
    "taken": error_of(me.create_repo, "me/private"),
    "namespace": error_of(me.create_repo, "guest/x"),
    "read_token": error_of(reader.upload_file, repo_id="me/private", **put),
    "bad_token": error_of(bad.whoami),
    "no_token": error_of(nobody.create_repo, "me/y"),
    "gated_nobody": error_of(nobody.hf_hub_download, "guest/vit", ".gitattributes"),
    "gated_me": error_of(me.hf_hub_download, "guest/vit", ".gitattributes"),
    "gated_seen": me.model_info("guest/vit").gated,
    "gated_guest": error_of(guest.hf_hub_download, "guest/vit", ".gitattributes"),
    "private": error_of(guest.model_info, "me/private"),
}))
"""

CUT = """
api = HfApi()
open("w.safetensors", "wb").write(os.urandom(300_000))
upload = {"path_or_fileobj": "w.safetensors", "path_in_repo": "w.safetensors", "repo_id": "me/x"}
print(json.dumps([error_of(api.upload_file, **upload) for _ in range(3)]))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def test_round_trip(hub, tmp_path):
    found = answer_of(hub, tmp_path, PREAMBLE + ROUND_TRIP)
    assert found["user"] == "me" and found["url"] == f"{hub.endpoint}/me/x"
    assert found["same"] and found["now"] == "two" and found["then"] == "one" and found["range"]
    assert found["files"] == [".gitattributes", "a.txt", "w.safetensors"]
    assert found["first"] == [".gitattributes", "a.txt", "sub/b.txt", "w.safetensors"]
    assert found["tree"] == [".gitattributes", "a.txt", "sub", "sub/b.txt", "w.safetensors"]
    assert found["unchanged"] and found["commits"] == 3 and found["branches"] == ["main", "dev"]
    names = [found[key][0] for key in ("no_file", "no_revision", "no_repo")]
    assert names == ["RemoteEntryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError"]


def test_refusals(hub, tmp_path):
    hub.create("me/private", private=True)
    hub.create("guest/vit", gated=True)
    found = answer_of(hub, tmp_path, PREAMBLE + REFUSALS)
    assert "409" in found["taken"][1] and "already created" in found["taken"][1]
    assert "403" in found["namespace"][1] and "rights" in found["namespace"][1]
    assert "403" in found["read_token"][1] and "role 'read'" in found["read_token"][1]
    assert "401" in found["no_token"][1] and found["bad_token"]
    assert found["gated_nobody"][0] == found["gated_me"][0] == "GatedRepoError"
    assert found["gated_seen"] == "auto" and found["gated_guest"] is None
    assert found["private"][0] == "RepositoryNotFoundError"
    assert set(hub.files("me/private")) == {".gitattributes"}


def test_faults(hub, tmp_path):
    hub.create("me/x")
    hub.faults = [Fault("PUT", "^/lfs/", times=1), Fault("POST", "/commit/", times=1)]
    first, _, last = answer_of(hub, tmp_path, PREAMBLE + CUT)
    assert first and last is None  # a newer client tries a cut upload again by itself; a cut commit none does
    assert sum(request == "PUT" for request, _ in hub.requests) == 2
    assert len(hub.repositories["model", "me/x"].branches["main"]) == 2
    assert len(hub.files("me/x")["w.safetensors"]) == 300_000
