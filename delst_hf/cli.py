"""The `delst` command. Each subcommand is one `add_*` function for its arguments and one function that does the work.

Imports of datasets, pandas and anndata stay inside the functions that need them, so that `--help` does not wait for them.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .atomic.processes import end_like_interrupted
from .commands.check import add_check
from .commands.hub import add_card, add_doctor, add_push
from .commands.prepare import add_merge, add_prepare, add_vocabulary
from .commands.sheet import named_sheet
from .errors import did_you_mean, messages_on_stderr, report_end

# Commands whose model and dataset are checked first; and commands that load no model and need no auto classes of transformers.
_LOADS_MODELS = ("evaluate", "fit", "reference", "predict", "retrieve", "embed", "demo")
_WITHOUT_MODELS = ("prepare", "check", "merge", "vocabulary", "report", "doctor")


class _Parser(argparse.ArgumentParser):
    """A parser that answers a misspelt command or value with the nearest one."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and keep the words: argparse reports missing arguments before it looks for unknown ones."""
        self._words = list(args or ())
        arguments, rest = super().parse_known_args(args, namespace)
        if rest and self._subparsers is None and "rest" not in self._defaults:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return arguments, rest

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if found is not None:
            choices = [choice.strip("' ") for choice in found[2].split(",")]
            hint = did_you_mean([found[1]], choices)
            message += f".{hint}" if hint else ""
        elif decimals := re.search(r"invalid float value: '(-?\d*),(\d+)'$", message):
            message += f". Write it with a point: {decimals[1]}.{decimals[2]}"
        elif message.endswith("required: COMMAND") and not self._unknown_options():
            commands = next(action for action in self._actions if action.dest == "delst_command").choices or ()
            message = f"name a command: {', '.join(commands)}. {self.prog} --help explains each."
        elif message.startswith(("the following arguments are required", "unrecognized arguments")):
            message = self._unknown_options() or message
        super().error(message)

    def _unknown_options(self) -> str:
        """Name the options that do not exist, each with the option that was probably meant; "" if all exist."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        options = [word.split("=")[0] for word in self._words if word.startswith("--")]
        unknown = [option for option in options if not any(name.startswith(option) for name in known)]
        places = {action.dest: str(action.metavar) for action in self._actions if not action.option_strings}
        words = {option[2:].replace("-", "_").casefold() for option in unknown}
        if named := [place for name, place in places.items() if words & {name, place.casefold()}]:
            usage = " ".join([self.prog, *places.values()])
            return f"{' and '.join(named)} {'is' if len(named) == 1 else 'are'} given without a name: {usage}."
        meant = (did_you_mean([option.replace("_", "-")], known) for option in unknown)
        return " ".join(f"{option} is not an option.{hint}" for option, hint in zip(unknown, meant, strict=True))


class _Version(argparse.Action):
    """Print the version of the package, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        package = sys.modules[__package__ or "delst_hf"]
        print(f"delst {getattr(package, '__version__', 'unknown')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        The exit status: 0 when done, 1 when `delst doctor` or `delst check` found something, 2 for a mistake of the user, 130
        when interrupted.
    """
    arguments = parse_arguments(argv)
    end_like_interrupted()
    try:
        check_places(arguments)
        if arguments.delst_command not in _WITHOUT_MODELS:
            importlib.import_module(".registration", __package__)
        with messages_on_stderr(arguments.debug):
            status = arguments.run(arguments) or 0
            sys.stdout.flush()
            return status
    except (Exception, KeyboardInterrupt) as error:
        return report_end("delst", error, arguments.debug, "nothing was left half-written")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; `rest` holds those that `delst check` leaves for the format that it recognises."""
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


def check_places(arguments: argparse.Namespace) -> None:
    """Refuse a model or a dataset that does not exist or is something else, before libraries load, which takes seconds."""
    from .data.places import check_dataset, check_model, check_prediction

    if arguments.delst_command in _LOADS_MODELS:
        for name, check in (("model", check_model), ("dataset", check_dataset)):
            if (value := getattr(arguments, name, None)) is not None:
                check(value)
    if arguments.delst_command in ("predict", "retrieve") and arguments.output:
        check_prediction(Path(arguments.output), arguments.overwrite)


if __name__ == "__main__":
    sys.exit(main())
