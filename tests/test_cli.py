"""`delst` as a user types it: what it prints, what it writes, and how it refuses."""

import ast
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

import delst_hf.cli
import delst_hf.commands.formats
from delst_hf.cli import main
from delst_hf.data.vocabulary_file import read_gene_list

FORMATS = tuple(delst_hf.commands.formats.FORMATS)


@pytest.fixture
def her2st(tmp_path):
    """Sections Z1 and Z2 of 3 x 3 spots in the HER2ST layout."""
    data = tmp_path / "src" / "data"
    grid = pd.DataFrame([(x, y) for x in (1, 2, 3) for y in (1, 2, 3)], columns=["x", "y"])
    grid["pixel_x"], grid["pixel_y"], grid["selected"] = grid["x"] * 40, grid["y"] * 40, 1
    counts = pd.DataFrame(np.arange(18).reshape(9, 2), columns=["GA", "GB"])
    counts.index = grid["x"].astype(str) + "x" + grid["y"].astype(str)
    for section in ("Z1", "Z2"):
        for folder in ("ST-cnts", "ST-spotfiles", f"ST-imgs/Z/{section}"):
            (data / folder).mkdir(parents=True, exist_ok=True)
        counts.to_csv(data / f"ST-cnts/{section}.tsv.gz", sep="\t")
        grid.to_csv(data / f"ST-spotfiles/{section}_selection.tsv", sep="\t", index=False)
        Image.new("RGB", (160, 160), "pink").save(data / f"ST-imgs/Z/{section}/he.jpg")
    return tmp_path / "src"


@pytest.mark.parametrize(
    "command", [[], ["prepare"], ["card"], ["push"], ["doctor"], *(["prepare", name] for name in FORMATS)]
)
def test_help_teaches_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert " ".join(["delst", *command]) in text.split("usage: ")[1]
    assert "delst prepare" in text[text.rindex("\n\n") :]
    if command == ["prepare"]:
        for name, one in delst_hf.commands.formats.FORMATS.items():
            assert f"delst prepare {name} " in one.told.examples[0]
            assert one.told.examples[0] in text


@pytest.mark.parametrize("module", ["cli", "commands/prepare", "commands/formats", "commands/hub"])
def test_help_needs_no_heavy_import(module):
    tree = ast.parse((Path(delst_hf.cli.__file__).parent / f"{module}.py").read_text())
    modules = [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    modules += [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    assert len(modules) >= 4
    assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


def test_prepare_toy(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "toy", "--slides", "1", "--seed", "3", "--output", "toy", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert f"dataset  {tmp_path / 'toy'}" in printed
    assert "slides   1: toy_A1 196" in printed
    assert "genes    200" in printed
    line = next(line for line in printed.splitlines() if line.startswith("open"))
    rows = eval(line.split(None, 1)[1], {"datasets": sys.modules["datasets"]})
    assert len(rows) == 196
    assert rows[0]["image"].size == (64, 64)


def test_prepare_her2st(her2st, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text("section,id,label\nZ2,1x1,duct\nZ1,3x3,fat\n")
    output = tmp_path / "out"
    arguments = ["prepare", "her2st", str(her2st), "--output", str(output), "--labels", str(labels)]
    size = ["--patch-um", "100", "--patch-px", "32", "--image-format", "png", "--quiet"]
    assert main([*arguments, *size, "--sections", "Z2"]) == 0
    assert main([*arguments, *size, "--overwrite"]) == 0  # without --sections: all of them
    printed = capsys.readouterr().out
    assert "slides   1: Z2 9" in printed
    assert "slides   2: Z1 9, Z2 9" in printed
    rows = load_dataset(str(output))["train"]
    assert rows["label"][:] == [None] * 8 + ["fat"] + ["duct"] + [None] * 8
    slides = load_dataset(str(output), "slides")["train"]
    assert slides["mpp"][:] == pytest.approx([5.0, 5.0])
    assert slides["label_source"][:] == ["labels.csv"] * 2
    assert slides["patch_px"][:] == [32, 32]
    assert rows[0]["image"].format == "PNG"


def test_prepare_anndata(tmp_path, capsys):
    import anndata

    files = []
    for name in ("one", "two"):
        adata = anndata.AnnData(X=np.ones((2, 3), dtype=np.float32), var=pd.DataFrame(index=["A", "B", "C"]))
        adata.obsm["spatial"] = np.array([[30.0, 40.0], [60.0, 20.0]])
        adata.obs["kind"] = ["t", "s"]
        image = np.full((50, 80, 3), 0.5, dtype=np.float32)
        scale = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 20.0}
        adata.uns["spatial"] = {"lib": {"images": {"hires": image}, "scalefactors": scale}}
        files.append(str(tmp_path / f"{name}.h5ad"))
        adata.write_h5ad(files[-1])
    base = ["prepare", "anndata", *files, "--output", str(tmp_path / "out"), "--patch-px", "16", "--quiet"]
    assert main(base) == 2
    assert "slide_id 'lib' is given twice" in capsys.readouterr().err
    assert main([*base, "--slide-id", "S1,S2", "--patient-id", "P", "--spot-um", "100", "--label-key", "kind"]) == 0
    rows = load_dataset(str(tmp_path / "out"))["train"]
    assert rows["slide_id"][:] == ["S1", "S1", "S2", "S2"]
    assert rows["label"][:] == ["t", "s", "t", "s"]
    assert set(rows["patient_id"]) == {"P"}
    assert load_dataset(str(tmp_path / "out"), "slides")["train"]["mpp"][:] == [5.0, 5.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["her2st", "SRC", "--sections", "Q9"], "no section 'Q9' under"),
        (["her2st", "nowhere"], "no data/ST-cnts under nowhere"),
        (["her2st", "SRC", "--labels", "none.csv"], "no labels file at none.csv"),
        (["her2st", "SRC", "--mpp", "500"], "mpp is 500.0. Allowed"),
        (["her2st", "SRC", "--patch-um", "0"], "patch_um is 0.0"),
        (["anndata", "none.h5ad"], "no file at none.h5ad"),
        (["anndata", __file__, __file__, "--slide-id", "a"], "--slide-id names 1 slides for 2 files"),
        (["anndata", __file__, __file__, "--image", __file__], "--image is one image, but 2 files"),
        (["anndata", __file__], "is not an .h5ad file"),
        (["toy", "--slides", "0"], "num_slides is 0"),
        (["toy", "--quality", "101"], "quality is 101"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(her2st, tmp_path, capsys, arguments, message):
    arguments = [str(her2st) if part == "SRC" else part for part in arguments]
    before = sorted(tmp_path.iterdir())
    assert main(["prepare", *arguments, "--output", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("delst: error: ")
    assert message in last
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_a_key_error_is_shown_without_quotes(her2st, tmp_path, capsys):
    (her2st / "data/ST-spotfiles/Z1_selection.tsv").write_text("x\ty\n1\t1\n")
    assert main(["prepare", "her2st", str(her2st), "--output", str(tmp_path / "out"), "--quiet"]) == 2
    assert "delst: error: Z1_selection.tsv: columns ['pixel_x', 'pixel_y'] are missing" in capsys.readouterr().err


def test_debug_shows_where_it_failed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data/ST-cnts"):
        main(["--debug", "prepare", "her2st", "nowhere", "--output", str(tmp_path / "out")])


@pytest.mark.parametrize("wrapped", [False, True])  # Python before 3.12 wraps one that comes within an import
def test_interruption_is_no_traceback(tmp_path, capsys, monkeypatch, wrapped):
    def interrupt(*arguments, **options):
        if wrapped:
            raise RuntimeError("Error calling __set_name__ on 'x'") from KeyboardInterrupt()
        raise KeyboardInterrupt

    monkeypatch.setattr("delst_hf.data.toy.make_toy_slide", interrupt)
    assert main(["prepare", "toy", "--output", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_shards_of_a_cluster_merge(tmp_path, capsys):
    command = ["prepare", "toy", "--slides", "2", "--output", str(tmp_path / "toy"), "--quiet", "--patch-px", "8"]
    for index in range(2):
        assert main([*command, "--shard-index", str(index), "--num-shards", "2"]) == 0
    folders = sorted(str(path) for path in tmp_path.iterdir())
    assert [Path(path).name for path in folders] == ["toy-00000-of-00002", "toy-00001-of-00002"]
    assert main(["merge", *folders, "--output", str(tmp_path / "toy"), "--split", "spot"]) == 0
    assert "splits   " in capsys.readouterr().out
    assert main(["vocabulary", str(tmp_path / "toy"), "--num-genes", "7", "--output", str(tmp_path / "genes.txt")]) == 0
    assert len(read_gene_list(tmp_path / "genes.txt")) == 7
    for wrong, message in (
        (["--shard-index", "0"], "belong together"),
        (["--shard-index", "2", "--num-shards", "2"], "shard_index is 2 of 2"),
        (["--shard-index", "0", "--num-shards", "2", "--split", "slide"], "Give --split to delst merge"),
        (["--min-tissue", "2"], "min_tissue is 2.0"),
        (["--test-fraction", "1", "--split", "slide"], "leave something to train on"),
        (["--aliases", "none.csv"], "no alias file at none.csv"),
    ):
        assert main([*command, "--overwrite", *wrong]) == 2
        assert message in capsys.readouterr().err


def test_prepare_visium_and_table(tmp_path, capsys):
    from layouts import make_source, write_outs

    source = make_source()
    write_outs(tmp_path / "S1" / "outs", source)
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    source.spots.to_csv(tmp_path / "xy.csv", index_label="barcode")
    base = ["--output", str(tmp_path / "out"), "--overwrite", "--quiet", "--patch-px", "24", "--patch-um", "120"]
    assert (
        main(["prepare", "visium", str(tmp_path / "S1"), "--image", str(tmp_path / "he.png"), *base, "--preview"]) == 0
    )
    assert "slides   1: S1 12" in capsys.readouterr().out
    assert (tmp_path / "out" / "previews" / "S1.png").is_file()
    files = ["--image", str(tmp_path / "he.png"), "--counts", str(tmp_path / "S1/outs/filtered_feature_bc_matrix.h5")]
    command = ["prepare", "table", *files, "--coordinates", str(tmp_path / "xy.csv"), "--mpp", "5", "--slide-id", "T"]
    assert main([*command, *base]) == 0
    assert "slides   1: T 12" in capsys.readouterr().out
    assert load_dataset(str(tmp_path / "out"), "slides")["train"]["source"][:] == [
        "table: filtered_feature_bc_matrix.h5, xy.csv, he.png"
    ]


def test_a_run_killed_in_the_middle_is_taken_up(tmp_path):
    """SIGKILL, so that nothing can tidy up: finished slides stay, nothing half-written is taken for whole."""
    command = ["prepare", "toy", "--slides", "4", "--output", str(tmp_path / "d"), "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "delst_hf.cli", *command])
    parts, deadline = tmp_path / ".d.parts", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        names = [path.name for path in parts.glob("*")]
        if any("incomplete" not in name for name in names) and any("incomplete" in name for name in names):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "d").exists()
    whole = [path for path in parts.glob("*") if "incomplete" not in path.name]
    assert 1 <= len(whole) < 4
    kept = {file.stat().st_ino for part in whole for file in (part / "spots").glob("*.parquet")}
    main(command)
    # The files of finished slides are the same ones, not made again.
    assert kept <= {file.stat().st_ino for file in (tmp_path / "d" / "spots").glob("*.parquet")}
    assert not parts.exists()
    main([*command[:-2], str(tmp_path / "e"), "--quiet"])
    for path in sorted((tmp_path / "e" / "spots").rglob("*.parquet")):
        assert pq.read_table(tmp_path / "d" / "spots" / path.name).equals(pq.read_table(path))
