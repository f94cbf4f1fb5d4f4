"""Where patches are to lie on a slide: tables of x and y, looked at piece by piece before they are in memory as a whole."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.declared import check_hdf5, check_parquet
from ..data.images import check_readable
from ..data.study import Study
from ..errors import reading

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
        spots = Study.load(path).spots.select_columns(["x", "y", "barcode", "slide_id", "array_row", "array_col"])
        table = spots.to_pandas().set_index("barcode")
        if table["slide_id"].nunique() > 1:
            raise ValueError(f"{path} holds several slides: {sorted(set(table['slide_id']))}. Give positions of one.")
        return table.drop(columns="slide_id")
    check_positions(path)
    file = Path(path)
    with reading(file, "positions", "Give a CSV, parquet or .h5ad with x and y, in pixels of the full resolution."):
        return _of_anndata(file) if file.suffix == ".h5ad" else _of_table(file, shape)


def _of_anndata(file: Path) -> pd.DataFrame:
    import anndata

    check_hdf5(file)
    adata = anndata.read_h5ad(file, backed="r")
    if "spatial" not in adata.obsm:
        raise ValueError(
            f"{file.name}: obsm['spatial'] is missing; obsm has {sorted(adata.obsm)}. Store x, y in pixels of the full "
            "resolution there."
        )
    places = np.asarray(adata.obsm["spatial"], dtype=float)
    return pd.DataFrame({"x": places[:, 0], "y": places[:, 1]}, index=adata.obs_names.astype(str))


def _of_table(file: Path, shape: tuple[int, ...] | None) -> pd.DataFrame:
    if file.suffix == ".parquet":
        check_parquet(file)
        for _ in _checked(_parquet_pieces(file), file, shape):
            pass
        table = pd.read_parquet(file)
    else:
        pieces = pd.read_csv(file, sep=None, engine="python", chunksize=_ROWS_AT_ONCE)
        table = pd.concat(_checked(pieces, file, shape))
    if "barcode" in table:
        table = table.set_index("barcode")
    table.index = table.index.astype(str)
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()][0]
        raise ValueError(
            f"{file.name}: the barcode {twice!r} stands in several rows. Give each position a name of its own."
        )
    return table


def _parquet_pieces(file: Path) -> Iterator[pd.DataFrame]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        _check_columns(opened.schema_arrow.names, file)
        for piece in opened.iter_batches(_ROWS_AT_ONCE, columns=["x", "y"]):
            yield piece.to_pandas(ignore_metadata=True)


def _checked(pieces: Iterable[pd.DataFrame], file: Path, shape: tuple[int, ...] | None) -> Iterator[pd.DataFrame]:
    """Yield pieces of a table as long as it can be one of positions.

    A table of some kilobytes can hold millions of rows that are all alike, each of which would be a patch to predict.

    Raises:
        ValueError: If x or y is missing, there are more rows than the image has pixels, or most rows are of the same places.
    """
    rows, look_at, places = 0, _FEW, []
    for piece in pieces:
        _check_columns(piece.columns.tolist(), file)
        rows += len(piece)
        if shape is not None and rows > shape[0] * shape[1]:
            raise ValueError(
                f"{file.name} holds more positions than the image of {shape[1]} x {shape[0]} px has pixels. Give the "
                "positions of this image, or the image at full resolution."
            )
        places.append(piece[["x", "y"]].drop_duplicates())
        if rows > look_at:  # each time there are twice as many, or the places would be compared over and over
            places, look_at = [pd.concat(places, ignore_index=True).drop_duplicates()], 2 * rows
            if 2 * len(places[0]) < rows:
                x, y = piece[["x", "y"]].iloc[-1]
                raise ValueError(
                    f"{file.name}: its first {rows} rows are of {len(places[0])} places only, x = {x} and y = {y} among them. "
                    "Give each position once."
                )
        yield piece


def _check_columns(names: list[str], file: Path) -> None:
    if not {"x", "y"} <= set(names):
        raise ValueError(f"{file.name}: columns {names} found. Needed: x and y, in pixels of the full resolution.")
