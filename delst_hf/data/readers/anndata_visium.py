"""AnnData (.h5ad, .zarr) in the Visium convention of scanpy and squidpy, one slide or several by a column of obs.

obsm["spatial"]                                           x, y in pixels of the full-resolution image
uns["spatial"][library_id]["images"]["hires" | "lowres"]  reduced images
uns["spatial"][library_id]["scalefactors"]                tissue_hires_scalef, spot_diameter_fullres, ...
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..images import check_readable, open_image, to_rgb
from ..slide import Slide, check_counts, describe_bad_counts, make_genes, sum_duplicate_genes
from .lattice import visium_lattice_mpp

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


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
    slide_id = slide_id or slide_value or library_id or path.stem
    matrix, var = raw_counts(adata, layer, slide_id)
    matrix, genes = sum_duplicate_genes(matrix, make_genes(list(var.index), _gene_ids(var)), slide_id)
    pixels, scale = _image(library, image, path.name)
    spots = _spots(adata, label_key, scale, path.name)
    keep = of_slide & _kept(adata, library_id, slide_key, path.name)
    if mpp is None:
        mpp = _mpp(spots[keep], scale, library, spot_diameter_um, path.name)
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
    return [str(value) for value in pd.unique(obs[slide_key].dropna())]


def open_anndata(path: str | Path) -> "AnnData":
    """Reads an .h5ad or .zarr.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: another suffix, or a damaged file.
    """
    import anndata

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}. Give the path of an .h5ad file or a .zarr folder.")
    if path.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"{path} is not an .h5ad file or .zarr folder. Write one with adata.write_h5ad(...).")
    if path.is_file():
        check_readable(path, "AnnData")
    try:
        return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"cannot read {path}: {error}. The file is truncated or no AnnData: write or download it again."
        ) from error


def _rows_of_slide(adata: "AnnData", slide_key: str | None, slide_value: str | None, name: str) -> np.ndarray:
    if slide_key is None:
        return np.ones(adata.n_obs, dtype=bool)
    if slide_key not in adata.obs:
        raise KeyError(f"{name}: no column {slide_key!r} in obs. Available: {list(adata.obs.columns)} (--slide-key).")
    column = adata.obs[slide_key].astype(str)
    rows = (column == str(slide_value)).to_numpy()
    if not rows.any():
        raise ValueError(f"{name}: no spot has obs[{slide_key!r}] = {slide_value!r}. There are {sorted(set(column))}.")
    return rows


def _library(
    adata: "AnnData", library_id: str | None, slide_value: str | None, image: object, name: str
) -> tuple[str, Mapping[str, Any]]:
    libraries = adata.uns.get("spatial")
    if not isinstance(libraries, Mapping) or not libraries:
        if image is not None:
            return "", {}
        raise KeyError(
            f"{name}: uns['spatial'] is missing; uns has {sorted(adata.uns)}. Read the slide with squidpy.read.visium "
            "or scanpy.read_visium, which keep its image and scale, and write that; or give the image (--image) and --mpp."
        )
    known = sorted(map(str, libraries))
    if library_id is None and slide_value in known:
        library_id = slide_value
    if library_id is None and len(known) > 1:
        raise ValueError(
            f"{name} holds {len(known)} libraries: {known}. Choose one with library_id (--library-id), or read all of them by "
            "the column of obs that names them (--slide-key)."
        )
    library_id = library_id or known[0]
    if library_id not in libraries:
        raise KeyError(f"{name}: no library {library_id!r} in uns['spatial']. Available: {known}.")
    return library_id, libraries[library_id]


def raw_counts(adata: "AnnData", layer: str | None, slide_id: str) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Returns the chosen matrix as int32 counts (spots, genes) and the table of its genes.

    Raises:
        KeyError: no such layer.
        ValueError: values that are not counts; the message names the layers that are.
    """
    if layer is None:
        matrix, var = adata.X, adata.var
    elif layer == "raw" and adata.raw is not None:
        matrix, var = adata.raw.X, adata.raw.var
    elif layer in adata.layers:
        matrix, var = adata.layers[layer], adata.var
    else:
        raise KeyError(f"slide {slide_id!r}: no layer {layer!r}. Available: {_layers(adata)}; X is used without layer.")
    if matrix is None:
        raise ValueError(f"slide {slide_id!r}: X is empty. Choose a layer (--layer): {_layers(adata)}.")
    found = [
        name
        for name in _layers(adata)
        if describe_bad_counts(adata.raw.X if name == "raw" else adata.layers[name]) is None
    ]
    hint = (
        f"layers with counts in this file: {found}; choose with layer (--layer)"
        if found
        else ("give raw counts as X, adata.layers['counts'] or adata.raw; this file has none")
    )
    check_counts(matrix, slide_id, hint=hint)
    counts = sp.csr_matrix(matrix).astype(np.int32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts, var


def _layers(adata: "AnnData") -> list[str]:
    return sorted(adata.layers) + (["raw"] if adata.raw is not None else [])


def _gene_ids(var: pd.DataFrame) -> list[str] | None:
    for column in ("gene_ids", "gene_id"):
        if column in var:
            return var[column].astype(object).tolist()
    return None


def _image(library: Mapping[str, Any], image: str | Path | None, name: str) -> tuple[np.ndarray, float]:
    """Returns the image and its scale: pixels of it per full-resolution pixel."""
    if image is not None:
        return open_image(image), 1.0
    images = library.get("images", {})
    key = next((key for key in ("hires", "lowres") if key in images), None)
    if key is None:
        raise KeyError(
            f"{name}: no 'hires' or 'lowres' image in the library; found {sorted(images)}. Give a file (--image)."
        )
    factor = library.get("scalefactors", {}).get(f"tissue_{key}_scalef")
    if factor is None or not np.isfinite(factor) or factor <= 0:
        raise KeyError(
            f"{name}: tissue_{key}_scalef is {factor}; scalefactors has {sorted(library.get('scalefactors', {}))}. "
            "Add the positive factor from scalefactors_json.json."
        )
    return to_rgb(np.asarray(images[key])), float(factor)


def _mpp(spots: pd.DataFrame, scale: float, library: Mapping[str, Any], spot_diameter_um: float, name: str) -> float:
    lattice = visium_lattice_mpp(
        spots[["array_row", "array_col"]].to_numpy(float), spots[["y", "x"]].to_numpy(float) / scale
    )
    if lattice is None:
        return _mpp_from_spot(library, spot_diameter_um, name)
    logger.info("%s: the spots' pitch of 100 um gives mpp = %.4f at full resolution", name, lattice)
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
    spots = pd.DataFrame({"x": xy[:, 0] * scale, "y": xy[:, 1] * scale}, index=obs.index.astype(str))
    for column in ("array_row", "array_col"):
        spots[column] = pd.to_numeric(obs[column]).fillna(-1).astype(int).to_numpy() if column in obs else -1
    raw = obs[label_key].astype(object).tolist() if label_key is not None and label_key in obs else [None] * len(obs)
    labels = [None if pd.isna(value) or not str(value).strip() else str(value) for value in raw]
    spots["label"] = pd.Series(labels, index=spots.index, dtype=object)
    return spots


def _kept(adata: "AnnData", library_id: str, slide_key: str | None, name: str) -> np.ndarray:
    """Spots of this library that lie on tissue."""
    keep = np.ones(adata.n_obs, dtype=bool)
    if slide_key is None and len(adata.uns.get("spatial", ())) > 1:
        if "library_id" not in adata.obs:
            raise KeyError(
                f"{name} holds several libraries, but obs['library_id'] does not say which spot is whose. Add it."
            )
        keep &= (adata.obs["library_id"].astype(str) == library_id).to_numpy()
    if "in_tissue" in adata.obs:
        on_tissue = adata.obs["in_tissue"].astype(float).to_numpy() > 0
        if (keep & ~on_tissue).any():
            logger.info("%s: left out %d spots that are not in_tissue", name, (keep & ~on_tissue).sum())
        keep &= on_tissue
    return keep
