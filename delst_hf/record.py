"""Records of runs: hyper-parameters, command, versions and hardware, in a form that anybody may read.

Paths become names and secrets are left out when a record is made, so that nothing has to be cleaned before it is pushed.
"""

import dataclasses
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

TRAINING_RECORD = "training.json"

# Options that say where files lie or how a run is watched; they do not affect what is learned.
_NOT_LEARNED = re.compile(
    "dataset$|output_dir|logging|report_to|run_name|hub|push|save|token|resume|tqdm|dataloader|do_|overwrite"
)


# Secrets, which are neither recorded nor printed: known by the name of an option or key, by their form, or by being the value
# of an environment variable with such a name.
_SECRET_NAME = re.compile("token|password|passwd|secret|api_key|api-key", re.IGNORECASE)
_SECRET_VARIABLE = re.compile("(token|password|passwd|secret|api_?key|access_?key)$", re.IGNORECASE)
_SHORTEST_SECRET = 5
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{6,}|(?<=\bBearer )[^\s\"']+")
_USER_OF_ADDRESS = re.compile(r"://[^/@\s]+@")
_SECRET_OF_ADDRESS = re.compile(
    r"([?&][^=&\s]*(?:token|secret|passw|signature|credential|key)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)
_SECRET_OPTION = "--hub_token"
# A path has two parts or more, so that "a/b" is not one; after a word, a colon or a slash comes an address or a date.
_PATH_IN_TEXT = re.compile(r"(?<![\w:/.<])(?:file://)?(?:~|\.{1,2})?/[\w.@+-]+/[\w.@+/-]*[\w@+-]")
_HOME = re.compile(r"(file://)?/(home|Users)/[^/]+")
_LEFT_OUT = "<left out>"


def hyperparameters(*parts: Any) -> dict[str, Any]:
    """Return the settings of a run: all fields that a dataclass itself declares, and inherited ones that are not at default.

    Args:
        *parts: Instances of `DataArguments`, `ModelArguments`, ``DelstTrainingArguments``.

    >>> import dataclasses
    >>> settings = dataclasses.make_dataclass("settings", [("learning_rate", float, 1e-3), ("hub_token", str, "")])
    >>> hyperparameters(settings(learning_rate=0.1))
    {'learning_rate': 0.1}
    """
    found = {}
    for part in parts:
        own = vars(type(part)).get("__annotations__", {})
        for one in dataclasses.fields(part):
            value = getattr(part, one.name)
            default = one.default_factory() if callable(one.default_factory) else one.default
            if _NOT_LEARNED.search(one.name) or value is None or (one.name not in own and value == default):
                continue
            value = getattr(value, "value", value)
            value = value if isinstance(value, int | float | str | bool) else str(value)
            found[one.name] = public_text(value) if isinstance(value, str) else value
    return found


def public_record(value: Any) -> Any:
    """Return a record that anybody may read: without pictures and secrets, and with names in place of paths.

    >>> public_record({"vision": "/home/alice/models/vit", "hub_token": "hf_abcdefghijkl", "seed": 0})
    {'vision': 'vit', 'seed': 0}
    """
    if isinstance(value, Mapping):
        left_out = {key for key in value if key == "pictures" or _SECRET_NAME.search(str(key))}
        return {key: public_record(item) for key, item in value.items() if key not in left_out}
    if isinstance(value, list | tuple):
        return [public_record(item) for item in value]
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """Return a text without tokens, without passwords in addresses, and with names in place of paths.

    A text is a path if it is absolute, begins with ``~``, ``.`` or ``..``, has more than two parts, or exists; other names with
    one slash are ids of the Hub.

    >>> public_text("../alice/models/vit"), public_text("google/vit-base"), public_text("http://alice:secret@hub/x")
    ('vit', 'google/vit-base', 'http://hub/x')
    """
    text = without_secrets(text)
    if "://" in text or "\n" in text:
        return _PATH_IN_TEXT.sub(lambda found: _name_of(found[0]), text)
    is_path = os.path.isabs(text) or text.startswith(("~", "./", "../")) or text in (".", "..")
    if is_path or (os.sep in text and " " not in text and (text.count(os.sep) > 1 or os.path.exists(text))):
        return _name_of(text)
    return _PATH_IN_TEXT.sub(lambda found: _name_of(found[0]), text)


def without_secrets(text: str) -> str:
    """Return a text without tokens, values of secret environment variables, and passwords in addresses.

    Messages pass through this alone, because they name paths; records pass through `public_text`.

    >>> without_secrets("http://alice:secret@hub.example/api answered 401 to hf_abcdefghijkl")
    'http://hub.example/api answered 401 to <left out>'
    """
    for name, secret in os.environ.items():
        if len(secret) >= _SHORTEST_SECRET and secret in text and _SECRET_VARIABLE.search(name):
            text = text.replace(secret, _LEFT_OUT)
    text = _SECRET_OF_ADDRESS.sub(rf"\1{_LEFT_OUT}", _TOKEN.sub(_LEFT_OUT, text))
    return _USER_OF_ADDRESS.sub("://", text)


def _name_of(path: str) -> str:
    path = path.rstrip("/")
    if _HOME.fullmatch(path) or path == os.path.expanduser("~"):  # its last part is the name of the user
        return "~"
    return os.path.basename(os.path.normpath(path)) or "."


def public_command(words: Sequence[str]) -> list[str]:
    """Return the words of a command in a form that anybody may read: options that hold secrets lose their value.

    >>> public_command(["pretrain.py", "--hub_token", "abc", "--dataset=/home/alice/data", "--seed", "1"])
    ['pretrain.py', '--hub_token', '<left out>', '--dataset=data', '--seed', '1']
    """
    told: list[str] = []
    hidden = False
    for word in map(str, words):
        option, equals, value = word.partition("=")
        if hidden:
            told.append(_LEFT_OUT)
        elif word.startswith("-") and equals:
            told.append(f"{option}={_LEFT_OUT if _is_secret(option) else public_text(value)}")
        else:
            told.append(word if word.startswith("-") else public_text(word))
        hidden = not hidden and word.startswith("-") and not equals and _is_secret(option)
    return told


def _is_secret(option: str) -> bool:
    """Tell whether an option holds a secret, also where it is abbreviated, as argparse allows: --hub_tok."""
    short = option.replace("-", "_").replace("__", "--", 1)
    return bool(_SECRET_NAME.search(option)) or (len(short) > 2 and _SECRET_OPTION.startswith(short))


def training_record(**facts: Any) -> dict[str, Any]:
    """Return facts of a training run, with the versions and the command that made it.

    Args:
        **facts: Anything that JSON holds: slides, arguments, log history.

    Examples:
        >>> record = training_record(train_slides=["toy_A1"], validation_slides=[])
        >>> record["train_slides"], "torch" in record["versions"]
        (['toy_A1'], True)
    """
    packages = ("delst-hf", "torch", "transformers", "datasets", "accelerate", "numpy")
    return {
        **facts,
        "command": public_command([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def _version(package: str) -> str:
    """Return the version of a package, or "unknown" where it has no metadata, as in a source tree, rather than raise."""
    try:
        return version(package)
    except PackageNotFoundError:
        own = getattr(sys.modules[__package__], "__version__", "unknown")
        return own if package == "delst-hf" else "unknown"


def hardware() -> str:
    """Return this machine in words: its GPUs, or its processor and the number of cores."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores, no GPU"


def read_training_record(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the record saved with a checkpoint, empty where there is none.

    Examples:
        >>> read_training_record("runs/toy/pretrain/model")["train_slides"]
        ['toy_A1', 'toy_A2', 'toy_B1']
    """
    path = Path(folder) / TRAINING_RECORD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"cannot read the training record {path}: {error}. It is damaged: download or write it again."
        ) from error


def data_facts(path: str | os.PathLike, study: Any, slides: Sequence[str]) -> dict[str, Any]:
    """Return facts of a dataset and of the slides that a model was trained on.

    Args:
        path: The folder, or the id of a dataset of the Hub.
        study: The same dataset as a `Study`.
        slides: Slides that the model was trained on.

    Returns:
        ``technology``, ``tissue``, ``species``, ``patch_um`` and ``patch_px`` of those slides in words; ``patients`` of all
        slides; ``license`` of a local folder, and the ``fingerprint`` of its content.
    """
    chosen = study.slides[study.slides["slide_id"].isin(list(slides))]

    def words(column: str) -> str:
        return ", ".join(dict.fromkeys(str(value) or "unknown" for value in chosen[column]))

    header = read_header(Path(path) / "README.md")
    content = re.search(r"content ([0-9a-f]{16})", str(header.get("configs")))
    manifest = getattr(getattr(study, "folder", None), "manifest", None) or {}
    return {
        **{name: words(name) for name in ("technology", "tissue", "species")},
        "patch_um": ", ".join(dict.fromkeys(f"{value:g}" for value in chosen["patch_um"])),
        "patch_px": ", ".join(dict.fromkeys(f"{value:d}" for value in chosen["patch_px"])),
        "patients": dict(zip(study.slides["slide_id"], study.slides["patient_id"], strict=True)),
        "license": license_of(header),
        "fingerprint": manifest.get("fingerprint") or (content[1] if content else None),
    }


def read_header(path: Path) -> dict[str, Any]:
    """Return the YAML between the first two lines ``---`` of a README; empty where there is none.

    Raises:
        ValueError: If it is not YAML.
    """
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    marks = [number for number, line in enumerate(text) if line.rstrip() == "---"]
    if len(marks) < 2 or marks[0] != 0:
        return {}
    import yaml

    try:
        header = yaml.safe_load("\n".join(text[1 : marks[1]]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the header of {path} is not YAML ({said}). Correct the lines between the first two lines '---'."
        ) from error
    return header if isinstance(header, dict) else {}


def license_of(header: Mapping[str, Any]) -> str | None:
    """Return the license that a README's header states: its name where the identifier is "other"; None where it states none.

    Examples:
        >>> license_of({"license": "other", "license_name": "ours"})
        'ours'
    """
    found = header.get("license")
    if isinstance(found, list):
        found = ", ".join(map(str, found))
    if found == "other":
        found = header.get("license_name") or found
    return None if found is None else str(found)


def feature_facts(facts: Mapping[str, Any], features: Any) -> dict[str, Any]:
    """Return `data_facts` of a run on features made elsewhere, with the size of their patches, not that of the dataset's.

    Args:
        facts: What `data_facts` returns.
        features: A `data.patch_features.FeatureTable`, or None: then nothing changes.
    """
    if features is None:
        return dict(facts)
    sides = ", ".join(f"{side:.6g}" for side in features.patch_um)
    return {
        **facts,
        "patch_um": sides or facts["patch_um"],
        "features": features.encoder,
        "features_fingerprint": features.features_fingerprint,
    }


def check_patch_size(
    record: Mapping[str, Any],
    patch_um: Iterable[float],
    model: str,
    patch_px: Iterable[int] = (),
    of_features: bool = False,
) -> None:
    """Refuse patches of another physical size, or of much lower resolution, than those that a checkpoint was trained on.

    Args:
        record: Training record of the checkpoint; without facts of the data nothing is compared.
        patch_um: Sides of the patches in micrometres.
        model: Name of the checkpoint, for the message.
        patch_px: Sides of the patches as stored, in pixels. Other sizes are warned of; less than half the side is refused.
        of_features: The patches are those of features made elsewhere.

    Raises:
        ValueError: If a side differs by more than 2 % in micrometres, or is less than half as long in pixels.

    >>> check_patch_size({"data": {"patch_um": "112", "patch_px": "224"}}, [112.0], "my-model", [224])
    """
    trained, pixels = (_sides(record, name) for name in ("patch_um", "patch_px"))
    wrong = [side for side in patch_um if trained and not any(abs(side - one) <= 0.02 * one for one in trained)]
    if wrong:
        sides = ", ".join(f"{side:g}" for side in trained)
        what = "the features are of" if of_features else "the dataset has"
        again = (
            "Compute the features again from patches of that size"
            if of_features
            else "Prepare the dataset again with --patch-um"
        )
        raise ValueError(
            f"{model} was trained on patches of {sides} um, but {what} patches of {wrong[0]:g} um, in which the same tissue "
            f"looks different. {again}{'' if of_features else f' {trained[0]:g}'}."
        )
    others = [side for side in patch_px if pixels and not any(abs(side - one) <= 0.02 * one for one in pixels)]
    if others:
        told = (
            f"{model} was trained on patches of {', '.join(f'{side:g}' for side in pixels)} px, but the dataset has patches of "
            f"{others[0]:g} px"
        )
        again = f"Prepare the dataset again with --patch-px {pixels[0]:g}"
        if min(others) < min(pixels) / 2:
            raise ValueError(f"{told}: they show less than half of the detail. {again}.")
        logger.warning("%s: they show more or less detail. %s, if the slides have it.", told, again)


def _sides(record: Mapping[str, Any], name: str) -> list[float]:
    """Return the sides of patches that a record states, as "112" or "100, 112"."""
    return [float(side) for side in str((record.get("data") or {}).get(name) or "").split(",") if side.strip()]


def find_training_record(model: str) -> dict[str, Any]:
    """Return the record of a checkpoint by folder or Hub id, empty where there is none."""
    from transformers.utils import cached_file

    path = cached_file(
        model,
        TRAINING_RECORD,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return read_training_record(Path(path).parent) if path else {}
