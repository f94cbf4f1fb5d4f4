"""The wheel: built, installed into an environment of its own, and used outside of the repository."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="the wheel is built by hatchling: pip install '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    built = run(sys.executable, *words, cwd=folder)
    assert built.returncode == 0, built.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_it_holds_what_is_found_by_name(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "delst_hf/py.typed",
        "delst_hf/hub/model_card_template.md",
        "delst_hf/pretraining/configs/toy.yaml",
    } <= names
    assert not {name for name in names if name.startswith(("tests/", "training/", "benchmarks/"))}


def test_it_runs_outside_of_the_repository(wheel, tmp_path):
    # The libraries are those of this environment; the package is the installed one.
    venv.create(tmp_path / "venv", with_pip=False)
    site = Path(
        sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")})
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    installed = run(*pip, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr[-2000:]
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = tmp_path / "venv" / "bin" / "python"

    version = run(python, "-m", "delst_hf.cli", "--version", cwd=tmp_path)
    assert version.stdout.startswith("delst "), version.stderr[-2000:]
    code = "import delst_hf\nfrom delst_hf.pretraining.options import find_config\n"
    code += "print(delst_hf.__file__, find_config('her2st'))"
    found = run(python, "-c", code, cwd=tmp_path, HF_HUB_OFFLINE="1").stdout.split()
    assert all(path.startswith(str(site)) for path in found) and len(found) == 2
    refused = run(python, "-m", "delst_hf.pretraining", "toi", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert refused.returncode == 2 and "no configuration at toi" in refused.stderr
