"""Fine-tuning through the plain Trainer: what is trained, who is validated on, its scores, and that a killed run goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
from conftest import make_tiny_processor
from ranks import in_ranks
from safetensors.torch import load_file
from transformers import Trainer

from delst_hf import DelstForGeneExpressionPrediction, DelstForSpotClassification, DelstModel, DelstProcessor
from delst_hf.data.collator import DelstCollator
from delst_hf.data.study import Study
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.prediction import load_predictor
from delst_hf.pretraining.finetune import HeadTrainer, assemble_head, main, patient_split
from delst_hf.pretraining.head_arguments import HeadArguments, HeadTrainingArguments
from delst_hf.pretraining.options import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hf_PlantedSecretOfAlice"


def options(model, dataset, output, *more):
    return [
        "--model", str(model), "--dataset", str(dataset), "--output_dir", str(output), "--report_to", "none",
        "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "18", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expression(toy_heads, toy_folder, tmp_path_factory):
    """A head of `delst fit`, trained further for two steps with its backbone; toy_B1 is of another patient."""
    output = tmp_path_factory.mktemp("tests-of-alice") / "run"
    given = ["--max_steps", "2", "--save_steps", "1", "--hub_token", SECRET, "--run_name", f"{output}/mine"]
    main(options(toy_heads / "expression", toy_folder, output, *given))
    return output


def test_backbone_and_head_move_and_nothing_else(expression, toy_heads):
    before = DelstForGeneExpressionPrediction.from_pretrained(toy_heads / "expression").state_dict()
    after = DelstForGeneExpressionPrediction.from_pretrained(expression / "model").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"regressor.weight", "regressor.bias"} <= moved
    assert [name for name in moved if "vision_model.layers" in name or "vision_model.encoder" in name]
    assert {name.split(".")[1] for name in moved if name.startswith("delst.")} == {"vision_model"}


def test_the_card_has_the_score_on_another_patient(expression, toy_study):
    """Beside the Pearson of the saved model's own predictions, computed here."""
    record = json.loads((expression / "model" / "training.json").read_text())
    assert record["head"]["folds"] == ["toy_B1"] and record["train_slides"] == ["toy_A1", "toy_A2"]
    assert record["head"]["slides"] == ["toy_A1", "toy_A2"] and record["data"]["colours"]["mean"]
    model = DelstForGeneExpressionPrediction.from_pretrained(expression / "model").eval()
    processor = DelstProcessor.from_pretrained(expression / "model")
    batch = DelstCollator(processor, toy_study.gene_names, toy_study.slide_ids)(list(toy_study.subset(["toy_B1"])))
    with torch.no_grad():
        predicted = model(batch["pixel_values"]).logits.numpy()
    measured = batch["gene_values"].numpy()
    scores = record["head"]["scores"]
    for gene in (0, 5, 11):
        expected = np.corrcoef(predicted[:, gene], measured[:, gene])[0, 1]
        assert scores["pearson"][gene] == pytest.approx(expected, abs=1e-3)
    text = (expression / "model" / "README.md").read_text()
    assert "gradient descent, training the backbone too" in text and "toy\\_B1" in text.replace("toy_B1", "toy\\_B1")
    assert load_predictor(str(expression / "model")).genes["pearson"].notna().any()


def test_a_killed_run_goes_on_to_the_same_end(expression, toy_heads, toy_folder, tmp_path):
    output, command = tmp_path / "run", ["--max_steps", "2", "--save_steps", "1"]

    def stop(self, *args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        save = HeadTrainer._save_checkpoint
        patch.setattr(HeadTrainer, "_save_checkpoint", lambda self, *a: (save(self, *a), stop(self)))
        with pytest.raises(KeyboardInterrupt):
            main(options(toy_heads / "expression", toy_folder, output, *command))
    with pytest.raises(ValueError, match="holds a run already"):
        main(options(toy_heads / "expression", toy_folder, output, *command))
    again = [*command, "--resume_from_checkpoint", "true"]
    with pytest.raises(ValueError, match="learning_rate was"):
        main(options(toy_heads / "expression", toy_folder, output, *again, "--learning_rate", "0.5"))
    main(options(toy_heads / "expression", toy_folder, output, *again))
    one, other = (
        DelstForGeneExpressionPrediction.from_pretrained(folder / "model").state_dict()
        for folder in (expression, output)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.fault("runs and their checkpoints")
@pytest.mark.parametrize("target", ["expression", "labels"])
def test_a_head_that_diverges_is_not_saved(target, toy_checkpoint, toy_folder, tmp_path):
    command = ["--target", target, "--learning_rate", "1e38", "--max_steps", "6", "--save_steps", "1"]
    with pytest.raises(ValueError, match=r"not finite.*--learning_rate"):
        main(options(toy_checkpoint, toy_folder, tmp_path / "run", *command))
    assert not (tmp_path / "run" / "model").exists()
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


@pytest.mark.fault("runs and their checkpoints")
def test_a_head_is_not_trained_for_no_step_nor_on_damaged_weights(toy_checkpoint, toy_folder, tmp_path):
    for more in (
        ["--num_train_epochs", "0"],
        ["--dataloader_drop_last", "true", "--per_device_train_batch_size", "500"],
    ):
        with pytest.raises(ValueError, match="without a step|make no batch of 500"):
            main(options(toy_checkpoint, toy_folder, tmp_path / "run", *more))
    broken = shutil.copytree(toy_checkpoint, tmp_path / "broken")
    content = bytearray((broken / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (broken / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors does not match its checksum"):
        main(options(broken, toy_folder, tmp_path / "run", "--max_steps", "1"))
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def gradient_of_a_rank(rank: int, ranks: int, command: list[str], goal: str | None) -> torch.Tensor:
    """The gradient of a head by this process's half of 16 spots of two panels, averaged by DDP."""
    trainer = assemble_head(
        Study.load(command[3]), *parse_arguments((HeadArguments, HeadTrainingArguments), "", command)
    )
    trainer.augment = False
    batch = trainer.data_collator(trainer.train_dataset.__getitems__(list(range(0, 64, 4))))
    if "gene_mask" in batch:
        batch["gene_mask"][:8, ::2] = False
    model = trainer.accelerator.prepare_model(trainer.model) if ranks > 1 else trainer.model
    own = slice(16 * rank // ranks, 16 * (rank + 1) // ranks)
    trainer.accelerator.backward(
        trainer.compute_loss(model.train(), {name: value[own] for name, value in batch.items()})
    )
    head = trainer.model.regressor if "gene_mask" in batch else trainer.model.classifier
    if goal and rank == 0:
        torch.save(head.weight.grad, goal)
    return head.weight.grad


@pytest.mark.parametrize("target", ["expression", "labels"])
def test_two_processes_give_the_gradient_of_the_joined_batch(target, toy_heads, toy_folder, tmp_path):
    """They averaged the means of their values, or of weighted classes, of which one may have fewer."""
    command = options(toy_heads / target, toy_folder, tmp_path / "run", "--target", target, "--freeze_vision", "true")
    in_ranks(gradient_of_a_rank, 2, command, str(tmp_path / "two.pt"))
    expected = gradient_of_a_rank(0, 1, command, None)
    torch.testing.assert_close(torch.load(tmp_path / "two.pt"), expected, rtol=1e-4, atol=1e-6)


def test_a_metric_that_no_evaluation_gives_is_refused(toy_checkpoint, toy_folder, tmp_path):
    command = ["--eval_strategy", "epoch", "--metric_for_best_model", "eval_los", "--max_steps", "1"]
    with pytest.raises(ValueError, match="'eval_los' is not given by an evaluation of this run. Did you mean 'loss'"):
        main(options(toy_checkpoint, toy_folder, tmp_path / "run", *command))


@pytest.mark.fault("secrets and paths, fine-tuning")
def test_a_fine_tuning_writes_no_pickle_and_no_secret(expression, toy_checkpoint, toy_folder, tmp_path):
    written = [path for path in expression.rglob("*") if path.is_file()]
    assert not [path.name for path in written if path.name == "training_args.bin"]
    assert [path for path in written if path.parent.name == "checkpoint-1" and path.name == "processor_config.json"]
    for path in written:
        assert SECRET.encode() not in path.read_bytes() and b"tests-of-alice" not in path.read_bytes(), path
    with pytest.raises(ValueError, match=r"push_to_hub=True is for pretraining.*delst push .*/model USER/NAME"):
        main(options(toy_checkpoint, toy_folder, tmp_path / "run", "--push_to_hub", "true"))


def test_labels_with_lora_are_a_plain_classifier(toy_checkpoint, toy_folder, toy_study, tmp_path):
    pytest.importorskip("peft")
    output = tmp_path / "run"
    main(options(toy_checkpoint, toy_folder, output, "--target", "labels", "--lora", "true", "--max_steps", "2"))
    model = DelstForSpotClassification.from_pretrained(output / "model")
    assert not [name for name in model.state_dict() if "lora" in name]
    assert set(model.config.id2label.values()) == {
        name for name in toy_study.subset(["toy_A1", "toy_A2"])["label"] if name
    }
    head = json.loads((output / "model" / "training.json").read_text())["head"]
    assert head["method"].endswith("LoRA on the backbone") and 0 <= head["macro_f1"] <= 1
    assert issubclass(HeadTrainer, Trainer)


def test_patients_are_kept_apart(toy_study, toy_checkpoint):
    arguments = HeadArguments(str(toy_checkpoint), "data")
    assert patient_split(toy_study, arguments) == (["toy_A1", "toy_A2"], ["toy_B1"])
    with pytest.raises(ValueError, match="of patients who are trained on"):
        patient_split(toy_study, HeadArguments("m", "d", train_slides="toy_A1", validation_slides="toy_A2"))
    with pytest.raises(ValueError, match="none is left to validate on.*--validation_slides toy_A2"):
        patient_split(toy_study, HeadArguments("m", "d", train_slides="toy_A1,toy_A2"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "age"], "age"),
        (["--lora", "true", "--freeze_vision", "true"], "exclude each other"),
        (["--target", "labels", "--ignore_labels", "tumour,stroma,immune,adipose,normal"], "needs two classes"),
    ],
)
def test_bad_requests_are_refused(more, message, toy_checkpoint, toy_folder, tmp_path, toy_study):
    if "--ignore_labels" in more:
        more = [*more[:-1], ",".join({str(name) for name in toy_study.spots["label"]})]
    with pytest.raises((ValueError, SystemExit), match=None if more[-1] == "age" else message):
        main(options(toy_checkpoint, toy_folder, tmp_path / "run", *more))


def test_the_script_is_thin():
    code = "import runpy, sys; sys.argv[0] = 'training/finetune.py'; runpy.run_path(sys.argv[0], run_name='__main__')"
    assert "--validation_slides" in scripts.run_script(code, "--help").stdout


def test_a_checkpoint_without_its_backbone_is_trained_where_it_can_be_saved_so(
    toy_study, toy_folder, tiny_backbone, tmp_path, monkeypatch
):
    """Otherwise the run was lost at its end, when the trained backbone was refused."""
    processor = make_tiny_processor(toy_study)
    genes = {"num_genes": len(processor.feature_extractor.vocabulary), "hidden_size": 16}
    model = DelstModel.from_vision_gene_pretrained(tiny_backbone, gene_config=genes, projection_dim=8)
    model.config.save_backbone, model.config.vision_source["id"] = False, str(tiny_backbone)
    save_checkpoint_folder(tmp_path / "heads", model, processor)
    monkeypatch.setattr(HeadTrainer, "train", lambda self, *args, **kwargs: pytest.fail("the training began"))
    with pytest.raises(ValueError, match="was saved without its backbone, .* --lora true or --freeze_vision true"):
        main(options(tmp_path / "heads", toy_folder, tmp_path / "run", "--target", "labels", "--max_steps", "1"))
    monkeypatch.undo()
    pytest.importorskip("peft", reason="the optional extra 'lora' is not installed")
    more = ["--target", "labels", "--max_steps", "1", "--lora", "true"]
    main(options(tmp_path / "heads", toy_folder, tmp_path / "lora", *more))
    assert DelstForSpotClassification.from_pretrained(tmp_path / "lora" / "model").config.save_backbone is False
    assert any(".lora_A." in name for name in load_file(tmp_path / "lora" / "model" / "model.safetensors"))


def test_a_model_that_is_nowhere_is_no_fault_of_the_program(toy_folder, tmp_path):
    with pytest.raises(ValueError, match="cannot read the checkpoint me/none: .*Give the folder model/ of a run"):
        main(options("me/none", toy_folder, tmp_path / "run", "--max_steps", "1"))
