"""Peak memory of `delst vocabulary` by method, at two numbers of spots: it should not grow with them.

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
COLUMNS = ("gene_indices", "gene_counts", "slide_id", "x", "y", "total_counts")
CHOOSE = """
import sys
from delst_hf.data.study import Study
from delst_hf.data.vocabulary import choose_genes
choose_genes(Study.load(sys.argv[1]), method=sys.argv[2], num_genes=100)
"""


def write_folder(folder: Path, num_spots: int, seed: int = 0) -> None:
    """What a vocabulary is chosen from: a dataset folder of one slide without its images."""
    for config in ("spots", "genes", "slides"):
        (folder / config).mkdir(parents=True)
    (folder / "README.md").touch()
    blank = [""] * NUM_GENES
    genes = {"gene_id": blank, "symbol": [f"G{i}" for i in range(NUM_GENES)], "species": blank}
    pq.write_table(pa.table(genes, schema=GENES.arrow_schema), folder / "genes/genes.parquet")
    slides = pa.schema([SLIDES.arrow_schema.field("slide_id")])
    pq.write_table(pa.table({"slide_id": ["S"]}, schema=slides), folder / "slides/slides.parquet")
    rng = np.random.default_rng(seed)
    schema = pa.schema([SPOTS_SCHEMA.field(name) for name in COLUMNS])
    with pq.ParquetWriter(folder / "spots/S.parquet", schema) as writer:
        for _ in range(0, num_spots, ROW_GROUP):
            expressed = [np.unique(rng.integers(0, NUM_GENES, GENES_PER_SPOT)) for _ in range(ROW_GROUP)]
            columns = {
                "gene_indices": expressed,
                "gene_counts": [np.full(len(found), 2) for found in expressed],
                "slide_id": ["S"] * ROW_GROUP,
                "x": rng.uniform(0, 1e4, ROW_GROUP),
                "y": rng.uniform(0, 1e4, ROW_GROUP),
                "total_counts": [2 * len(found) for found in expressed],
            }
            arrays = [pa.array(columns[name]).cast(schema.field(name).type) for name in COLUMNS]
            writer.write_table(pa.table(arrays, schema=schema))


def peak(folder: Path, method: str) -> float:
    """Peak memory of choosing 100 genes, in MiB."""
    process = subprocess.Popen([sys.executable, "-c", CHOOSE, str(folder), method])
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
