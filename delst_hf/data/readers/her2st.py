"""Legacy Spatial Transcriptomics in the layout of almaan/her2st (Andersson et al., Nat. Commun. 2021).

ROOT/data/ST-cnts/{S}.tsv.gz                        counts: rows "XxY" array coordinates, columns gene symbols
ROOT/data/ST-spotfiles/{S}_selection.tsv            x, y, pixel_x, pixel_y, selected
ROOT/data/ST-imgs/{letter}/{S}/*.jpg                full-resolution H&E
ROOT/data/ST-pat/lbl/{S}_labeled_coordinates.tsv    labels of a pathologist, where there are any
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import reader
from ..files import only_one, visible
from ..slide import Slide
from .legacy_st import read_legacy_st

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}


@dataclass(frozen=True)
class Her2stFiles:
    """The files of one section; `image` and `labels` are None where there are none."""

    counts: Path
    spots: Path
    image: Path | None
    labels: Path | None


def find_her2st_sections(root: str | Path, without_image: bool = False) -> list[str]:
    """List the sections that have counts, a spot file and, unless `without_image`, an image."""
    data = _data_folder(root)
    placed = [name for name in _counted(data) if (data / "ST-spotfiles" / f"{name}_selection.tsv").is_file()]
    return [name for name in placed if without_image or _images(data, name)]


def locate_her2st(
    root: str | Path, section: str, labels: str | Path | None = None, without_image: bool = False
) -> Her2stFiles:
    """Find the files of a section without reading them.

    Args:
        root: the folder that holds `data/ST-cnts` and its siblings.
        section: for example "C2".
        labels: a CSV with columns section, id, label, instead of the pathologist's file.
        without_image: the image may be missing.

    Raises:
        FileNotFoundError: the layout, the section or one of its files is missing; the message lists what there is.
        ValueError: several images for one section.
    """
    data = _data_folder(root)
    counts = [path for suffix in (".tsv.gz", ".tsv") if (path := data / "ST-cnts" / f"{section}{suffix}").is_file()]
    one = only_one(counts, f"the counts of section {section!r}", "Keep one of them.")
    if one is None:
        raise FileNotFoundError(
            f"no section {section!r} under {data / 'ST-cnts'}. Available: {', '.join(_counted(data)) or 'none'}."
        )
    spots = data / "ST-spotfiles" / f"{section}_selection.tsv"
    if not spots.is_file():
        raise FileNotFoundError(
            f"section {section!r} has counts but no spot file at {spots}. Add it, or leave the section out."
        )
    images = _images(data, section)
    if not images and not without_image:
        raise FileNotFoundError(
            f"section {section!r} has no image in {data / 'ST-imgs' / section[:1] / section}. "
            f"Sections with counts and image: {', '.join(find_her2st_sections(root)) or 'none'}. To train the gene side on "
            "its counts alone, add --without-image."
        )
    if len(images) > 1:
        raise ValueError(
            f"section {section!r} has {len(images)} images: {[path.name for path in images]}. Keep one in the folder."
        )
    if labels is not None and not Path(labels).is_file():
        raise FileNotFoundError(
            f"no labels file at {labels}. Give a CSV with columns section, id, label, or leave it out."
        )
    pathologist = data / "ST-pat" / "lbl" / f"{section}_labeled_coordinates.tsv"
    return Her2stFiles(
        one,
        spots,
        images[0] if images else None,
        Path(labels) if labels else pathologist if pathologist.is_file() else None,
    )


@reader
def read_her2st(
    root: str | Path,
    section: str,
    *,
    mpp: float | None = None,
    patient_id: str | None = None,
    labels: str | Path | None = None,
    without_image: bool = False,
) -> Slide:
    """Read one section; keep spots with counts and selected == 1, in the order of the counts.

    Args:
        root: the folder that holds `data/ST-cnts` and its siblings.
        section: for example "C2".
        mpp: micrometres per pixel; by default the array's pitch of 200 um divided by the pitch measured in the spot file.
        patient_id: by default the letters of the section ("C" for "C2").
        labels: a CSV with columns section, id ("XxY"), label; by default the pathologist's file of the section, if any.
        without_image: the image may be missing: the slide then has none, and its spots train the gene side alone.

    Returns:
        The slide; array_col is X and array_row is Y of "XxY". `slide.validate()` is left to the caller.

    Raises:
        FileNotFoundError: see `locate_her2st`.
        ValueError: a damaged file, counts that are not raw counts, or files that share no spot.
        KeyError: a missing column.

    Examples:
        >>> slide = read_her2st("her2st", "Z1")
        >>> slide.spots["label"].tolist(), slide.patient_id, round(slide.mpp, 2)
        ([None, 'tumour', None, None], 'Z', 5.0)
    """
    files = locate_her2st(root, section, labels, without_image)
    slide = read_legacy_st(
        files.counts, files.spots, files.image, slide_id=section, mpp=mpp, labels=files.labels,
        patient_id=patient_id or re.sub(r"\d.*", "", section) or section, tissue="breast cancer", species="human",
    )  # fmt: skip
    source = slide.label_source and ("pathologist" if labels is None else slide.label_source)
    return replace(slide, label_source=source, source=slide.source.replace("st:", "her2st:", 1))


def _data_folder(root: str | Path) -> Path:
    for data in (Path(root) / "data", Path(root)):
        if (data / "ST-cnts").is_dir():
            return data
    raise FileNotFoundError(f"no data/ST-cnts under {root}. Give the folder of the HER2ST repository (almaan/her2st).")


def _counted(data: Path) -> list[str]:
    return sorted({path.name.split(".")[0] for path in visible(data / "ST-cnts", "*.tsv*")})


def _images(data: Path, section: str) -> list[Path]:
    folder = data / "ST-imgs" / section[:1] / section
    return [path for path in visible(folder) if path.suffix.lower() in _IMAGE_SUFFIXES]
