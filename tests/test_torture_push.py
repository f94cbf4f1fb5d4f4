"""A push to the Hub that is killed at an event of its files, or in the middle of a request: the Hub holds all of it or none.

`make torture` takes every request; the ordinary tests take some.
"""

import os
import shutil
import signal
from copy import deepcopy
from itertools import count

import pytest
from faults import FaultServer, tally
from hub_server import HubServer, Kill
from torture_given import left_over, make_given

WHOLE = bool(os.environ.get("DELST_TORTURE"))
CARD = "---\nlicense: mit\n---\n"
NAMES = {"model": "me/toy", "dataset": "me/toys"}


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the client keeps what is its own; its temporary folder too."""
    home = tmp_path_factory.mktemp("home")
    (home / "tmp").mkdir()
    return home


@pytest.fixture(scope="module")
def server(hub, home):
    environment = {
        **hub.environment(home, "hf_me"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "TMPDIR": str(home / "tmp"),
    }
    with FaultServer("torture_commands", environment) as server:
        yield server


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    given = make_given(tmp_path_factory.mktemp("given"))
    (given / "model" / "README.md").write_text(CARD + "a card without gaps")
    return given


def begin(kind, given, folder):
    """Make the folder with what is pushed, and return the command."""
    folder.mkdir()
    if kind == "model":
        shutil.copytree(given / "model", folder / "model")
        return ["push", str(folder / "model"), NAMES[kind]]
    shutil.copytree(given / "data", folder / "data")
    return ["push", "--dataset", str(folder / "data"), NAMES[kind]]


@pytest.fixture(scope="module")
def states(hub, server, given, tmp_path_factory):
    """What the Hub is before a push (without a model, and with an older state of a dataset), and its files after it."""
    made = {}

    def states(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("first")
            words = begin(kind, given, folder / "run")
            if kind == "dataset":
                card = folder / "run" / "data" / "README.md"
                text = card.read_text()
                card.write_text(f"{text}\nan older word")
                assert server.run("command", str(folder / "said"), *words) == 0, (folder / "said").read_text()
                card.write_text(text)
            before = deepcopy(hub.repositories), dict(hub.blobs), files_of(hub, kind)
            assert server.run("command", str(folder / "said"), *words) == 0, (folder / "said").read_text()
            made[kind] = (*before, files_of(hub, kind))
        return made[kind]

    return states


def files_of(hub, kind):
    there = (kind, NAMES[kind]) in hub.repositories
    return (
        {name: text for name, text in hub.files(NAMES[kind], kind).items() if name != ".gitattributes"} if there else {}
    )


def tried(hub, server, given, states, kind, folder, **faults):
    """Push once with a fault and once without; return the first status and what it said."""
    repositories, blobs, before, after = states(kind)
    hub.repositories, hub.blobs = deepcopy(repositories), dict(blobs)
    words, said = begin(kind, given, folder), folder.parent / "said"
    status = server.run("command", str(said), *words, **faults)
    hub.kill, text = None, said.read_text()
    found = files_of(hub, kind)
    assert found in (before, after), f"the Hub holds a half: {sorted(found)}"
    again = server.run("command", str(said), *words)
    assert again == 0, said.read_text()
    kept = [path for path in folder.rglob("*.safetensors") if not path.is_symlink()]
    held = files_of(hub, kind) == after and left_over(folder) == [] and len(kept) == (kind == "model")
    tally(f"push of a {kind}", held, f"{faults}: {left_over(folder)}, {kept}")
    return status, text


@pytest.mark.parametrize("kind", ["model", "dataset"] if WHOLE else ["model"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM] if WHOLE else [signal.SIGKILL])
def test_a_push_that_is_ended_in_the_middle_of_a_request(hub, server, given, states, home, tmp_path, kind, how):
    states(kind)
    for number in count(0, 8 if not WHOLE else 2 if how == signal.SIGKILL else 5):
        ended = False
        for after in (False, True):
            hub.kill = Kill(number, tmp_path / "said.pid", after, how)
            status, said = tried(hub, server, given, states, kind, tmp_path / f"{number}-{after}")
            ended = status == 0
            if how == signal.SIGTERM and not ended:
                lines = [line for line in said.splitlines() if line.startswith("delst: interrupted")]
                tally(f"push of a {kind}", status == 130 and len(lines) == 1 and "Traceback" not in said, said)
        if ended:
            break
    assert number > 3
    assert not list((home / "tmp").rglob("*.safetensors"))


@pytest.mark.skipif(not WHOLE, reason="the ordinary tests end pushes in the middle of requests: make torture")
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_push_that_is_killed_at_an_event_of_its_files(hub, server, given, states, tmp_path, kind):
    states(kind)
    for number in count(0, 3):
        folder = tmp_path / str(number)
        status, _ = tried(hub, server, given, states, kind, folder, kill_at=number, within=str(folder))
        if status == 0:
            break
