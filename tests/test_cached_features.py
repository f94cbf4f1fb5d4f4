import copy
import os

import numpy as np
import pytest
import torch
from faults import run_in_child

from delst_hf import DelstCollator, DelstTrainer, DelstTrainingArguments
from delst_hf.atomic.locks import BusyError, locked
from delst_hf.evaluation.embed import embed, embed_share
from delst_hf.pretraining.cached_features import FeatureRows, as_it_is, cached_features, without_backbone

pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture
def collator(tiny_processor, toy_study):
    return DelstCollator(
        tiny_processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes, defer_pixels=True
    )


def run(model, dataset, collator, folder, steps=4, resume=None, **options):
    arguments = DelstTrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, freeze_vision=True, augment=False,
        max_steps=steps, per_device_train_batch_size=24, **({"save_strategy": "no"} | options),
    )  # fmt: skip
    trainer = DelstTrainer(model=model, args=arguments, train_dataset=dataset, data_collator=collator)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("pooling", ["auto", "cls", "mean", "cls+mean"])
def test_heads_train_to_the_weights_of_the_frozen_run(tiny_model, toy_study, collator, tmp_path, pooling):
    config = tiny_model.config.to_dict() | {"vision_pooling": pooling, "vision_feature_size": None}
    tiny_model = type(tiny_model)(type(tiny_model.config).from_dict(config))
    for module in tiny_model.vision_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the cached features are those of the backbone in eval mode
    plain, cached = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    run(plain, toy_study.spots, collator, tmp_path)
    features = cached_features(cached, toy_study.spots, collator, tmp_path, progress=False)
    rows = FeatureRows(toy_study.spots, features, collator)
    with without_backbone(cached):
        run(cached, rows, as_it_is, tmp_path, batch_sampling="random")
        assert not any(name.startswith("vision_model") for name in cached.state_dict())
    assert not torch.equal(cached.visual_projection.weight, tiny_model.visual_projection.weight)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m)


def test_features_are_embedded_once_for_each_backbone_and_data(tiny_model, toy_study, collator, tmp_path, monkeypatch):
    features = cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False)
    np.testing.assert_array_equal(features, embed(tiny_model, toy_study.spots, collator, progress=False).features)
    calls = []
    monkeypatch.setattr(
        "delst_hf.pretraining.cached_features.embed_share",
        lambda *args, **options: calls.append(1) or embed_share(*args, **options),
    )
    np.testing.assert_array_equal(cached_features(tiny_model, toy_study.spots, collator, tmp_path), features)
    assert not calls
    cached_features(tiny_model, toy_study.subset(["toy_B1"]), collator, tmp_path, progress=False)
    assert len(calls) == 1
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.vision_model.layernorm.bias[0] += 1e-3
    cached_features(other, toy_study.spots, collator, tmp_path, progress=False)
    collator.processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False)
    assert len(calls) == 3 and len([name for name in os.listdir(tmp_path) if name.endswith(".npy")]) == 4


def test_a_cached_run_resumes_exactly(tiny_model, toy_study, collator, tmp_path):
    features = cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False)
    rows = FeatureRows(toy_study.spots, features, collator)
    whole, resumed = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    options = {"save_strategy": "steps", "save_steps": 3, "batch_sampling": "balanced"}
    with without_backbone(whole):
        run(whole, rows, as_it_is, tmp_path / "run", steps=6, **options)
    os.remove(tmp_path / "run" / "checkpoint-6" / "complete")
    with without_backbone(resumed):
        run(resumed, rows, as_it_is, tmp_path / "run", steps=6, resume=True, **options)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_mistakes(toy_study, collator, tmp_path):
    with pytest.raises(ValueError, match="3 features but 108 spots"):
        FeatureRows(toy_study.spots, np.zeros((3, 4), dtype=np.float32), collator)
    with pytest.raises(ValueError, match="add --freeze_vision true, or leave cache_features out"):
        DelstTrainingArguments(output_dir=str(tmp_path), cache_features=True)
    with pytest.raises(ValueError, match="leave --lora out"):
        DelstTrainingArguments(output_dir=str(tmp_path), cache_features=True, lora=True)


@pytest.mark.fault("features that are kept")
@pytest.mark.parametrize("fault", ["flipped", "cut", "no checksum"])
def test_features_that_are_not_as_they_were_written_are_made_again(
    tiny_model, toy_study, collator, tmp_path, caplog, fault
):
    expected = np.array(cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False))
    (path,) = tmp_path.glob("*.npy")
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(data if fault == "flipped" else data[:-400])
    if fault == "no checksum":
        path.with_suffix(".sha256").unlink()
    found = cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False)
    np.testing.assert_array_equal(found, expected)
    assert "does not match its checksum: the features are computed again" in caplog.text


@pytest.mark.fault("features that are kept")
def test_one_run_at_a_time_makes_them(tiny_model, toy_study, collator, tmp_path):
    cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False)
    (path,) = tmp_path.glob("*.npy")
    path.unlink()
    with locked(path), pytest.raises(BusyError, match="another run is writing to this file of features"):
        cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False)


@pytest.mark.fault("features that are kept")
def test_features_beyond_a_quota_are_refused_and_leave_nothing(tiny_model, toy_study, collator, tmp_path):
    """In a child, since a limit of the size of files cannot be taken back."""

    def work():
        with pytest.raises(OSError, match=r"The features need .*File too large.*leave --cache_features out"):
            cached_features(tiny_model, toy_study.spots, collator, tmp_path, progress=False)

    assert run_in_child(work, file_limit=4096) == 0
    assert not list(tmp_path.glob("features-*"))


def test_a_backbone_with_batch_norm_is_known_by_its_counters_too(tiny_model, toy_study, collator, tmp_path):
    """MobileNetV2 and ResNets count batches in numbers without a dimension."""
    tiny_model.vision_model.register_buffer("num_batches_tracked", torch.tensor(3))
    spots = toy_study.subset(["toy_B1"])
    features = cached_features(tiny_model, spots, collator, tmp_path, progress=False)
    assert features.shape[0] == len(spots)
    tiny_model.vision_model.num_batches_tracked += 1
    cached_features(tiny_model, spots, collator, tmp_path, progress=False)
    assert len(list(tmp_path.glob("features-*.npy"))) == 2
