"""What only a CUDA device can show; skipped without one. `make gpu` runs it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from delst_hf import DelstCollator, DelstModel, DelstTrainer, DelstTrainingArguments
from delst_hf.data import turned_kernel
from delst_hf.model import replay
from delst_hf.model.contrastive_fused import is_fused
from delst_hf.model.entailment import joint_entailment_losses
from delst_hf.model.losses import contrastive_loss
from delst_hf.prediction import PatchChoice, predict_slide

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture
def make_trainer(tiny_model, tiny_processor, toy_study, tmp_path):
    def make(output: str = "run", **options):
        options = {"max_steps": 6, "per_device_train_batch_size": 24, "save_strategy": "no"} | options
        return DelstTrainer(
            model=copy.deepcopy(tiny_model),
            args=DelstTrainingArguments(
                output_dir=str(tmp_path / output), report_to=[], disable_tqdm=True, seed=3, bf16=True, **options
            ),
            train_dataset=toy_study.subset(["toy_A1", "toy_A2"]),
            data_collator=DelstCollator(
                tiny_processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes, defer_pixels=True
            ),
            processing_class=tiny_processor,
        )

    return make


def test_kernels_agree_with_float64():
    assert is_fused(torch.zeros(64, 8, device="cuda")), "the kernels of Triton do not serve this device"
    script = Path(__file__).with_name("fused_errors.py")
    done = subprocess.run([sys.executable, str(script), "cuda"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    print(done.stderr[-1000:], json.dumps(errors, indent=1))
    assert {case: error for case, error in errors.items() if not error < 1e-4} == {}


def test_patches_are_turned_and_normalised_as_by_torch_to_the_last_bit():
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device="cuda")
    assert turned_kernel.kernel_serves(pixels), "the kernel of Triton does not serve this device"
    script = Path(__file__).with_name("turned_pixels.py")
    done = subprocess.run([sys.executable, str(script), "cuda"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(results, indent=1))
    assert results.pop("no patch")["different"] == 0
    expected = {"served": 1, "different": 0, "same order": True}
    assert {case: found for case, found in results.items() if found != expected} == {}


def test_a_step_turns_its_patches_by_the_kernel(make_trainer, monkeypatch):
    calls, launch = [], turned_kernel.turned_and_normalised
    monkeypatch.setattr(turned_kernel, "turned_and_normalised", lambda *given: calls.append(1) or launch(*given))
    make_trainer(max_steps=2).train()
    assert len(calls) == 2


def test_the_loss_of_a_gpu_is_that_of_a_cpu():
    x = torch.randn(300, 64).div(8)
    y = x + 0.1 * torch.randn(300, 64)
    for geometry in ("lorentz", "euclidean", "cosine"):
        on_cpu, on_gpu = (contrastive_loss(x.to(d), y.to(d), 14.3, 1.0, geometry).cpu() for d in ("cpu", "cuda"))
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-5, atol=1e-6)


def test_graphs_of_losses_agree_with_the_plain_call(monkeypatch):
    monkeypatch.setattr(replay, "_graphs", {})
    torch.manual_seed(0)
    for rows in (24, 300, 24):
        image, gene = (torch.randn(rows, 64, device="cuda").div(8).requires_grad_() for _ in range(2))
        curvature, scale = (torch.tensor(x, device="cuda", requires_grad=True) for x in (0.7, 14.3))
        level = torch.randint(200, 4000, (rows,), device="cuda").float()
        slides = torch.arange(rows, device="cuda") % 3

        def losses():
            both = joint_entailment_losses(image, gene, level, curvature, slides)  # noqa: B023
            terms = contrastive_loss(image, gene, scale, curvature), *both  # noqa: B023
            total = terms[0] + 0.2 * terms[1] + 3.0 * terms[2]
            return terms, torch.autograd.grad(total, [image, gene, curvature, scale])  # noqa: B023

        found, again = losses(), losses()
        assert replay._serves["all"] and replay._graphs, "CUDA graphs do not serve this device"
        monkeypatch.setitem(replay._serves, "all", False)
        expected = losses()
        monkeypatch.setitem(replay._serves, "all", True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-6)
    assert len(replay._graphs) == 4


def test_no_step_waits_for_the_device(make_trainer):
    trainer = make_trainer(max_steps=5, logging_steps=100)
    step = trainer.training_step

    def watched(*args, **kwargs):
        if trainer.state.global_step == 3:
            torch.cuda.set_sync_debug_mode("error")
        return step(*args, **kwargs)

    trainer.training_step = watched
    clip = trainer._get_learning_rate  # the first thing after the optimizer's step

    def unwatched():
        torch.cuda.set_sync_debug_mode("default")
        return clip()

    trainer._get_learning_rate = unwatched
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.global_step == 5


def test_resumed_equals_uninterrupted(make_trainer):
    whole = make_trainer("whole", save_strategy="steps", save_steps=3)
    whole.train()
    again = make_trainer("whole", save_strategy="steps", save_steps=3)
    again.train(resume_from_checkpoint=str(Path(again.args.output_dir) / "checkpoint-3"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_a_gradient_that_is_not_finite_changes_no_weight(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=6)
    forward = DelstModel.forward

    def poisoned(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if trainer.state.global_step == 3:
            outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(DelstModel, "forward", poisoned)
    with pytest.raises(ValueError, match=r"Step 4: the loss or its gradient is not finite"):
        trainer.train()
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_compiled_whole(tiny_model):
    model = copy.deepcopy(tiny_model).cuda().eval()
    config = model.config
    inputs = {
        "pixel_values": torch.randn(4, 3, config.vision_config.image_size, config.vision_config.image_size).cuda(),
        "gene_values": torch.rand(4, config.gene_config.num_genes).cuda(),
    }
    torch.compiler.reset()
    with torch.no_grad():
        expected, output = model(**inputs), torch.compile(model, fullgraph=True)(**inputs)
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.logits_per_image, expected.logits_per_image, rtol=1e-2, atol=1e-2)


def test_a_slide_is_predicted_as_on_a_cpu(toy_heads, slide_file, tmp_path, monkeypatch):
    """Batches overlap on a GPU: none may be taken before it is there, or land in the place of another."""
    path, mpp = slide_file
    found = {}
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda device=device: device == "cuda")
        output = tmp_path / f"{device}.h5ad"
        model, choice = str(toy_heads / "expression"), PatchChoice(mpp=mpp)
        predict_slide(model, path, output, choice=choice, batch_size=4, num_workers=2, progress=False)
        found[device] = anndata.read_h5ad(output)
    np.testing.assert_allclose(found["cuda"].X, found["cpu"].X, atol=1e-3)
    np.testing.assert_allclose(found["cuda"].obsm["X_delst"], found["cpu"].obsm["X_delst"], atol=1e-3)
