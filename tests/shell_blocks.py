"""The shell blocks of a page, as a shell reads them, and each of their commands in this process instead of one of its own.

bash itself expands the page (variables, loops, continued lines, quotes); every program that the pages call is a function
there that notes its words and does nothing. `parse` then gives the words of a command to its real parser, `run` does what it
says.

A block whose line above reads *Needs ...* or *Takes ...* is parsed and not run; one under *One of:* holds alternatives, each of
which finds the folder as the block found it.
"""

import argparse
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from delst_hf.cli import main, parse_arguments
from delst_hf.evaluation.suite import chosen_protocols

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PROGRAMS = ("delst", "python", "accelerate", "torchrun", "make", "pip", "hf")
_NEEDS_SPATIALDATA = re.compile(r"prepare spatialdata|check \S+\.zarr|--output \S+\.zarr|spatialdata_io")
_SPATIALDATA = importlib.util.find_spec("spatialdata") is not None
# Of a block that waits for a process and ends it, only the programs count.
_NOTED = "\n".join(
    f'{name}() {{ printf \'%s\\0\' "$BLOCK" "HF_TOKEN=${{HF_TOKEN-}}" {name} "$@" $\'\\1\' >> "$NOTES"; }}'
    for name in _PROGRAMS
)
_NOTED += "\n" + "\n".join(f"{name}() {{ :; }}" for name in ("kill", "pgrep", "sleep", "sha256sum", "[")) + "\n"


@dataclass
class Block:
    """A fenced block of a page; `mark` is the line in italics above it, without its stars."""

    page: str
    kind: str
    code: str
    mark: str

    @property
    def is_run(self) -> bool:
        return not self.mark.startswith(("Needs ", "Takes "))


@dataclass
class Command:
    block: Block
    words: list[str]
    token: str = ""

    def __str__(self) -> str:
        return f"{self.block.page}: {' '.join(self.words)}"


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        above = text[: match.start()].rstrip().rpartition("\n")[2]
        mark = re.fullmatch(r"\*((?:Needs|Takes|One of).*)\*", above)
        found.append(Block(page, match[1], match[2], mark[1] if mark else ""))
    return found


def commands_of(blocks: list[Block], folder: Path) -> list[Command]:
    """What bash calls when the shell blocks of a page are pasted one after the other."""
    notes, script = folder / "commands.noted", [_NOTED]
    for number, block in enumerate(blocks):
        if block.kind == "bash":
            script += [f"BLOCK={number}", block.code, "wait"]
    environment = {**os.environ, "NOTES": str(notes), "HER2ST": "her2st", "MOB": "mob", "MOBILENET": "backbone"}
    environment |= {"A1_H5AD": "A1.h5ad", "HF_TOKEN": ""}
    subprocess.run(["bash", "-c", "\n".join(script)], env=environment, cwd=folder, check=True, timeout=60)
    noted = notes.read_text(encoding="utf-8").split("\1\0")[:-1] if notes.exists() else []
    notes.unlink(missing_ok=True)
    lines = [one.split("\0")[:-1] for one in noted]
    return [Command(blocks[int(number)], words, token.partition("=")[2]) for number, token, *words in lines]


class Parsed(Exception):
    """The parser of a program took its words."""


@contextmanager
def only_parsing() -> Iterator[None]:
    """Stop every program once its own parser has taken its words."""
    import delst_hf.pretraining.arguments as arguments
    import delst_hf.pretraining.options as options

    scripts, ours = argparse.ArgumentParser.parse_args, options.parse_arguments

    def stop_script(self, *args, **kwargs):
        scripts(self, *args, **kwargs)
        raise Parsed

    def stop_ours(*args, **kwargs):
        ours(*args, **kwargs)
        raise Parsed

    patched = mock.patch.object
    with (
        patched(argparse.ArgumentParser, "parse_args", stop_script),
        patched(options, "parse_arguments", stop_ours),
        # The blocks install the trackers that they report to.
        patched(arguments, "get_available_reporting_integrations", lambda: ["tensorboard", "trackio", "wandb"]),
    ):
        try:
            yield
        except Parsed:
            return
        except SystemExit as stop:  # of --help
            if stop.code:
                raise
            return
    raise AssertionError("no parser was asked")


def parse(command: Command) -> None:
    """Give the words of a command to its parser; AssertionError, ValueError or SystemExit if it does not take them."""
    program, *words = command.words
    if program == "delst":
        protocols = getattr(parse_arguments(words), "protocols", "all")
        assert protocols == "all" or chosen_protocols(protocols.split(","))
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), command
    elif program == "pip":
        extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        asked = re.findall(r"delst-hf\[(\w+)\]", " ".join(words))
        assert words[0] == "install" and all(re.search(rf"^{name} = \[", extras, re.MULTILINE) for name in asked)
    elif program == "hf":
        assert words[0] in ("upload", "auth", "download"), command
    elif words[:1] == ["-c"]:
        compile(words[1], str(command), "exec")
    else:
        path, arguments = script_of(program, words)
        if path.startswith("examples/"):
            usage = re.search(rf"python {path} (.*?)(?: +#|$)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert usage is not None and len(usage[1].split()) == len(arguments), command
            return
        # bfloat16 is refused where there is no GPU, unless the CPU is asked for.
        here = ["--use_cpu", "true"] if "--bf16" in arguments else []
        with only_parsing():
            _run_script(path, [*arguments, *here])


def script_of(program: str, words: list[str]) -> tuple[str, list[str]]:
    """The script and its arguments in what Python or a launcher is given; the launcher's own words go to its parser."""
    if program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert words[0] == "launch", words
        options = launch_command_parser().parse_args(words[1:])
        assert options.config_file is None or (ROOT / options.config_file).is_file(), options.config_file
        return options.training_script, options.training_script_args
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(words)
        return options.training_script, options.training_script_args
    return (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])


def _run_script(path: str, arguments: list[str]) -> None:
    with mock.patch.object(sys, "argv", [path, *arguments]):
        if path.startswith("delst_hf."):
            name = f"{path}.__main__" if path == "delst_hf.pretraining" else path
            runpy.run_module(name, run_name="docs")["main"]()
        elif path.startswith("training/"):
            runpy.run_path(str(ROOT / path), run_name="docs")["main"]()
        else:
            with mock.patch.object(sys, "path", [str((ROOT / path).parent), *sys.path]):
                runpy.run_path(str(ROOT / path), run_name="__main__")


def run(command: Command) -> None:
    """Do what a command does, a pretraining for an epoch or a step; of what measures or installs the words are parsed."""
    program, *words = command.words
    parse(command)
    if program in ("make", "pip") or (_NEEDS_SPATIALDATA.search(str(command)) and not _SPATIALDATA):
        return
    if program == "hf":
        subprocess.run([sys.executable, "-m", "huggingface_hub.cli.hf", *words], check=True)
    elif program == "delst":
        # `delst doctor` ends with 1 where this machine lacks something.
        assert main(_small(words)) in ((0, 1) if words[0] == "doctor" else (0,)), command
    elif words[:1] == ["-c"]:
        exec(compile(words[1], str(command), "exec"), {"__name__": "__main__"})
    else:
        path, arguments = script_of(program, words)
        if not path.startswith("benchmarks/"):
            few = ["--max_steps", "1"] if "--max_steps" in arguments else ["--num_train_epochs", "1"]
            _run_script(path, [*arguments, *few] if "pretrain" in path else arguments)


def _small(words: list[str]) -> list[str]:
    """The words for this process alone, since others take ten seconds to start; little of an evaluation is as good a test."""
    alone = ["--num-proc", "1"] if "--num-proc" in words else []
    few = ["--resamples", "20", "--num-seeds", "1"] if words[0] == "evaluate" else []
    if few and "--protocols" not in words:
        few += ["--protocols", "hest,retrieval"]
    return [*words, *alone, *few]


def run_page(blocks: list[Block], commands: list[Command], folder: Path) -> list[Command]:
    """Run or parse the commands of a page in their order, in the working folder; what was run."""
    ran = []
    for block in blocks:
        before = set(folder.rglob("*")) if block.mark.startswith("One of") else set()
        for command in (one for one in commands if one.block is block):
            if not block.is_run:
                parse(command)
                continue
            run(command)
            ran.append(command)
            if before:
                for path in sorted(set(folder.rglob("*")) - before, reverse=True):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return ran
