"""SIGTERM, as the time limit of a scheduler sends it, and SIGKILL at moments of every command that takes a while.

Moments are events of the output and seconds of the CPU, so that they are the same on a machine that is busy. `make torture`
takes every command; the ordinary tests take some.
"""

import os
import random
import shutil
import signal

import pytest
from faults import FaultServer, abandoned, shared_memory, tally
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

WHOLE = bool(os.environ.get("DELST_TORTURE"))
# In the fork of a command that is told to end before it has taken the signal over, nothing is said and nothing was begun.
TOO_EARLY = -signal.SIGTERM


@pytest.fixture(scope="module")
def server():
    with FaultServer("torture_commands") as server:
        yield server


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_given(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def expected(server, given, tmp_path_factory):
    return expectation(server, given, tmp_path_factory.mktemp)


def moments(name, cpu):
    """Yield faults: SIGTERM at events that are further and further apart, and both signals at seeded seconds."""
    draw = random.Random(name)
    if name in ("prepare in processes", "report"):  # each run starts two interpreters, or draws for seconds
        yield from ({"how": how, "kill_after": cpu * 0.1 * draw.random()} for how in (signal.SIGTERM, signal.SIGKILL))
        return
    for how in (signal.SIGTERM, signal.SIGKILL) if WHOLE else (signal.SIGTERM,):
        for low, high in ((0.1, 0.5), (0.5, 0.95)) if how == signal.SIGTERM else ((0.1, 0.95),):
            yield {"how": how, "kill_after": cpu * draw.uniform(low, high)}
    for number in (5, 40, 150) if WHOLE else (11,):
        yield {"how": signal.SIGTERM, "kill_at": number}


@pytest.mark.parametrize("name", OUTPUTS if WHOLE else ["pretrain", "evaluate"])
def test_a_command_that_is_told_to_end_does_so_in_one_line_and_its_rerun_ends_equal(
    server, given, expected, tmp_path, name
):
    if name == "report":
        expected("evaluate")
    whole, cpu = expected(name)
    shared = shared_memory()
    for number, fault in enumerate(moments(name, cpu)):
        folder, said = tmp_path / str(number), tmp_path / "said"
        words, output = begin(name, given, folder), folder / OUTPUTS[name]
        within = {"within": str(folder)} if "kill_at" in fault else {}
        status, how = server.run("command", str(said), *words, **fault, **within), fault["how"]
        lines = [line for line in said.read_text().replace("\r", "\n").splitlines() if line.strip()]
        told = status in (0, -how) if how == signal.SIGKILL else status in (0, 130, TOO_EARLY)
        if status == 130:
            told = sum("interrupted; " in line for line in lines) == 1 and not any(
                "Traceback" in line for line in lines
            )
        tally(f"{name}, {how.name}", told, f"{fault}: {status}, {lines}")
        tally("orphans", not (alive := server.orphans()), f"{name}, {fault}: {alive}")
        if is_there(output):
            assert content(output) == whole or is_part(output, whole), f"half an output after {fault}"
        rerun = server.run("command", str(said), *again(name, words))
        assert is_finished(rerun, said.read_text()), f"the rerun ended with {rerun} after {fault}: {said.read_text()}"
        held = content(output) == whole and left_over(folder) == []
        tally(f"{name}, {how.name}", held, f"{fault}: {left_over(folder)}")
        shutil.rmtree(folder)
    tally("orphans", not (left := abandoned(shared)), f"{name}: {left} in /dev/shm")
