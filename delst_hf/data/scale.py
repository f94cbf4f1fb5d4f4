"""The scale of a slide: collect its sources, decide which to believe, and check that they agree.

Every reader collects witnesses: the user (--mpp), the lattice of the spots if it is that of a known array, an alignment, what
files state (TIFF and OME tags, metadata), and the diameters of the spots. `settle_scale` takes the first in that order;
`check_scale`, which every slide passes, refuses a slide whose witnesses disagree by more than 5 %.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from .lattice import (
    KNOWN_ARRAYS,
    LEGACY,
    Lattice,
    SpotArray,
    arrays_named,
    matching_array,
    measure_lattice,
)
from .notes import Notes
from .values import number

logger = logging.getLogger(__name__)

# Scanners, lattices and metadata agree to a few per cent; a resized image is off by far more.
TOLERANCE = 0.05
# Diameters of spots are stated by eye or by theory: beside a safer witness, a difference above 5 % is reported, and one above
# this is refused.
_SPOT_TOLERANCE = 0.2
# Kinds of witnesses, the safest first. A placeholder is the value that a program writes when it does not know the scale.
_TRUST = ("given", "geometry", "stated", "spots")
# Dots per inch of screens and printers. Their pixels in micrometres, or in millimetres taken for micrometres, are placeholders.
_SCREEN_DPI = (1, 72, 96, 150, 300, 600)
# One micrometre, millimetre or centimetre per pixel stands for no value.
_PLACEHOLDERS = (1.0, 1_000.0, 10_000.0, *(25_400 / dpi for dpi in _SCREEN_DPI), *(25.4 / dpi for dpi in _SCREEN_DPI))
# Pixels of microscopes, in micrometres, including reduced images. A larger one is a printer's, of less than 1,000 dots per
# inch, or millimetres were stated for micrometres; a smaller one is below the resolution of light.
_MICROSCOPE_UM = (0.02, 25.4)
_ARRAY_NAME = re.compile(r".*?(?<!\d)(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)(?:[_-]\w*)?")


@dataclass(frozen=True)
class Witness:
    """One source of the scale.

    Attributes:
        kind: "given" (by the user), "geometry" (the lattice of a known array, or an alignment), "stated" (by a file) or "spots"
            (their diameter).
        source: Name of the source, in words.
        mpp: Micrometres per pixel by this source; several values if it leaves a choice, the likeliest first.
        remark: An assumption behind it, and the option that confirms it, in complete sentences; "" for none.
        per: Factor from the file's own value to `mpp`: pixels of its image per pixel of the frame.
    """

    kind: str
    source: str
    mpp: tuple[float, ...]
    remark: str = ""
    per: float = 1.0

    @property
    def unbelieved(self) -> str:
        """Why the value of a file is not believed, in a few words; "" if it is."""
        found = unbelieved(self.mpp[0] / self.per) if self.kind == "stated" else ""
        return "a placeholder" if found and self.source.startswith("dpi ") else found

    @property
    def placeholder(self) -> bool:
        """Whether a file states a placeholder, or a scale that no microscope has."""
        return self.unbelieved != ""

    def agrees(self, mpp: float, tolerance: float = TOLERANCE) -> bool:
        """Return whether this witness agrees with a scale, by default within 5 %."""
        return any(max(mpp / own, own / mpp) <= 1 + tolerance for own in self.mpp)

    def __str__(self) -> str:
        return f"{self.source}: {' or '.join(in_micrometres(value) for value in self.mpp)}"


@dataclass(frozen=True)
class Scale:
    """The scale of a slide and its witnesses.

    Attributes:
        mpp: Micrometres per pixel of the frame.
        chosen: The witness that was believed.
        witnesses: All witnesses, including `chosen`.
        frame: The pixel to which all values refer: "pixel of the image", or "full-resolution pixel".
    """

    mpp: float
    chosen: Witness
    witnesses: tuple[Witness, ...]
    frame: str = "pixel of the image"

    def note(self, notes: Notes, mpp: float) -> None:
        """Write the chosen source and all stated scales into the notes, per pixel of an image with `mpp`."""
        notes.scale_from = self.chosen.source
        if self.chosen.remark and self.chosen.remark not in notes.remarks:
            notes.remarks.append(self.chosen.remark)
        for one in self.witnesses:
            likeliest = min(one.mpp, key=lambda value: abs(np.log(value / self.mpp)))
            notes.scale_witnesses[one.source] = float(likeliest * mpp / self.mpp)

    def __str__(self) -> str:
        lines = [f"  {self.mpp:.4f} um per {self.frame}, from {self.chosen.source}"]
        for one in self.witnesses:
            if one is not self.chosen:
                told = one.unbelieved or ("agrees" if one.agrees(self.mpp) else "DISAGREES")
                lines.append(f"  {one} ({told})" + (f". {one.remark}" if one.remark else ""))
        return "\n".join(lines)


def unbelieved(mpp: float) -> str:
    """Return why stated micrometres per pixel are not believed, in a few words; "" if they may be true.

    >>> unbelieved(0.5), unbelieved(1.0), unbelieved(500.0)
    ('', 'a placeholder', 'not the scale of a microscope')
    """
    if any(abs(mpp / value - 1) < 2e-3 for value in _PLACEHOLDERS):
        return "a placeholder"
    low, high = _MICROSCOPE_UM
    return "" if low <= mpp <= 1.002 * high else "not the scale of a microscope"


def in_micrometres(mpp: float) -> str:
    """Return micrometres per pixel as text, never rounded to 0.

    >>> in_micrometres(0.49984), in_micrometres(0.0000012)
    ('0.4998', '1.2e-06')
    """
    return f"{mpp:.4f}" if mpp >= 0.001 else f"{mpp:.2g}"


def given(mpp: float | None) -> list[Witness]:
    """Return the witness of the user's --mpp, if given; implausible numbers are left to `check_mpp`.

    Raises:
        ValueError: The number is 0, which cannot be compared with other witnesses.
    """
    if mpp == 0:
        raise ValueError("--mpp is 0. Allowed: a positive number of micrometres per pixel; a 20x scan has about 0.5.")
    return [] if mpp is None else [Witness("given", "--mpp", (float(mpp),))]


def stated(source: str, value: Any, scale: float = 1.0) -> list[Witness]:
    """Return the witness of a value in a file, times `scale`; none unless it is a positive number."""
    length = stated_length(value, scale)
    return [] if length is None else [Witness("stated", source, (length,), per=scale)]


def stated_length(value: Any, scale: float = 1.0) -> float | None:
    """Return a length from the metadata of a file, times `scale`; None unless it is a positive number."""
    found = number(value)
    return found * scale if found is not None and found > 0 else None


def image_states(image: Any, name: str, scale: float = 1.0) -> list[Witness]:
    """Return the witnesses of an image, one per tag that states a scale.

    Args:
        image: The image, as `open_image` returns it.
        name: Name of the file.
        scale: Pixels of the image per pixel of the frame.
    """
    found = getattr(image, "scale_statements", ())
    return [witness for source, value in found for witness in stated(f"{source} of {name}", value, scale)]


def spots_state(spot_um: Sequence[float], spot_px: float | None, what: str) -> list[Witness]:
    """Return the witness of a stated diameter in pixels, from the diameters in micrometres that it can mean."""
    if not spot_px or not spot_um:
        return []
    diameters = " or ".join(f"{um:g}" for um in spot_um)
    return [Witness("spots", f"{what} ({diameters} um = {spot_px:.1f} px)", tuple(um / spot_px for um in spot_um))]


def names_positions(names: Iterable[object]) -> np.ndarray | None:
    """Return array positions (spots, 2) row, column from names such as "10x21" or "slide_10x21", in which x is the column.

    Returns:
        The positions; None unless every name holds one.
    """
    matches = [_ARRAY_NAME.fullmatch(str(name)) for name in names]
    if not matches or not all(matches):
        return None
    return np.array([(float(match[2]), float(match[1])) for match in matches if match])


def array_of_spots(
    spots: pd.DataFrame,
    technology: str,
    *,
    factor: float = 1.0,
    bin_um: float | None = None,
    spot_px: float | None = None,
) -> tuple[Lattice | None, SpotArray | None]:
    """Return the lattice of a table of spots, using array positions in its columns or else in its names, and the known array.

    Args:
        spots: Columns x, y, and optionally array_row and array_col.
        technology: As in `find_array`.
        factor: Factor by which x and y were multiplied after reading; the lattice is measured without it.
        bin_um: As in `find_array`.
        spot_px: As in `find_array`.
    """
    places = by_name = names_positions(spots.index)
    if {"array_row", "array_col"} <= set(spots):
        told = spots[["array_row", "array_col"]].to_numpy(float)
        places = told if (told >= 0).any() else by_name
    lattice = measure_lattice(spots[["y", "x"]].to_numpy(float) / factor, places)
    named = by_name is not None
    array = find_array(lattice, technology, bin_um=bin_um, spot_px=spot_px, places=places, named_by_place=named)
    return lattice, array


def find_array(
    lattice: Lattice | None,
    technology: str = "",
    *,
    bin_um: float | None = None,
    spot_px: float | None = None,
    places: np.ndarray | None = None,
    named_by_place: bool = False,
) -> SpotArray | None:
    """Return the known array on which the spots lie; None if it cannot be determined.

    Args:
        lattice: The measured lattice.
        technology: Technology as the user or the data set names it; "" leaves the decision to the lattice.
        bin_um: Side of the bins of Visium HD in micrometres.
        spot_px: Stated diameter of a spot in pixels.
        places: Array positions (spots, 2) row, column, where they are known.
        named_by_place: Whether spots are named "10x21", as on legacy arrays.

    Returns:
        The array; with `assumed` set if squares are taken for the legacy array by their shape alone.
    """
    array = matching_array(lattice, arrays_named(technology, bin_um))
    if array is not LEGACY or technology or lattice is None:
        return array
    # Bins and crossing channels are squares too. The legacy array has spots half as wide as its pitch, or named by position,
    # and no larger position numbers than its own.
    half = 0.4 < (spot_px or 0) / lattice.pitch_px < 0.6
    beyond = places is not None and len(places) > 0 and np.nanmax(places) > (LEGACY.places or np.inf)
    return replace(array, assumed=True) if (half or named_by_place) and not beyond else None


def lattice_states(
    lattice: Lattice | None, array: SpotArray | None, pitch_px: float | None = None, measured: str = ""
) -> list[Witness]:
    """Return the witness of the lattice of a known array.

    Args:
        lattice: The measured lattice.
        array: The known array, if any.
        pitch_px: Pitch in pixels, if it was measured more precisely.
        measured: The same in words.
    """
    if lattice is None or array is None:
        return []
    pitch_px = pitch_px or lattice.pitch_px
    measured = measured or f"{pitch_px:.1f} px"
    source = f"the lattice of the spots ({array.name}: {array.kind}, {array.pitch_um:g} um = {measured})"
    remark = (
        f"Nothing states the array of the spots. Squares of {lattice.places[0]} x {lattice.places[1]} positions are taken for "
        f"legacy Spatial Transcriptomics, {array.pitch_um:g} um from spot to spot; chips of crossing channels, such as "
        f"DBiT-seq, look the same. Confirm it (--technology '{array.name}'), or name another technology and give its scale "
        "(--technology DBiT-seq --mpp MPP)."
    )
    return [Witness("geometry", source, (array.pitch_um / pitch_px,), remark if array.assumed else "")]


def settle_scale(
    slide_id: str, witnesses: Sequence[Witness], *, frame: str = "pixel of the image", unknown: str = ""
) -> Scale:
    """Choose the safest witness: the user, else the lattice of a known array, else files, else the diameters of the spots.

    Args:
        slide_id: For messages.
        witnesses: All witnesses found.
        frame: The pixel to which all of them refer.
        unknown: Why there is no witness, for the message.

    Raises:
        ValueError: There is no witness except placeholders; the message says what to give.
    """
    trusted = [one for kind in _TRUST for one in witnesses if one.kind == kind and not one.placeholder]
    if not trusted:
        placeholders = [
            f"{one} is {one.unbelieved}"
            + (" that programs write for an unknown scale" if one.unbelieved == "a placeholder" else "")
            for one in witnesses
            if one.placeholder
        ]
        found = "; ".join([text for text in (unknown, *placeholders) if text]) or "nothing states it"
        raise ValueError(
            f"slide {slide_id!r}: mpp is unknown: {found}. Give the micrometres per {frame} (--mpp); a 20x scan has about 0.5."
        )
    scale = Scale(trusted[0].mpp[0], trusted[0], tuple(witnesses), frame)
    if trusted[0].kind != "given":
        logger.info("%s: mpp = %.4f per %s, from %s", slide_id, scale.mpp, frame, trusted[0].source)
    if trusted[0].remark:
        logger.warning("%s: %s", slide_id, trusted[0].remark)
    _tell_unbelieved(slide_id, scale)
    return scale


def _tell_unbelieved(slide_id: str, scale: Scale) -> None:
    for one in scale.witnesses:
        # Not for dpi, which every camera and every program writes.
        if one.placeholder and not one.agrees(scale.mpp) and not one.source.startswith("dpi "):
            logger.warning("%s: %s um per %s is %s and is not used", slide_id, one, scale.frame, one.unbelieved)


def check_scale(slide_id: str, scale: Scale, allow: bool = False) -> None:
    """Compare the witnesses with the scale that is used.

    The lattice of a known array, or an alignment, can contradict even the user, because the micrometres per pixel of a reduced
    image are easily given in place of those of the full one. Against other witnesses the user decides.

    Raises:
        ValueError: Witnesses disagree by more than 5 %, and `allow` is False; the message lists them and the option to use.
    """
    off = [one for one in scale.witnesses if not one.agrees(scale.mpp) and not one.placeholder]
    by_user = scale.chosen.kind == "given"
    serious = [
        one for one in off
        if (one.kind == "geometry" if by_user else one.kind != "spots" or not one.agrees(scale.mpp, _SPOT_TOLERANCE))
    ]  # fmt: skip
    if serious and not allow:
        advice = (
            "Correct --mpp, or leave it out; to insist on it add --allow-scale."
            if by_user
            else f"Give the true micrometres per {scale.frame} (--mpp; with --allow-scale if the lattice of the spots "
            "contradicts them), or the image that the spots refer to."
        )
        raise ValueError(
            f"slide {slide_id!r}: the sources of its scale disagree by more than {TOLERANCE:.0%} (um per {scale.frame}):\n"
            f"{scale}\n{advice}"
        )
    for one in off:
        logger.warning("%s: the scale used is %.4f um per %s, but %s", slide_id, scale.mpp, scale.frame, one)


def scale_of(slide: Any) -> Scale:
    """Return the scale of a slide that no reader settled: its own mpp, beside the witnesses of its spots and its image."""
    array, pixels = (slide.spots[names].to_numpy(float) for names in (["array_row", "array_col"], ["y", "x"]))
    lattice = measure_lattice(pixels, array)
    named = find_array(lattice, slide.technology, bin_um=slide.spot_um, spot_px=slide.spot_px, places=array)
    own = Witness("given", "mpp of the slide", (float(slide.mpp),))
    witnesses = [
        own,
        *lattice_states(lattice, named),
        *image_states(slide.image, "the image"),
        *spots_state(stated_diameters(None, slide.spot_um), slide.spot_px, "the diameter of the spots"),
        *(Witness("stated", what, (mpp,)) for what, mpp in slide.notes.scale_witnesses.items()),
    ]
    scale = Scale(own.mpp[0], own, tuple(witnesses))
    _tell_unbelieved(slide.slide_id, scale)
    return scale


def stated_diameters(array: SpotArray | None, spot_um: float | None) -> tuple[float, ...]:
    """Return the diameters in micrometres that a stated diameter in pixels can mean, by the array or by the user."""
    if array is not None and (spot_um is None or spot_um in array.stated_um):
        return array.stated_um
    if spot_um is None:
        return ()
    return next((known.stated_um for known in KNOWN_ARRAYS if spot_um in known.stated_um), (spot_um,))
