"""The `delst` command. Each subcommand is one `add_*` function for its arguments and one function that does the work.

Imports of datasets, pandas and anndata stay inside the functions that need them, so that `--help` does not wait for them.
"""

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .atomic.processes import end_like_interrupted
from .commands.check import add_check
from .commands.hub import add_card, add_doctor, add_push
from .commands.prepare import add_merge, add_prepare, add_vocabulary
from .commands.sheet import named_sheet
from .errors import explain, messages_on_stderr

# Commands that load no model, and need not wait for transformers' auto classes.
_WITHOUT_MODELS = ("prepare", "check", "merge", "vocabulary", "report", "doctor")


class _Parser(argparse.ArgumentParser):
    """A parser that answers a misspelt command or value with the nearest one."""

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if found is not None:
            choices = [choice.strip("' ") for choice in found[2].split(",")]
            near = difflib.get_close_matches(found[1], choices, 1)
            message += f". Did you mean {near[0]!r}?" if near else ""
        super().error(message)


class _Version(argparse.Action):
    """Print the version of the package; it is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        package = sys.modules[__package__ or "delst_hf"]
        print(f"delst {getattr(package, '__version__', 'unknown')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        The exit status: 0 when done, 1 when `delst doctor` or `delst check` found something, 2 for a mistake of the user, 130
        when interrupted.
    """
    arguments = parse_arguments(argv)
    end_like_interrupted()
    try:
        if arguments.delst_command not in _WITHOUT_MODELS:
            importlib.import_module(".registration", __package__)
        with messages_on_stderr(arguments.debug):
            return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("delst: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        print(f"delst: error: {explain(error)}", file=sys.stderr)
        return 2


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; those that `delst check` leaves for the format that it finds are in `rest`."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(named_sheet(sys.argv[1:] if argv is None else argv))
    if rest and not hasattr(arguments, "rest"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `delst` with all its subcommands."""
    from .commands.demo import add_demo
    from .commands.evaluate import add_evaluate
    from .commands.predict import add_embed, add_fit, add_predict, add_reference, add_retrieve
    from .commands.report import add_report
    from .pretraining.help_layout import lay_out

    parser = _Parser(
        prog="delst",
        description="Hyperbolic image-gene pretraining on spatial transcriptomics.",
        epilog="Begin with:  delst prepare toy --output toy-dataset",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands: Any = parser.add_subparsers(required=True, metavar="COMMAND", dest="delst_command")
    add_prepare(commands)
    add_check(commands)
    add_merge(commands)
    add_vocabulary(commands)
    add_evaluate(commands)
    add_report(commands)
    add_fit(commands)
    add_reference(commands)
    add_predict(commands)
    add_retrieve(commands)
    add_embed(commands)
    add_demo(commands)
    add_card(commands)
    add_push(commands)
    add_doctor(commands)
    lay_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
