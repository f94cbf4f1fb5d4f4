"""Measure rows of a dataset folder -> batches, and batches -> embeddings, each against the work that cannot be avoided.

    python benchmarks/data_path.py                                   # synthetic slides, patches of 224 px
    python benchmarks/data_path.py --dataset DIR --embed-spots 0     # your own slides, loading only

Bars: loading at 0.8 of the rate at which the same machine merely decodes the same JPEGs, per core, with 0 and 2 workers, by
the faster of Pillow and libjpeg-turbo; embedding at 0.95 of the throughput of the bare backbone's forward pass, on
the GPU if there is one. The parts of a ratio are measured in turn, and a ratio is the median over the repeats. One process
on a CPU is timed by its CPU seconds, so that other load on the machine does not count; workers and GPUs are timed
by the clock. Bare decoding in a worker hands nothing over; loading hands over every pixel, through shared memory.

Needs the package with its dependencies, `datasets` among them.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTImageProcessorPil

from delst_hf import DelstCollator, DelstConfig, DelstGeneFeatureExtractor, DelstModel, DelstProcessor
from delst_hf.data.dataset import write_dataset
from delst_hf.data.study import SpotRows, Study
from delst_hf.data.toy import make_toy_slide
from delst_hf.evaluation.embed import embed

VIT_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}


def toy_dataset(folder: str) -> str:
    """Write two synthetic slides of 196 spots with patches of 224 px of the slide, not enlarged."""
    slides = (make_toy_slide(name, spots_per_side=14, image_px=1200) for name in ("toy_A1", "toy_B1"))
    write_dataset(slides, Path(folder) / "data", patch_um=448, patch_px=224)
    return str(Path(folder) / "data")


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(repeats: int, clock: Callable, **works: Callable[[], object]) -> dict[str, list[float]]:
    """Return the seconds of each work, measured in turn so that changes of the machine affect all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(clock(work))
    return seconds


def one_by_one(work: Callable, items: list) -> None:
    """Drop each result before the next one is made, as a training step drops its batch."""
    for item in items:
        work(item)


def decode_by_pillow(cells: list[dict]) -> int:
    """Do the work that cannot be avoided: decode a JPEG, and do nothing with the pixels."""
    for cell in cells:
        Image.open(io.BytesIO(cell["bytes"])).load()
    return len(cells)


def decode_by_libjpeg(cells: list[dict]) -> int:
    """Do the same by the decoder of `DelstCollator`, always into the same memory, which stays in cache."""
    pixels = np.empty((*Image.open(io.BytesIO(cells[0]["bytes"])).size[::-1], 3), dtype=np.uint8)
    for cell in cells:
        imagecodecs.jpeg8_decode(cell["bytes"], outcolorspace="RGB", out=pixels)
    return len(cells)


DECODERS = {"Pillow": decode_by_pillow, "libjpeg-turbo": decode_by_libjpeg}


class DecodeOnly:
    """A collator that decodes patches and drops them."""

    def __init__(self, decoder: str):
        self.decoder = decoder

    def __call__(self, table) -> int:
        return DECODERS[self.decoder](table["image"].to_pylist())


def exhaust(loader: DataLoader) -> None:
    for _ in loader:
        pass


def verdict(name: str, ratio: float, bar: float) -> None:
    print(f"{'pass' if ratio >= bar else 'MISS'}  {name}: {ratio:.3f} (bar {bar:g})")


def loading(study: Study, collator: DelstCollator, spots: int, batch_size: int, repeats: int) -> None:
    """Print the ratio of loading to decoding, for one process and two workers, and its parts."""
    order = np.random.default_rng(0).permutation(len(study.spots))[:spots]
    rows = SpotRows(study.spots.select(order))
    batches = [list(range(i, min(i + batch_size, len(order)))) for i in range(0, len(order), batch_size)]
    tables = [rows.__getitems__(batch) for batch in batches]
    cells = [table["image"].to_pylist() for table in tables]
    pixels = [collator.pixel_values(each) for each in cells]
    works: dict[str, Callable[[], object]] = {
        name: lambda decode=decode: one_by_one(decode, cells) for name, decode in DECODERS.items()
    }
    works["load"] = lambda: one_by_one(lambda batch: collator(rows.__getitems__(batch)), batches)
    works["read"] = lambda: one_by_one(rows.__getitems__, batches)
    works["pixels"] = lambda: one_by_one(lambda table: collator.pixel_values(table["image"].to_pylist()), tables)
    works["genes"] = lambda: one_by_one(collator.all_but_pixels, tables)
    works["normalise"] = lambda: one_by_one(lambda each: collator.finish({"pixel_values": each}), pixels)
    works["share"] = lambda: one_by_one(lambda each: each.clone().share_memory_(), pixels)
    seconds = in_turn(repeats, cpu_seconds, **works)
    per_row = {name: statistics.median(values) / len(order) * 1e6 for name, values in seconds.items()}
    size = np.mean([len(cell["bytes"]) for each in cells for cell in each]) / 1000
    genes = np.mean([len(genes) for table in tables for genes in table["gene_indices"]])
    print(f"{len(order)} spots, JPEGs of {size:.0f} kB, {genes:.0f} expressed genes, batch {batch_size}; microseconds of one "
          "core per row:")  # fmt: skip
    fastest = min(DECODERS, key=per_row.__getitem__)
    for name in DECODERS:
        print(f"  {f'decode by {name}, nothing else':40s}{per_row[name]:7.0f}   {1e6 / per_row[name]:6.0f} rows/s")
    print(f"  {'rows -> batch, uint8 patches':40s}{per_row['load']:7.0f}   {1e6 / per_row['load']:6.0f} rows/s")
    print(f"    {'read from the arrow table':38s}{per_row['read']:7.0f}")
    print(f"    {'patches into the batch, beyond decoding':38s}{per_row['pixels'] - per_row[fastest]:6.0f}")
    print(f"    {'counts, masks, levels':38s}{per_row['genes']:7.0f}")
    print(f"  {'normalising, where the model is':40s}{per_row['normalise']:7.0f}   (on a GPU: nothing)")
    print(
        f"  {'into shared memory, where a worker is':40s}{per_row['share']:7.0f}   (the kernel clears each page first)"
    )
    verdict(f"loading / decoding by {fastest}, 0 workers", ratio_of(seconds[fastest], seconds["load"]), 0.8)
    whole = [a + b for a, b in zip(seconds["load"], seconds["normalise"], strict=True)]
    print(f"      the same with normalising on this core: {ratio_of(seconds[fastest], whole):.3f}")
    loading_by_workers(rows, collator, batch_size, repeats)


def loading_by_workers(rows: SpotRows, collator: DelstCollator, batch_size: int, repeats: int) -> None:
    """Print the ratio with two workers, by the clock, against two workers that decode and drop."""

    def loader(collate) -> DataLoader:
        return DataLoader(rows, batch_size, collate_fn=collate, num_workers=2, persistent_workers=True)  # type: ignore[arg-type]

    start = time.perf_counter()
    full = loader(collator)
    next(iter(full))
    print(f"two workers hand over their first batch after {time.perf_counter() - start:.2f} s")
    loaders = {name: loader(DecodeOnly(name)) for name in DECODERS} | {"load": full}
    works: dict[str, Callable[[], object]] = {name: lambda each=each: exhaust(each) for name, each in loaders.items()}
    seconds = in_turn(repeats, wall_seconds, **works)
    rates = {name: len(rows) / statistics.median(values) for name, values in seconds.items()}
    fastest = max(DECODERS, key=rates.__getitem__)
    print("  2 workers, by the clock: " + ", ".join(f"{name} {rate:.0f} rows/s" for name, rate in rates.items()))
    verdict(f"loading / decoding by {fastest}, 2 workers", ratio_of(seconds[fastest], seconds["load"]), 0.8)


def ratio_of(base: list[float], measured: list[float]) -> float:
    return statistics.median(b / m for b, m in zip(base, measured, strict=True))


def embedding(study: Study, collator: DelstCollator, spots: int, size: int, repeats: int, workers: int) -> None:
    """Print the throughput of `embed` against the backbone's forward pass on ready patches, on the GPU if there is one."""
    cuda = torch.cuda.is_available()
    batch_size = 256 if cuda else 16
    vision = ViTConfig(image_size=size, patch_size=16, **VIT_S)
    genes = {"num_genes": len(collator.processor.feature_extractor.vocabulary)}
    model = DelstModel(DelstConfig(vision_config=vision, gene_config=genes)).eval().to("cuda" if cuda else "cpu")
    chosen = study.spots.select(np.resize(np.arange(len(study.spots)), spots))
    ready = collator(SpotRows(chosen).__getitems__(list(range(min(batch_size, spots)))))["pixel_values"]
    ready = collator.finish({"pixel_values": ready.to(model.device)})["pixel_values"]

    @torch.no_grad()
    def bare() -> None:
        for start in range(0, spots, batch_size):
            model.vision_model(pixel_values=ready[: spots - start])
        if cuda:
            torch.cuda.synchronize()

    def by_embed() -> None:
        embed(model, chosen, collator, batch_size, workers, progress=False)

    seconds = in_turn(repeats, wall_seconds if cuda or workers else cpu_seconds, bare=bare, embed=by_embed)
    rate = spots / statistics.median(seconds["embed"])
    print(
        f"embedding {spots} spots by a ViT-S/16 at {size} px on {model.device.type}, {workers} workers: {rate:.2f} spots/s"
    )
    verdict("embedding / bare forward", ratio_of(seconds["bare"], seconds["embed"]), 0.95)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="dataset folder (default: synthetic slides)")
    parser.add_argument("--spots", type=int, default=384, help="spots to load")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--embed-spots",
        type=int,
        default=32768 if cuda else 32,
        help="spots to embed, 0 for none; repeated if the dataset has fewer",
    )
    parser.add_argument("--embed-workers", type=int, default=min(16, os.cpu_count() or 1) if cuda else 0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        study = Study.load(arguments.dataset or toy_dataset(folder))
        size = int(study.slides["patch_px"].iloc[0])
        image_processor = ViTImageProcessorPil(size={"height": size, "width": size})
        vocabulary = list(dict.fromkeys(study.gene_names))[:1000]
        processor = DelstProcessor(image_processor, DelstGeneFeatureExtractor(vocabulary=vocabulary))
        collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes, defer_pixels=True)
        loading(study, collator, arguments.spots, arguments.batch_size, arguments.repeats)
        if arguments.embed_spots:
            embedding(
                study, collator, arguments.embed_spots, size // 16 * 16, arguments.repeats, arguments.embed_workers
            )


if __name__ == "__main__":
    main()
