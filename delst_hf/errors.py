"""The border between libraries and users: every error becomes one line with the file and the next step.

This package tells its users what is wrong by raising ValueError, KeyError, TypeError or OSError with complete sentences.
Libraries raise the same classes, and twenty others, with fragments: `KeyError: 'cells'`. So an error is known as ours by where
it was raised, not by its class (`is_told`). Files are read within `reading`, or by functions decorated with `reader`; both turn
a library's error into a sentence that names the file. Commands and scripts print `explain(error)`. `--debug` shows the cause.
"""

import difflib
import dis
import errno
import functools
import importlib
import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from .record import without_secrets

_PACKAGE = str(Path(__file__).parent) + os.sep
_Function = TypeVar("_Function", bound=Callable[..., Any])

INTERRUPTED, FAILED = 130, 2  # exit statuses
DAMAGED = "It is damaged, incomplete or of another kind: download or write it again."
# A library that loads its parts lazily hides why one of them did not load.
_NOT_LOADED = (
    "A package did not load; it is broken, or memory ran out: install it again, or use a machine with more memory."
)
_LONGEST = 300
# Errors whose text says enough; for others the class is named too.
_PLAIN_CLASSES = (ValueError, OSError, ImportError)
_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Words by which threads, torch, numpy, C++ and shared libraries report that memory ran out, other than by a MemoryError.
_NO_MEMORY = (
    "can't start new thread",
    "failed to launch worker thread",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "bad_alloc",
    "failed to map segment",
    "could not create a primitive",  # oneDNN, like the next one
    "could not execute a primitive",
)
_OF_A_GPU = ("OutOfMemoryError", "RuntimeError", "AcceleratorError")
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
_NEXT_STEP = {
    errno.ENOENT: "Give the path of something that exists.",
    errno.EACCES: "Ask its owner for access, or choose another place.",
    errno.EPERM: "Ask its owner for access, or choose another place.",
    errno.EROFS: "The disk is read-only: choose another place.",
    errno.ENOTDIR: "A part of this path is a file and not a folder: correct it.",
    errno.EISDIR: "This is a folder; give a file.",
    errno.ENOSPC: "The disk is full: free some space, or write to another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or write to another disk.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n).",
}


def is_told(error: BaseException) -> bool:
    """Say whether an error was raised by a `raise` of this package, and so carries a message for the user.

    A `KeyError` that `mapping["x"]` raises within this package is a fault of the package, not a message.
    """
    if getattr(error, "told_to_user", False):
        return True
    trace = error.__traceback__
    if trace is None or " " not in str(error):
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    ours = code.co_filename.startswith(_PACKAGE) or trace.tb_frame.f_globals.get("__name__") == "__main__"
    return ours and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the system gave this process no more memory, whatever its class.

    >>> is_out_of_memory(RuntimeError("can't start new thread")), is_out_of_memory(RuntimeError("size mismatch"))
    (True, False)
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower()
    # Full static thread-local storage and a primitive that oneDNN lacks are other matters: more memory does not help.
    others = ("static tls", "primitive descriptor")
    return any(words in text for words in _NO_MEMORY) and not any(words in text for words in others)


def mark_told(error: BaseException) -> None:
    """Mark an error of ours for `is_told` before it is sent to another process, which loses the traceback."""
    error.told_to_user = is_told(error)  # type: ignore[attr-defined]


def said(error: BaseException) -> str:
    """Return the text of a library's error, on one line without a full stop, with its class where the text says little."""
    text = _one_line(str(error)).rstrip(" .:")
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    if isinstance(error, _PLAIN_CLASSES) and " " in text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def reading(path: object, what: str = "file", advice: str = DAMAGED) -> Iterator[None]:
    """Turn every error of a library into one sentence that names the file and the next step.

    Errors of this package, and errors of the file system that name their file or a full disk, pass unchanged.

    >>> with reading("spots.csv", "positions"):
    ...     {}["barcode"]
    Traceback (most recent call last):
    ValueError: cannot read the positions spots.csv: KeyError: 'barcode'. It is damaged, incomplete or of another kind: ...

    Args:
        path: The file that is read, for the message.
        what: Kind of file.
        advice: The next step, as a sentence.

    Raises:
        ValueError: In place of any other exception, which is its cause.
        MemoryError: In place of any error that means that memory ran out.
    """
    try:
        yield
    except Exception as error:
        if is_told(error):
            raise
        if is_out_of_memory(error):
            raise MemoryError(
                f"the {what} {path} needs more memory than there is ({said(error)}). If the file is as large as that, use a "
                "machine with more memory, a higher limit (ulimit -v), or fewer processes (--num-proc); if not, it is damaged: "
                "download or write it again."
            ) from error
        if isinstance(error, OSError) and (error.errno in _OUT_OF_ROOM or error.filename):
            raise
        if isinstance(error, ImportError):
            advice = _NOT_LOADED
        raise ValueError(f"cannot read the {what} {path}: {said(error)}. {advice}") from error


def reading_model(name: str) -> AbstractContextManager[None]:
    """Return `reading` for the folder of a model; errors about an id of the Hub pass unchanged."""
    return reading(name, "model") if os.path.isdir(name) else nullcontext()


def reader(function: _Function) -> _Function:
    """Run a function that reads a slide within `reading`, with its paths in the message; a decorator."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def told(*args: Any, **options: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **options}
        files = [str(value) for name, value in given.items() if _is_path(name, value)]
        with reading(" with ".join(files), "slide", f"{DAMAGED} --debug shows where it failed."):
            return function(*args, **options)

    return told  # type: ignore[return-value]


def explain(error: BaseException) -> str:
    """Return the one line that a user reads about an error, without tokens and passwords.

    >>> explain(FileNotFoundError(2, "No such file or directory", "slides.csv"))
    'slides.csv: No such file or directory. Give the path of something that exists.'
    """
    return without_secrets(_explained(error))


def _explained(error: BaseException) -> str:
    if is_told(error):
        # str() of a KeyError is the repr of its message.
        return _one_line(str(error.args[0] if isinstance(error, KeyError) and error.args else error))
    if is_out_of_memory(error):
        return (
            f"memory ran out{_place(error)} ({said(error)}). Use a machine with more memory, a higher limit (ulimit -v), "
            "smaller batches or patches, or fewer processes (--num-proc)."
        )
    if isinstance(error, ImportError):
        text = said(error)
        return f"{text}." if "pip install" in text else f"{text}. {_NOT_LOADED}"  # some libraries say it themselves
    if isinstance(error, OSError) and error.filename and error.errno:
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        return _one_line(f"{files}: {error.strerror}. {_NEXT_STEP.get(error.errno, 'Check the disk and the path.')}")
    if isinstance(error, OSError) and error.errno in _OUT_OF_ROOM:
        return _one_line(f"{error.strerror}. {_NEXT_STEP.get(error.errno, 'Write to another disk.')}")
    if "out of memory" in str(error) and type(error).__name__ in _OF_A_GPU:
        return (
            "the GPU's memory ran out. In training, lower --contrastive_micro_batch_size (it keeps all negatives of the "
            "batch of --per_device_train_batch_size), or set it to 64 if it is not given; else lower --batch-size."
        )
    return (
        f"{said(error)}{_place(error)}. This was not expected: a file of a kind that this program does not know, or a fault of "
        "the program. With --debug (delst --debug ...) the traceback is shown; please report it."
    )


def optional_library(name: str, advice: str) -> Any:
    """Import an optional library, or say how to install it.

    Raises:
        ImportError: With the advice, if it cannot be imported.

    >>> optional_library("json", "").dumps([])
    '[]'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(advice) from error


def did_you_mean(words: Iterable[str], known: Iterable[str]) -> str:
    """Return a question that suggests the nearest known names, whatever their case; "" where none is near.

    Names are quoted, except for options, whose dashes set them apart from the sentence.

    >>> did_you_mean(["retreival"], ["hest", "retrieval"])
    " Did you mean 'retrieval'?"
    >>> did_you_mean(["erbb2"], ["EPCAM", "ERBB2"])
    " Did you mean 'ERBB2'?"
    >>> did_you_mean(["--sede"], ["--seed"]), did_you_mean(["--model"], ["--help"])
    (' Did you mean --seed?', '')
    """
    names = {name.casefold().lstrip("-"): name for name in known}  # all options begin with dashes
    found = (difflib.get_close_matches(word.casefold().lstrip("-"), names, 1) for word in words)
    near = dict.fromkeys(names[name] for one in found for name in one)
    told = [name if name.startswith("--") else repr(name) for name in near]
    return f" Did you mean {', '.join(told)}?" if near else ""


def was_interrupted(error: BaseException) -> bool:
    """Say whether an error is an interruption: Python before 3.12 wraps one that comes while a class is made, as by an import.

    >>> was_interrupted(KeyboardInterrupt()), was_interrupted(RuntimeError())
    (True, False)
    """
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)


def run_script(main: Callable[[], Any], name: str, check: Callable[[], Any] | None = None) -> int:
    """Run the main function of a script as the `delst` command runs its own: errors are one line.

    Args:
        main: Function without arguments.
        name: Name of the script, for messages.
        check: Refuses what it can before libraries load, which takes seconds.

    Returns:
        The exit status: 0 when done, 2 for an error, 130 when interrupted.
    """
    # Only --debug without a value: `--debug underflow_overflow` is an option of transformers.
    debug = any(word == "--debug" and after.startswith("-") for word, after in pairwise([*sys.argv, "-"]))
    if debug:
        sys.argv.remove("--debug")
    try:
        if check is not None:
            check()
        with messages_on_stderr(debug, load=True):
            main()
    except (Exception, KeyboardInterrupt) as error:
        status = report_end(
            name, error, debug, "what was finished is complete. To continue: run the same command again."
        )
        launched = _launch_words()
        if launched and status == INTERRUPTED:
            print("A traceback that accelerate adds below is about its own launch only.", file=sys.stderr)
        elif launched and status == FAILED and not {"-q", "--quiet"}.intersection(launched):
            print(
                "What accelerate adds below is about its own launch; accelerate launch -q leaves it out.",
                file=sys.stderr,
            )
        return status
    return 0


def report_end(name: str, error: BaseException, debug: bool, when_interrupted: str) -> int:
    """Print in one line how an exception ended a program; with `debug` raise it instead, for its traceback.

    Args:
        name: Name of the program.
        error: The exception that `main` did not handle.
        debug: Whether the user asked for tracebacks.
        when_interrupted: What to say of an interruption without a message of its own.

    Returns:
        The exit status: `INTERRUPTED` for Ctrl-C, 141 where the reader of the output closed it (`| head`), else `FAILED`.
    """
    if was_interrupted(error):
        words = str(error) if isinstance(error, KeyboardInterrupt) else ""
        print(f"\n{name}: interrupted; {words or when_interrupted}", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # At its end Python would complain of text left in the buffer: discard it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # the status by which shells recognise a program that SIGPIPE ended
    if debug:
        sys.excepthook = show_traceback
        raise error
    print(f"{name}: error: {explain(error)}", file=sys.stderr)
    return FAILED


def _launch_words() -> list[str]:
    """Return the command of the `accelerate launch` that started this process; empty if none did."""
    import psutil

    try:
        words: list[str] = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # no parent, or one that may not be inspected
        return []
    return words if any("accelerate" in word for word in words[:3]) and "launch" in words else []


@contextmanager
def messages_on_stderr(debug: bool = False, load: bool = False) -> Iterator[None]:
    """Show this package's own messages on stderr, and with `debug` those of libraries too, which are silent otherwise.

    Only the first of several processes shows them. Settings are restored at the end.

    Args:
        debug: Show messages of libraries too.
        load: Load the libraries that will be needed, so that they can be silenced.
    """
    ours, handler = logging.getLogger("delst_hf"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    try:
        with nullcontext() if debug else _quiet_libraries(load):
            yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)


@contextmanager
def _quiet_libraries(load: bool) -> Iterator[None]:
    """Silence warnings, notes and the many progress bars of libraries; errors are still raised.

    Loaded libraries are silenced directly; those loaded later read it from the environment.
    """
    with ExitStack() as undo, warnings.catch_warnings():
        for name, value in _QUIET.items():
            if name not in os.environ:
                os.environ[name] = value
                undo.callback(os.environ.pop, name, None)
        warnings.filterwarnings("ignore")
        if load:
            importlib.import_module("datasets")
            importlib.import_module("transformers")
        if "transformers" in sys.modules:
            from transformers.utils import logging as told

            undo.callback(told.set_verbosity, told.get_verbosity())
            told.set_verbosity_error()
            if told.is_progress_bar_enabled():
                undo.callback(told.enable_progress_bar)
                told.disable_progress_bar()
        # It would log each retry without a network; the error at the end says the same.
        hub = logging.getLogger("huggingface_hub")
        undo.callback(hub.setLevel, hub.level)
        hub.setLevel(logging.ERROR)
        if "datasets" in sys.modules:
            from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

            if not are_progress_bars_disabled():
                undo.callback(enable_progress_bars)
                disable_progress_bars()
        yield


def _is_path(name: str, value: object) -> bool:
    return isinstance(value, Path) or (
        isinstance(value, str) and (name in ("path", "root", "sample") or os.path.exists(value))
    )


def _place(error: BaseException) -> str:
    """Return where in this package an error occurred: the last of our frames."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(_PACKAGE):
            place = f", in {code.co_name} of {Path(code.co_filename).name}"
        trace = trace.tb_next
    return place


def _one_line(text: str) -> str:
    """Return the text on one line; characters that do not print (controls, marks of direction) are written as escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))


def show_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print a traceback as Python does, without tokens and passwords; a ``sys.excepthook``."""
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
