"""How many files of the package one has to read to understand what a module does: the closure of its imports.

    python benchmarks/imports.py                       # one training run without the Hub
    python benchmarks/imports.py evaluation/run        # any module

Rule: a file counts that is imported where a module is loaded, and then what that file imports so. Of a training run those
count too that it imports within functions, if a plain run reaches them (`IN_EVERY_RUN`): a dataset folder, a backbone from
scratch, a CPU, every other option at its default, no validation slides. tests/test_import_closure.py makes such a run and
compares what it loaded, so that no import is hidden by where it stands. What only other runs load does not count: pushing, a
pretrained backbone that does not load, LoRA, FSDP, cached features, gradient caching, the kernels of a CUDA device, a
vocabulary from a file, validation, a checkpoint that is continued. Nor do `report/`, which writes and draws the log and changes
nothing of the run, imports for type checking, and `__init__` files without a statement.

The bar is for a run without the Hub: of the room `hub/` a run reads one file, `checkpoint_folder`, which saves the model as the
Hub wants it. It is listed, and left out of the number that is compared with the bar.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "delst_hf"
TRAINING_RUN = "pretraining/run"
IN_EVERY_RUN = ("data/appearance",)
BAR = 25


def closure(*modules: str) -> set[str]:
    """Return the modules, paths below delst_hf without suffix, that loading some modules loads, themselves included."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += _imports(current)
    return {name for name in found if _has_statements(name)}


def without_hub(modules: set[str]) -> set[str]:
    """Return the modules that are not of the room `hub/`."""
    return {name for name in modules if not name.startswith("hub/")}


def _imports(module: str) -> Iterator[str]:
    for node in _tree(module).body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = module.split("/")[: -node.level] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            inner = "/".join([*base, alias.name])
            yield from _files(inner if _files(inner) else "/".join(base))


def _files(path: str) -> list[str]:
    return [name for name in (path, f"{path}/__init__") if (PACKAGE / f"{name}.py").is_file()]


def _tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def _has_statements(module: str) -> bool:
    return any(not isinstance(node, ast.Expr) for node in _tree(module).body)


if __name__ == "__main__":
    modules = closure(*sys.argv[1:]) if len(sys.argv) > 1 else closure(TRAINING_RUN, *IN_EVERY_RUN)
    lines = sum(len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in modules)
    print("\n".join(sorted(modules)))
    print(f"{len(modules)} files, {lines} lines")
    if len(sys.argv) == 1:
        number = len(without_hub(modules))
        print(f"without the Hub {number} files (bar {BAR}): {'pass' if number <= BAR else 'MISS'}")
