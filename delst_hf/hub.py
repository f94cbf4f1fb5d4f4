"""One complete checkpoint folder: weights, configuration, processor with its vocabulary, and the record of the training."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .atomic import complete_or_nothing
from .modeling_delst import DelstModel
from .processing_delst import DelstProcessor

TRAINING_RECORD = "training.json"


def save_checkpoint_folder(
    folder: str | os.PathLike, model: DelstModel, processor: DelstProcessor, training: dict[str, Any] | None = None
) -> Path:
    """Write everything that ``from_pretrained`` needs into one folder, which appears only when it is whole.

    Args:
        folder: Where to write; a folder that is there is replaced at the very end.
        model: The model.
        processor: Its processor.
        training: What the model was trained on and how (see `training_record`).

    Returns:
        The folder.
    """
    folder = Path(folder)
    with complete_or_nothing(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        if training is not None:
            (partial / TRAINING_RECORD).write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    return folder


def training_record(**facts: Any) -> dict[str, Any]:
    """Facts of a training run, with the versions and the command that made it.

    Args:
        **facts: Anything that JSON holds: slides, arguments, log history.
    """
    packages = ("delst-hf", "torch", "transformers", "datasets", "accelerate", "numpy")
    return {
        **facts,
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def read_training_record(folder: str | os.PathLike) -> dict[str, Any]:
    """The record saved with a checkpoint, empty where there is none."""
    path = Path(folder) / TRAINING_RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
