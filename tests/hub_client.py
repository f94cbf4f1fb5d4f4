"""Runs a script against tests/hub_server.py in a process of its own: the Hub's address is read once, at import.

Each is a fork of one process, that of hub_script.py, which has imported what takes long and does not read the address.
"""

import atexit
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from faults import FaultServer
from hub_server import HubServer

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
    """The process that clients are forks of; it ends with this one."""
    server = FaultServer("hub_script", {"OMP_NUM_THREADS": "1"})
    atexit.register(server.__exit__)
    return server


def run_client(
    server: HubServer,
    home: Path,
    script: str,
    *arguments: Any,
    token: str | None = "hf_me",
    check: bool = True,
    without_package: bool = False,
    temporary: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script as a client of the server, from the folder `home`, which holds its caches too.

    Args:
        server: The Hub.
        home: Working folder of the process.
        script: Python.
        *arguments: Its ``sys.argv[1:]``.
        token: Token of the user.
        check: Fail when the script does.
        without_package: Hide this package from it.
        temporary: Its folder for temporary files.

    Returns:
        The finished process; its output as text.
    """
    caches = {"HF_DATASETS_CACHE": str(home / "datasets"), "HF_MODULES_CACHE": str(home / "modules")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **server.environment(home, token), **caches}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    if without_package:
        environment["PYTHONPATH"] = ""
        script = WITHOUT_THE_PACKAGE + script
    words = [script, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        status = _prepared().run(
            "run_script", *words, home=str(home), environment=environment, out=str(out), err=str(err)
        )
        result = subprocess.CompletedProcess(words, status, out.read_text("utf-8"), err.read_text("utf-8"))
    if check and result.returncode:
        raise AssertionError(f"exit status {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return result


def answer_of(server: HubServer, home: Path, script: str, *arguments: Any, **options: Any) -> Any:
    """What the script printed as its last line, which is JSON."""
    return json.loads(run_client(server, home, script, *arguments, **options).stdout.splitlines()[-1])
