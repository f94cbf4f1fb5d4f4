"""Secrets and folders planted in every way an option can be given: no file that is written or pushed holds them."""

import os
import shutil
import sys
from pathlib import Path

import anndata
import pyarrow.parquet as pq
import pytest
import yaml
from faults import tally

from delst_hf.cli import main as delst
from delst_hf.hub.publish import copy_checkpoint_folder
from delst_hf.pretraining.finetune import main as finetune
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


def unpacked(path: Path) -> bytes:
    """Return what a file says in a form that is not compressed."""
    if path.suffix == ".h5ad":
        read = anndata.read_h5ad(path)
        return f"{read.uns} {read.obs.to_dict()} {list(read.obsm)}".encode()
    if path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
        return f"{table.schema.metadata} {table.to_pydict()}".encode()
    return b""


def leaks_of(folder: Path) -> dict[str, list[str]]:
    """What every file of a folder holds of what was planted, by its name."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes() + os.fsencode(path.relative_to(folder)) + unpacked(path)
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


@pytest.mark.skipif(not os.environ.get("DELST_TORTURE"), reason="eight commands: make torture")
@pytest.mark.parametrize("way", ["relative", "absolute"])
def test_no_output_of_the_other_commands_holds_it(
    way, toy_folder, toy_checkpoint, slide_file, tmp_path, monkeypatch, capfd
):
    home, work = tmp_path / HOME, tmp_path / "work"
    home.mkdir()
    work.mkdir()
    shutil.copytree(toy_folder, home / "data")
    shutil.copytree(toy_checkpoint, home / "model")
    picture, mpp = Path(shutil.copy(slide_file[0], home)).name, str(slide_file[1])
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_ENDPOINT", f"http://alice:{PASSWORD}@hub.example")
    start = f"../{HOME}" if way == "relative" else str(home)
    model, data, head, image = (f"{start}/{name}" for name in ("model", "data", "out/head", picture))
    quiet = ["--quiet", "--num-workers", "0"]
    trained = ["--dataset", data, "--use_cpu", "true", "--max_steps", "1", "--report_to", "none", "--disable_tqdm", "true",
               "--per_device_train_batch_size", "18", "--hub_token", TOKEN, "--run_name", f"{start}/mine"]  # fmt: skip
    for words in (
        ["fit", model, data, "--output", head, *quiet],
        ["reference", head, data, *quiet],
        ["predict", head, image, "--mpp", mpp, "--output", f"{start}/out/he.h5ad", *quiet],
        ["predict", head, data, "--slides", "toy_B1", "--output", f"{start}/out/b1.parquet", *quiet],
        ["retrieve", head, image, "--mpp", mpp, "--output", f"{start}/out/like.h5ad", *quiet],
        ["embed", model, data, "--output", f"{start}/out/embedded", *quiet],
        ["prepare", "image", image, "--mpp", mpp, "--output", f"{start}/out/data"],
        ["vocabulary", data, "--output", f"{start}/out/genes.txt"],
    ):
        monkeypatch.setattr(sys, "argv", [f"{home}/bin/delst", *words])
        assert delst(words) == 0, capfd.readouterr().err
    words = ["--model", model, "--output_dir", f"{start}/out/tuned", *trained]
    monkeypatch.setattr(sys, "argv", [f"{home}/training/finetune.py", *words])
    finetune(words)
    written = leaks_of(home / "out")
    assert {"he.h5ad", "b1.parquet", "like.h5ad", "genes.txt", "tuned/model/training.json"} <= set(written)
    for name, leaks in written.items():
        tally("secrets and paths, other commands", not leaks, f"{name} holds {leaks}")
    said = capfd.readouterr()
    shown = [secret for secret in (TOKEN, PASSWORD, KEY) if secret in said.out + said.err]
    tally("secrets and paths, other commands", not shown, f"the screen shows {shown}")
