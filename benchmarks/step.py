"""Measure the training step against its bare backbone: how much of the hardware a run uses, and where the rest goes.

    python benchmarks/step.py                    on a GPU: ViT-S/16 and ViT-B/16, 224 px, batches 256 and 1,024, in bf16
    python benchmarks/step.py --small            the same code at a tiny size on any machine; its ratios mean nothing

*Share* is the time of the bare backbone (forward, backward, the same optimizer, the same autocast, the batch already on the
device) over that of a step of `DelstTrainer.train` with default options: the batch comes from pinned memory as uint8, is
copied, turned and normalised; two towers, all three losses, clipping, optimizer, log. Batches are synthetic and all different,
so reading files is left out (benchmarks/data_path.py). Also printed are: the time of all kernels and copies of both added up
(in the rest of a step the device waits for the host); each part outside the backbone, synchronised, which on a
GPU takes longer than it adds to a step; the number of operations; and the places where the host waited for the device
within one step, as torch reports them.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback, ViTConfig, ViTImageProcessorPil

from delst_hf import (
    DelstCollator,
    DelstConfig,
    DelstGeneFeatureExtractor,
    DelstModel,
    DelstProcessor,
    DelstTrainer,
    DelstTrainingArguments,
)
from delst_hf.data.collator import orientation_choices, random_orientation
from delst_hf.model.entailment import joint_entailment_losses
from delst_hf.model.losses import contrastive_loss

BACKBONES = {
    "ViT-S": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "ViT-B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "ViT-tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
BARS = {("ViT-S", 256): 0.95, ("ViT-S", 1024): 0.97, ("ViT-B", 256): 0.97, ("ViT-B", 1024): 0.97}
GENES = 2000


def synthetic_batch(batch_size: int, image_size: int, seed: int) -> dict[str, Any]:
    """Make a batch like the collator's, with patches as uint8, in pinned memory if there is a GPU."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (batch_size, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    values = torch.rand(batch_size, GENES, generator=generator)
    batch = {
        "pixel_values": pixels.permute(0, 3, 1, 2),
        "gene_values": torch.where(values > 0.8, values.mul(6), 0.0),
        "gene_mask": torch.ones(batch_size, GENES, dtype=torch.bool),
        "level": torch.randint(200, 4000, (batch_size,), generator=generator).float(),
        "slide_ids": torch.randint(0, 4, (batch_size,), generator=generator),
        "labels": torch.arange(batch_size),
    }
    if torch.cuda.is_available():
        batch = {name: value.pin_memory() for name, value in batch.items()}
    return {**batch, "return_loss": True}


class Loader:
    """Yield batches from pinned memory, each copied to the device one step ahead, as accelerate's loader does."""

    def __init__(self, batches: list[dict[str, Any]], steps: int, device: torch.device):
        self.batches, self.steps, self.device = batches, steps, device

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(self.steps):
            yield to_device(self.batches[step % len(self.batches)], self.device)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


class Stopwatch(TrainerCallback):
    """Measures seconds from the end of step `first` to the end of training, with the device synchronised at both ends."""

    def __init__(self, first: int, device: torch.device):
        self.first, self.device = first, device

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (self.first, args.max_steps):
            wait(self.device)
            self.start, self.end = (
                (time.perf_counter(), 0.0) if state.global_step == self.first else (self.start, time.perf_counter())
            )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_trainer(
    folder: str, backbone: str, image_size: int, batches: list[dict[str, Any]], steps: int
) -> DelstTrainer:
    names = [f"gene{i}" for i in range(GENES)]
    processor = DelstProcessor(
        ViTImageProcessorPil(size={"height": image_size, "width": image_size}), DelstGeneFeatureExtractor(names)
    )
    vision = ViTConfig(image_size=image_size, patch_size=16, **BACKBONES[backbone])
    size = len(batches[0]["level"])
    on_gpu = torch.cuda.is_available()
    trainer = DelstTrainer(
        model=DelstModel(DelstConfig(vision_config=vision, gene_config={"num_genes": GENES})),
        args=DelstTrainingArguments(
            output_dir=folder, per_device_train_batch_size=size, report_to=[], max_steps=steps, save_strategy="no",
            logging_steps=10**6, disable_tqdm=True, bf16=on_gpu, use_cpu=not on_gpu,
        ),
        train_dataset=Dataset.from_dict({"spot_index": list(range(size * steps))}),
        data_collator=DelstCollator(processor, names, ["a", "b", "c", "d"], defer_pixels=True),
        processing_class=processor,
    )  # fmt: skip
    trainer.get_train_dataloader = lambda: Loader(batches, steps, trainer.args.device)  # type: ignore[method-assign]
    return trainer


def time_training(trainer: DelstTrainer, warm: int, steps: int) -> float:
    """Return the seconds per step of `trainer.train`."""
    watch = Stopwatch(warm, trainer.args.device)
    trainer.add_callback(watch)
    trainer.train()
    return (watch.end - watch.start) / steps


def time_bare_backbone(trainer: DelstTrainer, batch: dict[str, Any], warm: int, steps: int) -> float:
    """Return the seconds per step of the backbone alone: forward, backward, the optimizer that the trainer uses for it."""
    model, device = trainer.model.vision_model.train(), trainer.args.device
    cls, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    optimizer = cls(model.parameters(), **options)
    pixels = trainer.data_collator.finish(to_device(batch, device))["pixel_values"]
    for step in range(warm + steps):
        if step == warm:
            wait(device)
            start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(pixels).last_hidden_state[:, 0].float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait(device)
    return (time.perf_counter() - start) / steps


class Kernels(TrainerCallback):
    """Profiles the device from the start of step `first` to the end of training."""

    def __init__(self, first: int):
        self.first, self.profile = first, profile(activities=[ProfilerActivity.CUDA])

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.first:
            torch.cuda.synchronize()
            self.profile.start()

    def on_train_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        self.profile.stop()


def device_seconds(measured: profile) -> float:
    """Return the total seconds of all kernels and copies of a profile."""
    return sum(event.device_time for event in measured.events() if event.device_type == DeviceType.CUDA) / 1e6


def print_kernels(trainer: DelstTrainer, batch: dict[str, Any]) -> None:
    """Print how long the device computes and copies in a step and in a step of the bare backbone.

    Args:
        trainer: A trainer of eight steps, not yet run.
        batch: A batch of its size.
    """
    watch = Kernels(4)
    trainer.add_callback(watch)
    trainer.train()
    time_bare_backbone(trainer, batch, 2, 1)
    with profile(activities=[ProfilerActivity.CUDA]) as bare:
        time_bare_backbone(trainer, batch, 0, 4)
    times = [1e3 * device_seconds(measured) / 4 for measured in (watch.profile, bare)]
    print(f"  kernels and copies: {times[0]:.1f} ms of a step, {times[1]:.1f} ms of the bare backbone")


def median_seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def parts(trainer: DelstTrainer, batch: dict[str, Any], repeats: int) -> dict[str, float]:
    """Return the seconds of each part of a step outside the backbone, forward and backward.

    Turning and normalising are also timed separately in torch, which a step uses where Triton's kernel does not run.
    """
    model, device, config = trainer.model.train(), trainer.args.device, trainer.model.config
    collator = trainer.data_collator
    batch = to_device(batch, device)
    size = len(batch["level"])
    autocast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # noqa: E731
    features = torch.randn(size, config.vision_feature_size, device=device, requires_grad=True)
    with autocast():
        genes = model.gene_model(batch["gene_values"], batch["gene_mask"], return_dict=True).pooler_output.detach()
        embeds = [
            model.embed_features(x, name).detach().requires_grad_()
            for x, name in ((features, "image"), (genes, "gene"))
        ]

    def gene_encoder() -> None:
        with autocast():
            output = model.gene_model(batch["gene_values"], batch["gene_mask"], return_dict=True).pooler_output
        output.sum().backward()

    def heads() -> None:
        with autocast():
            (model.embed_features(features, "image").sum() + model.embed_features(genes, "gene").sum()).backward()

    def contrastive() -> None:
        contrastive_loss(*embeds, model.logit_scale.exp(), model.curvature, config.geometry).backward()

    def entailment() -> None:
        cross, intra = joint_entailment_losses(*embeds, batch["level"], model.curvature, batch["slide_ids"])
        (cross + intra).backward()

    optimizer = trainer.create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    terms = [torch.zeros((), device=device) for _ in range(6)]
    runs = {
        "contrastive loss": contrastive,
        "entailment losses": entailment,
        "heads": heads,
        "gene encoder": gene_encoder,
        "turned, normalised": lambda: collator.finish(batch, orientation_choices(batch["pixel_values"])),
        "turned by torch": lambda: random_orientation(batch["pixel_values"]),
        "normalised by torch": lambda: collator.finish(batch),
        "clipping": lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0),
        "optimizer": optimizer.step,
        "clamping scalars": model.clamp_scalars,
        "sums for the log": lambda: [a + b for a, b in zip(terms[:3], terms[3:], strict=True)],
    }
    return {name: median_seconds(run, device, repeats) for name, run in runs.items()}


class Operations(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Watcher(TrainerCallback):
    """Counts, from step 2 to step 3, operations and waits of the host, by ``torch.cuda.set_sync_debug_mode``."""

    def __init__(self) -> None:
        self.operations, self.waits = Operations(), []
        self.stack = contextlib.ExitStack()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.waits = self.stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
            self.stack.enter_context(self.operations)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            self.stack.close()


def count_operations(trainer: DelstTrainer) -> Watcher:
    watcher = Watcher()
    trainer.add_callback(watcher)
    trainer.train()
    return watcher


def report(backbone: str, batch_size: int, image_size: int, warm: int, steps: int) -> None:
    batches = [synthetic_batch(batch_size, image_size, seed) for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, backbone, image_size, batches, warm + steps)
        if trainer.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step = time_training(trainer, warm, steps)
        memory = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else ""
        bare = time_bare_backbone(trainer, batches[0], warm, steps)
        print(
            f"{backbone}/16, {image_size} px, batch {batch_size}: step {1e3 * step:.1f} ms "
            f"({batch_size / step:,.0f} spots/s), bare backbone {1e3 * bare:.1f} ms{memory}"
        )
        share, limit = bare / step, BARS.get((backbone, batch_size), 0.0)
        verdict = "no bar" if not (limit and torch.cuda.is_available()) else "pass" if share >= limit else "MISS"
        print(f"  {verdict}  share of the bare backbone: {share:.3f} (at least {limit:g})")
        watcher = count_operations(make_trainer(folder, backbone, image_size, batches, 4))
        bare_operations = Operations()
        with bare_operations:
            time_bare_backbone(trainer, batches[0], 0, 1)
        # torch reports waits of the host on a GPU only; that it starts to report is a warning as well, but not a wait.
        found = [warning for warning in watcher.waits if "called a synchronizing" in str(warning.message)]
        print(f"  operations: {watcher.operations.count} in a step, {bare_operations.count} of the bare backbone")
        if torch.cuda.is_available():
            print_kernels(make_trainer(folder, backbone, image_size, batches, 8), batches[0])
            print(f"  {'pass' if not found else 'MISS'}  waits of the host in a step: {len(found)} (at most 0)")
            for warning in found:
                print(f"        {warning.filename}:{warning.lineno}")
        if batch_size <= 256:
            for name, value in sorted(parts(trainer, batches[0], 10).items(), key=lambda part: -part[1]):
                print(f"    {name:20s}{1e3 * value:9.3f} ms {100 * value / step:6.2f} % of a step", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=224, help="side of the patches, px")
    parser.add_argument("--backbones", nargs="+", default=["ViT-S", "ViT-B"], choices=BACKBONES)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="a tiny backbone and batch, to test that it runs")
    options = parser.parse_args()
    warm = 6
    if options.small:
        options.backbones, options.batch_sizes, options.image_size, options.steps, warm = ["ViT-tiny"], [16], 32, 2, 1
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, float32: no bar was measured")
    for backbone in options.backbones:
        for batch_size in options.batch_sizes:
            try:
                report(backbone, batch_size, options.image_size, warm, options.steps)
            except torch.cuda.OutOfMemoryError:
                print(f"{backbone}/16, batch {batch_size}: out of memory, not measured")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
