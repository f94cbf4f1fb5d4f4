"""End processes with the run that they work for, and control how they keep freed memory."""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Options of glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD.
_KEPT = {-1: 2**30, -3: 2**30}
_GRACE = 20.0  # seconds to clean up
_LOOKS = 1.0  # seconds between two checks of the parent, where the kernel does not signal its end


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, for whatever reason; a worker calls it first.

    Linux kills the process; elsewhere a thread checks the parent once a second.

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
    if os.getppid() != parent:  # the parent died before the call above
        os._exit(1)
    if not told:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def end_like_interrupted() -> None:
    """Make SIGTERM, which schedulers send at a time limit, end this run as Ctrl-C does, with its clean-up.

    The end of the launcher that started this process (``accelerate launch``, torchrun) has the same effect. A command calls
    this once, in its main thread; in another thread, or if the signal already has a handler, nothing changes.

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

    By default glibc returns a freed array of some megabytes to the kernel, which clears every page again for the next array: a
    third of the time of a small convolutional network on a CPU. Only commands of this package call it, not user programs.

    Returns:
        Whether the C library accepted the options; without glibc nothing changes.

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
    """Return kept freed memory to the kernel, as after the last batch of a loop (see `keep_freed_memory`).

    Otherwise each thread keeps the memory of its largest step, and the peak of a run is the sum over its steps.

    Returns:
        Whether any memory was returned; False without glibc.

    Examples:
        >>> give_back_freed_memory() in (True, False)
        True
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError, TypeError):
        return False


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # without a message: the caller that catches it explains how to resume


def _is_launcher(parent: int) -> bool:
    """Tell whether the parent is a launcher, by its environment variable or its command line, and not a shell."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    try:
        words = os.fsdecode(Path(f"/proc/{parent}/cmdline").read_bytes()).split("\0")
        return any(Path(word).name == "accelerate" for word in words)
    except OSError:  # not on Linux, or it has ended
        return False


def _end_after(parent: int) -> None:
    """End this process once its launcher has ended: by SIGTERM, and after a grace period by force, as within a collective."""
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os._exit(1)
