"""The libraries of an AnnData in the Visium convention: choose one, find its spots and its image."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..full_size import check_image_size, full_size, open_full_size
from ..images import to_rgb
from ..values import identifiers, plain_values, positive

if TYPE_CHECKING:
    from anndata import AnnData

# Highest resolution first. CELLxGENE writes "fullres", in the frame of obsm["spatial"]; HEST writes "downscaled_fullres".
_IMAGES = ("fullres", "hires", "downscaled_fullres", "lowres")


def _libraries(adata: "AnnData") -> dict[str, Mapping[str, Any]]:
    """Return the entries of uns["spatial"] that hold images or scale factors; some tools put flags beside them."""
    found = adata.uns.get("spatial")
    if not isinstance(found, Mapping):
        return {}
    return {
        str(name): {**library, "scalefactors": plain_values(library.get("scalefactors", {}))}
        for name, library in found.items()
        if isinstance(library, Mapping) and ("images" in library or "scalefactors" in library)
    }


def library_of(
    adata: "AnnData", library_id: str | None, slide_value: str | None, image: object, name: str
) -> tuple[str, Mapping[str, Any]]:
    """Return the name of the chosen library, and its images and scale factors.

    Args:
        adata: the file.
        library_id: the library; may be left out where there is only one, or where one has the name of the slide.
        slide_value: name of the slide.
        image: the user's own image file, which makes a library unnecessary.
        name: of the file, for messages.

    Raises:
        KeyError: no library, or none of this name; the message lists the available ones.
        ValueError: several libraries, of which none is chosen.
    """
    libraries = _libraries(adata)
    if not libraries:
        if image is not None:
            return "", {}
        state = "holds no image and no scale factors" if "spatial" in adata.uns else "is missing"
        raise KeyError(
            f"{name}: uns['spatial'] {state}; uns has {sorted(adata.uns)}. Read the slide with squidpy.read.visium "
            "or scanpy.read_visium, which keep its image and scale, and write it again; or give the image (--image) and --mpp."
        )
    known = sorted(libraries)
    if library_id is None and slide_value in known:
        library_id = slide_value
    if library_id is None and len(known) > 1:
        column = _library_column(adata, known)
        raise ValueError(
            f"{name} holds {len(known)} libraries: {known}. Choose one (--library-id), or read all of them by the column of "
            f"obs that names them (--slide-key{f' {column}' if column else ''})."
        )
    library_id = library_id or known[0]
    if library_id not in libraries:
        raise KeyError(f"{name}: no library {library_id!r} in uns['spatial']. Available: {known}.")
    return library_id, libraries[library_id]


def _library_column(adata: "AnnData", known: list[str]) -> str | None:
    """Return the column of obs that names the library of each spot: library_id, else one whose values are the libraries."""
    columns = [str(name) for name in adata.obs if set(identifiers(adata.obs[name])) == set(known)]
    return "library_id" if "library_id" in adata.obs else columns[0] if columns else None


def rows_of_library(adata: "AnnData", library_id: str, name: str) -> np.ndarray:
    """Return which spots belong to this library (spots,) bool; all of them where the file holds only one."""
    known = sorted(_libraries(adata))
    if len(known) < 2:
        return np.ones(adata.n_obs, dtype=bool)
    column = _library_column(adata, known)
    if column is None:
        raise KeyError(
            f"{name} holds several libraries, but no column of obs names the library of each spot. Add obs['library_id']; "
            f"obs has {list(adata.obs.columns)}."
        )
    return np.array([value == library_id for value in identifiers(adata.obs[column])])


def image_of(
    library: Mapping[str, Any], image: str | Path | None, image_scale: float | None, name: str
) -> tuple[Any, float]:
    """Return the image and its scale, in pixels of the image per full-resolution pixel."""
    images, factors = library.get("images", {}), library.get("scalefactors", {})
    kinds = [key for key in _IMAGES if key in images]
    sizes = {key: found for key in kinds if (found := full_size(key, np.shape(images[key]), key, factors))}
    if image is not None:
        return open_full_size(image, image_scale, sizes.values(), name), image_scale or 1.0
    if not kinds:
        raise KeyError(
            f"{name}: no {', '.join(map(repr, _IMAGES))} image in the library; found {sorted(images)}. Give a file (--image)."
        )
    key = kinds[0]
    stated = factors.get(f"tissue_{key}_scalef", 1.0 if key == "fullres" else None)
    factor = positive(
        stated,
        f"{name}: tissue_{key}_scalef",
        f"Add the factor from scalefactors_json.json; scalefactors has {sorted(factors)}.",
    )
    for other in sizes.keys() - {key}:
        check_image_size(name, np.shape(images[key]), f"the {key} image", sizes[other], factor)
    return to_rgb(np.asarray(images[key]), name=f"{name}: the {key} image"), factor
