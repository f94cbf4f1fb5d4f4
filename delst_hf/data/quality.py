"""Measure tissue under the spots and counts in them, and filter spots with a report."""

import logging
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .slide import Slide

logger = logging.getLogger(__name__)

# H&E on glass: background is nearly white and nearly colourless. Chroma = largest minus smallest channel, 0 to 255.
_CHROMA = 20
_DARK = 190
# An image is grey if, of its pixels that are not pale, fewer than this share have a larger chroma; JPEG adds a little.
_GREY, _COLOURED, _PALE = 8, 0.01, 220
# Darker than any dye: background that was cut out.
_BLACK = 12
# The most common colour is taken for glass if it covers at least this share of a slide.
_COMMON = 0.05
# Coordinates are of another image if a smaller share of the spots lies on tissue.
_ON_TISSUE = 0.5
# x and y are swapped if so many more of the spots then lie on tissue.
_BETTER = 0.2
# Fewer spots do not show whether their coordinates are of this image.
_ENOUGH_SPOTS = 8


@dataclass(frozen=True)
class QualityFilter:
    """Least values that a spot must have to be kept.

    Attributes:
        min_counts: sum of the spot's counts.
        min_genes: number of its expressed genes.
        min_tissue: share of tissue in its patch, 0 to 1.
    """

    min_counts: int = 0
    min_genes: int = 0
    min_tissue: float = 0.0

    def check(self) -> None:
        """Raise a ValueError for values that no spot could have."""
        for name, value in (("min_counts", self.min_counts), ("min_genes", self.min_genes)):
            if value < 0:
                raise ValueError(f"{name} is {value}. Allowed: 0 (keep all) or more (--{name.replace('_', '-')}).")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue is {self.min_tissue}. Allowed: a share from 0 to 1 (--min-tissue).")

    def by_counts(self, slide: Slide) -> Slide:
        """Return the slide without spots of too few counts or genes; log how many of each were removed.

        Raises:
            ValueError: no spot is left.
        """
        if not (self.min_counts or self.min_genes):
            return slide
        totals = np.asarray(slide.counts.sum(axis=1)).ravel()
        expressed = np.diff(slide.counts.tocsr().indptr)
        poor, few = totals < self.min_counts, expressed < self.min_genes
        if not (poor | few).any():
            return slide
        logger.warning("%s: removed %d of %d spots: %d with fewer than %d counts, %d with fewer than %d genes",
                       slide.slide_id, (poor | few).sum(), len(totals), poor.sum(), self.min_counts, few.sum(),
                       self.min_genes)  # fmt: skip
        if (poor | few).all():
            raise ValueError(
                f"slide {slide.slide_id!r}: no spot has {self.min_counts} counts and {self.min_genes} genes; the medians are "
                f"{np.median(totals):g} and {np.median(expressed):g}. Lower --min-counts or --min-genes."
            )
        slide.notes.leave_out_spots(f"fewer than {self.min_counts} counts", poor.sum())
        slide.notes.leave_out_spots(f"fewer than {self.min_genes} genes", (few & ~poor).sum())
        return slide.select(~(poor | few))


def tissue_mask(pixels: np.ndarray) -> np.ndarray:
    """Mark tissue in uint8 RGB (..., 3): pixels that are coloured or dark, but not white glass, grey haze or masked black."""
    # By channel: numpy reduces a short last axis ten times slower.
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    largest = np.maximum(np.maximum(red, green), blue)
    smallest = np.minimum(np.minimum(red, green), blue)
    return ((largest - smallest >= _CHROMA) | (largest < _DARK)) & (largest >= _BLACK)


def tissue_sample(patch: np.ndarray) -> np.ndarray:
    """Return a grid of up to 32 x 32 pixels of a patch (height, width, 3): the central ones of equal rectangles."""
    height, width = patch.shape[:2]
    if height == width and height % 32 == 0:  # slices are three times as fast as index arrays
        step = height // 32
        return patch[step // 2 :: step, step // 2 :: step].copy()
    rows, columns = (
        ((np.arange(min(32, size)) + 0.5) * (size / min(32, size))).astype(int) for size in (height, width)
    )
    return patch[rows[:, None], columns]


def tissue_fractions(samples: list[np.ndarray]) -> np.ndarray:
    """Return the share of tissue in each patch (patches,), 0 to 1, from samples of patches of one size."""
    return tissue_mask(np.stack(samples)).mean((1, 2))


def slide_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Mark tissue on a whole slide: `tissue_mask` without pixels of the colour of its glass, which may be tinted."""
    mask = tissue_mask(thumbnail)
    coarse = (thumbnail.reshape(-1, 3) // 8).astype(int)
    numbers = np.bincount(coarse[:, 0] * 1024 + coarse[:, 1] * 32 + coarse[:, 2])
    commonest = int(numbers.argmax())
    glass = np.array([commonest // 1024, commonest // 32 % 32, commonest % 32]) * 8 + 4
    # Glass is bright, pale and common; a slide that is all tissue has none.
    if glass.max() < _DARK or glass.max() - glass.min() > 2 * _CHROMA or numbers.max() < _COMMON * numbers.sum():
        return mask
    return mask & (np.abs(thumbnail.astype(int) - glass).max(-1) > _CHROMA)


def share_on_tissue(slide: Slide, thumbnail: Image.Image) -> float:
    """Return the share of spots on tissue: at least a quarter of their surroundings, 2 % of the slide wide, is tissue."""
    mask = slide_mask(np.asarray(thumbnail))
    margin = max(1, round(0.01 * max(mask.shape)))
    height, width = slide.image.shape[:2]
    rows = (slide.spots["y"].to_numpy(float) * mask.shape[0] / height).astype(int)
    columns = (slide.spots["x"].to_numpy(float) * mask.shape[1] / width).astype(int)
    # Sums over a square by an integral image: one lookup of four corners per spot.
    integral = np.pad(mask, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    top, bottom = np.clip(rows - margin, 0, mask.shape[0]), np.clip(rows + margin + 1, 0, mask.shape[0])
    left, right = np.clip(columns - margin, 0, mask.shape[1]), np.clip(columns + margin + 1, 0, mask.shape[1])
    inside = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    return float((4 * inside > (bottom - top) * (right - left)).mean())


def describe_grey(thumbnail: Image.Image) -> str:
    """Return a warning if an image has no colour, as a fluorescence channel or a mask; "" for a stained slide.

    Examples:
        >>> describe_grey(Image.new("RGB", (9, 9), (200, 200, 202)))
        'the image is grey throughout, and stained tissue is not: is it one channel of fluorescence? Give the H&E image'
    """
    pixels = np.asarray(thumbnail.convert("RGB")).astype(np.int16)
    pixels = pixels[pixels.min(-1) < _PALE]
    if not len(pixels) or (pixels.max(-1) - pixels.min(-1) > _GREY).mean() > _COLOURED:
        return ""
    return (
        "the image is grey throughout, and stained tissue is not: is it one channel of fluorescence? Give the H&E image"
    )


def describe_wrong_frame(slide: Slide, thumbnail: Image.Image, swap: str = "swap them (--swap-xy)") -> str | None:
    """Return a message if most spots lie beside the tissue, or x and y are swapped; `swap` says how to swap them back."""
    share = share_on_tissue(slide, thumbnail)
    if share >= 1 - _BETTER or len(slide.spots) < _ENOUGH_SPOTS:
        return None
    found = f"slide {slide.slide_id!r}: only {share:.0%} of {len(slide.spots)} spots lie on tissue."
    if share < _ON_TISSUE and not tissue_mask(np.asarray(thumbnail)).any():
        return f"{found} The image is blank: give the H&E image of this slide."
    swapped = slide.spots.rename(columns={"x": "y", "y": "x"})
    height, width = slide.image.shape[:2]
    inside = (swapped["x"].between(0, width - 1) & swapped["y"].between(0, height - 1)).mean()
    if inside > _ON_TISSUE:
        other = Slide(slide.slide_id, slide.image, swapped, slide.counts, slide.genes, slide.mpp, slide.patient_id)
        if (better := share_on_tissue(other, thumbnail)) > max(_ON_TISSUE, share + _BETTER):
            return f"{found} With x and y swapped, {better:.0%} would: {swap}."
    if share >= _ON_TISSUE:
        return None
    return f"{found} The coordinates are probably of another image or another scale: give the image that they refer to."
