"""Rows of a dataset folder -> batches, and batches -> embeddings, each against the work that cannot be avoided.

    python benchmarks/data_path.py                                   # synthetic slides, patches of 224 px
    python benchmarks/data_path.py --dataset DIR --embed-spots 0     # your own slides, loading only

Bars: loading at 0.8 of the rate at which the same machine merely decodes the same JPEGs, per core, with 0 and 2 workers;
embedding at 0.95 of the throughput of the bare backbone's forward pass. Both sides of a ratio are measured in turn, and a ratio
is the median over the repeats. One process is timed by the CPU seconds it used, so that other load on the machine does not
count; workers are timed by the clock.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
    """Two synthetic slides of 196 spots whose patches are 224 px of the slide, not enlarged."""
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
    """Seconds of each work, measured in turn so that a change of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(clock(work))
    return seconds


def merely_decode(cells: list[dict]) -> int:
    """The work that cannot be avoided: bytes of a JPEG to pixels, and nothing done with them."""
    for cell in cells:
        Image.open(io.BytesIO(cell["bytes"])).load()
    return len(cells)


def decode_only(table) -> int:
    """A collator that decodes and drops."""
    return merely_decode(table["image"].to_pylist())


def exhaust(loader: DataLoader) -> None:
    for _ in loader:
        pass


def verdict(name: str, ratio: float, bar: float) -> None:
    print(f"{'pass' if ratio >= bar else 'MISS'}  {name}: {ratio:.3f} (bar {bar:g})")


def loading(study: Study, collator: DelstCollator, spots: int, batch_size: int, repeats: int) -> None:
    """Ratio of loading to decoding, one process and two workers, and the parts of it."""
    order = np.random.default_rng(0).permutation(len(study.spots))[:spots]
    rows = SpotRows(study.spots.select(order))
    batches = [list(range(i, min(i + batch_size, len(order)))) for i in range(0, len(order), batch_size)]
    tables = [rows.__getitems__(batch) for batch in batches]
    cells = [table["image"].to_pylist() for table in tables]
    pixels = [collator.pixel_values(each) for each in cells]
    seconds = in_turn(
        repeats,
        cpu_seconds,
        decode=lambda: [merely_decode(each) for each in cells],
        load=lambda: [collator(rows.__getitems__(batch)) for batch in batches],
        read=lambda: [rows.__getitems__(batch) for batch in batches],
        pixels=lambda: [collator.pixel_values(table["image"].to_pylist()) for table in tables],
        genes=lambda: [collator.all_but_pixels(table) for table in tables],
        normalise=lambda: [collator.finish({"pixel_values": each}) for each in pixels],
    )
    per_row = {name: statistics.median(values) / len(order) * 1e6 for name, values in seconds.items()}
    size = np.mean([len(cell["bytes"]) for each in cells for cell in each]) / 1000
    print(f"{len(order)} spots, JPEGs of {size:.0f} kB, batch {batch_size}; microseconds of one core a row:")
    print(
        f"  decode the JPEG, nothing else            {per_row['decode']:7.0f}   {1e6 / per_row['decode']:6.0f} rows/s"
    )
    print(f"  rows -> batch, uint8 patches             {per_row['load']:7.0f}   {1e6 / per_row['load']:6.0f} rows/s")
    print(f"    read from the arrow table              {per_row['read']:7.0f}")
    print(f"    patches into the batch, beyond decoding{per_row['pixels'] - per_row['decode']:7.0f}")
    print(f"    counts, masks, levels                  {per_row['genes']:7.0f}")
    print(f"  normalising, where the model is          {per_row['normalise']:7.0f}   (on a GPU: nothing)")
    verdict("loading / decoding, 0 workers", ratio_of(seconds["decode"], seconds["load"]), 0.8)
    whole = [a + b for a, b in zip(seconds["load"], seconds["normalise"], strict=True)]
    print(f"      the same with normalising on this core: {ratio_of(seconds['decode'], whole):.3f}")

    def loader(collate) -> DataLoader:
        return DataLoader(rows, batch_size, collate_fn=collate, num_workers=2, persistent_workers=True)  # type: ignore[arg-type]

    start = time.perf_counter()
    decoding, full = loader(decode_only), loader(collator)
    next(iter(full))
    print(f"two workers hand over their first batch after {time.perf_counter() - start:.2f} s")
    seconds = in_turn(repeats, wall_seconds, decode=lambda: exhaust(decoding), load=lambda: exhaust(full))
    rate = len(order) / statistics.median(seconds["load"])
    print(f"  2 workers: {rate:.0f} rows/s by the clock")
    verdict("loading / decoding, 2 workers", ratio_of(seconds["decode"], seconds["load"]), 0.8)


def ratio_of(base: list[float], measured: list[float]) -> float:
    return statistics.median(b / m for b, m in zip(base, measured, strict=True))


def embedding(study: Study, collator: DelstCollator, spots: int, size: int, repeats: int) -> None:
    """Throughput of `embed` against the backbone's forward pass on patches that are ready."""
    vision = ViTConfig(image_size=size, patch_size=16, **VIT_S)
    genes = {"num_genes": len(collator.processor.feature_extractor.vocabulary)}
    model = DelstModel(DelstConfig(vision_config=vision, gene_config=genes)).eval()
    chosen = study.spots.select(range(spots))
    pixels = collator.finish(collator(SpotRows(chosen).__getitems__(list(range(spots)))))["pixel_values"]

    @torch.no_grad()
    def bare() -> None:
        for part in pixels.split(16):
            model.vision_model(pixel_values=part)

    seconds = in_turn(
        repeats, cpu_seconds, bare=bare, embed=lambda: embed(model, chosen, collator, batch_size=16, progress=False)
    )
    rate = spots / statistics.median(seconds["embed"])
    print(f"embedding {spots} spots by a ViT-S/16 at {size} px: {rate:.2f} spots a CPU second")
    verdict("embedding / bare forward", ratio_of(seconds["bare"], seconds["embed"]), 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="dataset folder; synthetic slides without it")
    parser.add_argument("--spots", type=int, default=384, help="spots to load")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--embed-spots", type=int, default=32, help="spots to embed, 0 for none")
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
            embedding(study, collator, arguments.embed_spots, size, arguments.repeats)


if __name__ == "__main__":
    main()
