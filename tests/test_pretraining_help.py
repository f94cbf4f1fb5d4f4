"""Help that teaches: ours first, in groups, each option once with its default and when to touch it; examples that parse."""

import argparse
import dataclasses
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from transformers import TrainingArguments

from delst_hf.cli import build_parser, parse_arguments
from delst_hf.commands.evaluate import EVALUATION, EvaluationArguments
from delst_hf.pretraining import __main__ as module_door
from delst_hf.pretraining.arguments import DataArguments, DelstTrainingArguments, ModelArguments, PublicArguments
from delst_hf.pretraining.help_groups import PRETRAINING
from delst_hf.pretraining.help_layout import documented
from delst_hf.pretraining.known_options import check_words
from delst_hf.pretraining.options import CardArguments, _Parser
from delst_hf.pretraining.options import parse_arguments as parse_options

ROOT = Path(__file__).parents[1]
CLASSES = (DataArguments, ModelArguments, DelstTrainingArguments, CardArguments)
SCRIPT = (ROOT / "training" / "pretrain.py").read_text().split('"""')[1]
NEVER = {"remove_unused_columns", "logging_nan_inf_filter", "label_names"}  # options of ours that must stay as they are


def help_of(capsys, *argv: str, classes=CLASSES, groups=PRETRAINING, description=SCRIPT) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_options(classes, description, list(argv), groups)
    assert not stop.value.code
    return capsys.readouterr().out


def options_of(text: str) -> list[str]:
    return re.findall(r"^  (--[\w-]+)", text, flags=re.MULTILINE)


def test_our_options_come_in_groups_each_once(capsys):
    text = help_of(capsys, "--help")
    assert len(text.splitlines()) < 320 and max(map(len, text.splitlines())) <= 128
    names = [option.removeprefix("--") for option in options_of(text)]
    assert names == [*(name for group in PRETRAINING.values() for name in group), "help-all", "debug"]
    places = [text.index(f"\n{heading}:\n") for heading in [*PRETRAINING, "help"]]
    assert places == sorted(places)
    ours = {one.name for part in (DataArguments, ModelArguments, CardArguments) for one in dataclasses.fields(part)}
    ours |= set(DelstTrainingArguments.__annotations__)
    assert ours - NEVER <= set(names)
    assert set(names[:-2]) - ours == set(documented(PublicArguments)) - ours


def test_each_option_says_its_default_and_when_to_touch_it(capsys):
    text = re.sub(r"\s+", " ", help_of(capsys, "--help"))
    assert text.count("Touch it: ") == sum(map(len, PRETRAINING.values()))
    assert "training slides. Default: 1000. Touch it: 300 to 500 for panels of Xenium" in text
    assert (
        "--dataset TEXT Dataset folder written by `delst prepare`, or a dataset id of the Hub. Required. Touch" in text
    )
    assert "--learn_curvature true|false Whether c is learned. Default: true." in text


def test_options_of_transformers_are_behind_help_all(capsys):
    text = help_of(capsys, "--help-all")
    assert all(times == 1 for times in Counter(options_of(text)).values())
    everything = {one.name for part in CLASSES for one in dataclasses.fields(part) if one.init}
    assert {option.removeprefix("--") for option in options_of(text)} == everything | {"help-all", "debug"}
    assert {one.name for one in dataclasses.fields(TrainingArguments) if one.init} <= everything
    assert help_of(capsys, "--help").splitlines()[:40] == text.splitlines()[:40]


@pytest.mark.parametrize(("description", "number"), [(SCRIPT, 4), (module_door.__doc__, 3)])
def test_examples_stand_apart_and_parse(description, number, capsys, tmp_path):
    text = help_of(capsys, "--help", description=description)
    examples = re.findall(r"^    ((?:accelerate|torchrun) .*)$", text, flags=re.MULTILINE)
    assert len(examples) == number
    for example in examples:
        words = shlex.split(example, comments=True)
        start = next(i for i, word in enumerate(words) if re.search(r"pretrain\.py$|delst_hf\.pretraining$", word)) + 1
        given = [str(ROOT / word) if word.startswith("training/") else word for word in words[start:]]
        if given[0] == "my-run.yaml":
            (tmp_path / given[0]).write_text(f"dataset: d\noutput_dir: {tmp_path}\n")
            given[0] = str(tmp_path / given[0])
        data, *_ = parse_options(CLASSES, "", given)
        assert data.dataset


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lerning_rate", "1"], r"--lerning_rate is not an option. Did you mean --learning_rate\?"),
        (["--per-device-batch-size=1"], r"Did you mean --per_device_\w+_batch_size\?"),
        (["--learning_rate", "quick"], r"--learning_rate: invalid float value: 'quick'. --help explains"),
        (["--ranking", "best"], r"--ranking: invalid choice: 'best' \(choose from"),
        (
            ["--dataset", "d", "--output_dir", "my", "runs"],
            r"'runs' does not belong to an option\. A value with a space.* needs quotes",
        ),
        ([], r"--dataset is missing. Give it, or begin with a configuration: one of her2st, .*toy"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        parse_options(CLASSES, "", options)


def test_the_early_answer_knows_every_option():
    """It reads the source of transformers: what it does not know there would be refused although the parser takes it."""
    for option in _Parser(CLASSES, add_help=False)._option_string_actions:
        check_words(["toy", option, "-1e-3", f"{option}=3"], PRETRAINING)
    for name in EvaluationArguments.__annotations__:
        check_words([f"--{name}", f"--{name.replace('_', '-')}"], EVALUATION, training_arguments=False)
    check_words(["-h", "--help", "--help-all", "--debug", "--num_train", "-3"], PRETRAINING)
    with pytest.raises(ValueError, match=r"--lerning_rate is not an option. Did you mean --learning_rate\?"):
        check_words(["toy", "--lerning_rate", "1"], PRETRAINING)
    with pytest.raises(ValueError, match=r"--learning_rate is not an option"):
        check_words(["--learning_rate", "1"], EVALUATION, training_arguments=False)


def test_a_misspelt_option_of_a_file_names_the_file(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("dataset: d\nnum_gene_s: 3\n")
    with pytest.raises(ValueError, match=r"run.yaml: --num_gene_s is not an option. Did you mean --num_genes\?"):
        parse_options(CLASSES, "", [str(config)])


def test_evaluate_is_laid_out_alike(capsys):
    text = (ROOT / "training" / "evaluate.py").read_text().split('"""')[1]
    script = help_of(capsys, "-h", classes=(EvaluationArguments,), groups=EVALUATION, description=text)
    assert sorted(name for group in EVALUATION.values() for name in group) == sorted(
        EvaluationArguments.__annotations__
    )
    with pytest.raises(SystemExit):
        parse_arguments(["evaluate", "--help"])
    command = capsys.readouterr().out
    for heading in EVALUATION:
        assert f"\n{heading}:\n" in script and f"\n{heading}:\n" in command
    for text in (command, script):
        assert " ".join(text.split()).count("Touch it: ") == len(EvaluationArguments.__annotations__) - 2


def commands_of(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    nested = [command for one in choices for command in dict.fromkeys(one.values())]
    return [parser, *(found for command in nested for found in commands_of(command))]


def test_every_command_has_a_usage_of_one_line_options_once_and_examples_that_parse():
    commands = commands_of(build_parser())
    examples = 0
    for command in commands:
        text = command.format_help()
        assert text.splitlines()[0].startswith(f"usage: {command.prog}") and text.splitlines()[1] == ""
        assert all(times == 1 for times in Counter(options_of(text)).values()), command.prog
        assert len(text.splitlines()) < 130, command.prog
        for example in re.findall(r"^ +(delst .*)$", command.epilog or "", flags=re.MULTILINE):
            parse_arguments(shlex.split(re.split(r" {3}| #", example)[0])[1:])
            examples += 1
    assert len(commands) > 20 and examples > 15
