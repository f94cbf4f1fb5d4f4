"""Secrets and folders planted in every way an option can be given: no file that is written or pushed holds them."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from faults import tally

from delst_hf.cli import main as delst
from delst_hf.hub.checkpoint_folder import copy_checkpoint_folder
from delst_hf.pretraining.run import main as pretrain

TOKEN, PASSWORD, KEY, HOME = "hf_PlantedSecretOfAlice", "pa55wordOfAlice", "keyOfAliceToWandb", "home_of_alice"


def words_of(way: str, options: dict, home: Path) -> list[str]:
    """Return the command line of a run in one of the ways in which options are given."""
    if way == "YAML":
        (home / "run.yaml").write_text(yaml.safe_dump(options))
        return [str(home / "run.yaml")]
    if way == "--a=b":
        return [f"--{name}={value}" for name, value in options.items()]
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def leaks_of(folder: Path) -> dict[str, list[str]]:
    """What every file of a folder holds of what was planted, by its name."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes() + os.fsencode(path.relative_to(folder))
        found[path.relative_to(folder).as_posix()] = [
            secret for secret in (TOKEN, PASSWORD, KEY, HOME) if secret.encode() in content
        ]
    return found


# Each way is a whole run: `make torture` takes all.
WAYS = ["relative", "YAML", "--a b", "--a=b"] if os.environ.get("DELST_TORTURE") else ["relative", "YAML"]


@pytest.mark.parametrize("way", WAYS)
def test_no_file_of_a_run_holds_what_was_planted(way, toy_folder, tiny_backbone, tmp_path, monkeypatch, capfd):
    home, work = tmp_path / HOME, tmp_path / "work"
    home.mkdir()
    work.mkdir()
    study = shutil.copytree(toy_folder, home / "studies" / "her2")
    shutil.copytree(tiny_backbone, home / "models" / "vit")
    shutil.copytree(tiny_backbone, work / "here")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_ENDPOINT", f"http://alice:{PASSWORD}@hub.example")
    start = f"../{HOME}" if way == "relative" else str(home)
    options = {
        "dataset": f"{start}/studies/her2", "vision": f"{start}/models/vit", "output_dir": f"{start}/runs/mine",
        "test_slides": "toy_B1", "hub_token": TOKEN, "hub_model_id": "me/toy", "num_genes": 20, "projection_dim": 8,
        "gene_hidden_size": 8, "max_steps": 1, "per_device_train_batch_size": 16, "save_steps": 1, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "freeze_vision": True, "run_name": f"{start}/runs/mine",
    }  # fmt: skip
    words = words_of(way, options, home)
    monkeypatch.setattr(sys, "argv", [f"{home}/training/pretrain.py", *words])
    pretrain()
    model = Path(start, "runs", "mine", "model")
    few = ["--protocols", "retrieval", "--resamples", "5", "--num-seeds", "1", "--no-baselines"]
    results = [str(model), str(study), "--output", str(model / "results.json"), "--test-slides", "toy_B1"]
    monkeypatch.setattr(sys, "argv", [f"{home}/bin/delst", "evaluate", *results, *few])
    assert delst(["evaluate", *results, *few]) == 0
    assert delst(["report", str(model / "results.json"), "--output", str(model / "report.html")]) == 0
    assert delst(["card", str(model), "me/toy", "--output", str(model / "card.md")]) == 0
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    copy_checkpoint_folder(model, pushed)
    written = {
        **leaks_of(home / "runs" / "mine"),
        **{f"pushed/{name}": leak for name, leak in leaks_of(pushed).items()},
    }
    assert {"model/training.json", "model/report.html", "model/card.md", "pushed/results.json"} <= set(written)
    assert any(name.startswith("checkpoint-1/") for name in written)
    for name, leaks in written.items():
        tally(f"secrets and paths, {way}", not leaks, f"{name} holds {leaks}")
    said = capfd.readouterr()
    shown = [secret for secret in (TOKEN, PASSWORD, KEY) if secret in said.out + said.err]
    tally(f"secrets and paths, {way}", not shown, f"the screen shows {shown}")
