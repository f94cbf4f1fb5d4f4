"""What is loaded when: help is quick because it loads nothing heavy, and the package registers in either order of imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "pandas", "pyarrow", "anndata", "sklearn", "scipy", "matplotlib", "numpy"}
# As pip writes it into bin/delst.
CONSOLE_SCRIPT = """
import sys
from delst_hf.cli import main
try:
    sys.exit(main())
finally:
    print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}))
"""


def python(*words: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=folder)
    return done.stdout + done.stderr


@pytest.mark.parametrize("words", [["--help"], ["prepare", "--help"], ["prepare", "visium", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words, tmp_path):
    (tmp_path / "delst").write_text(CONSOLE_SCRIPT)
    text = python(str(tmp_path / "delst"), *words, folder=tmp_path)
    loaded = set(text.split("LOADED")[1].split())
    assert "delst_hf" in loaded and not loaded & HEAVY
    assert ("delst 0." if words == ["--version"] else "usage: delst") in text


def test_a_misspelt_command_is_answered_with_the_nearest(tmp_path):
    text = python("-m", "delst_hf.cli", "prepair", folder=tmp_path)
    assert "Did you mean 'prepare'?" in text


@pytest.mark.parametrize(
    "program", [["training/pretrain.py"], ["training/evaluate.py"], ["-m", "delst_hf.pretraining"]]
)
def test_a_script_answers_a_misspelt_option_before_it_loads_anything_heavy(program, tmp_path):
    """The names of what is loaded are printed by a module that Python imports first, at its exit."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: print('LOADED', *sorted({n.split('.')[0] for n in sys.modules})))\n"
    )
    words = [str(ROOT / word) if word.startswith("training/") else word for word in program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, *words, "--datset", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and "--datset is not an option. Did you mean --dataset?" in done.stderr
    loaded = set(done.stdout.split("LOADED")[1].split())
    assert "delst_hf" in loaded and not loaded & HEAVY


@pytest.mark.parametrize(
    "imports",
    ["import delst_hf; from transformers import AutoConfig, AutoModel",
     "from transformers import AutoConfig, AutoModel; import delst_hf"],
)  # fmt: skip
def test_the_classes_are_registered_in_either_order_of_imports(imports, tmp_path):
    code = "print(AutoModel._model_mapping[type(AutoConfig.for_model('delst'))].__name__)"
    assert python("-c", f"{imports}\n{code}", folder=tmp_path).strip().endswith("DelstModel")


def test_the_command_registers_before_it_loads_a_model(tmp_path):
    (tmp_path / "delst").write_text(CONSOLE_SCRIPT)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "delst"}')
    text = python(str(tmp_path / "delst"), "card", "model", "me/model", folder=tmp_path)
    assert "transformers" in text.split("LOADED")[1].split()


def test_the_trainer_loads_no_evaluation_library(tmp_path):
    code = "import delst_hf.pretraining.trainer, sys; print('LOADED', *sorted(sys.modules))"
    loaded = set(python("-c", code, folder=tmp_path).split("LOADED")[1].split())
    assert "delst_hf.pretraining.trainer" in loaded
    assert not {
        name for name in loaded if name.startswith(("delst_hf.report", "delst_hf.hub.push", "delst_hf.hub.card"))
    }
    assert not loaded & {
        "geoopt",
        "matplotlib.pyplot",
    }  # transformers' own Trainer loads scikit-learn and peft if there
    ours = {name for name in loaded if name.startswith("delst_hf.evaluation.")}
    assert not ours
