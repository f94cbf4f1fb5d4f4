"""What tests/test_torture_commands.py runs in forks, kills and runs twice at once: commands of a user."""

import os
import sys
from functools import partial
from pathlib import Path

import anndata  # noqa: F401
import datasets  # noqa: F401
import optuna  # noqa: F401
import sklearn.cluster
import sklearn.linear_model  # noqa: F401
import torch
import transformers  # noqa: F401
from torture_work import small_slide

import delst_hf.commands.demo
import delst_hf.commands.evaluate
import delst_hf.commands.hub
import delst_hf.commands.predict
import delst_hf.commands.report
import delst_hf.data.toy
import delst_hf.data.vocabulary
import delst_hf.evaluation.embedding_files
import delst_hf.evaluation.protocols
import delst_hf.evaluation.run
import delst_hf.hub.card
import delst_hf.prediction.annotate
import delst_hf.prediction.fit
import delst_hf.prediction.predict
import delst_hf.prediction.retrieve
import delst_hf.pretraining.finetune
import delst_hf.pretraining.search
import delst_hf.pretraining.trainer
import delst_hf.report.page
from delst_hf.cli import main
from delst_hf.errors import run_script

SCRIPTS = {
    "pretrain": delst_hf.pretraining.run.main,
    "finetune": delst_hf.pretraining.finetune.main,
    "search": delst_hf.pretraining.search.main,
}

torch.set_num_threads(1)


def command(said, *words):
    """Run a command; what it says goes to the file `said`, its process id to `said`.pid."""
    Path(f"{said}.pid").write_text(str(os.getpid()))
    status = _run(said, words)
    if status == 2:
        raise FileExistsError
    if status:
        raise SystemExit(status)


def twice(folder, *words):
    """Run a command in two processes at once; what they say goes to FOLDER/0 and FOLDER/1, their status to the last line."""
    children = []
    for number in "01":
        child = os.fork()
        if child == 0:
            status = 70
            try:
                status = _run(f"{folder}/{number}", words)
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    Path(folder, "statuses").write_text(" ".join(map(str, statuses)))


def _run(said, words):
    with open(said, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if words[:2] == ("prepare", "toy"):
        delst_hf.data.toy.make_toy_slide = small_slide
    if words[0] in SCRIPTS:
        status = run_script(partial(SCRIPTS[words[0]], list(words[1:])), f"{words[0]}.py")
    else:
        status = main(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    return status
