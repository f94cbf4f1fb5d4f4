"""Push to the Hub: a checkpoint with its code, records and a card without gaps; a dataset folder; a metric."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

from ..atomic.files import link_or_copy
from ..atomic.locks import locked
from ..data.folder import open_folder, refuse_links
from ..data.schema import CONFIGS, LAYOUT
from ..evaluation.results import RESULTS, write_results
from ..model.configuration_delst import DelstConfig
from ..model.processing_delst import DelstProcessor
from ..record import TRAINING_RECORD, public_record
from .card import check_filled, model_card, unfilled
from .checkpoint_folder import check_finite_weights, checkpoint_class, write_checksums
from .checksums import check_checksums
from .push import push_files, user_of

logger = logging.getLogger(__name__)

CARD = "README.md"
# What marks a repository of ours: a model.
MODEL_MARKS = ("configuration_delst.py",)
METRICS = Path(__file__).resolve().parents[1] / "metrics"


def push_model(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    results: Mapping[str, Any] | None = None,
    with_reference: bool = False,
    overwrite_card: bool = False,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload DELST checkpoint",
    **card: Any,
) -> str:
    """Upload a checkpoint in one commit; afterwards ``from_pretrained(repo_id)`` loads it, even without this package.

    Args:
        folder: The checkpoint. A README.md in it is uploaded unchanged if it has no gaps; otherwise the card is written.
        repo_id: "user/name"; the repository is created if it does not exist.
        results: Results of `delst evaluate`, to be uploaded too.
        with_reference: Upload the folder reference/ of `delst reference` too: embeddings, expression, labels and names of
            training spots.
        overwrite_card: Replace a README.md in the repository that somebody else wrote.
        private: Create the repository private; an existing public one is refused.
        revision: Branch.
        token: By default that of `hf auth login`.
        message: Title of the commit.
        **card: Passed to `model_card`: ``baselines``, ``data``, ``given``.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: If the folder holds no checkpoint.
        ValueError: If the card lacks facts, the results are of other weights, or the checkpoint does not match its checksums.
        OSError: As `push_files` says.

    Examples:
        >>> push_model("runs/toy/pretrain/model", "me/delst-toy", license="apache-2.0")  # doctest: +SKIP
    """
    folder = check_checkpoint(folder)
    _refuse_links(folder)
    reference = _reference_files(folder, with_reference)
    check_checksums(folder)
    check_finite_weights(folder)
    with _staging(folder) as staging:
        copy_checkpoint_folder(folder, staging)
        if results is not None:
            write_results(staging / RESULTS, public_record(results))
        written = (staging / CARD).is_file()
        if not written or unfilled((staging / CARD).read_text(encoding="utf-8")):
            if written:
                logger.warning(
                    "%s of %s has gaps, so the card that is pushed is written from the records.", CARD, folder
                )
            (staging / CARD).unlink(missing_ok=True)  # a link to that of the folder
            (staging / CARD).write_text(model_card(folder, repo_id, results=results, **card), encoding="utf-8")
        check_filled((staging / CARD).read_text(encoding="utf-8"))
        return push_files(
            {path.name: path for path in sorted(staging.iterdir())} | reference,
            repo_id,
            "model",
            marks=MODEL_MARKS,
            # Files of an earlier push must not stay: weights of a backbone, above all.
            earlier=r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json",
            overwrite_card=overwrite_card,
            private=private,
            revision=revision,
            token=token,
            message=message,
        )


def copy_checkpoint_folder(folder: str | os.PathLike, target: Path) -> None:
    """Copy the files of a checkpoint that go to the Hub, completed and without facts of this machine.

    Checkpoints of earlier versions get their code and ``auto_map``. Absolute paths are cut to their last part, and results
    lose their pictures, which are pieces of the slides.

    Args:
        folder: Written by `checkpoint_folder.save_checkpoint_folder` or by ``save_pretrained``.
        target: An empty folder.
    """
    folder = Path(folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json"), *folder.glob("README.md")]:
        # Weights are linked, so that a push leaves no second copy of them, however it ends.
        if path.suffix == ".safetensors":
            (target / path.name).symlink_to(path.resolve())
        else:
            link_or_copy(path.resolve(), target / path.name)
    DelstProcessor.from_pretrained(folder).save_pretrained(target)
    config = DelstConfig.from_pretrained(folder)
    vision_config: Any = config.vision_config
    vision_config._name_or_path = os.path.basename(vision_config._name_or_path.rstrip("/"))
    model_class = checkpoint_class(config)
    custom_object_save(model_class.__new__(model_class), target, config)  # type: ignore[arg-type]
    config.save_pretrained(target)
    for name in (TRAINING_RECORD, RESULTS):
        if (folder / name).is_file():
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            (target / name).write_text(json.dumps(public_record(record), indent=1) + "\n", encoding="utf-8")
    write_checksums(target)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder beside a checkpoint, in which a push is assembled; what a killed push left there is removed.

    Where nothing can be written beside the checkpoint, yield a temporary folder. Both hold only links to the weights.
    """
    folder = folder.resolve()
    if not os.access(folder.parent, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="delst-push-") as name:
            yield Path(name)
        return
    staging = folder.parent / f".{folder.name}.push"
    with locked(staging, "push of this checkpoint"):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _refuse_links(folder: Path) -> None:
    """Refuse symlinks that lead out of a checkpoint, other than those of the Hub's cache into its own blobs."""
    allowed = [folder.resolve(), folder.resolve().parent.parent / "blobs"]
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not any(parent in allowed for parent in path.resolve().parents):
            raise ValueError(
                f"{path} is a link to {path.resolve().name} outside of the checkpoint. Targets of links are not pushed: put "
                "the file itself there (cp -L), or delete the link."
            )


def _reference_files(folder: Path, wanted: bool) -> dict[str, Path]:
    """Return the files of a checkpoint's reference by their names in the repository, none if they are not wanted."""
    reference = folder / "reference"
    if wanted and not reference.is_dir():
        raise FileNotFoundError(f"{folder} has no reference to push. Make one: delst reference MODEL DATASET.")
    if not wanted:
        if reference.is_dir():
            logger.warning(
                "reference/ of %s holds data of training spots and is not pushed (--with-reference).", folder
            )
        return {}
    _refuse_links(reference)
    return {f"reference/{path.name}": path for path in sorted(reference.iterdir()) if not path.name.startswith(".")}


def check_checkpoint(folder: str | os.PathLike) -> Path:
    """Return the folder of a checkpoint.

    Raises:
        FileNotFoundError: If it lacks a file.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in ("config.json", "processor_config.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a complete checkpoint folder; missing: {', '.join(missing)}. Give the folder that "
            "training/pretrain.py printed (OUTPUT_DIR/model); a dataset folder is pushed with `delst push --dataset`."
        )
    return folder


def push_metric(
    name: str, repo_id: str, *, overwrite_card: bool = False, private: bool = False, token: str | None = None
) -> str:
    """Upload a metric; afterwards ``evaluate.load(repo_id)`` loads it where this package is installed.

    Args:
        name: Folder in `delst_hf.metrics`.
        repo_id: "user/name"; `evaluate` looks there for ``name.py``.
        overwrite_card: Replace a README.md in the repository that somebody else wrote.
        private: Create the repository private; an existing public one is refused.
        token: By default that of `hf auth login`.

    Raises:
        ValueError: If there is no such metric.
        OSError: As `push_files` says.

    Examples:
        >>> push_metric("gene_pearson", "me/gene_pearson")  # doctest: +SKIP
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
        return push_files(
            {path.name: path for path in sorted(Path(folder).iterdir())},
            repo_id,
            "space",
            marks=(file,),
            overwrite_card=overwrite_card,
            private=private,
            token=token,
            message="Upload metric",
        )


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    overwrite_card: bool = False,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload the files that a dataset folder's manifest names; afterwards `load_dataset(repo_id)` opens it like the folder.

    Args:
        folder: Written by `write_dataset` or `merge_datasets`; every checksum is compared first.
        repo_id: "user/name"; the repository is created if it does not exist.
        overwrite_card: Replace a README.md in the repository that somebody else wrote.
        private: Create the repository private; an existing public one is refused.
        revision: Branch.
        token: By default that of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: If it is not a complete dataset folder.
        ValueError: If it does not match its manifest, or holds links.
        OSError: As `push_files` says.

    Examples:
        >>> push_dataset("runs/toy/data", "me/toy-slides")  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    missing = [name for name in ("README.md", *CONFIGS) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a complete dataset folder: {missing} missing. Make it with delst prepare; a checkpoint is pushed "
            "without --dataset."
        )
    user_of(repo_id, "dataset", token)  # a missing token is reported before the files are read
    opened = open_folder(folder, verify=True)
    refuse_links(opened)
    return push_files(
        {name: folder / name for name in opened.files},
        repo_id,
        "dataset",
        marks=("slides/slides.parquet",),
        earlier=LAYOUT.pattern,
        overwrite_card=overwrite_card,
        private=private,
        revision=revision,
        token=token,
        message="Upload dataset",
    )
