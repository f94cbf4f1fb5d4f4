"""`--levels niche`: trains, resumes to the bit, is evaluated by the size of its spots, and refuses what it is not made for."""

import json
import os
import shutil

import pytest
import torch

from delst_hf import DataArguments, DelstTrainingArguments, ModelArguments, Study
from delst_hf.data.dataset import write_dataset
from delst_hf.data.toy import make_toy_slides
from delst_hf.model.modeling_delst import DelstModel
from delst_hf.pretraining.niche import Niches
from delst_hf.pretraining.run import assemble, save_run

VISION = json.dumps({"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 16, "patch_size": 8})  # fmt: skip
pytestmark = pytest.mark.usefixtures("without_curves")

QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide") / "data"
    slides = make_toy_slides(3, spots_per_side=4, image_px=400)
    write_dataset(slides, folder, patch_um=336, patch_px=96)
    return Study.load(folder)


@pytest.fixture
def make(wide, tmp_path):
    def make(name, data=(), model=(), **training):
        data = DataArguments(
            str(wide.folder.path), **{"levels": "niche", "train_slides": "toy_A1,toy_A2", "num_genes": 20, **dict(data)}
        )
        model = ModelArguments(
            **{"vision_config": VISION, "image_size": 32, "gene_hidden_size": 16, "projection_dim": 8, **dict(model)}
        )
        options = {"max_steps": 6, "per_device_train_batch_size": 8, **QUIET, **training}
        return assemble(wide, data, model, DelstTrainingArguments(str(tmp_path / name), **options))

    return make


def test_a_run_is_saved_with_the_size_of_its_spots(make):
    trainer = make("plain", {"validation_slides": "toy_B1"}, eval_strategy="steps", eval_steps=6)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["contrastive_loss"] > 0 and "intra_entailment_loss" in entry
    assert any("eval_contrastive_loss" in entry for entry in trainer.state.log_history)
    folder = save_run(trainer)
    facts = json.loads((folder / "training.json").read_text())["data"]
    assert (facts["patch_um"], facts["patch_px"]) == ("112", "32")


@pytest.mark.parametrize("geometry", ["euclidean", "cosine"])
def test_the_controls_without_cones_train(make, geometry):
    trainer = make(geometry, model={"geometry": geometry}, max_steps=1)
    trainer.train()
    assert "intra_entailment_loss" not in trainer.state.log_history[0]


def test_a_killed_run_goes_on_to_the_bit(make):
    options = {"save_strategy": "steps", "save_steps": 3, "stain_jitter": "light"}
    whole = make("whole", **options)
    whole.train()
    killed = shutil.copytree(whole.args.output_dir, whole.args.output_dir + "-killed")
    shutil.rmtree(os.path.join(killed, "checkpoint-6"))
    resumed = make("whole-killed", **options)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    halfway = DelstModel.from_pretrained(os.path.join(killed, "checkpoint-3"))
    assert not torch.equal(whole.model.visual_projection.weight, halfway.visual_projection.weight)
    with pytest.raises(ValueError, match="niche_spots was 6 and is 3"):
        make("whole-killed", {"niche_spots": 3}, **options).train(resume_from_checkpoint=True)


def test_spot_and_niche_are_turned_alike(make, wide):
    trainer = make("turned")
    pixels = torch.rand(8, 3, 4, 4)
    trainer.model.train()
    turned = trainer._prepare_inputs({"pixel_values": pixels, "niche_pixel_values": pixels.clone()})
    assert torch.equal(turned["pixel_values"], turned["niche_pixel_values"])
    assert not torch.equal(turned["pixel_values"], pixels)


def test_held_out_spots_are_no_neighbours(make, wide):
    trainer = make("held", {"validation_slides": "toy_B1"})
    train = {spot for niche in trainer.train_dataset["niche"] for spot in niche}
    held_out = {spot for niche in trainer.eval_dataset["niche"] for spot in niche}
    assert train == set(trainer.train_dataset["spot_index"])
    assert held_out == set(trainer.eval_dataset["spot_index"]) and not train & held_out


@pytest.mark.parametrize(
    ("data", "training", "message"),
    [
        ({"niche_spots": 0}, {}, "niche_spots=0 must be 1 or more"),
        ({"spot_um": 400.0}, {}, "spot_um=400 must be above 0 and below the side of a niche, .*stored patches: 336 um"),
        ({"features": "somewhere"}, {}, "which features does not support"),
        ({}, {"views": "nested"}, "which views='nested' does not support"),
        (
            {"streaming": True},
            {"contrastive_micro_batch_size": 4},
            "streaming and contrastive_micro_batch_size do not",
        ),
        ({}, {"cache_features": True, "freeze_vision": True}, "which cache_features does not support"),
    ],
)
def test_what_is_not_made_for_two_levels_is_refused(make, data, training, message):
    with pytest.raises(ValueError, match=message):
        make("refused", data, **training)


def test_patches_of_several_sizes_are_refused(wide, tmp_path, monkeypatch):
    monkeypatch.setitem(wide.slides, "patch_um", [336.0, 112.0, 112.0])
    with pytest.raises(ValueError, match=r"those of these slides are \[112.0, 336.0\] um"):
        Niches(wide, ["toy_A1", "toy_A2"], DataArguments("x", levels="niche"), DelstTrainingArguments(str(tmp_path)))
