"""10x Genomics Visium and Visium HD: the `outs` folder of Space Ranger.

OUTS/filtered_feature_bc_matrix.h5, or the folder filtered_feature_bc_matrix/ with matrix.mtx.gz, barcodes, features
OUTS/spatial/tissue_positions.csv (Space Ranger 2 on, with a header), tissue_positions_list.csv (before, without one) or
    tissue_positions.parquet (HD): barcode, in_tissue, array_row, array_col, pxl_row_in_fullres (y), pxl_col_in_fullres (x)
OUTS/spatial/scalefactors_json.json, tissue_hires_image.png, tissue_lowres_image.png
HD: OUTS/binned_outputs/square_008um/ has the same, with bin_size_um and microns_per_pixel among the scale factors
"""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import reader, reading
from ..files import only_one, visible, without
from ..full_size import check_image_size, full_size, open_full_size
from ..images import image_size, open_image
from ..lattice import VISIUM, SpotArray, arrays_named, bins, matching_array, measure_lattice
from ..scale import Scale, given, image_states, lattice_states, settle_scale, spots_state, stated, stated_length
from ..scratch import ARCHIVES
from ..slide import Slide, make_slide_id
from ..values import identifiers, plain_values, positive
from .deposit import samples, standard_layout, without_counts
from .joined import join_spots
from .matrices import Counts, read_10x_h5, read_mtx
from .tables import POSITION_COLUMNS, is_first_position, need_columns, on_tissue, read_table, tissue_flags

logger = logging.getLogger(__name__)

# Folder names that any run has, so they cannot name a slide.
_NAMES_OF_ANY_RUN = {"outs", "spaceranger", "spatial", "count", "output", "outputs", ""}
_PARTS_OF_HD = re.compile(r"binned_outputs|segmented_outputs|square_\d+um")
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")


@reader
def read_visium(
    path: str | Path,
    *,
    prefix: str | None = None,
    slide_id: str | None = None,
    image: str | Path | None = None,
    image_scale: float | None = None,
    mpp: float | None = None,
    patient_id: str | None = None,
    technology: str = "Visium",
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read the spots on tissue of one Visium slide.

    Args:
        path: the folder `outs` or its parent; or a deposit of a public archive: a folder or .tar in which these names have a
            prefix, compressed or not, with or without a folder spatial/.
        prefix: prefix of the sample's files, where a folder holds several samples.
        slide_id: by default the name of the folder that holds `outs`.
        image: the full-resolution image; by default the reduced one in the folder, with coordinates scaled into it.
        image_scale: pixels of `image` per full-resolution pixel; by default 1, and an image of another size is refused.
        mpp: micrometres per FULL-RESOLUTION pixel. By default 100 um divided by the pitch of the spots; where they are too few
            to measure it, 65 um (the theoretical spot of Space Ranger) divided by spot_diameter_fullres.
        patient_id: by default the slide id.
        technology: for the slides table; "Spatial Transcriptomics" for a legacy array in this layout.
        tissue: for example "breast".
        species: for example "human"; by default from the Ensembl ids.

    Returns:
        The slide with gene ids and symbols. `slide.validate()` is left to the caller.

    Raises:
        FileNotFoundError: a file of the layout is missing.
        ValueError: a damaged file, an unknown scale, or positions and counts that share no spot.
        KeyError: a missing column.

    Examples:
        >>> slide = read_visium("visium/outs", slide_id="S1")
        >>> slide.counts.shape, slide.genes["symbol"].tolist()[:3], round(slide.mpp, 2)
        ((12, 6), ['ACTB', 'GAPDH', 'ERBB2'], 10.0)
    """
    folder = _outs(Path(path).expanduser(), prefix)
    slide_id = slide_id or outs_name(path, prefix)
    arrays = arrays_named(technology) or (VISIUM,)
    return _slide(folder, slide_id, arrays, image, image_scale, mpp, patient_id, technology, tissue, species)


@reader
def read_visium_hd(
    path: str | Path,
    *,
    bin_um: int = 8,
    slide_id: str | None = None,
    image: str | Path | None = None,
    image_scale: float | None = None,
    mpp: float | None = None,
    patient_id: str | None = None,
    technology: str = "Visium HD",
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read one bin size of a Visium HD slide; bins are its spots, and their side is kept in `spot_um`.

    Args:
        path: the folder `outs`, its parent, `binned_outputs`, or one `square_...um`.
        bin_um: side of a bin in micrometres; selects the folder `square_...um`.
        slide_id: by default the name of the folder that holds `outs`.
        image: the full-resolution image; by default the reduced one.
        image_scale: see `read_visium`.
        mpp: micrometres per FULL-RESOLUTION pixel; by default microns_per_pixel of the scale factors.
        patient_id: by default the slide id.
        technology: for the slides table.
        tissue: for example "breast".
        species: for example "human"; by default from the Ensembl ids.

    Raises:
        FileNotFoundError: a file of the layout, or this bin size, is missing; the message lists the bin sizes found.
        ValueError, KeyError: see `read_visium`.

    Examples:
        >>> slide = read_visium_hd("visium_hd/outs", bin_um=8)
        >>> slide.counts.shape, slide.spot_um
        ((12, 6), 8.0)
    """
    folder = _bin_folder(Path(path).expanduser(), bin_um)
    side = stated_length(scale_factors(folder / "spatial").get("bin_size_um")) or float(bin_um)
    slide_id = slide_id or hd_name(folder)
    return _slide(folder, slide_id, (bins(side),), image, image_scale, mpp, patient_id, technology, tissue, species)


def scaled_image(
    image: str | Path | None, folders: Sequence[Path], factors: dict[str, Any], name: str, image_scale: float | None
) -> tuple[Any, float, str]:
    """Return the full-resolution image if given, else the reduced one in these folders, with its scale and its file name.

    Raises:
        FileNotFoundError: there is no image.
        ValueError: the size of the image is not the one that the reduced image and its scale factor imply.
    """
    reduced = {kind: found for kind in ("hires", "lowres") if (found := _reduced_image(folders, kind))}
    sizes = {
        kind: whole
        for kind, path in reduced.items()
        if (size := image_size(path)) and (whole := full_size(kind, size, path.name, factors))
    }
    if image is not None:
        return open_full_size(image, image_scale, sizes.values(), name), image_scale or 1.0, Path(image).name
    if not reduced:
        raise FileNotFoundError(
            f"no tissue_hires_image.png or tissue_lowres_image.png in {folders[0]}. Give the full-resolution image (--image)."
        )
    kind, path = next(iter(reduced.items()))
    scale = positive(
        factors.get(f"tissue_{kind}_scalef"),
        f"{folders[0] / 'scalefactors_json.json'}: tissue_{kind}_scalef",
        f"It has {sorted(factors)}. Give the full-resolution image (--image), or correct the factor.",
    )
    pixels = open_image(path)
    if kind == "hires" and "lowres" in sizes:
        check_image_size(name, pixels.shape, path.name, sizes["lowres"], scale)
    logger.warning("%s: patches are cut from the reduced %s; give the full-resolution image (--image)", name, path.name)
    return pixels, scale, path.name


def _reduced_image(folders: Sequence[Path], kind: str) -> Path | None:
    images = [path for folder in folders for path in visible(folder, f"tissue_{kind}_image.*")]
    return only_one(images, f"the {kind} image of one slide", "Keep one of them.")


def _slide(folder, slide_id, arrays, image, image_scale, mpp, patient_id, technology, tissue, species) -> Slide:
    spatial = folder / "spatial"
    factors, positions = scale_factors(spatial), _positions(spatial)
    # A Visium HD run may hold its images only in outs/spatial, beside binned_outputs.
    outer = [folder.parent.parent / "spatial"] if folder.name.startswith("square_") else []
    pixels, factor, image_name = scaled = scaled_image(image, [spatial, *outer], factors, slide_id, image_scale)
    counts = _counts(folder)
    scale, array = _scale(slide_id, positions, factors, mpp, scaled, arrays)
    advice = "Correct that column: 1 for each spot on tissue."
    what = f"slide {slide_id!r}: in_tissue of the positions in {spatial}"
    kept = on_tissue(positions, what, counts.notes, advice=advice)
    spots, matrix = join_spots(positions[kept], counts, slide_id)
    table = pd.DataFrame(
        {
            "x": spots["pxl_col_in_fullres"].astype(float) * factor,
            "y": spots["pxl_row_in_fullres"].astype(float) * factor,
            "array_row": spots["array_row"].astype(int),
            "array_col": spots["array_col"].astype(int),
        },
        index=spots.index,
    )
    return Slide(
        notes=counts.notes,
        slide_id=slide_id, image=pixels, spots=table, counts=matrix, genes=counts.genes, mpp=scale.mpp / factor, scale=scale,
        patient_id=patient_id or slide_id, technology=technology, tissue=tissue, species=species,
        spot_um=None if array is None else array.spot_um,
        spot_px=stated_length(factors.get("spot_diameter_fullres"), factor),
        source=f"{'visium-hd' if technology == 'Visium HD' else 'visium'}: {counts.name}, {image_name}",
    )  # fmt: skip


def _scale(
    slide_id: str,
    positions: pd.DataFrame,
    factors: dict[str, Any],
    mpp: float | None,
    image: tuple[Any, float, str],
    arrays: tuple[SpotArray, ...],
) -> tuple[Scale, SpotArray | None]:
    """Return the scale per full-resolution pixel, and the array, None where the spots lie on another lattice."""
    pixels, factor, name = image
    lattice = measure_lattice(
        positions[["pxl_row_in_fullres", "pxl_col_in_fullres"]].to_numpy(float),
        positions[["array_row", "array_col"]].to_numpy(float),
    )
    array = arrays[0] if lattice is None else matching_array(lattice, arrays)
    witnesses = [
        *given(mpp),
        *lattice_states(lattice, array),
        *stated("microns_per_pixel of scalefactors_json.json", factors.get("microns_per_pixel")),
        *image_states(pixels, name, factor),
    ]
    if array is None:
        unknown = (
            f"the positions lie on {lattice}, which is not the lattice of {arrays[0].name} ({arrays[0].kind}, "
            f"{arrays[0].pitch_um:g} um), so neither their pitch nor the diameter of a spot is known. For a legacy array add "
            "--technology 'Spatial Transcriptomics'"
        )
        if witnesses:
            logger.warning("%s: %s", slide_id, unknown)
    else:
        diameter = stated_length(factors.get("spot_diameter_fullres"))
        unknown = f"spot_diameter_fullres is {factors.get('spot_diameter_fullres')}"
        witnesses += spots_state(array.stated_um, diameter, "spot_diameter_fullres")
    return settle_scale(slide_id, witnesses, frame="full-resolution pixel", unknown=unknown), array


def _outs(path: Path, prefix: str | None) -> Path:
    if any((folder / "binned_outputs").is_dir() for folder in (path, path / "outs")):
        raise FileNotFoundError(f"{path} is a Visium HD run. Read it with `delst prepare visium-hd` (read_visium_hd).")
    return standard_layout(path, prefix)


def _bin_folder(path: Path, bin_um: int) -> Path:
    wanted = f"square_{int(bin_um):03d}um"
    if path.name == wanted and (path / "spatial").is_dir():
        return path
    for root in (path, path / "outs"):
        for folder in (root / "binned_outputs", root):
            if (folder / wanted / "spatial").is_dir():
                return folder / wanted
            if known := sorted(found.name for found in folder.glob("square_*um")):
                raise FileNotFoundError(f"no {wanted} in {folder}. There are {known}: choose one (--bin-um).")
    advice = "Give the folder `outs` of a Visium HD run."
    if side := re.fullmatch(r"square_(\d+)um", path.name):
        advice = f"It holds bins of {int(side[1])} um: add --bin-um {int(side[1])}, or give the folder `outs`."
    elif path.is_file():
        advice = "It is a file: unpack it if it is an archive, and give the folder `outs` of a Visium HD run."
    elif samples(path) or samples(path / "outs"):
        advice = "It is a Visium run: read it with `delst prepare visium`."
    raise FileNotFoundError(f"no binned_outputs/{wanted} in {path}. {advice}")


def outs_name(outs: str | Path, prefix: str | None = None) -> str:
    """Return the slide id of a run: the prefix of its files if given, else the innermost folder whose name is the sample's."""
    if prefix:
        return make_slide_id(prefix.rstrip("_.-"))
    path = Path(outs).expanduser().resolve()
    named = [part for part in (path, *path.parents) if part.name.lower() not in _NAMES_OF_ANY_RUN]
    return make_slide_id(without(named[0].name, ARCHIVES))


def hd_name(path: str | Path) -> str:
    """Return the slide id of a Visium HD run from the path of any of its folders."""
    path = Path(path).expanduser().resolve()
    own = next((one for one in (path, *path.parents) if not _PARTS_OF_HD.fullmatch(one.name)), path)
    return outs_name(own)


def _counts(folder: Path) -> Counts:
    advice = "Keep the counts of one sample in the folder."
    file = only_one(visible(folder, "*filtered_feature_bc_matrix.h5"), "the counts of one slide", advice)
    if file is not None:
        return read_10x_h5(file)
    if (folder / "filtered_feature_bc_matrix").is_dir():
        return read_mtx(folder / "filtered_feature_bc_matrix")
    raise without_counts(folder)


def _positions(spatial: Path) -> pd.DataFrame:
    found = visible(spatial, *_POSITIONS)
    if not found:
        raise FileNotFoundError(f"none of {', '.join(_POSITIONS)} in {spatial}. Give the whole `outs` folder.")
    tables = [_read_positions(path) for path in found]
    if any(not table.sort_index().equals(tables[0].sort_index()) for table in tables[1:]):
        raise ValueError(
            f"{spatial} holds {len(found)} different tables of positions: {', '.join(path.name for path in found)}. Keep "
            "the one of this slide."
        )
    return tables[0]


def _read_positions(path: Path) -> pd.DataFrame:
    # Some tools write tissue_positions_list.csv with a header, and tissue_positions.csv without one.
    table = read_table(path, "positions", text=["barcode", 0])
    names = table.columns.tolist()
    if "in_tissue" not in names and (path.name == "tissue_positions_list.csv" or is_first_position(names)):
        table = read_table(path, "positions", text=[0], header=None)
        table.columns = pd.Index(POSITION_COLUMNS if table.shape[1] == len(POSITION_COLUMNS) else table.columns)
    need_columns(table, sorted(POSITION_COLUMNS), path.name, "Add or rename them.")
    table = table if table.index.name == "barcode" else table.set_index("barcode")
    table["in_tissue"] = tissue_flags(table["in_tissue"], f"{path.name}: in_tissue")
    with reading(path, "positions", "All columns except barcode must hold numbers: correct the table."):
        table = table[POSITION_COLUMNS[1:]].astype(dict.fromkeys(POSITION_COLUMNS[2:], float))
    return table.set_axis(pd.Index(identifiers(table.index), dtype=object))


def scale_factors(spatial: Path) -> dict[str, Any]:
    path = spatial / "scalefactors_json.json"
    if not path.is_file():
        raise FileNotFoundError(f"no scalefactors_json.json in {spatial}. Give the whole `outs` folder.")
    with reading(path, "scale factors"):
        factors = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(factors, dict):
        raise ValueError(f"{path} holds a JSON {type(factors).__name__}, not named scale factors. Download it again.")
    return plain_values(factors)
