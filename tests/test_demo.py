"""The page of `delst demo`: what it computes, and the page itself in a real browser."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from browser import Browser, find_browser

from delst_hf.cli import main
from delst_hf.demo.pictures import class_map, disk, number_map, spots_table
from delst_hf.demo.slide import open_slide
from delst_hf.prediction import build_reference, load_predictor, load_reference
from delst_hf.record import read_header


@pytest.fixture(scope="module")
def model(toy_heads, toy_folder, tmp_path_factory):
    """An expression head with a reference."""
    copy = tmp_path_factory.mktemp("demo") / "model"
    shutil.copytree(toy_heads / "expression", copy)
    build_reference(str(copy), str(toy_folder), progress=False)
    return str(copy)


@pytest.fixture(scope="module")
def opened(model, slide_file):
    predictor, reference = load_predictor(model), load_reference(model)
    shares: list[float] = []
    slide = open_slide(predictor, slide_file[0], slide_file[1], reference, shares.append)
    assert shares[-1] == 1.0
    return slide, predictor, reference


def test_a_score_is_the_weighted_mean_of_the_head(opened):
    slide, predictor, _ = opened
    names = list(slide.genes.index)
    values, lines = slide.score(f"{names[3].lower()}, {names[7]}:3")
    own = predictor(slide.source.read(list(range(len(slide.source)))))["expression"]
    np.testing.assert_allclose(values, (own[:, 3] + 3 * own[:, 7]) / 4, atol=1e-5)
    assert lines[0].startswith(f"{names[3]}: held-out Pearson") and len(lines) == 2
    with pytest.raises(ValueError, match=f"not predicted by this model.*Did you mean .*{names[3]}"):
        slide.score(names[3] + "X")
    for wrong, message in (("", "Type the name of a gene"), (f"{names[0]}:much", "must be a number")):
        with pytest.raises(ValueError, match=message):
            slide.score(wrong)


def test_a_place_of_the_picture_is_its_patch(opened):
    slide, _, reference = opened
    assert all(slide.at(*place) == number for number, place in enumerate(slide.places))
    assert slide.at(-500, -500) is None and slide.patch(0).shape == (32, 32, 3)
    assert slide.distance.shape == (len(slide.source),) and not slide.imputed
    assert "&lt;b&gt;" in spots_table(reference.describe([0], [0.5]).assign(label="<b>"))


def test_maps_colour_the_tissue_alone(opened):
    slide, predictor, reference = opened
    values = np.linspace(0, 1, len(slide.source))
    picture, legend = number_map(slide, values, unit="of <1>")
    changed = (picture != slide.picture).any(axis=2)
    half = slide.side / 2
    inside = np.zeros_like(changed)
    for x, y in slide.places:
        inside[max(round(y - half), 0) : round(y + half), max(round(x - half), 0) : round(x + half)] = True
    assert changed.any() and not (changed & ~inside).any() and "0.02" in legend and "0.98 of &lt;1&gt;" in legend
    low, high = (picture[int(y), int(x)] for x, y in (slide.places[0], slide.places[-1]))
    assert low[2] > low[1] and high[1] > high[2]  # violet and yellow of viridis
    shares = np.tile([0.2, 0.8], (len(slide.source), 1))
    slide.values["probabilities"], classes = shares, ["a", "<i>"]
    try:
        object.__setattr__(slide, "classes", classes)
        assert "&lt;i&gt;" in class_map(slide)[1]
    finally:
        del slide.values["probabilities"]
    drawn = disk(slide, 0, predictor, reference)
    assert drawn.count("<svg") == 1 and "currentColor" in drawn and "delst reference" in disk(slide, 0, predictor, None)


def test_the_files_of_a_space(model, tmp_path, capsys):
    assert main(["demo", "me/model", "--space", str(tmp_path / "space")]) == 0
    files = {path.name for path in (tmp_path / "space").iterdir()}
    assert files == {"app.py", "requirements.txt", "README.md"} and "DELST_MODEL to me/model" in capsys.readouterr().out
    compile((tmp_path / "space" / "app.py").read_text(), "app.py", "exec")
    assert main(["demo", "me/model", "--space", str(tmp_path / "space")]) == 2
    assert main(["demo", model, str(tmp_path / "none.png")]) == 2


def test_without_gradio_the_extra_is_named(model, slide_file, capsys):
    if importlib.util.find_spec("gradio") is not None:
        pytest.skip("gradio is installed")
    assert main(["demo", model, str(slide_file[0])]) == 2
    assert "pip install 'delst-hf[demo]'" in capsys.readouterr().err


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def address(model, slide_file):
    """The page, served by the command."""
    pytest.importorskip("gradio", reason="the optional extra demo is not installed")
    if find_browser() is None:
        pytest.skip("no Chromium here: install Debian's `chromium`")
    port = _free_port()
    command = [sys.executable, "-m", "delst_hf.cli", "demo", model, str(slide_file[0]), "--mpp", str(slide_file[1])]
    server = subprocess.Popen([*command, "--port", str(port)], env={**os.environ, "HF_HUB_OFFLINE": "1"})
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, "the page did not start"
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:  # a busy machine; how it stops is not what is tested here
        server.kill()
        server.wait()


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(address, opened, tmp_path, dark):
    """Open, type, draw, click: the map changes, a patch, spots and the disk appear, and the console stays empty."""
    names = list(opened[0].genes.index)
    browser = Browser(str(tmp_path / "profile"), dark=dark)
    picture = "document.querySelector('#map img')"
    try:
        browser.open(address + ("?__theme=dark" if dark else ""))
        browser.wait("document.querySelector('#open') && " + picture, 120)
        before = browser.evaluate(f"{picture}.src")
        browser.type("#genes textarea, #genes input", f"{names[5]}, {names[9]}:2")
        browser.click("#draw")
        browser.wait(f"{picture}.src !== {before!r}")
        browser.wait(f"document.querySelector('#told').innerText.includes({names[9]!r})")
        typed = browser.evaluate(f"{picture}.src")
        place = opened[0].places[len(opened[0].places) // 2] / opened[0].picture.shape[1::-1]
        browser.click("#map img", *place)
        browser.wait("document.querySelector('#patch img') && document.querySelector('#disk svg')")
        assert browser.evaluate("document.querySelectorAll('#spots tr').length") == 6
        browser.wait(f"{picture}.src !== {typed!r}")  # the patch is framed
        browser.type("#genes textarea, #genes input", "NOGENE")
        browser.click("#draw")
        browser.wait("document.querySelector('#told [role=alert]')")
        browser.screenshot(str(tmp_path / "page.png"))
        assert browser.console == []
    finally:
        browser.close()


@pytest.mark.fault("secrets and paths, Spaces")
def test_a_space_of_a_local_folder_tells_its_name_alone(toy_checkpoint, tmp_path):
    hostile = tmp_path / "home_of_alice" / "evil\nlicense: evil: <img src=x onerror=1>"
    shutil.copytree(toy_checkpoint, hostile)
    assert main(["demo", str(hostile), "--space", str(tmp_path / "space")]) == 0
    for path in (tmp_path / "space").iterdir():
        assert "home_of_alice" not in path.read_text()
    header = read_header(tmp_path / "space" / "README.md")
    assert (
        set(header) == {"title", "sdk", "app_file"}
        and "<img" not in (tmp_path / "space" / "README.md").read_text().split("---")[2]
    )
