"""Detect several samples in one table, before their counts are placed on one image.

Tools join sections silently: array positions then occur twice, barcodes end in -1 and -2 or carry the name of a sample, or a
column names the sample of each spot. An image belongs to one sample, so such a slide is refused, unless the user states that
it is one slide (`one_slide`).
"""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from .slide import Slide
from .values import identifiers

# Names of columns with the section of a spot in scanpy, Seurat, squidpy, CELLxGENE and spatialLIBD, in lower case without dots
# and blanks. Patients and donors are not among them: a tissue array has many on one slide.
SAMPLE_COLUMNS = {
    "sample", "sample_id", "sampleid", "sample_name", "sample_key", "batch", "library", "library_id", "slide", "slide_id",
    "slice", "slice_id", "section", "section_id", "section_name", "capture_area", "orig_ident", "dataset", "dataset_id",
    "specimen_id", "image_id", "tissue_section", "brain_section_label", "experiment",
}  # fmt: skip
# The part of a barcode that gives the position on the array; the parts around it name the sample.
_PLACE = re.compile(r"(.*?)((?:[ACGTN]{12,})|(?:s_\d{3}um_\d{5}_\d{5})|(?:-?\d+x-?\d+))((?:\D.*)?)")
# A smaller share of duplicated positions is rounding or damage, which other checks find.
_SHARE_TWICE = 0.01
# Two sections laid on one another with a shift: many spots have their nearest neighbour at one and the same step, nearer than
# half the distance to the next one. The share of such spots was 0 in 38 real sections and in bins, and reached 0.18 in single
# slides made to look so (cells split at seams in one direction; 0.24 with fewer than 100 spots); it was 0.4 to 1 in two
# sections of one array shifted by 0.05 to 0.3 of its pitch. Sections turned by a degree or more are not found.
_SHARE_PAIRED, _SAME_STEP, _ENOUGH_PAIRED, _MOST_SPOTS = 0.3, 0.3, 100, 100_000
# How to choose one of several samples in each format, by the first word of `Slide.source`.
_CHOICE = {
    "anndata": "Read each by the column of obs that names it (--slide-key COLUMN, --slide-value NAME), with its own image",
    "table": "Read each by the column of the coordinates that names it (--slide-column COLUMN, --slide-value NAME)",
    "spatialdata": "Name the shapes and the table of one (--region, --table)",
    "visium": "Give the output of one sample, not of an aggregation",
}


def sample_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a table of spots that name samples, recognised by their own names."""
    named = [name for name in table if re.sub(r"[ .\-]+", "_", str(name).strip().lower()) in SAMPLE_COLUMNS]
    return table[named]


def keep_sample_columns(spots: pd.DataFrame, obs: pd.DataFrame) -> None:
    """Copy the columns that name samples from a table of the same rows, for `check_one_slide`."""
    for name, column in sample_columns(obs).items():
        if name not in spots:
            spots[name] = column.to_numpy()  # by position: duplicated names of spots are refused later, with a message


def check_one_slide(slide: Slide) -> None:
    """Refuse a slide that holds several samples.

    Args:
        slide: the slide; columns of its spots that `sample_columns` finds are checked too.

    Raises:
        ValueError: signs of several samples; the message lists them and says how to choose.
    """
    found = [*slide.signs_of_samples, *signs_of_samples(slide.spots)]
    if found:
        how = _CHOICE.get(slide.source.partition(":")[0], "Split the files and read each sample by itself")
        raise ValueError(
            f"slide {slide.slide_id!r} is several samples on one image: {'; '.join(found)}. {how}; or, if this image shows all "
            "of them, add --one-slide."
        )


def same_places(first: pd.DataFrame, second: pd.DataFrame) -> int:
    """Return how many spots of the first table have the position, on the array or in pixels, of a spot of the second."""
    numbers = 0
    for columns in (["array_row", "array_col"], ["x", "y"]):
        places = [pd.MultiIndex.from_frame(_placed(table, columns).dropna()) for table in (first, second)]
        numbers = max(numbers, int(places[0].isin(places[1]).sum()))
    return numbers


def signs_of_samples(spots: pd.DataFrame) -> Iterable[str]:
    """Yield the signs, in words, that a table of spots holds several samples."""
    yield from repeated_positions(spots)
    yield from _laid_over(spots[["x", "y"]].to_numpy(float))
    parts = [_PLACE.fullmatch(str(name)) for name in spots.index]
    if len(parts) and all(parts):
        around = sorted({f"{part[1]}...{part[3]}" for part in parts if part})
        if len(around) > 1:
            yield f"barcodes are of {len(around)} kinds, {_some(around)}"
    for name, column in sample_columns(spots).items():
        values = sorted(set(identifiers(column.dropna())))
        if len(values) > 1:
            yield f"the column {name!r} names {len(values)}, {_some(values)}"


def _laid_over(xy: np.ndarray) -> Iterable[str]:
    """Yield a sign if positions (spots, 2) are those of two sections, one laid on the other with a small shift."""
    from scipy.spatial import cKDTree

    xy = np.unique(xy[np.isfinite(xy).all(axis=1)], axis=0)
    if not _ENOUGH_PAIRED <= len(xy) <= _MOST_SPOTS:
        return
    away, rows = cKDTree(xy).query(xy, k=3)
    mutual = rows[rows[:, 1], 1] == np.arange(len(xy))
    paired = mutual & (away[:, 1] < away[:, 2] / 2)
    if paired.sum() < max(_ENOUGH_PAIRED, _SHARE_PAIRED * len(xy)):
        return
    steps = (xy[rows[:, 1]] - xy)[paired]  # each pair in both directions
    chosen = steps[np.linspace(0, len(steps) - 1, min(len(steps), 200)).astype(int)]
    same = [(np.hypot(*(steps - one).T) < _SAME_STEP * np.hypot(*one)).sum() for one in chosen]
    if 2 * max(same) >= _SHARE_PAIRED * len(xy):
        x, y = chosen[np.argmax(same)]
        yield (
            f"{2 * max(same)} of {len(xy)} spots have another {abs(x):.1f} px beside and {abs(y):.1f} px above or below them, "
            "much nearer than all others, as two sections laid on one another"
        )


def repeated_positions(spots: pd.DataFrame) -> Iterable[str]:
    """Yield a sentence if positions, on the array or in pixels, occur more than once, as in sections that were joined."""
    for columns, what in ((["array_row", "array_col"], "array positions"), (["x", "y"], "positions")):
        table = _placed(spots, columns)
        twice = int(table.duplicated().sum())
        if twice >= max(2, _SHARE_TWICE * len(table)):
            yield f"{twice} of {len(table)} {what} occur more than once"
            return


def _placed(spots: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return two columns of positions; array positions without the unknown ones, -1."""
    table = spots[columns].astype(float)
    return table[(table >= 0).all(axis=1)] if columns[0] == "array_row" else table


def _some(values: list[str]) -> str:
    shown = ", ".join(map(repr, values[:3]))
    return f"{shown} ..." if len(values) > 3 else shown


def rows_of(table: pd.DataFrame, column: str, value: str | None, name: str, option: str) -> np.ndarray:
    """Return the rows (rows,) bool of one sample.

    Args:
        table: one row per spot.
        column: the column that names the sample.
        value: the name of the sample; may be left out where there is only one.
        name: of the file, for messages.
        option: the option that names the column, for messages.

    Raises:
        KeyError: no such column.
        ValueError: no such value, or none chosen of several.
    """
    if column not in table:
        raise KeyError(f"{name}: no column {column!r}. Available: {list(table.columns)} ({option}).")
    values = identifiers(table[column])
    known = list(dict.fromkeys(value for value in values if value))
    if value is None and len(known) == 1:
        value = known[0]
    if value not in known:
        raise ValueError(f"{name}: {column} is {value!r}. Choose one of {known} (--slide-value).")
    return np.array([one == value for one in values])
