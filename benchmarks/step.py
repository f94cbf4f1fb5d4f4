"""Where the time of a training step goes: the backbone's forward and backward pass, and all the rest.

    python benchmarks/step.py                                        # ViT-S/16 at 224 px, batch 256
    python benchmarks/step.py --image-size 64 --steps 2              # small, where cores are few

Bar: at most 5 % of a step outside the backbone's forward and backward pass, loading included: without workers on a CPU, where
they would take the cores of the step, with 8 of them (--workers) beside a GPU. On a CPU the seconds are those that the process
used, so that other load on the machine does not count.

The step is `DelstTrainer`'s own, so this needs the package with its dependencies, `datasets` among them. On a machine that has
torch and transformers only, run contrastive.py and scaling.py.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from transformers import ViTConfig, ViTImageProcessorPil

from delst_hf import (
    DelstCollator,
    DelstConfig,
    DelstGeneFeatureExtractor,
    DelstModel,
    DelstProcessor,
    DelstTrainer,
    DelstTrainingArguments,
)
from delst_hf.data.dataset import write_dataset
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide

VIT_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
BAR = 0.05


class Clock:
    """Adds up the seconds between marks, by name of what came before the mark."""

    def __init__(self, cuda: bool):
        self.cuda, self.seconds = cuda, defaultdict(float)
        self.last = self.now()

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def mark(self, name: str) -> None:
        now = self.now()
        self.seconds[name] += now - self.last
        self.last = now


def make_trainer(folder: Path, size: int, batch: int, workers: int) -> DelstTrainer:
    """A trainer of a ViT-S on synthetic slides of 400 spots with patches of that size."""
    slides = (make_toy_slide(name, spots_per_side=20, num_genes=1000, image_px=1200) for name in ("toy_A1", "toy_B1"))
    write_dataset(slides, folder / "data", patch_um=2.0 * size, patch_px=size, outside="drop")
    study = Study.load(str(folder / "data"))
    processor = DelstProcessor(
        ViTImageProcessorPil(size={"height": size, "width": size}), DelstGeneFeatureExtractor(study.gene_names)
    )
    vision = ViTConfig(image_size=size, patch_size=16, **VIT_S)
    arguments = DelstTrainingArguments(
        output_dir=str(folder / "run"), per_device_train_batch_size=batch, report_to=[], max_steps=1,
        dataloader_num_workers=workers, dataloader_persistent_workers=workers > 0,
    )  # fmt: skip
    return DelstTrainer(
        model=DelstModel(DelstConfig(vision_config=vision, gene_config={"num_genes": len(study.gene_names)})),
        args=arguments,
        train_dataset=study.spots,
        data_collator=DelstCollator(
            processor, study.gene_names, study.slide_ids, study.measured_genes, defer_pixels=True
        ),
    )


def profile(trainer: DelstTrainer, steps: int) -> dict[str, float]:
    """Seconds of each part, of one step, after a step that is not counted."""
    model, device = trainer.model.train(), trainer.args.device
    optimizer = trainer.create_optimizer()
    clock = Clock(device.type == "cuda")
    forward = model.vision_model.forward

    def timed_forward(*args, **kwargs):
        clock.mark("heads, gene encoder, losses: forward")
        output = forward(*args, **kwargs)
        # Reached when all that comes after the backbone is done with its backward pass.
        output.last_hidden_state.register_hook(lambda gradient: clock.mark("heads, gene encoder, losses: backward"))
        clock.mark("backbone: forward")
        return output

    model.vision_model.forward = timed_forward
    loader = trainer.get_train_dataloader()
    batches = iter(loader)
    for step in range(steps + 1):
        if step == 1:
            clock.seconds.clear()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        clock.mark("loading")
        inputs = trainer._prepare_inputs(batch)
        clock.mark("normalising on the device")
        loss = trainer.compute_loss(model, inputs)
        clock.mark("heads, gene encoder, losses: forward")
        loss.backward()
        clock.mark("backbone: backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.clamp_scalars()
        model.zero_grad()
        clock.mark("clipping and optimiser")
    return {name: seconds / steps for name, seconds in clock.seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=224, help="side of the patches, px")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU")
    parser.add_argument(
        "--workers", type=int, default=8 if torch.cuda.is_available() else 0, help="worker processes that load"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), arguments.image_size, arguments.batch_size, arguments.workers)
        parts = profile(trainer, arguments.steps)
    total = sum(parts.values())
    device = trainer.args.device.type
    print(f"ViT-S/16 at {arguments.image_size} px, batch {arguments.batch_size}, {device}: {total:.2f} s a step")
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"  {name:40s} {seconds:9.3f} s {100 * seconds / total:6.2f} %")
    outside = 1 - (parts["backbone: forward"] + parts["backbone: backward"]) / total
    print(f"{'pass' if outside <= BAR else 'MISS'}  outside the backbone: {100 * outside:.2f} % (bar {100 * BAR:g} %)")


if __name__ == "__main__":
    main()
