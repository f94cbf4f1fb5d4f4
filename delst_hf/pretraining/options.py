"""The command line of a run: ``[config.yaml] [--option value ...]``, and the YAML files that come with the package."""

import sys
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..hub.facts import FACTS, FILES

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
        FileNotFoundError: If the first word is neither a file nor the name of a configuration.
        ValueError: If the file is not a mapping of option to value.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(classes, description=description, usage="%(prog)s [config.yaml] [--option value ...]")
    defaults: list[str] = []
    if argv and not argv[0].startswith("-"):
        defaults = _yaml_options(find_config(argv.pop(0)))
    return parser.parse_args_into_dataclasses(args=defaults + argv, look_for_args_file=False)


def config_folder() -> Path:
    """Return the folder of the YAML files: training/configs of the repository, which an installation carries along."""
    installed = Path(__file__).with_name("configs")
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "training" / "configs"


def find_config(name: str) -> Path:
    """Find a configuration: a file, or the name of one that comes with the package.

    Args:
        name: Path of a YAML file, or a name such as ``"toy"``.

    Raises:
        FileNotFoundError: Naming those that come with the package.

    >>> find_config("toy").name
    'toy.yaml'
    """
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in sorted(config_folder().glob("*.yaml"))}
    if name not in known:
        raise FileNotFoundError(
            f"no configuration at {name}. Give a YAML file, or one that comes with the package: {', '.join(known)}."
        )
    return known[name]


def _yaml_options(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as file:
        options = yaml.safe_load(file)
    if not isinstance(options, dict):
        raise ValueError(f"{path} must be a YAML mapping such as 'learning_rate: 1e-4', one option per line.")
    words: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = yaml.safe_dump(value, default_flow_style=True, width=2**30).strip()
        words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words
