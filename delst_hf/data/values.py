"""Convert values of files, whatever wrote them, to plain Python: numbers, texts, names of spots, labels.

R writes every number as float64 and every scalar as an array of one; HDF5 holds bytes; spreadsheets and pandas turn the barcode
1000 into 1000.0; a missing label is a NaN, "NA", "None" or a blank. Every value that a reader takes from HDF5, zarr, JSON or a
table passes through one of these functions.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

# What pandas, R, numpy and spreadsheets write for a missing label, in lower case.
_MISSING = {"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nat"}
_TRUTH = {"true": "True", "false": "False"}
# Whole numbers as pandas (1.0) and R (1e+05) write them. With a leading zero, or as a bare "1e5", they are names.
_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)\.0*|[+-]?[1-9](?:\.\d+)?[eE]\+\d{2}")
_DIGITS_AND_ZERO = re.compile(r"\d+\.0+")


def plain(value: Any) -> Any:
    """Unwrap a value from arrays of one, numpy scalars and bytes.

    >>> plain(np.array([b"slide"])), plain(np.float64(2))
    ('slide', 2.0)

    Args:
        value: anything; a value that is not wrapped, such as an array of several, is returned unchanged.
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
    """Return a mapping of settings, such as scale factors, with all numbers as floats, including those stored as text.

    >>> plain_values({"tissue_hires_scalef": np.array(["0.2"]), "slide": "V1"})
    {'tissue_hires_scalef': 0.2, 'slide': 'V1'}
    """
    found = {str(name): (number(value), plain(value)) for name, value in mapping.items()}
    return {name: value if as_number is None else as_number for name, (as_number, value) in found.items()}


def unwrapped(text: str) -> str:
    """Return a text without the quotes or the b'' of Python's bytes that an exporter left around it.

    >>> unwrapped("b'tumour'"), unwrapped('"stroma"'), unwrapped("5'")
    ('tumour', 'stroma', "5'")
    """
    if len(text) > 2 and text[-1] in "'\"" and text.removeprefix("b")[:1] == text[-1]:
        return text.removeprefix("b")[1:-1].strip()
    return text


def is_missing(value: Any) -> bool:
    """Tell whether a value is missing: None, NaN, NA, or a text that tools write for these."""
    value = plain(value)
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def number(value: Any) -> float | None:
    """Return a finite number, also from a text or an array of one; None if the value is not a finite number.

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
    """Return a positive number, or raise.

    Args:
        value: from a file.
        what: the file and the name of the value, for the message.
        advice: the next step, a sentence.

    Raises:
        ValueError: If the value is missing, not a number, or not above 0.
    """
    found = number(value)
    if found is None or found <= 0:
        raise ValueError(f"{what} is {plain(value)!r}. Allowed: a positive number. {advice}")
    return found


def whole_numbers(values: Any, what: str) -> np.ndarray:
    """Return an array of whole numbers of any type, including R's float64, as int64.

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
    """Return each value as text; a missing value becomes "".

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
    """Return one identifier (a patient, a slide, a section) as text: "007" and "1e5" stay, 7.0 becomes "7".

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
    """Return the names of spots as text. If all of them are whole numbers written as 1000.0, they become 1000.

    >>> identifiers(["1000.0", "1001.0"]), identifiers(["0007", "1e5"])
    (['1000', '1001'], ['0007', '1e5'])
    """
    names = [identifier(value) for value in values]
    if names and all(_DIGITS_AND_ZERO.fullmatch(name) for name in names):
        return [name.partition(".")[0] for name in names]
    return names


def label(value: Any) -> str | None:
    """Return a label in its clean form, or None if it is missing.

    1, 1.0, "1.0" and "1 " become "1"; True, "TRUE" and "true" become "True"; NaN, "NA", "none" and blanks become None; runs of
    blanks become one blank, and letters with accents are normalised (NFC).

    >>> [label(value) for value in (1, 1.0, " 1.0", np.True_, "TRUE", "NA", "invasive  cancer ", "01")]
    ['1', '1', '1', 'True', 'True', None, 'invasive cancer', '01']

    Raises:
        ValueError: If the value is a list, a mapping or another object that cannot be a label.
    """
    value = plain(value)
    if _undefined(value):
        return None
    if isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, str | float):
        raise ValueError(
            f"label {value!r} is not text. Allowed: text, numbers, booleans, or a missing value where it is unknown."
        )
    text = unwrapped(unicodedata.normalize("NFC", " ".join(str(value).split())))
    if text.lower() in _MISSING:
        return None
    if _WHOLE.fullmatch(text):
        return str(int(float(text))) if float(text).is_integer() else text
    return _TRUTH.get(text.lower(), text)


def labels(values: Iterable[Any]) -> list[str | None]:
    """Return `label` of each value, computed once per distinct value."""
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
    """Return names as the text of a list; of many names, the first ones and their number.

    >>> some_of(["x", "y"]), some_of(range(30), most=2)
    ("['x', 'y']", '[0, 1, ... 30 in all]')
    """
    every = list(names)
    return str(every) if len(every) <= most else f"{str(every[:most])[:-1]}, ... {len(every)} in all]"


def whole_or(values: Any, default: int) -> np.ndarray:
    """Return a column of whole numbers as int64; missing values become `default`."""
    column = pd.to_numeric(pd.Series([plain(value) for value in values], dtype=object), errors="coerce")
    return np.rint(column.fillna(default).to_numpy(float)).astype(np.int64)


def _undefined(value: Any) -> bool:
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))
