"""One complete checkpoint folder: weights, configuration, processor, code, and the record of the training."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save

from .atomic import complete_or_nothing
from .configuration_delst import DelstConfig
from .modeling_delst import DelstPreTrainedModel
from .processing_delst import DelstProcessor

TRAINING_RECORD = "training.json"
RESULTS = "results.json"


def save_checkpoint_folder(
    folder: str | os.PathLike,
    model: DelstPreTrainedModel,
    processor: DelstProcessor,
    training: dict[str, Any] | None = None,
) -> Path:
    """Write everything that ``from_pretrained`` needs into one folder, which appears only when it is whole.

    Args:
        folder: Where to write; a folder that is there is replaced at the very end.
        model: The model; without its backbone where ``config.save_backbone`` is False.
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


def copy_checkpoint_folder(folder: str | os.PathLike, target: Path) -> None:
    """Copy what a repository of the Hub holds of a checkpoint, made complete and rid of what only this machine knows.

    Checkpoints of earlier versions get their code and ``auto_map``. Of absolute paths only the last part stays, and results
    lose their pictures, which are pieces of the slides.

    Args:
        folder: Written by `save_checkpoint_folder` or by ``save_pretrained``.
        target: An empty folder.
    """
    folder = Path(folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json"), *folder.glob("README.md")]:
        shutil.copyfile(path, target / path.name)
    DelstProcessor.from_pretrained(folder).save_pretrained(target)
    config = DelstConfig.from_pretrained(folder)
    vision_config: Any = config.vision_config
    vision_config._name_or_path = os.path.basename(vision_config._name_or_path.rstrip("/"))
    model_class = checkpoint_class(config)
    custom_object_save(model_class.__new__(model_class), target, config)  # type: ignore[arg-type]
    config.save_pretrained(target)
    for name in (TRAINING_RECORD, RESULTS):
        if (folder / name).is_file():
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            (target / name).write_text(json.dumps(public_record(record), indent=1) + "\n", encoding="utf-8")


def checkpoint_class(config: DelstConfig) -> type[DelstPreTrainedModel]:
    """The class that a checkpoint was saved from.

    Raises:
        ValueError: If it is none of this package.
    """
    name = (config.architectures or ["DelstModel"])[0]
    found: Any = getattr(sys.modules[__package__], name, None)
    if not (isinstance(found, type) and issubclass(found, DelstPreTrainedModel)):
        raise ValueError(f"The checkpoint was saved from {name!r}, which is no model of this package.")
    return found


def public_record(value: Any) -> Any:
    """A record without pictures, and of absolute paths only the last part."""
    if isinstance(value, Mapping):
        return {key: public_record(item) for key, item in value.items() if key != "pictures"}
    if isinstance(value, list):
        return [public_record(item) for item in value]
    return os.path.basename(value.rstrip("/")) if isinstance(value, str) and os.path.isabs(value) else value


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


def hardware() -> str:
    """This machine in words: its GPUs, or its processor and the number of cores."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores, no GPU"


def read_training_record(folder: str | os.PathLike) -> dict[str, Any]:
    """The record saved with a checkpoint, empty where there is none."""
    path = Path(folder) / TRAINING_RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
