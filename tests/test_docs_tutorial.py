"""docs/tutorial.md and the Python blocks of the other pages, run as pasted on folders that the test writes."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from layouts import make_source, write_outs
from PIL import Image
from scipy import sparse

from delst_hf.cli import main
from delst_hf.data.toy import make_toy_slide
from delst_hf.pretraining.run import main as pretraining

ROOT = Path(__file__).parents[1]
PAGES = {"data.md", "evaluation.md", "prediction.md"}


def blocks_of(page: str, *kinds: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [
        (kind, code)
        for kind, code in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if kind in kinds
    ]


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "delst":
        assert main(words[1:]) == 0, line
    else:
        assert words[:3] == ["python", "-m", "delst_hf.pretraining"], line
        pretraining(words[3:])


def test_the_tutorial_runs_as_it_stands(tiny_backbone, tmp_path, monkeypatch, capsys):
    for seed, name in enumerate(("S1", "S2", "S3")):
        write_outs(tmp_path / name / "outs", make_source(seed, rows=8, columns=9, num_genes=120))
    Image.fromarray(np.asarray(make_toy_slide("S4", spots_per_side=5, image_px=600, seed=4).image)).save(
        tmp_path / "S4.tif"
    )
    # A folder of that name stands for the backbone of the Hub, and the CPU for a GPU.
    shutil.copytree(tiny_backbone, tmp_path / "facebook" / "dinov2-small")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    shared: dict = {"__name__": "__main__"}
    ran = []
    for kind, code in blocks_of("tutorial.md", "bash", "text", "python"):
        if kind == "text":
            Path("slides.csv").write_text(code)
        elif kind == "bash":
            for line in code.strip().splitlines():
                run_command(line)
                ran.append(line.split()[1])
        elif "import scanpy" not in code or importlib.util.find_spec("scanpy") is not None:
            exec(compile(code, "docs/tutorial.md", "exec"), shared)
    assert ran == ["check", "prepare", "vocabulary", "-m", "evaluate", "report", "fit", "predict", "predict"]
    printed = capsys.readouterr().out
    assert "What to open: " in printed and "Checkpoint: runs/mine/model" in printed
    assert len(anndata.read_h5ad("s4.h5ad").var["pearson"])
    assert "<h1>" in Path("report.html").read_text() and Path("runs/mine/curves.png").is_file()
    assert len(np.unique(np.asarray(Image.open("gene.png").convert("RGB")).reshape(-1, 3), axis=0)) > 20


@pytest.fixture
def files(toy_folder, toy_checkpoint, tmp_path, monkeypatch):
    """What the blocks of the pages name, in the folder in which they run."""
    from test_readers_her2st import write_section

    shutil.copytree(toy_folder, tmp_path / "toy-dataset")
    shutil.copytree(toy_folder, tmp_path / "runs/toy/data")
    shutil.copytree(toy_checkpoint, tmp_path / "runs/toy/pretrain/model")
    write_section(tmp_path / "her2st")
    for path in sorted((tmp_path / "her2st").rglob("*Z1*"), reverse=True):
        for name in ("C2", "C3"):
            copy = path.with_name(path.name.replace("Z1", name))
            shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    images = tmp_path / "her2st/data/ST-imgs"
    shutil.copytree(images / "Z", images / "C")
    slide = make_toy_slide("toy_C1", spots_per_side=5, image_px=400)
    adata = anndata.AnnData(
        sparse.csr_matrix(slide.counts),
        obs=pd.DataFrame(index=slide.spots.index.astype(str)),
        var=pd.DataFrame(index=slide.genes["symbol"].to_numpy()),
        obsm={"spatial": slide.spots[["x", "y"]].to_numpy(float)},
    )
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55 / slide.mpp}
    adata.uns["spatial"] = {"toy_C1": {"images": {"hires": np.asarray(slide.image)}, "scalefactors": factors}}
    adata.write_h5ad(tmp_path / "mine.h5ad")
    Image.fromarray(np.asarray(slide.image)).save(tmp_path / "he.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_python_blocks_run_as_pasted(page, files):
    blocks = blocks_of(page, "python")
    assert blocks, "no block found: the test would be blind"
    found: dict = {"__name__": "__main__"}
    for _, code in blocks:
        if "lazyslide" in code and not importlib.util.find_spec("lazyslide"):  # an extra with an environment of its own
            continue
        exec(compile(code, f"docs/{page}", "exec"), found)
    if page == "data.md":
        assert found["counts"] and Path("her2st-dataset/spots").is_dir()
    if page == "prediction.md":
        assert "X_delst" in found["adata"].obsm
        assert anndata.read_h5ad("he_python.h5ad").n_vars


def test_no_page_with_python_is_forgotten():
    """The README, models.md and hub.md have tests of their own, the last one with a server."""
    pages = {path.name for path in (ROOT / "docs").glob("*.md") if "```python" in path.read_text(encoding="utf-8")}
    assert pages == PAGES | {"models.md", "hub.md", "tutorial.md"}
