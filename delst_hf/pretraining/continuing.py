"""`--init_from`: training continued from a DELST checkpoint, on other slides, with new genes, or by other losses."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import reading
from ..hub.checksums import check_checksums
from ..model.configuration_delst import DelstConfig
from ..model.modeling_delst import DelstModel
from ..model.processing_delst import DelstProcessor
from ..record import TRAINING_RECORD, check_patch_size, find_training_record
from .arguments import DataArguments, split_names

logger = logging.getLogger(__name__)

# Options that may change for existing weights: the losses, and what is trained and saved of the backbone.
_MAY_CHANGE = ("cross_entailment_weight", "intra_entailment_weight", "cross_parent", "intra_parent", "intra_min_level_ratio",
               "min_radius", "entailment", "radius_floor", "cross_aperture_scale", "intra_aperture_scale",
               "freeze_batch_norm", "save_backbone")  # fmt: skip


def continue_checkpoint(
    model: Any, vocabulary: Sequence[str], patch_um: Iterable[float], patch_px: Iterable[int] = ()
) -> tuple[DelstModel, DelstProcessor, dict[str, Any]]:
    """Load a checkpoint to train it further; genes are matched by name, and new ones are added at the end.

    Args:
        model: `ModelArguments` with ``init_from``.
        vocabulary: Genes chosen on the new training slides.
        patch_um: Sides of the new patches in micrometres.
        patch_px: Their sides in pixels.

    Returns:
        The model, its processor with the joined vocabulary, and the training record of the checkpoint.

    Raises:
        ValueError: If an option would need other weights, no gene is known, the patches are of another size, or the checkpoint
            does not match its checksums.
    """
    advice = "Give the folder model/ of an earlier run, or the id of a DELST checkpoint on the Hub."
    with reading(model.init_from, "checkpoint", advice):
        return _continued(model, vocabulary, patch_um, patch_px)


def _continued(
    model: Any, vocabulary: Sequence[str], patch_um: Iterable[float], patch_px: Iterable[int]
) -> tuple[DelstModel, DelstProcessor, dict[str, Any]]:
    folder = str(model.init_from)
    check_checksums(folder)
    config = DelstConfig.from_pretrained(folder)
    changes = _changes(model, config)
    record = find_training_record(folder)
    if not record:
        logger.warning(
            "%s has no %s: the slides and patches that it was trained on are unknown.", folder, TRAINING_RECORD
        )
    check_patch_size(record, patch_um, folder, patch_px)
    for name, value in changes.items():
        setattr(config, name, value)
    network = DelstModel.from_pretrained(folder, config=config)
    processor = DelstProcessor.from_pretrained(folder)
    extractor = processor.feature_extractor
    known = len(set(vocabulary) & set(extractor.vocabulary))
    if not known:
        raise ValueError(
            f"{folder} knows none of the {len(vocabulary)} genes that were chosen here, such as {', '.join(vocabulary[:3])}: "
            f"it reads {', '.join(extractor.vocabulary[:3])}. The species or the kind of names (symbols, Ensembl ids) "
            "differs: prepare the data with the same, or train from the start without --init_from."
        )
    added = extractor.add_genes(vocabulary)
    network.resize_gene_embeddings(len(extractor.vocabulary))
    logger.info(
        "Continues %s: %d of its genes are in the data's vocabulary, %d genes are added, now %d.",
        folder, known, added, len(extractor.vocabulary),
    )  # fmt: skip
    return network, processor, record


def check_held_out(data: DataArguments, before: Mapping[str, Any], validation_slides: Sequence[str]) -> None:
    """Refuse held-out slides that the continued checkpoint was trained on, if its dataset has the same name."""
    if before.get("dataset") != os.path.basename(os.path.normpath(data.dataset)):
        return
    seen = [slide for slide in [*validation_slides, *split_names(data.test_slides)] if slide in before["train_slides"]]
    if seen:
        raise ValueError(
            f"The checkpoint of --init_from was trained on the held-out slides {seen}, so scores there would be worthless. "
            "Hold out others."
        )


def _changes(model: Any, config: DelstConfig) -> dict[str, Any]:
    """Return options set to other values than their defaults, checked against the checkpoint."""
    fixed: list[str] = []
    changes: dict[str, Any] = {}
    for one in dataclasses.fields(model):
        value, name = getattr(model, one.name), one.name
        if name == "init_from" or value == one.default or value is None:
            continue
        if name in _MAY_CHANGE:
            changes[name] = value
        elif name in ("vision", "vision_config", "image_size", "stain_normalization"):
            fixed.append(f"--{name}")
        else:
            gene: Any = config.gene_config
            saved = getattr(gene, name.removeprefix("gene_")) if name.startswith("gene_") else getattr(config, name)
            if saved != value:
                fixed.append(f"--{name} {value} (the checkpoint has {saved})")
    if fixed:
        raise ValueError(
            f"--init_from continues the weights of {model.init_from}, which {', '.join(fixed)} would not fit. Leave that out, "
            f"or train from the start without --init_from. Allowed with it: --{', --'.join(_MAY_CHANGE)}."
        )
    return changes
