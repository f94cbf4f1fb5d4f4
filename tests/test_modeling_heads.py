"""Task heads: losses by hand, fine-tuning by transformers' own Trainer, and checkpoints of the body."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripts import run_script
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, pipeline

from delst_hf import DelstForGeneExpressionPrediction, DelstForSpotClassification, DelstModel

HEADS = [DelstForSpotClassification, DelstForGeneExpressionPrediction]


@pytest.fixture
def body(tiny_model, tiny_processor, tmp_path):
    """Folder of a pretrained model and its processor."""
    genes = len(tiny_processor.feature_extractor.vocabulary)
    tiny_model.gene_model.set_missing_values(torch.linspace(0, 2, genes))
    tiny_model.save_pretrained(tmp_path / "body")
    tiny_processor.save_pretrained(tmp_path / "body")
    return tmp_path / "body"


@pytest.fixture
def spots(toy_study, tiny_processor):
    """Inputs of 48 spots of the toy slides, with a class each."""
    rows = toy_study.spots.select(range(48))
    counts = toy_study.counts(rows).toarray()
    inputs = tiny_processor(rows["image"][:], counts, toy_study.gene_names, return_tensors="pt")
    names = sorted(set(rows["label"][:]))
    return dict(inputs), torch.tensor([names.index(label) for label in rows["label"][:]]), names


class Rows(torch.utils.data.Dataset):
    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns["labels"])

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.columns.items()}


def fine_tune(model, rows, folder, steps=25):
    """Mean loss of the first and of the last steps under transformers' own Trainer."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=16, learning_rate=3e-3, logging_steps=1,
        use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", seed=0,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return np.mean(losses[:3]), np.mean(losses[-3:]), trainer


# --- loading the body -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_the_body_of_a_pretrained_model_is_loaded_whole(head, body, caplog):
    with caplog.at_level(logging.WARNING):
        model, info = head.from_pretrained(body, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} <= {"classifier", "regressor"}
    assert len(info["missing_keys"]) == 2 and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert "vision_model" not in caplog.text and "gene_model" not in caplog.text
    expected = DelstModel.from_pretrained(body).state_dict()
    state = model.delst.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("head", HEADS)
def test_save_and_load(head, body, spots, tmp_path):
    inputs, _, _ = spots
    model = head.from_pretrained(body, num_labels=3).eval()
    model.save_pretrained(tmp_path / "tuned")
    loaded, info = head.from_pretrained(tmp_path / "tuned", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        expected = model(pixel_values=inputs["pixel_values"]).logits
        torch.testing.assert_close(loaded(pixel_values=inputs["pixel_values"]).logits, expected)
    # And the body out of it again.
    again = DelstModel.from_pretrained(tmp_path / "tuned").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.delst.state_dict().items())
    assert any(name.startswith("delst.") for name in load_file(tmp_path / "tuned" / "model.safetensors"))


# --- spot classification --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "width"), [("image", 16), ("gene", 16), ("both", 32)])
def test_logits_and_loss_by_hand(inputs, width, body, spots):
    batch, labels, _ = spots
    model = DelstForSpotClassification.from_pretrained(body, num_labels=5, head_inputs=inputs).eval()
    assert model.classifier.in_features == width
    tensors = {name: batch[name] for name in ("pixel_values", "gene_values", "gene_mask")}
    features = DelstModel.from_pretrained(body)(**tensors)
    towers = {"image": features.vision_model_output.pooler_output, "gene": features.gene_model_output.pooler_output}
    parts = [towers[name] for name in (("image", "gene") if inputs == "both" else (inputs,))]
    joined = torch.cat([(x - x.mean(1, True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt() for x in parts], 1)
    output = model(**tensors, labels=labels)
    torch.testing.assert_close(output.logits, joined @ model.classifier.weight.T + model.classifier.bias)
    expected = -output.logits.log_softmax(1)[torch.arange(48), labels].mean()
    torch.testing.assert_close(output.loss, expected)
    only_read = {name: tensors[name] for name in tensors if inputs == "both" or name.startswith(inputs[:4])}
    if inputs == "image":
        only_read = {"pixel_values": tensors["pixel_values"]}
    torch.testing.assert_close(model(**only_read).logits, output.logits)


@pytest.mark.parametrize(
    ("labels", "options", "problem", "loss"),
    [
        (torch.tensor([[1.0, 0, 1]] * 48), {"num_labels": 3}, "multi_label_classification", "bce"),
        (torch.linspace(0, 1, 48), {"num_labels": 1}, "regression", "mse"),
    ],
)
def test_problem_types(labels, options, problem, loss, body, spots):
    model = DelstForSpotClassification.from_pretrained(body, **options).eval()
    output = model(pixel_values=spots[0]["pixel_values"], labels=labels)
    assert model.config.problem_type == problem
    if loss == "bce":
        chance = output.logits.sigmoid()
        expected = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    else:
        expected = (output.logits[:, 0] - labels).square().mean()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize(
    ("inputs", "missing"), [("image", "pixel_values"), ("gene", "gene_values"), ("both", "gene_values")]
)
def test_a_missing_input_is_named(inputs, missing, body, spots):
    batch, _, _ = spots
    model = DelstForSpotClassification.from_pretrained(body, head_inputs=inputs)
    other = "gene_values" if missing == "pixel_values" else "pixel_values"
    with pytest.raises(ValueError, match=f"head_inputs='{inputs}' needs {missing}, which DelstProcessor returns"):
        model(**{other: batch[other]})


@pytest.mark.parametrize("inputs", ["image", "both"])
def test_the_plain_trainer_fine_tunes_a_classifier(inputs, body, spots, tmp_path):
    batch, labels, names = spots
    label2id = {name: i for i, name in enumerate(names)}
    model = DelstForSpotClassification.from_pretrained(
        body, num_labels=len(names), label2id=label2id, id2label=dict(enumerate(names)), head_inputs=inputs
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, last, trainer = fine_tune(model, Rows(**batch, labels=labels), tmp_path / "run")
    assert last < 0.8 * first
    moved = {name.split(".")[1] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"vision_model", "weight", "bias"} <= moved
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape == (48, len(names))
    assert np.isfinite(predicted.metrics["test_loss"])


def test_a_classifier_in_the_image_classification_pipeline(body, spots, toy_study, tiny_processor, tmp_path):
    batch, _, names = spots
    model = DelstForSpotClassification.from_pretrained(
        body, num_labels=len(names), label2id={n: i for i, n in enumerate(names)}, id2label=dict(enumerate(names))
    ).eval()
    model.save_pretrained(tmp_path / "tuned")
    tiny_processor.save_pretrained(tmp_path / "tuned")
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path / "tuned")) is DelstForSpotClassification
    classify = pipeline("image-classification", model=str(tmp_path / "tuned"), device="cpu")
    images = toy_study.spots.select(range(3))["image"][:]
    answers = classify(images, top_k=None, batch_size=2)
    with torch.no_grad():
        expected = model(pixel_values=batch["pixel_values"][:3]).logits.softmax(-1)
    for answer, chances in zip(answers, expected, strict=True):
        assert {entry["label"]: pytest.approx(entry["score"], rel=1e-4) for entry in answer} == {
            name: chance.item() for name, chance in zip(names, chances, strict=True)
        }


LOAD_HEADS = """
import torch
from transformers import AutoModel, AutoModelForImageClassification

folder = sys.argv[1]
pixel_values = torch.load(folder + "/pixel_values.pt")
for auto, name in ((AutoModelForImageClassification, "classes"), (AutoModel, "expression")):
    model = auto.from_pretrained(f"{folder}/{name}", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        torch.save(model(pixel_values).logits, f"{folder}/{name}.pt")
"""


def test_heads_load_where_the_package_is_not_installed(body, spots, tmp_path):
    pixel_values = spots[0]["pixel_values"][:2]
    torch.save(pixel_values, tmp_path / "pixel_values.pt")
    models = {"classes": DelstForSpotClassification, "expression": DelstForGeneExpressionPrediction}
    models = {name: head.from_pretrained(body).eval() for name, head in models.items()}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    run_script(LOAD_HEADS, tmp_path, folder=tmp_path, environment=modules, without_package=True)
    for name, model in models.items():
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.pt"), model(pixel_values).logits)


# --- expression -----------------------------------------------------------------------------------------------------


def test_expression_is_the_mean_and_what_the_patch_adds(body, spots):
    batch, _, _ = spots
    model = DelstForGeneExpressionPrediction.from_pretrained(body).eval()
    x = DelstModel.from_pretrained(body).vision_model(batch["pixel_values"]).pooler_output
    standardised = (x - x.mean(1, True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = torch.linspace(0, 2, 100)[: model.regressor.out_features].numel()
    output = model(batch["pixel_values"])
    assert output.loss is None and output.logits.shape == batch["gene_values"].shape == (48, expected)
    means = model.delst.gene_model.missing_values
    torch.testing.assert_close(
        output.logits, means + standardised @ model.regressor.weight.T + model.regressor.bias, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_does_not_standardise_reads_features_as_they_are(head, body, spots):
    batch, _, _ = spots
    model = head.from_pretrained(body, head_standardise=False, head_inputs="image").eval()
    x = DelstModel.from_pretrained(body).vision_model(batch["pixel_values"]).pooler_output
    layer = model.classifier if head is DelstForSpotClassification else model.regressor
    shift = 0 if head is DelstForSpotClassification else model.delst.gene_model.missing_values
    torch.testing.assert_close(model(batch["pixel_values"]).logits, x @ layer.weight.T + layer.bias + shift)


def test_the_loss_reads_what_was_measured(body, spots):
    batch, _, _ = spots
    model = DelstForGeneExpressionPrediction.from_pretrained(body).eval()
    labels = batch["gene_values"]
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    logits = model(batch["pixel_values"]).logits
    torch.testing.assert_close(model(batch["pixel_values"], labels=labels).loss, (logits - labels).square().mean())
    holes = torch.where(mask, labels, torch.nan)
    loss = model(batch["pixel_values"], labels=holes, gene_mask=mask).loss
    torch.testing.assert_close(loss, (logits - labels)[mask].square().mean())
    loss.backward()
    assert torch.isfinite(model.regressor.weight.grad).all()
    nothing = model(batch["pixel_values"], labels=holes, gene_mask=torch.zeros_like(mask)).loss
    assert nothing == 0


def test_labels_of_other_genes_are_refused(body, spots):
    model = DelstForGeneExpressionPrediction.from_pretrained(body)
    with pytest.raises(
        ValueError, match=r"labels has shape \(48, 3\), but there are 48 patches.*gene_values of the model's"
    ):
        model(spots[0]["pixel_values"], labels=torch.zeros(48, 3))


def test_the_plain_trainer_fine_tunes_expression(body, spots, tmp_path):
    batch, _, _ = spots
    model = DelstForGeneExpressionPrediction.from_pretrained(body)
    rows = Rows(pixel_values=batch["pixel_values"], labels=batch["gene_values"], gene_mask=batch["gene_mask"])
    first, last, trainer = fine_tune(model, rows, tmp_path / "run")
    assert last < 0.8 * first
    assert trainer.predict(rows).predictions.shape == batch["gene_values"].shape


def test_added_genes_are_predicted_at_zero_until_learned(body, spots, tmp_path):
    batch, _, _ = spots
    model = DelstForGeneExpressionPrediction.from_pretrained(body).eval()
    before = model(batch["pixel_values"]).logits
    model.resize_gene_embeddings(before.shape[1] + 2)
    after = model(batch["pixel_values"]).logits
    torch.testing.assert_close(after[:, :-2], before)
    assert (after[:, -2:] == 0).all()
    model.save_pretrained(tmp_path / "grown")
    loaded = DelstForGeneExpressionPrediction.from_pretrained(tmp_path / "grown")
    torch.testing.assert_close(loaded(batch["pixel_values"]).logits, after)


@pytest.mark.parametrize("head", HEADS)
def test_heads_stay_in_float32(head, body, spots):
    batch, _, _ = spots
    model = head.from_pretrained(body, dtype=torch.bfloat16)
    layer = model.classifier if head is DelstForSpotClassification else model.regressor
    assert layer.weight.dtype == model.delst.visual_projection.weight.dtype == torch.float32
    assert model.delst.vision_model.dtype == torch.bfloat16
    assert model(pixel_values=batch["pixel_values"]).logits.dtype == torch.float32
