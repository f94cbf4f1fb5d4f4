"""How many files of the package one has to read to understand what a module does: the closure of its imports.

    python benchmarks/imports.py                       # one training run without the Hub
    python benchmarks/imports.py evaluation/run        # any module

Rule: a file counts that is imported where a module is loaded, and then what that file imports so. Imports inside functions are
not followed: in pretraining/ they are what only some runs need (the Hub, LoRA, FSDP, cached features, gradient caching,
slide-aware batches, a checkpoint that is continued). Imports for type checking do not count, nor do `__init__` files without a
statement.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "delst_hf"
TRAINING_RUN = "pretraining/run"


def closure(module: str) -> set[str]:
    """Return the modules, paths below delst_hf without suffix, that loading a module loads, itself included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += _imports(current)
    return {name for name in found if _has_statements(name)}


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
    modules = closure(sys.argv[1] if len(sys.argv) > 1 else TRAINING_RUN)
    lines = sum(len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in modules)
    print("\n".join(sorted(modules)))
    print(f"{len(modules)} files, {lines} lines")
