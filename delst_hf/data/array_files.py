"""Read arrays of other programs with a row per patch or spot (.npy, .npz, .parquet), after a check of their declared sizes."""

import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .declared import check_declared, check_parquet


def read_arrays(
    path: Path, keys: Collection[str], names: Sequence[str], others: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Read the arrays of a file by name.

    Args:
        path: The file; its suffix gives the format.
        keys: Columns of a table that identify a row and are not features.
        names: Names that the features may have; in a table, columns of lists. The first one names features without a name:
            the array of an .npy, and the numeric columns of a table without such lists.
        others: Further columns of a table that may hold lists.

    >>> np.save("features.npy", np.ones((2, 3)))
    >>> read_arrays(Path("features.npy"), keys=("barcode",), names=("features", "embeddings"))["features"].shape
    (2, 3)

    Raises:
        ValueError: If lists of one column differ in length, or an array is declared larger than its stored bytes allow.
    """
    if path.suffix == ".npy":  # mapped, an array cannot be larger than its file
        return {names[0]: np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix == ".npz":
        _check_npz(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    check_parquet(path)
    table = pd.read_parquet(path)
    columns: dict[str, np.ndarray] = {name: table[name].to_numpy() for name in keys if name in table}
    numbers = [name for name in table if name not in columns and pd.api.types.is_numeric_dtype(table[name])]
    for name in (name for name in (*names, *others) if name in table and len(table)):
        if not isinstance(table[name].iloc[0], np.ndarray | list):
            continue
        lengths = {len(row) for row in table[name]}
        if len(lengths) > 1:
            raise ValueError(f"{path}: lists of {name} have the lengths {sorted(lengths)[:5]}; they must be equal.")
        columns[name] = _as_numbers(np.stack(table[name].tolist()))
    if numbers and not any(name in columns for name in names):
        columns[names[0]] = _as_numbers(table[numbers].to_numpy())
    return columns


def _as_numbers(values: np.ndarray) -> np.ndarray:
    """Return floats in their own precision; integers, numbers as text and missing values become float64."""
    return values if values.dtype.kind == "f" else values.astype(float)


def _check_npz(path: Path) -> None:
    """Compare the declared sizes of the arrays of an .npz with the bytes that it stores."""
    with zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            check_declared(float(one.file_size), path, f"{one.filename} of {one.file_size} bytes", one.compress_size)
            with archive.open(one) as member:
                first = np.lib.format.read_magic(member) == (1, 0)
                read_header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                shape, _, kind = read_header(member)
            size = float(kind.itemsize) * np.prod(np.array(shape, dtype=float))
            check_declared(size, path, f"{one.filename} of shape {shape}", float(one.file_size), 1)
