"""Describe how a slide was read, on one page: for `delst check` and for the card of a dataset."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

from .counts import as_counts, check_counts, describe_unlikely_counts, warn_of_unlikely_counts
from .folder import open_folder, read_columns
from .genes import clean_genes
from .notes import Notes
from .quality import describe_grey, share_on_tissue
from .scale import in_micrometres, unbelieved
from .slide import Slide

if TYPE_CHECKING:
    from .readers.matrices import Counts

logger = logging.getLogger(__name__)

# Sources of a scale agree if they differ by no more than this.
AGREEMENT = 0.05
_MANY = 12


def measure(slide: Slide, thumbnail: Image.Image | None) -> None:
    """Write into the slide's notes what can be measured only on the finished slide: labels, medians, tissue under the spots."""
    notes, counts = slide.notes, slide.counts.tocsr()
    notes.labels = _spots_by_label(slide.spots)
    if slide.has_counts:
        notes.median_counts = float(np.median(_totals(counts)))
        warn_of_unlikely_counts(counts, slide.slide_id, notes)
        notes.median_genes = float(np.median(np.diff(counts.indptr)))
        notes.genes_with_ids = int((slide.genes["gene_id"] != "").sum())
    if thumbnail is not None:
        notes.on_tissue = share_on_tissue(slide, thumbnail)
        if told := describe_grey(thumbnail):
            logger.warning("%s: %s", slide.slide_id, told)
            notes.remarks.append(told)


def _spots_by_label(spots: pd.DataFrame) -> dict[str, int]:
    return dict(Counter("(none)" if pd.isna(label) else str(label) for label in spots["label"]).most_common())


def _totals(counts: sp.csr_matrix) -> np.ndarray:
    """Return the sum of the counts of each spot (spots,) int64, without a 64-bit copy of all counts."""
    totals, filled = np.zeros(counts.shape[0], np.int64), np.diff(counts.indptr) > 0
    totals[filled] = np.add.reduceat(counts.data, counts.indptr[:-1][filled], dtype=np.int64) if filled.any() else 0
    return totals


def slide_page(row: Mapping[str, Any], num_spots: int) -> str:
    """Return the page of one slide, about ten lines of plain text.

    Args:
        row: row of the slides table, with its `notes`.
        num_spots: number of spots of the slide.
    """
    notes = Notes.from_json(row.get("notes"))
    lines = [
        ("slide", f"{row['slide_id']} (patient {row['patient_id']})"),
        ("source", row["source"] or "unknown"),
        ("about", ", ".join(str(row[name] or f"{name} unknown") for name in ("technology", "tissue", "species"))),
        ("image", _image(row, notes)),
        ("scale", _scale(float(row["mpp"]), notes)),
        ("patch", _patch(row)),
        ("spots", _spots(row, num_spots, notes)),
        ("genes", _genes(len(row["measured_genes"]), notes)),
    ]
    if notes.median_counts is not None:
        lines.append(("counts", f"{notes.median_counts:g} counts of {notes.median_genes:g} genes in the median spot"))
    if notes.labels:
        lines.append(("labels", _labels(row, notes)))
    if notes.on_tissue is not None:
        lines.append(("tissue", f"{notes.on_tissue:.0%} of the spots lie on tissue"))
    lines += [("remark", remark) for remark in notes.remarks]
    # A line break in a name would begin a new line of the page.
    return "\n".join(f"{name:<9}{' '.join(str(text).split())}" for name, text in lines)


def counts_page(found: "Counts", species: str = "", aliases: Mapping[str, tuple[str, str]] | None = None) -> str:
    """Return the page of a table of counts that has neither image nor positions.

    Args:
        found: The counts, as `read_counts` returns them; genes that are left out are counted in their notes.
        species: Species of the tissue; "" takes it from the genes.
        aliases: See `read_aliases`.

    Raises:
        ValueError: Values that are not counts, or what `clean_genes` refuses.
    """
    check_counts(found.matrix, found.name)
    counts, genes, species = clean_genes(
        as_counts(found.matrix), found.genes, found.name, species, aliases, found.notes
    )
    notes, twice = found.notes, int(found.barcodes.duplicated().sum())
    notes.genes_with_ids = int((genes["gene_id"] != "").sum())
    named = ", ".join(found.barcodes[:3]) + (", ..." if len(found.barcodes) > 3 else "")
    doubled = f"; {twice} names occur twice, as with several samples in one table" if twice else ""
    totals, expressed = _totals(counts), np.diff(counts.indptr)
    lines = [
        ("counts", f"{found.name}, without an image and without positions"),
        ("species", species or "unknown"),
        ("spots", f"{len(found.barcodes)}, named {named}{doubled}"),
        ("genes", _genes(len(genes), notes)),
    ]
    if len(totals):
        lines.append(
            ("median", f"{np.median(totals):g} counts of {np.median(expressed):g} genes in the median spot; "
             f"spots without counts: {int((totals == 0).sum())}")
        )  # fmt: skip
    if unlikely := describe_unlikely_counts(counts):
        lines.append(("remark", unlikely))
    return "\n".join(f"{name:<9}{' '.join(str(text).split())}" for name, text in lines)


def _image(row: Mapping[str, Any], notes: Notes) -> str:
    if not _has_image(row):
        return "none: counts alone, to train the gene side (--unpaired_slides)"
    size = f"{row['image_width']} x {row['image_height']} px"
    return ", ".join([size, *(f"{name}: {value}" for name, value in notes.image.items())])


def _scale(mpp: float, notes: Notes) -> str:
    used = f"{mpp:.4f} um per px" + (f", from {notes.scale_from}" if notes.scale_from else "")
    others = [
        f"{what} {_against(found, mpp)}" for what, found in notes.scale_witnesses.items() if what != notes.scale_from
    ]
    return f"{used}; witnesses: {', '.join(others)}" if others else f"{used}; nothing else states one"


def _against(found: float, mpp: float) -> str:
    differs = found / mpp - 1
    told = "agrees" if abs(differs) <= AGREEMENT else unbelieved(found) or f"DIFFERS by {differs:+.0%}"
    return f"{in_micrometres(found)} ({told})"


def _has_image(row: Mapping[str, Any]) -> bool:
    return row["image_width"] != 0  # older versions wrote null for an unknown width


def _patch(row: Mapping[str, Any]) -> str:
    if not _has_image(row):
        return "none"
    pixels = float(row["patch_um"]) / float(row["mpp"])
    enlarged = f", enlarged {row['patch_px'] / pixels:.1f} times" if row["patch_px"] > 2 * pixels else ""
    return f"{row['patch_um']:g} um = {pixels:.0f} px of the image, stored as {row['patch_px']} px{enlarged}"


def _spots(row: Mapping[str, Any], num_spots: int, notes: Notes) -> str:
    size = row.get("spot_um")
    return f"{num_spots}" + (f" of {size:g} um" if size else "") + _left_out(notes.spots_left_out)


def _genes(number: int, notes: Notes) -> str:
    ids = "" if notes.genes_with_ids is None else f", {notes.genes_with_ids} with Ensembl ids"
    summed = f"; columns added to another of the same gene: {notes.genes_summed}" if notes.genes_summed else ""
    return f"{number}{ids}{_left_out(notes.genes_left_out)}{summed}" if number else "none: the slide is an image alone"


def _left_out(counted: Mapping[str, int]) -> str:
    return f"; {sum(counted.values())} left out: {_reasons(counted)}" if counted else "; none left out"


def _labels(row: Mapping[str, Any], notes: Notes) -> str:
    known = [f"{label} {number}" for label, number in notes.labels.items()]
    shown = ", ".join(known[:_MANY]) + (f", and {len(known) - _MANY} more" if len(known) > _MANY else "")
    source = row.get("label_source")
    return f"{shown}; from {source}" if source else shown


def summary_table(folder: Path, spots_of: Mapping[str, int]) -> str:
    """Return a table with one line per slide: what is in the dataset, what was left out and why, scale and labels.

    Args:
        folder: folder of the dataset.
        spots_of: spots per slide.
    """
    columns = ["slide_id", "mpp", "measured_genes", "notes"]
    lines = [("slide", "spots", "left out", "genes", "left out", "um/px", "from", "labels")]
    for row in read_columns(folder / "slides" / "slides.parquet", columns).to_pylist():
        notes, kept = Notes.from_json(row["notes"]), spots_of[row["slide_id"]]
        # Counts without a position are not spots of the source.
        lost = sum(number for reason, number in notes.spots_left_out.items() if reason != "counts without a spot")
        classes = [label for label in notes.labels if label != "(none)"]
        without = notes.labels.get("(none)", 0)
        lines.append((
            row["slide_id"], f"{kept} of {kept + lost}", _reasons(notes.spots_left_out), str(len(row["measured_genes"])),
            _reasons(notes.genes_left_out), f"{row['mpp']:.4f}", notes.scale_from or "the reader",
            (f"{len(classes)}" + (f", {without} spots without" if without else "")) if classes else "none",
        ))  # fmt: skip
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _reasons(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counted.items()) or "none"


def dataset_pages(path: Path) -> list[str]:
    """Return the page of every slide of a dataset folder; verify its files, and recount labels and medians from the spots.

    Raises:
        ValueError: a folder that does not match its manifest.
    """
    folder = open_folder(path, verify=True)
    pages = []
    for row in read_columns(folder.slides_file).to_pylist():
        files = folder.spot_files[row["slide_id"]]
        tables = [read_columns(file, ["label", "n_genes", "total_counts"]).to_pandas() for file in files]
        spots = pd.concat(tables)
        pages.append(slide_page(_recounted(row, spots), len(spots)))
    return pages


def _recounted(row: Mapping[str, Any], spots: pd.DataFrame) -> dict[str, Any]:
    """Return the row with labels and medians of its notes recounted from the spots."""
    notes = Notes.from_json(row.get("notes"))
    notes.labels = _spots_by_label(spots)
    if len(row["measured_genes"]) and len(spots):
        notes.median_counts = float(spots["total_counts"].median())
        notes.median_genes = float(spots["n_genes"].median())
    return {**row, "notes": notes.to_json()}
