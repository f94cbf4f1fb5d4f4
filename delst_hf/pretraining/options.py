"""The command line of a run: ``[config.yaml] [--option value ...]``, and the YAML files that come with the package."""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..errors import reading
from ..hub.facts import FACTS, FILES
from .help_layout import HelpLayout, documented, explained, refuse_unknown, wrapped

Groups = Mapping[str, Iterable[str]]


class _CardArguments:
    """Facts of the model card, for push_to_hub.

    Args:
        license: Touch it: with push_to_hub.
        base_model: Touch it: with push_to_hub.
        base_model_license: Touch it: with push_to_hub.
        dataset_name: Touch it: with push_to_hub.
        dataset_license: Touch it: with push_to_hub.
        species: Touch it: when it is missing.
        patch_um: Touch it: when it is missing.
        patch_px: Touch it: when it is missing.
        train_data: Touch it: to say more.
        hardware: Touch it: when the machine is not detected.
        training_time: Touch it: when it is not in the log.
    """

    def facts(self) -> dict[str, str]:
        """Return the facts that were given, by their names in `hub.facts`."""
        given = {name: getattr(self, option[2:].replace("-", "_"), None) for name, (option, _) in FACTS.items()}
        return {name: value for name, value in given.items() if value is not None}


# An option of `delst card`.
_NOT_HERE = re.compile(r" \(or --data DIR.*?\)")
CardArguments = make_dataclass(
    "CardArguments",
    [
        (
            option[2:].replace("-", "_"),
            str | None,
            field(default=None, metadata={"help": f"For the card: {_NOT_HERE.sub('', text)}."}),
        )
        for name, (option, text) in FACTS.items()
        if name not in FILES
    ],
    bases=(_CardArguments,),
    namespace={"__doc__": _CardArguments.__doc__},
)


def parse_arguments(
    classes: tuple[Any, ...], description: str, argv: list[str] | None = None, groups: Groups | None = None
) -> tuple[Any, ...]:
    """Parse ``[config.yaml] [--option value ...]``; options override the file.

    Args:
        classes: Dataclasses to fill.
        description: What `--help` begins with: paragraphs, and examples as indented blocks.
        argv: Command line without the program's name; that of the process by default.
        groups: What `--help` shows: heading -> options. `--help-all` shows the others too.

    Returns:
        One instance of each class.

    Raises:
        FileNotFoundError: If the first word is neither a file nor the name of a configuration.
        ValueError: If the file is not a mapping of option to value, or an option is unknown or has an invalid value.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(classes, add_help=False)
    asked = {"-h", "--help", "--help-all", "--help_all"}.intersection(argv)
    if asked:
        print(format_help(parser, _documented(classes), description, groups or {}, bool(asked - {"-h", "--help"})))
        parser.exit()
    defaults: list[str] = []
    if argv and not argv[0].startswith("-"):
        path = find_config(argv.pop(0))
        defaults = _yaml_options(path)
        refuse_unknown(defaults, parser._option_string_actions, f"{path}: ")
    refuse_unknown(argv, parser._option_string_actions)
    *parsed, rest = parser.parse_args_into_dataclasses(
        args=defaults + argv, look_for_args_file=False, return_remaining_strings=True
    )
    if rest:
        raise ValueError(
            f"{' '.join(rest)!r} does not belong to an option. A value with a space, such as a path, needs quotes; a "
            "configuration comes first. --help explains every option."
        )
    return tuple(parsed)


def _documented(classes: Iterable[Any]) -> dict[str, tuple[str, str]]:
    """Return what docstrings say about the fields of dataclasses, those taken from a configuration included."""
    found: dict[str, tuple[str, str]] = {}
    for described in classes:
        for prefix, config in getattr(described, "described_by", {}).items():
            found |= {prefix + name: about for name, about in documented(config).items()}
        for name, (text, when) in documented(described).items():
            found[name] = (text or found.get(name, ("", ""))[0], when)
    return found


class _Parser(HfArgumentParser):
    """A parser whose errors are one line: what was found, and what to do."""

    def error(self, message: str) -> NoReturn:
        missing = re.search(r"arguments are required: (.*)", message)
        if missing is not None:
            message = (
                f"{missing[1].split('/')[0]} is missing. Give it, or begin with a configuration: one of "
                f"{', '.join(_configs())}, or a YAML file of your own"
            )
        # argparse names an option by all its spellings.
        message = re.sub(r"argument (--\w+)/\S+: ", r"\1: ", message).removeprefix("argument ")
        raise ValueError(f"{message.rstrip('.')}. --help explains every option.")


def format_help(
    parser: argparse.ArgumentParser,
    about: Mapping[str, tuple[str, str]],
    description: str,
    groups: Groups,
    everything: bool = False,
) -> str:
    """Lay out the help: each option once, in groups, with its default and when to touch it.

    Args:
        parser: Knows the options.
        about: Option -> what it is, and when to touch it; other options keep their own help.
        description: What the help begins with.
        groups: Heading -> options.
        everything: Also the options that no group names.
    """
    page = argparse.ArgumentParser(
        prog=parser.prog, description=wrapped(description), formatter_class=HelpLayout, add_help=False,
        usage="%(prog)s [config.yaml] [--option value ...]",
    )  # fmt: skip
    actions = {action.dest: action for action in reversed(parser._actions)}
    for heading, options in groups.items():
        section = page.add_argument_group(heading)
        for name in options:
            _add(section, actions.pop(name), about)
    section = page.add_argument_group("help")
    section.add_argument("-h, --help", action="store_true", help="This page.")
    if groups:
        text = f"Also show the other {len(actions)} options, most of them of transformers' TrainingArguments."
        section.add_argument("--help-all", action="store_true", help=text)
    text = "Show tracebacks and messages of libraries; with a value it is the option of transformers."
    section.add_argument("--debug", action="store_true", help=text)
    actions.pop("debug", None)
    if everything or not groups:
        section = page.add_argument_group("other options, most of them of transformers' TrainingArguments")
        for action in reversed(actions.values()):
            _add(section, action, about)
    return page.format_help()


def _add(section: Any, action: argparse.Action, about: Mapping[str, tuple[str, str]]) -> None:
    text, when = about.get(action.dest, ("", ""))
    text = text or " ".join((action.help or "").replace("%%", "%").split())
    text = explained(f"{text} Required." if action.required else text, action.default, when)
    choices = [str(choice) for choice in action.choices or ()]
    if 0 < len(choices) < 6:
        value = "{" + ",".join(choices) + "}"
    else:
        kind = getattr(action.type, "__name__", "text")
        value = {"int": "N", "float": "F", "string_to_bool": "true|false"}.get(kind, "TEXT")
    section.add_argument(f"--{action.dest}", metavar=value, help=text.replace("%", "%%"))


def config_folder() -> Path:
    """Return the folder of the YAML files: training/configs of the repository, which an installation includes."""
    installed = Path(__file__).with_name("configs")
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "training" / "configs"


def find_config(name: str) -> Path:
    """Find a configuration: a file, or the name of one that comes with the package.

    Args:
        name: Path of a YAML file, or a name such as ``"toy"``.

    Raises:
        FileNotFoundError: If it is neither; the message names those that come with the package.

    >>> find_config("toy").name
    'toy.yaml'
    """
    if Path(name).is_file():
        return Path(name)
    known = _configs()
    if name not in known:
        raise FileNotFoundError(
            f"no configuration at {name}. Give a YAML file, or one that comes with the package: {', '.join(known)}."
        )
    return known[name]


def _configs() -> dict[str, Path]:
    return {path.stem: path for path in sorted(config_folder().glob("*.yaml"))}


def _yaml_options(path: Path) -> list[str]:
    with reading(
        path, "configuration", "Correct it: a YAML mapping such as 'learning_rate: 1e-4', one option per line."
    ):
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
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
