"""Values as files hold them, whoever wrote these, as plain Python: numbers, texts, names of spots, labels.

R writes every number as float64 and every scalar as an array of one; HDF5 holds bytes; spreadsheets and pandas make 1000.0 of
the barcode 1000; a missing label is a NaN, "NA", "None" or a blank. Every value that a reader takes from HDF5, zarr, JSON or a
table passes one of these functions.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

# What pandas, R, numpy and spreadsheets write where there is no label, in lower case.
_MISSING = {"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nat"}
_TRUTH = {"true": "True", "false": "False"}
# Whole numbers as pandas (1.0) and R (1e+05) write them. A leading zero makes a name of it, and so does a bare "1e5".
_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)\.0*|[+-]?[1-9](?:\.\d+)?[eE]\+\d{2}")
_DIGITS_AND_ZERO = re.compile(r"\d+\.0+")


def plain(value: Any) -> Any:
    """Return a value without its wrapping: arrays of one, numpy scalars, bytes.

    >>> plain(np.array([b"slide"])), plain(np.float64(2))
    ('slide', 2.0)

    Args:
        value: anything; what is not wrapped, such as an array of several, comes back as it is.
    """
    if isinstance(value, str):
        return value
    while isinstance(value, np.ndarray | list | tuple) and np.size(np.asarray(value, dtype=object)) == 1:
        value = np.asarray(value, dtype=object).ravel()[0]
    if isinstance(value, np.floating) and value.itemsize < 8:
        return float(str(value))  # 0.1 of float32 is 0.1, not 0.10000000149
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def plain_values(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping of settings, such as scale factors, with numbers as floats, also those that are text.

    >>> plain_values({"tissue_hires_scalef": np.array(["0.2"]), "slide": "V1"})
    {'tissue_hires_scalef': 0.2, 'slide': 'V1'}
    """
    found = {str(name): (number(value), plain(value)) for name, value in mapping.items()}
    return {name: value if as_number is None else as_number for name, (as_number, value) in found.items()}


def unwrapped(text: str) -> str:
    """Return a text without the quotes that an exporter left around it, nor the b'' of Python's bytes.

    >>> unwrapped("b'tumour'"), unwrapped('"stroma"'), unwrapped("5'")
    ('tumour', 'stroma', "5'")
    """
    if len(text) > 2 and text[-1] in "'\"" and text.removeprefix("b")[:1] == text[-1]:
        return text.removeprefix("b")[1:-1].strip()
    return text


def is_missing(value: Any) -> bool:
    """Say whether a value stands for none: None, NaN, NA, and the texts that tools write for these."""
    value = plain(value)
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def number(value: Any) -> float | None:
    """Return a finite number, also from a text or an array of one; None where the value is none.

    >>> number("0.25"), number(np.array([3])), number("wide")
    (0.25, 3.0, None)
    """
    value = plain(value)
    if isinstance(value, str):
        value = value.strip()
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def positive(value: Any, what: str, advice: str) -> float:
    """Return a positive number.

    Args:
        value: from a file.
        what: the file and the name of the value, for the message.
        advice: the next step, a sentence.

    Raises:
        ValueError: If it is missing, no number, or not above 0.
    """
    found = number(value)
    if found is None or found <= 0:
        raise ValueError(f"{what} is {plain(value)!r}. Allowed: a positive number. {advice}")
    return found


def whole_numbers(values: Any, what: str) -> np.ndarray:
    """Return int64 of an array that holds whole numbers in any type, float64 of R among them.

    Raises:
        ValueError: If a value is text, not finite, or not whole.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iub":
        return array.astype(np.int64, copy=False)
    try:
        floats = array.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} holds {plain(array.ravel()[:1])!r}. Allowed: whole numbers.") from None
    odd = floats[~np.isfinite(floats) | (floats != np.floor(floats))]
    if odd.size:
        raise ValueError(f"{what} holds {odd.ravel()[0]}. Allowed: whole numbers.")
    return floats.astype(np.int64)


def texts(values: Any) -> list[str]:
    """Return each value as text; what is missing is "".

    >>> texts(np.array([b"ACTB", b"GAPDH"]))
    ['ACTB', 'GAPDH']
    """
    return [
        one if type(one) is str else one.decode("utf-8", "replace") if type(one) is bytes else _text(one)
        for one in np.asarray(values, dtype=object).ravel()
    ]


def _text(value: Any) -> str:
    value = plain(value)
    return "" if _undefined(value) else str(value)


def identifier(value: Any) -> str:
    """Return one identifier (a patient, a slide, a section) as text: "007" stays, and so does "1e5"; 7.0 is "7".

    >>> identifier("007"), identifier(7.0), identifier("1e5")
    ('007', '7', '1e5')
    """
    if type(value) is str:
        return unwrapped(value.strip())
    value = plain(value)
    if _undefined(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unwrapped(str(value).strip())


def identifiers(values: Iterable[Any]) -> list[str]:
    """Return the names of spots as text. Where all of them are whole numbers that something wrote as 1000.0, they are 1000.

    >>> identifiers(["1000.0", "1001.0"]), identifiers(["0007", "1e5"])
    (['1000', '1001'], ['0007', '1e5'])
    """
    names = [identifier(value) for value in values]
    if names and all(_DIGITS_AND_ZERO.fullmatch(name) for name in names):
        return [name.partition(".")[0] for name in names]
    return names


def label(value: Any) -> str | None:
    """Return a label as one clean class, or None where there is none.

    1, 1.0, "1.0" and "1 " are "1"; True, "TRUE" and "true" are "True"; NaN, "NA", "none" and blanks are None; runs of blanks
    are one, and letters with accents are written one way (NFC).

    >>> [label(value) for value in (1, 1.0, " 1.0", np.True_, "TRUE", "NA", "invasive  cancer ", "01")]
    ['1', '1', '1', 'True', 'True', None, 'invasive cancer', '01']

    Raises:
        ValueError: If the value is a list, a mapping or another object that can be no label.
    """
    value = plain(value)
    if _undefined(value):
        return None
    if isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, str | float):
        raise ValueError(
            f"label {value!r} is not text. Allowed: text, numbers, booleans, or nothing where it is unknown."
        )
    text = unwrapped(unicodedata.normalize("NFC", " ".join(str(value).split())))
    if text.lower() in _MISSING:
        return None
    if _WHOLE.fullmatch(text):
        return str(int(float(text))) if float(text).is_integer() else text
    return _TRUTH.get(text.lower(), text)


def labels(values: Iterable[Any]) -> list[str | None]:
    """Return `label` of each value, each distinct one looked at once."""
    clean: dict[tuple[type, Any], str | None] = {}  # by type too: True == 1
    result = []
    for value in map(plain, values):
        try:
            key = (type(value), value)
            if key not in clean:
                clean[key] = label(value)
            result.append(clean[key])
        except TypeError:  # a list has no hash
            result.append(label(value))
    return result


def some_of(names: Iterable[object], most: int = 20) -> str:
    """Return the first of many names as a list, and how many there are: a table of counts has a column per gene.

    >>> some_of(["x", "y"]), some_of(range(30), most=2)
    ("['x', 'y']", '[0, 1, ... 30 in all]')
    """
    every = list(names)
    return str(every) if len(every) <= most else f"{str(every[:most])[:-1]}, ... {len(every)} in all]"


def whole_or(values: Any, default: int) -> np.ndarray:
    """Return int64 of a column of whole numbers in which some are missing: these are `default`."""
    column = pd.to_numeric(pd.Series([plain(value) for value in values], dtype=object), errors="coerce")
    return np.rint(column.fillna(default).to_numpy(float)).astype(np.int64)


def _undefined(value: Any) -> bool:
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))
