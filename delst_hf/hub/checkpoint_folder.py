"""One complete checkpoint folder: weights, configuration, processor, code, the record of the training, and checksums."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from ..atomic.files import complete_or_nothing, write_text
from ..data.schema import sha256
from ..model.configuration_delst import DelstConfig
from ..model.modeling_delst import DelstModel, DelstPreTrainedModel
from ..model.processing_delst import DelstProcessor
from ..record import TRAINING_RECORD

CHECKSUMS = "checksums.json"
FORMAT = "delst-checkpoint-1"
WEIGHTS = "*.safetensors"
COVERED = (WEIGHTS, "*.safetensors.index.json", "config.json", "processor_config.json", TRAINING_RECORD)


def save_checkpoint_folder(
    folder: str | os.PathLike,
    model: DelstPreTrainedModel,
    processor: DelstProcessor,
    training: dict[str, Any] | None = None,
    *,
    replace: bool = True,
    card: Callable[[Path], str] | None = None,
) -> Path:
    """Write everything that ``from_pretrained`` needs into one folder, which appears only when it is complete.

    Args:
        folder: Folder to write. An existing checkpoint is replaced at the very end; anything else is refused.
        model: The model; it is saved without its backbone where ``config.save_backbone`` is False.
        processor: Its processor.
        training: What the model was trained on and how (see `training_record`).
        replace: Whether an existing checkpoint may be replaced.
        card: Returns the text of README.md, given the folder with all other files.

    Returns:
        The folder.

    Raises:
        ValueError: If a weight is not finite.
        FileExistsError: If the folder holds something that may not be replaced.

    Examples:
        >>> from delst_hf import DelstModel, DelstProcessor
        >>> model = DelstModel.from_pretrained("runs/toy/pretrain/model")
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> folder = save_checkpoint_folder("copy", model, processor, {"train_slides": ["toy_A1"]})
        >>> (folder / "model.safetensors").exists(), (folder / "training.json").exists()
        (True, True)
    """
    folder = Path(folder)
    check_finite(model)
    model.config.gene_config.vocabulary_hash = processor.feature_extractor.vocabulary_hash()
    with complete_or_nothing(folder, replace=replace, check=partial(_check_free, folder)) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        if training is not None:
            (new / TRAINING_RECORD).write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
        write_checksums(new)
        if card is not None:
            (new / "README.md").write_text(card(new), encoding="utf-8")
    return folder


def _check_free(folder: Path) -> None:
    """Refuse to replace anything but a checkpoint, also if it appeared during the run."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()):
        raise FileExistsError(
            f"{folder} holds something that is not a checkpoint, so it is left as it is and the model is not saved there. Move "
            "it away, or choose another output, and run the same command again."
        )


def write_checksums(folder: Path) -> None:
    """Write sizes and SHA-256 of weights, configuration, processor and record of a finished checkpoint folder."""
    paths = sorted({path for pattern in COVERED for path in folder.glob(pattern)})
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    write_text(folder / CHECKSUMS, json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n")


def check_finite(model: nn.Module, when: str = "") -> None:
    """Refuse to keep a model with weights that are not finite.

    Args:
        model: The model, or a part of it where it is sharded.
        when: Words for the message, such as ``"after step 12"``.

    Raises:
        ValueError: Naming the first of these weights.
    """
    wrong = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights are not finite{' ' if when else ''}{when}, {wrong[0]!r} first. Nothing is saved; earlier "
            "checkpoints stay. Lower --learning_rate, --vision_learning_rate, --scalar_learning_rate or --weight_decay, and "
            "train again."
        )


def check_finite_weights(folder: Path) -> None:
    """Refuse a checkpoint folder with weights that are not finite; they are read one by one.

    Raises:
        ValueError: Naming the first of these weights.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    raise ValueError(
                        f"{path} holds weights that are not finite, {name!r} first, so its predictions are not numbers. Do not "
                        "use or push it; train again with lower learning rates."
                    )


def checkpoint_class(config: DelstConfig) -> type[DelstPreTrainedModel]:
    """Return the class that a checkpoint was saved from.

    Raises:
        ValueError: If that class is not one of this package.
    """
    name = (config.architectures or ["DelstModel"])[0]
    from ..model.modeling_delst_heads import DelstForGeneExpressionPrediction, DelstForSpotClassification

    classes = (DelstModel, DelstForSpotClassification, DelstForGeneExpressionPrediction)
    found = {one.__name__: one for one in classes}.get(name)
    if found is None:
        raise ValueError(
            f"The checkpoint was saved from {name!r}, which is not a model of this package. Give a folder that it saved."
        )
    return found
