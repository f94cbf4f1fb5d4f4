"""AnnData (.h5ad, .zarr) in the Visium convention of scanpy and squidpy, one slide or several by a column of obs.

obsm["spatial"]                                           x, y in pixels of the full-resolution image
uns["spatial"][library_id]["images"]["fullres" | "hires" | "lowres"]  the image, whole or reduced
uns["spatial"][library_id]["scalefactors"]                tissue_hires_scalef, spot_diameter_fullres, ...
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...errors import reader
from ..images import open_image, to_rgb
from ..lattice import lattice_mpp, lattice_pitch_um, stated_length
from ..slide import Slide, make_slide_id
from ..values import identifier, identifiers, labels, plain_values, positive, whole_or
from .anndata_file import on_tissue, open_anndata, raw_counts

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

# The sharpest first. "fullres" is CELLxGENE's, in the frame of obsm["spatial"] itself; "downscaled_fullres" is HEST's.
_IMAGES = ("fullres", "hires", "downscaled_fullres", "lowres")


@reader
def read_anndata(
    path: str | Path,
    *,
    slide_id: str | None = None,
    library_id: str | None = None,
    slide_key: str | None = None,
    slide_value: str | None = None,
    mpp: float | None = None,
    spot_diameter_um: float = 55.0,
    image: str | Path | None = None,
    layer: str | None = None,
    label_key: str | None = "label",
    patient_id: str | None = None,
    technology: str = "Visium",
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Reads one section; coordinates are scaled into the frame of the image that is used.

    Args:
        path: an .h5ad file or a .zarr folder.
        slide_id: by default the library id, or with slide_key the value.
        library_id: which entry of uns["spatial"]; may be left out when there is one.
        slide_key: column of obs that says which slide a spot is of, where the file holds several.
        slide_value: which of them; its library in uns["spatial"] has the same name, unless library_id is given or there is
            only one.
        mpp: micrometres per FULL-RESOLUTION pixel (the frame of obsm["spatial"]); the reader converts it to the
            image's. By default 100 um over the pitch, where obs has the array positions of a Visium slide, else
            spot_diameter_um / spot_diameter_fullres.
        spot_diameter_um: 55 for Visium, 100 for legacy Spatial Transcriptomics.
        image: a full-resolution image file to use instead of the reduced image in the file.
        layer: the layer with raw counts, "raw" for adata.raw; by default X.
        label_key: column of obs with the labels, None for no labels. The default may be absent, another may not.
        patient_id: by default the slide id.
        technology: for example "Visium".
        tissue: for example "breast".
        species: for example "human".

    Returns:
        The slide, without spots whose obs["in_tissue"] is 0. `slide.validate()` is left to the caller.

    Raises:
        FileNotFoundError: no file.
        KeyError: a missing part of obs, obsm, uns or layers; the message lists what there is.
        ValueError: a damaged file, several libraries, counts that are not counts.
    """
    path = Path(path)
    adata = open_anndata(path)
    of_slide = _rows_of_slide(adata, slide_key, slide_value, path.name)
    library_id, library = _library(adata, library_id, slide_value, image, path.name)
    slide_id = slide_id or make_slide_id(slide_value or library_id or path.stem)
    matrix, genes = raw_counts(adata, layer, slide_id)
    pixels, scale = _image(library, image, path.name)
    spots = _spots(adata, label_key, scale, path.name)
    keep = of_slide & on_tissue(adata.obs, path.name)
    if slide_key is None:
        keep &= _rows_of_library(adata, library_id, path.name)
    if not keep.any():
        raise ValueError(
            f"{path.name}: no spot of {slide_id!r} is in_tissue. Check obs['in_tissue'], or remove the column."
        )
    if mpp is None:
        mpp = _mpp(spots[keep], scale, library, spot_diameter_um, technology, path.name)
    labelled = bool(spots["label"].notna().any())
    return Slide(
        slide_id=slide_id,
        image=pixels,
        spots=spots[keep],
        counts=matrix[keep],
        genes=genes,
        mpp=mpp / scale,
        patient_id=patient_id or slide_id,
        technology=technology,
        tissue=tissue,
        species=species,
        label_source=f"obs[{label_key!r}]" if labelled else "",
        spot_um=spot_diameter_um,
        spot_px=stated_length(library.get("scalefactors", {}).get("spot_diameter_fullres"), scale),
        source=f"anndata: {path.name}",
    )


def find_anndata_slides(path: str | Path, slide_key: str) -> list[str]:
    """The slides of a file that holds several: the values of a column of obs, in order of first appearance.

    Raises:
        KeyError: no such column; the message lists those there are.
    """
    obs = open_anndata(path).obs
    if slide_key not in obs:
        raise KeyError(
            f"{Path(path).name}: no column {slide_key!r} in obs. Available: {list(obs.columns)} (--slide-key)."
        )
    return list(dict.fromkeys(identifiers(obs[slide_key].dropna())))


def _rows_of_slide(adata: "AnnData", slide_key: str | None, slide_value: str | None, name: str) -> np.ndarray:
    if slide_key is None:
        return np.ones(adata.n_obs, dtype=bool)
    if slide_key not in adata.obs:
        raise KeyError(f"{name}: no column {slide_key!r} in obs. Available: {list(adata.obs.columns)} (--slide-key).")
    column = identifiers(adata.obs[slide_key])
    rows = np.array([value == identifier(slide_value) for value in column])
    if not rows.any():
        raise ValueError(f"{name}: no spot has obs[{slide_key!r}] = {slide_value!r}. There are {sorted(set(column))}.")
    return rows


def _libraries(adata: "AnnData") -> dict[str, Mapping[str, Any]]:
    """The entries of uns["spatial"] that hold images or scale factors; some tools put flags beside them."""
    found = adata.uns.get("spatial")
    if not isinstance(found, Mapping):
        return {}
    libraries = {
        str(name): library for name, library in found.items()
        if isinstance(library, Mapping) and ("images" in library or "scalefactors" in library)
    }  # fmt: skip
    return {
        name: {**library, "scalefactors": plain_values(library.get("scalefactors", {}))}
        for name, library in libraries.items()
    }


def _library(
    adata: "AnnData", library_id: str | None, slide_value: str | None, image: object, name: str
) -> tuple[str, Mapping[str, Any]]:
    libraries = _libraries(adata)
    if not libraries:
        if image is not None:
            return "", {}
        raise KeyError(
            f"{name}: uns['spatial'] is missing; uns has {sorted(adata.uns)}. Read the slide with squidpy.read.visium "
            "or scanpy.read_visium, which keep its image and scale, and write that; or give the image (--image) and --mpp."
        )
    known = sorted(libraries)
    if library_id is None and slide_value in known:
        library_id = slide_value
    if library_id is None and len(known) > 1:
        column = _library_column(adata, known)
        raise ValueError(
            f"{name} holds {len(known)} libraries: {known}. Choose one with library_id (--library-id), or read all of them by "
            f"the column of obs that names them (--slide-key{f' {column}' if column else ''})."
        )
    library_id = library_id or known[0]
    if library_id not in libraries:
        raise KeyError(f"{name}: no library {library_id!r} in uns['spatial']. Available: {known}.")
    return library_id, libraries[library_id]


def _library_column(adata: "AnnData", known: list[str]) -> str | None:
    """The column of obs that says which library a spot is of: library_id, else one whose values are the libraries."""
    columns = [str(name) for name in adata.obs if set(identifiers(adata.obs[name])) == set(known)]
    return "library_id" if "library_id" in adata.obs else columns[0] if columns else None


def _image(library: Mapping[str, Any], image: str | Path | None, name: str) -> tuple[np.ndarray, float]:
    """Returns the image and its scale: pixels of it per full-resolution pixel."""
    if image is not None:
        return open_image(image), 1.0
    images = library.get("images", {})
    key = next((key for key in _IMAGES if key in images), None)
    if key is None:
        raise KeyError(
            f"{name}: no {', '.join(map(repr, _IMAGES))} image in the library; found {sorted(images)}. Give a file (--image)."
        )
    factors = library.get("scalefactors", {})
    stated = factors.get(f"tissue_{key}_scalef", 1.0 if key == "fullres" else None)
    factor = positive(
        stated,
        f"{name}: tissue_{key}_scalef",
        f"Add the factor from scalefactors_json.json; scalefactors has {sorted(factors)}.",
    )
    return to_rgb(np.asarray(images[key])), factor


def _mpp(
    spots: pd.DataFrame,
    scale: float,
    library: Mapping[str, Any],
    spot_diameter_um: float,
    technology: str,
    name: str,
) -> float:
    array, pixels = spots[["array_row", "array_col"]].to_numpy(float), spots[["y", "x"]].to_numpy(float) / scale
    lattice = lattice_mpp(technology, array, pixels)
    if lattice is None:
        return _mpp_from_spot(library, spot_diameter_um, name)
    pitch = lattice_pitch_um(technology)
    logger.info("%s: the spots' pitch of %g um gives mpp = %.4f at full resolution", name, pitch, lattice)
    return lattice


def _mpp_from_spot(library: Mapping[str, Any], spot_diameter_um: float, name: str) -> float:
    if not (np.isfinite(spot_diameter_um) and spot_diameter_um > 0):
        raise ValueError(
            f"spot_diameter_um is {spot_diameter_um}. Allowed: a positive number, 55 for Visium (--spot-um)."
        )
    diameter = library.get("scalefactors", {}).get("spot_diameter_fullres")
    if diameter is None or not np.isfinite(diameter) or diameter <= 0:
        raise ValueError(
            f"{name}: spot_diameter_fullres is {diameter}, so the scale is unknown. Give the micrometres per "
            "full-resolution pixel: mpp (--mpp)."
        )
    mpp = spot_diameter_um / float(diameter)
    logger.info(
        "%s: a spot of %g um is %.1f px, so mpp = %.4f at full resolution", name, spot_diameter_um, diameter, mpp
    )
    return mpp


def _spots(adata: "AnnData", label_key: str | None, scale: float, name: str) -> pd.DataFrame:
    if "spatial" not in adata.obsm:
        raise KeyError(
            f"{name}: obsm['spatial'] is missing; obsm has {sorted(adata.obsm)}. Store x, y in "
            "full-resolution pixels there."
        )
    xy = np.asarray(adata.obsm["spatial"], dtype=float)
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise ValueError(f"{name}: obsm['spatial'] has shape {xy.shape}. Allowed: (spots, 2), columns x and y.")
    obs = adata.obs
    if label_key is not None and label_key != "label" and label_key not in obs:
        raise KeyError(f"{name}: no column {label_key!r} in obs. Available: {list(obs.columns)}.")
    spots = pd.DataFrame({"x": xy[:, 0] * scale, "y": xy[:, 1] * scale}, index=identifiers(obs.index))
    for column in ("array_row", "array_col"):
        spots[column] = whole_or(obs[column], -1) if column in obs else -1
    if label_key is not None and label_key in obs:
        spots["label"] = pd.Series(labels(obs[label_key]), index=spots.index, dtype=object)
    else:
        spots["label"] = None
    return spots


def _rows_of_library(adata: "AnnData", library_id: str, name: str) -> np.ndarray:
    """Spots of this library (spots,) bool, where the file holds several."""
    known = sorted(_libraries(adata))
    if len(known) < 2:
        return np.ones(adata.n_obs, dtype=bool)
    column = _library_column(adata, known)
    if column is None:
        raise KeyError(
            f"{name} holds several libraries, but obs['library_id'] does not say which spot is whose. Add it; obs has "
            f"{list(adata.obs.columns)}."
        )
    return np.array([value == library_id for value in identifiers(adata.obs[column])])
