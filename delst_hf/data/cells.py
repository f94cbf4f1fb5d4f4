"""Cells as rows of a slide: centres and areas from outlines, and cells summed on a grid of squares."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .samples import signs_of_samples
from .slide import Slide

logger = logging.getLogger(__name__)

Ring = Sequence[Sequence[float]] | np.ndarray
# More squares than this along the image mean that the side of a square was given in another unit.
_MAX_SQUARES = 1 << 15


def outlines(polygons: Iterable[Sequence[Sequence[Ring]]]) -> pd.DataFrame:
    """Return the centroid and the area of every cell, by the shoelace formula.

    Args:
        polygons: for each cell its polygons (one, or several as in a MultiPolygon), each a list of rings: the outline, then its
            holes. A ring is a list of points x, y, running either way, with or without the first repeated at the end.

    Returns:
        Columns x, y, area in the units of the points, one row per cell. The centre of an outline without an area is the mean
        of its points; a cell without points has NaN.

    >>> square_with_hole = [[[0, 0], [4, 0], [4, 4], [0, 4]], [[0, 0], [2, 0], [2, 4], [0, 4]]]
    >>> outlines([[square_with_hole], [[[[1, 1], [3, 1], [3, 2], [1, 2]]]]]).values.tolist()
    [[3.0, 2.0, 8.0], [2.0, 1.5, 2.0]]
    """
    points: list[np.ndarray] = []
    cells: list[int] = []
    signs: list[float] = []
    number = -1
    for number, cell in enumerate(polygons):
        for rings in cell:
            for position, ring in enumerate(rings):
                if len(ring):
                    points.append(np.asarray(ring, dtype=float)[:, :2])
                    cells.append(number)
                    signs.append(-1.0 if position else 1.0)
    if not points:
        return pd.DataFrame({"x": np.nan, "y": np.nan, "area": np.nan}, index=range(number + 1))
    x, y, area = _rings(points)
    weight = np.array(signs) * area
    of_cell = np.array(cells)
    total, sum_x, sum_y = (np.bincount(of_cell, values, number + 1) for values in (weight, weight * x, weight * y))
    count, mean_x, mean_y = (np.bincount(of_cell, values, number + 1) for values in (np.ones(len(x)), x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        flat = total <= 0
        centre_x, centre_y = (
            np.where(flat, mean_x / count, sum_x / total),
            np.where(flat, mean_y / count, sum_y / total),
        )
    area = np.where(count > 0, np.maximum(total, 0), np.nan)
    return pd.DataFrame({"x": centre_x, "y": centre_y, "area": area})


def _rings(points: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the centre x, y and area (>= 0) of every ring (rings,)."""
    lengths = np.array([len(ring) for ring in points])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    flat = np.concatenate(points)
    # Relative to the first point of each ring: far from the origin the products would lose precision.
    origin = flat[starts]
    flat = flat - np.repeat(origin, lengths, axis=0)
    following = np.arange(1, len(flat) + 1)
    following[starts + lengths - 1] = starts
    cross = flat[:, 0] * flat[following, 1] - flat[following, 0] * flat[:, 1]
    doubled = np.add.reduceat(cross, starts)
    moments = np.add.reduceat((flat + flat[following]) * cross[:, None], starts)
    means = np.add.reduceat(flat, starts) / lengths[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(doubled[:, None] != 0, moments / (3 * doubled[:, None]), means) + origin
    return centre[:, 0], centre[:, 1], np.abs(doubled) / 2


def pool_cells(slide: Slide, grid_um: float) -> Slide:
    """Return the slide with its rows summed on squares of grid_um, as pseudo-spots.

    The grid begins at the top left corner of the image. Squares without a row are left out, as are squares whose centre lies
    outside the image; the rows of the latter are counted as left out. A square has a label if all its labelled rows share it.

    Args:
        slide: rows are cells, or points.
        grid_um: side of a square in micrometres.

    Returns:
        The slide of squares in order of row and column: array_row and array_col are row and column in the grid, spot_um is
        grid_um, counts are sums; x and y are the centres of the squares.

    Raises:
        ValueError: a side that is not positive, or too small for the image, or no square within the image.
    """
    if not (np.isfinite(grid_um) and grid_um > 0):
        raise ValueError(f"grid_um is {grid_um}. Allowed: a positive side in micrometres, e.g. 55 (--grid-um).")
    side = grid_um / slide.mpp
    x, y = slide.spots["x"].to_numpy(float), slide.spots["y"].to_numpy(float)
    height, width = (
        (np.nanmax(y) + side, np.nanmax(x) + side) if slide.image is None else slide.image.shape[:2]
    )  # without an image: the extent of the cells
    if max(height, width) / side > _MAX_SQUARES:
        raise ValueError(
            f"slide {slide.slide_id!r}: squares of {grid_um:g} um are {side:.3g} px, more than {_MAX_SQUARES} along the image. "
            "Use larger squares (--grid-um)."
        )
    with np.errstate(invalid="ignore"):
        row, column = np.floor(y / side), np.floor(x / side)
        inside = ((row + 0.5) * side < height) & ((column + 0.5) * side < width) & (row >= 0) & (column >= 0)
    if not inside.any():
        raise ValueError(
            f"slide {slide.slide_id!r}: none of {len(x)} cells lies in a square of {grid_um:g} um within the image. Check the "
            "coordinates and their scale, or use smaller squares (--grid-um)."
        )
    if not inside.all():
        logger.warning(
            "%s: left out %d of %d cells beyond the squares of the image", slide.slide_id, (~inside).sum(), len(x)
        )
        slide.notes.leave_out_spots("beyond the squares of the image", (~inside).sum())
    keys, square = np.unique(
        row[inside].astype(np.int64) * _MAX_SQUARES + column[inside].astype(np.int64), return_inverse=True
    )
    rows, columns = keys // _MAX_SQUARES, keys % _MAX_SQUARES
    summing = sp.csr_matrix(
        (np.ones(len(square), np.int64), (square, np.arange(len(square)))), shape=(len(keys), len(square))
    )
    counts = sp.csr_matrix(summing @ slide.counts.tocsr()[inside].astype(np.int64))
    # Sums hide that a square holds cells of several samples, so look for signs of them first.
    signs = (*slide.signs_of_samples, *signs_of_samples(slide.spots))
    spots = pd.DataFrame(
        {"x": (columns + 0.5) * side, "y": (rows + 0.5) * side, "array_row": rows, "array_col": columns,
         "label": _agreed(slide.spots["label"].to_numpy(object)[inside], square, len(keys))},
        index=[f"{r}x{c}" for r, c in zip(rows, columns, strict=True)],
    )  # fmt: skip
    logger.info("%s: %d cells added up on %d squares of %g um", slide.slide_id, inside.sum(), len(keys), grid_um)
    slide.notes.remarks.append(f"{inside.sum()} cells were added up on {len(keys)} squares of {grid_um:g} um.")
    source = f"{slide.source}, squares of {grid_um:g} um"
    return replace(
        slide, spots=spots, counts=counts, spot_um=grid_um, spot_px=None, source=source, signs_of_samples=signs
    )


def _agreed(labels: np.ndarray, square: np.ndarray, number: int) -> np.ndarray:
    """Return the label of each square (squares,): the one that its rows share, None where they have none or several."""
    table = pd.DataFrame({"label": labels, "square": square}).dropna().drop_duplicates()
    table = table[~table["square"].duplicated(keep=False)]
    result = np.full(number, None, dtype=object)
    result[table["square"].to_numpy(int)] = table["label"].to_numpy(object)
    return result
