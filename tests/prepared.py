"""What a process has imported of which scripts.py makes a fork for every script, and the script in that fork."""

import os
import sys
import traceback

# What takes seconds. Nothing here may import huggingface_hub, which reads the Hub's address from the environment of the script,
# or this package, which some scripts do without. torch._dynamo imports Triton: its interpreter needs a Python of its own.
import anndata  # noqa: F401
import geoopt  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import pyarrow.dataset  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch._dynamo
import torch.distributed.checkpoint  # noqa: F401

if found := {"huggingface_hub", "delst_hf"} & set(sys.modules):
    raise ImportError(f"{sorted(found)} would be those of all scripts")


def run_script(script: str, *arguments: str, folder: str, environment: dict[str, str], out: str, err: str) -> None:
    """Run a script as ``python -c`` does, and end with its status, or with 1 after its traceback.

    Args:
        script: Python.
        *arguments: Its ``sys.argv[1:]``.
        folder: Its working folder.
        environment: All of its environment variables.
        out: File for what it prints.
        err: File for what it prints to standard error.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_CREAT), descriptor)
    sys.argv = ["-c", *arguments]
    tests = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path not in (tests, os.path.dirname(tests))]
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
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
