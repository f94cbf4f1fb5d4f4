"""The assembly of a run: slides by the split of the dataset, the model that it trains, checkpoints that are continued."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from delst_hf import DataArguments, DelstModel, DelstProcessor, DelstTrainingArguments, ModelArguments, Study
from delst_hf.data.dataset import write_dataset
from delst_hf.data.splits import SplitRequest
from delst_hf.data.toy import make_toy_slide
from delst_hf.errors import explain
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.pretraining.run import assemble, build, choose_slides, pretrain, training_spots, validation_spots
from delst_hf.record import read_training_record, training_record

SMALL_VIT = json.dumps(
    {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
     "patch_size": 8}
)  # fmt: skip


def small_model(**options) -> ModelArguments:
    return ModelArguments(**{"vision_config": SMALL_VIT, "image_size": 32, "projection_dim": 8, **options})


def small_training(folder, **options) -> DelstTrainingArguments:
    defaults = {
        "max_steps": 1,
        "per_device_train_batch_size": 16,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    return DelstTrainingArguments(str(folder), **{**defaults, "save_strategy": "no", **options})


def make_study(folder, by: str | None, **sizes) -> Study:
    slides = (make_toy_slide(name, spots_per_side=4, image_px=300) for name in ("toy_A1", "toy_A2", "toy_B1", "toy_C1"))
    split = None if by is None else SplitRequest(by=by, **sizes)
    write_dataset(slides, folder, patch_um=112, patch_px=32, split=split)
    return Study.load(str(folder))


@pytest.fixture(scope="module")
def split_study(tmp_path_factory) -> Study:
    """Four slides of three patients, split by patient: C tests, B validates."""
    slides = {"test_slides": ("toy_C1",), "validation_slides": ("toy_B1",)}
    return make_study(tmp_path_factory.mktemp("split") / "split-by-patient", "patient", **slides)


def test_masks_that_leave_no_negatives_are_refused(split_study, tmp_path):
    data, model = DataArguments("d"), small_model()
    with pytest.raises(ValueError, match="mask_negatives='patient' leaves no negatives: all training spots are of one"):
        assemble(split_study, data, model, small_training(tmp_path, mask_negatives="patient"))
    trainer = assemble(split_study, data, model, small_training(tmp_path, mask_negatives="slide"))
    assert trainer.args.mask_negatives == "slide"
    both = DataArguments("d", train_slides="toy_A1,toy_B1", validation_slides="toy_C1")
    masked = assemble(split_study, both, model, small_training(tmp_path, mask_negatives="patient"))
    assert masked._group_of_slide.tolist() == [0, 0, 2, 3]


def test_the_split_of_the_dataset_decides_what_is_trained_on(split_study, caplog):
    assert choose_slides(split_study, DataArguments("d")) == (["toy_A1", "toy_A2"], ["toy_B1"])
    assert choose_slides(split_study, DataArguments("d", test_slides="toy_B1")) == (["toy_A1", "toy_A2"], [])
    caplog.set_level(logging.WARNING, "delst_hf")
    departing = choose_slides(split_study, DataArguments("d", train_slides="toy_A1,toy_A2,toy_C1"))
    assert departing == (["toy_A1", "toy_A2", "toy_C1"], ["toy_B1"])
    assert "toy_C1, which the dataset holds out" in caplog.text


def test_another_section_of_a_trained_patient_is_not_held_out(split_study):
    with pytest.raises(
        ValueError, match=r"\['toy_A2'\] are of patients who are trained on.*--same_patient_slides toy_A2"
    ):
        choose_slides(split_study, DataArguments("d", validation_slides="toy_A2"))
    named = DataArguments("d", validation_slides="toy_A2", same_patient_slides="toy_A2")
    assert choose_slides(split_study, named) == (["toy_A1"], ["toy_A2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_slides": "toy_A1", "test_slides": "toy_A1"}, "must not overlap"),
        ({"test_slides": "toy_A1,toy_A2,toy_B1,toy_C1"}, "at least one slide must be left"),
        ({"test_slides": "toy_Z9"}, r"No slide \['toy_Z9'\]"),
    ],
)
def test_slides_that_make_no_run(split_study, options, message):
    with pytest.raises(ValueError, match=message):
        choose_slides(split_study, DataArguments("d", **options))


def test_spots_that_are_split_one_by_one_are_trained_on_by_their_own_split(tmp_path):
    study = make_study(tmp_path / "split-by-spot", "spot", test=0.25, validation=0.25)
    train, validation = choose_slides(study, DataArguments("d"))
    assert train == study.slide_ids and validation == []
    assert set(training_spots(study, train)["split"]) == {"train"}
    assert len(training_spots(study, train)) == len(study.spots) // 2
    watched = validation_spots(study, validation)
    assert set(watched["split"]) == {"validation"} and len(watched) == len(study.spots) // 4


@pytest.fixture(scope="module")
def trained(split_study, tmp_path_factory):
    """A run of one step and its checkpoint folder."""
    trainer = assemble(split_study, DataArguments("runs/data", num_genes=40), small_model(),
                       small_training(tmp_path_factory.mktemp("run") / "out"))  # fmt: skip
    trainer.train()
    from delst_hf.pretraining.run import save_run

    return trainer, save_run(trainer)


def test_missing_genes_are_replaced_by_their_training_mean(split_study, trained):
    """By hand: log1p of counts per 10,000, mean over the spots of toy_A1 and toy_A2."""
    trainer, folder = trained
    counts = split_study.counts(split_study.subset(["toy_A1", "toy_A2"])).toarray().astype(np.float64)
    means = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).mean(0)
    vocabulary = trainer.processor.feature_extractor.vocabulary
    expected = [means[split_study.gene_names.index(name)] for name in vocabulary]
    saved = DelstModel.from_pretrained(folder).gene_model.missing_values
    np.testing.assert_allclose(saved.numpy(), expected, rtol=1e-5)
    assert (saved > 0).all()


def test_the_record_says_what_was_trained_on(trained):
    record = read_training_record(trained[1])
    assert record["train_slides"] == ["toy_A1", "toy_A2"] and record["validation_slides"] == ["toy_B1"]
    assert record["dataset"] == "data" and record["hyperparameters"]["projection_dim"] == 8
    assert record["data"]["patch_um"] == "112"
    images = [np.asarray(image) for image in trained[0].train_dataset.select_columns("image")["image"]]
    means = np.log(np.array([image.mean(axis=(0, 1)) for image in images]))
    red_to_green = means[:, 0] - means[:, 1]
    assert record["data"]["colours"]["mean"][0] == pytest.approx(red_to_green.mean(), abs=1e-3)


def test_the_whole_run_as_one_call(split_study, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "load", classmethod(lambda cls, path: split_study))
    folder = pretrain(DataArguments("d", num_genes=20), small_model(), small_training(tmp_path / "out"))
    assert folder == tmp_path / "out" / "model"
    with pytest.raises(ValueError, match="holds a run already"):
        pretrain(DataArguments("d"), small_model(), small_training(tmp_path / "out"))


def test_a_checkpoint_is_continued_with_new_genes(split_study, trained, tmp_path):
    model, processor = DelstModel.from_pretrained(trained[1]), DelstProcessor.from_pretrained(trained[1])
    known = processor.feature_extractor.vocabulary
    arguments = ModelArguments(init_from=str(trained[1]), cross_entailment_weight=0.5)
    trainer = assemble(split_study, DataArguments("d", num_genes=60), arguments, small_training(tmp_path))
    vocabulary = trainer.processor.feature_extractor.vocabulary
    assert vocabulary[: len(known)] == known and len(vocabulary) > len(known)
    assert trainer.model.config.gene_config.num_genes == len(vocabulary)
    assert trainer.model.config.cross_entailment_weight == 0.5
    for name, tensor in model.state_dict().items():
        begun = trainer.model.state_dict()[name]
        if begun.shape == tensor.shape:
            assert torch.equal(begun, tensor), name
    trainer.train()
    assert trainer.run_facts["train_slides"] == ["toy_A1", "toy_A2"]


def test_what_does_not_fit_a_checkpoint_is_refused(split_study, trained, tmp_path, toy_checkpoint):
    folder = str(trained[1])
    with pytest.raises(ValueError, match="--projection_dim 16 .the checkpoint has 8"):
        assemble(
            split_study,
            DataArguments("d"),
            ModelArguments(init_from=folder, projection_dim=16),
            small_training(tmp_path),
        )
    with pytest.raises(ValueError, match="is a DELST checkpoint, not a vision backbone.*--init_from"):
        assemble(split_study, DataArguments("d"), ModelArguments(vision=folder), small_training(tmp_path))
    processor, record = DelstProcessor.from_pretrained(folder), read_training_record(folder)
    record["data"]["patch_um"] = "400"
    other = save_checkpoint_folder(
        tmp_path / "wide", DelstModel.from_pretrained(folder), processor, training_record(**record)
    )
    with pytest.raises(ValueError, match="trained on patches of 400 um, but the dataset has patches of 112 um"):
        assemble(split_study, DataArguments("d"), ModelArguments(init_from=str(other)), small_training(tmp_path))


def test_a_checkpoint_of_another_species_or_of_none_is_refused_with_the_next_step(split_study, trained, tmp_path):
    model, processor = DelstModel.from_pretrained(trained[1]), DelstProcessor.from_pretrained(trained[1])
    extractor = processor.feature_extractor
    extractor.vocabulary[:] = [f"Mouse{i}" for i in range(len(extractor.vocabulary))]
    model.config.gene_config.vocabulary_hash = extractor.vocabulary_hash()
    other = save_checkpoint_folder(tmp_path / "mouse", model, processor, read_training_record(trained[1]))
    with pytest.raises(ValueError, match="knows none of the .* species or the kind of names.*without --init_from"):
        assemble(split_study, DataArguments("d"), ModelArguments(init_from=str(other)), small_training(tmp_path))
    with pytest.raises(
        ValueError, match=r"cannot read the checkpoint runs/none: .*Give the folder model/ of an earlier run"
    ):
        assemble(split_study, DataArguments("d"), ModelArguments(init_from="runs/none"), small_training(tmp_path))


def test_a_backbone_that_is_not_there_is_named_with_the_next_step(split_study, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the vision backbone me/none: .*hf download USER/NAME") as caught:
        assemble(split_study, DataArguments("d"), ModelArguments(vision="me/none"), small_training(tmp_path))
    assert "\n" not in explain(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_half_precision_without_a_gpu_is_refused_in_our_words(tmp_path):
    with pytest.raises(ValueError, match=r"bf16=True needs a GPU, and none was found.*--use_cpu true"):
        DelstTrainingArguments(str(tmp_path), bf16=True)
    assert DelstTrainingArguments(str(tmp_path), bf16=True, use_cpu=True).bf16
    for options in ({}, {"use_cpu": True}):
        with pytest.raises(ValueError, match=r"fp16=True needs a GPU, and none was found.*--bf16 true --use_cpu true"):
            DelstTrainingArguments(str(tmp_path), fp16=True, **options)


def test_a_process_takes_one_gpu_so_that_no_batch_is_torn(tmp_path):
    training = DelstTrainingArguments(str(tmp_path), per_device_train_batch_size=6)
    training._n_gpu = 4  # what torch would say of a machine with four
    assert (training.n_gpu, training.train_batch_size) == (1, 6)


@pytest.mark.parametrize("way", ["vision", "vision_config"])
def test_a_size_of_patches_that_the_backbone_would_not_cover_is_refused(tmp_path, way):
    vision = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    vision = {**vision, "intermediate_size": 16, "image_size": 32}
    ViTModel(ViTConfig(**vision)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    given = {"vision": str(tmp_path)} if way == "vision" else {"vision_config": json.dumps(vision)}
    small = {"gene_hidden_size": 8, "projection_dim": 4}
    with pytest.raises(ValueError, match="image_size is 50, .*squares of 8 px: 2 px of each .* such as 48 or 56"):
        build(ModelArguments(image_size=50, **given, **small), ["G1", "G2"])
    if way == "vision":
        _, processor = build(ModelArguments(image_size=48, **given, **small), ["G1", "G2"])
        assert processor.image_processor.size["height"] == 48


def test_a_dataset_folder_that_is_not_there_is_answered_with_what_is(tmp_path):
    for name in ("toy", "her2st"):
        (tmp_path / name / "spots").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no dataset folder .*did you mean .*/her2st\?"):
        Study.load(str(tmp_path / "her2stt"))
    with pytest.raises(FileNotFoundError, match=r"beside it there is .*/her2st, .*/toy"):
        Study.load(str(tmp_path / "nope"))


def test_the_memory_of_a_gpu_that_ran_out_names_the_option():
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20 GiB")
    assert "lower --contrastive_micro_batch_size" in explain(error)


def test_slides_of_an_earlier_run_are_not_held_out(split_study, trained, tmp_path):
    data = DataArguments("data", train_slides="toy_B1", test_slides="toy_A1")
    with pytest.raises(ValueError, match="--init_from was trained on the held-out slides .*toy_A1"):
        assemble(split_study, data, ModelArguments(init_from=str(trained[1])), small_training(tmp_path))
    data = DataArguments("data", train_slides="toy_B1", test_slides="toy_C1")
    trainer = assemble(split_study, data, ModelArguments(init_from=str(trained[1])), small_training(tmp_path))
    assert trainer.run_facts["train_slides"] == ["toy_B1", "toy_A1", "toy_A2"]


def test_a_backbone_that_cannot_be_put_back_is_not_left_out(split_study, tmp_path):
    with pytest.raises(ValueError, match="save_backbone=False leaves out the backbone"):
        assemble(split_study, DataArguments("d"), small_model(save_backbone=False), small_training(tmp_path))
