"""Several processes of one test, as under torchrun, each a fork of one process that has imported everything.

A process that imports torch and transformers by itself takes ten seconds of a core. The one that is forked from is clean: it
has imported, and run nothing. Tests of the launchers themselves are in test_training_scripts.py.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing

_IMPORTED = ["delst_hf.pretraining.run", "delst_hf.evaluation.embed", "transformers.trainer", "accelerate", "datasets"]
_IMPORTED += ["peft", "sklearn.linear_model", "delst_hf.report.drawing", "matplotlib.pyplot", "pytest", "conftest"]


def in_ranks(function: Callable[..., None], *arguments: Any, ranks: int = 2) -> None:
    """Call ``function(rank, *arguments)`` in as many processes, which find each other by the environment.

    A function that trains leaves its process group to the end of the process: destroyed while DDP still holds it, the group may
    wait for a thread that waits for Python's lock, which it holds itself.

    Args:
        function: A function of a module.
        *arguments: What pickle takes.
        ranks: How many processes.

    Raises:
        torch.multiprocessing.ProcessRaisedException: One of them failed; with its traceback.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A fork has the environment that the first one was started with.
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    torch.multiprocessing.start_processes(
        _work_of_one, (function, arguments, environment), nprocs=ranks, start_method="forkserver"
    )


def _work_of_one(rank: int, function: Callable[..., None], arguments: tuple, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    function(rank, *arguments)
