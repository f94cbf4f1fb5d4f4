"""Processes that do not outlive the run they work for, and that keep the memory they will need again."""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Of glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD.
_KEPT = {-1: 2**30, -3: 2**30}
_GRACE = 20.0  # seconds to clean up in
_LOOKS = 1.0  # seconds between two looks at the parent, where the kernel cannot be asked to tell


def end_with_parent(parent: int) -> None:
    """Let this process end when its parent does, however that ends; to be called by a worker as its first act.

    Linux is asked to kill it; elsewhere a thread looks once a second.

    Args:
        parent: Process id of the parent.

    Examples:
        >>> import multiprocessing
        >>> worker = multiprocessing.get_context("fork").Process(target=end_with_parent, args=(os.getpid(),))
        >>> worker.start()
        >>> worker.join()
        >>> worker.exitcode
        0
    """
    try:
        told = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    except (OSError, AttributeError, TypeError):
        told = False
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
    if not told:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def end_like_interrupted() -> None:
    """Let SIGTERM, which the time limit of a scheduler sends, end this run as Ctrl-C does: cleaning up behind it.

    The end of the launcher that started this process (``accelerate launch``, torchrun) counts as one. To be called once by a
    command, in its main thread; elsewhere, or where somebody else handles the signal, nothing changes.

    Examples:
        >>> end_like_interrupted()
        >>> signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        False
        >>> _ = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)
        parent = os.getppid()
        if _is_launcher(parent):
            threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of the memory that it frees, for the next arrays of that size.

    glibc gives a freed array of some megabytes back to the kernel, which clears each of its pages anew for the next one: a
    third of the time of a small convolutional network on a CPU. To be called by a command that is not the user's own program.

    Returns:
        Whether the C library could be told; elsewhere than on glibc nothing changes.

    Examples:
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    told = [mallopt(option, size) == 1 for option, size in _KEPT.items()]
    return all(told)


def give_back_freed_memory() -> bool:
    """Give the kernel all that this process has freed and keeps, as after the last batch of a loop (see `keep_freed_memory`).

    Without it each thread keeps what its largest step took, and the peak of a run is the sum over its steps.

    Returns:
        Whether anything was given back; False too elsewhere than on glibc.

    Examples:
        >>> give_back_freed_memory() in (True, False)
        True
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError, TypeError):
        return False


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # without words, so that whoever catches it says how to go on


def _is_launcher(parent: int) -> bool:
    """Tell whether the parent is a launcher, which is told from a shell by what it says of itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    try:
        words = os.fsdecode(Path(f"/proc/{parent}/cmdline").read_bytes()).split("\0")
        return any(Path(word).name == "accelerate" for word in words)
    except OSError:  # not on Linux, or it has ended
        return False


def _end_after(parent: int) -> None:
    """End this process once its launcher has ended: as by SIGTERM, and hard if that does not help, as within a collective."""
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os._exit(1)
