"""Mistakes of the first hour: each command that a newcomer gets wrong, and what it is answered, in one line with the next step.

This is a list to walk: add the mistake that you made, with the answer that would have helped. All run in this process, on small
files; `test_pretraining_faults.py` and `test_training_operations.py` have those that need a process of their own.
"""

import re
import shutil
from functools import partial
from pathlib import Path

import docs_files
import numpy as np
import pandas as pd
import pytest
from layouts import make_source, write_outs

from delst_hf.cli import main
from delst_hf.data.dataset import write_dataset
from delst_hf.data.toy import make_toy_slide
from delst_hf.errors import run_script
from delst_hf.pretraining.run import main as pretraining

MODEL, DATA, HEAD, MOUSE = "runs/toy/pretrain/model", "runs/toy/data", "runs/head", "mouse"
TOY = f"toy --dataset {DATA} --output_dir new --max_steps 1"

# What is typed -> what the answer says.
DELST = {
    # names
    "prepair visium S1/outs --output d": r"invalid choice: 'prepair'.*Did you mean 'prepare'\?",
    "prepare visum S1/outs --output d": r"Did you mean 'visium'\?",
    "prepare visium S1/outs --ouput d": r"--ouput is not an option. Did you mean --output\?",
    f"evaluate {MODEL} {DATA} --protocols hest,retreival": r"\['retreival'\] are not known. Did you mean 'retrieval'\?",
    f"evaluate {MODEL} {DATA} --test-slides toy_D2": r"No slide \['toy_D2'\].*Did you mean 'toy_D1'\?",
    f"predict {HEAD} he.jpg --mpp 0.5 --genes ERRB2 --output x.h5ad": r"does not predict ERRB2. Did you mean 'ERBB2'\?",
    f"predict {HEAD} he.jpg --mpp 0.5 --signatures typo.json --output x.h5ad": r"1 of the 3 genes of the signature 'luminal'",
    f"evaluate {MODEL} {DATA} --signatures typo.json": r"signature 'luminal': 1 of 3 genes.*Did you mean 'EPCAM'",
    "report results.json --genes NOPE --output r.html": r"NOPE were not predicted by this evaluation",
    "prepare anndata mine.h5ad --label-key patholgy --output d": r"no column 'patholgy'.*Did you mean 'pathology'\?",
    "prepare table --image he.tif --counts counts.csv --coordinates spots.csv --mpp 2 --label-column regoin --output d":
        r"columns \['regoin'\] are missing.*--label-column",
    # places
    "prepare visium nowhere --output d": r"nowhere",
    "prepare visium S1 --output runs/toy/data": r"already holds a dataset.*--overwrite",
    "check nowhere": r"nowhere",
    f"evaluate runs/toy/pretrain/modell {DATA}": r"there is no model runs/toy/pretrain/modell.*runs/toy/pretrain/model",
    f"evaluate runs/toy/pretrain {DATA}": r"is the folder of a run; its model is runs/toy/pretrain/model",
    f"evaluate {DATA} {MODEL}": r"Commands take the model first, then the data",
    f"report {MODEL} --output r.html": r"no results at runs/toy/pretrain/model/results.json. Make them with",
    f"predict {HEAD} he.jpg --mpp 0.5 --head {MODEL} --output x.h5ad": r"is a model without a head: give --head a folder",
    # how things are given
    f"evaluate --model {MODEL} --dataset {DATA}":
        r"MODEL and DATASET are given without a name: delst evaluate MODEL DATASET\.$",
    f"evaluate {MODEL} --dataset {DATA}": r"DATASET is given without a name: delst evaluate MODEL DATASET\.$",
    f"evaluate {MODEL} {DATA} --model-name x": r"--model-name is not an option\.$",
    # what would mislead
    f"evaluate {MODEL} {DATA} --test-slides toy_A1": r"was trained on \['toy_A1'\].*--allow-seen-slides",
    f"evaluate {MODEL} wide": r"400.*112|112.*400",
    f"evaluate {MODEL} {MOUSE}": r"0 of the vocabulary's 30 genes.*species and case",
    f"fit {MODEL} {MOUSE} --target expression --output h": r"mouse",
    f"predict {HEAD} {MOUSE} --output x.h5ad": r"the slide is of mouse, but the model .* was trained on synthetic",
    f"predict {HEAD} he.jpg --mpp 0.5 --species mouse --output x.h5ad": r"the slide is of mouse",
    f"embed {MODEL} {MOUSE} --output e": r"0 of the vocabulary's 30 genes.*species and case",
    f"predict {HEAD} plain.png --mpp 0,5 --output x.h5ad": r"invalid float value: '0,5'. Write it with a point: 0.5",
    f"embed mine.h5ad {MODEL}": r"mine.h5ad is a file, and a model is asked for. Commands take the model first",
    f"predict {HEAD} plain.png --output x.h5ad": r"mpp is unknown.*--mpp",
    f"evaluate {MODEL} images": r"There are no counts: .* delst predict embeds its patches",
    "vocabulary images --output genes.txt": r"There are no counts: the slides are images alone",
    f"predict {MODEL} he.jpg --mpp 0.5 --genes ERBB2 --output x.h5ad": r"no expression head. Fit one: delst fit",
    "prepare torn.csv --split slide --test-slides S1 --output d": r"leaves patient 'P1' in test and train",
}  # fmt: skip
PRETRAINING = {
    "toy --dataset data/nope --output_dir new": r"data/nope",
    f"toy --dataset {MODEL} --output_dir new": r"is a model, and a dataset folder is asked for",
    f"{TOY} --train_slides toy_A3": r"No slide \['toy_A3'\].*Did you mean 'toy_A",
    f"{TOY} --lerning_rate 1": r"--lerning_rate is not an option. Did you mean --learning_rate\?",
    f"{TOY} --per_device_train_batch_size 4096": r"4096.*--per_device_train_batch_size",
    f"{TOY} --vision nobody/nothing": r"nobody/nothing.*(network|Hub)",
    f"{TOY} --vision {MODEL} --vision_config": r"--vision_config",
    f"{TOY} --test_slides toy_A2": r"toy_A2.*--same_patient_slides toy_A2",
    f"{TOY} --bf16 true": r"needs a GPU.*--use_cpu true",
    f"{TOY} --fp16 true": r"needs a GPU",
    f"{TOY} --image_size 50": r"50.*8",
    f"{TOY} --geometry lorenz": r"lorenz.*lorentz",
    f"toy.yml --dataset {DATA}": r"no configuration at toy.yml.*toy",
    f"mouse.yaml --init_from {MODEL}": r"The species or the kind of names",
    f"toy --dataset {DATA} --output_dir runs/toy/pretrain": r"holds a run already.*--resume_from_checkpoint true",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_backbone, tmp_path_factory):
    here = tmp_path_factory.mktemp("hour")
    docs_files.write_runs(here, tiny_backbone)
    docs_files.write_results(here)
    write_outs(here / "S1/outs", make_source())
    mouse = make_toy_slide("mouse_A1", spots_per_side=5, num_genes=60, image_px=400)
    mouse.species, mouse.genes["symbol"] = "mouse", [f"Gene{i}" for i in range(60)]
    write_dataset([mouse], here / MOUSE, patch_px=32)
    wide = make_toy_slide("toy_E1", spots_per_side=5, num_genes=60, image_px=700)
    write_dataset([wide], here / "wide", patch_um=400, patch_px=32)
    np.savez(here / "constant.npz", image=np.ones((125, 8), np.float32))
    (here / "typo.json").write_text('{"luminal": {"genes": ["ERBB2", "EPCAN", "NOSUCH"]}}')
    pd.DataFrame({"path": ["S1/outs"] * 2, "format": "visium", "patient": "P1", "slide": ["S1", "S2"]}).to_csv(
        here / "torn.csv", index=False
    )
    (here / "mouse.yaml").write_text(f"dataset: {MOUSE}\noutput_dir: new\n")
    shutil.copy(here / "he.jpg", here / "plain.png")
    assert main(["prepare", "image", str(here / "he.jpg"), "--mpp", "0.5", "--output", str(here / "images")]) == 0
    source = make_source()
    docs_files.write_table(source, here / "counts.csv", here / "table_spots.csv")
    assert (
        main(["fit", str(here / MODEL), str(here / DATA), "--target", "expression", "--output", str(here / HEAD)]) == 0
    )
    return here


def answer_of(status: int, printed: str) -> str:
    """The error, which is the last line and the only one of its kind."""
    assert status == 2, printed
    assert "Traceback" not in printed
    lines = printed.strip().splitlines()
    assert "error: " in lines[-1] and sum("error: " in line for line in lines) == 1, printed
    return lines[-1]


@pytest.mark.parametrize("typed", DELST)
def test_a_mistake_with_delst_is_answered(typed, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(Path().rglob("*"))
    try:
        status = main(typed.split())
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert re.search(DELST[typed], answer_of(status, capsys.readouterr().err))
    assert [path for path in sorted(Path().rglob("*")) if path not in before] == []


@pytest.mark.parametrize("typed", PRETRAINING)
def test_a_mistake_with_pretraining_is_answered(typed, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    status = run_script(partial(pretraining, typed.split()), "pretrain.py")
    assert re.search(PRETRAINING[typed], answer_of(status, capsys.readouterr().err))
    assert not list(Path("new").glob("**/*.safetensors"))


def test_constant_features_are_not_the_best_of_all(folder, monkeypatch, capsys):
    """A Davies-Bouldin index of 0 would be perfect; other protocols go on."""
    monkeypatch.chdir(folder)
    words = ["--protocols", "domains", "--no-baselines", "--num-seeds", "1", "--resamples", "20", "--output", "c.json"]
    assert main(["evaluate", "constant.npz", DATA, *words]) == 0
    printed = capsys.readouterr().out
    assert "Skipped domains: features are constant over the 125 spots" in printed and "davies" not in printed.lower()
