"""What a run was: its hyper-parameters, command, versions and hardware, and the form of that which may be published."""

import dataclasses
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

TRAINING_RECORD = "training.json"

# What says where things lie or how the run is watched, and not what is learned.
_NOT_LEARNED = re.compile(
    "dataset$|output_dir|logging|report_to|run_name|hub|push|save|token|resume|tqdm|dataloader|do_|overwrite"
)


def hyperparameters(*parts: Any) -> dict[str, Any]:
    """What a run was set to: every value of dataclasses that differs from its default, and all of a class's own fields.

    Args:
        *parts: Instances of `DataArguments`, `ModelArguments`, ``DelstTrainingArguments``.
    """
    found = {}
    for part in parts:
        own = vars(type(part)).get("__annotations__", {})
        for one in dataclasses.fields(part):
            value = getattr(part, one.name)
            default = one.default_factory() if callable(one.default_factory) else one.default
            if _NOT_LEARNED.search(one.name) or value is None or (one.name not in own and value == default):
                continue
            value = getattr(value, "value", value)
            found[one.name] = value if isinstance(value, int | float | str | bool) else str(value)
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
