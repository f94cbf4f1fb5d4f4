"""The card of a checkpoint, written from the records of its run; a fact that no record holds stays a placeholder."""

import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from ..evaluation.results import RESULTS, model_index, read_results
from ..markup import Markdown, cell, fenced, fill, placeholders, yaml_header
from ..model.configuration_delst import DelstConfig, DelstFeaturesConfig
from ..record import public_record, read_training_record
from .card_results import limitations, results_text
from .checksums import weights_fingerprint
from .facts import FACTS
from .head_card import head_text, lines_of_use, use_with_package

_FENCED = re.compile(r"^(`{3,})[^\n]*\n.*?^\1`*[ ]*$", re.DOTALL | re.MULTILINE)
_HEADER_GAP = re.compile(r"^[a-z_]+: '?\{([a-z_]+)\}'?$", re.MULTILINE)
_SCRATCH = "random weights, trained from scratch"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")  # a head that is not pushed has the name of its folder


def template_text() -> str:
    """Return the template of the card: model_cards/template.md of the repository, or the copy in an installation."""
    installed = Path(__file__).with_name("model_card_template.md")
    source = Path(__file__).resolve().parents[2] / "model_cards" / "template.md"
    return (installed if installed.is_file() else source).read_text(encoding="utf-8")


def model_card(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    results: Mapping[str, Any] | None = None,
    baselines: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    given: Mapping[str, str] | None = None,
) -> str:
    """Return the card of a checkpoint folder.

    Args:
        folder: The checkpoint.
        repo_id: Repository that it is for: "user/name".
        results: Results of `delst evaluate`; by default results.json of the folder.
        baselines: Results of another run on the same data, which hold the baselines that `results` lacks.
        data: Facts of the dataset (`record.data_facts`); by default those of the training record.
        given: Facts from the user, named as in `hub.facts.FACTS`. They override the records.

    Returns:
        Markdown with a YAML header. Unknown facts are placeholders such as ``{license}``.

    Raises:
        ValueError: If the results are of another checkpoint, or the baselines of other data.

    Examples:
        >>> card = model_card("runs/toy/pretrain/model", "me/delst-toy", given={"license": "apache-2.0"})
        >>> "license: apache-2.0" in card
        True
    """
    if not _NAME.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is not a repository name; use user/name.")
    folder = Path(folder)
    record, config = read_training_record(folder), DelstConfig.from_pretrained(folder)
    if results is None and (folder / RESULTS).is_file():
        results = read_results(folder / RESULTS)
    if results is not None:
        _check_scored(results, folder)
    data = data or record.get("data") or {}
    facts = _model_facts(folder, config) | _run_facts(record, config) | _data_facts(record, data, results)
    facts["name"], facts["repo_id"] = repo_id.split("/")[-1], repo_id
    if results is not None:
        facts["results"] = results_text(results, baselines)
    if record.get("head"):
        parts = [head_text(record["head"]), facts.get("results")]
        facts["results"] = Markdown("\n\n".join(cell(part) for part in parts if part))
    facts["limitations"] = limitations(record, data, results, baselines)
    facts |= given or {}
    if facts.get("hyperparameters") and record.get("command"):
        command = f"Command, whose options override the file: <code>{cell(_command(record))}</code>."
        facts["hyperparameters"] = Markdown(f"{cell(facts['hyperparameters'])}\n\n{command}")
    known = {name: value for name, value in facts.items() if value is not None}
    header, body = template_text().removeprefix("---\n").split("---\n", 1)
    index = {"model-index": model_index(results, facts["name"])} if results is not None else {}
    return yaml_header(_header(header, known) | index) + fill(body, known)


def _header(template: str, known: Mapping[str, object]) -> dict[str, Any]:
    """Return the values of the template's YAML header, with known facts in place of its placeholders."""
    values: dict[str, Any] = {}
    for name, value in yaml.safe_load(template).items():
        if isinstance(value, dict):  # YAML reads a placeholder {name} as a mapping
            place = next(iter(value))
            value = str(known.get(place, f"{{{place}}}"))
        if value != _SCRATCH:
            values[name] = value
    return values


def _check_scored(results: Mapping[str, Any], folder: Path) -> None:
    """Refuse results of other weights than those of the checkpoint.

    Raises:
        ValueError: Naming the model that was scored.
    """
    scored, here = results.get("weights"), weights_fingerprint(folder)
    known = scored is not None
    if not known and os.path.isdir(str(results.get("model") or "")):  # results of version 0.1 carry no fingerprint
        scored, known = weights_fingerprint(str(results["model"])), True
    if known and scored != here:
        raise ValueError(
            f"The results are of the checkpoint {results.get('model')} (weights {scored}), not of {folder} (weights {here}). "
            f"Give results of this one: delst evaluate {folder} DATASET --output results.json."
        )


def unfilled(card: str) -> list[str]:
    """Return the names of the facts that a card lacks, each once."""
    outside_code = _FENCED.sub("", card)
    _, header, body = outside_code.split("---\n", 2) if outside_code.startswith("---\n") else ("", "", outside_code)
    # In the header, only a value that is nothing but a placeholder is a gap: names of data may hold braces.
    return list(dict.fromkeys([*_HEADER_GAP.findall(header), *placeholders(body)]))


def how_to_give(name: str) -> str:
    """Return the option that gives a fact."""
    return f"{{{name}}}: " + " ".join(FACTS.get(name, ("write it", "into README.md by hand")))


def check_filled(card: str) -> None:
    """Refuse a card with placeholders.

    Raises:
        ValueError: Naming each and how to give it.
    """
    names = unfilled(card)
    if names:
        ways = "\n".join(f"  {how_to_give(name)}" for name in names)
        raise ValueError(f"The card is not complete. Nothing was pushed. Give what is missing:\n{ways}")


def _model_facts(folder: Path, config: DelstConfig) -> dict[str, Any]:
    """Return the facts that configuration and weights hold."""
    vision: Any = config.vision_config
    gene: Any = config.gene_config
    sizes, scalars = _weights(folder)
    own = sum(size for name, size in sizes.items() if "vision_model." in name)
    left_out = not config.save_backbone
    backbone = f"`{vision.model_type}`" + (
        ", left out of this repository" if left_out else f", {own / 1e6:.1f} M parameters"
    )
    if vision.model_type == DelstFeaturesConfig.model_type:
        made_by = cell(vision.encoder or "unknown")
        backbone = f"none: it reads features of {vision.hidden_size} numbers made elsewhere ({made_by})"
    encoder = f"`{gene.encoder}`, hidden size {gene.hidden_size}; joint embedding of {config.projection_dim} dimensions"
    curvature = scalars.get("log_curvature")
    is_curved = config.geometry == "lorentz" and curvature is not None
    space = {
        "lorentz": "on a Lorentz hyperboloid, with entailment losses of weight "
        f"{config.cross_entailment_weight:g} across modalities and {config.intra_entailment_weight:g} within",
        "cosine": "on the unit sphere (the cosine baseline, no hyperbolic geometry)",
        "euclidean": "in Euclidean space (the Euclidean baseline, no hyperbolic geometry)",
    }
    source = config.vision_source or {}
    return {
        "backbone": Markdown(backbone),
        "gene_encoder": Markdown(encoder),
        "num_genes": gene.num_genes,
        "geometry_text": space[config.geometry],
        "curvature": f"{math.exp(curvature or 0.0):.3f}" if is_curved else f"none: the geometry is {config.geometry}",
        "base_model": source.get("id") if _HUB_ID.fullmatch(str(source.get("id"))) else None,
        "vision_path": Markdown(', vision_path="FOLDER OR HUB ID OF THE BACKBONE"') if left_out else "",
        "heads_only": Markdown(
            "\n\nThe weights of the backbone are not in this repository. They are fetched from "
            f"{cell(source.get('id'))}, for which you may need access, and must be those that the heads were trained on (a "
            "fingerprint is checked); leave `vision_path` out unless you have a copy."
        )
        if left_out
        else "",
        "use": lines_of_use(config),
        "with_package": use_with_package(config),
        "input_px": _input_size(folder, config),
    }


def _weights(folder: Path) -> tuple[dict[str, int], dict[str, float]]:
    """Return the number of values of every weight tensor, and the values of the scalar ones."""
    sizes, scalars = {}, {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                shape = file.get_slice(name).get_shape()
                sizes[name] = math.prod(shape)
                if not shape:
                    scalars[name.split(".")[-1]] = file.get_tensor(name).item()
    return sizes, scalars


def _input_size(folder: Path, config: DelstConfig) -> Any:
    from ..model.processing_delst import DelstProcessor

    size = DelstProcessor.from_pretrained(folder).image_processor.size
    sides = [size[key] for key in ("height", "width", "shortest_edge") if size.get(key)]
    return sides[0] if sides else getattr(config.vision_config, "image_size", None)


def _run_facts(record: Mapping[str, Any], config: DelstConfig) -> dict[str, Any]:
    """Return the facts of the run itself, from the training record."""
    seconds = next((row["train_runtime"] for row in record.get("log_history", []) if "train_runtime" in row), None)
    values = record.get("hyperparameters")
    text = fenced(yaml.safe_dump(values, allow_unicode=True), "yaml") if values else None
    vision = str(record.get("vision"))
    facts = {
        "hyperparameters": text,
        "hardware": record.get("hardware"),
        "training_time": None if seconds is None else f"{seconds / 60:.1f} minutes",
    }
    # What the configuration says of the backbone takes precedence.
    if not config.vision_source and _HUB_ID.fullmatch(vision):
        facts["base_model"] = vision
    if not config.vision_source and "vision" in record and record["vision"] is None:
        facts |= {"base_model": _SCRATCH, "base_model_license": "none to keep"}
    return facts


def _command(record: Mapping[str, Any]) -> str:
    return shlex.join(str(word) for word in public_record(list(record["command"])))


def _data_facts(
    record: Mapping[str, Any], data: Mapping[str, Any], results: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the known facts of the data."""
    train, validation = record.get("train_slides", []), record.get("validation_slides", [])
    patients = data.get("patients", {})
    test = list(results["test_slides"]) if results else []

    def named(slides: list[str]) -> str:
        return ", ".join(slides) if slides else "none"

    text = None
    if train and data:
        persons = len({patients.get(slide) for slide in train})
        number = f"{len(train)} slide{'s' * (len(train) != 1)} of {persons} patient{'s' * (persons != 1)}"
        kind = cell(", ".join(str(data.get(name)) for name in ("technology", "tissue", "species")))
        text = Markdown(f"{number}: {kind}; content <code>{cell(data.get('fingerprint') or 'unknown')}</code>")
    unpaired = record.get("unpaired_slides", [])
    alone = f"; gene side alone (no image) {named(unpaired)}" if unpaired else ""
    license = data.get("license", data.get("licence"))  # as records before 0.2 spell it
    return {
        "species": data.get("species"),
        "patch_um": data.get("patch_um"),
        "patch_px": data.get("patch_px"),
        "train_data": text,
        "dataset_license": None if license in (None, "", "unknown") else license,
        "splits": f"training {named(train)}{alone}; validation {named(validation)}; never seen, scored below: {named(test)}",
    }
