import contextlib
import copy
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import in_ranks
from safetensors.torch import load_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from delst_hf import DelstCollator, DelstModel, DelstProcessor, DelstTrainer, DelstTrainingArguments
from delst_hf.data.collator import random_orientation
from delst_hf.data.study import Study
from delst_hf.pretraining.checkpoints import begin_checkpoint, last_complete_checkpoint
from delst_hf.pretraining.trainer import SCALARS

pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture
def make_trainer(tiny_model, tiny_processor, toy_study, tmp_path):
    def make(output: str = "run", model: DelstModel | None = None, patient_of_slide=None, **options):
        options = {
            "max_steps": 6,
            "per_device_train_batch_size": 24,
            "save_strategy": "no",
            "logging_steps": 2,
        } | options
        arguments = DelstTrainingArguments(
            output_dir=str(tmp_path / output), use_cpu=True, report_to=[], disable_tqdm=True, seed=3, **options
        )
        return DelstTrainer(
            model=copy.deepcopy(tiny_model) if model is None else model,
            args=arguments,
            train_dataset=toy_study.subset(["toy_A1", "toy_A2"]),
            eval_dataset=toy_study.subset(["toy_B1"]),
            data_collator=DelstCollator(
                tiny_processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes
            ),
            processing_class=tiny_processor,
            patient_of_slide=patient_of_slide,
        )

    return make


def test_every_trained_parameter_moves_and_the_loss_falls(make_trainer):
    trainer = make_trainer(max_steps=30, learning_rate=5e-3)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    still = [name for name, p in trainer.model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert still == []
    losses = [entry["contrastive_loss"] for entry in trainer.state.log_history if "contrastive_loss" in entry]
    assert losses[0] > np.log(24) * 0.9 and losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("workers", [0, 1])
def test_deferred_patches_train_to_the_same_weights(make_trainer, workers):
    plain = make_trainer("plain")
    plain.train()
    deferred = make_trainer("deferred", dataloader_num_workers=workers)
    deferred.data_collator.defer_pixels = True
    deferred.train()
    assert deferred.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, deferred.model.state_dict()[name]), name


def test_logs_hold_every_term_and_the_state_of_the_hyperboloid(make_trainer):
    trainer = make_trainer()
    trainer.train()
    entry = trainer.state.log_history[0]
    config = trainer.model.config
    total = (
        entry["contrastive_loss"]
        + config.cross_entailment_weight * entry["cross_entailment_loss"]
        + config.intra_entailment_weight * entry["intra_entailment_loss"]
    )
    assert entry["loss"] == pytest.approx(total, rel=1e-4)
    for key in ("curvature", "curvature_at_clamp", "logit_scale", "image_radius", "gene_radius", "image_half_aperture",
                "gene_half_aperture", "in_cone_matched", "in_cone_mismatched"):  # fmt: skip
        assert np.isfinite(entry[key]), key


def test_terms_are_averages_since_the_last_log(make_trainer):
    each = make_trainer("each", logging_steps=1, augment=False)
    each.train()
    pairs = make_trainer("pairs", logging_steps=2, augment=False)
    pairs.train()
    single = [entry["contrastive_loss"] for entry in each.state.log_history if "contrastive_loss" in entry]
    double = [entry["contrastive_loss"] for entry in pairs.state.log_history if "contrastive_loss" in entry]
    np.testing.assert_allclose(double, np.reshape(single, (-1, 2)).mean(1), rtol=1e-5)


def test_evaluation_is_retrieval_over_the_whole_set(make_trainer, toy_study):
    from delst_hf.evaluation.embed import embed
    from delst_hf.evaluation.retrieval import retrieval

    trainer = make_trainer(per_device_eval_batch_size=16)
    metrics = trainer.evaluate()
    embeddings = embed(trainer.model, trainer.eval_dataset, trainer.data_collator, progress=False)
    curvature = trainer.model.curvature.item()
    expected = retrieval(embeddings.image_embeds, embeddings.gene_embeds, similarity="lorentz", curvature=curvature)
    assert metrics["eval_pool_size"] == 36
    assert metrics["eval_image_to_gene_recall@5"] == pytest.approx(expected["recall@5"])
    assert metrics["eval_contrastive_loss"] > 0


def test_parameter_groups(make_trainer):
    trainer = make_trainer(learning_rate=1e-3, vision_learning_rate=1e-4, scalar_learning_rate=1e-2, weight_decay=0.2)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.parameter_groups(trainer.model)
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sorted(found) == sorted(name for name, p in trainer.model.named_parameters() if p.requires_grad)
    for name in SCALARS:
        assert found[name] == (1e-2, 0.0)
    assert found["visual_projection.weight"] == (1e-3, 0.2)
    assert found["gene_model.layers.0.0.weight"] == (1e-3, 0.2)
    assert found["gene_model.layers.0.0.bias"] == (1e-3, 0.0)
    assert found["vision_model.embeddings.patch_embeddings.projection.weight"] == (1e-4, 0.2)
    assert found["vision_model.layernorm.weight"] == (1e-4, 0.0)
    optimizer = trainer.create_optimizer()
    assert [group["betas"][1] for group in optimizer.param_groups] == [0.98] * len(groups)


def test_scalars_are_clamped_after_the_step(make_trainer):
    trainer = make_trainer(scalar_learning_rate=5.0, max_steps=3, logging_steps=1)
    trainer.train()
    model = trainer.model
    low, high = model.curvature_bounds
    assert low * 0.999 <= model.curvature.item() <= high * 1.001
    assert model.logit_scale.exp().item() <= 100.01
    assert max(model.log_image_scale.item(), model.log_gene_scale.item()) <= 0
    # Steps of 5 throw the curvature at a bound, and the log says so.
    assert any(entry.get("curvature_at_clamp") == 1.0 for entry in trainer.state.log_history)


def test_frozen_backbone_stays(make_trainer):
    trainer = make_trainer(freeze_vision=True)
    before = {name: tensor.clone() for name, tensor in trainer.model.vision_model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.vision_model.state_dict().items())


def test_masked_negatives_are_those_of_the_group(make_trainer):
    """The loss of a step is that of the model's own forward pass with the groups by hand."""
    for mask, patients in (("slide", None), ("patient", [0, 0, 1])):
        trainer = make_trainer(mask, mask_negatives=mask, augment=False, patient_of_slide=patients)
        assert trainer.data_collator.slide_index == {"toy_A1": 0, "toy_A2": 1, "toy_B1": 2}
        rows = [trainer.train_dataset[i] for i in (0, 5, 10, 20, 40, 60)] + [trainer.eval_dataset[i] for i in (0, 9)]
        inputs = trainer._prepare_inputs(trainer.data_collator(rows))
        groups = inputs["slide_ids"] if patients is None else torch.tensor(patients)[inputs["slide_ids"]]
        assert len(groups.unique()) == (3 if patients is None else 2)
        trainer.model.train()
        torch.manual_seed(0)
        loss = trainer.compute_loss(trainer.model, dict(inputs))
        torch.manual_seed(0)
        inputs = {key: value for key, value in inputs.items() if key not in ("labels", "return_loss")}
        expected = trainer.model(**inputs, return_loss=True, negative_groups=groups).loss
        torch.testing.assert_close(loss, expected)
        torch.manual_seed(0)
        assert loss < trainer.model(**inputs, return_loss=True).loss - 0.05  # fewer negatives, an easier loss
    with pytest.raises(ValueError, match="mask_negatives='patient' needs the patient of each slide"):
        make_trainer("none", mask_negatives="patient")


def test_regression_trains_and_is_logged(make_trainer, tiny_model):
    config = copy.deepcopy(tiny_model.config)
    config.regression_weight = 1.0
    torch.manual_seed(0)
    trainer = make_trainer("regression", DelstModel(config), max_steps=30, learning_rate=5e-3)
    trainer.train()
    errors = [entry["regression_loss"] for entry in trainer.state.log_history if "regression_loss" in entry]
    assert max(errors[-3:]) < 0.9 * errors[0]
    assert trainer.evaluate()["eval_regression_loss"] > 0
    with pytest.raises(ValueError, match="regression_weight 1 trains a layer beside them"):
        make_trainer("cached", DelstModel(config), contrastive_micro_batch_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stain_jitter": "wild"}, "stain_jitter='wild' is not known. Choose one of 'off', 'light', 'strong'"),
        ({"min_crop": 1.2}, "min_crop=1.2 is not a share of a patch's side"),
        ({"views": "double"}, "views='double' is not known. Choose one of 'single', 'nested'"),
        ({"mask_negatives": "tumour"}, "mask_negatives='tumour' is not known. Choose one of 'off', 'slide', 'patient'"),
        ({"views": "nested", "contrastive_micro_batch_size": 4}, "views='nested' embeds a new crop of each patch"),
    ],
)
def test_switches_that_are_not_known_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DelstTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("geometry", ["cosine", "euclidean"])
def test_baseline_geometries_train(make_trainer, tiny_model, geometry):
    config = copy.deepcopy(tiny_model.config)
    config.geometry, config.cross_entailment_weight, config.intra_entailment_weight = geometry, 0.0, 0.0
    trainer = make_trainer(model=DelstModel(config))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert np.isfinite(entry["contrastive_loss"]) and "curvature" not in entry and "cross_entailment_loss" not in entry


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (3, {}),
        (4, {}),
        (4, {"batch_sampling": "balanced", "contrastive_micro_batch_size": 10}),
        (5, {"batch_sampling": "within_slide", "per_device_train_batch_size": 16, "freeze_vision": True}),
        (4, {"stain_jitter": "strong", "min_crop": 0.7, "views": "nested", "mask_negatives": "slide"}),
        (
            4,
            {
                "dataloader_num_workers": 1,
                "dataloader_persistent_workers": True,
                "eval_strategy": "steps",
                "eval_steps": 2,
            },
        ),
    ],
    ids=[
        "at the end of an epoch",
        "within an epoch",
        "balanced and cached",
        "within a slide, frozen",
        "drawn on the device",
        "workers that outlive an epoch",
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(make_trainer, caplog, step, options):
    whole = make_trainer("whole", save_strategy="steps", save_steps=step, **options)
    whole.train()
    run = shutil.copytree(whole.args.output_dir, whole.args.output_dir + "-killed")
    shutil.rmtree(os.path.join(run, "checkpoint-6"))
    resumed = make_trainer("whole-killed", save_strategy="steps", save_steps=step, **options)
    torch.manual_seed(99)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert "missing keys" not in caplog.text.lower()
    assert resumed.state.global_step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    halfway = DelstModel.from_pretrained(os.path.join(run, f"checkpoint-{step}"))
    assert not torch.equal(whole.model.visual_projection.weight, halfway.visual_projection.weight)


@pytest.mark.parametrize("options", [{"batch_eval_metrics": True}, {"eval_do_concat_batches": False}])
def test_metrics_of_parts_of_the_spots_are_refused(make_trainer, options):
    with pytest.raises(ValueError, match="Retrieval is scored over all validation spots at once"):
        make_trainer(**options)


def test_a_checkpoint_without_an_optimizer_is_not_resumed(make_trainer, caplog):
    """The run went on, with a new optimizer and a schedule from its start, and ended elsewhere without a word."""
    options = {"save_strategy": "steps", "save_steps": 4, "save_only_model": True, "max_steps": 4}
    make_trainer("alone", **options).train()
    with pytest.raises(ValueError, match="checkpoint-4 holds weights alone .*--init_from"):
        make_trainer("alone", **options).train(resume_from_checkpoint=True)
    make_trainer("alone", resume_anyway=True, **options | {"max_steps": 5}).train(resume_from_checkpoint=True)


def test_a_resumed_run_logs_and_saves_as_often_as_it_is_told_now(make_trainer):
    """The steps of the checkpoint went on, and only a hidden warning said so."""
    make_trainer("often", save_strategy="steps", save_steps=2, max_steps=4).train()
    resumed = make_trainer("often", save_strategy="steps", save_steps=1, logging_steps=1)
    resumed.train(resume_from_checkpoint=True)
    assert {row["step"] for row in resumed.state.log_history if "loss" in row} == {2, 4, 5, 6}
    assert Path(resumed.args.output_dir, "checkpoint-5", "complete").is_file()


@pytest.mark.parametrize("name", ["dataloader_drop_last", "dataloader_persistent_workers"])
def test_a_run_whose_steps_get_other_spots_is_not_resumed(make_trainer, name):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "dataloader_num_workers": 1}
    make_trainer("other", **options).train()
    options[name] = name != "dataloader_drop_last"
    with pytest.raises(ValueError, match=f"is of another run: {name} was not given and is {options[name]}"):
        make_trainer("other", **options).train(resume_from_checkpoint=True)


def test_a_run_that_is_resumed_after_its_last_step_makes_no_other(make_trainer):
    """Killed after its last checkpoint, which lies within an epoch of three steps."""
    options = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    whole = make_trainer(max_steps=4, **options)
    whole.train()
    resumed = make_trainer(max_steps=4, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("geometry", ["lorentz", "cosine"])
def test_a_metric_that_no_evaluation_gives_is_refused_before_training(make_trainer, tiny_model, geometry):
    """The names are those that the first evaluation gives, at which transformers' Trainer finds the mistake."""
    tiny_model.config.geometry = geometry
    if geometry == "cosine":
        tiny_model.config.cross_entailment_weight = tiny_model.config.intra_entailment_weight = 0.0
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    trainer = make_trainer("names", tiny_model, **options)
    given = {name.removeprefix("eval_") for name in trainer.evaluate()}
    speed = {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch"}
    assert given - speed == trainer.evaluation_names()
    trainer = make_trainer("run", tiny_model, metric_for_best_model="eval_image_to_gene_recal@10", **options)
    with pytest.raises(
        ValueError, match=r"'eval_image_to_gene_recal@10' is not given by .* Did you mean 'image_to_gene_recall@10'"
    ):
        trainer.train()
    make_trainer("right", tiny_model, metric_for_best_model="image_to_gene_recall@10", **options).train()


def test_resumed_run_ends_with_the_same_best_model(make_trainer):
    # This term rises in the first steps: the best model is neither the last one nor one after the interruption.
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "learning_rate": 0.03,
    }
    options |= {"load_best_model_at_end": True, "greater_is_better": False}
    options["metric_for_best_model"] = "eval_cross_entailment_loss"
    whole = make_trainer("best", **options)
    whole.train()
    best = whole.state.best_global_step
    assert 1 <= best < 5, "the test would be blind"
    for step in (5, 6):
        shutil.rmtree(os.path.join(whole.args.output_dir, f"checkpoint-{step}"))
    resumed = make_trainer("best", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_global_step == best
    kept = load_file(os.path.join(whole.args.output_dir, f"checkpoint-{best}", "model.safetensors"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, kept[name]) and torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_checkpoint_is_complete_and_loads(make_trainer):
    trainer = make_trainer(save_strategy="steps", save_steps=3, save_total_limit=2)
    trainer.train()
    checkpoint = last_complete_checkpoint(trainer.args.output_dir)
    assert checkpoint.endswith("checkpoint-6")
    loaded = DelstModel.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in trainer.model.state_dict().items())
    assert {"model.safetensors", "config.json", "processor_config.json"} <= set(os.listdir(checkpoint))
    assert set(load_file(os.path.join(checkpoint, "model.safetensors"))) == set(trainer.model.state_dict())


def test_half_written_checkpoint_is_not_taken(make_trainer, monkeypatch):
    trainer = make_trainer(save_strategy="steps", save_steps=3)
    monkeypatch.setattr(
        trainer, "_save_optimizer_and_scheduler",
        lambda folder: (_ for _ in ()).throw(KeyboardInterrupt) if folder.endswith("6") else None,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    run = trainer.args.output_dir
    assert os.path.exists(os.path.join(run, "checkpoint-6", "model.safetensors"))
    assert last_complete_checkpoint(run).endswith("checkpoint-3")
    assert last_complete_checkpoint(os.path.join(run, "none")) is None
    # The Trainer's own way of finding a checkpoint would take the half-written one.
    assert get_last_checkpoint(run).endswith("checkpoint-6")
    taken = []
    monkeypatch.setattr(Trainer, "train", lambda self, checkpoint: taken.append(checkpoint))
    trainer.train(resume_from_checkpoint=True)
    assert taken[0].endswith("checkpoint-3")
    with pytest.raises(ValueError, match="checkpoint-6 is an incomplete checkpoint.*Resume from .*checkpoint-3"):
        trainer.train(resume_from_checkpoint=os.path.join(run, "checkpoint-6"))
    with pytest.raises(ValueError, match="none holds no complete checkpoint"):
        make_trainer("none").train(resume_from_checkpoint=True)


def test_leftovers_do_not_push_out_whole_checkpoints(make_trainer):
    trainer = make_trainer(save_strategy="steps", save_steps=2, save_total_limit=2)
    run = Path(trainer.args.output_dir)
    for step in (4, 9):  # as a killed run leaves them: one is written over, one is younger than all that follow
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "begun").touch()
    for name in ("checkpoint-mine", "checkpoint-1", "checkpoint-best"):  # the user's own, one of them with a marker
        (run / name).mkdir()
        (run / name / "notes.txt").touch()
    (run / "checkpoint-best" / "complete").touch()
    (run / "checkpoint-4" / "complete").touch()
    (run / "checkpoint-4" / "stale").touch()
    trainer.train()
    assert sorted(folder.name for folder in run.iterdir()) == [
        *("checkpoint-1", "checkpoint-4", "checkpoint-6", "checkpoint-best", "checkpoint-mine")
    ]
    assert last_complete_checkpoint(run).endswith("checkpoint-6")
    assert not (run / "checkpoint-4" / "stale").exists()


@pytest.mark.parametrize("marker", ["complete", "begun"])
def test_a_run_that_is_killed_while_it_removes_a_checkpoint_is_resumed(tmp_path, monkeypatch, marker):
    """A folder whose file `begun` was deleted before others was taken for a stranger's, and no run went on."""
    remove, left = os.unlink, 0

    def killed(*arguments, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        remove(*arguments, **options)

    monkeypatch.setattr(os, "unlink", killed)
    for number in range(6):
        folder = tmp_path / str(number) / "checkpoint-2"
        folder.mkdir(parents=True)
        for name in ("a.py", "b.json", "z.safetensors", marker):
            (folder / name).touch()
        left = number
        with contextlib.suppress(KeyboardInterrupt):
            begin_checkpoint(folder.parent, 2)
        left = 9
        begin_checkpoint(folder.parent, 2)
        assert [path.name for path in folder.iterdir()] == ["begun"]


def test_limits_that_would_lose_work_are_refused(tmp_path):
    with pytest.raises(ValueError, match="save_total_limit=2 or more"):
        DelstTrainingArguments(output_dir=str(tmp_path), save_total_limit=1)
    with pytest.raises(ValueError, match="save_total_limit=2 .*save_total_limit=3 or more"):
        DelstTrainingArguments(
            output_dir=str(tmp_path), save_total_limit=2, load_best_model_at_end=True, eval_strategy="steps"
        )
    with pytest.raises(ValueError, match="remove_unused_columns"):
        DelstTrainingArguments(output_dir=str(tmp_path), remove_unused_columns=True)


def losses_of(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_compiled_model_trains_to_the_same_weights(make_trainer, tiny_model):
    """By the cheap backend, which traces forward and backward as inductor does but generates no code."""
    for module in tiny_model.modules():  # a compiler draws other masks
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    eager = make_trainer("eager", logging_steps=1, max_steps=3)
    expected = losses_of(eager)
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager", "save_strategy": "steps", "save_steps": 3}
    compiled = make_trainer("compiled", logging_steps=1, max_steps=3, **options)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    found = losses_of(compiled)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0, "nothing was compiled"
    assert len(found) == 3 and np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    saved = DelstModel.from_pretrained(last_complete_checkpoint(compiled.args.output_dir)).state_dict()
    for name, tensor in eager.model.state_dict().items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("options", [{}, {"contrastive_micro_batch_size": 10}], ids=["plain", "gradient caching"])
def test_bf16_autocast_spares_the_head(make_trainer, tiny_model, options):
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = losses_of(make_trainer("float32", logging_steps=1, **options))
    trainer = make_trainer("bf16", logging_steps=1, bf16=True, save_strategy="steps", save_steps=6, **options)
    dtypes: dict[str, set[torch.dtype]] = {"query": set(), "projection": set()}
    layers = {"projection": trainer.model.visual_projection}
    layers["query"] = next(m for n, m in trainer.model.vision_model.named_modules() if isinstance(m, torch.nn.Linear))
    for name, layer in layers.items():
        layer.register_forward_hook(lambda module, inputs, output, name=name: dtypes[name].add(output.dtype))
    found = losses_of(trainer)
    assert dtypes == {"query": {torch.bfloat16}, "projection": {torch.float32}}
    assert len(found) == 6 and np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert found != expected
    assert all(value["exp_avg"].dtype == torch.float32 for value in trainer.optimizer.state.values())
    weights = load_file(os.path.join(last_complete_checkpoint(trainer.args.output_dir), "model.safetensors"))
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("options", [{"lora": True}, {"freeze_vision": True, "cache_features": True}], ids=str)
def test_what_fsdp_cannot_shard_is_refused(monkeypatch, tmp_path, options):
    """By the arguments, so that no feature is cached first."""
    DelstTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    name = "lora" if "lora" in options else "cache_features"
    with pytest.raises(ValueError, match=f"{name}=True trains few weights, which FSDP would not shard. Train with DDP"):
        DelstTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_orientations_are_the_eight_of_a_square():
    torch.manual_seed(0)
    patch = torch.arange(9.0).view(1, 1, 3, 3)
    turned = random_orientation(patch.expand(400, 1, 3, 3))
    seen = {tuple(t.flatten().tolist()) for t in turned}
    by_hand = {tuple(torch.rot90(p, k, (-2, -1)).flatten().tolist()) for p in (patch, patch.flip(-1)) for k in range(4)}
    assert seen == by_hand


@pytest.mark.parametrize(("side", "dtype"), [(5, torch.uint8), (8, torch.float32), (1, torch.uint8)], ids=str)
def test_each_orientation_is_its_mirrorings(side, dtype):
    patches = torch.arange(8 * 3 * side**2).remainder(251).to(dtype).view(8, 3, side, side)
    choices = torch.tensor([[(number >> axis) & 1 for number in range(8)] for axis in range(3)]).bool()
    turned = random_orientation(patches, choices.view(3, 8, 1, 1, 1))
    assert turned.dtype == dtype and turned.is_contiguous(memory_format=torch.channels_last)
    for number, (patch, found) in enumerate(zip(patches.numpy(), turned.numpy(), strict=True)):
        by_hand = patch.transpose(0, 2, 1) if number & 1 else patch
        by_hand = by_hand[:, :, ::-1] if number & 2 else by_hand
        by_hand = by_hand[:, ::-1] if number & 4 else by_hand
        assert np.array_equal(found, by_hand), number


def test_a_patch_that_is_not_square_cannot_be_turned():
    with pytest.raises(ValueError, match=r"Patches of 3 x 4 pixels cannot be turned.*--augment false"):
        random_orientation(torch.zeros(2, 3, 3, 4))


def gradients_of_one_rank(rank: int, folder: str, data: str) -> None:
    study = Study.load(data)
    arguments = DelstTrainingArguments(f"{folder}/out", use_cpu=True, report_to=[], disable_tqdm=True, augment=False)
    model = DelstModel.from_pretrained(folder)
    collator = DelstCollator(DelstProcessor.from_pretrained(folder), study.gene_names, study.slide_ids)
    trainer = DelstTrainer(model=model, args=arguments, train_dataset=study.spots, data_collator=collator)
    assert dist.get_world_size() == 2, dist.get_world_size()
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    wrapped.train()
    for module in wrapped.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = range(0, 14) if rank == 0 else range(14, 24)
    batch = trainer._prepare_inputs(collator([study.spots[3 * i] for i in rows]))
    loss = trainer.compute_loss(wrapped, batch)
    trainer.accelerator.backward(loss)
    found = {}

    def keep(name, loss):
        total = loss.detach().clone()
        dist.all_reduce(total)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[name] = {"loss": total / 2, "gradients": gradients}
        model.zero_grad()

    keep("plain", loss)
    # 3 micro-batches on one rank and 2 on the other.
    arguments.contrastive_micro_batch_size, trainer.current_gradient_accumulation_steps = 5, 1
    reduced = []

    def counted(state, bucket):
        reduced.append(1)
        return allreduce_hook(None, bucket)

    wrapped.register_comm_hook(None, counted)
    for _ in range(2):  # twice: the second step must find DDP as the first one did
        model.zero_grad()
        reduced.clear()
        loss = trainer.compute_loss(wrapped, batch)
        trainer.accelerator.backward(loss)
    keep("cached", loss)
    buckets = len(reduced)
    reduced.clear()
    arguments.contrastive_micro_batch_size = None
    trainer.accelerator.backward(trainer.compute_loss(wrapped, batch))
    assert buckets == len(reduced) > 0, (buckets, len(reduced))  # gradients are averaged once, not once a micro-batch
    if rank == 0:
        torch.save(found, f"{folder}/two_ranks.pt")
    # The group ends with the process: DDP, which would wait for its hook in Python, must not be the last to hold it.


def test_two_ranks_give_the_gradients_of_the_joined_batch(tiny_model, tiny_processor, toy_study, toy_folder, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    in_ranks(gradients_of_one_rank, str(tmp_path), str(toy_folder))
    found = torch.load(tmp_path / "two_ranks.pt")

    model = DelstModel.from_pretrained(tmp_path).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids)(
        [toy_study.spots[3 * i] for i in range(24)]
    )
    batch.pop("labels")
    loss = model(**batch).loss
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for way, atol in (("plain", 2e-6), ("cached", 1e-5)):
        torch.testing.assert_close(found[way]["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
        gradients = found[way]["gradients"]
        assert set(gradients) == set(expected) and len(expected) > 20
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=atol, msg=lambda m, n=name: n + m)
