"""A script as a client of the Hub: run in a fork of a process that has imported this file (see hub_client.py)."""

import importlib
import os
import sys
import traceback

# What scripts need and takes seconds to import. None of it reads the Hub's address: huggingface_hub does, and what imports it.
for _name in (
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "pandas",
    "pyarrow.dataset",
    "scipy.stats",
    "sklearn.linear_model",
    "anndata",
):
    importlib.import_module(_name)
for _name in ("matplotlib.pyplot", "geoopt", "imagecodecs", "tifffile", "PIL.Image"):
    importlib.import_module(_name)
if "huggingface_hub" in sys.modules:
    raise ImportError("something imports huggingface_hub here: every client would ask the Hub of the first")


def run_script(script: str, *arguments: str, home: str, environment: dict[str, str], out: str, err: str) -> None:
    """Run a script as ``python -c`` does, and end the process with its status, or with 1 after its traceback.

    Args:
        script: Python.
        *arguments: Its ``sys.argv[1:]``.
        home: Its working folder.
        environment: All of its environment variables.
        out: File for what it prints.
        err: File for what it prints to standard error.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(home)
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_CREAT), descriptor)
    sys.argv = ["-c", *arguments]
    tests = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path not in (tests, os.path.dirname(tests))]
    sys.path[1:1] = filter(None, environment["PYTHONPATH"].split(os.pathsep))
    try:
        exec(compile(script, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as end:
        if end.code is not None:
            if not isinstance(end.code, int):
                print(end.code, file=sys.stderr)
            raise SystemExit(end.code if isinstance(end.code, int) else 1) from None
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
