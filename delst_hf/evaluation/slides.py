"""Choose the slides to score and the slides to fit probes on: by the split of the dataset, unless slides are named."""

import logging
from collections.abc import Sequence

from ..data.study import Study

logger = logging.getLogger(__name__)


def choose_slides(
    study: Study, trained: Sequence[str], train_slides: Sequence[str] = (), test_slides: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Choose slides to fit probes on and slides to score.

    Unless slides are named, those of the split "test" are scored or, where nothing is held out, all that the checkpoint has not
    seen, without other sections of patients that it has seen. Probes are fitted on the slides of the pretraining or, without
    these, on the split "train". Departures from the split are logged.

    Args:
        study: The dataset.
        trained: Slides that the checkpoint was trained on; empty for a plain backbone.
        train_slides: Slides to fit the probes on, if named.
        test_slides: Slides to score, if named.

    Returns:
        The slides to fit on, perhaps none, and the slides to score.

    Raises:
        ValueError: If a slide is not in the dataset, or none is left to score.
    """
    study.check_images([*train_slides, *test_slides])
    tests = list(dict.fromkeys(test_slides)) or _unseen(study, trained, train_slides)
    fitted = list(dict.fromkeys(train_slides)) or _known(study, trained, tests)
    _say_departures(study, trained, fitted, tests)
    return fitted, tests


def _unseen(study: Study, trained: Sequence[str], train_slides: Sequence[str]) -> list[str]:
    """Return the unseen slides of the split "test" or, where nothing is held out, all unseen slides of unseen patients."""
    own, seen = study.split_of_slide, {*trained, *train_slides}
    patients = study.patients([slide for slide in study.slide_ids if slide in seen])
    unseen = [slide for slide in study.paired_slides if slide not in seen]
    held_out = [slide for slide in unseen if own[slide] == "test"]
    if held_out:
        return held_out
    others = [slide for slide in unseen if not study.patients([slide]) & patients]
    if not others:
        near = f" ({unseen} are other sections of the same patients)" if unseen else ""
        raise ValueError(
            f"No slide is left to score: the dataset holds {study.slide_ids}, and probes or pretraining have seen all of its "
            f"patients{near}. Evaluate on another dataset, or name slides with --test-slides; for slides that were trained on "
            "--allow-seen-slides is needed too."
        )
    left_out = [slide for slide in unseen if slide not in others]
    if left_out:
        logger.warning(
            "Not scored: %s, other sections of patients that were trained on. Name them with --test-slides to score them.",
            ", ".join(left_out),
        )
    return others


def _known(study: Study, trained: Sequence[str], tests: Sequence[str]) -> list[str]:
    """Return the slides of the pretraining or, without these, of the split "train", except those that are scored."""
    own = study.split_of_slide
    pretrained = [slide for slide in trained if slide in study.paired_slides and slide not in tests]
    training = [slide for slide in study.slide_ids if own[slide] == "train" and slide not in tests]
    return pretrained or training


def _say_departures(study: Study, trained: Sequence[str], fitted: Sequence[str], tests: Sequence[str]) -> None:
    own = study.split_of_slide
    departing = [slide for slide in fitted if own[slide] in ("validation", "test")]
    departing += [slide for slide in tests if own[slide] == "train" and study.is_split]
    if departing:
        logger.warning(
            "Slides used against the split of the dataset: %s. Probes are fitted on: %s. Scored: %s.",
            ", ".join(departing), ", ".join(fitted) or "none", ", ".join(tests),
        )  # fmt: skip
    patients = study.patients([slide for slide in trained if slide in own])
    near = [slide for slide in tests if study.patients([slide]) & patients and slide not in trained]
    if near:
        logger.warning(
            "%s: other sections of patients that were trained on. Sections of one patient are nearly copies, so their scores "
            "are too good; do not report them as scores on other patients.",
            ", ".join(near),
        )
