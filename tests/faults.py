"""Faults for tests: a child that is killed at its k-th file-system event, a quota on the size of files."""

import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator

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


def run_in_child(work: Callable[[], object], *, kill_at: int | None = None, file_limit: int | None = None) -> int:
    """Run `work` in a fork and return its wait status; the fork never returns into the test.

    Args:
        work: What to run.
        kill_at: Kill the child, as by SIGKILL, right before its file-system event of this number.
        file_limit: No file of the child may grow beyond this many bytes, as on a disk that is full (OSError EFBIG).
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            faulthandler.disable()
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
            if kill_at is not None:
                _kill_self_at(kill_at)
            work()
            code = 0
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


def _kill_self_at(number: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in _EVENTS or is_write:
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)
    fsync = os.fsync

    def audited(descriptor: int) -> None:
        sys.audit("fsync", descriptor)
        fsync(descriptor)

    os.fsync = audited
