"""Read embeddings made elsewhere: .npy, .npz or .parquet -> arrays in the order of a dataset's spots."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data.array_files import read_arrays
from ..data.places import EMBEDDING_SUFFIXES
from ..errors import reading
from .embedding_files import embedding_files, read_embedding_files
from .preparation import finite_matrix

# Allowed names of an array in an .npz, or of a column of lists in a .parquet.
IMAGE_NAMES = ("image", "image_embeds", "embeddings", "embedding", "features")
GENE_NAMES = ("gene", "gene_embeds")
KEYS = ("slide_id", "barcode")


def read_embeddings(path: str | Path, spots: Dataset, num_spots: int) -> dict[str, np.ndarray]:
    """Read embeddings in the order of spots.

    Where the file has both `slide_id` and `barcode`, rows are matched by them, in any order, and rows of other spots are
    ignored. Without them the file must have one row per spot of the complete dataset, in its order.

    Args:
        path: .npy (spots, dim); .npz with an array "image" (or "embeddings", "features") and possibly "gene", "slide_id" and
            "barcode"; or .parquet with columns of the same names, the embeddings as lists, or as one column of numbers each; or
            the folder that ``delst embed MODEL DATASET`` wrote, of which only the slides of `spots` are read.
        spots: The spots to be evaluated.
        num_spots: Number of spots in the complete dataset, to which `spot_index` of `spots` refers.

    Returns:
        "image" (spots, dim) and, if it is there, "gene" (spots, dim), float64.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no embeddings, spots are missing or repeated, or a value is not finite.
    """
    path = Path(path)
    if path.is_dir() and embedding_files(path):
        columns = read_embedding_files(path, sorted(set(spots["slide_id"])))
    elif path.is_file():
        with reading(path, "embeddings"):
            columns = read_arrays(path, KEYS, IMAGE_NAMES, GENE_NAMES)
    else:
        raise FileNotFoundError(
            f"no embeddings at {path}. Give a {', '.join(EMBEDDING_SUFFIXES)} file, or the folder that delst embed wrote."
        )
    rows = _rows_of(columns, spots, num_spots, path)
    arrays = {}
    for kind, names in (("image", IMAGE_NAMES), ("gene", GENE_NAMES)):
        name = next((name for name in names if name in columns), None)
        if name is not None:
            arrays[kind] = finite_matrix(np.asarray(columns[name])[rows], f"{path.name}: {name}")
    if "image" not in arrays:
        raise ValueError(
            f"{path} holds {', '.join(columns) or 'nothing'}; no array of image embeddings is among them. Name it one of "
            f"{', '.join(IMAGE_NAMES)}."
        )
    return arrays


def _rows_of(columns: Mapping[str, np.ndarray], spots: Dataset, num_spots: int, path: Path) -> np.ndarray:
    """Return the row of the file for each spot (spots,)."""
    present = [name for name in KEYS if name in columns]
    if len(present) == 1:
        raise ValueError(f"{path} has only {present[0]} of {' and '.join(KEYS)}; give both columns, or neither.")
    if not present:
        lengths = {name: len(np.atleast_1d(values)) for name, values in columns.items()}
        if any(length != num_spots for length in lengths.values()):
            raise ValueError(
                f"{path} has {lengths} rows and the dataset {num_spots} spots; without slide_id and barcode there must be one "
                "row for each spot of the dataset, in its order. Add both columns to match rows by them."
            )
        return np.asarray(spots["spot_index"])
    keys, wanted = (
        pd.MultiIndex.from_arrays([np.asarray(table[name]).astype(str) for name in KEYS]) for table in (columns, spots)
    )
    twice = keys.duplicated()
    if twice.any():
        raise ValueError(
            f"{path} repeats spots in {twice.sum()} rows, such as {keys[twice][0]}. Keep one row per spot."
        )
    rows = keys.get_indexer(wanted)
    missing = wanted[rows < 0]
    if len(missing):
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(wanted)} spots to evaluate, such as {missing[0]}. Embed these too, or "
            "leave their slides out with --test-slides and --train-slides."
        )
    return rows
