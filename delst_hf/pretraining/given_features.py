"""`--features`: a run on features that were computed elsewhere, in place of a backbone."""

from collections.abc import Sequence
from typing import Any

from ..data.patch_features import FeatureTable, join_features
from ..data.study import Study
from .arguments import DataArguments, DelstTrainingArguments


def with_features(
    study: Study, data: DataArguments, model: Any, training: DelstTrainingArguments, slides: Sequence[str]
) -> tuple[Study, FeatureTable]:
    """Return the spots of the slides that have features in ``--features``, and these features."""
    check_features_replace_a_backbone(model, training)
    # Slides that are split spot by spot hold validation spots too.
    return join_features(str(data.features), study, slides, data.features_patch_px)


def check_features_replace_a_backbone(model: Any, training: DelstTrainingArguments) -> None:
    """Refuse options of a backbone beside ``--features``: there is none.

    Raises:
        ValueError: If any is given; the message names them.
    """
    given = [
        name for name in ("vision", "vision_config", "init_from", "image_size") if getattr(model, name) is not None
    ]
    given += [name for name in ("lora", "cache_features") if getattr(training, name)]
    if given:
        raise ValueError(
            "--features trains on features that were computed elsewhere, without a backbone, so "
            f"{', '.join('--' + n for n in given)} would have no effect. Leave that out, or leave --features out."
        )
