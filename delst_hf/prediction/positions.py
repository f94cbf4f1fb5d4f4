"""Where patches are to lie on a slide: x and y of a table, an AnnData, a dataset folder or a file of features, by one rule.

Files are looked at piece by piece before they are in memory as a whole; what comes of any source passes `check_places`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.declared import check_hdf5, check_parquet
from ..data.images import check_readable
from ..data.readers.anndata_visium import positions_of
from ..data.study import Study
from ..data.values import some_of
from ..errors import reading
from ..evaluation.neighbours import blocks

_ROWS_AT_ONCE = 100_000
# Of so few rows many may be of one place: nothing is lost by predicting it again.
_FEW = 10_000


def check_positions(path: str) -> None:
    """Refuse positions that are not there, before the slide is opened.

    Raises:
        FileNotFoundError: If there is no such file or folder.

    Examples:
        >>> check_positions("runs/toy/data")
    """
    if not Path(path).is_dir():
        check_readable(path, "positions", "Give a CSV or parquet with columns x and y (--positions).")


def read_positions(path: str, shape: tuple[int, ...] | None = None) -> pd.DataFrame:
    """Read x and y in pixels of the full-resolution image: of a CSV or parquet, of an .h5ad, or of a dataset folder.

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
        table = _of_anndata(file, shape) if file.suffix == ".h5ad" else _of_table(file, shape)
        if table.index.has_duplicates:
            twice = table.index[table.index.duplicated()][0]
            raise ValueError(
                f"{file.name}: the barcode {twice!r} stands in several rows. Give each position a name of its own."
            )
        return table


def check_places(
    table: pd.DataFrame, name: str, shape: tuple[int, ...] | None = None, side: float = np.inf
) -> pd.DataFrame:
    """Refuse positions that cannot be those of patches of a slide, whatever they were read from.

    Args:
        table: x and y in pixels of the image; the index names them.
        name: What to call them in messages.
        shape: (height, width) of the image; None where it is not known.
        side: Of a patch in pixels: one that shows nothing of the image is refused.

    Returns:
        x and y alone, as float64.

    Raises:
        ValueError: If there is no position, one is not a pair of finite numbers or lies beyond the image, there are more
            than the image has pixels, or most rows are of the same places.

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
            f"the positions in {path} are pixels of an image of {size[1]} x {size[0]} px, and this one has {shape[1]} x "
            f"{shape[0]} px. Give the image that the dataset was made of, or positions in pixels of this one."
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
    return pd.DataFrame({"x": places[:, 0], "y": places[:, 1]}, index=adata.obs_names.astype(str))


def _anndata_pieces(file: Path) -> Iterator[pd.DataFrame]:
    """Yield the positions of an .h5ad, where they are an array of two columns or more; what else they are is said later."""
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
    else:
        pieces = pd.read_csv(file, sep=None, engine="python", chunksize=_ROWS_AT_ONCE)
        table = pd.concat(_looked_through(pieces, file.name, shape))
    if "barcode" in table:
        table = table.set_index("barcode")
    table.index = table.index.astype(str)
    return table


def _parquet_pieces(file: Path) -> Iterator[pd.DataFrame]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        _check_columns(opened.schema_arrow.names, file.name)
        for piece in opened.iter_batches(_ROWS_AT_ONCE, columns=["x", "y"]):
            yield piece.to_pandas(ignore_metadata=True)


def _look_through(pieces: Iterable[pd.DataFrame], name: str, shape: tuple[int, ...] | None) -> None:
    for _ in _looked_through(pieces, name, shape):
        pass


def _looked_through(pieces: Iterable[pd.DataFrame], name: str, shape: tuple[int, ...] | None) -> Iterator[pd.DataFrame]:
    """Yield pieces of a table as long as it can be one of positions.

    A table of some kilobytes can hold millions of rows that are all alike, each of which would be a patch to predict.

    Raises:
        ValueError: If x or y is missing, there are more rows than the image has pixels, or most rows are of the same places.
    """
    rows, look_at, places = 0, _FEW, []
    for piece in pieces:
        _check_columns(piece.columns.tolist(), name)
        rows += len(piece)
        if shape is not None and rows > shape[0] * shape[1]:
            raise ValueError(
                f"{name} holds more positions than the image of {shape[1]} x {shape[0]} px has pixels. Give the "
                "positions of this image, or the image at full resolution."
            )
        places.append(piece[["x", "y"]].drop_duplicates())
        if rows > look_at:  # each time there are twice as many, or the places would be compared over and over
            places, look_at = [pd.concat(places, ignore_index=True).drop_duplicates()], 2 * rows
            if 2 * len(places[0]) < rows:
                x, y = piece[["x", "y"]].iloc[-1]
                raise ValueError(
                    f"{name}: its first {rows} rows are of {len(places[0])} places only, x = {x} and y = {y} among them. "
                    "Give each position once."
                )
        yield piece


def _check_columns(names: list[str], name: str) -> None:
    if not {"x", "y"} <= set(names):
        how = " Put a line of names above the first row, if it has none."
        if {"pxl_col_in_fullres", "pxl_row_in_fullres"} <= set(names):
            how = " Rename pxl_col_in_fullres to x and pxl_row_in_fullres to y."
        raise ValueError(
            f"{name}: columns {some_of(names)} found. Needed: x and y, in pixels of the full resolution.{how}"
        )
