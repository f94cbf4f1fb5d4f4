"""Slides that cannot be predicted, through the command line: one sentence that says what to do, and nothing left behind."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from delst_hf.cli import main
from delst_hf.data.toy import make_toy_slide
from delst_hf.prediction.stream import check_reading


@pytest.fixture(scope="module")
def pixels():
    slide = make_toy_slide("toy_C1", spots_per_side=6, image_px=400)
    return np.asarray(slide.image)


def blank(pixels, path):
    Image.new("RGB", (400, 400), "white").save(path)


def fluorescence(pixels, path):
    dark = np.zeros_like(pixels)
    dark[..., 2] = 255 - pixels[..., 1]
    dark[100:180, 100:180, 1] = 200
    Image.fromarray(dark).save(path)


def small(pixels, path):
    Image.fromarray(np.ascontiguousarray(pixels[:40, :40])).save(path)


def contradicting(pixels, path):
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER")


def text(pixels, path):
    path.write_text("not an image")


def empty(pixels, path):
    path.write_bytes(b"")


def cut(pixels, path):
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (blank, "he.png", "no tissue was found"),
        (small, "he.png", "px wide, but the slide has only 40 x 40 px"),
        (contradicting, "he.tif", "--mpp"),
        (text, "he.png", "he.png"),
        (empty, "he.png", "he.png"),
        (cut, "he.png", "he.png"),
    ],
)
def test_a_slide_that_cannot_be_predicted(make, name, message, pixels, toy_heads, tmp_path, capsys):
    make(pixels, tmp_path / name)
    command = ["predict", str(toy_heads / "expression"), str(tmp_path / name), "--mpp", "2", "--quiet"]
    assert main([*command, "--output", str(tmp_path / "out.h5ad")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("delst: error: ") and message in told, told
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "table", "message"),
    [
        (["--stride-um", "0"], None, "the stride is 0 px"),
        (["--stride-um", "0.0001"], None, "Allowed: up to 2e+07. Give a larger stride"),
        ([], "x,y\n,100\n200,200\n", "1 of 2 positions have no numbers as x and y, the first '0' with x = nan"),
        ([], "x,y\nwide,100\n200,200\n", "1 of 2 positions have no numbers as x and y, the first '0' with x = wide"),
        (
            [],
            "x,y\n200,200\n9000,10\n",
            "1 of 2 positions have a patch beyond the image of 400 x 400 px, the first '1'",
        ),
        ([], "x,y\n", "has no position"),
        ([], "x,y,barcode\n200,200,a\n210,200,a\n", "the barcode 'a' is in several rows"),
    ],
)
def test_what_is_asked_of_a_slide_and_cannot_be(options, table, message, pixels, toy_heads, tmp_path, capsys):
    Image.fromarray(pixels).save(tmp_path / "he.png")
    if table is not None:
        (tmp_path / "places.csv").write_text(table)
        options = ["--positions", str(tmp_path / "places.csv")]
    before = sorted(path.name for path in tmp_path.iterdir())
    command = ["predict", str(toy_heads / "expression"), str(tmp_path / "he.png"), "--mpp", "2", "--quiet", *options]
    assert main([*command, "--output", str(tmp_path / "out.h5ad")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told and "not expected" not in told, told
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_batches_and_threads_that_cannot_be():
    with pytest.raises(ValueError, match="batch_size is 0"):
        check_reading(0, 0)
    with pytest.raises(ValueError, match="num_workers is -1"):
        check_reading(1, -1)


def test_fluorescence_is_refused_or_warned_of(pixels, toy_heads, tmp_path, capsys):
    fluorescence(pixels, tmp_path / "he.png")
    command = ["predict", str(toy_heads / "expression"), str(tmp_path / "he.png"), "--mpp", "2", "--quiet"]
    done = main([*command, "--output", str(tmp_path / "out.h5ad")])
    told = capsys.readouterr().err
    assert done == 2 or "colours are far from those" in told
    assert "fluorescence" in told or "no tissue" in told, told


def test_a_folder_that_cannot_be_written_is_told_before_the_work(pixels, toy_heads, tmp_path, capsys):
    Image.fromarray(pixels).save(tmp_path / "he.png")
    command = ["predict", str(toy_heads / "expression"), str(tmp_path / "he.png"), "--mpp", "2", "--quiet"]
    assert main([*command, "--output", str(tmp_path / "he.png" / "out.h5ad")]) == 2
    assert "he.png" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a small file system is mounted by Linux")
def test_a_disk_that_fills_up(pixels, toy_heads, tmp_path, capsys):
    """A real one of 192 KiB: nothing but what is predicted so far is left, and with room the same command ends."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this account may not mount a file system")
    try:
        Image.fromarray(pixels).save(tmp_path / "he.png")
        command = ["predict", str(toy_heads / "expression"), str(tmp_path / "he.png")]
        command += ["--mpp", "2", "--stride-um", "20", "--quiet", "--output", str(disk / "out.h5ad")]
        assert main(command) == 2 and "the disk is full" in capsys.readouterr().err
        assert not [path.name for path in disk.iterdir() if not path.name.startswith(".")]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert main(command) == 0 and (disk / "out.h5ad").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
