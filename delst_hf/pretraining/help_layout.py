"""Layout of the help of every command: a usage of one line, groups, each option once, examples as blocks.

Also the message for an unknown option.
"""

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterable

from ..errors import did_you_mean

WIDTH = 100
_OPTIONS_END = 30


class HelpLayout(argparse.RawDescriptionHelpFormatter):
    """Descriptions and examples keep their lines; the usage names required arguments, not the forty optional ones.

    >>> import argparse
    >>> parser = argparse.ArgumentParser("delst fit", formatter_class=HelpLayout)
    >>> _ = parser.add_argument("model", metavar="MODEL")
    >>> _ = parser.add_argument("--output", required=True, metavar="DIR")
    >>> _ = parser.add_argument("--quiet", action="store_true")
    >>> parser.format_usage()
    'usage: delst fit MODEL --output DIR [options]\\n'
    """

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=_OPTIONS_END, width=WIDTH)

    def _format_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None,
    ) -> str:
        if usage is not None:
            return super()._format_usage(usage, actions, groups, prefix)
        given, optional = [], False
        for action in actions:
            if not action.option_strings:
                given.append(self._format_args(action, self._get_default_metavar_for_positional(action)))
            elif action.required:
                given.append(f"{action.option_strings[-1]} {self._format_args(action, action.dest.upper())}")
            else:
                optional = True
        words = [self._prog, *given, *(["[options]"] if optional else [])]
        return f"{prefix or 'usage: '}{' '.join(words)}\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Leave `-h, --help` and `--a, --no-a` as they are; an option with a value names the value once."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def lay_out(parser: argparse.ArgumentParser) -> None:
    """Give a parser and all its sub-commands this layout.

    Args:
        parser: Changed in place.
    """
    parser.formatter_class = HelpLayout
    if parser.description:
        parser.description = wrapped(parser.description)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in dict.fromkeys(action.choices.values()):
                lay_out(command)


def explained(text: str, default: object, when: str = "") -> str:
    """Return the help of one option: what it is, its default, and when to touch it.

    >>> explained("Side of the input, px.", 224, "Smaller is faster.")
    'Side of the input, px. Default: 224. Touch it: smaller is faster.'
    """
    text = text.strip()
    text += "" if text.endswith((".", ":", ")")) else "."
    if default not in (None, "", []) and "Default:" not in text:
        shown = str(default).lower() if isinstance(default, bool) else getattr(default, "value", default)
        text += f" Default: {shown:.4g}." if isinstance(shown, float) else f" Default: {shown}."
    return f"{text} Touch it: {when[0].lower()}{when[1:]}" if when else text


def documented(described: type) -> dict[str, tuple[str, str]]:
    """Return what the docstrings of a class and its bases say about each argument: what it is, and when to touch it.

    >>> class Patch:
    ...     \"\"\"A patch.
    ...
    ...     Args:
    ...         side: Side of the patch,
    ...             px. Touch it: hardly ever.
    ...     \"\"\"
    >>> documented(Patch)
    {'side': ('Side of the patch, px.', 'hardly ever.')}
    """
    found: dict[str, tuple[str, str]] = {}
    for one in reversed(described.__mro__):
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", inspect.cleandoc(one.__doc__ or ""), re.MULTILINE)
        for name, entry in entries:
            text, _, when = re.sub(r"\s+", " ", entry).replace("``", "").partition("Touch it: ")
            known = found.get(name, ("", ""))
            found[name] = (text.strip() or known[0], when or known[1])
    return found


def wrapped(text: str) -> str:
    """Wrap the paragraphs of a text; indented ones are examples and keep their lines."""
    blocks = text.strip().split("\n\n")
    return "\n\n".join(block if block.startswith(" ") else textwrap.fill(block, WIDTH) for block in blocks)


_NEGATION = re.compile(r"-{2}no[-_]")


def refuse_unknown(words: Iterable[str], known: Iterable[str], source: str = "") -> None:
    """Refuse unknown options, and suggest the nearest known one; options may be abbreviated, as argparse allows.

    >>> refuse_unknown(["--sede", "1"], ["--seed", "--data_seed"])
    Traceback (most recent call last):
    ValueError: --sede is not an option. Did you mean --seed? --help explains every option.
    >>> refuse_unknown(["--overwrite_output_dir"], ["--output_dir", "--no_output_dir"])
    Traceback (most recent call last):
    ValueError: --overwrite_output_dir is not an option. Did you mean --output_dir? --help explains every option.
    """
    known = list(known)
    for word in words:
        option = word.split("=")[0]
        # A negative number is a value.
        if not re.match(r"--?[A-Za-z]", option) or any(name.startswith(option) for name in known):
            continue
        likely = known if _NEGATION.match(option) else [name for name in known if not _NEGATION.match(name)]
        meant = did_you_mean([option.replace("-", "_").replace("__", "--", 1)], likely)
        raise ValueError(f"{source}{option} is not an option.{meant} --help explains every option.")
