"""AnnData (.h5ad, .zarr) in the Visium convention of scanpy and squidpy: one slide, or several named by a column of obs.

obsm["spatial"]                                           x, y in pixels of the full-resolution image
uns["spatial"][library_id]["images"]["fullres" | "hires" | "lowres"]  the image, full or reduced
uns["spatial"][library_id]["scalefactors"]                tissue_hires_scalef, spot_diameter_fullres, ...
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import did_you_mean, reader, reading
from ..files import visible, without
from ..lattice import VISIUM, SpotArray, arrays_named
from ..notes import Notes
from ..samples import keep_sample_columns, repeated_positions, same_places
from ..scale import (
    Scale,
    Witness,
    array_of_spots,
    given,
    image_states,
    lattice_states,
    settle_scale,
    spots_state,
    stated_diameters,
    stated_length,
)
from ..scratch import PACKED
from ..slide import Slide, make_slide_id, no_counts
from ..values import identifier, identifiers, labels
from .anndata_file import open_anndata, raw_counts
from .anndata_libraries import image_of, library_of, rows_of_library
from .tables import keep_array_columns, on_tissue

if TYPE_CHECKING:
    from anndata import AnnData

# Columns of x and of y in a table of positions: Space Ranger's, Seurat's, SpatialExperiment's, squidpy's.
_X = r"x|pxl_col(_in_fullres)?|image_?col|(pixel|center|centroid|spatial)_x|x_(centroid|location|coord|pixel)"
_Y = r"y|pxl_row(_in_fullres)?|image_?row|(pixel|center|centroid|spatial)_y|y_(centroid|location|coord|pixel)"


@reader
def read_anndata(
    path: str | Path,
    *,
    slide_id: str | None = None,
    library_id: str | None = None,
    slide_key: str | None = None,
    slide_value: str | None = None,
    mpp: float | None = None,
    spot_diameter_um: float | None = None,
    image: str | Path | None = None,
    image_scale: float | None = None,
    without_image: bool = False,
    layer: str | None = None,
    label_key: str | None = "label",
    patient_id: str | None = None,
    technology: str = "",
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read one section; coordinates are converted to pixels of the image that is used.

    Args:
        path: an .h5ad file or a .zarr folder.
        slide_id: by default slide_value, or without one the library id.
        library_id: key of uns["spatial"]; may be left out when there is only one.
        slide_key: column of obs that names the slide of each spot, where the file holds several.
        slide_value: the slide to read; its library in uns["spatial"] has the same name, unless library_id is given or there
            is only one.
        mpp: micrometres per FULL-RESOLUTION pixel (the frame of obsm["spatial"]); the reader converts it to the
            image's. By default from the lattice of the spots if it is that of a known array (pitch 100 um for Visium,
            200 or 150 um for legacy Spatial Transcriptomics), else the diameter of a spot divided by spot_diameter_fullres.
        spot_diameter_um: length in micrometres that spot_diameter_fullres stands for; by default that of the array: 65 for
            Visium, whose files state a theoretical spot, 100 for legacy Spatial Transcriptomics.
        image: a full-resolution image file to use instead of the reduced image in the file.
        image_scale: pixels of `image` per full-resolution pixel; by default 1, and an image of another size is refused.
        without_image: ignore any image: the spots then train the gene side alone.
        layer: the layer with raw counts, "raw" for adata.raw; by default X.
        label_key: column of obs with the labels, None or "" for no labels. A column other than the default must exist.
        patient_id: by default the slide id.
        technology: for example "Visium"; by default the known array that the lattice of the spots matches, else "Visium".
        tissue: for example "breast".
        species: for example "human".

    Returns:
        The slide, without spots whose obs["in_tissue"] is 0. `slide.validate()` is left to the caller.

    Raises:
        FileNotFoundError: no file.
        KeyError: a missing part of obs, obsm, uns or layers; the message lists what there is.
        ValueError: a damaged file, several libraries of which none is chosen, counts that are not raw counts.

    Examples:
        >>> slide = read_anndata("slide.h5ad", mpp=0.5)
        >>> slide.counts.shape, slide.spots["label"].tolist()
        ((3, 3), ['a', None, 'b'])
    """
    path = Path(path)
    adata = open_anndata(path)
    of_slide = _rows_of_slide(adata, slide_key, slide_value, path.name)
    chosen = library_id is not None or image is not None or without_image
    library_id, library = library_of(adata, library_id, slide_value, image or without_image or None, path.name)
    slide_id = slide_id or make_slide_id(slide_value or library_id or path.stem)
    notes = Notes()
    matrix, genes = raw_counts(adata, layer, slide_id, notes)
    pixels, factor = (None, 1.0) if without_image else image_of(library, image, image_scale, path.name)
    spots = _spots(adata, label_key, factor, path.name)
    if slide_key is None:
        of_slide = of_slide & rows_of_library(adata, library_id, path.name)
        keep_sample_columns(spots, adata.obs)
    elif not chosen and library_id != slide_value:
        _check_own_image(spots, of_slide, path.name, library_id, slide_key, slide_value)
    of_slide[of_slide] = on_tissue(adata.obs[of_slide], f"{path.name}: obs['in_tissue']", notes)
    if spot_diameter_um is not None and not (np.isfinite(spot_diameter_um) and spot_diameter_um > 0):
        raise ValueError(
            f"spot_diameter_um is {spot_diameter_um}. Allowed: a positive number, 55 for Visium (--spot-um)."
        )
    tagged = [] if image is None else image_states(pixels, Path(image).name, factor)
    scale, array = _scale(
        spots[of_slide], factor, library, spot_diameter_um, technology, slide_id, [*given(mpp), *tagged]
    )
    labelled = bool(spots["label"].notna().any())
    return Slide(
        slide_id=slide_id, image=pixels, spots=spots[of_slide], counts=matrix[of_slide], genes=genes, mpp=scale.mpp / factor,
        scale=scale, patient_id=patient_id or slide_id, tissue=tissue, species=species, notes=notes,
        technology=technology or (VISIUM if array is None else array).name,
        label_source=f"obs[{label_key!r}]" if labelled else "",
        spot_um=array.spot_um if array is not None else spot_diameter_um,
        spot_px=stated_length(library.get("scalefactors", {}).get("spot_diameter_fullres"), factor),
        source=f"anndata: {path.name}",
    )  # fmt: skip


def places_of_anndata(
    adata: "AnnData",
    name: str,
    *,
    image: str | Path | None = None,
    mpp: float | None = None,
) -> tuple[Slide, float]:
    """Return the positions of an AnnData's spots on its image, whatever X holds: predictions need no counts.

    Args:
        adata: The AnnData; all of its spots are kept, in their order.
        name: Its name in messages.
        image: a full-resolution image file to use instead of the reduced image in the AnnData.
        mpp: micrometres per FULL-RESOLUTION pixel; by default as in `read_anndata`.

    Returns:
        A slide without counts in the frame of the image, and the pixels of that frame per full-resolution pixel.

    Raises:
        KeyError: a missing part of obsm or uns; the message lists what there is.
        ValueError: several libraries, several samples on one image, or an unknown scale.
    """
    library_id, library = library_of(adata, None, None, image, name)
    pixels, factor = image_of(library, image, None, name)
    spots, slide_id = _spots(adata, "label", factor, name), make_slide_id(library_id or Path(name).stem)
    if several := ", ".join(repeated_positions(spots)):
        raise ValueError(
            f"{name} is several samples on one image: {several}. Give the spots of each sample with its own image, such as "
            "adata[adata.obs['sample'] == 'S1'].copy()."
        )
    tagged = [] if image is None else image_states(pixels, Path(image).name, factor)
    scale, array = _scale(spots, factor, library, None, "", slide_id, [*given(mpp), *tagged])
    slide = Slide(
        slide_id=slide_id, image=pixels, spots=spots, mpp=scale.mpp / factor, scale=scale, patient_id=slide_id,
        spot_um=None if array is None else array.spot_um, source=f"anndata: {name}", **no_counts(spots),
    )  # fmt: skip
    return slide, factor


def find_anndata_slides(path: str | Path, slide_key: str) -> list[str]:
    """Return the slides of a file that holds several: the values of a column of obs, in order of first appearance.

    Raises:
        KeyError: no such column; the message lists the columns of obs.
    """
    return list(dict.fromkeys(identifiers(_names_of_slides(open_anndata(path), slide_key, Path(path).name).dropna())))


def anndata_slide_id(path: str | Path, library_id: str | None = None) -> str:
    """Return the slide id of a file, without reading its counts: the library, where there is one, else the name of the file."""
    import h5py

    path = Path(path).expanduser()
    known: list[str] = []
    if library_id is None and path.suffix == ".h5ad":
        with reading(path, "AnnData"), h5py.File(path, "r") as file:
            spatial = file.get("uns/spatial", {})
            known = [
                name for name, one in spatial.items() if hasattr(one, "keys") and {"images", "scalefactors"} & set(one)
            ]
    elif library_id is None:
        known = [one.name for one in visible(path / "uns" / "spatial") if visible(one, "images", "scalefactors")]
    name = library_id or (known[0] if len(known) == 1 else without(path.name, PACKED).rpartition(".")[0])
    return make_slide_id(name)


def _rows_of_slide(adata: "AnnData", slide_key: str | None, slide_value: str | None, name: str) -> np.ndarray:
    if slide_key is None:
        return np.ones(adata.n_obs, dtype=bool)
    column = identifiers(_names_of_slides(adata, slide_key, name))
    rows = np.array([value == identifier(slide_value) for value in column])
    if not rows.any():
        raise ValueError(f"{name}: no spot has obs[{slide_key!r}] = {slide_value!r}. There are {sorted(set(column))}.")
    return rows


def _names_of_slides(adata: "AnnData", slide_key: str, name: str) -> pd.Series:
    if slide_key not in adata.obs:
        raise KeyError(f"{name}: no column {slide_key!r} in obs. Available: {list(adata.obs.columns)} (--slide-key).")
    return adata.obs[slide_key]


def _scale(
    spots: pd.DataFrame,
    factor: float,
    library: Mapping[str, Any],
    spot_um: float | None,
    technology: str,
    slide_id: str,
    witnesses: list[Witness],
) -> tuple[Scale, SpotArray | None]:
    """Return the scale per full-resolution pixel, and the array, None where it is not known."""
    diameter = stated_length(library.get("scalefactors", {}).get("spot_diameter_fullres"))
    lattice, array = array_of_spots(spots, technology, factor=factor, spot_px=diameter)
    unknown = f"spot_diameter_fullres is {library.get('scalefactors', {}).get('spot_diameter_fullres')}"
    if array is None and lattice is None:  # too few spots to measure: assume the array of the format
        array = next(iter(arrays_named(technology or VISIUM.name)), None)
    elif array is None:
        unknown = (
            f"the spots lie on {lattice}, which identifies no known array: Visium is hexagons of 100 um, Spatial "
            "Transcriptomics squares of 200 um or a checkerboard of 150 um (delst prepare anndata --technology)"
        )
    witnesses = [
        *witnesses,
        *lattice_states(lattice, array),
        *spots_state(stated_diameters(array, spot_um), diameter, "spot_diameter_fullres"),
    ]
    return settle_scale(slide_id, witnesses, frame="full-resolution pixel", unknown=unknown), array


def _check_own_image(
    spots: pd.DataFrame, of_slide: np.ndarray, name: str, library_id: str, slide_key: str, slide_value: str | None
) -> None:
    """Refuse a single image for several slides whose spots have the same positions."""
    if shared := same_places(spots[of_slide], spots[~of_slide]):
        raise ValueError(
            f"{name} has one image, {library_id!r}, for several slides: {shared} spots of {slide_value!r} have the positions "
            f"of spots of other slides, so the image shows one of them. Read that slide by name (--slide-key {slide_key} "
            f"--slide-value NAME --library-id {library_id}), the others with their own images (--image)."
        )


def positions_of(adata: "AnnData", name: str) -> np.ndarray:
    """Return x and y (spots, 2) of obsm["spatial"]: the columns named x and y, else the first two.

    Args:
        adata: The AnnData.
        name: Its name in messages.

    Raises:
        KeyError: If obsm has no "spatial".
        ValueError: If obsm["spatial"] does not hold two numbers per spot.
    """
    if "spatial" not in adata.obsm:
        raise KeyError(
            f"{name}: obsm['spatial'] is missing; obsm has {sorted(adata.obsm)}. Store x, y in "
            "full-resolution pixels there."
        )
    spatial = adata.obsm["spatial"]
    table = spatial if isinstance(spatial, pd.DataFrame) else pd.DataFrame()
    named = [[column for column in table if re.fullmatch(pattern, str(column), re.I)] for pattern in (_X, _Y)]
    chosen = table[[named[0][0], named[1][0]]] if all(len(columns) == 1 for columns in named) else spatial
    xy = np.asarray(chosen, dtype=float)
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise ValueError(f"{name}: obsm['spatial'] has shape {xy.shape}. Allowed: (spots, 2), columns x and y.")
    return xy


def _spots(adata: "AnnData", label_key: str | None, scale: float, name: str) -> pd.DataFrame:
    xy = positions_of(adata, name)
    obs = adata.obs
    if label_key and label_key != "label" and label_key not in obs:
        raise KeyError(
            f"{name}: no column {label_key!r} in obs.{did_you_mean([label_key], obs.columns)} Available: {list(obs.columns)}."
        )
    columns = {"x": xy[:, 0] * scale, "y": xy[:, 1] * scale, "array_row": -1, "array_col": -1}
    spots = pd.DataFrame(columns, index=identifiers(obs.index))
    keep_array_columns(spots, obs)
    if label_key and label_key in obs:
        spots["label"] = pd.Series(labels(obs[label_key]), index=spots.index, dtype=object)
    else:
        spots["label"] = None
    return spots
