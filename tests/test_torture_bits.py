"""Single bits flipped in what commands read: one line, or the answer of the whole file; never a traceback or a dead process.

What this package writes carries checksums: a bit that changes the answer is refused. Files of others have none, and there a bit
may make another number. `make torture` takes more bits.
"""

import os
import random
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from faults import FaultServer, tally
from PIL import Image
from torture_given import OUTPUTS, content, is_there, left_over, make_given

from delst_hf.data.study import Study

BITS = 10 if os.environ.get("DELST_TORTURE") else 1
QUIET = ["--quiet", "--num-workers", "0"]


@pytest.fixture(scope="module")
def server():
    with FaultServer("torture_commands") as server:
        yield server


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What `make_given` makes, a slide as TIFF, positions on it, and features of the patches of each slide."""
    given = make_given(tmp_path_factory.mktemp("given"))
    pixels = np.asarray(Image.open(given / "he.png"))
    tifffile.imwrite(given / "he.tif", pixels, photometric="rgb", tile=(64, 64), compression="deflate")
    places = anndata.AnnData(obs=pd.DataFrame(index=["a", "b", "c"]))
    places.obsm["spatial"] = np.array([[40.0, 40.0], [60.0, 60.0], [80.0, 70.0]])
    places.write_h5ad(given / "places.h5ad")
    (given / "features").mkdir()
    study = Study.load(given / "data")
    for slide in study.slide_ids:
        spots = study.subset([slide]).remove_columns("image").to_pandas()
        with h5py.File(given / "features" / f"{slide}.h5", "w") as file:
            file["features"] = np.random.default_rng(0).normal(size=(len(spots), 4)).astype(np.float32)
            file["barcodes"] = spots["barcode"].to_numpy().astype("S")
            file["coords"] = spots[["x", "y"]].to_numpy()
    return given


# Of a kind: the file or folder in which a bit is flipped, what the command makes, and its words but for --output.
KINDS = {
    "AnnData": ("mine.h5ad", "embed", lambda at, whole: ["embed", whole / "model", at, "--modality", "genes", "--quiet"]),
    "outs": ("outs", "prepare image", lambda at, whole: ["prepare", "visium", at, "--patch-um", "100", "--patch-px", "20"]),
    "TIFF": ("he.tif", "prepare image", lambda at, whole: ["prepare", "image", at, "--mpp", "2", "--patch-um", "40"]),
    "positions": ("places.h5ad", "predict", lambda at, whole: [
        "predict", whole / "model", whole / "he.png", "--mpp", "2", "--patch-um", "56", "--positions", at, *QUIET]),
    "features": ("features", "evaluate", lambda at, whole: [
        "evaluate", at, whole / "data", "--test-slides", "toy_B1", "--protocols", "domains", "--resamples", "5"]),
    "checkpoint": ("model", "predict", lambda at, whole: ["predict", at, whole / "data", "--slides", "toy_B1", *QUIET]),
    "reference": ("known", "retrieve", lambda at, whole: ["retrieve", at, whole / "data", "--slides", "toy_B1", *QUIET]),
    "dataset": ("data", "embed a dataset", lambda at, whole: ["embed", whole / "model", at, *QUIET]),
}  # fmt: skip
OURS = ("checkpoint", "reference", "dataset")


def flipped(path, draw):
    """Flip a bit of a file, of a folder in one that is drawn; return which."""
    files = (
        [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    )
    file = draw.choice(files)
    data = bytearray(file.read_bytes())
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"bit {bit} of byte {place} of {file.relative_to(path.parent)}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_one_line_or_the_same_answer(server, given, tmp_path, kind):
    source, makes, words = KINDS[kind]
    draw, said = random.Random(kind), tmp_path / "said"

    def run(folder, at):
        command = [*map(str, words(at, given)), "--output", str(folder / OUTPUTS[makes])]
        return server.run("command", str(said), *command), folder / OUTPUTS[makes]

    (tmp_path / "whole").mkdir()
    status, output = run(tmp_path / "whole", given / source)
    assert status == 0, said.read_text()
    whole = content(output)
    for number in range(BITS):
        folder = tmp_path / str(number)
        (folder / "run").mkdir(parents=True)
        copy = shutil.copytree if (given / source).is_dir() else shutil.copy
        at = folder / source
        copy(given / source, at)
        which = flipped(at, draw)
        status, output = run(folder / "run", at)
        text = said.read_text()
        lines = [line for line in text.splitlines() if line.startswith("delst: error: ")]
        told = status == 0 or (status == 3 and len(lines) == 1)
        tally(f"bits, {kind}", told and "Traceback" not in text, f"{which}: {status}, {text[-600:]}")
        if status == 0 and kind in OURS:
            tally(f"bits, {kind}", content(output) == whole, f"{which}: another answer without a word")
        if status:
            half = is_there(output) or left_over(folder / "run") not in ([], [".data.parts"])
            tally(f"bits, {kind}", not half, f"{which}: {left_over(folder / 'run')}")
        shutil.rmtree(folder)
