"""--unpaired_slides: the loss by hand, which slides are taken, resuming, two processes, and what is refused."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import in_ranks

from delst_hf import DelstConfig, DelstModel, DelstProcessor
from delst_hf.data.collator import DelstCollator
from delst_hf.data.dataset import write_dataset
from delst_hf.data.splits import SplitRequest
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide
from delst_hf.hub.card import model_card
from delst_hf.model.losses import unpaired_objective
from delst_hf.pretraining.arguments import DataArguments, DelstTrainingArguments, ModelArguments
from delst_hf.pretraining.checked_trainer import NotFiniteError
from delst_hf.pretraining.run import assemble, open_study, save_run
from delst_hf.pretraining.trainer import DelstTrainer
from delst_hf.pretraining.unpaired import UnpairedSpots, choose_unpaired

VISION = '{"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}'


pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of A (training) and B (test); without an image of A, B, C and D."""
    goal = tmp_path_factory.mktemp("unpaired") / "data"
    slides = [make_toy_slide(f"toy_{name}", spots_per_side=4, num_genes=40, image_px=128) for name in
              ("A1", "A2", "B1", "B2", "C1", "D1")]  # fmt: skip
    slides = [slide if slide.slide_id[-2:] in ("A1", "B1") else replace(slide, image=None) for slide in slides]
    write_dataset(slides, goal, patch_px=32, split=SplitRequest("patient", test_slides=("toy_B1",)))
    return goal


@pytest.fixture(scope="module")
def study(folder):
    return Study.load(folder)


def arguments(output, **options):
    training = {"max_steps": 4, "per_device_train_batch_size": 6, "logging_steps": 1, "save_strategy": "no", **options}
    return DelstTrainingArguments(str(output), report_to=[], disable_tqdm=True, use_cpu=True, **training)


def trainer_of(folder, output, *, data=None, model=None, **options) -> DelstTrainer:
    chosen = DataArguments(str(folder), **{"unpaired_slides": "all", "num_genes": 20, **(data or {})})
    sizes = {"vision_config": VISION, "image_size": 32, "gene_hidden_size": 16, "projection_dim": 8, **(model or {})}
    training = arguments(output, **options)
    return assemble(open_study(chosen, training), chosen, ModelArguments(**sizes), training)


def test_the_loss_is_that_of_the_hand():
    """Two spots in the cosine geometry: similarities 1 and 0 by the diagonal .6 and .8, scale 2."""
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    config = SimpleNamespace(geometry="cosine")
    found = unpaired_objective(config, (first, second), torch.tensor(2.0), torch.tensor(1.0))
    # Logits, rows the first halves: [[1.2, 0], [1.6, 2]]; InfoNCE over rows and over columns.
    rows = math.log(math.exp(1.2) + 1) - 1.2 + math.log(math.exp(1.6) + math.exp(2)) - 2
    columns = math.log(math.exp(1.2) + math.exp(1.6)) - 1.2 + math.log(1 + math.exp(2)) - 2
    assert found["loss"].item() == pytest.approx((rows + columns) / 4, abs=1e-6)
    assert set(found) == {"loss", "unpaired_contrastive_loss"}


def test_the_order_by_level_stays_within_a_slide():
    """Two spots per slide, on a ray: the one of fewer genes is nearer to the origin on slide 0, and further away on slide 1."""
    config = SimpleNamespace(geometry="lorentz", intra_entailment_weight=0.5, intra_parent="fewer", intra_min_level_ratio=1.25,
                             intra_aperture_scale=1.0, min_radius=0.1, entailment="cone", radius_floor=0.0)  # fmt: skip
    wholes = torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    level, slides = torch.tensor([10.0, 20.0, 10.0, 20.0]), torch.tensor([0, 0, 1, 1])
    halves = (wholes.clone(), wholes.clone())
    found = unpaired_objective(
        config, halves, torch.tensor(1.0), torch.tensor(1.0), wholes=wholes, level=level, slide_ids=slides
    )
    # On the ray the child is seen at angle 0, inside the cone; a child nearer to the origin at pi, and w = asin(2 * .1 / 1).
    outside = math.pi - math.asin(0.2)
    assert found["unpaired_entailment_loss"].item() == pytest.approx(outside / 2, abs=1e-4)
    assert found["loss"] == found["unpaired_contrastive_loss"] + 0.5 * found["unpaired_entailment_loss"]


def choose(study, names, train=("toy_A1",), validation=(), **data):
    training = DelstTrainingArguments("run")
    return choose_unpaired(study, DataArguments("data", unpaired_slides=names, **data), training, train, validation)


def test_all_are_those_of_patients_who_are_not_held_out(study, caplog):
    assert choose(study, "all") == ["toy_A2", "toy_C1", "toy_D1"]
    assert "Unpaired slides of held-out patients are left out: toy_B2." in caplog.text
    assert choose(study, "all", same_patient_slides="toy_B1") == ["toy_A2", "toy_B2", "toy_C1", "toy_D1"]
    assert choose(study, "toy_D1, toy_A2") == ["toy_A2", "toy_D1"]
    assert choose(study, "all", train=["toy_B1"], validation=["toy_A1"]) == ["toy_B2", "toy_C1", "toy_D1"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("toy_B2", r"\['toy_B2'\] are of patients with held-out slides \(toy_B1\).*--same_patient_slides"),
        ("toy_A1", r"\['toy_A1'\] of --unpaired_slides have an image.*without an image here: \['toy_A2'"),
        ("toy_X1", r"No slide \['toy_X1'\]"),
    ],
)
def test_slides_that_cannot_be_unpaired_are_refused(study, names, message):
    with pytest.raises(ValueError, match=message):
        choose(study, names)


def test_a_dataset_without_such_slides_is_refused(toy_study):
    with pytest.raises(ValueError, match="No slide is left for --unpaired_slides all.*--without-image"):
        choose(toy_study, "all", train=["toy_A1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive_micro_batch_size": 2}, "unpaired_slides='all' cannot be combined with contrastive_micro_batch_size"),
        ({"views": "nested"}, "cannot be combined with views='nested'"),
        ({"data": {"levels": "niche"}}, "cannot be combined with levels='niche'"),
        ({"data": {"streaming": True}}, "unpaired_slides needs all unpaired spots beside the stream"),
        ({"data": {"train_slides": "toy_A2"}}, r"Slides \['toy_A2'\] have no image"),
        ({"per_device_train_batch_size": 49}, "--unpaired_slides give 48 spots, fewer than a joined batch of 49"),
        ({"unpaired_weight": -1.0}, "unpaired_weight=-1.0 is not possible"),
        ({"data": {"unpaired_slides": "toy_C1"}, "mask_negatives": "slide", "per_device_train_batch_size": 2},
         "mask_negatives='slide' leaves no negatives"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_before_any_work(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(folder, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def collator(study, tiny_processor):
    return DelstCollator(tiny_processor, study.gene_names, study.slide_ids, study.measured_genes)


def test_each_spot_comes_once_an_epoch_in_halves_of_its_measured_genes(study, collator, tmp_path):
    spots = study.with_level(study.subset(["toy_A2", "toy_C1"]))
    spots = UnpairedSpots(spots, collator, arguments(tmp_path, per_device_train_batch_size=8))
    batches = [spots.batch(position) for position in range(8)]
    for epoch in (batches[:4], batches[4:]):
        values = torch.cat([batch["gene_values"] for batch in epoch])
        assert len(torch.unique(values, dim=0)) == len(
            torch.unique(torch.cat([b["gene_values"] for b in batches[:4]]), dim=0)
        )
        assert torch.cat([batch["slide_ids"] for batch in epoch]).bincount().tolist() == [0, 16, 0, 0, 16]
    assert not torch.equal(batches[0]["level"], batches[4]["level"])
    for batch in batches:
        first, second = batch["half_masks"]
        assert torch.equal(first | second, batch["gene_mask"]) and not (first & second).any()
        assert 0.3 < first.float().mean() / batch["gene_mask"].float().mean() < 0.7
    again = spots.batch(3)
    assert all(torch.equal(again[name], batches[3][name]) for name in again)


def test_gene_side_alone_is_moved_by_them_and_the_terms_are_logged(folder, tmp_path):
    """With a weight of 0 the run is the one without; with one, the image side differs only through the shared scalars."""
    runs = {}
    for name, data, weight in (("none", {"unpaired_slides": ""}, 1.0), ("zero", {}, 0.0), ("one", {}, 1.0)):
        trainer = trainer_of(folder, tmp_path / name, data=data, unpaired_weight=weight, max_steps=1, max_grad_norm=0.0)
        before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer.train()
        runs[name] = {key: value - before[key] for key, value in trainer.model.state_dict().items()}
        logged = trainer.state.log_history[0]
        assert ("unpaired_contrastive_loss" in logged) == (name != "none") == ("unpaired_entailment_loss" in logged)
        if name == "one":
            assert arguments(tmp_path).unpaired_weight == 0.3
            terms = logged["unpaired_contrastive_loss"] + 0.1 * logged["unpaired_entailment_loss"]
            assert trainer.model.config.intra_entailment_weight == 0.1
            paired = (
                logged["contrastive_loss"]
                + 0.2 * logged["cross_entailment_loss"]
                + 0.1 * logged["intra_entailment_loss"]
            )
            assert logged["loss"] == pytest.approx(paired + terms, rel=1e-4)
    vision = [key for key in runs["one"] if key.startswith("vision_model.") and runs["none"][key].any()]
    gene = [key for key in runs["one"] if key.startswith("gene_model.") and runs["none"][key].any()]
    assert vision and gene
    assert all(torch.equal(runs["zero"][key], runs["none"][key]) for key in runs["none"])
    assert all(torch.equal(runs["one"][key], runs["none"][key]) for key in vision)
    assert any(not torch.equal(runs["one"][key], runs["none"][key]) for key in gene)


def test_vocabulary_and_means_are_those_of_the_pairs(folder, tmp_path):
    first, second = (trainer_of(folder, tmp_path / name, data={"unpaired_slides": name}) for name in ("", "all"))
    vocabularies = [trainer.processor.feature_extractor.vocabulary for trainer in (first, second)]
    assert vocabularies[0] == vocabularies[1]
    assert torch.equal(first.model.gene_model.missing_values, second.model.gene_model.missing_values)
    assert len(first.train_dataset) == len(second.train_dataset) == 16


def test_a_resumed_run_equals_the_uninterrupted_one(folder, tmp_path):
    options = {"max_steps": 6, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(folder, tmp_path / "whole", **options)
    whole.train()
    halted = trainer_of(folder, tmp_path / "halted", **options)
    halted.add_callback(Halt())
    halted.train()
    resumed = trainer_of(folder, tmp_path / "halted", **options)
    resumed.train(resume_from_checkpoint=True)
    assert halted.state.global_step == 4 and resumed.state.global_step == 6
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def Halt():
    from transformers import TrainerCallback

    class AtFour(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    return AtFour()


def test_the_last_look_at_the_loss_counts_the_unpaired_spots_too(folder, tmp_path, monkeypatch):
    """Weights whose loss of pairs is finite and whose loss of unpaired spots is not are not kept."""
    trainer = trainer_of(folder, tmp_path / "run", max_steps=1)

    def objective(*args, **options):
        terms = unpaired_objective(*args, **options)
        return {**terms, "loss": terms["loss"] * float("nan")} if trainer.state.global_step else terms

    monkeypatch.setattr("delst_hf.pretraining.unpaired.unpaired_objective", objective)
    with pytest.raises(NotFiniteError, match="The weights after step 1 are finite, but the loss or its gradient"):
        trainer.train()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("data", "model", "options"),
    [
        ({}, {"geometry": "cosine"}, {"batch_sampling": "balanced"}),
        ({}, {"geometry": "euclidean", "gene_encoder": "set"}, {"bf16": True}),
        (
            {"level_key": "shuffled", "train_slides": "toy_A1,toy_B1"},
            {},
            {"mask_negatives": "patient"},
        ),
        ({}, {}, {"freeze_vision": True, "cache_features": True}),
    ],
    ids=["cosine, balanced", "euclidean, set, bf16", "shuffled, masked", "cached"],
)
def test_it_goes_with_other_options(folder, tmp_path, data, model, options):
    trainer = trainer_of(folder, tmp_path / "run", data=data, model=model, max_steps=2, **options)
    trainer.train()
    logged = trainer.state.log_history[1]
    assert logged["unpaired_contrastive_loss"] > 0
    assert ("unpaired_entailment_loss" in logged) == (trainer.model.config.geometry == "lorentz")


def test_the_record_and_the_card_name_them_and_evaluation_counts_them_as_seen(folder, tmp_path):
    from delst_hf.commands.evaluate import choose_slides

    trainer = trainer_of(folder, tmp_path / "run", max_steps=1)
    trainer.train()
    saved = save_run(trainer)
    record = json.loads((saved / "training.json").read_text())
    assert record["train_slides"] == ["toy_A1"] and record["unpaired_slides"] == ["toy_A2", "toy_C1", "toy_D1"]
    card = model_card(saved, "me/run", given={"license": "mit"})
    assert "gene side alone (no image) toy_A2, toy_C1, toy_D1" in card
    empty = SimpleNamespace(train_slides="", test_slides="", allow_seen_slides=False)
    assert choose_slides(empty, Study.load(folder), record) == (["toy_A1"], ["toy_B1"])


def test_evaluation_refuses_a_slide_without_an_image(folder, tmp_path, capsys):
    from delst_hf.cli import main

    trainer = trainer_of(folder, tmp_path / "run", max_steps=1)
    trainer.train()
    saved = str(save_run(trainer))
    assert main(["evaluate", saved, str(folder), "--test-slides", "toy_B2"]) == 2
    assert "Slides ['toy_B2'] have no image" in capsys.readouterr().err
    assert main(["predict", str(folder), saved, "--slides", "toy_B2", "--output", str(tmp_path / "p.parquet")]) == 2
    assert main(["embed", saved, str(folder), "--slides", "toy_B2", "--output", str(tmp_path / "e")]) == 2
    assert capsys.readouterr().err.count("Slides ['toy_B2'] have no image") >= 1


def gradients_of_one_rank(rank: int, folder: str, data: str, size: int) -> None:
    """Write the loss and the gradients of 16 pairs over all processes, dropout left out, to ranks_<processes>.pt."""
    study = Study.load(data)
    args = DelstTrainingArguments(
        f"{folder}/out", use_cpu=True, report_to=[], disable_tqdm=True, augment=False,
        per_device_train_batch_size=size, unpaired_weight=2.0,
    )  # fmt: skip
    model, processor = DelstModel.from_pretrained(folder), DelstProcessor.from_pretrained(folder)
    collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
    spots = UnpairedSpots(study.with_level(study.subset(["toy_A2", "toy_C1"])), collator, args)
    pairs = study.subset(["toy_A1"])
    trainer = DelstTrainer(model=model, args=args, train_dataset=pairs, data_collator=collator, unpaired=spots)
    world = dist.get_world_size() if dist.is_initialized() else 1
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    wrapped.train()
    for module in wrapped.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = range(16)[rank * 16 // world : (rank + 1) * 16 // world]
    loss = trainer.compute_loss(wrapped, trainer._prepare_inputs(collator([pairs[i] for i in rows])))
    trainer.accelerator.backward(loss)
    total = loss.detach().clone()
    if world > 1:
        dist.all_reduce(total)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.save({"loss": total / world, "gradients": gradients}, f"{folder}/ranks_{world}.pt")


def test_two_processes_give_the_gradients_of_the_joined_batch(folder, tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    in_ranks(gradients_of_one_rank, str(tmp_path), str(folder), 6)
    gradients_of_one_rank(0, str(tmp_path), str(folder), 12)
    found = {world: torch.load(tmp_path / f"ranks_{world}.pt", weights_only=True) for world in (1, 2)}
    torch.testing.assert_close(found[2]["loss"], found[1]["loss"], rtol=1e-5, atol=1e-6)
    assert found[1]["gradients"].keys() == found[2]["gradients"].keys()
    for name, gradient in found[1]["gradients"].items():
        torch.testing.assert_close(found[2]["gradients"][name], gradient, rtol=1e-3, atol=2e-6, msg=name)
    assert any(np.abs(value.numpy()).max() > 0 for name, value in found[1]["gradients"].items() if "gene_model" in name)


def test_configuration_has_the_weights_that_the_tests_take():
    config = DelstConfig(vision_config=DelstModel.config_class().vision_config)
    assert (config.cross_entailment_weight, config.intra_entailment_weight) == (0.2, 0.1)
