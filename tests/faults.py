"""Faults for tests: a child that is killed at its k-th file-system event, a quota on the size of files."""

import errno
import faulthandler
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
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
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
    "fsync",
)


_HANGS = 600  # seconds after which a child is taken to wait for ever, and is ended by SIGALRM


def run_in_child(
    work: Callable[[], object],
    *,
    kill_at: int | None = None,
    kill_after: float | None = None,
    how: int = signal.SIGKILL,
    kill_before: Callable[[str, tuple], bool] | None = None,
    full_at: int | None = None,
    file_limit: int | None = None,
    within: str | None = None,
    memory: int | None = None,
) -> int:
    """Run `work` in a fork and return its wait status; the fork never returns into the test.

    Args:
        work: What to run.
        kill_at: Kill the child right before its file-system event of this number.
        kill_after: Kill it when it has used so many seconds of the CPU: a moment of its work however busy the machine is.
        how: The signal of these two.
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
            signal.alarm(_HANGS)
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
            if memory is not None:
                size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
            if kill_at is not None:
                _at_event(kill_at, lambda event: os.kill(os.getpid(), how), within=within)
            if kill_after is not None:
                signal.signal(signal.SIGPROF, lambda *given: os.kill(os.getpid(), how))
                signal.setitimer(signal.ITIMER_PROF, kill_after)
            if kill_before is not None:
                sys.addaudithook(lambda *event: kill_before(*event) and os.kill(os.getpid(), signal.SIGKILL))
            if full_at is not None:
                _at_event(full_at, _no_room, onwards=True, within=within)
            work()
            code = 0
        except FileExistsError:
            code = 3
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 70
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
        environment: Variables that are set for it.
    """

    def __init__(self, module: str, environment: dict[str, str] | None = None):
        tests = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", **(environment or {})}
        command = [sys.executable, "-c", f"import faults, {module}; faults.serve({module})"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.cpu = 0.0

    def __enter__(self) -> "FaultServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(
        self, function: str, *arguments: str, kill_at=None, kill_after=None, how=signal.SIGKILL, full_at=None, within=None,
        memory=None, **options,
    ) -> int:  # fmt: skip
        """Exit status of a run: 0; 3 for a FileExistsError; that of a SystemExit; 70 for another exception; negative for a
        signal. `cpu` is then what it took, in seconds."""
        faults = {"kill_at": kill_at, "kill_after": kill_after, "how": int(how), "full_at": full_at, "within": within}
        faults["memory"] = memory
        asked = {"function": function, "arguments": arguments, "options": options, "faults": faults}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("status "):
            assert line, "the server of the faults ended"
        self.cpu = float(line.split()[2])
        return int(line.split()[1])

    def orphans(self, patience: float = 20.0) -> list[int]:
        """Processes that a run has left, after some time to end in."""
        deadline = time.monotonic() + patience
        while (left := [one for one in in_session(self.process.pid) if one != self.process.pid]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.1)
        return left


def in_session(session: int) -> list[int]:
    """Live processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    return set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()


def abandoned(before: set[str], patience: float = 10.0) -> set[str]:
    """What has come to /dev/shm since and no live process has mapped, after some time to be taken away in."""
    deadline, left = time.monotonic() + patience, shared_memory() - before
    while left and time.monotonic() < deadline:
        mapped = set()
        for path in Path("/proc").glob("[0-9]*/maps"):
            try:
                mapped.update(
                    line.split("/dev/shm/")[1] for line in path.read_text().splitlines() if "/dev/shm/" in line
                )
            except OSError:
                continue
        left = (left & shared_memory()) - mapped
        time.sleep(0.1)
    return left


def serve(module) -> None:
    """Answer the requests of a `FaultServer` from standard input."""
    gc.freeze()  # else a fork that collects garbage copies all that was imported
    for line in sys.stdin:
        asked = json.loads(line)
        work = partial(getattr(module, asked["function"]), *asked["arguments"], **asked["options"])
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        status = os.waitstatus_to_exitcode(run_in_child(work, **asked["faults"]))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print("status", status, round(cpu, 3), flush=True)


TALLY: dict[str, list[int]] = {}


def tally(group: str, held: bool, why: str = "") -> None:
    """Count one fault that was tried, and fail the test where it did not hold."""
    counted = TALLY.setdefault(group, [0, 0])
    counted[0] += 1
    counted[1] += held
    assert held, f"{group}: {why}"
