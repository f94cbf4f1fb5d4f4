"""Recognise what a name on the command line is: a dataset folder, the folder of a run, a model, an id of the Hub, an output.

The files at the path decide it, before anything is loaded, so that a wrong path is answered at once with the next step.
"""

import difflib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ..atomic.files import check_file_output, check_folder_output
from ..atomic.locks import clear_finished, is_held

_CONFIG = "config.json"
_TABLES = ("spots", "genes", "slides")
IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".svs", ".ndpi", ".mrxs")
_PREDICTIONS = (".h5ad", ".zarr", ".parquet")
EMBEDDING_SUFFIXES = (".npy", ".npz", ".parquet")
_GIVE_MODEL = (
    "Give the folder of a DELST checkpoint (OUTPUT_DIR/model) or of a backbone, or the id USER/NAME of one on the Hub."
)
_GIVE_DATASET = "Give a folder made by delst prepare, or the id USER/NAME of a dataset of the Hub."


def is_dataset(path: Path) -> bool:
    """Tell whether a path is a dataset folder, complete or not: it has the folder `spots`."""
    return (path / _TABLES[0]).is_dir()


def is_model(path: Path) -> bool:
    """Tell whether a path is the folder of a model: a checkpoint, or any model of transformers or timm."""
    return (path / _CONFIG).is_file()


def is_id(name: str) -> bool:
    """Tell whether a name can be an id of the Hub, and is not clearly a path.

    >>> is_id("facebook/dinov2-small"), is_id("runs/mine/model"), is_id("./model")
    (True, False, False)
    """
    return name.count("/") <= 1 and not name.startswith((".", "~", "/")) and not os.path.isabs(name)


def is_only_id(name: str) -> bool:
    """Tell whether a name can only be an id USER/NAME of the Hub: nothing is there, not even a folder USER.

    >>> is_only_id("me/toys-v1.0"), is_only_id("toys"), is_only_id("runs/toy/data")
    (True, False, False)
    """
    return name.count("/") == 1 and is_id(name) and not Path(name).parent.exists()


def check_model(name: str) -> None:
    """Refuse what is clearly not a model. A name that can be an id of the Hub passes, and so does a file of embeddings.

    Args:
        name: Folder, file of embeddings, or Hub id.

    Raises:
        FileNotFoundError: If nothing is at the path; the message names the nearest model.
        ValueError: If something else is there; the message names it.

    >>> check_model("runs/toy/data")
    Traceback (most recent call last):
    ValueError: runs/toy/data is a dataset folder, and a model is asked for. ...
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if is_model(path):
            return
        if is_dataset(path):
            raise ValueError(
                f"{name} is a dataset folder, and a model is asked for. Commands take the model first, then the data. "
                f"{_GIVE_MODEL}"
            )
        if is_model(path / "model"):
            raise ValueError(f"{name} is the folder of a run; its model is {path / 'model'}. Give that.")
    elif path.is_file() and path.suffix not in (*EMBEDDING_SUFFIXES, ".h5", ".hdf5"):  # HDF5: features of a slide
        raise ValueError(
            f"{name} is a file, and a model is asked for. Commands take the model first, then the data. {_GIVE_MODEL}"
        )
    elif not path.exists() and not is_id(name) and path.suffix not in EMBEDDING_SUFFIXES:
        raise FileNotFoundError(f"there is no model {name}{near(path, is_model)}. {_GIVE_MODEL}")


def check_dataset(name: str) -> None:
    """Refuse what is clearly not a dataset folder. A name that can be an id of the Hub passes.

    Args:
        name: Folder written by ``delst prepare``, or Hub id.

    Raises:
        FileNotFoundError: If nothing is at the path, or something that is not a dataset folder; with the next step.

    >>> check_dataset("runs/toy/pretrain/model")
    Traceback (most recent call last):
    FileNotFoundError: runs/toy/pretrain/model is a model, and a dataset folder is asked for. ...
    """
    path = Path(name).expanduser()
    if not path.exists():
        if name.count("/") != 1 or not is_id(name):
            raise FileNotFoundError(f"there is no dataset folder {name}{near(path, is_dataset)}. {_GIVE_DATASET}")
        return
    missing = [table for table in _TABLES if not (path / table).is_dir()]
    if not missing:
        return
    if path.is_file():
        advice = f"is a file, and a dataset folder is asked for. delst check {name} shows what it is and how to make one of it."
    elif is_model(path):
        advice = f"is a model, and a dataset folder is asked for. {_GIVE_DATASET}"
    elif is_dataset(path / "data"):
        advice = f"is not a dataset folder, but {path / 'data'} is. Give that."
    elif len(missing) < len(_TABLES):
        advice = f"is not a complete dataset folder: {missing} missing. Make it again with delst prepare."
    elif any(file.suffix.lower() in IMAGES for file in path.iterdir()):
        advice = (
            "holds images, and a dataset folder is asked for. Make one of a slide with its counts: delst prepare FORMAT "
            "(delst prepare --help shows each); of images without counts: delst prepare image."
        )
    else:
        advice = (
            f"is not a complete dataset folder: {missing} missing. Make one with delst prepare; delst check {name} shows what "
            "is there."
        )
    raise FileNotFoundError(f"{name} {advice}")


def check_prediction(output: Path, overwrite: bool) -> None:
    """Refuse an output that could not be written, before any work; beside one that exists, remove what a killed run left.

    Args:
        output: Path of the prediction.
        overwrite: Whether it may be replaced.

    Raises:
        ValueError: If its suffix is not one of those allowed.
        FileExistsError: If it exists and may not be replaced.
        ImportError: If it is .zarr and spatialdata is not installed.
    """
    if output.suffix not in _PREDICTIONS:
        raise ValueError(f"--output is {output.name}. Allowed are names that end in {', '.join(_PREDICTIONS)}.")
    (check_folder_output if output.suffix == ".zarr" else check_file_output)(output)
    if output.suffix == ".zarr" and find_spec("spatialdata") is None:
        raise ImportError(
            f"{output.name} needs SpatialData, which is not installed: pip install 'delst-hf[spatialdata]', or write .h5ad."
        )
    if output.exists() and not overwrite:
        if not is_held(output):
            clear_finished(output)
        raise FileExistsError(f"{output} exists. Choose another --output, or replace it (--overwrite).")


def near(path: Path, kind: Callable[[Path], bool]) -> str:
    """Return a hint that names the entries of one kind beside a missing path, the nearest name if one is close; "" for none.

    Args:
        path: The missing path.
        kind: `is_model` or `is_dataset`.
    """
    beside = path.parent
    found = [one for one in sorted(beside.iterdir()) if kind(one)] if beside.is_dir() else []
    nearest = difflib.get_close_matches(path.name, [one.name for one in found], 1)
    if nearest:
        return f" (did you mean {beside / nearest[0]}?)"
    return f" (beside it there is {', '.join(map(str, found[:5]))})" if found else ""
