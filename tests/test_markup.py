"""Hostile text in every field of both cards: shown, and never markup, a YAML key, a column or a placeholder."""

import json
import re
from collections import Counter

import pytest
import yaml
from test_model_card import results, row

from delst_hf.data.card import dataset_card
from delst_hf.data.schema import SLIDES
from delst_hf.hub.card import check_filled, model_card, unfilled
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.hub.facts import FACTS
from delst_hf.markup import Markdown, cell, fenced, fill, yaml_header
from delst_hf.record import license_of, read_header, training_record

pytestmark = pytest.mark.fault("hostile text in cards")

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\n---\nlicense: evil\n---\n# title",
    "a\r\n---\r\nlicense: evil",
    "a\u2028---\u2028license: evil\x85---\x85",
    "a | b | c",
    "{license}",
    "``` \n<b>out of the fence</b>",
    "[click](javascript:alert(1)) ![x](http://track)",
    "\u202emoc.live",
    "\\|\\<script>",
    "'\": [}",
]


def fences_removed(card):
    return re.sub(r"^(`{3,})[^\n]*\n.*?^\1`*[ ]*$", "", card, flags=re.DOTALL | re.MULTILINE)


def parts(card):
    """Header as YAML, and the body without blocks of code."""
    lines = card.split("\n")
    assert lines[0] == "---"
    end = lines.index("---", 1)
    return yaml.safe_load("\n".join(lines[1:end])), fences_removed("\n".join(lines[end + 1 :]))


def assert_harmless(card, keys):
    header, body = parts(card)
    assert set(header) == keys
    assert not re.findall(r"<(?!/?code>)", body), re.findall(r".{20}<(?!/?code>).{20}", body)
    assert "](javascript" not in body and "](http://track" not in body
    assert not set("\u202e\u2028\x85") & set(card)
    for block in re.findall(r"(?:^\|.*\n)+", body, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    assert "\n---\n" not in body and "\nlicense: evil" not in body and "\n# title" not in body


def slide(text):
    values = dict.fromkeys(SLIDES, text) | {"mpp": 0.5, "measured_genes": [0, 1], "patch_um": 112.0, "patch_px": 224}
    return values | {
        "image_width": 10,
        "image_height": 10,
        "spot_um": 55.0,
        "slide_id": "s",
        "split": "train",
        "notes": None,
    }


@pytest.mark.parametrize("text", HOSTILE)
def test_a_dataset_card_shows_and_does_nothing(text, tmp_path):
    card = dataset_card(
        [slide(text)], {"s": 3}, Counter({text: 3}), 2, "JPEG", text, "0" * 16, splits=(), split_text=text
    )
    assert_harmless(card, {"license", "license_name", "tags", "configs"})
    (tmp_path / "README.md").write_text(card, encoding="utf-8", newline="")
    assert license_of(read_header(tmp_path / "README.md")) == text


@pytest.fixture(scope="module")
def folder(toy_study, tmp_path_factory):
    from conftest import make_tiny_model, make_tiny_processor

    processor = make_tiny_processor(toy_study)
    model = make_tiny_model(len(processor.feature_extractor.vocabulary))
    return save_checkpoint_folder(tmp_path_factory.mktemp("run") / "model", model, processor)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_model_card_shows_and_does_nothing(text, folder):
    data = dict.fromkeys(("technology", "tissue", "species", "patch_um", "patch_px", "license", "fingerprint"), text)
    record = training_record(
        train_slides=[text], validation_slides=[text], vision=text, data={**data, "patients": {text: text}},
        hyperparameters={text: text}, hardware=text, log_history=[{"train_runtime": 1.0}], command=[text],
    )  # fmt: skip
    (folder / "training.json").write_text(json.dumps(record | {"command": [text, text]}))
    rows = [
        {**row("arms", text, True, pearson_mean=0.1), "slide": text},
        row("signatures", text, True, variant=text, auroc=0.3),
        row("hest", text, True, variant=text, pearson_mean=0.1),
    ]
    scored = results(
        protocols=rows, test_slides=[text], own_arms=[text], data_fingerprint=text, interval_unit=text,
        label_source=[text], num_spots=text,
    )  # fmt: skip
    given = {name: text for name in FACTS if name != "results"}
    card = model_card(folder, "me/name", results=scored, given=given)
    assert_harmless(card, {"library_name", "license", "base_model", "tags", "model-index"})
    header, _ = parts(card)
    assert header["license"] == header["base_model"] == text
    if text != "{license}":
        check_filled(card)
    assert set(unfilled(model_card(folder, "me/name"))) <= {
        "license",
        "base_model",
        "base_model_license",
        "dataset",
        "results",
    }


def test_a_complete_card_with_braces_in_its_data_is_complete(folder):
    (folder / "training.json").write_text("{}")
    scored = results(protocols=[row("hest", "DELST backbone", True, pearson_mean=0.1)], test_slides=["{license}"])
    card = model_card(folder, "me/name", results=scored, given={name: "known" for name in FACTS if name != "results"})
    check_filled(card)
    with pytest.raises(ValueError, match="'me/na me' is not a repository name"):
        model_card(folder, "me/na me")


def test_cells_pass_what_is_markdown_already():
    assert cell(Markdown("**a** | `b`")) == "**a** | `b`"
    assert fill("{a} {b} {c}", {"a": "<", "b": Markdown("<")}) == "&lt; < {c}"
    assert fenced("```\nx").splitlines()[0] == "````"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_header_says_what_was_put_in(text, tmp_path):
    values = {"license": "other", "license_name": text, "tags": [text], "deep": {text: text}}
    (tmp_path / "README.md").write_text(yaml_header(values) + "---\nlicense: evil\n---\n", encoding="utf-8", newline="")
    assert read_header(tmp_path / "README.md") == values
    assert license_of(read_header(tmp_path / "README.md")) == text


def test_a_header_that_is_no_yaml_is_named(tmp_path):
    assert read_header(tmp_path / "README.md") == {}
    (tmp_path / "README.md").write_text("# no header\n")
    assert read_header(tmp_path / "README.md") == {} and license_of({}) is None
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match="header of .*README.md is not YAML .*Correct the lines between"):
        read_header(tmp_path / "README.md")
    assert license_of({"license": ["mit", "bsd"]}) == "mit, bsd"
