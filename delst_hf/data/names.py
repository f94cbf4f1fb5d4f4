"""The names of slides and patients, compared before the first slide is read."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from .slide import Slide, check_slide_id
from .splits import SplitRequest, plan_split

Slides = Iterable[Slide | Callable[[], Slide]]


def check_slide_names(slides: Slides) -> Slides:
    """Compare the names of slides that are known before reading, and return the slides.

    Args:
        slides: a sequence is checked; a generator is not, since that would read its slides.

    Raises:
        ValueError: two slides of one name, or with names that differ only in case: on some disks they are one file.
    """
    if not isinstance(slides, Sequence):
        return slides
    known: dict[str, tuple[str, str]] = {}
    for slide in slides:
        name, _, source = _told(slide)
        if isinstance(slide, partial) and slide.keywords.get("slide_id"):
            check_slide_id(name)
        if name and name.casefold() in known:
            other, place = known[name.casefold()]
            same = "have one name" if other == name else "have names that differ only in case, one file on many disks"
            raise ValueError(
                f"slide_id {name!r} is given twice: {name!r} of {source} and {other!r} of {place} {same}. Give each its own "
                "(--slide-id A,B)."
            )
        known[name.casefold()] = (name, source)
    return slides


def check_split_of_named(slides: Slides, request: SplitRequest) -> None:
    """Refuse an impossible split before slides are read for hours, if all slides and patients are known by name.

    Args:
        slides: As in `check_slide_names`.
        request: The split.

    Raises:
        ValueError: As `plan_split`: a patient in two splits, too few patients or slides.
    """
    if not isinstance(slides, Sequence):
        return
    # Whether slides of these readers have an image is known only after reading.
    readers = [slide for slide in slides if isinstance(slide, partial)]
    if any(reader.keywords.get("without_image") or None in reader.args for reader in readers):
        return
    # Slides without an image are in no requested split.
    slides = [slide for slide in slides if not (isinstance(slide, Slide) and slide.image is None)]
    asked = {*request.test_slides, *request.validation_slides}
    named = [_told(slide)[:2] for slide in slides]
    if request.by == "patient" and not asked:  # names of slides do not matter
        named = [(slide or f"slide {number}", patient) for number, (slide, patient) in enumerate(named)]
    # A reader may change the spelling of a name; then the split is checked after reading.
    if all(slide and patient for slide, patient in named) and asked <= {slide for slide, _ in named}:
        plan_split(named, request)


def _told(slide: Any) -> tuple[str, str, str]:
    """Return the name and the patient of a slide ("" if they are known only after reading), and its source."""
    if isinstance(slide, Slide):
        return slide.slide_id, slide.patient_id, slide.source or "memory"
    if not isinstance(slide, partial):
        return "", "", ""
    options = slide.keywords
    named = next((options[name] for name in ("slide_id", "section", "sample", "slide") if options.get(name)), "")
    return str(named), str(options.get("patient_id") or ""), " with ".join(map(str, slide.args)) or str(named)
