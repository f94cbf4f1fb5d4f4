"""What a training step asks of a device beside the backbone, counted on a CPU so that it does not grow unseen."""

import copy
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from delst_hf import DelstCollator, DelstTrainer, DelstTrainingArguments

# On an accelerator each of these makes the host wait for the device.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "item", "equal", "is_nonzero"}

MOST_OPERATIONS = 1280
"""Of a step beside forward and backward pass of the backbone, optimizer included; 1,260 when it was set."""


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.devices = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__.split(".")[-1]] += 1
        result = func(*args, **(kwargs or {}))
        tensors = [
            x for x in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(x, torch.Tensor)
        ]
        self.devices |= {tensor.device.type for tensor in tensors}
        return result


class CountOneStep(TrainerCallback):
    def __init__(self):
        self.operations = Operations()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.operations.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.operations.__exit__(None, None, None)


@pytest.fixture(scope="module")
def trainer(toy_study, tmp_path_factory):
    from conftest import make_tiny_model, make_tiny_processor

    processor = make_tiny_processor(toy_study)
    return DelstTrainer(
        model=make_tiny_model(len(processor.feature_extractor.vocabulary)),
        args=DelstTrainingArguments(
            output_dir=str(tmp_path_factory.mktemp("operations")), use_cpu=True, report_to=[], disable_tqdm=True,
            max_steps=3, per_device_train_batch_size=24, save_strategy="no", logging_steps=100,
        ),
        train_dataset=toy_study.subset(["toy_A1", "toy_A2"]),
        data_collator=DelstCollator(
            processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes, defer_pixels=True
        ),
        processing_class=processor,
    )  # fmt: skip


@pytest.fixture(scope="module")
def step(trainer) -> Operations:
    counter = CountOneStep()
    trainer.add_callback(counter)
    trainer.train()
    return counter.operations


def test_a_step_asks_nothing_that_the_host_waits_for(step):
    assert {name: count for name, count in step.counts.items() if name in WAITS} == {}
    assert step.devices == {"cpu"}


def test_the_optimizer_is_one_call_per_group_of_parameters(step, trainer):
    groups = [group for group in trainer.optimizer.param_groups if group["params"]]
    assert step.counts["_fused_adamw_"] == len(groups) == 5
    assert not {"addcdiv_", "_foreach_addcdiv_", "lerp_", "_foreach_lerp_"} & set(step.counts)


def test_a_step_has_no_more_operations_than_it_had(step, trainer):
    backbone = Operations()
    model, size = copy.deepcopy(trainer.model.vision_model).train(), trainer.model.config.vision_config.image_size
    pixels = torch.rand(24, 3, size, size)
    with backbone:
        model(pixels).last_hidden_state[:, 0].sum().backward()
    outside = sum(step.counts.values()) - sum(backbone.counts.values())
    assert outside <= MOST_OPERATIONS, step.counts.most_common(12)
