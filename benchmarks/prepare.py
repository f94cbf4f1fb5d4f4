"""Measure patches per second and peak memory of `delst prepare`, against cropping and JPEG-encoding the same regions.

    python benchmarks/prepare.py                             # speed, and memory at 4, 8 and 16 thousand pixels
    python benchmarks/prepare.py --turns 0 --sides 60000     # memory at 60,000 x 60,000
    python benchmarks/prepare.py --against OLD --her2st SRC  # CPU seconds beside another version, in turns

Speed is that of one core (CPU time), ours and the baselines in turns, and a ratio is the median over the turns. Ours does
everything that makes a part of a dataset: cutting, encoding, tissue fraction, counts, parquet. The bar is against cropping and
encoding with plain Pillow; the same with our encoder, and what the rest of the time goes to, are printed beside it.
Memory is the peak of a process that runs `delst prepare table` on a slide in a tiled TIFF. With `--against`, a folder with the
package of another version (`git worktree add OLD COMMIT`) prepares the same inputs; the time of imports is not counted.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp
import tifffile
import zarr
from PIL import Image

from delst_hf.data import part
from delst_hf.data.appearance import encode
from delst_hf.data.counts import make_genes
from delst_hf.data.images import open_image
from delst_hf.data.slide import Slide
from delst_hf.data.toy import make_toy_slide

BAR, MEMORY_BAR_GIB, GROWTH_BAR = 0.8, 2.0, 1.05
PATCH_PX, MPP = 224, 0.5
OPTIONS = part.PatchOptions(off_tissue="allow")


def by_pillow(pixels: np.ndarray) -> bytes:
    """Return a crop as JPEG, by plain Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def make_slide(image: Any, num_spots: int, seed: int = 0) -> Slide:
    """Make spots at random positions, each with 2,000 expressed genes of 18,000, as on a Visium slide."""
    height, width = image.shape[:2]
    rng = np.random.default_rng(seed)
    spots = pd.DataFrame(
        {"x": rng.uniform(200, width - 200, num_spots), "y": rng.uniform(200, height - 200, num_spots)}
    )
    spots.index = [f"b{i}" for i in range(num_spots)]
    genes = np.sort(rng.choice(18_000, 2_000, replace=False))
    columns = np.tile(genes, num_spots)
    rows = np.arange(0, len(columns) + 1, len(genes))
    counts = sp.csr_matrix(
        (rng.integers(1, 9, len(columns)).astype(np.int32), columns, rows), shape=(num_spots, 18_000)
    )
    return Slide("S", image, spots, counts, make_genes([f"G{i}" for i in range(18_000)]), MPP, "P")


def write_tiled(path: Path, pixels: np.ndarray, side: int, tile: int = 512) -> None:
    """Write a square tiled JPEG TIFF of any side, tile by tile, repeating those of a drawing."""
    across = -(-side // tile)
    steps = pixels.shape[0] // tile
    drawn = {
        (i, j): by_pillow(np.ascontiguousarray(pixels[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile]))
        for i in range(steps) for j in range(steps)
    }  # fmt: skip
    tiles = (drawn[i % steps, j % steps] for i in range(across) for j in range(across))
    tifffile.imwrite(path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(tile, tile), photometric="ycbcr",
                     compression="jpeg", subsampling=(1, 1), bigtiff=True)  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speed(pixels: np.ndarray, folder: Path, num_spots: int, turns: int) -> None:
    """Print patches per second and ratios."""
    tifffile.imwrite(folder / "tiled.tif", pixels, tile=(512, 512), photometric="rgb", compression="jpeg",
                     compressionargs={"level": 90})  # fmt: skip
    stored = zarr.open(tifffile.imread(folder / "tiled.tif", aszarr=True), mode="r")
    slide = make_slide(pixels, num_spots)
    corners = [(round(y) - PATCH_PX // 2, round(x) - PATCH_PX // 2) for x, y in slide.spots[["x", "y"]].to_numpy()]
    print(
        f"{num_spots} patches of {PATCH_PX} px from {pixels.shape[1]} x {pixels.shape[0]} px, one core, {turns} turns"
    )
    number = 0
    for name, baseline, encoder in (
        ("memory", pixels, by_pillow), ("memory", pixels, encode_as_ours), ("tiled TIFF", stored, by_pillow),
        ("tiled TIFF", pixels, by_pillow),
    ):  # fmt: skip
        crop, ours = [], []
        for _ in range(turns):
            number += 1
            image = pixels if name == "memory" else open_image(folder / "tiled.tif")
            read = Slide(**{**vars(slide), "image": image})
            crop.append(
                seconds(lambda: [
                    encoder(np.asarray(baseline[y : y + PATCH_PX, x : x + PATCH_PX])) for y, x in corners  # noqa: B023
                ])
            )  # fmt: skip
            ours.append(seconds(lambda: part.write_part(read, folder / f"part{number}", OPTIONS)))  # noqa: B023
        ratios = np.array(crop) / np.array(ours)
        source = "the same TIFF by tifffile and zarr" if baseline is stored else "memory"
        with_ = "Pillow" if encoder is by_pillow else "our encoder"
        verdict = "" if encoder is not by_pillow else f"  bar {BAR}: {'pass' if np.median(ratios) >= BAR else 'MISS'}"
        print(f"from {name:<10} ours {num_spots / np.median(ours):5.0f}/s, cropping from {source} and encoding by {with_} "
              f"{num_spots / np.median(crop):5.0f}/s, ratio {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
              f"{verdict}")  # fmt: skip
    parts(slide, folder)


def encode_as_ours(pixels: np.ndarray) -> bytes:
    """Return a crop as JPEG, by the encoder of `delst prepare`."""
    return encode(pixels, "jpeg", 95)


def parts(slide: Slide, folder: Path) -> None:
    """Print what the time of one slide in memory goes to, in microseconds per patch."""
    number = len(slide.spots)
    cut = slide.cutter(112.0, PATCH_PX)
    patches = [cut(i) for i in range(number)]
    encoded = [encode(patch, "jpeg", 95) for patch in patches]
    groups = [[(i, encoded[i], 1.0) for i in range(start, min(start + 100, number))] for start in range(0, number, 100)]
    tables = [part._spot_rows(slide, slide.counts, group) for group in groups]

    def written(names: list[str]) -> None:
        with pq.ParquetWriter(
            folder / "columns.parquet", tables[0].select(names).schema, use_dictionary=part.DICTIONARY
        ) as file:
            for table in tables:
                file.write_table(table.select(names))

    spent = {
        "checks, genes, thumbnail": seconds(lambda: part.check_slide(slide, OPTIONS)),
        "cut": seconds(lambda: [cut(i) for i in range(number)]),
        "encode": seconds(lambda: [encode(patch, "jpeg", 95) for patch in patches]),
        "tissue": seconds(lambda: part.tissue_fractions([part.tissue_sample(patch) for patch in patches])),
        "rows": seconds(lambda: [part._spot_rows(slide, slide.counts, group) and None for group in groups]),
        "write images": seconds(lambda: written(["image"])),
        "write gene lists": seconds(lambda: written(["gene_indices", "gene_counts"])),
    }
    print("us per patch: " + ", ".join(f"{name} {1e6 * value / number:.0f}" for name, value in spent.items()))


def memory(pixels: np.ndarray, folder: Path, sides: list[int], num_spots: int = 1000) -> None:
    """Print the peak memory of `delst prepare table` on a slide of each side."""
    empty = peak([sys.executable, "-c", "import delst_hf.data.dataset, delst_hf.data.readers.generic, anndata"])
    for side in sides:
        path = folder / f"{side}.tif"
        write_tiled(path, pixels, side)
        slide = make_slide(open_image(path), num_spots)
        anndata.AnnData(slide.counts, obs=slide.spots[[]]).write_h5ad(folder / "counts.h5ad")
        slide.spots.to_csv(folder / "spots.csv", index_label="barcode")
        start = time.perf_counter()
        found = peak([
            sys.executable, "-m", "delst_hf.cli", "prepare", "table", "--image", path, "--counts", folder / "counts.h5ad",
            "--coordinates", folder / "spots.csv", "--mpp", MPP, "--output", folder / f"m{side}", "--allow-off-tissue",
            "--quiet",
        ])  # fmt: skip
        took = time.perf_counter() - start
        verdict = f"bar {MEMORY_BAR_GIB:g} GiB: {'pass' if found <= 2**10 * MEMORY_BAR_GIB else 'MISS'}"
        print(f"{side:>6} x {side:<6} peak {found:5.0f} MiB, {found - empty:4.0f} MiB beyond the imports, {num_spots} patches "
              f"in {took:.0f} s ({path.stat().st_size / 2**20:.0f} MiB on disk, "
              f"{3 * side * side / 2**30:.1f} GiB in memory)  {verdict}")  # fmt: skip
        path.unlink()


def peak(command: list[Any]) -> float:
    """Return the peak memory of a command in MiB."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {command}")
    return usage.ru_maxrss / 2**10


# Run in a process of its own: one slide is read and written, after a first one that does all imports.
_ONE = """
import logging, sys, tempfile, time
logging.disable(logging.CRITICAL)
from delst_hf.data.dataset import write_dataset
from delst_hf.data.readers.generic import read_generic
from delst_hf.data.readers.her2st import read_her2st
from delst_hf.data.readers.visium import read_visium
from delst_hf.data.toy import make_toy_slide
kind, arguments = sys.argv[1], sys.argv[2:]
with tempfile.TemporaryDirectory() as folder:
    write_dataset([make_toy_slide(spots_per_side=4)], folder + "/first")
    start = time.process_time()
    if kind == "her2st":
        slide = read_her2st(arguments[0], arguments[1])
    elif kind == "visium":
        slide = read_visium(arguments[0])
    else:
        slide = read_generic(*arguments, mpp=2.0)
    write_dataset([slide], folder + "/second", off_tissue="allow")
    print("took", time.process_time() - start)
"""


def against(other: Path, her2st: Path | None, pixels: np.ndarray, folder: Path, turns: int) -> None:
    """Print CPU seconds of one slide by this version and by another, in turns, for inputs of three kinds."""
    jobs = {"visium": write_visium(folder / "S1", pixels), "table": write_table(folder, pixels)}
    if her2st is not None:
        jobs |= {f"her2st {section}": ["her2st", her2st.resolve(), section] for section in ("B4", "C2")}
    here = Path(__file__).resolve().parent.parent
    for name, words in jobs.items():
        took: dict[Path, list[float]] = {here: [], other.resolve(): []}
        for turn in range(turns):
            for version in list(took)[:: 1 if turn % 2 else -1]:
                environment = {**os.environ, "PYTHONPATH": str(version), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, "-c", _ONE, *map(str, words)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=folder)
                took[version].append(float(done.stdout.split("took")[1]))
        ours, theirs = took.values()
        ratios = np.array(ours) / np.array(theirs)
        verdict = "pass" if np.median(ratios) <= GROWTH_BAR else "MISS"
        print(f"{name:<10} ours {np.median(ours):.2f} s, {other.name} {np.median(theirs):.2f} s, ratio {np.median(ratios):.2f} "
              f"({ratios.min():.2f} to {ratios.max():.2f})  bar {GROWTH_BAR}: {verdict}", flush=True)  # fmt: skip


def write_visium(outs: Path, pixels: np.ndarray) -> list[Any]:
    """Write 4,480 spots of 18,000 genes as Space Ranger lays them out, on the drawing as its reduced image."""
    import json

    import h5py

    (outs / "spatial").mkdir(parents=True)
    places = [(row, column) for row in range(70) for column in range(row % 2, 128, 2)]
    array = np.array(places)
    names = [f"{number:016b}".replace("0", "A").replace("1", "C") + "-1" for number in range(len(places))]
    table = pd.DataFrame({"barcode": names, "in_tissue": 1, "array_row": array[:, 0], "array_col": array[:, 1],
                          "pxl_row_in_fullres": 200 + array[:, 0] * 25 * 3**0.5,
                          "pxl_col_in_fullres": 200 + array[:, 1] * 25})  # fmt: skip
    table.to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 32.5}
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    Image.fromarray(pixels).save(outs / "spatial" / "tissue_hires_image.png", compress_level=1)
    counts = make_slide(pixels, len(places)).counts
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        for name, values in (("data", counts.data), ("indices", counts.indices.astype(np.int64)),
                             ("indptr", counts.indptr.astype(np.int64)), ("shape", np.array(counts.shape[::-1])),
                             ("barcodes", np.array(names, "S"))):  # fmt: skip
            matrix[name] = values
        features = matrix.create_group("features")
        number = counts.shape[1]
        for name, texts in (("id", [f"ENSG{i:011d}" for i in range(number)]), ("name", [f"G{i}" for i in range(number)]),
                            ("feature_type", ["Gene Expression"] * number)):  # fmt: skip
            features[name] = np.array(texts, "S")
    return ["visium", outs]


def write_table(folder: Path, pixels: np.ndarray, num_spots: int = 400) -> list[Any]:
    """Write an image, a table of counts of 18,000 genes and one of coordinates."""
    slide = make_slide(pixels, num_spots)
    image, counts, spots = folder / "he.png", folder / "counts.tsv.gz", folder / "spots.csv"
    Image.fromarray(pixels).save(image, compress_level=1)
    table = pd.DataFrame(slide.counts.toarray(), index=slide.spots.index, columns=slide.genes["symbol"])
    table.to_csv(counts, sep="\t", compression={"method": "gzip", "compresslevel": 1})
    slide.spots[["x", "y"]].to_csv(spots, index_label="barcode")
    return ["table", image, counts, spots]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=4000, help="4,000 as on a Visium slide")
    parser.add_argument("--turns", type=int, default=5, help="0 for memory only")
    parser.add_argument(
        "--sides", type=int, nargs="*", default=[4000, 8000, 16000], help="pixels; 60000 for a large slide"
    )
    parser.add_argument("--folder", type=Path, help="folder of temporary files (a slide of 60,000 px takes some GiB)")
    parser.add_argument("--against", type=Path, metavar="OLD", help="folder with the package of another version")
    parser.add_argument(
        "--her2st",
        type=Path,
        metavar="SRC",
        help="with --against: folder of HER2ST, to prepare its sections B4 and C2 too",
    )
    arguments = parser.parse_args()
    drawn = make_toy_slide(image_px=1024, mpp=0.5).image
    pixels = np.tile(drawn, (4, 4, 1))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.against is not None:
            against(arguments.against, arguments.her2st, pixels, Path(folder), arguments.turns)
            return
        if arguments.turns:
            speed(pixels, Path(folder), arguments.spots, arguments.turns)
        memory(pixels, Path(folder), arguments.sides)


if __name__ == "__main__":
    main()
