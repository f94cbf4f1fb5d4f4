"""The names of slides and patients, compared before the first slide is read."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from .slide import Slide, check_slide_id
from .splits import SplitRequest, plan_split

Slides = Iterable[Slide | Callable[[], Slide]]


def check_slide_names(slides: Slides) -> Slides:
    """Compare the names of slides as far as they are known before reading, and hand the slides back.

    Args:
        slides: a sequence is looked at; a generator is left alone, since looking would read its slides.

    Raises:
        ValueError: two slides of one name, or of names that differ in case alone: some disks hold one file for both.
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
            same = (
                "have one name" if other == name else "have names that differ in capitals alone, one file on many disks"
            )
            raise ValueError(
                f"slide_id {name!r} is given twice: {name!r} of {source} and {other!r} of {place} {same}. Give each its own "
                "(--slide-id A,B)."
            )
        known[name.casefold()] = (name, source)
    return slides


def check_split_of_named(slides: Slides, request: SplitRequest) -> None:
    """Refuse a split that cannot be, before the hours that reading takes, where all slides and patients are named beforehand.

    Args:
        slides: As in `check_slide_names`.
        request: The split.

    Raises:
        ValueError: As `plan_split`: a patient on two sides, too few patients or slides.
    """
    if not isinstance(slides, Sequence):
        return
    # Of these only reading tells if a slide has an image.
    readers = [slide for slide in slides if isinstance(slide, partial)]
    if any(reader.keywords.get("without_image") or None in reader.args for reader in readers):
        return
    # Slides without an image are in no split that is asked for.
    slides = [slide for slide in slides if not (isinstance(slide, Slide) and slide.image is None)]
    asked = {*request.test_slides, *request.validation_slides}
    named = [_told(slide)[:2] for slide in slides]
    if request.by == "patient" and not asked:  # names of slides do not matter
        named = [(slide or f"slide {number}", patient) for number, (slide, patient) in enumerate(named)]
    # A reader may spell a name anew; what that comes to is seen after reading.
    if all(slide and patient for slide, patient in named) and asked <= {slide for slide, _ in named}:
        plan_split(named, request)


def _told(slide: Any) -> tuple[str, str, str]:
    """Return the name and the patient of a slide, "" where only reading tells them, and where the slide is from."""
    if isinstance(slide, Slide):
        return slide.slide_id, slide.patient_id, slide.source or "memory"
    if not isinstance(slide, partial):
        return "", "", ""
    options = slide.keywords
    named = next((options[name] for name in ("slide_id", "section", "sample", "slide") if options.get(name)), "")
    return str(named), str(options.get("patient_id") or ""), " with ".join(map(str, slide.args)) or str(named)
