"""Every shell block of every page, run as pasted in the order of its page, or marked by a line above it that says why not."""

import shutil
from pathlib import Path

import docs_files
import pytest
import yaml
from shell_blocks import ROOT, blocks_of, commands_of, run_page

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Pages whose blocks have a test of their own: with a Hub, and with Python blocks in between.
ELSEWHERE = {"docs/hub.md": "test_docs_hub", "docs/tutorial.md": "test_docs_tutorial"}
SHELL = [page for page in PAGES if any(block.kind == "bash" for block in blocks_of(page)) and page not in ELSEWHERE]


@pytest.fixture(scope="module")
def runs(tiny_backbone, tmp_path_factory):
    """What pages after the README start from."""
    folder = tmp_path_factory.mktemp("runs")
    docs_files.write_runs(folder, tiny_backbone)
    docs_files.write_results(folder)
    return folder


@pytest.fixture
def here(request, runs, tiny_backbone, tmp_path, without_curves, monkeypatch):
    """The folder in which the commands of a page are given."""
    page = request.node.callspec.params["page"]
    if page == "README.md":
        docs_files.write_own_slides(tmp_path, tiny_backbone)
    elif page == "docs/data.md":
        docs_files.write_slides(tmp_path)
    else:
        shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    for block in blocks_of(page):
        if block.code.startswith("path,format"):
            (tmp_path / "slides.csv").write_text(block.code)
    if page == "docs/training.md":
        shutil.rmtree(tmp_path / "runs/toy/pretrain")
    for name in ("training", "benchmarks", "examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    options = yaml.safe_load((ROOT / "training/configs/toy.yaml").read_text()) | {"output_dir": "runs/config"}
    (tmp_path / "CONFIG.yaml").write_text(yaml.safe_dump(options))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", SHELL)
def test_shell_blocks_run_as_pasted(page, here):
    blocks = blocks_of(page)
    commands = commands_of(blocks, here)
    silent = [block.code for block in blocks if block.kind == "bash" and not any(c.block is block for c in commands)]
    assert silent == [], "no command was found in these blocks: the test would be blind"
    run_page(blocks, commands, Path.cwd())
