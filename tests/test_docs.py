"""The pages: every command that they show is one that the programs take, and every place that they name is there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from delst_hf.cli import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "examples" / "README.md", *sorted((ROOT / "model_cards").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SCRIPT = re.compile(
    r"(?:accelerate launch|torchrun|python)\b.*?(?:\btraining/|-m delst_hf\.)(pretrain|evaluate|pretraining)(?:\.py)?\b(.*)"
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands_of(name: str) -> list[str]:
    """The commands of the shell blocks of a page, continued lines joined and comments taken off."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text_of(name), flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def words_of(command: str) -> list[str]:
    """The words of a command up to the next one on its line."""
    words = shlex.split(command, comments=True)
    ends = [i for i, word in enumerate(words) if word in ("&&", "||", "|", ";", ">", "done")]
    return words[: ends[0]] if ends else words


def delst_commands() -> list[tuple[str, str]]:
    return [
        (name, command[command.index("delst ") :])
        for name in NAMES
        for command in commands_of(name)
        if re.match(r"(?:\w+=\S+ )*(?:nice )?delst ", command)
    ]


def test_there_are_commands_to_look_at():
    assert len(delst_commands()) >= 20
    assert sum(bool(SCRIPT.match(command)) for name in NAMES for command in commands_of(name)) >= 4


@pytest.mark.parametrize(("page", "command"), delst_commands())
def test_a_command_of_delst_parses(page, command, capsys):
    try:
        parse_arguments(words_of(command)[1:])
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"{page}: {command}\n{capsys.readouterr().err[-300:]}")


@pytest.mark.parametrize("page", NAMES)
def test_options_of_the_training_scripts_exist(page):
    from delst_hf.commands.evaluate import EvaluationArguments
    from delst_hf.pretraining.arguments import DataArguments, DelstTrainingArguments, ModelArguments
    from delst_hf.pretraining.options import CardArguments

    classes = {"evaluate": (EvaluationArguments,)}
    pretraining = (DataArguments, ModelArguments, DelstTrainingArguments, CardArguments)
    for command in commands_of(page):
        match = SCRIPT.match(command)
        if match is None:
            continue
        known = {name for one in classes.get(match[1], pretraining) for name in one.__dataclass_fields__}
        asked = re.findall(r"(?<=\s)--([\w-]+)", match[2])
        wrong = [option for option in asked if option.replace("-", "_") not in known]
        assert not wrong, f"{page}: {command}"


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        path = (ROOT / page).parent / target.split("#")[0]
        assert path.exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", NAMES)
def test_files_and_names_of_the_project_exist(page):
    text = text_of(page)
    for path in re.findall(
        r"`((?:delst_hf|tests|training|benchmarks|examples|docs)/[\w/.-]+?\.(?:py|md|yaml|json))`", text
    ):
        assert (ROOT / path).is_file(), f"{page} names {path}"
    for dotted in re.findall(r"`(delst_hf(?:\.\w+)+)`", text):
        module, _, name = dotted.rpartition(".")
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), name), f"{page} names {dotted}"


def test_every_page_stands_in_the_navigation_of_the_site():
    """`make docs` refuses the rest: links, anchors, names of the API reference."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(entries):
        for entry in entries:
            value = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from [value] if isinstance(value, str) else pages(value)

    here = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    shown = [page for page in pages(site["nav"]) if page != "index.md" and not page.startswith("files/")]
    assert sorted(shown) == sorted(here)
