"""The house itself: imports run one way, and the model files work without the package on the Hub."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

PACKAGE = Path(__file__).resolve().parents[1] / "delst_hf"
MODEL_FILES = sorted(path.stem for path in (PACKAGE / "model").glob("*.py") if path.stem != "__init__")

# The rooms in the order of reading: a module imports from its own room and from those above. Within a room imports may
# only not be circular.
ORDER = [
    "model",
    "record",
    "errors",
    "markup",
    "atomic",
    "pipelines",
    "registration",
    "data",
    "evaluation",
    "hub",
    "prediction",
    "report",
    "demo",
    "metrics",
    "pretraining",
    "commands",
    "cli",
]
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
MODULES.remove("__init__")


def room_of(module: str) -> str:
    room = module.split("/")[0]
    assert room in ORDER, f"delst_hf/{module}.py has no room: put it into one of {ORDER}, or give ORDER a new one"
    return room


def source_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def as_module(dotted: list[str]) -> str:
    """The file behind a dotted path: the module itself, or the __init__ of a package."""
    path = "/".join(dotted)
    return path if path in MODULES else f"{path}/__init__".lstrip("/")


def imports_of(module: str, tree: ast.Module | None = None) -> Iterator[tuple[int, str]]:
    """Line and target of every import of a module of delst_hf, wherever it stands, lazily or for type checking too."""
    folder = module.split("/")[:-1]
    for node in ast.walk(tree or source_of(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "delst_hf":
                    yield node.lineno, as_module(alias.name.split(".")[1:])
        elif isinstance(node, ast.ImportFrom):
            named = node.module.split(".") if node.module else []
            if node.level:
                base = folder[: len(folder) - node.level + 1] + named
            elif named[0] == "delst_hf":
                base = named[1:]
            else:
                continue
            for alias in node.names:
                inner = "/".join([*base, alias.name])
                is_module = inner in MODULES or f"{inner}/__init__" in MODULES
                yield node.lineno, as_module([*base, alias.name] if is_module else base)


def against_the_order(module: str, tree: ast.Module | None = None) -> list[str]:
    wrong = []
    for line, target in imports_of(module, tree):
        if target == "__init__":
            wrong.append(f"delst_hf/{module}.py:{line} imports the package itself; import the module that is meant")
            continue
        own, other = room_of(module), room_of(target)
        if own != other and ORDER.index(other) > ORDER.index(own):
            wrong.append(f"delst_hf/{module}.py:{line} imports {target}, which comes later in the order of reading")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    assert against_the_order(module) == []


def test_every_place_of_the_order_is_taken():
    assert {room_of(module) for module in MODULES} >= set(ORDER)


def test_imports_within_a_room_are_not_circular():
    graph = {module: {target for _, target in imports_of(module)} for module in MODULES}
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("model/modeling_delst", "def f():\n    from ..pretraining.trainer import DelstTrainer"),
        ("model/lorentz", "from .. import data"),
        ("data/schema", "from ..evaluation import embed"),
        ("data/readers/her2st", "from ...evaluation.embed import embed"),
        ("evaluation/retrieval", "import delst_hf.report.plots"),
        ("pretraining/trainer", "from delst_hf.cli import main"),
        ("pretraining/trainer", "from .. import __version__"),
        ("pretraining/trainer", "import delst_hf"),
    ],
)
def test_a_wrong_import_would_be_seen(module, statement):
    assert len(against_the_order(module, ast.parse(statement))) == 1


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("data/readers/her2st", "from ..slide import Slide"),
        ("evaluation/embed", "from ..model.modeling_delst import DelstModel"),
        ("cli", "from .data import slide"),
        ("cli", "import os, delst_hf.hub"),
    ],
)
def test_a_right_import_is_left_in_peace(module, statement):
    assert against_the_order(module, ast.parse(statement)) == []


def test_the_root_holds_what_has_no_room():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 8


@pytest.mark.parametrize("module", [*MODULES, "__init__"])
def test_the_package_imports_neither_scripts_nor_tests(module):
    for node in ast.walk(source_of(module)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        assert {name.split(".")[0] for name in names}.isdisjoint({"training", "tests", "examples", "benchmarks"})


def test_every_file_of_a_room_has_its_place_in_the_docs():
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (\w+)/$", text.split("\n## Decisions")[0], flags=re.MULTILINE)
    told = {room: set(re.findall(r"`(\w+)/?`", part)) for room, part in zip(parts[1::2], parts[2::2])}
    for room, names in told.items():
        files = {path.stem for path in (PACKAGE / room).glob("*.py") if not path.stem.startswith("__")}
        assert files <= names, f"docs/architecture.md does not name {sorted(files - names)} of {room}/"
    assert len(told) >= 9


def test_importing_the_package_loads_the_model_files_only():
    eager = {node.module for node in source_of("__init__").body if isinstance(node, ast.ImportFrom) and node.level == 1}
    assert {name.split(".")[0] for name in eager} <= {"registration"}


# --- the files that travel ------------------------------------------------------------------------------------------

# Triton comes with torch for CUDA; contrastive_kernels does without it elsewhere.
BY_SOME_RUNS = {"backbone_delst", "contrastive_fused", "replay", "stain_normalization"}
ALLOWED_LIBRARIES = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors", "triton"}


@pytest.mark.parametrize("module", MODEL_FILES)
def test_model_files_import_only_what_travels_with_them(module):
    siblings = set()
    for node in ast.walk(source_of(f"model/{module}")):
        where = f"delst_hf/model/{module}.py:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            libraries = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{where}: only siblings travel"
            assert node.module in MODEL_FILES, f"{where}: only `from .sibling import name`, one of {MODEL_FILES}"
            assert node.lineno == node.end_lineno, f"{where}: on its own line"
            assert node.col_offset == 0 or node.module in BY_SOME_RUNS, f"{where}: at the top"
            siblings.add(node.module)
            continue
        elif isinstance(node, ast.ImportFrom):
            libraries = {node.module.split(".")[0]}
        else:
            continue
        foreign = libraries - ALLOWED_LIBRARIES - sys.stdlib_module_names
        assert not foreign, f"{where}: {foreign} would have to be installed by who loads the checkpoint"
    # transformers reads the imports with a regular expression, docstrings included: it must see what Python sees.
    assert set(get_relative_imports(PACKAGE / "model" / f"{module}.py")) == siblings
