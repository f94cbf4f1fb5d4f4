"""Runs a script against tests/hub_server.py in a process of its own: the Hub's address is read once, at import."""

import json
import subprocess
from pathlib import Path
from typing import Any

from hub_server import HubServer
from scripts import run_script


def run_client(
    server: HubServer, home: Path, script: str, *arguments: Any, token: str | None = "hf_me",
    temporary: Path | None = None, **options: Any,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run a script as a client of the server, from the folder `home`, which holds its caches too.

    Args:
        server: The Hub.
        home: Working folder of the process.
        script: Python.
        *arguments: Its ``sys.argv[1:]``.
        token: Token of the user.
        temporary: Its folder for temporary files.
        **options: Of `run_script`.

    Returns:
        The finished process; its output as text.
    """
    environment = server.environment(home, token) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_DATASETS_CACHE": str(home / "datasets"), "HF_MODULES_CACHE": str(home / "modules")}
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    return run_script(script, *arguments, folder=home, environment=environment, **options)


def answer_of(server: HubServer, home: Path, script: str, *arguments: Any, **options: Any) -> Any:
    """What the script printed as its last line, which is JSON."""
    return json.loads(run_client(server, home, script, *arguments, **options).stdout.splitlines()[-1])
