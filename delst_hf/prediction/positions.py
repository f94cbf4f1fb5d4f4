"""Positions of patches on a slide, read from a table, an AnnData, a dataset folder or a file of features, by one rule.

Files are checked piece by piece before they are loaded completely; positions from any source pass `check_places`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.declared import check_hdf5, check_parquet
from ..data.files import open_packed, without
from ..data.images import check_readable
from ..data.readers.anndata_visium import positions_of
from ..data.readers.tables import POSITION_COLUMNS, as_written, dialect, is_first_position, on_tissue, unmarked
from ..data.scratch import PACKED, plain_file
from ..data.study import Study
from ..data.values import identifiers, some_of
from ..errors import reading
from ..evaluation.neighbours import blocks

_ROWS_AT_ONCE = 100_000
# Columns of x, of y and, optional, of 1 for spots on tissue. Space Ranger and the spot detector of legacy arrays come first:
# the x and y of that detector are positions on the array, not pixels.
_COLUMNS = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres", "in_tissue"),
    ("pixel_x", "pixel_y", "selected"),
    ("x", "y", "in_tissue"),
)
# Columns that hold the names of spots; R and pandas leave the first column without a name.
_NAMES_OF_SPOTS = ("barcode", "barcodes", "unnamed: 0")
# In a table of no more rows than this, positions may repeat: predicting some of them again costs little.
_FEW = 10_000


def check_positions(path: str) -> None:
    """Refuse a file of positions that does not exist, before the slide is opened.

    Raises:
        FileNotFoundError: If there is no such file or folder.

    Examples:
        >>> check_positions("runs/toy/data")
    """
    if not Path(path).is_dir():
        check_readable(path, "positions", "Give a CSV or parquet with columns x and y (--positions).")


def read_positions(path: str, shape: tuple[int, ...] | None = None) -> pd.DataFrame:
    """Read x and y, in pixels of the full-resolution image, from a CSV or parquet, an .h5ad, or a dataset folder.

    Args:
        path: The file or folder.
        shape: (height, width) of the image, which bounds how many positions there can be; None where it is not known.

    Returns:
        The table, whose index names the positions.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no positions, more than the image has pixels, or most of them several times.

    Examples:
        >>> _ = Path("places.csv").write_text("x,y\\n3,4\\n")
        >>> len(read_positions("places.csv"))
        1
    """
    if Path(path).is_dir():
        return _of_dataset(path, shape)
    check_positions(path)
    file = Path(path)
    with reading(file, "positions", "Give a CSV, parquet or .h5ad with x and y, in pixels of the full resolution."):
        of_anndata = without(file.name, PACKED).endswith(".h5ad")
        table = _of_anndata(plain_file(file), shape) if of_anndata else _of_table(file, shape)
        if table.index.has_duplicates:
            twice = table.index[table.index.duplicated()][0]
            raise ValueError(
                f"{file.name}: the barcode {twice!r} is in several rows. Give each position a name of its own."
            )
        return table


def check_places(
    table: pd.DataFrame, name: str, shape: tuple[int, ...] | None = None, side: float = np.inf
) -> pd.DataFrame:
    """Refuse positions that cannot be patches of a slide, whatever they were read from.

    Args:
        table: x and y in pixels of the image; the index names the positions.
        name: Name of the source in messages.
        shape: (height, width) of the image; None where it is not known.
        side: Side of a patch in pixels; a patch that lies fully outside the image is refused.

    Returns:
        x and y alone, as float64.

    Raises:
        ValueError: If there is no position, one is not a pair of finite numbers or lies beyond the image, there are more
            than the image has pixels, or most rows repeat positions.

    Examples:
        >>> check_places(pd.DataFrame({"x": [3, 1e12], "y": [4, 5]}, index=["a", "b"]), "places.csv", (60, 80), side=10)
        Traceback (most recent call last):
        ValueError: places.csv: 1 of 2 positions have a patch beyond the image of 80 x 60 px, the first 'b' with x = ...
    """
    if table.empty:
        raise ValueError(f"{name} has no position. Give x and y of at least one patch.")
    _look_through((table.iloc[rows] for rows in blocks(len(table), _ROWS_AT_ONCE)), name, shape)
    places = table[["x", "y"]].apply(pd.to_numeric, errors="coerce").astype(float)
    wrong, what = ~np.isfinite(places).all(axis=1).to_numpy(), "no numbers as x and y"
    if shape is not None and not wrong.any():
        height, width = shape[:2]
        inside = (places > -side / 2) & (places < np.array([width, height]) + side / 2)
        wrong, what = ~inside.all(axis=1).to_numpy(), f"a patch beyond the image of {width} x {height} px"
    if wrong.any():
        first = wrong.argmax()
        raise ValueError(
            f"{name}: {wrong.sum()} of {len(wrong)} positions have {what}, the first {table.index[first]!r} with x = "
            f"{table['x'].iloc[first]}, y = {table['y'].iloc[first]}. Give pixels of the full resolution of this image, or "
            "leave these rows out."
        )
    return places


def _of_dataset(path: str, shape: tuple[int, ...] | None) -> pd.DataFrame:
    study = Study.load(path)
    if len(study.slides) > 1:
        raise ValueError(f"{path} holds several slides: {sorted(study.slide_ids)}. Give positions of one.")
    size = tuple(int(study.slides[name].iloc[0]) for name in ("image_height", "image_width"))
    if shape is not None and all(size) and size != tuple(shape[:2]):
        raise ValueError(
            f"the positions in {path} are pixels of an image of {size[1]} x {size[0]} px, but this image has {shape[1]} x "
            f"{shape[0]} px. Give the image that the dataset was made from, or positions in pixels of this one."
        )
    spots = study.spots.select_columns(["x", "y", "barcode", "array_row", "array_col"])
    _look_through((piece.to_pandas() for piece in spots.with_format("arrow").iter(_ROWS_AT_ONCE)), path, shape)
    return spots.to_pandas().set_index("barcode")


def _of_anndata(file: Path, shape: tuple[int, ...] | None) -> pd.DataFrame:
    import anndata

    check_hdf5(file)
    _look_through(_anndata_pieces(file), file.name, shape)
    adata = anndata.read_h5ad(file, backed="r")
    places = positions_of(adata, file.name)
    table = pd.DataFrame({"x": places[:, 0], "y": places[:, 1]}, index=adata.obs_names.astype(str))
    return in_pixels(table.join(adata.obs[["in_tissue"]]) if "in_tissue" in adata.obs else table, file.name)


def _anndata_pieces(file: Path) -> Iterator[pd.DataFrame]:
    """Yield the positions of an .h5ad if they are an array of two columns or more; anything else is refused later."""
    import h5py

    with h5py.File(file, "r") as opened:
        places = opened.get("obsm/spatial")
        if isinstance(places, h5py.Dataset) and len(places.shape) == 2 and places.shape[1] > 1:
            for rows in blocks(len(places), _ROWS_AT_ONCE):
                yield pd.DataFrame(places[rows, :2], columns=["x", "y"])


def _of_table(file: Path, shape: tuple[int, ...] | None) -> pd.DataFrame:
    if file.suffix == ".parquet":
        check_parquet(file)
        _look_through(_parquet_pieces(file), file.name, shape)
        table = pd.read_parquet(file)
        names = _name_of_spots(table.columns)
    else:
        told = dialect(file) | _header(file, dialect(file))
        names = _name_of_spots(told["names"])
        told |= {"converters": as_written([] if names is None else [names]), "chunksize": _ROWS_AT_ONCE}
        with open_packed(file) as opened:
            table = pd.concat(_looked_through(pd.read_csv(opened, **told), file.name, shape))
        if names is not None:
            table[names] = unmarked(table[names])
    if names is not None:
        table = table.set_index(pd.Index(identifiers(table.pop(names)), name="barcode"))
    table = in_pixels(table, file.name)
    return table.set_axis(table.index.astype(str))


def _name_of_spots(columns: Iterable[str]) -> str | None:
    return next((name for name in columns if str(name).lower() in _NAMES_OF_SPOTS), None)


def _header(file: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Return the column names of a text file as options of `pandas.read_csv`; Space Ranger 1 wrote no header."""
    with open_packed(file) as opened:
        header = pd.read_csv(opened, **(told | {"nrows": 0})).columns.tolist()
    if is_first_position(header):
        return {"names": POSITION_COLUMNS, "header": None}
    return {"names": header, "header": 0}


def _parquet_pieces(file: Path) -> Iterator[pd.DataFrame]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        columns = _columns(opened.schema_arrow.names, file.name)[:2]
        for piece in opened.iter_batches(_ROWS_AT_ONCE, columns=list(columns)):
            yield piece.to_pandas(ignore_metadata=True)


def in_pixels(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table of positions with x and y in pixels, whatever wrote it, without positions that are not on tissue.

    Args:
        table: With x and y, or a table of Space Ranger or of a spot detector; the index names the positions.
        name: Name of the table in messages.

    Raises:
        ValueError: If there are no columns of positions, or no position is on tissue.

    Examples:
        >>> in_pixels(pd.DataFrame({"in_tissue": [0, 1], "pxl_row_in_fullres": 5, "pxl_col_in_fullres": [3, 4]}), "a.csv")
           in_tissue  y  x
        1          1  5  4
    """
    x, y, tissue = _columns(table.columns.tolist(), name)
    if x == "pixel_x" and {"x", "y"} <= set(table) and isinstance(table.index, pd.RangeIndex):
        named = zip(table["x"], table["y"], strict=True)
        table = table.set_axis(pd.Index([f"{float(one):.0f}x{float(other):.0f}" for one, other in named]))
    if x != "x":
        table = table.drop(columns=["x", "y"], errors="ignore").rename(columns={x: "x", y: "y"})
    return table[on_tissue(table, f"{name}: {tissue}", column=tissue)]


def _look_through(pieces: Iterable[pd.DataFrame], name: str, shape: tuple[int, ...] | None) -> None:
    for _ in _looked_through(pieces, name, shape):
        pass


def _looked_through(pieces: Iterable[pd.DataFrame], name: str, shape: tuple[int, ...] | None) -> Iterator[pd.DataFrame]:
    """Yield pieces of a table while it can be a table of positions.

    A table of a few kilobytes can hold millions of identical rows, each of which would be a patch to predict.

    Raises:
        ValueError: If x or y is missing, there are more rows than the image has pixels, or most rows repeat positions.
    """
    rows, look_at, places = 0, _FEW, []
    for piece in pieces:
        columns = list(_columns(piece.columns.tolist(), name)[:2])
        rows += len(piece)
        if shape is not None and rows > shape[0] * shape[1]:
            raise ValueError(
                f"{name} holds more positions than the image of {shape[1]} x {shape[0]} px has pixels. Give the "
                "positions of this image, or the image at full resolution."
            )
        places.append(piece[columns].drop_duplicates())
        if rows > look_at:  # only when the rows have doubled: comparing them all each time would be slow
            places, look_at = [pd.concat(places, ignore_index=True).drop_duplicates()], 2 * rows
            if 2 * len(places[0]) < rows:
                x, y = piece[columns].iloc[-1]
                raise ValueError(
                    f"{name}: its first {rows} rows hold only {len(places[0])} positions, such as x = {x} and y = {y}. "
                    "Give each position once."
                )
        yield piece


def _columns(names: list[str], name: str) -> tuple[str, str, str]:
    """Return the names of the columns of x, of y, and of whether a position is on tissue; the last may be absent."""
    known = {str(one).strip().lower(): one for one in names} | {one: one for one in names}
    found = next((columns for columns in _COLUMNS if set(columns[:2]) <= set(known)), None)
    if found is None:
        raise ValueError(
            f"{name}: columns {some_of(names)} found. Needed: x and y, in pixels of the full resolution, or the table of "
            "positions of Space Ranger unchanged. Put a line of names above the first row, if there is none."
        )
    x, y, tissue = (known.get(one, one) for one in found)
    return x, y, tissue
