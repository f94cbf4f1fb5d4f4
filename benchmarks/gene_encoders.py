"""Measure time and memory of a training step of the gene encoders, forward and backward.

    python benchmarks/gene_encoders.py --genes 2000 5000 --batch 128 1024

Memory is what autograd keeps for the backward pass, counted tensor by tensor, so it does not depend on the machine. The last
column is the memory that one token per gene, (batch, genes, width), would take.
"""

import argparse
import time

import torch

from delst_hf import DelstGeneConfig, DelstGeneModel


def measure(encoder: str, genes: int, batch: int, width: int, checkpointing: bool, repeats: int) -> tuple[float, float]:
    """Return the median seconds of a step, and the MB kept for its backward pass."""
    torch.manual_seed(0)
    model = DelstGeneModel(DelstGeneConfig(encoder=encoder, num_genes=genes, hidden_size=width)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    values, mask = torch.rand(batch, genes), torch.rand(batch, genes) > 0.1
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(values, mask).pooler_output.square().mean()
    loss.backward()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(values, mask).pooler_output.square().mean().backward()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2], sum(kept.values()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", default=[2000, 5000])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print("| encoder | genes | batch | s per step | MB kept | MB of tokens |\n|---|---|---|---|---|---|")
    for genes in arguments.genes:
        for batch in arguments.batch:
            tokens = 4 * batch * genes * arguments.width / 1e6
            for encoder, checkpointing in (("mlp", False), ("set", False), ("set", True)):
                seconds, kept = measure(encoder, genes, batch, arguments.width, checkpointing, arguments.repeats)
                name = f"{encoder}, checkpointed" if checkpointing else encoder
                print(f"| {name} | {genes} | {batch} | {seconds:.3f} | {kept:.0f} | {tokens:.0f} |", flush=True)


if __name__ == "__main__":
    main()
