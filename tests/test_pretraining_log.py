"""The log of a run, read as a person reads it: lines, words for what is wrong, curves, the end by Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delst_hf import DataArguments, DelstCollator, DelstTrainer, DelstTrainingArguments, ModelArguments
from delst_hf.pretraining import run
from delst_hf.pretraining.checkpoints import how_to_go_on
from delst_hf.report.run_log import ADVICE, CURVES, log_line, what_is_wrong, write_curves

ROOT = Path(__file__).parents[1]
ROW = {"loss": 3.5, "contrastive_loss": 3.1, "cross_entailment_loss": 1.5, "intra_entailment_loss": 1.0, "epoch": 1.5,
       "contrastive_chance": 4.16, "curvature": 0.5, "curvature_at_clamp": 0.0, "image_radius": 1.2, "gene_radius": 0.8,
       "in_cone_matched": 0.3, "in_cone_mismatched": 0.1, "learning_rate": 1e-3}  # fmt: skip


def test_a_row_becomes_one_line_with_the_terms_by_name():
    line = log_line(ROW, 30, 60)
    assert "\n" not in line and line.startswith("step 30/60  epoch 1.50  loss 3.500 = contrastive 3.100 (chance 4.160)")
    assert "cross 1.500, intra 1.000" in line and "in cone 30% (foreign 10%)" in line and "curvature 0.500" in line
    held_out = {f"eval_{name}": value for name, value in ROW.items() if name != "epoch"} | {"epoch": 1.5}
    line = log_line(held_out | {"eval_image_to_gene_recall@10": 0.25}, 30, 60)
    assert "VALIDATION  loss 3.500" in line and "recall@10 25.0%" in line
    assert log_line({"train_runtime": 75.2, "train_samples_per_second": 80.4}, 60, 60) == (
        "trained 60 steps in 1 min 15 s, 80 spots per second"
    )


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({}, []),
        ({"curvature_at_clamp": 1.0}, ["curvature at its clamp"]),
        ({"in_cone_matched": 0.0, "in_cone_mismatched": 0.0}, ["cones empty"]),
        ({"in_cone_matched": 1.0, "in_cone_mismatched": 0.95}, ["cones collapsed"]),
        ({"contrastive_loss": 4.15}, ["no better than chance"]),
    ],
)
def test_what_is_wrong_is_said_in_words(row, wrong):
    assert list(what_is_wrong({**ROW, **row}, 30, 60)) == wrong
    assert all((ADVICE[each].endswith(".") and "--" in ADVICE[each]) or "delst" in ADVICE[each] for each in wrong)


def test_early_steps_are_at_chance_and_cones_need_a_loss():
    assert not list(what_is_wrong({**ROW, "contrastive_loss": 4.15}, 5, 60))
    assert not list(what_is_wrong({**ROW, "in_cone_matched": 0.0}, 30, 60, entailed=False))


@pytest.mark.parametrize("quiet", [True, False], ids=["no bar", "bar"])
def test_a_run_prints_lines_and_draws_its_curves(tiny_model, tiny_processor, toy_study, tmp_path, capsys, quiet):
    options = {"max_steps": 4, "per_device_train_batch_size": 24, "save_strategy": "no", "logging_steps": 1, "use_cpu": True,
               "report_to": [], "disable_tqdm": quiet, "scalar_learning_rate": 5.0}  # fmt: skip
    trainer = DelstTrainer(
        model=tiny_model,
        args=DelstTrainingArguments(str(tmp_path / "run"), **options),
        train_dataset=toy_study.subset(["toy_A1", "toy_A2"]),
        data_collator=DelstCollator(
            tiny_processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes
        ),
        processing_class=tiny_processor,
    )
    trainer.train()
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "{'loss'" not in text
    assert [text.count(f"step {step}/4  epoch") for step in range(1, 5)] == [1, 1, 1, 1]
    assert text.count("! curvature at its clamp") > 1 and text.count(ADVICE["curvature at its clamp"]) == 1
    pixels = np.asarray(Image.open(tmp_path / "run" / CURVES).convert("RGB"))
    assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_curves_that_cannot_be_written_do_not_end_a_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert write_curves([ROW], tmp_path) is None
    assert write_curves([ROW, ROW], tmp_path / "file") is None and "were not written" in caplog.text
    assert write_curves([ROW, {**ROW, "epoch": 2.0}], tmp_path / "new") == tmp_path / "new" / CURVES


def test_how_a_run_goes_on(tmp_path):
    assert "starts over" in how_to_go_on(str(tmp_path))
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "complete").write_text("{}")
    assert "with --resume_from_checkpoint true. It resumes from" in how_to_go_on(str(tmp_path))
    assert how_to_go_on(str(tmp_path)).endswith("checkpoint-7.")


def test_an_interruption_within_an_import_says_how_to_go_on(toy_folder, tmp_path, monkeypatch):
    """Python before 3.12 makes a RuntimeError of a Ctrl-C that comes while a class is made."""

    def interrupted(*arguments):
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    def broken(*arguments):
        raise RuntimeError("another")

    monkeypatch.setattr(run, "assemble", interrupted)
    data, training = DataArguments(str(toy_folder)), DelstTrainingArguments(str(tmp_path / "out"), report_to="none")
    with pytest.raises(KeyboardInterrupt, match="To continue: give the same command"):
        run.pretrain(data, ModelArguments(), training)
    monkeypatch.setattr(run, "assemble", broken)
    with pytest.raises(RuntimeError, match="another"):
        run.pretrain(data, ModelArguments(), training)


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on_and_libraries_are_silent(toy_folder, tmp_path):
    words = (
        "training/pretrain.py toy --test_slides toy_B1 --image_size 32 --max_steps 5000 --save_strategy steps --save_steps 3 "
        "--per_device_train_batch_size 8 --use_cpu true --eval_strategy no --logging_steps 1 --disable_tqdm true"
    )
    folders = ["--dataset", str(toy_folder), "--output_dir", str(tmp_path / "out"), "--validation_slides", ""]
    command = [sys.executable, *words.split(), *folders]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores Ctrl-C
    )
    end = time.monotonic() + 200
    while (
        not list((tmp_path / "out").glob("checkpoint-*/complete")) and process.poll() is None and time.monotonic() < end
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text[-2000:]
    lines = text.strip().splitlines()
    assert lines[-1].startswith("pretrain.py: interrupted; ")
    assert "To continue: give the same command with --resume_from_checkpoint true. It resumes from " in lines[-1]
    assert "Traceback" not in text and "Warning" not in text and "Writing model shards" not in text
    assert all(
        line.startswith(("step ", "  ", "pretrain.py", "Markers", "Trains")) for line in lines if line.strip()
    ), text
