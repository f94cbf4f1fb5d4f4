"""Commands of a user killed at every file-system event of their output, out of disk or memory there, and run twice at once.

`make torture` takes every command and every event; the ordinary tests take some.
"""

import os
import shutil

import pytest
from faults import FaultServer, tally
from torture_given import (
    OUTPUTS,
    again,
    begin,
    content,
    expectation,
    is_finished,
    is_part,
    is_there,
    left_over,
    make_given,
)

from delst_hf.data.folder import open_folder

WHOLE = bool(os.environ.get("DELST_TORTURE"))


@pytest.fixture(scope="module")
def server():
    with FaultServer("torture_commands") as server:
        yield server


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_given(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def expected(server, given, tmp_path_factory):
    """What each command makes, when nothing is in its way."""
    made = expectation(server, given, tmp_path_factory.mktemp)
    return lambda name: made(name)[0]


# Both write as `prepare image` does, and tests/test_torture_data.py takes that apart.
KILLED = [name for name in OUTPUTS if name not in ("prepare in processes", "prepare visium")]
FAULTS = [(name, fault) for name in KILLED for fault in ("kill", "full disk")]
FEW = [("fit", "kill"), ("embed a dataset", "full disk"), ("pretrain", "kill"), ("finetune", "kill")]
FEW += [("search", "kill"), ("check", "full disk")]


@pytest.mark.parametrize(("name", "fault"), FAULTS if WHOLE else FEW)
def test_a_command_leaves_nothing_half_and_is_finished_by_the_same_command(
    server, given, expected, tmp_path, name, fault
):
    if name == "report":
        expected("evaluate")
    expected(name)
    number, ended, step = 0, False, (1 if fault == "kill" else 3) if WHOLE else 7
    # A checkpoint is a hundred events, and a report takes seconds to draw.
    step *= {"pretrain": 34, "finetune": 17, "search": 8, "prepare image": 3, "merge": 3, "report": 3, "fit": 3}.get(
        name, 1
    )
    while not ended:
        folder = tmp_path / str(number)
        words, output, said = begin(name, given, folder), folder / OUTPUTS[name], tmp_path / "said"
        at = {"kill_at" if fault == "kill" else "full_at": number, "within": str(folder)}
        status = server.run("command", str(said), *words, **at)
        ended = status == 0
        if fault == "full disk" and not ended:
            lines = [line for line in said.read_text().splitlines() if ": error: " in line]
            tally(f"{name}, {fault}", len(lines) == 1 and "Traceback" not in said.read_text(), said.read_text())
        if is_there(output):
            whole = content(output) == expected(name) or is_part(output, expected(name))
            assert whole, f"half an output after event {number}"
        status = server.run("command", str(said), *again(name, words))
        assert is_finished(status, said.read_text()), (
            f"the rerun ended with {status} after event {number}: {said.read_text()}"
        )
        held = content(output) == expected(name) and left_over(folder) == []
        tally(f"{name}, {fault}", held, f"event {number}: {left_over(folder)}")
        shutil.rmtree(folder)
        number += step
    assert number > step


STARVED = ["fit", "predict", "embed", "evaluate", "prepare image", "prepare visium", "pretrain"]


@pytest.mark.skipif(not WHOLE, reason="what libraries do without memory differs by machine: make torture")
@pytest.mark.parametrize("name", STARVED)
def test_a_command_that_is_refused_memory_says_so_and_leaves_nothing_half(server, given, expected, tmp_path, name):
    """As under `ulimit -v`: with a few megabytes beyond what the libraries take, and with more and more until it is enough."""
    expected(name)
    for number in (4, 16, 32, 48, 64, 128, 256, 512, 1024, 2048):
        folder, said = tmp_path / str(number), tmp_path / "said"
        words, output = begin(name, given, folder), folder / OUTPUTS[name]
        status = server.run("command", str(said), *words, memory=number << 20)
        lines, rerun = said.read_text().splitlines(), 0
        told = status == 0 or (any("memory" in line and "machine with more memory" in line for line in lines[-1:]))
        # The C library ends the process by itself where a thread's own variables find no room.
        told |= lines[-1:] == ["cannot allocate memory for thread-local data: ABORT"]
        if is_there(output):
            assert content(output) == expected(name), f"half an output at {number} MiB"
        else:
            rerun = server.run("command", str(said), *words)
        held = told and rerun == 0 and content(output) == expected(name) and left_over(folder) == []
        tally(f"{name}, no memory", held, f"{number} MiB: {status}, {lines}, the rerun {rerun}, {left_over(folder)}")
        if status == 0:
            break
    assert status == 0 and number > 8, "no step was between too little and enough"


@pytest.mark.parametrize("name", KILLED if WHOLE else ["predict", "embed a dataset", "vocabulary"])
def test_of_two_at_once_into_one_output_one_is_refused(server, given, expected, tmp_path, name):
    if name == "report":
        expected("evaluate")
    words = begin(name, given, tmp_path / "run")
    server.run("twice", str(tmp_path), *words)
    statuses = (tmp_path / "statuses").read_text().split()
    texts = [(tmp_path / number).read_text() for number in "01"]
    # These are written in one step and replace the last one, so that both runs may come to their end.
    one_after_the_other = name in ("card", "check", "vocabulary", "evaluate", "report") and statuses == ["0", "0"]
    if not one_after_the_other:
        assert sorted(statuses) == ["0", "2"], texts
        refused = texts[statuses.index("2")]
        why = ("another run is writing to this", "exists", "holds something already", "made by another program",
               "already holds a dataset", "holds a run already", "is not empty")  # fmt: skip
        assert any(words in refused for words in why) and "Traceback" not in refused
    held = content(tmp_path / "run" / OUTPUTS[name]) == expected(name) and left_over(tmp_path / "run") == []
    tally("two runs of a command", held, f"{name}: {left_over(tmp_path / 'run')}")
    open_folder(given / "data", verify=True)
