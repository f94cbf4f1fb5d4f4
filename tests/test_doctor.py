"""`delst doctor` against a Hub on loopback, and what it says of libraries that do not import."""

import pytest
from hub_client import answer_of
from hub_server import Fault, HubServer

from delst_hf.cli import main
from delst_hf.commands import doctor

EXAMINE = """
import json, os
from delst_hf.commands import doctor

doctor.OPTIONAL = {}
def seen(token, backbone=None):
    os.environ["HF_TOKEN"] = token
    return {finding.name: [finding.found, finding.fix] for finding in doctor.examine(backbone)}
print(json.dumps({
    "mine": seen("hf_me", "guest/vit"), "let in": seen("hf_guest", "guest/vit"), "nobody": seen("", "me/open"),
    "bad": seen("hf_bad", "guest/vit"), "absent": seen("hf_me", "me/absent"),
}))
"""


def test_the_hub_the_token_and_access_to_a_backbone(tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("{}")
    with HubServer() as hub:
        hub.put("guest/vit", tmp_path / "vit", gated=True)
        hub.put("me/open", tmp_path / "vit")
        found = answer_of(hub, tmp_path, EXAMINE)
    assert found["mine"]["hub"] == [f"{hub.endpoint} answers", None] and found["mine"]["token"] == [
        "of the account me",
        None,
    ]
    assert "gated, and your account has no access" in found["mine"]["backbone"][0]
    assert f"request access at {hub.endpoint}/guest/vit" in found["mine"]["backbone"][1]
    assert found["let in"]["backbone"] == ["guest/vit can be read", None]
    assert found["nobody"]["token"][0] == "none" and "hf auth login" in found["nobody"]["token"][1]
    assert found["nobody"]["backbone"] == ["me/open can be read", None]
    assert "log in again" in found["bad"]["token"][1]
    assert found["bad"]["backbone"] == ["guest/vit not checked: see token", None]
    assert "not on the Hub" in found["absent"]["backbone"][0]
    # The Hub is gone now.
    gone = answer_of(hub, tmp_path, EXAMINE.split("print(")[0] + 'print(json.dumps(seen("hf_me", "guest/vit")))')
    assert "does not answer" in gone["hub"][0] and "HF_ENDPOINT" in gone["hub"][1]
    assert gone["backbone"] == ["guest/vit not checked: see hub", None]


def test_a_library_that_breaks_python_is_only_a_finding(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("import os; os.abort()")
    (tmp_path / "openslide.py").write_text("raise OSError('libopenslide.so.1: cannot open shared object file')")
    (tmp_path / "peft.py").write_text("__version__ = '9.9'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "OPTIONAL", {**doctor.OPTIONAL, "not_there": ("a test", "pip install it")})
    found = {finding.name: finding for finding in doctor._optional_libraries()}
    assert "does not import" in found["torchvision"].found and "breaks transformers" in found["torchvision"].fix
    assert "cannot open shared object" in found["openslide"].found and "delst-hf[openslide]" in found["openslide"].fix
    assert found["peft"] == doctor.Finding("peft", "9.9")
    assert found["not_there"] == doctor.Finding("not_there", "not installed; for a test: pip install it")


def test_the_command_ends_with_what_to_fix(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "OPTIONAL", {})
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "HF_HUB_OFFLINE=1" in text and text.endswith("Nothing to fix.\n")
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    assert main(["doctor", "--backbone", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "FIX  cache" in text and text.index("To fix:") < text.index("- backbone: it holds no config.json")
    assert "HF_HOME" in text


def test_offline_a_backbone_is_looked_for_in_the_cache():
    finding = doctor._backbone("me/none")
    assert "not in the cache" in finding.found and "HF_HUB_OFFLINE" in finding.fix


@pytest.mark.parametrize("name", ["no/such/folder", "a name"])
def test_what_cannot_be_an_id_is_a_finding(name):
    finding = doctor._backbone(name)
    assert "neither a folder nor an id" in finding.found and "USER/NAME" in finding.fix


def test_what_answers_in_the_place_of_the_hub_is_not_taken_for_it(tmp_path):
    with HubServer() as hub:
        hub.faults.append(Fault("GET", "whoami", status=404))
        found = answer_of(hub, tmp_path, EXAMINE.split("print(")[0] + 'print(json.dumps(seen("", "guest/vit")))')
    assert "status 404" in found["hub"][0] and "token" not in found and "see hub" in found["backbone"][0]
