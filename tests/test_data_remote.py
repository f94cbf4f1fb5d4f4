"""Datasets and references of the Hub, as a command on another machine opens them; and what it says where there is none."""

import shutil

import pytest
from hub_client import answer_of
from hub_server import Fault, HubServer

OPEN = """
import json, sys
from delst_hf.cli import main
from delst_hf.data.study import Study
from delst_hf.evaluation.results import read_results
from delst_hf.hub.checksums import check_checksums
from delst_hf.prediction import load_predictor, load_reference, spots_like

def said(call, *arguments, **options):
    try:
        return len(call(*arguments, **options))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def spots(name, **options):
    return Study.load(name, **options).spots

def of_reference(name, required=False):
    found = load_reference(name, required=required)
    return () if found is None else found.spots

print(json.dumps({
    "dot": main(["predict", "me/with", "me/toys-v1.0", "--output", "x.parquet", "--quiet"]),
    "other": said(spots, "me/other"),
    "revision": said(spots, "me/toys-v1.0", revision="none"),
    "missing": said(spots, "me/none"),
    "with": said(of_reference, "me/with"),
    "without": said(of_reference, "me/without"),
    "required": said(of_reference, "me/without", required=True),
    "at": said(lambda: list(spots_like("me/with", "me/toys-v1.0", [(1, 2)], neighbours=1))),
    "cut": said(lambda: check_checksums("me/cut")),
    "denied": said(load_predictor, "me/denied"),
    "results": said(read_results, "me/with"),
    "merge": main(["merge", "me/toys-v1.0", "--output", "merged"]),
}))
"""


@pytest.fixture(scope="module")
def answers(toy_heads, toy_folder, tmp_path_factory):
    from delst_hf.prediction import build_reference

    home = tmp_path_factory.mktemp("home")
    bare = shutil.ignore_patterns("reference")  # which other tests make there
    model = shutil.copytree(toy_heads / "expression", home / "model", ignore=bare)
    (home / "other").mkdir()
    (home / "other" / "README.md").write_text("# another dataset")
    with HubServer() as hub:
        hub.put("me/without", model)
        build_reference(str(model), str(toy_folder), size=20, progress=False)
        hub.put("me/with", model)
        hub.put("me/toys-v1.0", toy_folder, kind="dataset")
        hub.put("me/cut", model)
        hub.faults = [Fault("GET", "me/cut/resolve/.*safetensors", status=500, times=9)]
        hub.faults += [Fault("HEAD", "me/denied/resolve/.*", status=401, times=99)]
        hub.put("me/other", home / "other", kind="dataset")
        return answer_of(hub, home, OPEN)


def test_an_id_with_a_dot_is_no_image(answers):
    assert answers["dot"] == 0


def test_what_the_hub_holds_instead_is_said(answers):
    assert "ValueError: me/other on the Hub is not a dataset of delst prepare: ['spots'" in answers["other"]
    assert "Invalid rev id: none" in answers["revision"]
    assert "the Hub does not give a dataset of that name (Repository not found)" in answers["missing"]
    assert answers["merge"] == 2
    assert "hf download me/with results.json --local-dir DIR" in answers["results"]


def test_a_reference_that_was_pushed_is_fetched(answers):
    assert answers["with"] == 20 and answers["without"] == 0
    assert "no reference in me/without. Make one" in answers["required"]
    assert "hf download me/without --local-dir MODEL" in answers["required"]


def test_a_position_is_not_looked_up_in_a_dataset(answers):
    assert "ValueError: positions (--positions, --at) are on the image of a slide" in answers["at"]


def test_a_hub_that_fails_is_not_taken_for_a_damaged_checkpoint(answers):
    assert "OSError: model.safetensors of me/cut could not be fetched from the Hub (" in answers["cut"]
    assert "checksums" not in answers["cut"]


def test_why_a_checkpoint_is_not_given_is_said(answers):
    assert "no checkpoint at me/denied" in answers["denied"] and "401 Unauthorized" in answers["denied"]
