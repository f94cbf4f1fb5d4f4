"""Measure how a training step grows with the batch and with processes at small sizes, and model it beyond.

    python benchmarks/scaling.py                      # measured and modelled
    python benchmarks/scaling.py --sizes 512,1024,2048 --processes 1,2,4
    python benchmarks/scaling.py --model-only

Heads and losses are measured on features, as in cached-feature training; the backbone is left out (its cost is flops times
spots). Seconds are CPU seconds of one process, on a CPU with one thread; processes communicate by gloo.
"""

import argparse
import math
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import ViTConfig

from delst_hf import DelstConfig, DelstModel

GENES, WIDTH, DIM = 1000, 384, 512
# Assumptions of the model, each to be replaced by your own measurement.
# Measured on one NVIDIA H200 by benchmarks/step.py at batch 1,024, bf16, 224 px: forward, backward and optimizer of the bare
# backbone, 145 ms for ViT-S/16 and 344 ms for ViT-B/16 (35e9 forward flops); larger ones are taken to be as fast as ViT-B.
SMALL_FLOPS, GPU_FLOPS = 194e12, 313e12
STEP_REST = 7e-3  # seconds of a step outside backbone and communication, measured there: 7.3 and 6.6 ms
LOSS_FLOPS = 88e12  # contrastive loss, measured there by benchmarks/contrastive.py: 18.7 ms at N=16,384, D=512
LINK = 200e9  # bytes a second and GPU between GPUs of one machine, sustained
DOLLARS = 2.5  # a GPU hour
ROW_BYTES = 60e3  # a 224-px JPEG and the counts of a spot
CORE_ROWS = 3000  # rows a second and core, benchmarks/data_path.py
BACKBONES = {
    "ViT-S/16": (22e6, 9.2e9),
    "ViT-L/16": (304e6, 123e9),
    "ViT-g/14": (1.13e9, 580e9),
}  # parameters, forward flops


def make_batch(rows: int, rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return {
        "features": torch.randn(rows, WIDTH, generator=generator),
        "gene_values": torch.rand(rows, GENES, generator=generator),
        "level": torch.randint(50, 5000, (rows,), generator=generator).float(),
        "slide_ids": torch.randint(0, 20, (rows,), generator=generator),
    }


def worker(rank: int, ranks: int, sizes: list[int], repeats: int, address: str, results) -> None:
    """Run one process of the steps over each joined batch; the first reports CPU seconds and bytes kept for backward."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", address, rank=rank, world_size=ranks)
    torch.manual_seed(0)
    small = ViTConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=6, image_size=16)
    model = DelstModel(DelstConfig(vision_config=small, gene_config={"num_genes": GENES}, projection_dim=DIM)).train()
    for total in sizes:
        batch = make_batch(total // ranks, rank)
        _, kept = one_step(model, batch, ranks > 1)
        seconds = [one_step(model, batch, ranks > 1)[0] for _ in range(repeats)]
        if rank == 0:
            results.put((statistics.median(seconds), kept))
    if ranks > 1:
        dist.destroy_process_group()


def one_step(model: DelstModel, batch: dict[str, torch.Tensor], across_ranks: bool) -> tuple[float, int]:
    """Return CPU seconds of a forward and backward pass, and the bytes that the graph kept in between."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        image = model.embed_features(batch["features"], "image")
        gene = model.embed_features(model.gene_model(batch["gene_values"]).pooler_output, "gene")
        loss = model.loss_terms(image, gene, batch["level"], batch["slide_ids"], across_ranks=across_ranks)["loss"]
    loss.backward()
    return time.process_time() - start, kept


def measured(sizes: list[int], processes: list[int], repeats: int) -> None:
    """Print a row per joined batch and a column per number of processes."""
    print(f"Heads and losses, {GENES} genes, dim {DIM}: CPU seconds and MB kept for backward of one process")
    columns = []
    for ranks in processes:
        results = mp.get_context("spawn").Queue()
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(worker, (ranks, sizes, repeats, f"file://{folder}/meet", results), nprocs=ranks)
        columns.append([results.get() for _ in sizes])
    print(f"{'joined batch':>12s}" + "".join(f"{f'{ranks} processes':>24s}" for ranks in processes))
    for row, total in enumerate(sizes):
        cells = (f"{seconds:14.2f} s {kept / 1e6:5.0f} MB" for seconds, kept in (column[row] for column in columns))
        print(f"{total:12d}" + "".join(f"{cell:>24s}" for cell in cells))


def gathered_bytes(total: int, ranks: int) -> float:
    """Return the bytes a process receives per step, float32: genes for the contrastive loss, both for entailment, and back."""
    return 2 * 3 * total * DIM * 4 * (ranks - 1) / ranks


def step_seconds(backbone: str, total: int, ranks: int, cached: bool) -> dict[str, float]:
    """Return the parts of a step of `total` spots on `ranks` GPUs."""
    parameters, forward = BACKBONES[backbone]
    passes = 4 if cached else 3
    return {
        "towers": passes * forward * total / ranks / (SMALL_FLOPS if backbone == "ViT-S/16" else GPU_FLOPS),
        "loss": 12 * total**2 * DIM / ranks / LOSS_FLOPS,
        "rest": STEP_REST,
        "gather": gathered_bytes(total, ranks) / LINK,
        "gradients": 2 * 4 * parameters * (ranks - 1) / ranks / LINK,
    }


def modelled(spots: float, epochs: int, ranks: int) -> None:
    print(f"\n{spots:.3g} spots, {epochs} epochs, {ranks} GPUs; reading {spots * ROW_BYTES / 1e12:.2g} TB an epoch")
    print(f"{'backbone':10s} {'joined batch':>12s} {'s a step':>9s} {'towers':>7s} {'loss':>7s} {'rest':>7s} {'gather':>7s} "
          f"{'gradients':>9s} {'hours':>8s} {'dollars':>9s} {'cores':>6s}")  # fmt: skip
    for backbone in BACKBONES:
        for total in (1024, 16384, 65536):
            parts = step_seconds(backbone, total, ranks, cached=total > 1024)
            step = sum(parts.values())
            hours = epochs * spots / total * step / 3600
            shares = " ".join(f"{100 * parts[name] / step:6.1f}%" for name in ("towers", "loss", "rest", "gather"))
            print(f"{backbone:10s} {total:12d} {step:9.3f} {shares} {100 * parts['gradients'] / step:8.1f}% {hours:8.1f} "
                  f"{hours * ranks * DOLLARS:9.0f} {math.ceil(total / step / CORE_ROWS):6d}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="256,512,1024,2048", help="comma-separated sizes of the joined batch")
    parser.add_argument("--processes", default="1,2,4", help="comma-separated numbers of processes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.model_only:
        measured(
            [int(size) for size in arguments.sizes.split(",")],
            [int(number) for number in arguments.processes.split(",")],
            arguments.repeats,
        )
    modelled(4e6, epochs=15, ranks=8)
    modelled(4e8, epochs=15, ranks=64)
    modelled(4e8, epochs=15, ranks=8)


if __name__ == "__main__":
    main()
