"""A misspelt option of a script, answered before torch and transformers are loaded, which takes some ten seconds.

The names are those of the groups of `--help`, and the fields of transformers' TrainingArguments as its source file has them.
"""

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .help_layout import refuse_unknown

_FIELD = re.compile(r"^    (\w+): ", re.MULTILINE)
_ANSWERED_BY_SCRIPTS = ("--debug", "--help", "--help-all", "--help_all")


def check_words(words: Sequence[str], groups: Mapping[str, Iterable[str]], training_arguments: bool = True) -> None:
    """Refuse options that a script does not have; what cannot be told without its libraries passes.

    Args:
        words: The command line without the program's name.
        groups: Heading of the help -> options.
        training_arguments: The script also has the options of transformers' TrainingArguments.

    Raises:
        ValueError: Naming the option and the nearest that there is.

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
