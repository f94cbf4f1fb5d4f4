"""Push to the Hub: a checkpoint with its code, records and a card without gaps; a dataset folder; a metric."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.schema import CONFIGS
from ..evaluation.results import RESULTS, write_results
from ..record import public_record
from .card import check_filled, model_card
from .checkpoint_folder import copy_checkpoint_folder
from .push import push_folder

CARD = "README.md"
METRICS = Path(__file__).resolve().parents[1] / "metrics"


def push_model(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    results: Mapping[str, Any] | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload DELST checkpoint",
    **card: Any,
) -> str:
    """Upload a checkpoint in one commit; afterwards ``from_pretrained(repo_id)`` loads it, without this package too.

    Args:
        folder: The checkpoint. A README.md that lies in it is taken as it is; otherwise the card is written.
        repo_id: "user/name"; made if it is not there.
        results: Results of `delst evaluate`, to go with it.
        private: Make a new repository private.
        revision: Branch.
        token: By default that of `hf auth login`.
        message: Title of the commit.
        **card: Passed to `model_card`: ``baselines``, ``data``, ``given``.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: If the folder holds no checkpoint.
        ValueError: If the card lacks facts.
        OSError: As `push_folder` says.
    """
    folder = check_checkpoint(folder)
    with tempfile.TemporaryDirectory(prefix="delst-push-") as name:
        staging = Path(name)
        copy_checkpoint_folder(folder, staging)
        if results is not None:
            write_results(staging / RESULTS, public_record(results))
        if not (staging / CARD).is_file():
            (staging / CARD).write_text(model_card(folder, repo_id, results=results, **card), encoding="utf-8")
        check_filled((staging / CARD).read_text(encoding="utf-8"))
        return push_folder(
            staging,
            repo_id,
            "model",
            marks=("configuration_delst.py",),
            # What an earlier push left must not stay: weights of a backbone, above all.
            delete_patterns=("*.safetensors", "*.safetensors.index.json", "*.bin", "*.py", "*.json"),
            private=private,
            revision=revision,
            token=token,
            message=message,
        )


def check_checkpoint(folder: str | os.PathLike) -> Path:
    """The folder of a checkpoint.

    Raises:
        FileNotFoundError: If it lacks a file.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in ("config.json", "processor_config.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise FileNotFoundError(
            f"{folder} is no complete checkpoint: {', '.join(missing)} missing. Give the folder that training/pretrain.py "
            "printed (OUTPUT_DIR/model); a dataset folder is pushed by `delst push --dataset`."
        )
    return folder


def push_metric(name: str, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a metric; afterwards ``evaluate.load(repo_id)`` opens it where this package is installed.

    Args:
        name: Folder of `delst_hf.metrics`.
        repo_id: "user/name"; `evaluate` looks there for ``name.py``.
        private: Make a new repository private.
        token: By default that of `hf auth login`.

    Raises:
        ValueError: If there is no such metric.
        OSError: As `push_folder` says.
    """
    source = METRICS / name / f"{name}.py"
    if not source.is_file():
        known = sorted(path.parent.name for path in METRICS.glob("*/*.py") if path.stem == path.parent.name)
        raise ValueError(f"No metric {name!r}. Choose one of {', '.join(known)}.")
    with tempfile.TemporaryDirectory(prefix="delst-push-") as folder:
        file = f"{repo_id.split('/')[-1]}.py"
        (Path(folder) / file).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        header = f"---\ntitle: {name}\nsdk: static\ntags: [evaluate, metric]\n---\n"
        card = f'{header}\n`evaluate.load("{repo_id}")`; needs delst-hf.\n'
        (Path(folder) / CARD).write_text(card, encoding="utf-8")
        return push_folder(
            Path(folder), repo_id, "space", marks=(file,), private=private, token=token, message="Upload metric"
        )


def push_dataset(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Uploads a dataset folder; afterwards `load_dataset(repo_id)` opens it like the folder.

    Args:
        folder: written by `write_dataset` or `merge_datasets`.
        repo_id: "user/name"; the repository is made if it is not there.
        private: make a new repository private.
        revision: branch.
        token: by default that of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: no complete dataset folder.
        OSError: as `push_folder` says.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in ("README.md", *CONFIGS) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no complete dataset folder: {missing} missing. Make it with delst prepare; a checkpoint is pushed "
            "without --dataset."
        )
    return push_folder(
        folder, repo_id, "dataset", private=private, revision=revision, token=token, message="Upload dataset",
        marks=("slides/slides.parquet",),
        allow_patterns=["README.md", "examples/*", "previews/*", *(f"{name}/**" for name in CONFIGS)],
        delete_patterns=["spots/**", "genes/**", "slides/**", "examples/*", "previews/*"],
    )  # fmt: skip
