"""Misspelt options of a script, refused before torch and transformers are loaded, which takes some ten seconds.

The known names are those in the groups of `--help`, and the fields of transformers' TrainingArguments, read from its source.
"""

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .help_layout import refuse_unknown

_FIELD = re.compile(r"^    (\w+): ", re.MULTILINE)
_ANSWERED_BY_SCRIPTS = ("--debug", "--help", "--help-all", "--help_all")


def check_words(words: Sequence[str], groups: Mapping[str, Iterable[str]], training_arguments: bool = True) -> None:
    """Refuse options that a script does not have; pass those that cannot be judged without its libraries.

    Args:
        words: The command line without the program's name.
        groups: Heading of the help -> options.
        training_arguments: The script also has the options of transformers' TrainingArguments.

    Raises:
        ValueError: If an option is unknown; the message names the nearest known one.

    >>> check_words(["toy", "--lerning_rate", "1e-4"], {"learning rates": ["learning_rate"]})
    Traceback (most recent call last):
    ValueError: --lerning_rate is not an option. Did you mean --learning_rate? --help explains every option.
    """
    names = {option for options in groups.values() for option in options}
    if training_arguments:
        foreign = _training_arguments()
        if not foreign:
            return
        names |= foreign
    spelt = [f"--{prefix}{name}" for prefix in ("", "no_") for name in sorted(names)]
    spelt += [name.replace("_", "-").replace("---", "--") for name in spelt]
    refuse_unknown(words, [*spelt, *_ANSWERED_BY_SCRIPTS, "-h"])


def _training_arguments() -> set[str]:
    """Return the fields of transformers' TrainingArguments; empty where its source is not found."""
    found = importlib.util.find_spec("transformers")
    path = Path(found.origin).with_name("training_args.py") if found is not None and found.origin else None
    if path is None or not path.is_file():
        return set()
    return set(_FIELD.findall(path.read_text(encoding="utf-8").partition("class TrainingArguments")[2]))
