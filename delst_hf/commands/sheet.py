"""`delst prepare SHEET.csv`: a table with a row per slide, or per source of slides, becomes one dataset."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import did_you_mean
from . import formats
from .options import Jobs

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".txt")
# Columns that every sheet may have, and the option that each becomes: for `labels`, the one that the format has.
_OPTIONS = {
    "patient": ("--patient-id",),
    "slide": ("--slide-id",),
    "labels": ("--labels", "--label-key", "--label-column"),
}
_YES, _NO = ("1", "true", "yes", "x"), ("", "0", "false", "no")


def named_sheet(argv: Sequence[str]) -> list[str]:
    """Return the arguments with the word `sheet` inserted before a table that is given in place of a format."""
    words = list(argv)
    for place, word in enumerate(words[:-1]):
        if word == "prepare" and words[place + 1].lower().endswith(SUFFIXES):
            return [*words[: place + 1], "sheet", *words[place + 1 :]]
        if not word.startswith("-"):
            break
    return words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the sheet."""
    parser.add_argument(
        "sheet", metavar="SHEET", help="CSV or TSV with columns path, format, image, patient, slide, labels, options"
    )


def jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of all rows of `delst prepare SHEET.csv`: a sample sheet with one row per slide, in any of the formats.

    Read a table with the columns path and format and, where needed, image, patient, slide, labels and any option of that
    format (mpp, species, slide-key, ...). Paths are relative to the folder of the sheet. An empty cell leaves its option out.
    An error names the line of its row.

    Examples:
        delst prepare SHEET.csv --split patient --num-proc 2 --output cohort-dataset
    """
    from ..data.readers.tables import read_table

    sheet = Path(arguments.sheet).expanduser()
    table = read_table(sheet, "sample sheet", dtype=str, keep_default_na=False)
    table.columns = [str(name).strip().lower().replace("_", "-").replace(" ", "-") for name in table.columns]
    missing = {"path", "format"} - set(table.columns)
    if missing or table.empty:
        raise ValueError(
            f"{sheet} has no {'row' if table.empty else 'column ' + ' and '.join(sorted(missing))}; its columns are "
            f"{list(table.columns)}. A sheet has a row per slide, with path and format (one of {', '.join(formats.FORMATS)})."
        )
    found: Jobs = []
    for number, row in enumerate(table.to_dict("records"), 2):
        try:
            found += _jobs_of({str(name): str(value) for name, value in row.items()}, sheet.parent, arguments)
        except (ValueError, KeyError, OSError) as error:
            text = error.args[0] if isinstance(error, KeyError) else error
            raise ValueError(f"{sheet.name}, line {number}: {text}") from error
    return found


class _Parser(argparse.ArgumentParser):
    """A parser that raises ValueError instead of exiting."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}.")


def _jobs_of(row: dict[str, str], folder: Path, common: argparse.Namespace) -> Jobs:
    cells = {name: value.strip() for name, value in row.items() if value.strip()}
    name = cells.pop("format", "").lower()
    if name not in formats.FORMATS:
        raise ValueError(f"format is {name!r}. Allowed: {', '.join(formats.FORMATS)}.")
    parser = _Parser(add_help=False, allow_abbrev=False)
    formats.FORMATS[name].add_arguments(parser)
    known = {option: action for action in parser._actions for option in action.option_strings}
    positional = [action for action in parser._actions if not action.option_strings]
    words = [_place(folder, cells.pop("path"))] if "path" in cells else []
    if words and not positional:
        words = ["--counts", *words]
    for column, value in cells.items():
        option = next((one for one in _OPTIONS.get(column, (f"--{column}",)) if one in known), None)
        if option is None:
            columns = [*_OPTIONS, *(one.removeprefix("--") for one in known)]
            raise ValueError(
                f"the format {name} has no option for the column {column!r}.{did_you_mean([column], columns)} It has: "
                f"{', '.join(sorted(known))}. Leave the cell empty, or correct the name of the column."
            )
        if known[option].nargs == 0:
            if value.lower() not in (*_YES, *_NO):
                raise ValueError(f"{column} is {value!r}. Allowed: true or false.")
            words += [option] if value.lower() in _YES else []
        else:
            words.append(f"{option}={_place(folder, value)}")
    chosen = parser.parse_args(words, argparse.Namespace(**vars(common)))
    return formats.FORMATS[name].jobs(chosen)


def _place(folder: Path, value: str) -> str:
    """Return a value that names an existing path, relative to the sheet's folder or to ~, as that path; others unchanged."""
    path = Path(value).expanduser() if value.startswith("~") else Path(value)
    return str(folder / path) if (folder / path).exists() else str(value)


SHEET = formats.Format(add_arguments, jobs)
