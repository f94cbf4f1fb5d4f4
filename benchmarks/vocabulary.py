"""Measure the peak memory of `delst vocabulary` by method, at two numbers of spots: it should not grow with them.

    python benchmarks/vocabulary.py                          # 5,000 and 50,000 spots of one slide

Each figure is the peak of a process of its own, imports included. A spot has up to 500 of 18,000 genes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from delst_hf.data.schema import GENES, SLIDES, SPOTS_SCHEMA

METHODS = ("hvg", "spatial", "detected", "all")
NUM_GENES, GENES_PER_SPOT, ROW_GROUP = 18_000, 500, 100
CHOOSE = """
import sys
from delst_hf.data.study import Study
from delst_hf.data.vocabulary import choose_genes
choose_genes(Study.load(sys.argv[1]), method=sys.argv[2], num_genes=100)
"""


def write_folder(folder: Path, num_spots: int, seed: int = 0) -> None:
    """Write a dataset folder of one slide to choose a vocabulary from, whose images are not read."""
    for config in ("spots", "genes", "slides"):
        (folder / config).mkdir(parents=True)
    (folder / "README.md").touch()
    blank = [""] * NUM_GENES
    genes = {"gene_id": blank, "symbol": [f"G{i}" for i in range(NUM_GENES)], "species": blank}
    pq.write_table(pa.table(genes, schema=GENES.arrow_schema), folder / "genes/genes.parquet")
    slide = {"slide_id": ["S"], "patient_id": ["S"], "mpp": [1.0], "measured_genes": [list(range(NUM_GENES))],
             "split": ["train"], "patch_um": [112.0], "patch_px": [224]}  # fmt: skip
    pq.write_table(filled(slide, SLIDES.arrow_schema, 1), folder / "slides/slides.parquet")
    rng = np.random.default_rng(seed)
    with pq.ParquetWriter(folder / "spots/S.parquet", SPOTS_SCHEMA) as writer:
        for start in range(0, num_spots, ROW_GROUP):
            expressed = [np.unique(rng.integers(0, NUM_GENES, GENES_PER_SPOT)) for _ in range(ROW_GROUP)]
            columns = {
                "gene_indices": expressed,
                "gene_counts": [np.full(len(found), 2) for found in expressed],
                "image": [{"bytes": b"none is read", "path": None}] * ROW_GROUP,
                "slide_id": ["S"] * ROW_GROUP,
                "patient_id": ["S"] * ROW_GROUP,
                "barcode": [str(start + i) for i in range(ROW_GROUP)],
                "x": rng.uniform(0, 1e4, ROW_GROUP),
                "y": rng.uniform(0, 1e4, ROW_GROUP),
                "n_genes": [len(found) for found in expressed],
                "total_counts": [2 * len(found) for found in expressed],
            }
            writer.write_table(filled(columns, SPOTS_SCHEMA, ROW_GROUP))


def filled(columns: dict, schema: pa.Schema, rows: int) -> pa.Table:
    """Return a table of these columns, with nulls in the others."""
    arrays = [
        pa.array(columns[field.name]).cast(field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def peak(folder: Path, method: str) -> float:
    """Return the peak memory of choosing 100 genes, in MiB."""
    cache = os.environ | {"HF_DATASETS_CACHE": str(folder.parent / "cache")}
    process = subprocess.Popen([sys.executable, "-c", CHOOSE, str(folder), method], env=cache)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {method}")
    return usage.ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, nargs="+", default=[5_000, 50_000], help="numbers of spots")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for num_spots in arguments.spots:
            write_folder(Path(folder, str(num_spots)), num_spots)
            found = {method: peak(Path(folder, str(num_spots)), method) for method in METHODS}
            print(f"{num_spots:>6} spots  " + ", ".join(f"{method} {mib:.0f} MiB" for method, mib in found.items()))


if __name__ == "__main__":
    main()
