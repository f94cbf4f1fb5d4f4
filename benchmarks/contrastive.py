"""Measure time and memory of the contrastive loss and of the forms that it replaces, side by side in one run.

    python benchmarks/contrastive.py             the bars of docs/performance.md, on CPU and, if there is one, on GPU
    python benchmarks/contrastive.py --quick     the same code at a tiny size, in seconds; its ratios mean nothing

Forward + backward in the Lorentz geometry, float32, with gradients for both embeddings, logit scale and curvature:

    ours         delst_hf.model.losses.contrastive_loss
    two-matrix   what published hyperbolic models do: for each direction a matrix of Lorentzian inner products, its acosh,
                 and a cross entropy, all by autograd
    one-matrix   the same with one matrix for both directions
    products     the four matrix products that a loss without the matrix needs: logits, logits again, two gradients

Each repeat runs all forms one after the other; a ratio is the median over the repeats of the ratio within a repeat. "Bytes
kept" are those that autograd saves for the backward pass, every storage counted once, inputs included.
"""

import argparse
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from delst_hf.model.lorentz import exp_map0
from delst_hf.model.losses import contrastive_loss

MIB = 2**20
CPU_SECONDS = False  # --cpu-seconds
TRIED_BLOCKS = [(64, 64, 32, 4, 3), (64, 64, 32, 4, 2), (128, 64, 32, 8, 3), (128, 128, 32, 8, 3), (64, 128, 32, 8, 3)]
"""Blocks that --kernels tries: rows, columns, coordinates at a time, warps and stages."""


def inner_products(x: Tensor, y: Tensor, curvature: Tensor) -> Tensor:
    """Return ``-c <x, y>_L`` of every pair, by its definition."""
    x_time = (1 / curvature + (x * x).sum(-1)).sqrt()
    y_time = (1 / curvature + (y * y).sum(-1)).sqrt()
    return curvature * (x_time[:, None] * y_time[None, :] - x @ y.T)


def logits_by_acosh(x: Tensor, y: Tensor, scale: Tensor, curvature: Tensor) -> Tensor:
    return -scale * torch.acosh(inner_products(x, y, curvature).clamp_min(1 + 1e-7)) / curvature.sqrt()


def two_matrix_loss(x: Tensor, y: Tensor, scale: Tensor, curvature: Tensor) -> Tensor:
    target = torch.arange(len(x), device=x.device)
    by_image, by_gene = logits_by_acosh(x, y, scale, curvature), logits_by_acosh(y, x, scale, curvature)
    return (F.cross_entropy(by_image, target) + F.cross_entropy(by_gene, target)) / 2


def one_matrix_loss(x: Tensor, y: Tensor, scale: Tensor, curvature: Tensor) -> Tensor:
    target = torch.arange(len(x), device=x.device)
    logits = logits_by_acosh(x, y, scale, curvature)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ours": contrastive_loss,
    "two-matrix": two_matrix_loss,
    "one-matrix": one_matrix_loss,
}


def peak_of_this_process() -> int:
    """Return the peak memory of this process in bytes; on Linux not ru_maxrss, which a child inherits from its parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_inputs(size: int, dim: int, device: str) -> list[Tensor]:
    """Make matching pairs near radius 1 whose loss is neither chance nor 0, logit scale 1/0.07 and curvature 1."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(size, dim, generator=generator)
    gene = image + 1.5 * torch.randn(size, dim, generator=generator)
    points = [exp_map0(1.0 * v / v.norm(dim=-1, keepdim=True).mean(), 1.0) for v in (image, gene)]
    return [tensor.to(device).requires_grad_() for tensor in (*points, torch.tensor(1 / 0.07), torch.tensor(1.0))]


def loss_and_backward(name: str, inputs: list[Tensor]) -> list[Tensor]:
    loss = LOSSES[name](*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def four_products(inputs: list[Tensor], chunk_size: int = 8192) -> None:
    """Compute the four products in slices of rows, so that they fit in memory where the tiled loss does."""
    x, y = (tensor.detach() for tensor in inputs[:2])
    grad_y = torch.zeros_like(y)
    for rows in x.split(chunk_size):
        for _ in range(2):
            table = rows @ y.T
        _ = table @ y
        grad_y.addmm_(table.T, rows)


def bytes_kept(name: str, inputs: list[Tensor]) -> int:
    storages: dict[int, int] = {}
    kept = []  # alive until counted, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _loss = LOSSES[name](*inputs)
    return sum(storages.values())


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.process_time if CPU_SECONDS and device == "cpu" else time.perf_counter
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(size: int, dim: int, repeats: int, device: str, names: list[str]) -> dict[str, list[float]]:
    """Return the seconds of each form in each repeat, the forms interleaved, after one repeat to warm up."""
    inputs = make_inputs(size, dim, device)
    runs: dict[str, Callable[[], object]] = {name: lambda name=name: loss_and_backward(name, inputs) for name in names}
    runs["products"] = lambda: four_products(inputs)
    table: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            elapsed = seconds(run, device)
            if repeat:
                table[name].append(elapsed)
    return table


def ratio(table: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(table[over], table[under], strict=True))


def bar(text: str, value: float, limit: float, unit: str = "") -> None:
    print(f"  {'pass' if value <= limit else 'MISS'}  {text}: {value:.3g}{unit} (at most {limit:g}{unit})", flush=True)


def peak_memory(size: int, dim: int, threads: int) -> int:
    """Return the peak memory in bytes of a fresh process, torch included, that computes one loss and its backward pass."""
    command = [sys.executable, __file__, "--peak-of", str(size), "--dim", str(dim), "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report_cpu(options: argparse.Namespace) -> None:
    size, dim = options.size, options.dim
    print(
        f"CPU, {torch.get_num_threads()} threads, N={size}, D={dim}, float32, {options.repeats} repeats"
        + (", CPU seconds" if CPU_SECONDS else "")
    )
    table = measure(size, dim, options.repeats, "cpu", list(LOSSES))
    inputs = make_inputs(size, dim, "cpu")
    kept = {name: bytes_kept(name, inputs) for name in LOSSES}
    for name, times in table.items():
        memory = f"{kept[name] / MIB:10.1f} MiB kept" if name in kept else ""
        print(f"  {name:<12}{statistics.median(times):9.3f} s {memory}")
    bar("time, ours / two-matrix", ratio(table, "ours", "two-matrix"), 0.40)
    print(f"        time, ours / one-matrix: {ratio(table, 'ours', 'one-matrix'):.3g}")
    bar("bytes kept, ours / two-matrix", kept["ours"] / kept["two-matrix"], 0.025)
    bar("time, ours / products", ratio(table, "ours", "products"), 1.8)
    doubled = bytes_kept("ours", make_inputs(2 * size, dim, "cpu")) / kept["ours"]
    bar("bytes kept, 2N / N", doubled, 2.1)
    results, expected = (loss_and_backward(name, inputs) for name in ("ours", "two-matrix"))
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(results, expected, strict=True))
    bar("largest difference of loss and gradients from two-matrix", worst, 1e-3)
    base, peak = peak_memory(1, dim, options.threads), peak_memory(options.large, dim, options.threads)
    half = peak_memory(options.large // 2, dim, options.threads)
    print(f"Whole process, N={options.large}")
    bar("peak memory", peak / 2**30, 2.0, " GiB")
    bar("peak memory beyond N=1, N against N/2", (peak - base) / max(half - base, 1), 2.2)


def peak_on_gpu(name: str, inputs: list[Tensor]) -> float:
    """Return the MiB that one loss with its backward pass needs beside its inputs."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_and_backward(name, inputs)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def error_on_gpu(inputs: list[Tensor]) -> float:
    """Return the largest relative error of the loss and its gradients against tiles in float64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    pairs = zip(loss_and_backward("ours", inputs), loss_and_backward("ours", exact), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def report_gpu(options: argparse.Namespace) -> None:
    """Print a line per batch size and form, and the bars: against the one-matrix form up to 4,096 spots, then the products."""
    print(
        f"GPU, {torch.cuda.get_device_name()}, D={options.dim}, float32, without TF32 where the library multiplies it"
    )
    torch.backends.cuda.matmul.allow_tf32 = False  # for the other forms; ours sets it by itself
    peaks: dict[tuple[str, int], float] = {}
    for size in options.gpu_sizes:
        repeats = 30 if size <= 4096 else 7
        names = [name for name in LOSSES if name == "ours" or size <= 16384]
        table = measure(size, options.dim, repeats, "cuda", names)
        inputs = make_inputs(size, options.dim, "cuda")
        print(f"  N={size}")
        for name, times in table.items():
            peaks[name, size] = peak_on_gpu(name, inputs) if name in LOSSES else 0.0
            memory = f"{peaks[name, size]:10.0f} MiB peak" if name in LOSSES else ""
            print(f"    {name:<12}{1e3 * statistics.median(times):9.3f} ms {memory}", flush=True)
        if size <= 8192:
            bar("error of ours against float64", error_on_gpu(inputs), 1e-4)
        if size <= 4096:
            bar("time, ours / one-matrix", ratio(table, "ours", "one-matrix"), 1.0)
        elif size >= 16384:
            bar("time, ours / four products in float32", ratio(table, "ours", "products"), 1.0)
            if half := peaks.get(("ours", size // 2)):
                bar("peak memory of ours, N / N/2", peaks["ours", size] / half, 2.2)
        del inputs
        torch.cuda.empty_cache()


def report_kernels(options: argparse.Namespace) -> None:
    """Print the time of each kernel of ours at the largest size, and of the loss with other blocks of pairs."""
    from torch.profiler import ProfilerActivity, profile

    from delst_hf.model import contrastive_fused as fused
    from delst_hf.model import replay

    for size in (1024, max(options.gpu_sizes)):
        inputs = make_inputs(size, options.dim, "cuda")
        loss_and_backward("ours", inputs)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            loss_and_backward("ours", inputs)
            torch.cuda.synchronize()
        kernels = sorted(profiler.key_averages(), key=lambda event: -event.device_time_total)
        count = sum(event.count for event in kernels)
        print(f"Kernels of ours, N={size}: {count} launches, {sum(e.device_time_total for e in kernels) / 1e3:.3f} ms")
        for event in kernels[:12]:
            print(f"    {event.device_time_total / 1e3:9.3f} ms {event.count:4d}  {event.key[:80]}", flush=True)
    kept = dict(fused.TILES)
    for block in TRIED_BLOCKS:
        fused.TILES["small"] = fused.TILES["large"] = dict(
            zip(("BM", "BN", "BK", "num_warps", "num_stages"), block, strict=True)
        )
        replay._graphs.clear()  # they hold the previous blocks
        try:
            line = []
            for size in (1024, 4096, max(options.gpu_sizes)):
                inputs = make_inputs(size, options.dim, "cuda")
                loss_and_backward("ours", inputs)
                forward = [seconds(lambda i=inputs: contrastive_loss(*i), "cuda") for _ in range(5)]
                both = [seconds(lambda i=inputs: loss_and_backward("ours", i), "cuda") for _ in range(5)]
                line.append(f"N={size} {1e3 * statistics.median(forward):.2f}/{1e3 * statistics.median(both):.2f} ms")
            print(f"    block {block}: forward/both {', '.join(line)}", flush=True)
        except Exception as error:
            print(f"    block {block}: {type(error).__name__}: {str(error)[:100]}", flush=True)
    fused.TILES.update(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="N of the comparison on the CPU")
    parser.add_argument("--large", type=int, default=16384, help="N of the peak memory on the CPU")
    parser.add_argument("--dim", type=int, default=512, help="D, width of the embeddings")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="repeats of each form; medians are printed")
    parser.add_argument(
        "--cpu-seconds",
        action="store_true",
        help="count CPU seconds instead of elapsed ones, for a shared machine",
    )
    parser.add_argument(
        "--gpu-sizes", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192, 16384], help="N on the GPU"
    )
    parser.add_argument("--gpu-only", action="store_true", help="leave out the CPU if there is a GPU")
    parser.add_argument("--kernels", action="store_true", help="also time each kernel, and other blocks of pairs")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test that it runs")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    global CPU_SECONDS
    CPU_SECONDS = options.cpu_seconds
    torch.set_num_threads(options.threads)
    if options.peak_of:
        loss_and_backward("ours", make_inputs(options.peak_of, options.dim, "cpu"))
        print(peak_of_this_process())
        return
    if options.quick:
        options.size, options.large, options.dim, options.repeats, options.gpu_sizes = 64, 128, 16, 1, [64]
    if not (options.gpu_only and torch.cuda.is_available()):
        report_cpu(options)
    if torch.cuda.is_available():
        report_gpu(options)
        if options.kernels:
            report_kernels(options)
    else:
        print("No GPU here: nothing measured on one.")


if __name__ == "__main__":
    main()
