"""Processes that do not outlive the run they work for."""

import ctypes
import os
import signal
import threading
import time

_PR_SET_PDEATHSIG = 1
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

    To be called once by a command, in its main thread; elsewhere, or where somebody else handles the signal, nothing changes.

    Examples:
        >>> end_like_interrupted()
        >>> signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        False
        >>> _ = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # without words, so that whoever catches it says how to go on


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os._exit(1)
