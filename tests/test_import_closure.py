"""What one has to read to understand a training run: counted by benchmarks/imports.py, which states the rule."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORTS = runpy.run_path(str(ROOT / "benchmarks" / "imports.py"))
closure = IMPORTS["closure"]

# The package without its `__init__`, which loads more: heads and pipelines, to register them with transformers.
PLAIN_RUN = """
import importlib, json, sys, types

package = sys.modules["delst_hf"] = types.ModuleType("delst_hf")
package.__path__ = [sys.argv[1]]
run, arguments = (importlib.import_module(f"delst_hf.pretraining.{name}") for name in ("run", "arguments"))
vision = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = arguments.ModelArguments(
    vision_config=json.dumps(vision), image_size=32, gene_hidden_size=16, projection_dim=8
)
training = arguments.DelstTrainingArguments("run", max_steps=2, save_steps=1, report_to="none", use_cpu=True)
run.pretrain(arguments.DataArguments(sys.argv[2], test_slides="toy_B1"), model, training)
print("LOADED", *sorted(name for name in sys.modules if name.startswith("delst_hf.")))
"""


def test_a_training_run_without_the_hub_reads_few_files():
    modules = closure(IMPORTS["TRAINING_RUN"], *IMPORTS["IN_EVERY_RUN"])
    assert {"model/modeling_delst", "data/collator", "pretraining/trainer", "model/entailment"} <= modules
    assert len(IMPORTS["without_hub"](modules)) <= IMPORTS["BAR"] == 25, sorted(modules)
    assert [name for name in modules if name.startswith("hub/")] == ["hub/checkpoint_folder"]  # what saves the model
    others = ("report", "commands", "prediction", "evaluation")
    assert not [name for name in modules if name.startswith(others)]


def test_a_plain_run_loads_no_file_that_is_not_counted(toy_folder, tmp_path):
    command = [sys.executable, "-c", PLAIN_RUN, str(ROOT / "delst_hf"), str(toy_folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "LOADED" in done.stdout, done.stderr[-2000:]
    names = {name.removeprefix("delst_hf.").replace(".", "/") for name in done.stdout.split("LOADED")[1].split()}
    loaded = {name for name in names if (ROOT / "delst_hf" / f"{name}.py").is_file() and not name.startswith("report/")}
    assert loaded == closure(IMPORTS["TRAINING_RUN"], *IMPORTS["IN_EVERY_RUN"])


@pytest.mark.parametrize(
    ("module", "reads"), [("model/lorentz", {"model/lorentz"}), ("atomic/files", {"atomic/files"})]
)
def test_the_count_follows_imports_and_nothing_else(module, reads):
    assert closure(module) == reads


def test_a_line_of_code_is_no_docstring_no_comment_and_not_blank():
    code_lines = runpy.run_path(str(ROOT / "benchmarks" / "code_lines.py"))["code_lines"]
    source = (
        '"""Of the module."""\n\n# Why.\nTEXT = """two\nlines"""\n\n\n'
        'def f():\n    """Of f.\n\n    More.\n    """\n    return 1  # 1\n'
    )
    assert code_lines(source) == 4  # TEXT of two lines, def, return
