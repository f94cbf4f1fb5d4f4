"""SpatialData (.zarr): a table of spots, the shapes it annotates, and an image. Needs the extra `spatialdata`."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import optional_library, reader, reading
from ..cells import pool_cells
from ..declared import check_zarr
from ..lattice import VISIUM, SpotArray, arrays_named
from ..notes import Notes
from ..pixels import check_channels, check_opacity, to_rgb, white_level
from ..samples import keep_sample_columns
from ..scale import Scale, array_of_spots, given, lattice_states, settle_scale, spots_state, stated_diameters
from ..slide import Slide, make_slide_id
from ..values import labels
from .anndata_file import raw_counts
from .tables import keep_array_columns, on_tissue
from .transforms import refuse_stretch

logger = logging.getLogger(__name__)

# Side of the image pieces that are sampled to find the value of white.
_PIECE = 256


@reader
def read_spatialdata(
    path: str | Path,
    *,
    table: str | None = None,
    region: str | None = None,
    image: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    spot_um: float | None = None,
    layer: str | None = None,
    label_key: str | None = None,
    grid_um: float | None = None,
    slide_id: str | None = None,
    patient_id: str | None = None,
    technology: str = "",
    tissue: str = "",
    species: str = "",
) -> Slide:
    """Read one region of a SpatialData store: the centres of its shapes, brought into the frame of its image.

    Shapes are circles or polygons. Circles of one radius are spots and equal squares are bins; shapes of different sizes are
    cells, whose area is kept in `cell_area_um2`.

    Args:
        path: the .zarr folder.
        table: name of the table; may be left out when there is one.
        region: name of the shapes to read as spots; may be left out when the table annotates only one. Shapes that the table
            does not annotate are joined by the column of obs that holds their names.
        image: name of the image; may be left out when there is one.
        coordinate_system: one that shapes and image share; may be left out if all shared ones place the shapes alike.
        mpp: micrometres per pixel of the image; by default from the lattice of the spots if it is that of a known array, else
            spot_um divided by the diameter of the circles.
        spot_um: diameter of a spot in micrometres.
        layer: layer of the table with raw counts.
        label_key: column of the table's obs with labels.
        grid_um: sum rows on squares of this side in micrometres, see `pool_cells`.
        slide_id: by default the region.
        patient_id: by default the slide id.
        technology: for the slides table.
        tissue: for the slides table.
        species: for the slides and genes tables.

    Raises:
        ImportError: spatialdata is not installed.
        FileNotFoundError: nothing is there.
        ValueError: a damaged store, several elements of which one must be named, a table that annotates labels (pixels of a
            mask) and not shapes, no row with a shape, or an unknown scale.

    Examples:
        >>> slide = read_spatialdata("sample.zarr", table="table")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    data = _opened(path)
    adata = data.tables[_one(data.tables, table, "table", path.name)]
    keys, notes = adata.uns["spatialdata_attrs"], Notes()
    adata, region = _rows_of(data, adata, keys, region, path.name)
    adata = adata[on_tissue(adata.obs, f"{path.name}: obs['in_tissue']", notes)]
    image = _one(data.images, image, "image", path.name)
    shapes, matrix = data.shapes[region], _matrix(data, region, image, coordinate_system, path.name)
    refuse_stretch(matrix, f"{path.name}: the transformation from {region!r} to {image!r}", "Correct it.")
    names, known = _instances(adata, keys["instance_key"], shapes, region, path.name)
    if not known.all():
        logger.warning(
            "%s: left out %d of %d rows without a shape in %r", path.name, (~known).sum(), len(known), region
        )
        notes.leave_out_spots("without a shape", (~known).sum())
        adata, names = adata[known], names[known]
    centres, diameter_px = _centres(shapes, matrix)
    spots = _described(centres.loc[names], adata, label_key, path.name)
    slide_id = slide_id or make_slide_id(region)
    scale, array = _scale(spots, diameter_px, spot_um, mpp, technology, slide_id)
    if "area_px2" in spots:
        spots["cell_area_um2"] = spots.pop("area_px2") * scale.mpp**2
    counts, genes = raw_counts(adata, layer, slide_id, notes)
    slide = Slide(
        slide_id=slide_id, image=_rgb(data.images[image], image), spots=spots, counts=counts, genes=genes,
        mpp=scale.mpp, scale=scale, patient_id=patient_id or slide_id,
        technology=technology or ("" if array is None else array.name), tissue=tissue, species=species,
        spot_um=spot_um if array is None else array.spot_um,
        spot_px=diameter_px, notes=notes,
        label_source="" if label_key is None else f"obs[{label_key!r}]", source=f"spatialdata: {path.name}, {region}, {image}",
    )  # fmt: skip
    return slide if grid_um is None else pool_cells(slide, grid_um)


def _opened(path: Path) -> Any:
    """Return the store, read after a check of the sizes that it declares."""
    advice = "reading SpatialData needs the extra: pip install 'delst-hf[spatialdata]'."
    spatialdata = optional_library("spatialdata", advice)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder at {path}. Give the .zarr folder of a SpatialData object.")
    with reading(path, "SpatialData"):
        check_zarr(path)
        return spatialdata.read_zarr(path)


def _rows_of(data: Any, adata: Any, keys: Any, region: str | None, name: str) -> tuple[Any, str]:
    """Return the rows of the table that belong to the region, and its name.

    Raises:
        ValueError: several regions, or one that is not an element of shapes; the message names the choices.
    """
    of_row = adata.obs[keys["region_key"]].astype(str)
    annotated = sorted(set(of_row))
    if region is not None and region in data.shapes and region not in annotated:
        if len(annotated) > 1:
            raise ValueError(
                f"{name}: the table annotates {annotated}, not {region!r}, so which rows belong to {region!r} is unknown. "
                "Choose one of those, or another table (--table)."
            )
        return adata, region
    chosen = _one(annotated, region, "region", name)
    if chosen not in data.shapes:
        there = sorted(map(str, data.shapes))
        what = "labels, the pixels of a mask" if chosen in data.labels else "not in the store"
        step = (
            f"Join it to the outlines instead: --region {' or --region '.join(there)}."
            if there
            else f"Make outlines of them, sdata['outlines'] = spatialdata.to_polygons(sdata[{chosen!r}]), and write it again."
        )
        raise ValueError(f"{name}: the table annotates {chosen!r}, which is {what}, and not shapes. {step}")
    return adata[(of_row == chosen).to_numpy()], chosen


def _instances(adata: Any, key: str, shapes: Any, region: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the name of the shape of each row (rows,), and which rows have one (rows,) bool.

    The names are those of the instance key; where the table annotates something else, those of the first column of obs, or of
    the rows, of which most are names of shapes.
    """
    if shapes.index.has_duplicates:
        raise ValueError(f"{name}: shapes {region!r} have duplicate names. Make their index unique and write it again.")
    as_stored = {str(one): one for one in shapes.index}
    columns = [key, *(column for column in ("cell_id", "EntityID", "cell") if column in adata.obs and column != key)]
    tried = [*(adata.obs[column].astype(str).to_numpy() for column in columns), adata.obs_names.astype(str).to_numpy()]
    for names in tried:
        known = np.array([one in as_stored for one in names])
        if 2 * known.sum() > len(known) and len(set(names)) == len(names):
            return np.array([as_stored.get(one) for one in names], dtype=object), known
    raise ValueError(
        f"{name}: the rows of the table do not have the names of the shapes {region!r} ({list(as_stored)[:3]}); tried obs "
        f"{columns} and the names of rows. Choose other shapes (--region), or another table (--table)."
    )


def _one(known: Any, chosen: str | None, what: str, name: str) -> str:
    names = [str(one) for one in known]
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen is None or chosen not in names:
        found = f"{what} is {chosen!r}" if chosen is not None else f"there are {len(names)} choices for --{what}"
        raise ValueError(f"{name}: {found}. Choose one of {names} (--{what}).")
    return chosen


def _described(centres: pd.DataFrame, adata: Any, label_key: str | None, name: str) -> pd.DataFrame:
    """Return the centres with the row names of the table, and the array positions, labels and samples of its obs."""
    obs = adata.obs
    if label_key is not None and label_key not in obs:
        raise KeyError(f"{name}: no column {label_key!r} in obs. Available: {list(obs.columns)}.")
    spots = centres.set_index(adata.obs_names.astype(str))
    keep_array_columns(spots, obs)
    spots["label"] = None if label_key is None else pd.Series(labels(obs[label_key]), index=spots.index, dtype=object)
    keep_sample_columns(spots, obs)
    return spots


def _scale(
    spots: pd.DataFrame,
    diameter_px: float | None,
    spot_um: float | None,
    mpp: float | None,
    technology: str,
    slide_id: str,
) -> tuple[Scale, SpotArray | None]:
    """Return the scale per pixel of the image, and the array, None where it is not known."""
    # Cells lie on no printed array, however regular they look.
    cells, lattice, array = "area_px2" in spots, None, None
    if not cells:
        lattice, array = array_of_spots(spots, technology, bin_um=spot_um, spot_px=diameter_px)
    likely = array or (
        next(iter(arrays_named(technology, spot_um)), None) if technology and lattice is None and not cells else None
    )
    witnesses = [
        *given(mpp),
        *lattice_states(lattice, array),
        *spots_state(stated_diameters(likely, spot_um), diameter_px, "the diameter of the circles"),
    ]
    unknown = (
        "cells tell no scale"
        if cells
        else f"the spots are on {'no lattice that could be measured' if lattice is None else str(lattice)}. Name a known array "
        f"(--technology {VISIUM.name}), or for circles their diameter in micrometres (--spot-um)"
    )
    return settle_scale(slide_id, witnesses, unknown=unknown), array


def _matrix(data: Any, region: str, image: str, system: str | None, name: str) -> np.ndarray:
    """Return the matrix (3, 3) from the frame of the shapes to pixels of the image, through a shared coordinate system.

    Raises:
        ValueError: none is shared, the named one is not, or several place the shapes differently; the message lists all.
    """
    from spatialdata.transformations import get_transformation

    axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    of_shapes, of_image = (
        {str(key): one.to_affine_matrix(**axes) for key, one in get_transformation(element, get_all=True).items()}
        for element in (data.shapes[region], data.images[image])
    )
    matrices = {key: np.linalg.inv(of_image[key]) @ of_shapes[key] for key in of_shapes if key in of_image}
    listed = f"shapes {region!r} are in {sorted(of_shapes)}, image {image!r} in {sorted(of_image)}"
    if system is not None:
        if system not in matrices:
            raise ValueError(
                f"{name}: coordinate system {system!r} is not shared: {listed}. Choose a shared one (--coordinate-system)."
            )
        return matrices[system]
    if not matrices:
        raise ValueError(
            f"{name}: no coordinate system is shared: {listed}. Choose another image (--image) or shapes (--region)."
        )
    first = next(iter(matrices.values()))
    if not all(np.allclose(one, first, rtol=1e-4, atol=1e-3) for one in matrices.values()):
        raise ValueError(
            f"{name}: the coordinate systems {sorted(matrices)} place the spots differently on the image. Choose one "
            "(--coordinate-system)."
        )
    return first


def _centres(shapes: Any, matrix: np.ndarray) -> tuple[pd.DataFrame, float | None]:
    """Return x, y in pixels of the image by instance, with area_px2 for cells; and for spots and bins their side in pixels."""
    centre = shapes.geometry.centroid
    xy = np.column_stack([centre.x, centre.y, np.ones(len(shapes))]) @ matrix.T
    spots = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}, index=shapes.index)
    circles = "radius" in shapes
    area = (np.pi * shapes["radius"] ** 2 if circles else shapes.geometry.area).to_numpy(float)
    area = area * abs(np.linalg.det(matrix[:2, :2]))
    equal = bool(np.ptp(area) <= 0.01 * np.median(area)) and len(area) > 1
    if equal and circles:
        return spots, float(2 * np.sqrt(np.median(area) / np.pi))
    if equal and (shapes.geometry.count_coordinates() == 5).all():  # squares of Visium HD
        return spots, float(np.sqrt(np.median(area)))
    spots["area_px2"] = area
    return spots, None


def _rgb(element: Any, name: str) -> Any:
    """Return the largest scale of an image (c, y, x), read region by region."""
    if hasattr(element, "keys") and "scale0" in element:
        element = next(iter(element["scale0"].values()))
    names = [str(name) for name in element.coords["c"].values] if "c" in element.coords else []
    check_channels(names, name)
    return _LazyImage(element.transpose("y", "x", "c").data, name)


class _LazyImage:
    """A dask array (height, width, channels) as uint8 RGB."""

    dtype = np.dtype(np.uint8)

    def __init__(self, array: Any, name: str):
        if array.shape[2] not in (1, 3, 4):
            raise ValueError(
                f"image {name!r} has {array.shape[2]} channels. Allowed: 1 (grey), 3 (RGB) or 4 (RGB and opacity). Choose the "
                "H&E image (--image)."
            )
        self._array = array
        self.shape = (*array.shape[:2], 3)
        # Pieces from all over the image show which value is white, and whether a fourth channel is opacity.
        height, width = array.shape[:2]
        corners = [
            (int(y * (height - 1)), int(x * (width - 1))) for y in (0, 0.25, 0.5, 0.75) for x in (0, 0.25, 0.5, 0.75)
        ]
        pieces = [np.asarray(array[y : y + _PIECE, x : x + _PIECE]).reshape(-1, 1, array.shape[2]) for y, x in corners]
        sample = np.concatenate(pieces)
        self._white = white_level(sample[..., :3] if array.shape[2] == 4 else sample, f"image {name!r}")
        check_opacity(sample, self._white, f"image {name!r}")

    def __getitem__(self, region: Any) -> np.ndarray:
        return to_rgb(np.asarray(self._array[region]), self._white)
