"""Arguments of the training scripts: a YAML file, overridden by options on the command line."""

import dataclasses
import inspect
import re
import sys
import types
import typing
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..data.study import LEVEL_KEYS
from ..hub.facts import FACTS, FILES
from ..model.configuration_delst import DelstConfig, DelstGeneConfig


@dataclass
class DataArguments:
    """Which tissue to learn from."""

    dataset: str = field(metadata={"help": "Dataset folder written by `delst prepare`, or a dataset id of the Hub."})
    train_slides: str = field(
        default="", metadata={"help": "Slides to train on, by commas. Default: all that are not held out."}
    )
    validation_slides: str = field(
        default="", metadata={"help": "Held-out slides, by commas, on which the run is watched."}
    )
    test_slides: str = field(
        default="", metadata={"help": "Held-out slides, by commas, that this run must never read."}
    )
    num_genes: int | None = field(
        default=1000, metadata={"help": "Size of the vocabulary: the most variable genes of the training slides."}
    )
    min_spots: float = field(
        default=0.02, metadata={"help": "A gene of the vocabulary is detected in this share of the training spots."}
    )
    vocabulary: str | None = field(
        default=None,
        metadata={
            "help": "File of genes to read, one a line, as `delst vocabulary` writes it, instead of choosing them here. One "
            "that was chosen on held-out slides is refused."
        },
    )
    level_key: str = field(
        default="n_genes",
        metadata={
            "help": "Hierarchy key of the intra-modal loss: the number of expressed genes, or one of two controls.",
            "choices": LEVEL_KEYS,
        },
    )


def split_names(names: str) -> list[str]:
    """``"C2, C3"`` -> ``["C2", "C3"]``."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _documented_fields(config_class: type, prefix: str, skip: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """The own fields of a configuration as dataclass fields, their help taken from its docstring."""
    documented = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", config_class.__doc__ or "", flags=re.MULTILINE))
    fields = []
    for name, hint in inspect.get_annotations(config_class).items():
        if name in skip or name not in documented:
            continue
        default = getattr(config_class, name)
        options = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
        kind = next(t for t in (bool, float, int, str) if t in options)
        help_text = re.sub(r"\s+", " ", documented[name]).replace("``", "").replace("%", "%%")
        metadata = {"help": help_text}
        fields.append(
            (prefix + name, kind | None if default is None else kind, field(default=default, metadata=metadata))
        )
    return fields


def _config_arguments(self: Any) -> dict[str, Any]:
    values = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("vision", "image_size")}
    gene = {name.removeprefix("gene_"): values.pop(name) for name in list(values) if name.startswith("gene_")}
    return {**values, "gene_config": gene}


ModelArguments = make_dataclass(
    "ModelArguments",
    [
        (
            "vision",
            str | None,
            field(
                default=None,
                metadata={"help": "Pretrained vision backbone: a Hub id or a local folder. Without it, vision_config."},
            ),
        ),
        (
            "vision_config",
            str | None,
            field(
                default=None,
                metadata={"help": "Configuration of a backbone trained from scratch, as JSON, with its model_type."},
            ),
        ),
        (
            "image_size",
            int | None,
            field(default=None, metadata={"help": "Side of the model's input, px. Default: that of the backbone."}),
        ),
        *_documented_fields(
            DelstConfig,
            "",
            ("vision_config", "gene_config", "vision_feature_size", "vision_source", "head_inputs", "head_dropout"),
        ),
        *_documented_fields(DelstGeneConfig, "gene_", ("num_genes",)),
    ],
    namespace={"__doc__": "Model and losses.", "config_arguments": _config_arguments},
)


CardArguments = make_dataclass(
    "CardArguments",
    [
        (option[2:].replace("-", "_"), str | None, field(default=None, metadata={"help": f"For the card: {text}."}))
        for name, (option, text) in FACTS.items()
        if name not in FILES
    ],
    namespace={
        "__doc__": "Facts of the model card, for push_to_hub.",
        "facts": lambda self: {
            name: value
            for name, (option, _) in FACTS.items()
            if (value := getattr(self, option[2:].replace("-", "_"), None)) is not None
        },
    },
)


def parse_arguments(classes: tuple[Any, ...], description: str, argv: list[str] | None = None) -> tuple[Any, ...]:
    """Parse ``[config.yaml] [--option value ...]``; options win over the file.

    Args:
        classes: Dataclasses to fill.
        description: What `--help` begins with.
        argv: Command line without the program's name; that of the process by default.

    Returns:
        One instance of each class.

    Raises:
        ValueError: If the file is not a mapping of option to value.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(classes, description=description, usage="%(prog)s [config.yaml] [--option value ...]")
    defaults: list[str] = []
    if argv and not argv[0].startswith("-"):
        defaults = _yaml_options(argv.pop(0))
    return parser.parse_args_into_dataclasses(args=defaults + argv, look_for_args_file=False)


def _yaml_options(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        options = yaml.safe_load(file)
    if not isinstance(options, dict):
        raise ValueError(f"{path} must be a YAML mapping such as 'learning_rate: 1e-4', one option a line.")
    words: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = yaml.safe_dump(value, default_flow_style=True, width=2**30).strip()
        words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words
