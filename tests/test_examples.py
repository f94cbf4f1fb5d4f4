"""The scripts of examples/, run as they are on toy data, in this process where they can be: nothing is imported twice."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_client import run_client
from hub_server import HubServer
from layouts import make_source, write_outs
from PIL import Image
from safetensors.torch import load_file

from delst_hf import DelstModel

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example with arguments; gives back what it printed."""

    def run_example(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def assert_drawn(path: Path) -> None:
    """A picture is there and is more than a blank page."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_example_is_short_says_how_to_run_it_and_is_listed(name):
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) <= 60
    assert f"python examples/{name} " in ast.get_docstring(ast.parse(text))
    assert f"[{name}]({name})" in (EXAMPLES / "README.md").read_text()
    assert f'"{name}"' in Path(__file__).read_text(), "no test runs it"


def test_quickstart(run, toy_checkpoint, toy_folder):
    text = run("quickstart.py", toy_checkpoint, toy_folder, "toy_B1")
    assert "query: spot " in text and text.count("similarity") == 5 and "mean radius" in text


def test_pretrain_visium(run, tiny_backbone, tmp_path):
    for seed, name in enumerate(("S1", "S2", "S3")):
        write_outs(tmp_path / name / "outs", make_source(seed, rows=5, columns=7, num_genes=120))
    text = run("pretrain_visium.py", tiny_backbone, tmp_path / "run", *(tmp_path / f"S{i}" / "outs" for i in (1, 2, 3)))
    assert "DELST embedding" in text and "shuffled" in text
    assert re.search(r"\bS3\b", text)
    model = DelstModel.from_pretrained(tmp_path / "run" / "model")
    assert model.config.gene_config.num_genes > 100
    assert (model.gene_model.missing_values > 0).all()  # the training means, as training/pretrain.py sets them


def test_signature_maps(run, toy_checkpoint, toy_folder, toy_study, tmp_path):
    signature = ",".join(toy_study.gene_names[124:132:2])
    text = run("signature_maps.py", toy_checkpoint, toy_folder, "toy_B1", signature, tmp_path / "maps")
    assert "among 36 spots" in text and "(chance 0.28)" in text and "Pearson" in text
    for name in ("gallery", "signature"):
        assert_drawn(tmp_path / "maps" / f"{name}.png")


def test_expression_prediction(run, toy_checkpoint, toy_folder, tmp_path):
    text = run("expression_prediction.py", toy_checkpoint, toy_folder, "toy_B1", tmp_path / "prediction.png")
    scores = [float(score) for score in re.findall(r"on toy_B1: (-?\d\.\d+)", text)]
    assert len(scores) == 3
    assert scores[0] > 0.3  # the slides' colours go with the planted genes, whatever the model
    assert_drawn(tmp_path / "prediction.png")


def test_gated_backbone(run, tiny_backbone, toy_folder, tmp_path):
    text = run("gated_backbone.py", tiny_backbone, toy_folder, tmp_path / "run")
    assert "MB of heads" in text and "the same embedding after loading: True" in text
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not any("vision_model" in name for name in weights)
    assert (weights["gene_model.missing_values"] > 0).all()


def test_hierarchy(run, toy_checkpoint, toy_folder, tmp_path):
    text = run("hierarchy.py", toy_checkpoint, toy_folder, "toy_B1", tmp_path / "hierarchy.png")
    assert text.count("mean radius") == 2 and "child of another" in text
    assert_drawn(tmp_path / "hierarchy.png")


def test_finetune_classifier(run, toy_checkpoint, toy_folder, tmp_path):
    text = run("finetune_classifier.py", toy_checkpoint, toy_folder, "toy_B1", tmp_path / "classifier")
    scores = [float(score) for score in re.findall(r"macro-F1 (\d\.\d+) on 36 spots of toy_B1", text)]
    assert len(scores) == 2 and "commonest class" in text
    assert (tmp_path / "classifier" / "config.json").exists()
    assert_drawn(tmp_path / "classifier" / "map.png")


def test_push_to_hub(toy_checkpoint, toy_folder, tmp_path):
    record = {
        "format": "delst-results-2",
        "test_slides": ["toy_B1"],
        "train_slides": [],
        "own_arms": [],
        "protocols": [],
    }
    (tmp_path / "results.json").write_text(json.dumps(record | {"comparisons": [], "skipped": []}))
    script = (EXAMPLES / "push_to_hub.py").read_text()
    with HubServer() as server:
        text = run_client(server, tmp_path, script, toy_checkpoint, toy_folder, "results.json", "me/delst-toy").stdout
        assert text.count(f"{server.endpoint}/") == 2
        assert {name for _, name in server.repositories} == {"me/delst-toy", "me/delst-toy-data"}
    assert "me/delst-toy embeds a patch of me/delst-toy-data: (1, 8)" in text


def test_virtual_spatial_transcriptomics(run, toy_checkpoint, toy_folder, tmp_path):
    from delst_hf.data.toy import make_toy_slide

    slide = make_toy_slide("toy_B1", spots_per_side=6, image_px=400)
    Image.fromarray(np.asarray(slide.image)).save(tmp_path / "he.png")
    arguments = (toy_checkpoint, toy_folder, "toy_B1", tmp_path / "he.png", slide.mpp, tmp_path / "virtual")
    text = run("virtual_spatial_transcriptomics.py", *arguments)
    assert "fitted on toy_A1, toy_A2" in text and "held-back counts of 36 spots" in text
    assert (tmp_path / "virtual" / "toy_B1.h5ad").is_file()
    assert (tmp_path / "virtual" / "toy_B1.png").read_bytes().startswith(b"\x89PNG")
