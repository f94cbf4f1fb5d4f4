"""Gradient caching against the plain step: its oracle is autograd through one graph that holds the whole batch."""

import copy

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from delst_hf import DelstCollator, DelstModel, DelstTrainer, DelstTrainingArguments
from delst_hf.pretraining.gradient_cache import cached_loss

SCALARS = {"logit_scale", "log_curvature", "log_image_scale", "log_gene_scale"}


@pytest.fixture
def batch(tiny_processor, toy_study):
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes)
    batch = collator([toy_study.spots[4 * i] for i in range(22)])
    return {key: value for key, value in batch.items() if key not in ("labels", "return_loss")}


def with_dropout(model: DelstModel, p: float) -> DelstModel:
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    return model


def cached(model, batch, size=8, **options):
    """Loss and gradients of the cached step; 22 spots in parts of 8 leave a last part of 6."""
    torch.manual_seed(5)
    output = cached_loss(model, model, batch, size, backward=torch.Tensor.backward, **options)
    output.loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_graph(model, batch, size):
    """The same batch embedded in parts whose graphs are all kept, and the loss over it."""
    torch.manual_seed(5)
    towers = ("pixel_values", "gene_values", "gene_mask")
    rows = range(0, len(batch["level"]), size)
    outputs = [model(**{key: batch[key][i : i + size] for key in towers}) for i in rows]
    embeds = [torch.cat([getattr(output, name) for output in outputs]) for name in ("image_embeds", "gene_embeds")]
    loss = model.loss_terms(*embeds, batch["level"], batch["slide_ids"])["loss"]
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected, rtol=1e-3, atol=1e-5):
    assert set(found) == set(expected) and len(expected) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", [1, 8, 22, 100])
def test_gradients_are_those_of_the_plain_step(tiny_model, batch, size):
    plain = with_dropout(tiny_model, 0.0)
    loss = plain(**batch, return_loss=True).loss
    loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    output, found = cached(with_dropout(tiny_model, 0.0), batch, size)
    torch.testing.assert_close(output.loss, loss, rtol=1e-6, atol=1e-6)
    assert set(expected) >= SCALARS and all(expected[name].abs() > 1e-5 for name in SCALARS)
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("geometry", ["cosine", "euclidean"])
def test_the_other_geometries(tiny_model, batch, geometry):
    config = copy.deepcopy(tiny_model.config)
    config.geometry, config.cross_entailment_weight, config.intra_entailment_weight = geometry, 0.0, 0.0
    model = with_dropout(DelstModel(config), 0.0)
    plain = copy.deepcopy(model)
    plain(**batch, return_loss=True).loss.backward()
    _, found = cached(model, batch)
    assert_same_gradients(found, {name: p.grad for name, p in plain.named_parameters() if p.grad is not None})


def test_dropout_is_the_same_in_both_passes(tiny_model, batch, monkeypatch):
    loss, expected = one_graph(with_dropout(tiny_model, 0.5), batch, 8)
    end = torch.get_rng_state()
    output, found = cached(with_dropout(tiny_model, 0.5), batch)
    torch.testing.assert_close(output.loss, loss, rtol=1e-6, atol=1e-6)
    assert_same_gradients(found, expected)
    # What is drawn next does not depend on the replay either.
    assert torch.equal(torch.get_rng_state(), end)
    monkeypatch.setattr("delst_hf.pretraining.gradient_cache._RandomState.restore", lambda self: None)
    _, wrong = cached(with_dropout(tiny_model, 0.5), batch)
    with pytest.raises(AssertionError):
        assert_same_gradients(wrong, expected)


def test_bf16_autocast(tiny_model, batch):
    expected_model, model = with_dropout(tiny_model, 0.5), with_dropout(tiny_model, 0.5)
    for each in (expected_model, model):
        each.forward = torch.autocast("cpu", dtype=torch.bfloat16)(each.forward)  # as accelerate does it
    _, expected = one_graph(expected_model, batch, 8)
    _, found = cached(model, batch)
    assert_same_gradients(found, expected, rtol=1e-2, atol=1e-4)
    assert found["vision_model.embeddings.cls_token"].abs().sum() > 0


def peak_of_saved_bytes(model, step) -> int:
    """Most bytes that the graph of the vision tower held at any one time of a step."""
    live, peak = 0, 0

    class Saved:
        def __init__(self, tensor):
            nonlocal live, peak
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            live += self.size
            peak = max(peak, live)

        def __del__(self):
            nonlocal live
            live -= self.size

    forward = model.vision_model.forward

    def counted(*args, **kwargs):
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            return forward(*args, **kwargs)

    model.vision_model.forward = counted
    step()
    return peak


def test_memory_of_the_tower_is_flat_in_the_batch(tiny_model, batch):
    def plain(model, rows):
        model(**rows, return_loss=True).loss.backward()

    def bytes_of(run, times):
        rows = {key: torch.cat([value] * times) for key, value in batch.items()}
        model = with_dropout(tiny_model, 0.1)
        return peak_of_saved_bytes(model, lambda: run(model, rows))

    plain_1, plain_4 = bytes_of(plain, 1), bytes_of(plain, 4)
    cached_1, cached_4 = bytes_of(cached, 1), bytes_of(cached, 4)
    assert plain_4 > 3.5 * plain_1
    assert cached_4 == cached_1 < plain_1 / 2


def test_a_size_that_is_no_size(tiny_model, batch, tmp_path):
    with pytest.raises(ValueError, match="contrastive_micro_batch_size=0 must be 1 or more"):
        cached_loss(tiny_model, tiny_model, batch, 0, backward=torch.Tensor.backward)
    with pytest.raises(ValueError, match="contrastive_micro_batch_size=-1 must be 1 or more"):
        DelstTrainingArguments(output_dir=str(tmp_path), contrastive_micro_batch_size=-1)


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients_of_one_step(model, tiny_processor, toy_study, tmp_path, **options):
    arguments = DelstTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=1, max_grad_norm=0.0, **options
    )  # fmt: skip
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes)
    keep = KeepGradients()
    trainer = DelstTrainer(
        model=copy.deepcopy(model),
        args=arguments,
        train_dataset=toy_study.spots,
        data_collator=collator,
        callbacks=[keep],
    )
    trainer.train()
    return keep.found, trainer.state.log_history


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_trainer_caches(tiny_model, tiny_processor, toy_study, tmp_path, accumulated):
    model = with_dropout(tiny_model, 0.0)
    options = {
        "per_device_train_batch_size": 24,
        "gradient_accumulation_steps": accumulated,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    plain, log = gradients_of_one_step(model, tiny_processor, toy_study, tmp_path, **options)
    found, cached_log = gradients_of_one_step(
        model, tiny_processor, toy_study, tmp_path, contrastive_micro_batch_size=10, **options
    )
    assert_same_gradients(found, plain)
    for term in ("loss", "contrastive_loss", "cross_entailment_loss", "intra_entailment_loss"):
        assert cached_log[0][term] == pytest.approx(log[0][term], rel=1e-5), term
    # The mean over accumulated batches, as the terms are, not their sum.
    expected = (
        log[0]["contrastive_loss"] + 0.2 * log[0]["cross_entailment_loss"] + 0.1 * log[0]["intra_entailment_loss"]
    )
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_batch_statistics_are_refused(tiny_model, tmp_path):
    model = copy.deepcopy(tiny_model)
    model.vision_model.extra = nn.BatchNorm2d(3)
    model.config.freeze_batch_norm = False
    arguments = DelstTrainingArguments(output_dir=str(tmp_path), use_cpu=True, contrastive_micro_batch_size=4)
    with pytest.raises(ValueError, match="freeze_batch_norm"):
        DelstTrainer(model=model, args=arguments)
