"""The house itself: imports run one way, and the model files work without the package on the Hub."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

PACKAGE = Path(__file__).resolve().parents[1] / "delst_hf"
MODEL_FILES = [
    "configuration_delst",
    "lorentz",
    "similarity",
    "contrastive",
    "losses",
    "modeling_delst_gene",
    "vision_delst",
    "backbone_delst",
    "modeling_delst",
    "modeling_delst_heads",
    "feature_extraction_delst",
    "processing_delst",
    "pipelines_delst",
]

# The order of reading. A module imports from the lines above its own; a folder stands for all that lies in it and is
# not named itself, and within such a folder imports may only not be circular.
ORDER = [
    *MODEL_FILES,
    "atomic",
    "evaluation",
    "data/schema",
    "data/pixels",
    "data/tiff",
    "data/openslide_image",
    "data/images",
    "data/genes",
    "data/counts",
    "data/patches",
    "data/lattice",
    "data/slide",
    "data/quality",
    "data/preview",
    "data/readers",
    "data/toy",
    "data/splits",
    "data/output",
    "data/card",
    "data/part",
    "data/merge",
    "data/dataset",
    "data/study",
    "data/vocabulary",
    "data/sampler",
    "data/collator",
    "data/__init__",
    "evaluation/embed",  # joins a model to a study, hence not with its neighbours
    "evaluation/arrays",
    "evaluation/subjects",
    "evaluation/protocol",  # the same, of all evaluations
    "card_facts",
    "arguments",
    "lora",
    "cached_features",
    "training_arguments",
    "gradient_cache",
    "checkpoints",
    "sharding",
    "hub",
    "results",
    "data/facts",
    "model_card_results",
    "model_card",
    "push",
    "publish",
    "data/publish",
    "hub_trainer",
    "trainer",
    "doctor",
    "prepare_formats",
    "prepare",
    "metrics",
    "pictures",
    "drawing",
    "plots",
    "report_figures",
    "report",
    "commands_evaluate",
    "commands_hub",
    "cli",
]
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
MODULES.remove("__init__")


def room_of(module: str) -> str:
    parts = module.split("/")
    for depth in range(len(parts), 0, -1):
        if "/".join(parts[:depth]) in ORDER:
            return "/".join(parts[:depth])
    raise AssertionError(f"delst_hf/{module}.py has no place in ORDER: give it one in tests/test_architecture.py")


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
        ("lorentz", "from .losses import contrastive_loss"),
        ("modeling_delst", "def f():\n    from .trainer import DelstTrainer"),
        ("data/schema", "from .slide import Slide"),
        ("data/schema", "from . import slide"),
        ("data/readers/her2st", "from ..dataset import write_dataset"),
        ("evaluation/retrieval", "import delst_hf.data.slide"),
        ("trainer", "from delst_hf.cli import main"),
        ("trainer", "from . import __version__"),
        ("trainer", "import delst_hf"),
    ],
)
def test_a_wrong_import_would_be_seen(module, statement):
    assert len(against_the_order(module, ast.parse(statement))) == 1


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("data/readers/her2st", "from ..slide import Slide"),
        ("evaluation/embed", "from ..modeling_delst import DelstModel"),
        ("cli", "from .data import slide"),
        ("cli", "import os, delst_hf.hub"),
    ],
)
def test_a_right_import_is_left_in_peace(module, statement):
    assert against_the_order(module, ast.parse(statement)) == []


@pytest.mark.parametrize("module", [*MODULES, "__init__"])
def test_the_package_imports_neither_scripts_nor_tests(module):
    for node in ast.walk(source_of(module)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        assert {name.split(".")[0] for name in names}.isdisjoint({"training", "tests", "examples", "benchmarks"})


def test_importing_the_package_loads_the_model_files_only():
    eager = {node.module for node in source_of("__init__").body if isinstance(node, ast.ImportFrom) and node.level == 1}
    assert eager <= set(MODEL_FILES)


# --- the files that travel ------------------------------------------------------------------------------------------

ALLOWED_LIBRARIES = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors"}


@pytest.mark.parametrize("module", MODEL_FILES)
def test_model_files_import_only_what_travels_with_them(module):
    siblings = set()
    for node in ast.walk(source_of(module)):
        where = f"delst_hf/{module}.py:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            libraries = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{where}: only siblings travel"
            assert node.module in MODEL_FILES, f"{where}: only `from .sibling import name`, one of {MODEL_FILES}"
            assert node.lineno == node.end_lineno and node.col_offset == 0, f"{where}: on its own line, at the top"
            siblings.add(node.module)
            continue
        elif isinstance(node, ast.ImportFrom):
            libraries = {node.module.split(".")[0]}
        else:
            continue
        foreign = libraries - ALLOWED_LIBRARIES - sys.stdlib_module_names
        assert not foreign, f"{where}: {foreign} would have to be installed by who loads the checkpoint"
    # transformers reads the imports with a regular expression, docstrings included: it must see what Python sees.
    assert set(get_relative_imports(PACKAGE / f"{module}.py")) == siblings


@pytest.mark.parametrize("module", ["modeling_delst", "processing_delst"])
def test_the_entry_files_import_every_sibling_that_they_need_themselves(module):
    direct = {target for _, target in imports_of(module)}
    assert direct, "an entry file without siblings: the test would be blind"
    for sibling in direct:
        assert {target for _, target in imports_of(sibling)} <= direct
