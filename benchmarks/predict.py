"""Measure `delst predict` against its two limits, its memory, and reading patches of a tiled TIFF against other readers.

    python benchmarks/predict.py MODEL --tiles 128 --turns 9        # rates; bar: 0.9 of the slower limit
    python benchmarks/predict.py tiny --memory 10000 40000          # peak memory per number of tiles, a process each
    python benchmarks/predict.py tiny --whole 60000                 # the grid over a slide of that side: seconds, peak memory
    python benchmarks/predict.py --readers                          # patches of a tiled TIFF, beside zarr and openslide
    python benchmarks/predict.py small --tiles 4096 --batch-size 256 --num-workers 16    # on a GPU

MODEL is a checkpoint with a head, or a ViT of random weights with 1,000 genes: tiny (one layer) or small (ViT-S/16, 224 px).
The slide is synthetic: coloured noise at the size of nuclei, JPEG tiles of 256 px. A tile is 112 px of the slide, read at the
model's own size. Rates are medians of many short turns in a row, so that a busy machine slows all of them. The share
of the slower limit is taken within each turn, and its median and quartiles are printed, by the clock and by CPU seconds: the
latter count reading as if it ran alone, and hardly depend on other jobs.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch

from delst_hf.data.images import open_image
from delst_hf.data.readers.image import read_slide_image

MPP, PATCH_UM = 0.5, 56.0
VITS = {
    "tiny": {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
}


def make_slide(path: Path, tiles: int, side: int = 112) -> None:
    """Write a tiled TIFF that has room for this many adjacent tiles."""
    across = int(np.ceil(np.sqrt(tiles))) * side
    across += -across % 256
    generator = np.random.default_rng(0)
    noise = generator.integers(-40, 40, (64, 64, 1)).repeat(8, 0).repeat(8, 1) + generator.integers(
        -15, 15, (512, 512, 3)
    )
    block = np.clip(np.array([190, 120, 170]) + noise, 0, 255).astype(np.uint8)

    def parts():
        for _ in range((across // 256) ** 2):
            top, left = generator.integers(0, 256, 2)
            yield block[top : top + 256, left : left + 256]

    tifffile.imwrite(
        path, parts(), shape=(across, across, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb", compression="jpeg",
        resolution=(10_000 / MPP, 10_000 / MPP), resolutionunit="CENTIMETER",
    )  # fmt: skip


def positions(path: Path, tiles: int, side: int = 112, room: int | None = None) -> pd.DataFrame:
    """Return the centres of this many tiles, spread evenly over the positions of `room` adjacent tiles."""
    across = open_image(path).shape[1] // side
    places = np.linspace(0, (room or tiles) - 1, tiles).astype(int)
    return pd.DataFrame(
        {"x": (places % across + 0.5) * side, "y": (places // across + 0.5) * side}, index=places.astype(str)
    )


def scratch_model(folder: Path, preset: str) -> str:
    """Save a ViT of random weights at 224 px with a head of 1,000 genes, as `delst fit` would, and return its folder."""
    from transformers import ViTConfig, ViTImageProcessorPil

    from delst_hf import (
        DelstConfig,
        DelstForGeneExpressionPrediction,
        DelstGeneFeatureExtractor,
        DelstProcessor,
    )
    from delst_hf.hub.checkpoint_folder import save_checkpoint_folder

    genes = [f"gene{number}" for number in range(1000)]
    vision = ViTConfig(**VITS[preset])
    config = DelstConfig(vision_config=vision, gene_config={"num_genes": len(genes)}, projection_dim=256)
    processor = DelstProcessor(
        ViTImageProcessorPil(size={"height": 224, "width": 224}), DelstGeneFeatureExtractor(vocabulary=genes)
    )
    torch.manual_seed(0)
    record = {"data": {"patch_um": "56", "patch_px": "224", "patch_encoding": "jpeg 95"}}
    return str(save_checkpoint_folder(folder / "model", DelstForGeneExpressionPrediction(config), processor, record))


def rates(model: str, tiles: int, turns: int, batch_size: int, workers: int) -> dict[str, list[tuple[float, float]]]:
    """Return clock and CPU seconds of each turn: of all work, of the bare backbone on patches in memory, of reading alone."""
    from delst_hf.prediction import load_predictor
    from delst_hf.prediction.shards import run
    from delst_hf.prediction.source import slide_source
    from delst_hf.prediction.stream import in_batches, read_ahead

    predictor = load_predictor(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        make_slide(path, tiles)
        slide = read_slide_image(path, positions=positions(path, tiles))
        source = slide_source(slide, PATCH_UM, predictor.cut_px, predictor.encoding)
        batch_size = min(batch_size, tiles)
        some = predictor.pixel_values(source.read(list(range(batch_size))))
        batches = -(-tiles // batch_size)

        def whole(number: int) -> None:
            target = Path(folder) / f"run{number}"
            target.mkdir()
            run(source, predictor, target, ("tangent", "radius", "expression"), batch_size, workers, progress=False)

        @torch.no_grad()
        def backbone(_: int) -> None:
            for _ in range(batches):
                predictor.features(some).sum().item()

        def reading(_: int) -> None:
            for _ in read_ahead(source.read, in_batches(source.order(0, tiles), batch_size), workers):
                pass

        works = {"predict": whole, "backbone": backbone, "reading": reading}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for number in range(-1, turns):
            # Each goes first equally often; an uncounted turn before the first warms up.
            for name in np.roll(list(works), number).tolist():
                start, spent = time.perf_counter(), time.process_time()
                works[name](number)
                if number >= 0:
                    taken[name].append((time.perf_counter() - start, time.process_time() - spent))
    return taken


def summary(taken: dict[str, list[tuple[float, float]]], tiles: int) -> dict[str, object]:
    """Print median tiles per second, and median and quartiles of the share of the slower limit that `predict` reaches."""
    found: dict[str, object] = {
        name: round(tiles / statistics.median(clock for clock, _ in turns), 1) for name, turns in taken.items()
    }
    for place, kind in enumerate(("clock", "cpu")):
        shares = [
            max(limits[place] for limits in (backbone, reading)) / whole[place]
            for whole, backbone, reading in zip(*taken.values(), strict=True)
        ]
        found[f"share by {kind}"] = [round(float(one), 2) for one in np.quantile(shares, [0.25, 0.5, 0.75])]
    return found


def memory(model: str, tiles: int, room: int) -> float:
    """Return the peak memory in MiB of `predict_slide` in a process of its own, on a slide with room for `room` tiles."""
    code = (
        "import sys, resource; from delst_hf.prediction import predict_slide, PatchChoice\n"
        "predict_slide(*sys.argv[1:4], choice=PatchChoice(positions=sys.argv[4], patch_um=8.0), progress=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    with tempfile.TemporaryDirectory() as folder:
        path, table = Path(folder) / "slide.tif", Path(folder) / "places.csv"
        # One slide for all numbers of tiles, read completely: decoded tiles are cached up to 64 MiB per thread.
        make_slide(path, room, side=16)
        positions(path, tiles, side=16, room=room).to_csv(table, index=False)
        command = [sys.executable, "-c", code, model, str(path), f"{folder}/out.h5ad", str(table)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def whole(model: str, side: int) -> dict[str, float]:
    """Return patches, seconds and peak MiB of `predict_slide` on the grid over a slide of `side` px, in its own process."""
    code = (
        "import sys, resource, time; from delst_hf.prediction import predict_slide, PatchChoice\n"
        "start = time.perf_counter()\n"
        "found = predict_slide(*sys.argv[1:4], choice=PatchChoice(patch_um=112.0), batch_size=256)\n"
        "print(len(found.source), time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        make_slide(path, (side // 112) ** 2)
        command = [sys.executable, "-c", code, model, str(path), f"{folder}/out.h5ad"]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-3:]
    return dict(zip(("patches", "seconds", "peak_mib"), map(round, map(float, found)), strict=True))


def _own(path: Path):
    image = open_image(path)
    return lambda y, x: image[y : y + 112, x : x + 112]


def _zarr(path: Path):
    import zarr

    array = zarr.open(tifffile.imread(path, aszarr=True), mode="r")
    return lambda y, x: array[y : y + 112, x : x + 112]


def _openslide(path: Path):
    import openslide

    slide = openslide.open_slide(path)
    return lambda y, x: np.asarray(slide.read_region((x, y), 0, (112, 112)))


_READERS = {"delst_hf": _own, "zarr": _zarr, "openslide": _openslide}


def _installed(name: str) -> bool:
    found = importlib.util.find_spec(name) is not None
    if not found:
        print(f"{name} is not installed: left out")
    return found


def readers(patches: int = 2000) -> dict[str, float]:
    """Print patches per second of 112 px at random positions, in order along the rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        make_slide(path, 4096)
        image = open_image(path)
        corners = np.random.default_rng(0).integers(0, image.shape[0] - 112, (patches, 2))
        corners = corners[np.lexsort((corners[:, 1], corners[:, 0] // 512))]
        ways = {name: opened for name, opened in _READERS.items() if _installed(name)}
        taken: dict[str, list[float]] = {}
        for _ in range(3):
            for name, opened in ways.items():
                read, start = opened(path), time.perf_counter()
                for y, x in corners.tolist():
                    read(y, x)
                taken.setdefault(name, []).append(time.perf_counter() - start)
    return {name: patches / statistics.median(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help=f"checkpoint, or a ViT of random weights: {', '.join(VITS)}")
    parser.add_argument("--tiles", type=int, default=128)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs="+", metavar="TILES")
    parser.add_argument("--whole", type=int, metavar="PX")
    parser.add_argument("--readers", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = scratch_model(Path(scratch), given.model) if given.model in VITS else given.model
        if given.readers:
            found = {name: round(rate) for name, rate in readers().items()}
        elif given.whole:
            found = whole(model, given.whole)
        elif given.memory:
            found = {str(tiles): round(memory(model, tiles, max(given.memory))) for tiles in given.memory}
        else:
            taken = rates(model, given.tiles, given.turns, given.batch_size, given.num_workers)
            device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
            found = {"device": device, **summary(taken, given.tiles)}
        print(json.dumps(found))
