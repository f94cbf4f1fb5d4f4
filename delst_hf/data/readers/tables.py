"""Read tables in any form that spreadsheets, R and pandas write."""

import csv
import io
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import reading
from ..declared import check_parquet
from ..files import open_packed
from ..images import check_readable
from ..notes import Notes
from ..values import identifiers, some_of, texts, whole_or

logger = logging.getLogger(__name__)

# More columns than any table of counts has; each costs pandas a kilobyte.
_MOST_COLUMNS = 2_000_000
# The columns of Space Ranger's tissue_positions in their order; version 1 wrote no header.
POSITION_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
# How tools write whether a spot is on tissue, in lower case.
TRUE, _FALSE = (
    {"1", "1.0", "true", "t", "yes", "in"},
    {"0", "0.0", "false", "f", "no", "out", "nan", "none", "", "<na>"},
)


def read_table(path: str | Path, what: str = "table", text: Sequence[str | int] = (), **options: Any) -> pd.DataFrame:
    """Read CSV, TSV (gzip, bzip2 or xz, recognised by their first bytes) or parquet.

    Separator, decimal comma and encoding are detected from the beginning of the file: spreadsheets write semicolons, commas
    in numbers, byte order marks and UTF-16.

    Args:
        path: the file.
        what: for messages.
        text: columns of identifiers or labels, by name or position, kept as written: "0007" and "1e5" stay, "NA" is a name.
            Names of missing columns are ignored.
        options: of `pandas.read_csv`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated or damaged file.
    """
    path = check_readable(path, what)
    with reading(path, what):
        if path.suffix == ".parquet":
            check_parquet(path)
            table = pd.read_parquet(path)
            named = [table.columns[name] if isinstance(name, int) else name for name in text]
            return table.assign(**{name: texts(table[name]) for name in named if name in table})
        with open_packed(path) as file:
            table = pd.read_csv(file, **(dialect(path) | {"converters": as_written(text)} | options))
        for name in dict.fromkeys(table.columns[name] if isinstance(name, int) else name for name in text):
            if name in table:
                table[name] = unmarked(table[name])
        return table


def as_written(columns: Sequence[str | int]) -> dict[str | int, Callable[[str], str]]:
    """Return converters for `pandas.read_csv` that keep columns as written, behind a mark (see `unmarked`).

    Without the mark pandas 3 takes "NA", "nan" and "None" for missing values even if a converter returns them.
    """
    return dict.fromkeys(columns, "={}".format)


def unmarked(column: pd.Series) -> pd.Series:
    """Return a column that was read with `as_written`, without the marks."""
    return pd.Series([value[1:] for value in column], index=column.index, dtype=object)


def read_named_table(path: str | Path, what: str = "table", **options: Any) -> pd.DataFrame:
    """Read a table whose first column names its rows, as text; the header may be one name short, as R writes it.

    Args:
        path: the file.
        what: for messages.
        options: of `pandas.read_csv`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated or damaged file.
    """
    if Path(path).suffix == ".parquet":
        table = read_table(path, what)
        table = table.set_index(table.columns[0]) if isinstance(table.index, pd.RangeIndex) else table
    else:
        table = read_table(path, what, text=[0], **(names_of_columns(path, what, **options)[1] | options))
        table = table.set_index(table.columns[0])
    return table.set_axis(pd.Index(identifiers(table.index), dtype=object))


def names_of_columns(path: str | Path, what: str, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the header as written (pandas renames the second of two equal names), and the `read_csv` options it needs."""
    path = check_readable(path, what)
    # Not with pandas, which takes seconds for one row of twenty thousand columns of text.
    with reading(path, what):
        told = dialect(path) | options
        with io.TextIOWrapper(open_packed(path), encoding=told["encoding"], newline="") as file:
            rows = (row for row in csv.reader(file, delimiter=told["sep"]) if row)
            header, first = next(rows, []), next(rows, None)
    if first is None:
        raise ValueError(f"{path.name} has no row below its header. Give the complete table.")
    fields = len(first)
    if fields != len(header) + 1:
        return header, {}
    # Number the columns, since names may be there twice.
    return ["", *header], {"header": None, "skiprows": 1, "names": range(fields)}


def dialect(path: Path) -> dict[str, Any]:
    """Return the options of `pandas.read_csv` for a text file: its separator, decimal mark and encoding."""
    with open_packed(path) as file:
        start = file.read(1 << 20)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = start.decode(encoding)
    except UnicodeDecodeError as error:
        # The read may end within a character; an earlier error means the code page of Windows.
        if error.start < len(start) - 4:
            encoding = "cp1252"
        text = start.decode(encoding, errors="ignore")
    first, _, rest = text.partition("\n")
    if not rest:
        _check_first_line(path)
    sep = next((mark for mark in ("\t", max(";,", key=first.count), " ") if mark in first), ",")
    decimal = "," if sep == ";" and re.search(r"(?:^|;)\s*-?\d+,\d+\s*(?:;|\r?$)", rest, re.M) else "."
    return {"sep": sep, "decimal": decimal, "encoding": encoding}


def _check_first_line(path: Path) -> None:
    """Refuse a header of more columns than a table can have, reading it in pieces."""
    separators = 0
    with open_packed(path) as file:
        while piece := file.read(1 << 22):
            line, found, _ = piece.partition(b"\n")
            separators += sum(line.count(one) for one in (b",", b"\t", b";"))
            if separators > _MOST_COLUMNS:
                raise ValueError(
                    f"{path} has more than {_MOST_COLUMNS} columns in its first line. It is damaged or not a table: "
                    "download it again."
                )
            if found:
                return


def keep_array_columns(spots: pd.DataFrame, obs: pd.DataFrame) -> None:
    """Copy array_row and array_col from a table of the same rows if it has them; a missing value becomes -1."""
    for column in ("array_row", "array_col"):
        if column in obs:
            spots[column] = whole_or(obs[column], -1)


def is_first_position(names: Sequence[object]) -> bool:
    """Tell whether column names are the first spot of positions by Space Ranger 1, whose table has no header.

    pandas adds a number to the second of two equal names, so each need only begin as a number: "521.5.1" is one.

    >>> is_first_position(["AAAC-1", "1", "0", "16", "521.5", "521.5.1"]), is_first_position(POSITION_COLUMNS)
    (True, False)
    """
    told, *numbers = [str(name) for name in names[1:]] or [""]
    return (
        len(names) == len(POSITION_COLUMNS)
        and re.fullmatch(r"[01](\.\d)?", told) is not None
        and all(re.match(r"-?\d", number) for number in numbers)
    )


def tissue_flags(column: pd.Series, what: str) -> np.ndarray:
    """Return which rows (rows,) bool are on tissue by a column of numbers, booleans, text or categories.

    Args:
        column: the column.
        what: the file and its column, for the message.

    Raises:
        ValueError: a value that is neither true nor false.
    """
    if column.dtype == bool:
        return column.to_numpy()
    told = pd.Series([text.strip().lower() for text in texts(column)])
    if odd := sorted(set(told) - TRUE - _FALSE):
        raise ValueError(f"{what} holds {odd[0]!r}. Allowed: 1 or 0, True or False. Correct the column.")
    return told.isin(TRUE).to_numpy()


def on_tissue(
    table: pd.DataFrame,
    what: str,
    notes: Notes | None = None,
    column: str = "in_tissue",
    advice: str = "Correct that column: 1 for each spot on tissue, or remove it.",
) -> np.ndarray:
    """Return which rows (rows,) bool of a table of spots are on tissue; all of them if it does not have the column.

    Args:
        table: one row per spot.
        what: the file and its column, for messages.
        notes: where to count the other rows; without them their number is logged.
        column: the column.
        advice: the next step if no row is on tissue, a sentence.

    Raises:
        ValueError: no row is on tissue, or a value is neither true nor false.

    >>> on_tissue(pd.DataFrame({"in_tissue": [1, 0]}), "xy.csv: in_tissue", Notes()).tolist()
    [True, False]
    """
    if column not in table or table.empty:
        return np.ones(len(table), dtype=bool)
    kept = tissue_flags(table[column], what)
    if not kept.any():
        raise ValueError(f"{what} is 1 for none of {len(kept)} spots. {advice}")
    if notes is not None:
        notes.leave_out_spots("not in_tissue", int((~kept).sum()))
    elif not kept.all():
        logger.info("%s is 0: left out %d of %d spots", what, (~kept).sum(), len(kept))
    return kept


def need_columns(table: pd.DataFrame, wanted: Iterable[str], name: str, advice: str) -> None:
    """Refuse a table that lacks columns.

    Args:
        table: the table; a named index counts as a column.
        wanted: the columns that it must have.
        name: of its file, for the message.
        advice: the next step, a sentence.

    Raises:
        KeyError: columns are missing; the message names them and the ones found.
    """
    if missing := [column for column in wanted if column not in table and column != table.index.name]:
        raise KeyError(f"{name}: columns {missing} are missing; found {some_of(table.columns)}. {advice}")


def key_columns(columns: Sequence[str], key: Sequence[str], name: str) -> list[int]:
    """Return the positions of the columns that together name a row; an empty list if the table has none of them.

    Raises:
        KeyError: the table has only some of them.
    """
    places = [list(columns).index(one) for one in key if one in columns]
    if places and len(places) < len(key):
        missing = [one for one in key if one not in columns]
        raise KeyError(f"{name}: rows are named by {list(key)} together, but columns {missing} are missing. Add them.")
    return places


def join_key(columns: Sequence[Any]) -> list[str]:
    """Return the names of rows: those of one column, or those of several joined by "_"."""
    return ["_".join(parts) for parts in zip(*map(identifiers, columns), strict=True)]
