"""Faults put into a run: numbers that are not finite, runs without a step, checkpoints that are damaged or of another run."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import scripts
import torch
from conftest import make_tiny_model, make_tiny_processor
from safetensors.torch import load_file, save_file

from delst_hf import (
    DelstCollator,
    DelstForSpotClassification,
    DelstModel,
    DelstProcessor,
    DelstTrainer,
    DelstTrainingArguments,
)
from delst_hf.atomic.locks import locked
from delst_hf.atomic.processes import end_like_interrupted
from delst_hf.errors import run_script
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.pretraining.checkpoints import check_same_run, last_complete_checkpoint

pytestmark = [pytest.mark.fault("runs and their checkpoints"), pytest.mark.usefixtures("without_curves")]


def trainer_into(output, study, slides=("toy_A1", "toy_A2"), processor=None, facts=None, **options):
    defaults = {"max_steps": 4, "per_device_train_batch_size": 24, "save_strategy": "steps", "save_steps": 2,
                "logging_steps": 1, "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 3}  # fmt: skip
    processor = processor or make_tiny_processor(study)
    return DelstTrainer(
        model=make_tiny_model(len(processor.feature_extractor.vocabulary)),
        args=DelstTrainingArguments(str(output), **{**defaults, **options}),
        train_dataset=study.subset(list(slides)),
        eval_dataset=study.subset(["toy_B1"]),
        data_collator=DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes),
        processing_class=processor,
        run_facts=facts,
    )


@pytest.fixture
def make_trainer(toy_study, tmp_path):
    return partial(trainer_into, tmp_path / "run", toy_study)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 1e30},
        {"scalar_learning_rate": 1e30, "learning_rate": 1e25},
        {"vision_learning_rate": 1e35},
        {"learning_rate": 1e30, "max_grad_norm": 0.0},
    ],
    ids=["heads", "scalars", "vision", "unclipped"],
)
def test_a_run_that_diverges_stops_and_saves_nothing(make_trainer, tmp_path, options):
    trainer = make_trainer(max_steps=12, save_steps=12, **options)
    with pytest.raises(ValueError, match=r"not finite.*(Lower|learning_rate)"):
        trainer.train()
    assert trainer.state.global_step < 12
    assert not list(tmp_path.rglob("*.safetensors"))
    for row in trainer.state.log_history:
        assert "loss" not in row or row["loss"] != 0.0


def test_the_step_the_terms_and_the_last_checkpoint_are_named(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(max_steps=6)
    forward = DelstModel.forward

    def poisoned(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if trainer.state.global_step == 3:
            outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(DelstModel, "forward", poisoned)
    with pytest.raises(
        ValueError, match=r"Step 4: the loss or its gradient is not finite .contrastive_loss \d.*logit_scale"
    ):
        trainer.train()
    assert last_complete_checkpoint(tmp_path / "run").endswith("checkpoint-2")
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_weights_that_are_not_finite_are_not_saved(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, save_steps=1)
    with torch.no_grad():
        trainer.model.gene_model.missing_values[0] = float("nan")  # no gradient and no loss reads it
    with pytest.raises(ValueError, match=r"1 weights are not finite after step 1, 'gene_model.missing_values' first"):
        trainer.train()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_run_without_a_step_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="72 training spots make no batch of 100"):
        make_trainer(per_device_train_batch_size=100).train()
    with pytest.raises(ValueError, match="is a run without a step"):
        DelstTrainingArguments(str(tmp_path), num_train_epochs=0)


def test_the_log_says_the_rate_of_the_heads_and_what_chance_is(make_trainer):
    trainer = make_trainer(
        learning_rate=1e-3, scalar_learning_rate=1e-2, lr_scheduler_type="constant", save_strategy="no"
    )
    assert trainer.args.per_device_eval_batch_size == 24
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["learning_rate"] == pytest.approx(1e-3)
    assert row["contrastive_chance"] == pytest.approx(float(torch.tensor(24.0).log()))
    assert trainer.evaluate()["eval_contrastive_chance"] == pytest.approx(
        float(torch.tensor([24.0, 12.0]).log().mean())
    )


@pytest.fixture(scope="module")
def two_steps(toy_study, tmp_path_factory):
    """OUTPUT_DIR of a run of two steps."""
    output = tmp_path_factory.mktemp("two_steps") / "run"
    trainer_into(output, toy_study, max_steps=2).train()
    return output


@pytest.fixture
def half_trained(two_steps, tmp_path):
    """The checkpoint of that run, in the folder of this test's trainers."""
    return shutil.copytree(two_steps, tmp_path / "run") / "checkpoint-2"


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"]
)
@pytest.mark.parametrize("fault", ["removed", "flipped"])
def test_a_damaged_checkpoint_is_not_resumed(half_trained, make_trainer, name, fault):
    path = half_trained / name
    if fault == "removed":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(ValueError, match=f"is damaged: {name} is missing or changed since it was saved"):
        make_trainer().train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"per_device_train_batch_size": 12}, "spots_per_batch was 24 and is 12"),
        ({"learning_rate": 1e-4}, "learning_rate was 0.0005 and is 0.0001"),
        ({"slides": ("toy_A1", "toy_B1")}, "train_slides"),
        ({"facts": {"level_key": "shuffled"}}, "level_key was None and is 'shuffled'"),
        ({"facts": {"data": {"features_fingerprint": "f00d"}}}, "features was not given and is 'f00d'"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was not given and is 2"),
        ({"stain_jitter": "light"}, "stain_jitter was 'off' and is 'light'"),
        ({"views": "nested"}, "views was 'single' and is 'nested'"),
        ({"mask_negatives": "slide"}, "mask_negatives was 'off' and is 'slide'"),
        ({"bf16": True}, "bf16 was not given and is True"),
    ],
)
def test_a_checkpoint_of_another_run_is_not_resumed(half_trained, make_trainer, caplog, change, named):
    if "slides" in change:
        change = {**change, "facts": {"train_slides": list(change["slides"])}}
    with pytest.raises(ValueError, match=named):
        make_trainer(**change).train(resume_from_checkpoint=True)
    make_trainer(**change, resume_anyway=True).train(resume_from_checkpoint=True)
    assert named in caplog.text


def test_what_changes_only_how_a_sum_is_computed_may_change(half_trained, make_trainer):
    """The size of micro-batches, workers, logging, evaluation batches, checkpointing of activations, callbacks that go on."""
    same = make_trainer(
        contrastive_micro_batch_size=5, dataloader_num_workers=1, logging_steps=3, per_device_eval_batch_size=7,
        gradient_checkpointing=True, eval_strategy="steps", eval_steps=3, max_steps=6,
        restore_callback_states_from_checkpoint=True,
    )  # fmt: skip
    check_same_run(str(half_trained), same.identity())
    with pytest.raises(ValueError, match="optim was .*adafactor"):
        check_same_run(str(half_trained), make_trainer(optim="adafactor").identity())


def test_two_runs_into_one_folder_are_refused(make_trainer, tmp_path):
    from delst_hf.pretraining.arguments import DataArguments, ModelArguments
    from delst_hf.pretraining.run import pretrain

    with locked(tmp_path / "run" / "run"):
        code = "import sys; from delst_hf.pretraining.checkpoints import own_output\nwith own_output(sys.argv[1]): pass"
        done = scripts.run_script(code, tmp_path / "run", check=False)
        assert "another run is writing to this run's output folder" in done.stderr
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        pretrain(DataArguments("none"), ModelArguments(), DelstTrainingArguments(str(tmp_path / "file" / "run")))


def test_sigterm_ends_a_script_in_one_line_that_says_how_to_go_on(capsys):
    """As Ctrl-C does: what was open is cleaned up."""
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def main():
        end_like_interrupted()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(True)

    try:
        assert run_script(main, "pretrain.py") == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert cleaned and len(said.strip().splitlines()) == 1
    assert "what was finished is complete. To continue: run the same command again." in said


def test_another_order_of_the_vocabulary_is_not_resumed(half_trained, make_trainer, tiny_processor):
    tiny_processor.feature_extractor.vocabulary.reverse()
    with pytest.raises(ValueError, match="vocabulary was '[0-9a-f]{16}' and is"):
        make_trainer(processor=tiny_processor).train(resume_from_checkpoint=True)


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path) -> Path:
    return save_checkpoint_folder(tmp_path / "model", tiny_model, tiny_processor)


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual_projection.weight"), "lacks weights: visual_projection.weight .1 in all"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("gene_model")], "lacks weights: gene_model"),
        (lambda w: w.update(extra=torch.zeros(2)), "holds unknown weights: extra"),
        (lambda w: w.update(log_curvature=torch.tensor(80.0)), "log_curvature = 80, outside the range"),
        (lambda w: w.update(logit_scale=torch.tensor(float("nan"))), "logit_scale = nan, outside the range"),
    ],
    ids=["tensor", "gene encoder", "extra", "curvature", "nan"],
)
def test_weights_that_are_not_those_of_the_checkpoint_are_refused(checkpoint, change, message):
    change_weights(checkpoint, change)
    with pytest.raises(ValueError, match=message):
        DelstModel.from_pretrained(checkpoint)


def test_a_new_task_head_may_be_missing_and_an_old_one_left_over(checkpoint, tmp_path):
    classifier = DelstForSpotClassification.from_pretrained(checkpoint, num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")
    DelstModel.from_pretrained(tmp_path / "classifier")
    change_weights(tmp_path / "classifier", lambda w: w.pop("classifier.weight"))
    with pytest.raises(ValueError, match="lacks weights: classifier.weight"):
        DelstForSpotClassification.from_pretrained(tmp_path / "classifier")


def test_a_vocabulary_that_is_not_that_of_the_weights_is_refused(checkpoint, tmp_path):
    path = checkpoint / "processor_config.json"
    saved = json.loads(path.read_text())
    saved["feature_extractor"]["vocabulary"].reverse()
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="is not the one that the weights were trained with"):
        DelstProcessor.from_pretrained(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["gene_config"]["vocabulary_hash"]  # as checkpoints of earlier versions are
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    DelstProcessor.from_pretrained(tmp_path / "old")


def test_features_that_find_no_room_are_refused_before_they_are_made(
    tiny_model, tiny_processor, toy_study, tmp_path, monkeypatch
):
    from delst_hf.pretraining import cached_features

    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cached_features.os, "posix_fallocate", no_room)
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes)
    with pytest.raises(OSError, match=r"The features need .* GB in .*No space left.*leave --cache_features out"):
        cached_features.cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
