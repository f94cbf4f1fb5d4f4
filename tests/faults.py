"""Faults for tests: a child that is killed at its k-th file-system event, a quota on the size of files."""

import errno
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

# What the interpreter reports before it does it; "open" counts for writing only.
_EVENTS = (
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
    "fsync",
)


def run_in_child(
    work: Callable[[], object],
    *,
    kill_at: int | None = None,
    kill_before: Callable[[str, tuple], bool] | None = None,
    full_at: int | None = None,
    file_limit: int | None = None,
    within: str | None = None,
    memory: int | None = None,
) -> int:
    """Run `work` in a fork and return its wait status; the fork never returns into the test.

    Args:
        work: What to run.
        kill_at: Kill the child, as by SIGKILL, right before its file-system event of this number.
        kill_before: Kill it right before the first event, of a name and arguments as `sys.addaudithook` gets them, for
            which this is true: where libraries write files of their own, the number of an event is not the same everywhere.
        full_at: From its file-system event of this number on, whatever takes room on the disk fails (OSError ENOSPC).
        file_limit: No file of the child may grow beyond this many bytes, as on a disk that is full (OSError EFBIG).
        within: Count only the events in this folder: those of the output, and none of what libraries keep elsewhere.
        memory: The child may take so many bytes of address space beyond those it has (`ulimit -v`).
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            faulthandler.disable()
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
            if memory is not None:
                size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
            if kill_at is not None:
                _at_event(kill_at, lambda event: os.kill(os.getpid(), signal.SIGKILL), within=within)
            if kill_before is not None:
                sys.addaudithook(lambda *event: kill_before(*event) and os.kill(os.getpid(), signal.SIGKILL))
            if full_at is not None:
                _at_event(full_at, _no_room, onwards=True, within=within)
            work()
            code = 0
        except FileExistsError:
            code = 3
        except BaseException as error:
            if os.environ.get("DELST_FAULTS_DEBUG"):
                sys.__excepthook__(type(error), error, error.__traceback__)
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def killed_at_every_event(work: Callable[[], object], limit: int = 500) -> Iterator[int]:
    """Run `work` in one fork after another, each killed one file-system event later; yields after each kill, and ends when
    a fork comes to its end."""
    for number in range(limit):
        status = run_in_child(work, kill_at=number)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, f"the child failed by itself, not by the kill at event {number}"
            return
        yield number
    raise AssertionError(f"no end after {limit} events")


def _no_room(event: str) -> None:
    if event not in ("os.remove", "os.rmdir", "shutil.rmtree", "os.chmod"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _at_event(number: int, act: Callable[[str], None], onwards: bool = False, within: str | None = None) -> None:
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in _EVENTS or is_write) and (within is None or _is_in(within, arguments)):
            seen += 1
            if seen - 1 == number or (onwards and seen - 1 > number):
                act(event)

    sys.addaudithook(hook)
    fsync = os.fsync

    def audited(descriptor: int) -> None:
        sys.audit("fsync", descriptor)
        fsync(descriptor)

    os.fsync = audited


def _is_in(folder: str, arguments: tuple) -> bool:
    """Tell whether an event is one of a folder, by its paths or its open file."""
    for one in arguments:
        if isinstance(one, int) and not isinstance(one, bool) and one > 2:
            try:
                one = os.readlink(f"/proc/self/fd/{one}")
            except OSError:
                continue
        if isinstance(one, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(one)).startswith(folder):
            return True
    return False


class FaultServer:
    """A process that has imported a module, and forks for every run of one of its functions: quick, and free of threads.

    Args:
        module: Name of a module beside the tests.
    """

    def __init__(self, module: str):
        tests = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
        command = [sys.executable, "-c", f"import faults, {module}; faults.serve({module})"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "FaultServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(
        self, function: str, *arguments: str, kill_at=None, full_at=None, within=None, memory=None, **options
    ) -> int:
        """Exit status of a run: 0; 3 for a FileExistsError; 70 for another exception; negative for a signal."""
        asked = {
            "function": function,
            "arguments": arguments,
            "options": options,
            "faults": {"kill_at": kill_at, "full_at": full_at, "within": within, "memory": memory},
        }
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("status "):
            assert line, "the server of the faults ended"
        return int(line.split()[1])


def serve(module) -> None:
    """Answer the requests of a `FaultServer` from standard input."""
    for line in sys.stdin:
        asked = json.loads(line)
        work = partial(getattr(module, asked["function"]), *asked["arguments"], **asked["options"])
        status = os.waitstatus_to_exitcode(run_in_child(work, **asked["faults"]))
        print("status", status, flush=True)


TALLY: dict[str, list[int]] = {}


def tally(group: str, held: bool, why: str = "") -> None:
    """Count one fault that was tried, and fail the test where it did not hold."""
    counted = TALLY.setdefault(group, [0, 0])
    counted[0] += 1
    counted[1] += held
    assert held, f"{group}: {why}"
