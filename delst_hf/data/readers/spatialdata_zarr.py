"""SpatialData (.zarr): a table of spots, the shapes it annotates, and an image. Needs the extra `spatialdata`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import reader
from ..images import to_rgb
from ..slide import Slide, make_slide_id
from .anndata_file import raw_counts


@reader
def read_spatialdata(
    path: str | Path,
    *,
    table: str | None = None,
    region: str | None = None,
    image: str | None = None,
    coordinate_system: str = "global",
    mpp: float | None = None,
    spot_um: float | None = None,
    layer: str | None = None,
    label_key: str | None = None,
    slide_id: str | None = None,
    patient_id: str | None = None,
    technology: str = "",
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Reads one region of a SpatialData store: the centres of its shapes, brought into the frame of its image.

    Args:
        path: the .zarr folder.
        table: name of the table; may be left out when there is one.
        region: the shapes that the spots are; may be left out when the table annotates one.
        image: name of the image; may be left out when there is one.
        coordinate_system: the one that shapes and image share.
        mpp: micrometres per pixel of the image; by default spot_um over the diameter of the circles.
        spot_um: diameter of a spot.
        layer: layer of the table with raw counts.
        label_key: column of the table's obs with labels.
        slide_id: by default the region.
        patient_id: by default the slide id.
        technology: for the slides table.
        tissue: for the slides table.
        species: for the slides and genes tables.

    Raises:
        ImportError: spatialdata is not installed.
        FileNotFoundError: nothing is there.
        ValueError: a damaged store, several elements of which one must be named, or an unknown scale.
    """
    try:
        import spatialdata
    except ImportError as error:
        raise ImportError("reading SpatialData needs the extra: pip install 'delst-hf[spatialdata]'.") from error
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"no folder at {path}. Give the .zarr folder of a SpatialData object.")
    try:
        data = spatialdata.read_zarr(path)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}. It is incomplete or no SpatialData: write it again.") from error
    adata = data.tables[_one(data.tables, table, "table", path.name)]
    keys = adata.uns["spatialdata_attrs"]
    region = _one(sorted(set(adata.obs[keys["region_key"]].astype(str))), region, "region", path.name)
    adata = adata[(adata.obs[keys["region_key"]].astype(str) == region).to_numpy()]
    image = _one(data.images, image, "image", path.name)
    spots, diameter_px = _centres(spatialdata, data, region, image, coordinate_system)
    spots = spots.loc[adata.obs[keys["instance_key"]].to_numpy()].set_index(adata.obs_names.astype(str))
    if label_key is not None and label_key not in adata.obs:
        raise KeyError(f"{path.name}: no column {label_key!r} in obs. Available: {list(adata.obs.columns)}.")
    if label_key is not None:
        labels = [None if pd.isna(label) else str(label) for label in adata.obs[label_key]]
        spots["label"] = pd.Series(labels, index=spots.index, dtype=object)
    if mpp is None and (spot_um is None or diameter_px is None):
        raise ValueError(
            f"{path.name}: the scale is unknown. Give the micrometres per pixel (--mpp), or for circles their diameter in "
            "micrometres (--spot-um)."
        )
    slide_id = slide_id or make_slide_id(region)
    counts, genes = raw_counts(adata, layer, slide_id)
    return Slide(
        slide_id=slide_id, image=_rgb(data.images[image]), spots=spots, counts=counts, genes=genes,
        mpp=float(mpp if mpp is not None else spot_um / diameter_px),  # type: ignore[operator]
        patient_id=patient_id or slide_id, technology=technology, tissue=tissue, species=species, spot_um=spot_um,
        spot_px=diameter_px,
        label_source="" if label_key is None else f"obs[{label_key!r}]", source=f"spatialdata: {path.name}, {image}",
    )  # fmt: skip


def _one(known: Any, chosen: str | None, what: str, name: str) -> str:
    names = [str(one) for one in known]
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen is None or chosen not in names:
        raise ValueError(f"{name}: {what} is {chosen!r}. Choose one of {names} (--{what}).")
    return chosen


def _centres(spatialdata: Any, data: Any, region: str, image: str, system: str) -> tuple[pd.DataFrame, float | None]:
    """x, y in pixels of the image by instance, and the median diameter of circles in pixels."""
    from spatialdata.transformations import get_transformation

    shapes = data.shapes[region]
    spots_to_system = get_transformation(shapes, to_coordinate_system=system)
    image_to_system = get_transformation(data.images[image], to_coordinate_system=system)
    axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    matrix = np.linalg.inv(image_to_system.to_affine_matrix(**axes)) @ spots_to_system.to_affine_matrix(**axes)
    centre = shapes.geometry.centroid
    xy = np.column_stack([centre.x, centre.y, np.ones(len(shapes))]) @ matrix.T
    diameter = None
    if "radius" in shapes:
        diameter = float(2 * np.median(shapes["radius"]) * np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    return pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}, index=shapes.index), diameter


def _rgb(element: Any) -> Any:
    """The largest scale of an image (c, y, x), read region by region."""
    if hasattr(element, "keys") and "scale0" in element:
        element = next(iter(element["scale0"].values()))
    return _LazyImage(element.transpose("y", "x", "c").data)


class _LazyImage:
    """A dask array (height, width, channels) as uint8 RGB."""

    dtype = np.dtype(np.uint8)

    def __init__(self, array: Any):
        self._array = array
        self.shape = (*array.shape[:2], 3)

    def __getitem__(self, region: Any) -> np.ndarray:
        return to_rgb(np.asarray(self._array[region]))
