"""What one has to read to understand a training run: counted by benchmarks/imports.py, which states the rule."""

import runpy
from pathlib import Path

import pytest

IMPORTS = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "imports.py"))
closure = IMPORTS["closure"]


def test_a_training_run_without_the_hub_reads_few_files():
    modules = closure("pretraining/run")
    assert {"model/modeling_delst", "data/collator", "pretraining/trainer", "model/entailment"} <= modules
    assert len(modules) <= 40, sorted(modules)  # of which five are the loss on a CUDA device
    only_some_runs = (
        "pushing",
        "continuing",
        "lora",
        "sharding",
        "cached_features",
        "gradient_cache",
        "sampling",
        "options",
    )
    assert modules.isdisjoint({f"pretraining/{name}" for name in only_some_runs})
    others = ("report", "commands", "prediction", "hub/card", "hub/push", "evaluation/protocols", "evaluation/results")
    assert not [name for name in modules if name.startswith(others)]


@pytest.mark.parametrize(
    ("module", "reads"), [("model/lorentz", {"model/lorentz"}), ("atomic/files", {"atomic/files"})]
)
def test_the_count_follows_imports_and_nothing_else(module, reads):
    assert closure(module) == reads
