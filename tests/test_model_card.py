"""The card: what the records say is in it, what none says is named, and results become tables that hide nothing."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from delst_hf.hub.card import check_filled, model_card, template_text, unfilled
from delst_hf.hub.card_results import limitations, results_text
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.hub.facts import FACTS
from delst_hf.hub.publish import copy_checkpoint_folder
from delst_hf.record import data_facts, training_record


@pytest.fixture
def folder(tiny_model, tiny_processor, toy_study, toy_folder, tmp_path):
    tiny_model.log_curvature.data.fill_(math.log(0.731))
    record = training_record(
        train_slides=["toy_A1"],
        validation_slides=["toy_A2"],
        vision="google/vit-base-patch16-224",
        data=data_facts(toy_folder, toy_study, ["toy_A1"]),
        seed=3,
        hardware="2 cores",
        hyperparameters={"learning_rate": 0.001},
        log_history=[{"loss": 1.0}, {"train_runtime": 90.0}],
    )
    return save_checkpoint_folder(tmp_path / "model", tiny_model, tiny_processor, record)


def row(protocol, arm, own=False, variant="", **metrics):
    names = {"protocol": protocol, "variant": variant, "arm": arm, "own": own, "control": "shuffled" in arm}
    return {**names, "metrics": metrics, "intervals": {}}


def results(**changes):
    ours = row("arms", "DELST backbone", True, pearson_mean=0.25, probe_macro_f1_mean=0.5)
    colour = {"pearson_mean": 0.2, "probe_macro_f1_mean": 0.48, "probe_macro_f1_sd": 0.05}
    arms = [{**each, "slide": "toy_A2"} for each in (ours, row("arms", "colour statistics", **colour))]
    retrieval = row("retrieval", "DELST", True, **{"image_to_gene_recall@10": 0.31, "chance_recall@10": 0.1})
    retrieval["intervals"] = {"image_to_gene_recall@10": {"low": 0.2, "high": 0.4}}
    probe = row("stimage1k4m", "DELST backbone", True, macro_f1_mean=0.61, macro_f1_sd=0.02)
    base = {"test_slides": ["toy_A2"], "own_arms": ["DELST backbone", "DELST embedding"], "data_fingerprint": "abc"}
    return {**base, "protocols": [*arms, probe, retrieval], **changes}


def test_facts_of_the_records_are_in_the_card(folder, tiny_processor):
    card = model_card(folder, "me/name", results=results(), given={"license": "mit"})
    assert unfilled(card) == ["base_model_license", "dataset", "dataset_license"]
    header = yaml.safe_load(card.split("---")[1].replace("{", "<"))
    assert header["license"] == "mit" and header["base_model"] == "google/vit-base-patch16-224"
    found = {m["name"]: m["value"] for row in header["model-index"][0]["results"] for m in row["metrics"]}
    assert found == {
        "Retrieval: image_to_gene_recall@10 of DELST": 0.31,
        "Labels, STimage-1K4M protocol: macro_f1_mean of DELST backbone": 0.61,
    }
    genes = len(tiny_processor.feature_extractor.vocabulary)
    for fact in (
        "# name\n", f"| Gene vocabulary | {genes} genes, ", "| Patches | 112 um, stored as 32 px, read at 32 px |",
        "1 slide of 1 patient: ", "training toy_A1; validation toy_A2; never seen, scored below: toy_A2",
        "| Curvature at the end | 0.731 |", "| Hardware, time | 2 cores; 1.5 minutes |", "learning_rate: 0.001",
        "| DELST backbone | toy_A2 | 0.250 | 0.500 |", "@article{delst,", "### Labels, STimage-1K4M protocol",
        "| retrieval | DELST | 0.310 (0.200 to 0.400) | 0.100 |", "| DELST backbone | 0.610 ± 0.020 |",
        "probe_macro_f1_mean of DELST backbone on toy_A2 (0.500) is not above that of colour statistics (0.480) by more than "
        "its spread",
        "toy_A2: another section of a patient seen in training",
    ):  # fmt: skip
        assert fact in card, fact


def test_gaps_are_named_with_the_way_to_fill_them(tiny_model, tiny_processor, tmp_path):
    folder = save_checkpoint_folder(tmp_path / "model", tiny_model, tiny_processor)  # no record at all
    card = model_card(folder, "me/name")
    assert set(unfilled(card)) == set(FACTS)
    with pytest.raises(ValueError, match=r"(?s)Nothing was pushed.*\{license\}: --license .*\{results\}: --results "):
        check_filled(card)
    full = model_card(folder, "me/name", given=dict.fromkeys(FACTS, "known"))
    check_filled(full)
    assert "Research only" in full
    with pytest.raises(ValueError, match=r"\{own_word\}: write it into README.md by hand"):
        check_filled(full + "{own_word}")


def test_every_placeholder_of_the_template_is_filled_or_can_be_given(folder):
    card = model_card(
        folder, "me/name", results=results(), given={name: "known" for name in FACTS if name != "results"}
    )
    check_filled(card)
    assert set(re.findall(r"\{([a-z_]+)\}", template_text())) >= set(FACTS)


def test_results_of_another_checkpoint_are_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(
        ValueError,
        match=r"results are of the checkpoint .*other \(weights .*\), not of .*model \(weights .*\). Give results of this one",
    ):
        model_card(folder, "me/name", results=results(model=str(tmp_path / "other")))
    assert "0.250" in model_card(folder, "me/name", results=results(model=str(folder)))
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert "0.250" in model_card(copy, "me/name", results=results(model=str(folder)))


def test_a_backbone_from_scratch_has_no_base_model(tiny_model, tiny_processor, tmp_path):
    folder = save_checkpoint_folder(tmp_path / "model", tiny_model, tiny_processor, training_record(vision=None))
    card = model_card(folder, "me/name")
    assert "base_model" not in unfilled(card) and "\nbase_model:" not in card and "trained from scratch" in card


def test_baselines_of_another_run_must_be_of_the_same_data():
    own = results(protocols=results()["protocols"][:1])
    assert "hold no baselines" in limitations({}, {}, own)
    assert "| colour statistics | toy_A2 |" in results_text(own, results())
    assert "colour statistics (0.480)" in limitations({}, {}, own, results())
    with pytest.raises(ValueError, match="baselines are of other data: fingerprints .'abc', 'xyz'."):
        results_text(own, results(data_fingerprint="xyz"))


def test_protocols_in_which_nothing_is_gained_are_limitations():
    protocols = [
        row("hest", "colour statistics", pearson_mean=0.2, pearson_sd=0.1),
        row("hest", "DELST backbone", True, pearson_mean=0.1, pearson_sd=0.1),
        row("probes", "colour statistics", variant="knn", macro_f1=0.2, majority_macro_f1=0.1),
        row("probes", "DELST backbone", True, variant="knn", macro_f1=0.3, majority_macro_f1=0.1),
        row("signatures", "HER2 amplicon", True, auroc=0.35),
        row("signatures", "immune", True, auroc=0.95),
        {**row("hierarchy", "DELST", True, entailment_auc=0.7), "slide": "B4"},
    ]
    record = results(protocols=protocols)
    text = limitations({}, {}, record)
    assert (
        "HEST protocol: the pearson_mean of DELST backbone (0.100) is not above that of colour statistics (0.200)."
        in text
    )
    assert "the auroc of HER2 amplicon (0.350) is not above chance (0.500)." in text
    assert "immune" not in text and "knn" not in text and "entailment" not in text
    assert "| entailment auc | 0.700 | Probability that a parent's own child" in results_text(record)


def test_a_gain_whose_interval_holds_none_is_a_limitation():
    ours = row("hest", "DELST backbone", True, variant="alpha=cv", pearson_mean=0.25)
    map_of = {**row("signatures", "immune", True, auroc=0.52), "intervals": {"auroc": {"low": 0.44, "high": 0.6}}}
    protocols = [row("hest", "colour statistics", variant="alpha=cv", pearson_mean=0.2), ours, map_of]
    pair = {"protocol": "hest", "variant": "alpha=cv", "metric": "pearson_mean", "first": "DELST backbone",
            "second": "colour statistics", "difference": 0.05, "low": -0.01, "high": 0.09, "unit": "spots"}  # fmt: skip
    text = limitations({}, {}, results(protocols=protocols, comparisons=[pair]))
    assert "(0.250) is not above that of colour statistics (0.200) by more than its spread." in text
    assert "the auroc of immune (0.520) is not above chance (0.500) by more than its spread." in text
    map_of["intervals"]["auroc"]["low"] = 0.51
    text = limitations({}, {}, results(protocols=protocols, comparisons=[{**pair, "low": 0.01}]))
    assert "colour statistics" not in text and "immune" not in text


def test_a_folder_of_an_earlier_version_is_completed_and_cleaned(folder, tmp_path):
    for path in folder.glob("*.py"):
        path.unlink()
    for name in ("config.json", "processor_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("auto_map")
        if name == "config.json":
            content["vision_config"]["_name_or_path"] = "/home/somebody/vit"
        (folder / name).write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps({"model": "/home/somebody/run/model", "pictures": {"a": "jpeg"}}))
    target = tmp_path / "copy"
    target.mkdir()
    copy_checkpoint_folder(folder, target)
    assert json.loads((target / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_delst.DelstModel"
    assert "AutoProcessor" in json.loads((target / "processor_config.json").read_text())["auto_map"]
    assert (target / "modeling_delst.py").is_file() and (target / "processing_delst.py").is_file()
    assert "somebody" not in "".join(path.read_text() for path in target.glob("*.json"))
    assert json.loads((target / "results.json").read_text()) == {"model": "model"}
    assert torch.equal(
        *(torch.frombuffer((f / "model.safetensors").read_bytes(), dtype=torch.uint8) for f in (folder, target))
    )


def test_the_install_line_of_the_cards_is_that_of_the_package():
    """What the code beside the weights imports, in the versions that the package takes; delst-hf itself is on no index."""
    import tomllib

    root = Path(__file__).parents[1]
    needed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    transformers = next(one for one in needed if one.startswith("transformers"))
    for path in sorted((root / "model_cards").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if path.name != "README.md":
            assert f'pip install torch "{transformers}" safetensors pillow' in text and "pip install delst" not in text
