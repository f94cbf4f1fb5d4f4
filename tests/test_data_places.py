"""What a wrong path is answered with: by the files that lie there, at once, before anything is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from delst_hf.cli import main
from delst_hf.data.places import check_dataset, check_model, near

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A run, a dataset, a backbone, a folder of images, by relative paths with a blank and an umlaut."""
    for name in ("Läufe 1/model", "backbones/vit", "backbones/dinov2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    for name in ("spots", "genes", "slides"):
        (tmp_path / "data/mine" / name).mkdir(parents=True)
    (tmp_path / "data/half/spots").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "slide.SVS").write_bytes(b"")
    (tmp_path / "slide.h5ad").write_bytes(b"")
    (tmp_path / "embeddings.npy").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["Läufe 1/model", "backbones/vit", "facebook/dinov2-small", "vit_small", "embeddings.npy", "images"]
)
def test_what_may_be_a_model_passes(here, name):
    check_model(name)


@pytest.mark.parametrize("name", ["data/mine", "me/slides"])
def test_what_may_be_a_dataset_passes(here, name):
    check_dataset(name)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("data/mine", ValueError, "is a dataset folder, and a model is asked for. Commands take the model first, then"),
        ("slide.h5ad", ValueError, "is a file, and a model is asked for. Commands take the model first, then the data"),
        ("images/slide.SVS", ValueError, "is a file, and a model is asked for"),
        ("Läufe 1", ValueError, r"is the folder of a run; its model is Läufe 1/model\. Give that"),
        ("./backbones/dinov3", FileNotFoundError, r"no model ./backbones/dinov3 \(did you mean backbones/dinov2\?\)"),
        ("runs/toy/model", FileNotFoundError, r"no model runs/toy/model\. Give the folder of a DELST checkpoint"),
    ],
)
def test_what_is_plainly_not_a_model_is_refused(here, name, error, said):
    with pytest.raises(error, match=said):
        check_model(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("backbones/vit", "is a model, and a dataset folder is asked for"),
        ("data", r"is not a dataset folder, but data/mine is\. Give that|not a complete dataset folder"),
        ("images", "holds images, .*delst prepare FORMAT .*delst prepare image"),
        ("slide.h5ad", r"is a file, .*delst check slide\.h5ad"),
        ("nothing", r"not a complete dataset folder: \['spots', 'genes', 'slides'\] missing.*delst check nothing"),
        ("data/half", r"not a complete dataset folder: \['genes', 'slides'\] missing. Make it again"),
        ("./data/mien", r"no dataset folder ./data/mien \(did you mean data/mine\?\)"),
        ("mien", "no dataset folder mien. Give a folder made by delst prepare"),
    ],
)
def test_what_is_plainly_not_a_dataset_is_refused(here, name, said):
    with pytest.raises(FileNotFoundError, match=said):
        check_dataset(name)


def test_what_lies_beside_is_named_where_no_name_is_near(here):
    assert near(Path("backbones/resnet"), lambda path: True) == " (beside it there is backbones/dinov2, backbones/vit)"
    assert near(Path("nowhere/resnet"), lambda path: True) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "data/mine", "Läufe 1/model"], "data/mine is a dataset folder, and a model is asked for."),
        (["fit", "data/mine", "Läufe 1/model", "--output", "out"], "data/mine is a dataset folder, and a model"),
        (
            ["predict", "Läufe 1/model", "he.png", "--output", "slide.h5ad"],
            "slide.h5ad exists. Choose another --output",
        ),
        (
            ["retrieve", "Läufe 1/model", "he.png", "--output", "he.csv"],
            "--output is he.csv. Allowed are names that end",
        ),
    ],
)
def test_the_command_answers_before_it_loads_anything(here, words, said):
    code = (
        "import sys; from delst_hf.cli import main; status = main(sys.argv[1:]); "
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules})); sys.exit(status)"
    )
    (here / "delst").write_text(code)  # by this name the package knows that it is the command
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "delst", *words], capture_output=True, text=True, env=environment, cwd=here)
    assert done.returncode == 2
    assert done.stderr.startswith(f"delst: error: {said}")
    assert done.stderr.count("\n") == 1
    assert not {"torch", "transformers", "datasets", "pandas", "numpy"} & set(done.stdout.split("LOADED")[1].split())


@pytest.mark.parametrize("words", [[], ["--debug"]])
def test_without_a_command_all_are_named(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "error: name a command: prepare, check, merge, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "visium", "outs", "--ouput", "d"], "--ouput is not an option. Did you mean --output?"),
        (["evaluate", "a", "b", "--protocolls", "hest"], "--protocolls is not an option. Did you mean --protocols?"),
        (["prepare", "toy", "--output", "d", "--patch_size", "3"], "--patch_size is not an option."),
        (["prepare", "toy"], "the following arguments are required: --output"),
        (["evaluate", "a", "b", "c"], "unrecognized arguments: c"),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest_that_there_is(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    usage, error = capsys.readouterr().err.split("\n", 1)
    assert stop.value.code == 2
    assert usage.startswith(f"usage: delst {words[0]}") and said in error
