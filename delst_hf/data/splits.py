"""Split into train, validation and test by patient, by slide, or, only on request because neighbours leak, by spot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

from ..markup import Markdown, cell
from .schema import UNPAIRED

UNITS = ("patient", "slide", "spot")
ASSIGNED = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitRequest:
    """Request for a split of a dataset.

    Attributes:
        by: unit of the split: "patient", "slide" or "spot".
        test: share of patients, slides or spots for testing, 0 to 1.
        validation: share for validation.
        seed: equal seeds give equal splits.
        test_slides: slides to test on, in place of random ones.
        validation_slides: slides to validate on, in place of random ones.
    """

    by: str = "patient"
    test: float = 0.2
    validation: float = 0.0
    seed: int = 0
    test_slides: tuple[str, ...] = ()
    validation_slides: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise a ValueError for a request that cannot be fulfilled with any data."""
        if self.by not in UNITS:
            raise ValueError(f"split is {self.by!r}. Allowed: {', '.join(map(repr, UNITS))} (--split).")
        if not (0 <= self.test < 1 and 0 <= self.validation < 1 and 0 < self.test + self.validation < 1):
            raise ValueError(
                f"test {self.test:g} and validation {self.validation:g} must be 0 or more and leave something to train on. "
                "Allowed: 0 to 1, together more than 0 and less than 1 (--test-fraction, --validation-fraction)."
            )
        if self.by == "spot" and (self.test_slides or self.validation_slides):
            raise ValueError(
                "split='spot' draws spots of every slide, so slides cannot be named. Name none (--test-slides, "
                "--validation-slides), or split by 'slide' or 'patient' (--split)."
            )


@dataclass(frozen=True)
class SplitPlan:
    """The split of every slide, or the random split of spots, and its description for the card."""

    request: SplitRequest | None
    of_slide: Mapping[str, str] = field(default_factory=dict)
    unpaired: tuple[str, ...] = ()  # slides without an image, whatever the request

    @property
    def is_split(self) -> bool:
        """Whether there is more than the one split "train"."""
        return self.request is not None or bool(self.unpaired) or bool(set(self.of_slide.values()) - {"train"})

    def of(self, slide_id: str) -> str:
        """Return the split of a slide: "spot" where its spots are split one by one."""
        if slide_id in self.unpaired:
            return UNPAIRED
        drawn = self.request is not None and self.request.by == "spot"
        return "spot" if drawn else self.of_slide.get(slide_id, "train")

    def of_spots(self, slide_id: str, num_spots: int) -> np.ndarray:
        """Return the split of each spot of a slide (spots,), which does not depend on other slides."""
        request, own = self.request, self.of(slide_id)
        if request is None or own != "spot":
            return np.full(num_spots, own, dtype=object)
        order = np.random.default_rng([request.seed, crc32(slide_id.encode())]).permutation(num_spots)
        test, validation = round(request.test * num_spots), round(request.validation * num_spots)
        result = np.full(num_spots, "train", dtype=object)
        result[order[:test]] = "test"
        result[order[test : test + validation]] = "validation"
        return result

    def describe(self) -> Markdown:
        """Return a few sentences of Markdown for the dataset card; names of slides are escaped."""
        if self.unpaired:
            alone = Markdown(
                f"Slides without an image, whose spots train the gene side alone, are in the split `{UNPAIRED}`, including "
                f"those of held-out patients: {cell(', '.join(self.unpaired))}."
            )
            return (
                Markdown(f"{replace(self, unpaired=()).describe()} {alone}") if self.of_slide or self.request else alone
            )
        request = self.request
        slides_of = {
            name: [slide_id for slide_id, own in self.of_slide.items() if own == name] for name in (*ASSIGNED, "spot")
        }
        named = [f"{name}: {cell(', '.join(slides))}" for name, slides in slides_of.items() if slides]
        if request is None and self.is_split:
            return Markdown(f"Split like the folders that were merged into this one. {'; '.join(named)}.")
        if request is None:
            return Markdown(
                "The only split, `train`, holds all slides: split it by `slide_id` or `patient_id`, never by spot."
            )
        if request.by == "spot":
            return Markdown(
                f"Split by **spot** (seed {request.seed}; test {request.test:g}, validation {request.validation:g} of every "
                "slide): neighbouring spots of one section are in both splits, so test scores are too good."
            )
        drawn = (
            "slides named by the user" if request.test_slides or request.validation_slides else f"seed {request.seed}"
        )
        return Markdown(f"Split by **{request.by}** ({drawn}); no patient is in two splits. {'; '.join(named)}.")


def plan_split(slides: Sequence[tuple[str, str]], request: SplitRequest | None) -> SplitPlan:
    """Assign slides to splits.

    Args:
        slides: (slide_id, patient_id) of every slide.
        request: the request; None puts all slides into train.

    Raises:
        ValueError: too few patients or slides, unknown slides, or a patient in two splits.
    """
    if request is None:
        return SplitPlan(None, {slide_id: "train" for slide_id, _ in slides})
    request.check()
    if request.by == "spot":
        return SplitPlan(request)
    if request.test_slides or request.validation_slides:
        of_slide = _named(slides, request)
    else:
        units = [patient if request.by == "patient" else slide_id for slide_id, patient in slides]
        of_unit = _drawn(sorted(set(units)), request)
        of_slide = {slide_id: of_unit[unit] for (slide_id, _), unit in zip(slides, units, strict=True)}
    check_leak(slides, of_slide, request.by)
    return SplitPlan(request, of_slide)


def check_leak(slides: Sequence[tuple[str, str]], of_slide: Mapping[str, str], by: str) -> None:
    """Raise a ValueError if a patient's slides are in two splits."""
    where: dict[str, set[str]] = {}
    for slide_id, patient in slides:
        where.setdefault(patient, set()).add(of_slide[slide_id])
    torn = sorted(patient for patient, splits in where.items() if len(splits) > 1)
    if torn:
        raise ValueError(
            f"split={by!r} leaves patient {torn[0]!r} in {' and '.join(sorted(where[torn[0]]))} ({len(torn)} such patients). "
            "Neighbouring sections of one patient are nearly copies. Use split='patient' (--split patient), or accept the leak "
            "explicitly with split='spot' (--split spot)."
        )


def _named(slides: Sequence[tuple[str, str]], request: SplitRequest) -> dict[str, str]:
    known = [slide_id for slide_id, _ in slides]
    unknown = sorted({*request.test_slides, *request.validation_slides} - set(known))
    both = sorted(set(request.test_slides) & set(request.validation_slides))
    if unknown or both:
        raise ValueError(
            f"slides {unknown or both} are {'not in the data' if unknown else 'in both test and validation'}. Available: "
            f"{known}. Correct --test-slides or --validation-slides."
        )
    of_slide = dict.fromkeys(known, "train")
    of_slide |= dict.fromkeys(request.validation_slides, "validation") | dict.fromkeys(request.test_slides, "test")
    if "train" not in of_slide.values():
        raise ValueError("no slide is left to train on. Name fewer slides for testing and validation.")
    return of_slide


def _drawn(units: Sequence[str], request: SplitRequest) -> dict[str, str]:
    test = max(1, round(request.test * len(units))) if request.test else 0
    validation = max(1, round(request.validation * len(units))) if request.validation else 0
    if test + validation >= len(units):
        raise ValueError(
            f"{len(units)} {request.by}s are too few to split: {test} for testing and {validation} for validation leave none "
            "to train on. Add slides, ask for less, or set --patient-id if the slides are of several patients."
        )
    order = np.random.default_rng(request.seed).permutation(len(units))
    splits = ["test"] * test + ["validation"] * validation + ["train"] * (len(units) - test - validation)
    return {units[i]: split for i, split in zip(order, splits, strict=True)}
