"""FSDP 2 on two real gloo processes against DDP on the same two."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from conftest import make_tiny_model, make_tiny_processor
from ranks import in_ranks
from torch.distributed import fsdp
from torch.distributed.tensor import DTensor

from delst_hf import DelstCollator, DelstModel, DelstProcessor, DelstTrainer, DelstTrainingArguments
from delst_hf.data.study import Study
from delst_hf.pretraining.checkpoints import last_complete_checkpoint
from delst_hf.pretraining.sharding import prepare_for_sharding


def work_of_one_rank(rank: int, way: str, folder: str, data: str, options: dict) -> None:
    """Train in one of two processes.

    accelerate shards on accelerators only and takes DDP on a CPU without a word; torch itself shards on a CPU as well. So the
    processes of a CPU are called those of a GPU at the one moment when accelerate decides.
    """
    if way == "fsdp":
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
        os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    resume = options.pop("resume", None)
    arguments = DelstTrainingArguments(
        use_cpu=True, report_to=[], disable_tqdm=True, augment=False, max_steps=3, per_device_train_batch_size=12,
        logging_steps=1, save_strategy="steps", save_steps=2, seed=3, **options)  # fmt: skip
    assert arguments.world_size == 2 == dist.get_world_size()
    if way == "fsdp":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    study = Study.load(data)
    model = DelstModel.from_pretrained(folder)
    for module in model.modules():  # micro-batches draw masks of their own
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    collator = DelstCollator(DelstProcessor.from_pretrained(folder), study.gene_names, study.slide_ids)
    trainer = DelstTrainer(model=model, args=arguments, train_dataset=study.spots, data_collator=collator)
    trainer.train(resume_from_checkpoint=resume)
    sharded = [name for name, p in model.named_parameters() if isinstance(p.data, DTensor) or isinstance(p, DTensor)]
    assert (len(sharded) > 40) == (way == "fsdp"), sharded
    trained = trainer.trained_model()
    assert way == "ddp" or (trained is None) == (rank == 1)
    if rank == 0:
        trained.save_pretrained(f"{arguments.output_dir}/model")
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        Path(f"{arguments.output_dir}/log.json").write_text(json.dumps(log))
    dist.barrier()


@pytest.fixture(scope="module")
def train(toy_folder, toy_study, tmp_path_factory):
    """Trains on two processes; returns the output folder, what was logged, and the trained weights."""
    folder = tmp_path_factory.mktemp("sharding")
    processor = make_tiny_processor(toy_study)
    processor.save_pretrained(folder)
    make_tiny_model(len(processor.feature_extractor.vocabulary)).save_pretrained(folder)

    def run(way: str, name: str, **options) -> tuple[Path, list[dict], dict[str, torch.Tensor]]:
        output = folder / name
        in_ranks(work_of_one_rank, way, str(folder), str(toy_folder), {"output_dir": str(output), **options})
        log = json.loads((output / "log.json").read_text())
        return output, log, DelstModel.from_pretrained(output / "model").state_dict()

    return run


def assert_same_run(found, expected):
    for here, there in zip(found[1], expected[1], strict=True):
        for key in ("loss", "contrastive_loss", "intra_entailment_loss", "grad_norm", "curvature", "logit_scale"):
            assert here[key] == pytest.approx(there[key], rel=1e-4), key
    assert set(found[2]) == set(expected[2])
    for name, tensor in expected[2].items():
        torch.testing.assert_close(found[2][name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_fsdp_trains_as_ddp_does_and_resumes(train):
    expected = train("ddp", "ddp")
    found = train("fsdp", "fsdp")
    assert len(found[1]) == 3
    assert_same_run(found, expected)
    checkpoint = Path(last_complete_checkpoint(found[0]))
    assert checkpoint.name == "checkpoint-3" and not list(checkpoint.glob("_fsdp*.py"))
    loaded = DelstModel.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in found[2].items())
    # Gradient caching sends several backward passes through the shards; and the run is killed after its second step.
    (checkpoint / "complete").unlink()
    cached = train("fsdp", "fsdp", contrastive_micro_batch_size=5, resume=True)
    assert_same_run((None, cached[1][-1:], cached[2]), (None, expected[1][-1:], expected[2]))


def test_the_first_version_is_refused(tiny_model):
    with pytest.raises(ValueError, match="fsdp_version=1 is not supported. Use 2"):
        prepare_for_sharding(tiny_model, SimpleNamespace(fsdp_version=1))


def test_torch_2_6_is_refused_with_the_next_step(tiny_model, monkeypatch):
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, *, mesh=None: module)
    with pytest.raises(ValueError, match=r"FSDP needs torch 2\.7 or later.*or train with DDP"):
        prepare_for_sharding(tiny_model, SimpleNamespace(fsdp_version=2))
