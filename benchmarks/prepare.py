"""Patches per second and peak memory of `delst prepare`, against merely cropping and JPEG-encoding the same regions.

    python benchmarks/prepare.py                        # speed, and memory at 4, 8 and 16 thousand pixels
    python benchmarks/prepare.py --sides 8000 60000     # memory at 60,000 x 60,000

Speed is that of one core (CPU time), ours and the baseline in turns, and the ratio is the median over the turns. Ours does
everything that makes a part of a dataset: cutting, encoding, tissue fraction, counts, parquet. Memory is the peak of a process
that cuts a slide from a tiled TIFF into a part, less that of a process that only imports what it needs.
"""

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import tifffile
import zarr
from PIL import Image

from delst_hf.data.images import open_image
from delst_hf.data.part import PatchOptions, write_part
from delst_hf.data.slide import Slide, make_genes
from delst_hf.data.toy import make_toy_slide

BAR = 0.8
PATCH_PX, MPP = 224, 0.5


def encoded(pixels: np.ndarray) -> bytes:
    """The baseline: a crop as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def make_slide(image, num_spots: int, seed: int = 0) -> Slide:
    """Spots at random places, with 2,000 expressed genes of 18,000 each, as on a Visium slide."""
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
    """A square tiled JPEG TIFF of any side: one tile, encoded once, over and over."""
    data = encoded(np.ascontiguousarray(pixels[:tile, :tile]))
    count = (-(-side // tile)) ** 2
    tifffile.imwrite(path, (data for _ in range(count)), shape=(side, side, 3), dtype=np.uint8, tile=(tile, tile),
                     photometric="ycbcr", compression="jpeg", subsampling=(1, 1), bigtiff=True)  # fmt: skip


def speed(pixels: np.ndarray, folder: Path, num_spots: int, turns: int) -> None:
    """Prints patches per second and ratios."""
    tifffile.imwrite(folder / "tiled.tif", pixels, tile=(512, 512), photometric="rgb", compression="jpeg",
                     compressionargs={"level": 90})  # fmt: skip
    stored = zarr.open(tifffile.imread(folder / "tiled.tif", aszarr=True), mode="r")
    corners = [(round(y) - PATCH_PX // 2, round(x) - PATCH_PX // 2)
               for x, y in make_slide(pixels, num_spots).spots[["x", "y"]].to_numpy()]  # fmt: skip

    def crop(source) -> None:
        for top, left in corners:
            encoded(np.asarray(source[top : top + PATCH_PX, left : left + PATCH_PX]))

    def ours(source, number: int) -> None:
        write_part(make_slide(source, num_spots), folder / f"part{number}", PatchOptions(off_tissue="allow"))

    print(
        f"{num_spots} patches of {PATCH_PX} px from {pixels.shape[1]} x {pixels.shape[0]} px, one core, {turns} turns"
    )
    number = 0
    for name, source, baseline in (
        ("memory", pixels, pixels), ("tiled TIFF", None, stored), ("tiled TIFF", None, pixels)
    ):  # fmt: skip
        rates: dict[str, list[float]] = {"crop": [], "ours": []}
        for _ in range(turns):
            number += 1
            image = source if source is not None else open_image(folder / "tiled.tif")
            for kind, work in (("crop", lambda: crop(baseline)), ("ours", lambda: ours(image, number))):  # noqa: B023
                start = time.process_time()
                work()
                rates[kind].append(num_spots / (time.process_time() - start))
        ratios = np.array(rates["ours"]) / rates["crop"]
        against = "the same TIFF by tifffile and zarr" if baseline is stored else "memory"
        verdict = "pass" if np.median(ratios) >= BAR else "MISS"
        print(f"from {name:<10} ours {np.median(rates['ours']):5.0f}/s, cropping from {against} "
              f"{np.median(rates['crop']):5.0f}/s, "
              f"ratio {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})  bar {BAR}: {verdict}")  # fmt: skip


def memory(pixels: np.ndarray, folder: Path, sides: list[int]) -> None:
    """Prints the peak memory of a process that cuts a slide of each side."""
    empty = None
    for side in [0, *sides]:
        path = folder / f"{side}.tif"
        if side:
            write_tiled(path, pixels, side)
        command = [sys.executable, __file__, "--one", str(path), "--into", str(folder / f"m{side}")]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peak = int(result.stdout.split()[-1]) / 2**10
        empty = peak if empty is None else empty
        if side:
            print(f"{side:>6} x {side:<6} peak {peak:5.0f} MiB, {peak - empty:4.0f} MiB beyond the imports "
                  f"({path.stat().st_size / 2**20:.0f} MiB on disk, {3 * side * side / 2**30:.1f} GiB in memory)")  # fmt: skip


def one(path: Path, folder: Path) -> None:
    """Cuts 1,000 patches of one slide and prints the peak memory in KiB."""
    if path.exists():
        write_part(make_slide(open_image(path), 1000), folder, PatchOptions(off_tissue="allow"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=4000, help="4,000 as on a Visium slide")
    parser.add_argument("--turns", type=int, default=5, help="0 for memory only")
    parser.add_argument("--sides", type=int, nargs="*", default=[4000, 8000, 16000])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.into)
        return
    drawn = make_toy_slide(image_px=1024, mpp=0.5).image
    pixels = np.tile(drawn, (4, 4, 1))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.turns:
            speed(pixels, Path(folder), arguments.spots, arguments.turns)
        memory(pixels, Path(folder), arguments.sides)


if __name__ == "__main__":
    main()
