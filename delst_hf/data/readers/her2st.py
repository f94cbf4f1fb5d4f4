"""Legacy Spatial Transcriptomics in the layout of almaan/her2st (Andersson et al., Nat. Commun. 2021).

ROOT/data/ST-cnts/{S}.tsv.gz                        counts: rows "XxY" array coordinates, columns gene symbols
ROOT/data/ST-spotfiles/{S}_selection.tsv            x, y, pixel_x, pixel_y, selected
ROOT/data/ST-imgs/{letter}/{S}/*.jpg                full-resolution H&E
ROOT/data/ST-pat/lbl/{S}_labeled_coordinates.tsv    labels of a pathologist, where there are any
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ...errors import reader
from ..counts import check_counts, make_genes, sum_duplicate_genes
from ..images import open_image
from ..scale import given, image_states, legacy_states, settle_scale
from ..slide import Slide
from .matrices import read_table

logger = logging.getLogger(__name__)

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
_SPOT_ID = re.compile(r"(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Her2stFiles:
    """The files of one section; `labels` is None where there are none."""

    counts: Path
    spots: Path
    image: Path
    labels: Path | None


def find_her2st_sections(root: str | Path) -> list[str]:
    """Lists the sections that have counts, a spot file and an image."""
    data = _data_folder(root)
    sections = sorted({path.name.split(".")[0] for path in (data / "ST-cnts").glob("*.tsv*")})
    return [
        name for name in sections if (data / "ST-spotfiles" / f"{name}_selection.tsv").is_file() and _images(data, name)
    ]


def locate_her2st(root: str | Path, section: str, labels: str | Path | None = None) -> Her2stFiles:
    """Finds the files of a section without reading them.

    Args:
        root: the folder that holds `data/ST-cnts` and its siblings.
        section: for example "C2".
        labels: a CSV with columns section, id, label, instead of the pathologist's file.

    Raises:
        FileNotFoundError: the layout, the section or one of its files is missing; the message lists what there is.
        ValueError: several images for one section.
    """
    data = _data_folder(root)
    counts = [path for suffix in (".tsv.gz", ".tsv") if (path := data / "ST-cnts" / f"{section}{suffix}").is_file()]
    if not counts:
        known = sorted({path.name.split(".")[0] for path in (data / "ST-cnts").glob("*.tsv*")})
        raise FileNotFoundError(
            f"no section {section!r} under {data / 'ST-cnts'}. Available: {', '.join(known) or 'none'}."
        )
    spots = data / "ST-spotfiles" / f"{section}_selection.tsv"
    if not spots.is_file():
        raise FileNotFoundError(
            f"section {section!r} has counts but no spot file at {spots}. Add it, or leave the section out."
        )
    images = _images(data, section)
    if not images:
        raise FileNotFoundError(
            f"section {section!r} has no image in {data / 'ST-imgs' / section[:1] / section}. "
            f"Sections with counts and image: {', '.join(find_her2st_sections(root)) or 'none'}."
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
        counts[0], spots, images[0], Path(labels) if labels else pathologist if pathologist.is_file() else None
    )


@reader
def read_her2st(
    root: str | Path,
    section: str,
    *,
    mpp: float | None = None,
    patient_id: str | None = None,
    labels: str | Path | None = None,
) -> Slide:
    """Reads one section. Spots with counts and selected == 1 are kept, in the order of the counts.

    Args:
        root: the folder that holds `data/ST-cnts` and its siblings.
        section: for example "C2".
        mpp: micrometres per pixel; by default from the array's 200 um pitch over the pitch measured in the spot file.
        patient_id: by default the letters of the section ("C" for "C2").
        labels: a CSV with columns section, id ("XxY"), label; by default the pathologist's file of the section, if any.

    Returns:
        The slide; array_col is X and array_row is Y of "XxY". `slide.validate()` is left to the caller.

    Raises:
        FileNotFoundError: see `locate_her2st`.
        ValueError: a damaged file, counts that are not counts, no spot in common.
        KeyError: a missing column.
    """
    files = locate_her2st(root, section, labels)
    counts = _read_counts(files.counts, section)
    spots = _read_spots(files.spots)
    image = open_image(files.image)
    by_array, _, unknown = legacy_states(spots)
    witnesses = [*given(mpp), *by_array, *image_states(image, files.image.name)]
    scale = settle_scale(section, witnesses, unknown=unknown)
    selected = spots[spots["selected"] == 1] if "selected" in spots else spots
    shared = counts.index[counts.index.isin(selected.index)]
    if len(shared) == 0:
        raise ValueError(
            f"section {section!r}: no spot of {files.spots.name} ({selected.index[:3].tolist()}) is in "
            f"{files.counts.name} ({counts.index[:3].tolist()}). Check that both belong to the same section."
        )
    lonely_counts, lonely_spots = len(counts) - len(shared), len(selected) - len(shared)
    if lonely_counts or lonely_spots:
        logger.warning(
            "%s: left out %d counts without spot and %d spots without counts", section, lonely_counts, lonely_spots
        )
    spots, counts = selected.loc[shared], counts.loc[shared]
    named = _read_labels(files.labels, section, labels is not None)
    matrix, genes = sum_duplicate_genes(
        sp.csr_matrix(counts.to_numpy(np.int32)), make_genes(list(counts.columns)), section
    )
    table = pd.DataFrame(
        {"x": spots["pixel_x"], "y": spots["pixel_y"], "array_row": spots["y"], "array_col": spots["x"]}, index=shared
    )
    table["label"] = pd.Series([named.get(barcode) for barcode in shared], index=shared, dtype=object)
    if named and table["label"].isna().all():
        raise ValueError(
            f"section {section!r}: none of {len(named)} labels in {files.labels} names a spot. Ids look like '10x21'."
        )
    return Slide(
        slide_id=section,
        image=image,
        spots=table,
        counts=matrix,
        genes=genes,
        mpp=scale.mpp,
        scale=scale,
        patient_id=patient_id or re.sub(r"\d.*", "", section) or section,
        technology="Spatial Transcriptomics",
        tissue="breast cancer",
        species="human",
        label_source=""
        if not named or files.labels is None
        else files.labels.name
        if labels is not None
        else "pathologist",
        spot_um=100.0,
        source=f"her2st: {files.counts.name}, {files.spots.name}, {files.image.name}",
    )


def _data_folder(root: str | Path) -> Path:
    for data in (Path(root) / "data", Path(root)):
        if (data / "ST-cnts").is_dir():
            return data
    raise FileNotFoundError(f"no data/ST-cnts under {root}. Give the folder of the HER2ST repository (almaan/her2st).")


def _images(data: Path, section: str) -> list[Path]:
    folder = data / "ST-imgs" / section[:1] / section
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)


def _read_counts(path: Path, section: str) -> pd.DataFrame:
    """Returns counts with rows "XxY" (whole numbers) and columns genes."""
    counts = read_table(path, "counts", index_col=0)
    text = [str(name) for name, kind in counts.dtypes.items() if kind.kind not in "iuf"]
    rows = _spot_ids(counts.index)
    if rows is None:
        hint = (
            "Transpose it: spots are the columns."
            if _spot_ids(counts.columns) is not None
            else "Allowed: ids such as '10x21'."
        )
        raise ValueError(f"{path.name}: the row names {[str(name) for name in counts.index[:3]]} are not spots. {hint}")
    if text:
        raise ValueError(
            f"{path.name}: column {text[0]!r} holds text. Allowed: whole numbers. Correct or remove the column."
        )
    counts.index = rows
    duplicated = rows[rows.duplicated()]
    if len(duplicated):
        raise ValueError(
            f"{path.name}: {len(duplicated)} spots are duplicated, e.g. {duplicated[0]!r}. Keep one row per spot."
        )
    check_counts(counts.to_numpy(), section, hint=f"put the raw counts into {path.name}")
    # pandas renames the second of two equal column names to "NAME.1"; the header itself knows better.
    header = read_table(path, "counts", index_col=0, header=None, nrows=1, dtype=str, keep_default_na=False)
    names = [str(name) for name in header.iloc[0]]
    counts.columns = pd.Index(names if len(names) == counts.shape[1] else counts.columns)
    return counts


def _spot_ids(names: pd.Index) -> pd.Index | None:
    """Rounds "9.02x20.99" to "9x21"; None when a name is no pair of numbers."""
    matches = [_SPOT_ID.fullmatch(str(name)) for name in names]
    if not all(matches):
        return None
    return pd.Index([f"{round(float(m[1]))}x{round(float(m[2]))}" for m in matches if m])


def _read_spots(path: Path) -> pd.DataFrame:
    spots = read_table(path, "spots")
    missing = {"x", "y", "pixel_x", "pixel_y"} - set(spots.columns)
    if missing:
        raise KeyError(
            f"{path.name}: columns {sorted(missing)} are missing; found {list(spots.columns)}. Add or rename them."
        )
    spots = spots.dropna(subset=["x", "y"])
    spots["x"], spots["y"] = spots["x"].round().astype(int), spots["y"].round().astype(int)
    spots.index = pd.Index(spots["x"].astype(str) + "x" + spots["y"].astype(str))
    duplicated = spots.index[spots.index.duplicated()]
    if len(duplicated):
        raise ValueError(
            f"{path.name}: {len(duplicated)} spots are duplicated, e.g. {duplicated[0]!r}. Keep one row per spot."
        )
    return spots


def _read_labels(path: Path | None, section: str, is_csv: bool) -> dict[str, str]:
    """Returns label by spot id; empty labels and "none" are left out."""
    if path is None:
        return {}
    table = read_table(path, "labels")
    needed = {"section", "id", "label"} if is_csv else {"x", "y", "label"}
    if not needed <= set(table.columns):
        raise KeyError(
            f"{path.name}: columns {sorted(needed)} are needed; found {list(table.columns)}. Rename or add them."
        )
    if is_csv:
        table = table[table["section"].astype(str) == section]
        if table.empty:
            logger.warning("%s: no labels in %s", section, path.name)
    else:
        table = table.dropna(subset=["x", "y"])
        table = table.assign(
            id=table["x"].round().astype(int).astype(str) + "x" + table["y"].round().astype(int).astype(str)
        )
    table = table[table["label"].notna()]
    labels = {str(spot): str(label).strip() for spot, label in zip(table["id"], table["label"], strict=True)}
    return {spot: label for spot, label in labels.items() if label.lower() not in ("", "none")}
