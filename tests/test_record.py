"""Nothing that only this machine or this user should know stands in a record: planted secrets and paths are looked for."""

import importlib.metadata
import json
import os
import sys

import pytest

import delst_hf
from delst_hf import DelstTrainingArguments
from delst_hf.errors import explain
from delst_hf.record import (
    data_facts,
    hyperparameters,
    public_command,
    public_record,
    public_text,
    training_record,
    without_secrets,
)

TOKEN = "hf_PlantedSecretOfAlice"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/alice/data/", "data"),
        ("~/data", "data"),
        ("../alice/models/vit", "vit"),
        ("./vit", "vit"),
        ("runs/alice/toy/model", "model"),
        ("facebook/dinov2-small", "facebook/dinov2-small"),
        ("https://alice:secret@hub.example/api", "https://hub.example/api"),
        (f"pushed with {TOKEN}", "pushed with <left out>"),
        ("read from /home/alice/data/x.h5, 3 spots", "read from x.h5, 3 spots"),
        ("file:///home/alice/data/x.h5", "x.h5"),
        ("opened file:///home/alice/data/x.h5 twice", "opened x.h5 twice"),
        ("kept in /home/alice", "kept in ~"),
        ("/Users/alice/", "~"),
        ("https://hub.example/x?id=7&X-Amz-Signature=0a1b2c", "https://hub.example/x?id=7&X-Amz-Signature=<left out>"),
        ("sent Authorization: Bearer abc.def.ghi", "sent Authorization: Bearer <left out>"),
        ("log1p / counts, and/or 2026/11/26", "log1p / counts, and/or 2026/11/26"),
        ("1 x NVIDIA A100", "1 x NVIDIA A100"),
    ],
)
def test_texts_lose_paths_and_secrets_and_nothing_else(text, told):
    assert public_text(text) == told


@pytest.mark.parametrize("there", [True, False])
def test_a_relative_path_is_told_from_an_id_by_what_is_there(tmp_path, monkeypatch, there):
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "alice" / "vit").mkdir(parents=True)
    assert public_text("alice/vit") == ("vit" if there else "alice/vit")


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", TOKEN],
        [f"--hub_token={TOKEN}"],
        ["--hub-token", "another-kind-of-secret"],
        ["--hub_tok", "another-kind-of-secret"],
        ["--hub_to=another-kind-of-secret"],
        ["--api_key=another-kind-of-secret"],
        ["--dataset", "/home/alice/secret-study"],
        ["--dataset=/home/alice/secret-study"],
        ["--vocabulary", "../alice/genes.txt"],
        ["--output_dir=~/alice/run"],
    ],
)
def test_commands_lose_them_however_an_option_is_given(words):
    told = " ".join(public_command(["pretrain.py", *words, "--seed", "1"]))
    assert told.startswith("pretrain.py --") and told.endswith("--seed 1")
    assert not [leak for leak in (TOKEN, "another-kind-of-secret", "alice", "/home") if leak in told]


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("redact", [public_text, without_secrets, lambda text: explain(ValueError(text))])
def test_a_secret_of_the_environment_is_left_out_of_records_and_messages(name, redact, monkeypatch):
    monkeypatch.setenv(name, "no-usual-look")
    assert "sent <left out> along" in redact("sent no-usual-look along")


def test_settings_whose_names_only_hold_the_word_stay(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert public_text("it is false") == "it is false"


def test_messages_keep_the_paths_that_records_lose():
    text = "/home/alice/data/x.h5 is damaged"
    assert without_secrets(text) == text and public_text(text) == "x.h5 is damaged"


def test_records_hold_no_planted_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/alice/pretrain.py", "/home/alice/run.yaml", f"--hub_token={TOKEN}"])
    arguments = DelstTrainingArguments(
        str(tmp_path / "alice"), hub_token=TOKEN, lr_scheduler_type="cosine", use_cpu=True
    )
    facts = {"vision": "/home/alice/vit", "hub_token": TOKEN, "data": {"source": "/home/alice/x.h5"}, "slides": ["A1"]}
    record = training_record(**public_record(facts), hyperparameters=hyperparameters(arguments))
    text = json.dumps(record)
    assert not [leak for leak in (TOKEN, "alice", "/home", str(tmp_path)) if leak in text]
    assert (
        record["vision"] == "vit"
        and record["slides"] == ["A1"]
        and record["command"][:2] == ["pretrain.py", "run.yaml"]
    )
    assert record["hyperparameters"]["lr_scheduler_type"] == "cosine" and os.sep not in record["data"]["source"]


def test_the_fingerprint_of_the_data_is_that_of_their_manifest(toy_folder, toy_study):
    """A README may be edited by hand; the manifest says what the files are."""
    manifest = json.loads((toy_folder / "manifest.json").read_text())
    assert data_facts(toy_folder, toy_study, ["toy_A1"])["fingerprint"] == manifest["fingerprint"]


def test_a_package_that_runs_from_a_source_tree_keeps_its_record(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("delst_hf.record.version", missing)
    versions = training_record(train_slides=["toy_A1"])["versions"]
    assert versions["delst-hf"] == delst_hf.__version__ and versions["torch"] == "unknown"
