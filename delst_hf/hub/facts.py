"""Facts that a card states: those of a dataset folder, and those that are given by hand where a record lacks them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.study import Study

FACTS = {
    "license": ("--license", "license of the weights as the Hub writes it, such as apache-2.0: the stricter "
                             "of the backbone's and the data's"),
    "base_model": ("--base-model", "the backbone's id on the Hub, such as google/vit-base-patch16-224, where it was "
                                   "trained from a local folder"),
    "base_model_license": ("--base-model-license", "license of the backbone"),
    "dataset": ("--dataset-name", "name of the data and where they come from"),
    "dataset_license": ("--dataset-license", "license of the data"),
    "species": ("--species", "species of the genes (or --data DIR)"),
    "patch_um": ("--patch-um", "side of a patch, um (or --data DIR)"),
    "patch_px": ("--patch-px", "side of a patch as stored, px (or --data DIR)"),
    "train_data": ("--train-data", "what it was trained on, in words (or --data DIR, the dataset folder)"),
    "hardware": ("--hardware", "machine it was trained on, such as '1 x NVIDIA A100'"),
    "training_time": ("--training-time", "how long the training took, such as '12 minutes'"),
    "hyperparameters": ("--hyperparameters", "YAML file of the hyper-parameters"),
    "results": ("--results", "JSON of `delst evaluate MODEL DATASET --output` (default: results.json in MODEL_DIR)"),
}  # fmt: skip
# Those whose option names a file.
FILES = ("hyperparameters", "results")


def data_facts(path: str | os.PathLike, study: Study, slides: Sequence[str]) -> dict[str, Any]:
    """Facts of a dataset and of the slides that a model was trained on.

    Args:
        path: The folder, or the id of a dataset of the Hub.
        study: The same, opened.
        slides: The slides that were trained on.

    Returns:
        ``technology``, ``tissue``, ``species``, ``patch_um`` and ``patch_px`` of those slides in words; ``patients`` of all
        slides; ``license`` and ``fingerprint`` of a local folder.
    """
    chosen = study.slides[study.slides["slide_id"].isin(list(slides))]

    def words(column: str) -> str:
        return ", ".join(dict.fromkeys(str(value) or "unknown" for value in chosen[column]))

    readme = Path(path) / "README.md"
    header = readme.read_text(encoding="utf-8").split("\n---", 1)[0] if readme.is_file() else ""
    license = re.search(r"^license_name: (.+)$", header, re.MULTILINE) or re.search(
        r"^license: (.+)$", header, re.MULTILINE
    )
    content = re.search(r"content ([0-9a-f]{16})", header)
    return {
        **{name: words(name) for name in ("technology", "tissue", "species")},
        "patch_um": ", ".join(dict.fromkeys(f"{value:g}" for value in chosen["patch_um"])),
        "patch_px": ", ".join(dict.fromkeys(f"{value:d}" for value in chosen["patch_px"])),
        "patients": dict(zip(study.slides["slide_id"], study.slides["patient_id"], strict=True)),
        "license": license[1].strip("'\"") if license else None,
        "fingerprint": content[1] if content else None,
    }
