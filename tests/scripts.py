"""Scripts in processes of their own, each a fork of one process (prepared.py) that has imported what takes long.

A process that imports torch and its friends by itself takes seconds of a core, and a script that needs an environment of its
own, or modules that nobody has imported before it, needs no other Python.
"""

import atexit
import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from faults import FaultServer

ROOT = Path(__file__).resolve().parents[1]

# Put before a script: afterwards the package cannot be imported, as on a machine where it was never installed.
WITHOUT_THE_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "delst_hf":
            raise ModuleNotFoundError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
try:
    import delst_hf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("delst_hf could be imported: the test would be blind")
"""


@functools.cache
def _prepared() -> FaultServer:
    """The process that scripts are forks of; it ends with this one."""
    server = FaultServer("prepared", {"OMP_NUM_THREADS": "1"})
    atexit.register(server.__exit__)
    return server


def run_script(
    script: str,
    *arguments: Any,
    folder: Path = ROOT,
    environment: dict[str, str] | None = None,
    check: bool = True,
    without_package: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end.

    Args:
        script: Python.
        *arguments: Its ``sys.argv[1:]``.
        folder: Its working folder.
        environment: Variables that it has beside those of this process.
        check: Fail when the script does.
        without_package: Hide this package from it.

    Returns:
        The finished process; its output as text.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})}
    if without_package:
        variables["PYTHONPATH"] = ""
        script = WITHOUT_THE_PACKAGE + script
    words = [script, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        files = {"folder": str(folder), "out": str(out), "err": str(err)}
        status = _prepared().run("run_script", *words, environment=variables, **files)
        result = subprocess.CompletedProcess(words, status, out.read_text("utf-8"), err.read_text("utf-8"))
    if check and result.returncode:
        raise AssertionError(f"exit status {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return result
