"""Measure memory and speed of `--streaming true` on a study, and on one with four times as many spots.

    python benchmarks/streaming.py                 # 8 and 32 slides of 1,024 spots
    python benchmarks/streaming.py --slides 20     # 20 and 80

Each line is a process of its own that reads the counts once, as the vocabulary does, and then an epoch of batches: streamed,
or kept as a `Dataset`. Pages of the latter's Arrow files are shared and do not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

BATCH, BUFFER = 256, 2048


def make_study(folder: Path, slides: int) -> None:
    """Write a dataset folder of equal toy slides: only their number matters here."""
    from delst_hf.data.dataset import write_dataset
    from delst_hf.data.schema import write_manifest
    from delst_hf.data.toy import make_toy_slide

    write_dataset([make_toy_slide("toy_A1", spots_per_side=32)], folder, patch_um=112, patch_px=112)
    source = folder / "spots" / "toy_A1.parquet"
    groups = [pq.ParquetFile(source).read_row_group(i) for i in range(pq.read_metadata(source).num_row_groups)]
    rows = pq.read_table(folder / "slides" / "slides.parquet", partitioning=None)
    for number in range(1, slides):
        name = f"toy_A{number + 1}"
        with pq.ParquetWriter(
            folder / "spots" / f"{name}.parquet", groups[0].schema, write_page_checksum=True
        ) as writer:
            for group in groups:
                place = group.column_names.index("slide_id")
                writer.write_table(group.set_column(place, group.schema.field(place), pa.array([name] * len(group))))
    tables = [rows.set_column(0, rows.schema.field(0), pa.array([f"toy_A{number + 1}"])) for number in range(slides)]
    pq.write_table(pa.concat_tables(tables), folder / "slides" / "slides.parquet", write_page_checksum=True)
    write_manifest(folder)


def run(folder: str, streaming: bool) -> None:
    """Stream or load one study, and print its spots, their rate and the peak of the process's private memory."""
    from transformers import ViTImageProcessorPil

    from delst_hf import DelstCollator, DelstGeneFeatureExtractor, DelstProcessor, Study
    from delst_hf.data.spot_stream import SpotStream
    from delst_hf.data.streamed import StreamedStudy
    from delst_hf.data.study import SpotRows
    from delst_hf.data.vocabulary import gene_moments

    before, peak, done = psutil.Process().memory_info(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found = psutil.Process().memory_info()
            peak[0] = max(peak[0], found.rss - found.shared - before.rss + before.shared)

    watcher = threading.Thread(target=watch)
    watcher.start()
    study = StreamedStudy.load(folder) if streaming else Study.load(folder)
    spots = study.subset(study.slide_ids)
    gene_moments(study.count_batches(spots))
    size = {"height": 112, "width": 112}
    processor = DelstProcessor(ViTImageProcessorPil(size=size), DelstGeneFeatureExtractor(vocabulary=study.gene_names))
    collate = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes, defer_pixels=True)
    start, seen = time.perf_counter(), 0
    rows = SpotRows(spots) if not streaming else None
    batches = (
        SpotStream(spots, BATCH, BUFFER)
        if rows is None
        else (rows.__getitems__(list(range(i, i + BATCH))) for i in range(0, len(rows) - BATCH + 1, BATCH))
    )
    for table in batches:
        seen += len(collate(table)["labels"])
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(
        f"{len(spots):10,d} {'streamed' if streaming else 'kept':>9s} {seen / seconds:12,.0f} {peak[0] / 2**20:10.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=8, help="slides of the smaller study, of 1,024 spots each")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--streaming", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        return run(arguments.folder, arguments.streaming)
    print(f"{'spots':>10s} {'':>9s} {'spots/s':>12s} {'peak, MiB':>10s}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for slides in (arguments.slides, 4 * arguments.slides):
            folder = Path(temporary) / str(slides)
            make_study(folder, slides)
            for options in (["--streaming"], []):
                environment = {
                    **os.environ,
                    "HF_DATASETS_CACHE": f"{temporary}/cache",
                    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
                }
                command = [sys.executable, __file__, "--folder", str(folder), *options]
                subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
