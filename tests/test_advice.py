"""What messages and help texts advise is there: commands of `delst`, options, targets of make."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from delst_hf.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "delst_hf").rglob("*.py"))
# Options of other programs that messages name (torchrun, accelerate, hf, vips), and those that scripts answer themselves.
FOREIGN = {"nproc_per_node", "num_processes", "config_file", "multi_gpu", "cpu", "repo_type", "help_all", "option"}
FOREIGN |= {"local_dir", "tile", "pyramid", "compression", "bigtiff"}


def strings_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is not a docstring; what an f-string puts in is X."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else " X" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | inside):
            yield node.lineno, node.value


def parsers(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from parsers(inner, (*words, name))


PARSERS = dict(parsers(build_parser()))
OPTIONS = {
    words: {option: action.nargs == 0 for action in parser._actions for option in action.option_strings}
    for words, parser in PARSERS.items()
}


def script_fields() -> set[str]:
    from delst_hf.commands.evaluate import EvaluationArguments
    from delst_hf.pretraining.arguments import DataArguments, DelstTrainingArguments, ModelArguments
    from delst_hf.pretraining.options import CardArguments
    from delst_hf.pretraining.search import SearchArguments

    classes = (
        EvaluationArguments,
        DataArguments,
        ModelArguments,
        DelstTrainingArguments,
        CardArguments,
        SearchArguments,
    )
    return {name for one in classes for name in one.__dataclass_fields__}


STRINGS = [(path.relative_to(ROOT).as_posix(), line, text) for path in MODULES for line, text in strings_of(path)]
COMMAND = re.compile(r"\bdelst ((?:[a-z][a-z0-9-]*)(?: [a-z][a-z0-9-]*)?)")
OPTION = re.compile(
    r"(?<!var\()(?<![\w-])--([a-z][\w-]*)(?![\w:-])(?: (true|false)\b)?"
)  # not the variables of a style sheet


def wrong_options(text: str) -> list[str]:
    """Options that no program of the package has, and flags of `delst` that are told to take true or false."""
    fields = script_fields()
    everywhere = {option for options in OPTIONS.values() for option in options}
    flags = {option for options in OPTIONS.values() for option, flag in options.items() if flag}
    wrong = []
    for name, value in OPTION.findall(text):
        known = f"--{name}" in everywhere or name.replace("-", "_") in fields | FOREIGN
        if not known or (value and f"--{name}" in flags and "-" in name):
            wrong.append(f"--{name} {value}".strip())
    return wrong


def wrong_commands(text: str) -> list[str]:
    names = {words[0] for words in PARSERS if words}
    return [found[1] for found in COMMAND.finditer(text) if found[1].split()[0] not in names]


def test_there_is_advice_to_look_at():
    assert sum(bool(COMMAND.search(text)) for _, _, text in STRINGS) > 30
    assert sum(bool(OPTION.search(text)) for _, _, text in STRINGS) > 150


def test_every_option_that_is_named_exists():
    assert [(path, line, wrong) for path, line, text in STRINGS if (wrong := wrong_options(text))] == []


def test_every_command_of_delst_that_is_named_exists():
    assert [(path, line, wrong) for path, line, text in STRINGS if (wrong := wrong_commands(text))] == []


def test_every_option_beside_a_command_is_one_of_that_command():
    """From `delst NAME` to the end of its code or sentence."""
    wrong = []
    for path, line, text in STRINGS:
        for found in re.finditer(r"\bdelst ([a-z][a-z-]*)([^;,.`)\n]*)", text):
            words = (found[1],)
            second = found[2].split()
            if second and (*words, second[0]) in OPTIONS:
                words = (*words, second[0])
            if words[0] == "check":  # takes those of every format, too
                words = ()
            inner = {o for other, options in OPTIONS.items() if other[: len(words)] == words for o in options}
            unknown = [option for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", found[2]) if option not in inner]
            if unknown:
                wrong.append((path, line, found[0], unknown))
    assert wrong == []


def test_every_target_of_make_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = [(path, name) for path, _, text in STRINGS for name in re.findall(r"`make ([a-z]+)`", text)]
    assert [(path, name) for path, name in named if name not in targets] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("insist by --allow-seen-slides true", ["--allow-seen-slides true"]),
        ("pass --no-such-option", ["--no-such-option"]),
        ("give --freeze_vision true", []),
    ],
)
def test_the_fault_of_old_is_found(text, wrong):
    assert wrong_options(text) == wrong
