"""Commands of a user killed at every file-system event of their output, out of disk or memory there, and run twice at once.

`make torture` takes every command and every event; the ordinary tests take some.
"""

import json
import os
import shutil
from pathlib import Path

import anndata
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import make_tiny_model, make_tiny_processor
from faults import FaultServer, tally

from delst_hf.data.dataset import write_dataset
from delst_hf.data.folder import open_folder
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.hub.checksums import check_checksums
from delst_hf.record import data_facts, training_record

WHOLE = bool(os.environ.get("DELST_TORTURE"))
SLIDES = ("toy_A1", "toy_A2", "toy_B1")
SCORED = ["--protocols", "retrieval", "--no-baselines", "--resamples", "5", "--test-slides", "toy_B1"]


@pytest.fixture(scope="module")
def server():
    with FaultServer("torture_commands") as server:
        yield server


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the commands are given: data, model, mine.h5ad, results.json (once evaluated)."""
    given = tmp_path_factory.mktemp("given")
    slides = [make_toy_slide(name, spots_per_side=4, num_genes=20, image_px=120) for name in SLIDES]
    write_dataset(slides, given / "data", patch_um=56, patch_px=16)
    study = Study.load(given / "data")
    processor = make_tiny_processor(study)
    facts = data_facts(given / "data", study, SLIDES[:2])
    record = training_record(
        train_slides=list(SLIDES[:2]), validation_slides=[], vision=None, data=facts, hyperparameters={}, hardware="two cores",
        log_history=[],
    )  # fmt: skip
    save_checkpoint_folder(
        given / "model", make_tiny_model(len(processor.feature_extractor.vocabulary)), processor, record
    )
    counts = study.counts(study.subset(["toy_B1"]))
    spots = pd.DataFrame(index=[f"spot{number}" for number in range(counts.shape[0])])
    anndata.AnnData(counts, obs=spots, var=pd.DataFrame(index=study.gene_names)).write_h5ad(given / "mine.h5ad")
    return given


def words_of(name: str, given: Path, folder: Path) -> list[str]:
    """Return the command, which writes below a folder."""
    model, data, quiet = str(given / "model"), str(given / "data"), ["--quiet", "--num-workers", "0"]
    output = ["--output", str(folder / OUTPUTS[name])]
    return {
        "fit": ["fit", model, data, *output, *quiet],
        "predict": ["predict", model, data, "--slides", "toy_B1", *output, *quiet],
        "predict h5ad": ["predict", model, data, "--slides", "toy_B1", *output, *quiet],
        "embed": ["embed", model, str(given / "mine.h5ad"), "--modality", "genes", *output, "--quiet"],
        "embed a dataset": ["embed", model, data, *output, *quiet],
        "reference": ["reference", str(folder / "model"), data, "--quiet"],
        "evaluate": ["evaluate", model, data, *output, *SCORED],
        "report": ["report", str(given / "results.json"), *output],
        "vocabulary": ["vocabulary", data, *output, "--num-genes", "10"],
        "card": ["card", model, "me/toy", *output],
    }[name]


OUTPUTS = {
    "fit": "head", "predict": "slide.parquet", "predict h5ad": "slide.h5ad", "embed": "mine.h5ad",
    "embed a dataset": "embedded", "reference": "model/reference", "evaluate": "results.json", "report": "report.html",
    "vocabulary": "genes.txt", "card": "card.md",
}  # fmt: skip


def content(path: Path) -> object:
    """Return what stands at an output, whole, to be compared; fails where it is not."""
    if path.suffix == ".parquet":
        return pq.read_table(path, partitioning=None).to_pydict()
    if path.suffix == ".h5ad":
        read = anndata.read_h5ad(path)
        return read.obs.to_dict(), {name: read.obsm[name].tolist() for name in read.obsm}
    if path.suffix == ".json":
        return json.loads(path.read_text())["protocols"]
    if path.suffix == ".html":
        return path.read_text().rstrip()[-7:]
    if path.suffix in (".txt", ".md"):
        return path.read_text()
    if path.name == "head":
        check_checksums(path)
        return (path / "model.safetensors").read_bytes()
    if path.name == "embedded":
        assert (path / "training.json").is_file()
        return pq.read_table(path / "embeddings-00000-of-00001.parquet", partitioning=None).to_pydict()
    return {one.name: one.read_bytes() for one in path.iterdir() if one.suffix != ".json"}


def begin(name: str, given: Path, folder: Path) -> list[str]:
    folder.mkdir()
    if name == "reference":
        shutil.copytree(given / "model", folder / "model")
    return words_of(name, given, folder)


@pytest.fixture(scope="module")
def expected(server, given, tmp_path_factory):
    """What each command makes, when nothing is in its way."""
    made: dict[str, object] = {}

    def expected(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("expected") / "run"
            words = begin(name, given, folder)
            assert server.run("command", str(folder.parent / "said"), *words) == 0, (folder.parent / "said").read_text()
            made[name] = content(folder / OUTPUTS[name])
            if name == "evaluate":
                shutil.copy(folder / OUTPUTS[name], given / "results.json")
        return made[name]

    return expected


def left_over(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*"))


def is_there(output: Path) -> bool:
    """Whether there is something that a reader would take for the output."""
    return bool(list(output.glob("embeddings-*"))) if output.name == "embedded" else output.exists()


KILLED = ["fit", "predict", "predict h5ad", "embed", "embed a dataset", "reference", "evaluate", "vocabulary", "card"]
FAULTS = [(name, fault) for name in KILLED for fault in ("kill", "full disk")]
FEW = [("fit", "kill"), ("embed a dataset", "full disk")]


@pytest.mark.parametrize(("name", "fault"), FAULTS if WHOLE else FEW)
def test_a_command_leaves_nothing_half_and_is_finished_by_the_same_command(
    server, given, expected, tmp_path, name, fault
):
    expected(name)
    number, ended, step = 0, False, (1 if fault == "kill" else 3) if WHOLE else 9
    while not ended:
        folder = tmp_path / str(number)
        words, output, said = begin(name, given, folder), folder / OUTPUTS[name], tmp_path / "said"
        at = {"kill_at" if fault == "kill" else "full_at": number, "within": str(folder)}
        status = server.run("command", str(said), *words, **at)
        ended = status == 0
        if fault == "full disk" and not ended:
            lines = [line for line in said.read_text().splitlines() if line.startswith("delst: error: ")]
            tally(f"{name}, {fault}", len(lines) == 1 and "Traceback" not in said.read_text(), said.read_text())
        if is_there(output):
            assert content(output) == expected(name), f"half an output after event {number}"
        again = server.run("command", str(said), *words)
        assert again in (0, 3), f"the rerun ended with {again} after event {number}: {said.read_text()}"
        assert again == 0 or "exists" in said.read_text() or "holds something already" in said.read_text()
        held = content(output) == expected(name) and left_over(folder) == []
        tally(f"{name}, {fault}", held, f"event {number}: {left_over(folder)}")
        shutil.rmtree(folder)
        number += step
    assert number > step


@pytest.mark.skipif(not WHOLE, reason="what libraries do without memory differs by machine: make torture")
@pytest.mark.parametrize("name", ["fit", "predict", "embed"])
def test_a_command_that_is_refused_memory_says_so_and_leaves_nothing_half(server, given, expected, tmp_path, name):
    """As under `ulimit -v`, with a few megabytes beyond what the libraries take."""
    expected(name)
    for number in (8, 48):
        folder, said = tmp_path / str(number), tmp_path / "said"
        words, output = begin(name, given, folder), folder / OUTPUTS[name]
        status = server.run("command", str(said), *words, memory=number << 20)
        lines, again = said.read_text().splitlines(), 0
        told = status == 0 or ("memory" in lines[-1] and "se a machine with more memory" in lines[-1])
        if is_there(output):
            assert content(output) == expected(name), f"half an output at {number} MiB"
        else:
            again = server.run("command", str(said), *words)
        held = told and again == 0 and content(output) == expected(name) and left_over(folder) == []
        tally(
            f"{name}, no memory", held, f"{number} MiB: {lines[-1:]}, the rerun ended with {again}, {left_over(folder)}"
        )


@pytest.mark.parametrize("name", OUTPUTS if WHOLE else ["predict", "embed a dataset", "vocabulary"])
def test_of_two_at_once_into_one_output_one_is_refused(server, given, expected, tmp_path, name):
    if name == "report":
        expected("evaluate")
    words = begin(name, given, tmp_path / "run")
    server.run("twice", str(tmp_path), *words)
    statuses = (tmp_path / "statuses").read_text().split()
    texts = [(tmp_path / number).read_text() for number in "01"]
    # A card is written so quickly, and replaces the last one, that the second run may come after the first: both are whole.
    one_after_the_other = name == "card" and statuses == ["0", "0"]
    if not one_after_the_other:
        assert sorted(statuses) == ["0", "2"], texts
        refused = texts[statuses.index("2")]
        why = ("another run is writing to this", "exists", "holds something already", "made by somebody else")
        assert any(words in refused for words in why) and "Traceback" not in refused
    held = content(tmp_path / "run" / OUTPUTS[name]) == expected(name) and left_over(tmp_path / "run") == []
    tally("two runs of a command", held, f"{name}: {left_over(tmp_path / 'run')}")
    open_folder(given / "data", verify=True)
