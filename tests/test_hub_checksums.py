"""Checkpoint folders whose files are missing, changed or added are refused by everything that reads them."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from delst_hf.cli import main
from delst_hf.evaluation.results import FORMAT
from delst_hf.hub.card import model_card
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.hub.checksums import CHECKSUMS, check_checksums, weights_fingerprint
from delst_hf.hub.publish import copy_checkpoint_folder, push_model
from delst_hf.prediction.predictor import load_predictor

pytestmark = pytest.mark.fault("damaged checkpoint folders")


@pytest.fixture(autouse=True)
def without_a_look_at_libraries(monkeypatch):
    """`delst doctor` imports each in a process of its own, which takes seconds and is not asked here."""
    monkeypatch.setattr("delst_hf.commands.doctor._optional_libraries", list)


@pytest.fixture
def checkpoint(toy_checkpoint, tmp_path):
    return shutil.copytree(toy_checkpoint, tmp_path / "model")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def unlist(folder, name):
    listed = json.loads((folder / CHECKSUMS).read_text())
    del listed["files"][name]
    (folder / CHECKSUMS).write_text(json.dumps(listed))


FAULTS = {
    "a flipped bit": (
        lambda folder: flip(folder / "model.safetensors"),
        "model.safetensors does not match its checksum",
    ),
    "no record": (lambda folder: (folder / "training.json").unlink(), "training.json is missing"),
    "a cut file": (lambda folder: (folder / "config.json").write_text("{}"), "config.json has 2 bytes instead of"),
    "a second file of weights": (
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors"),
        "model-00001-of-00002.safetensors was not written with it",
    ),
    "another vocabulary": (
        lambda folder: (folder / "processor_config.json").write_text(
            (folder / "processor_config.json").read_text().replace("toy", "TOY") + " "
        ),
        "processor_config.json has",
    ),
    "checksums of nothing": (
        lambda folder: (folder / CHECKSUMS).write_text('{"files": {}}'),
        "lists no weights, so nothing could be compared",
    ),
    "a file less in the checksums": (
        lambda folder: unlist(folder, "processor_config.json"),
        "processor_config.json was not written with it",
    ),
    "checksums cut": (lambda folder: (folder / CHECKSUMS).write_text('{"files'), "is not a list of checksums"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_is_not_as_it_was_written_is_refused_by_all(checkpoint, toy_folder, tmp_path, capsys, fault):
    check_checksums(checkpoint)
    damage, match = FAULTS[fault]
    damage(checkpoint)
    with pytest.raises(ValueError, match=match):
        push_model(checkpoint, "me/x")
    card = tmp_path / "card.md"
    assert main(["card", str(checkpoint), "me/x", "--output", str(card)]) == 2
    assert match in capsys.readouterr().err and not card.exists()
    if fault != "a cut file":  # which is found before the checksums: it is no configuration
        with pytest.raises(ValueError, match=match):
            load_predictor(str(checkpoint))
        output = tmp_path / "results.json"
        options = ["--protocols", "retrieval", "--output", str(output)]
        assert main(["evaluate", str(checkpoint), str(toy_folder), *options]) == 2
        assert match in capsys.readouterr().err and not output.exists()
    main(["doctor", "--model", str(checkpoint)])
    said = capsys.readouterr().out
    assert "FIX  model" in said and match in said


def test_a_checkpoint_in_training_is_compared_with_its_marker(checkpoint):
    entries = json.loads((checkpoint / CHECKSUMS).read_text())["files"]
    (checkpoint / CHECKSUMS).unlink()
    files = {name: {"size": entry["bytes"], "sha256": entry["sha256"]} for name, entry in entries.items()}
    (checkpoint / "complete").write_text(json.dumps({"files": files}))
    check_checksums(checkpoint)
    flip(checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors does not match its checksum"):
        check_checksums(checkpoint)


def test_a_checkpoint_without_checksums_is_said_to_have_none(checkpoint, caplog, capsys):
    (checkpoint / CHECKSUMS).unlink()
    with caplog.at_level("INFO", "delst_hf"):
        check_checksums(checkpoint)
    assert "carries no checksums.json" in caplog.text
    main(["doctor", "--model", str(checkpoint)])
    assert "no checksums.json to compare with" in capsys.readouterr().out


def test_results_are_those_of_the_weights_that_were_scored(checkpoint, tmp_path):
    results = {"format": FORMAT, "test_slides": ["toy_B1"], "own_arms": ["DELST embedding"], "protocols": []}
    results |= {"model": "me/elsewhere", "weights": weights_fingerprint(checkpoint)}
    assert "carry no fingerprint" not in model_card(checkpoint, "me/x", results=results)
    (tmp_path / "copy").mkdir()
    copy_checkpoint_folder(checkpoint, tmp_path / "copy")
    assert weights_fingerprint(tmp_path / "copy") == results["weights"]
    check_checksums(tmp_path / "copy")
    for model in ("me/elsewhere", str(tmp_path / "gone")):
        with pytest.raises(ValueError, match="The results are of the checkpoint .*Give results of this one"):
            model_card(checkpoint, "me/x", results=results | {"model": model, "weights": "0123456789abcdef"})
    del results["weights"]
    assert "carry no fingerprint of the weights" in model_card(checkpoint, "me/x", results=results)


def test_weights_that_are_not_finite_are_neither_saved_nor_pushed(checkpoint, tiny_model, tiny_processor, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    weights["gene_projection.weight"][0, 0] = float("inf")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / CHECKSUMS).unlink()
    with pytest.raises(ValueError, match="holds weights that are not finite, 'gene_projection.weight' first"):
        push_model(checkpoint, "me/x")
    tiny_model.gene_projection.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 weights are not finite, 'gene_projection.weight' first. Nothing is saved"):
        save_checkpoint_folder(tmp_path / "bad", tiny_model, tiny_processor)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[" * 100_000),
        ("processor_config.json", "{"),
        ("training.json", "{"),
        ("model.safetensors", "cut"),
    ],
)
def test_a_file_of_a_checkpoint_that_cannot_be_read_is_one_line_with_its_folder(
    checkpoint, toy_folder, tmp_path, capsys, name, content
):
    """Without checksums, as folders of other programs are."""
    (checkpoint / CHECKSUMS).unlink()
    (checkpoint / name).write_text(content)
    output = ["--protocols", "retrieval", "--no-baselines", "--output", str(tmp_path / "results.json")]
    assert main(["evaluate", str(checkpoint), str(toy_folder), *output]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("delst: error")]
    assert f"{checkpoint}" in line and "cannot read the" in line
    assert "download or write it again" in line or "Give the folder of a DELST checkpoint" in line
