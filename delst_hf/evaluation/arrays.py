"""Embeddings from elsewhere: .npy, .npz or .parquet -> arrays in the order of a dataset's spots."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data.declared import check_declared, check_parquet
from ..data.places import EMBEDDING_SUFFIXES
from ..errors import reading
from .embedding_files import embedding_files, read_embedding_files
from .preparation import finite_matrix

# What an array may be called in an .npz, or a column of lists in a .parquet.
IMAGE_NAMES = ("image", "image_embeds", "embeddings", "embedding", "features")
GENE_NAMES = ("gene", "gene_embeds")
KEYS = ("slide_id", "barcode")


def read_embeddings(path: str | Path, spots: Dataset, num_spots: int) -> dict[str, np.ndarray]:
    """Read embeddings and bring them into the order of spots.

    Where the file has both `slide_id` and `barcode`, rows are found by them, in any order, and rows of other spots are left
    aside. Without them the file must have one row for each spot of the whole dataset, in its order.

    Args:
        path: .npy (spots, dim); .npz with an array "image" (or "embeddings", "features") and possibly "gene", "slide_id" and
            "barcode"; or .parquet with columns of the same names, the embeddings as lists, or as one column of numbers each; or
            the folder that ``delst embed MODEL DATASET`` wrote, of which only the slides of `spots` are read.
        spots: The spots to be evaluated.
        num_spots: Spots of the whole dataset; `spot_index` of `spots` counts in it.

    Returns:
        "image" (spots, dim) and, if it is there, "gene" (spots, dim), float64.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no embeddings, spots are missing or come twice, or a value is not finite.
    """
    path = Path(path)
    if path.is_dir() and embedding_files(path):
        columns = read_embedding_files(path, sorted(set(spots["slide_id"])))
    elif path.is_file():
        columns = _READERS[path.suffix](path)
    else:
        raise FileNotFoundError(f"no embeddings at {path}. Give a {', '.join(EMBEDDING_SUFFIXES)} file.")
    rows = _rows_of(columns, spots, num_spots, path)
    arrays = {}
    for kind, names in (("image", IMAGE_NAMES), ("gene", GENE_NAMES)):
        name = next((name for name in names if name in columns), None)
        if name is not None:
            arrays[kind] = finite_matrix(np.asarray(columns[name])[rows], f"{path.name}: {name}")
    if "image" not in arrays:
        raise ValueError(
            f"{path} holds {', '.join(columns) or 'nothing'}; no array of image embeddings is among them. Call it one of "
            f"{', '.join(IMAGE_NAMES)}."
        )
    return arrays


def _npy(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "embeddings"):  # mapped, an array cannot be larger than its file
        return {"image": np.load(path, mmap_mode="r", allow_pickle=False)}


def _npz(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "embeddings"):
        _check_npz(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def _check_npz(path: Path) -> None:
    """Compare what the arrays of an .npz declare with what it stores of them."""
    with zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            check_declared(float(one.file_size), path, f"{one.filename} of {one.file_size} bytes", one.compress_size)
            with archive.open(one) as member:
                version = np.lib.format.read_magic(member)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, kind = header(member)
            size = float(kind.itemsize)
            for side in shape:
                size *= side
            check_declared(size, path, f"{one.filename} of shape {shape}", float(one.file_size), 1)


def _parquet(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "embeddings"):
        check_parquet(path)
        table = pd.read_parquet(path)
        columns: dict[str, np.ndarray] = {name: table[name].to_numpy() for name in KEYS if name in table}
        for name in (*IMAGE_NAMES, *GENE_NAMES):
            if name in table and len(table) and isinstance(table[name].iloc[0], np.ndarray | list):
                lengths = {len(row) for row in table[name]}
                if len(lengths) > 1:
                    raise ValueError(
                        f"{path}: lists of {name} have the lengths {sorted(lengths)[:5]}; they must be equal."
                    )
                columns[name] = np.stack([np.asarray(row, dtype=float) for row in table[name]])
        numbers = [name for name in table.columns if name not in KEYS and pd.api.types.is_numeric_dtype(table[name])]
        if not any(name in columns for name in IMAGE_NAMES) and numbers:
            columns["image"] = table[numbers].to_numpy(dtype=float)
        return columns


_READERS = {".npy": _npy, ".npz": _npz, ".parquet": _parquet}


def _rows_of(columns: Mapping[str, np.ndarray], spots: Dataset, num_spots: int, path: Path) -> np.ndarray:
    """Return the row of the file for each spot (spots,)."""
    present = [name for name in KEYS if name in columns]
    if len(present) == 1:
        raise ValueError(f"{path} has {present[0]} and not the other of {', '.join(KEYS)}; give both, or neither.")
    if not present:
        lengths = {name: len(np.atleast_1d(values)) for name, values in columns.items()}
        if any(length != num_spots for length in lengths.values()):
            raise ValueError(
                f"{path} has {lengths} rows and the dataset {num_spots} spots; without slide_id and barcode there must be one "
                "row for each spot of the dataset, in its order. Add both columns, and rows are found by them."
            )
        return np.asarray(spots["spot_index"])
    keys = list(zip(*(np.asarray(columns[name]).astype(str).tolist() for name in KEYS), strict=True))
    place = {key: row for row, key in enumerate(keys)}
    if len(place) != len(keys):
        twice = next(key for row, key in enumerate(keys) if place[key] != row)
        raise ValueError(
            f"{path} has the spot {twice} more than once, and {len(keys) - len(place)} such rows. Keep one each."
        )
    wanted: Sequence[tuple[str, str]] = list(zip(spots["slide_id"], spots["barcode"], strict=True))
    missing = [key for key in wanted if key not in place]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(wanted)} spots to evaluate, such as {missing[0]}. Embed these too, or "
            "leave their slides out by --test-slides and --train-slides."
        )
    return np.array([place[key] for key in wanted])
