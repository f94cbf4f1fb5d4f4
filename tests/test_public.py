"""What the API reference names is what the package offers, and each of it has an example that runs."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
NAMES = [name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)]
ROOMS = ("delst_hf", "delst_hf.evaluation", "delst_hf.metrics", "delst_hf.prediction")


def found(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


PUBLIC = {name: found(name) for name in NAMES}


def used_by_pages_and_examples() -> set[tuple[str, str]]:
    """The names that pages and examples import from the package, with the module that they import them from."""
    codes = [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        codes += re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    imports = [node for code in codes for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    return {
        (node.module, alias.name)
        for node in imports
        if node.module and node.module.startswith("delst_hf")
        for alias in node.names
    }


def test_the_reference_names_nothing_twice_and_each_at_its_home():
    assert len(NAMES) == len(set(NAMES))
    assert [name for name, value in PUBLIC.items() if f"{value.__module__}.{value.__name__}" != name] == []


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_exports_is_in_the_reference(room):
    exported = {name: getattr(importlib.import_module(room), name) for name in importlib.import_module(room).__all__}
    callables = {name: value for name, value in exported.items() if callable(value)}
    assert callables
    assert [name for name, value in callables.items() if value not in PUBLIC.values()] == []


def test_what_pages_and_examples_use_is_in_the_reference():
    used = used_by_pages_and_examples()
    assert len(used) > 20
    values = {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, name in used}
    missing = {name for name, value in values.items() if callable(value) and value not in PUBLIC.values()}
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_it_has_an_example(name):
    """A class may have it at its constructor. tests/test_doctests.py runs them all."""
    value = PUBLIC[name]
    texts = [value.__doc__ or ""]
    if inspect.isclass(value):
        texts.append(value.__init__.__doc__ or "")
    assert any(re.search(r"^\s*>>> ", text, re.MULTILINE) for text in texts), f"{name} has no example"


# What cannot run without a network, or without a package that is not installed for the tests.
SHOWN_ONLY = {
    "delst_hf.data.readers.spatialdata_zarr.read_spatialdata",
    "delst_hf.evaluation.protocols.robustness.robustness_index",
    "delst_hf.hub.publish.push_dataset",
    "delst_hf.hub.publish.push_metric",
    "delst_hf.hub.publish.push_model",
}


def test_only_these_examples_are_not_run():
    """They are tested elsewhere, against a Hub of the tests and beside an `importorskip`."""
    assert {name for name, value in PUBLIC.items() if "doctest: +SKIP" in (value.__doc__ or "")} == SHOWN_ONLY
