"""Measure the peak memory of `delst evaluate` at N and at 4 N spots with images: it should not grow with the images.

    python benchmarks/evaluation_memory.py
    python benchmarks/evaluation_memory.py --spots 4800 --protocols all

Slides are noise, whose patches do not compress: 128 px, about 20 kB each. Each set is evaluated in a process of its own.
Anonymous memory is what the process holds. The peak (VmHWM) also counts pages of the mapped Arrow file, although the system
reclaims them when another process needs memory.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KIB = 1024


def make(folder: Path, spots: int) -> tuple[Path, Path]:
    """Write a dataset of two noise slides of two patients, and a checkpoint of a tiny model."""
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil

    from delst_hf import DelstConfig, DelstGeneFeatureExtractor, DelstModel, DelstProcessor
    from delst_hf.data.dataset import write_dataset
    from delst_hf.data.toy import make_toy_slide
    from delst_hf.hub.checkpoint_folder import save_checkpoint_folder

    side = round((spots / 2) ** 0.5)
    generator = np.random.default_rng(0)
    slides = []
    for name in ("toy_A1", "toy_B1"):
        slide = make_toy_slide(name, spots_per_side=side, image_px=40 * side, num_genes=20)
        noise = generator.integers(0, 256, (40 * side, 40 * side, 3), dtype=np.uint8)
        slides.append(dataclasses.replace(slide, image=noise))
    data = folder / "data"
    write_dataset(slides, data, patch_px=128, off_tissue="allow")
    torch.manual_seed(0)
    vision = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    genes = slides[0].genes["symbol"].tolist()
    model = DelstModel(DelstConfig(vision_config=vision, gene_config={"num_genes": len(genes)}, projection_dim=16))
    processor = DelstProcessor(
        ViTImageProcessorPil(size={"height": 32, "width": 32}), DelstGeneFeatureExtractor(vocabulary=genes)
    )
    return data, save_checkpoint_folder(folder / "model", model, processor)


def peaks(data: Path, model: Path, protocols: str) -> dict[str, int]:
    """Return the peaks in KiB of an evaluation in a child process: of anonymous memory (sampled), and of all memory."""
    command = [sys.executable, "-m", "delst_hf.cli", "evaluate", str(model), str(data), "--resamples", "20", "--num-seeds", "1",
               "--output", str(data.parent / "results.json")]  # fmt: skip
    command += [] if protocols == "all" else ["--protocols", protocols]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    status, found = Path(f"/proc/{child.pid}/status"), {"RssAnon": 0, "VmHWM": 0}
    while child.poll() is None:
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            found = {name: max(value, int(lines[name].split()[0])) for name, value in found.items()}
        except (OSError, KeyError):
            pass  # it has just ended
        time.sleep(0.02)
    if child.returncode:
        raise SystemExit(f"the evaluation ended with {child.returncode}")
    return found


def main() -> None:
    """Print the peaks of both sets, and the memory per further spot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=1200, help="N (default 1200)")
    parser.add_argument(
        "--protocols", default="arms,retrieval", help="comma-separated, or all (default arms,retrieval)"
    )
    arguments = parser.parse_args()
    spots = arguments.spots
    rows = []
    for number in (spots, 4 * spots):
        with tempfile.TemporaryDirectory() as folder:
            data, model = make(Path(folder), number)
            size = sum(path.stat().st_size for path in (data / "spots").glob("*")) / number / KIB
            found, number = peaks(data, model, arguments.protocols), 2 * round((number / 2) ** 0.5) ** 2
            rows.append((number, found))
            anonymous, whole = found["RssAnon"] / KIB, found["VmHWM"] / KIB
            print(
                f"{number:6d} spots of {size:.0f} KiB: {anonymous:6.0f} MiB held, {whole:6.0f} MiB with mapped files",
                flush=True,
            )
    (few, small), (many, large) = rows
    for name, words in (("RssAnon", "held"), ("VmHWM", "with mapped files")):
        print(f"a further spot costs {(large[name] - small[name]) / (many - few):.1f} KiB {words}")


if __name__ == "__main__":
    main()
