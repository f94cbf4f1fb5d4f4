"""Rates with which a run diverges, for every form of the loss and every way of training: it ends, and nothing broken is kept.

`make torture` takes every form with every rate; the ordinary tests take each once.
"""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from faults import tally
from safetensors.torch import load_file

from delst_hf import DataArguments, DelstTrainingArguments, ModelArguments
from delst_hf.hub.checkpoint_folder import check_finite
from delst_hf.model.entailment import ENTAILMENT_FORMS
from delst_hf.model.modeling_delst import DelstModel
from delst_hf.pretraining.checked_trainer import NotFiniteError
from delst_hf.pretraining.finetune import main as finetune
from delst_hf.pretraining.run import pretrain

VISION = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
RATES = {
    "learning rate": {"learning_rate": 100.0},
    "weight decay": {"weight_decay": 1e6, "learning_rate": 1e-2},
    "scalar rate": {"scalar_learning_rate": 100.0},
    "vision rate": {"vision_learning_rate": 1000.0},
    "overflow": {"learning_rate": 1e30},
}
LOSSES = {
    **{form: {"entailment": form} for form in (*ENTAILMENT_FORMS, "none")},
    "cosine": {"geometry": "cosine"},
    "euclidean": {"geometry": "euclidean"},
    "regression": {"regression_weight": 1.0},
}
WAYS = {
    "nested views": ({}, {"views": "nested"}),
    "streaming": ({"streaming": True}, {}),
    "micro batches": ({}, {"contrastive_micro_batch_size": 5}),
    "masked negatives": ({}, {"mask_negatives": "slide"}),
    "kept features": ({}, {"freeze_vision": True, "cache_features": True}),
    "features of files": ({"features": True}, {}),
    "augmented": ({}, {"stain_jitter": "light", "gradient_accumulation_steps": 2}),
}
EVERY = list(itertools.product(LOSSES, RATES))
# With heads alone a rate of 100 stays finite: their features are standardised.
HEADS_ALONE = {"kept features": ("scalar rate", "overflow"), "features of files": ("scalar rate", "overflow")}
FEW_RATES = list(RATES) if os.environ.get("DELST_TORTURE") else ["learning rate", "scalar rate"]
WAYS_AND_RATES = [(way, rate) for way in WAYS for rate in HEADS_ALONE.get(way, FEW_RATES)]
CASES = EVERY if os.environ.get("DELST_TORTURE") else [(one, list(RATES)[i % 5]) for i, one in enumerate(LOSSES)]


@pytest.fixture(scope="module")
def features(toy_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    for slide in toy_study.slide_ids:
        np.save(folder / f"{slide}.npy", np.random.default_rng(0).normal(size=(36, 16)).astype(np.float32))
    return folder


def run(dataset, output, data=None, model=None, steps=4, **training):
    data = {"test_slides": "toy_B1", "num_genes": 20, **(data or {})}
    vision = {} if "features" in data else {"vision_config": json.dumps(VISION), "image_size": 32}
    options = {"max_steps": steps, "save_steps": 1, "per_device_train_batch_size": 24, "use_cpu": True, "report_to": "none",
               "disable_tqdm": True, "logging_steps": 1}  # fmt: skip
    pretrain(
        DataArguments(str(dataset), **data),
        ModelArguments(**vision, gene_hidden_size=16, projection_dim=8, **(model or {})),
        DelstTrainingArguments(str(output), **{**options, **training}),
    )


def what_is_wrong(output) -> list[str]:
    """What of a run that ended must not be there: a model, weights that do not work, a log without its loss."""
    wrong = ["a model was saved"] if (output / "model").exists() else []
    for path in output.rglob("*.safetensors"):
        wrong += [f"{path}: {name}" for name, tensor in load_file(path).items() if not tensor.isfinite().all()]
    for path in output.rglob("trainer_state.json"):
        losses = [row["loss"] for row in json.loads(path.read_text())["log_history"] if "loss" in row]
        wrong += [f"{path}: loss {loss}" for loss in losses if not np.isfinite(loss) or loss == 0]
    return wrong


@pytest.mark.parametrize(("loss", "rate"), CASES)
def test_a_run_that_diverges_ends_and_keeps_nothing_broken(toy_folder, tmp_path, loss, rate):
    with pytest.raises(NotFiniteError, match=r"[Ss]tep \d.*not|exponential is 0.*Lower --learning_rate"):
        run(toy_folder, tmp_path / "run", model=LOSSES[loss], **RATES[rate])
    tally("runs that diverge", not what_is_wrong(tmp_path / "run"), f"{what_is_wrong(tmp_path / 'run')}")


@pytest.mark.parametrize(("way", "rate"), WAYS_AND_RATES)
def test_so_it_does_in_every_way_of_training(toy_folder, features, tmp_path, way, rate):
    data, training = WAYS[way]
    data = {**data, "features": str(features)} if "features" in data else data
    with pytest.raises(NotFiniteError, match="Lower --learning_rate"):
        run(toy_folder, tmp_path / "run", data=data, **training, **RATES[rate])
    tally("runs that diverge", not what_is_wrong(tmp_path / "run"), f"{what_is_wrong(tmp_path / 'run')}")


@pytest.mark.parametrize("rate", ["learning rate", "scalar rate", "overflow"])
def test_the_last_step_is_looked_at_as_the_others_are(toy_folder, tmp_path, rate):
    """Weights and loss of the only step are finite; what the weights give is not, and no further step would say so."""
    with pytest.raises(NotFiniteError, match=r"The weights after step 1 are finite, but .* has diverged"):
        run(toy_folder, tmp_path / "run", steps=1, save_strategy="no", **RATES[rate])
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize("target", ["expression", "labels"])
@pytest.mark.parametrize("more", [[], ["--lora", "true"]], ids=["whole", "lora"])
def test_the_last_step_of_a_fine_tuning_too(toy_checkpoint, toy_folder, tmp_path, target, more):
    command = {"model": toy_checkpoint, "dataset": toy_folder, "output_dir": tmp_path / "run", "target": target,
               "learning_rate": "1e30", "max_steps": 1, "report_to": "none", "disable_tqdm": "true", "use_cpu": "true",
               "per_device_train_batch_size": 18}  # fmt: skip
    with pytest.raises(
        NotFiniteError, match=r"weights after step 1 are finite, but|weights are not finite after step 1"
    ):
        finetune([word for name, value in command.items() for word in (f"--{name}", str(value))] + more)
    tally("runs that diverge", not list((tmp_path / "run").rglob("*.safetensors")), "weights were kept")


def test_a_loss_of_the_evaluation_that_is_not_finite_ends_the_run(toy_folder, tmp_path, monkeypatch):
    forward = DelstModel.forward

    def poisoned(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if not self.training and not torch.is_grad_enabled():
            outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(DelstModel, "forward", poisoned)
    data = {"validation_slides": "toy_B1", "test_slides": ""}
    with pytest.raises(NotFiniteError, match=r"The evaluation after step 2 is not finite \(eval_loss nan\)"):
        run(toy_folder, tmp_path / "run", data=data, eval_strategy="steps", eval_steps=2)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_does_not_diverge_is_not_taken_for_one(toy_folder, features, tmp_path, way):
    data, training = WAYS[way]
    data = {**data, "features": str(features)} if "features" in data else data
    run(toy_folder, tmp_path / "run", data=data, steps=1, save_strategy="no", **training)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_looking_changes_neither_gradients_nor_what_a_run_comes_to(toy_folder, tmp_path):
    """A run that is looked at after each step ends with the weights of one that is looked at after the last."""
    run(toy_folder, tmp_path / "often", steps=3)
    run(toy_folder, tmp_path / "once", steps=3, save_strategy="no")
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("often", "once"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    check_finite(DelstModel.from_pretrained(tmp_path / "once" / "model"))
