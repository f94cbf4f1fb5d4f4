"""What a push leaves alone: files and words of others, public repositories, links; and what it says when an answer is lost."""

import hashlib
import json
import re
import shutil
import signal

import pytest
from hub_client import answer_of, run_client
from hub_server import Fault, HubServer

from delst_hf.cli import main
from delst_hf.hub.publish import push_dataset, push_model
from delst_hf.record import without_secrets

pytestmark = pytest.mark.fault("pushes")

HEAD = "---\nlicense: mit\n---\n"

SCRIPT = """
import json, sys, time
from pathlib import Path
from delst_hf.hub.push import push_files

time.sleep = lambda seconds: None

def push(number, name="me/toy", **options):
    folder = Path(f"push-{number}")
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    try:
        return push_files(files, name, "model", marks=("config.json",), **options)
    except OSError as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps([push(**options) for options in json.loads(sys.argv[1])]))
"""


def folder_of(home, number, **files):
    for name, content in files.items():
        path = home / f"push-{number}" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def hub(tmp_path):
    folder_of(tmp_path, 1, README_dot_md=HEAD + "ours", config_dot_json="{}", old_dot_json="{}", sub__old_dot_txt="x")
    folder_of(tmp_path, 2, README_dot_md=HEAD + "ours too", config_dot_json="{}")
    with HubServer() as hub:
        yield hub


STOPPED = """
import os, sys, time
from delst_hf.atomic.processes import end_like_interrupted
from delst_hf.hub import publish, push

model, place, moment, how = sys.argv[1:]
if place == "elsewhere":  # as where nothing can be written beside the checkpoint
    os.access = lambda *asked, **options: False
commit = push.Target.commit

def stopped(*given):
    if moment == "after the commit":
        commit(*given)
    os.kill(os.getpid(), int(how))
    time.sleep(120)

push.Target.commit = stopped
from delst_hf.cli import main
sys.exit(main(["push", model, "me/toy", "--license", "mit"]))
"""


@pytest.mark.parametrize(
    ("how", "place", "moment"),
    [
        (signal.SIGTERM, "elsewhere", "after the commit"),
        (signal.SIGTERM, "beside", "before the commit"),
        (signal.SIGKILL, "elsewhere", "before the commit"),
    ],
)
def test_a_push_that_is_stopped_leaves_no_weights_and_says_what_became_of_it(
    toy_checkpoint, tmp_path, how, place, moment
):
    model, temporary = shutil.copytree(toy_checkpoint, tmp_path / "run" / "model"), tmp_path / "tmp"
    temporary.mkdir()
    (model / "README.md").write_text(HEAD + "a card without gaps")
    with HubServer() as hub:
        run = run_client(hub, tmp_path, STOPPED, model, place, moment, int(how), temporary=temporary, check=False)
        assert run.returncode == (130 if how == signal.SIGTERM else -how), run.stderr
        arrived = "model.safetensors" in (hub.repositories["model", "me/toy"].branches["main"][-1].tree)
    assert arrived == (moment == "after the commit")
    kept = [path for path in tmp_path.rglob("*.safetensors") if not path.is_symlink()]
    assert kept == [model / "model.safetensors"]
    if how == signal.SIGTERM:
        assert ("The commit was made" if arrived else "The repository is as it was before") in run.stderr
        assert list(temporary.rglob("*.safetensors")) == [] and not list((tmp_path / "run").glob(".*.push"))


def own(hub, name, **files):
    """Somebody else's commit: files added by hand."""
    repository = hub.repositories["model", name]
    tree = dict(repository.branches["main"][-1].tree)
    tree |= {path.replace("__", "/").replace("_dot_", "."): hub.keep(text.encode()) for path, text in files.items()}
    repository.branches["main"].append(hub.new_commit(repository, "by hand", tree))


def test_a_push_deletes_what_our_last_one_brought_and_nothing_else(hub, tmp_path):
    (first,) = answer_of(hub, tmp_path, SCRIPT, json.dumps([{"number": 1}]))
    assert "/commit/" in first
    own(
        hub,
        "me/toy",
        figures__numbers_dot_json="{}",
        notebooks__plot_dot_py="x",
        old_dot_bin="x",
        model_dot_safetensors="x",
    )
    answer_of(hub, tmp_path, SCRIPT, json.dumps([{"number": 2}]))
    files = hub.files("me/toy")
    assert set(files) - {".gitattributes"} == {
        "README.md", "config.json", "delst_files.json",
        "figures/numbers.json", "notebooks/plot.py", "old.bin", "model.safetensors",
    }  # fmt: skip
    listed = json.loads(files["delst_files.json"])
    assert listed["files"] == ["README.md", "config.json"]
    assert listed["card"] == hashlib.sha256(f"{HEAD}ours too".encode()).hexdigest()


def test_a_push_over_one_of_an_earlier_version_deletes_its_weights_only(hub, tmp_path):
    hub.create("me/toy")
    own(hub, "me/toy", config_dot_json="{}", numbers_dot_json="{}", **{"model-00001-of-00002_dot_safetensors": "x"})
    answer_of(hub, tmp_path, SCRIPT, json.dumps([{"number": 2, "earlier": r"model(-\d{5}-of-\d{5})?\.safetensors"}]))
    assert set(hub.files("me/toy")) - {".gitattributes"} == {
        "README.md", "config.json", "delst_files.json", "numbers.json"
    }  # fmt: skip


def test_a_card_that_somebody_wrote_on_the_hub_stays_until_it_is_given_up(hub, tmp_path):
    hub.create("me/early")
    own(hub, "me/early", config_dot_json="{}", README_dot_md="Written by `delst card` from the records")
    hub.create("me/foreign")
    own(hub, "me/foreign", config_dot_json="{}", README_dot_md="my words")
    answers = answer_of(
        hub,
        tmp_path,
        SCRIPT,
        json.dumps([{"number": 1}, {"number": 2, "name": "me/early"}, {"number": 2, "name": "me/foreign"}]),
    )
    assert "/commit/" in answers[0] and "/commit/" in answers[1]
    assert re.search(
        "README.md in me/foreign is not the one that was pushed last.*Nothing was pushed.*--overwrite-card", answers[2]
    )
    own(hub, "me/toy", README_dot_md="ours, and a sentence of mine")
    refused, replaced = answer_of(
        hub, tmp_path, SCRIPT, json.dumps([{"number": 2}, {"number": 2, "overwrite_card": True}])
    )
    assert "FileExistsError: README.md in me/toy" in refused and "/commit/" in replaced
    assert hub.files("me/toy")["README.md"] == f"{HEAD}ours too".encode()
    assert hub.files("me/foreign")["README.md"] == b"my words"


def test_private_is_not_promised_where_it_is_public(hub, tmp_path):
    hub.create("me/toy")
    refused, made, again = answer_of(
        hub, tmp_path, SCRIPT,
        json.dumps([{"number": 1, "private": True}, *[{"number": 1, "name": "me/new", "private": True}] * 2]),
    )  # fmt: skip
    assert re.search("PermissionError: The model me/toy exists and is public.*Nothing was pushed", refused)
    assert set(hub.files("me/toy")) <= {".gitattributes"}
    assert "/commit/" in made and "/commit/" in again and hub.repositories["model", "me/new"].private


def test_the_repository_is_asked_before_anything_is_said_of_it(hub, tmp_path):
    answer_of(hub, tmp_path, SCRIPT, json.dumps([{"number": 1}]))
    hub.faults = [Fault("POST", "/me/toy/commit/", times=9, answer_only=True)]
    (lost,) = answer_of(hub, tmp_path, SCRIPT, json.dumps([{"number": 2}]))
    assert re.search(r"ConnectionError: .*The commit was made \([0-9a-f]{40}\); only the answer was lost", lost), lost
    assert "as it was" not in lost and hub.files("me/toy")["README.md"] == f"{HEAD}ours too".encode()
    hub.faults = [Fault("POST", "/me/toy/commit/", times=9)]
    (cut,) = answer_of(hub, tmp_path, SCRIPT, json.dumps([{"number": 1}]))
    assert "The repository is as it was before. Run the same command again" in cut
    assert hub.files("me/toy")["README.md"] == f"{HEAD}ours too".encode()


def test_a_dataset_that_holds_links_or_is_damaged_is_not_pushed(toy_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("delst_hf.hub.publish.user_of", lambda *arguments: "me")
    monkeypatch.setattr("delst_hf.hub.publish.push_files", lambda files, *arguments, **options: sorted(files))
    folder = shutil.copytree(toy_folder, tmp_path / "data")
    (folder / "spots" / ".env").write_text("TOKEN=1")
    (folder / "previews").mkdir()
    (folder / "previews" / "notes.txt").write_text("mine")
    names = push_dataset(folder, "me/toys")
    assert not [name for name in names if ".env" in name or "notes" in name] and "manifest.json" in names
    (tmp_path / "secret").write_bytes((folder / "examples" / "1.jpg").read_bytes())
    (folder / "examples" / "1.jpg").unlink()
    (folder / "examples" / "1.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"holds symlinks \(examples/1.jpg\)"):
        push_dataset(folder, "me/toys")
    (folder / "examples" / "1.jpg").unlink()
    shutil.copyfile(tmp_path / "secret", folder / "examples" / "1.jpg")
    changed = bytearray((folder / "examples" / "1.jpg").read_bytes())
    changed[-5] ^= 1
    (folder / "examples" / "1.jpg").write_bytes(changed)
    assert main(["push", "--dataset", str(folder), "me/toys"]) == 2
    assert "examples/1.jpg does not match its checksum (SHA-256)" in capsys.readouterr().err


def test_a_checkpoint_that_holds_links_is_not_pushed(toy_checkpoint, tmp_path):
    folder = shutil.copytree(toy_checkpoint, tmp_path / "model")
    (tmp_path / "secret").write_text("mine")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="README.md is a link to secret outside of the checkpoint"):
        push_model(folder, "me/toy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "secret"]


def test_a_reference_is_pushed_where_it_is_asked_for(toy_checkpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("delst_hf.hub.publish.push_files", lambda files, *arguments, **options: sorted(files))
    folder = shutil.copytree(toy_checkpoint, tmp_path / "model")
    (folder / "README.md").write_text(HEAD + "a card without gaps")
    with pytest.raises(FileNotFoundError, match="has no reference to push. Make one: delst reference"):
        push_model(folder, "me/toy", with_reference=True)
    (folder / "reference").mkdir()
    (folder / "reference" / "reference.json").write_text("{}")
    assert not [name for name in push_model(folder, "me/toy") if name.startswith("reference")]
    assert "holds data of training spots and is not pushed (--with-reference)" in caplog.text
    assert "reference/reference.json" in push_model(folder, "me/toy", with_reference=True)
    (tmp_path / "secret").write_text("mine")
    (folder / "reference" / "spots.parquet").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="spots.parquet is a link to secret outside of the checkpoint"):
        push_model(folder, "me/toy", with_reference=True)


def test_passwords_of_addresses_are_not_repeated():
    text = "The connection to http://alice:hunter2@hub.example:80/x broke (https://bob@other/y)"
    assert without_secrets(text) == "The connection to http://hub.example:80/x broke (https://other/y)"
