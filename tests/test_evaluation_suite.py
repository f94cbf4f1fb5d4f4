"""Protocols: their facts, and that one more is one file and one name in the suite."""

import numpy as np
import pytest
from scipy import sparse

from delst_hf.cli import main
from delst_hf.evaluation import protocols, suite
from delst_hf.evaluation.evidence import Arm, Evaluation, Spots
from delst_hf.evaluation.findings import Findings
from delst_hf.evaluation.resampled import pearson_statistic
from delst_hf.evaluation.result_tables import format_results
from delst_hf.evaluation.results import model_index
from delst_hf.evaluation.suite import SUITE, chosen_protocols, protocol, run_protocols
from delst_hf.hub.card_results import limitations, results_text
from delst_hf.report.page import write_report

NEW = '''
"""How far the mean of the features is from 1."""

from . import Protocol


def run(findings):
    for arm in findings.arms.values():
        findings.add("nearness", arm.name, {"nearness": float(1 - abs(1 - arm.features.mean())), "guess": 0.4})


PROTOCOL = Protocol("nearness", run, "Nearness to one", "nearness", "1 is near.", chance={"nearness": "guess"},
                    task="nearness-estimation", drawn=("",))
'''


def spots(number=20) -> Spots:
    generator = np.random.default_rng(0)
    return Spots(
        slides=np.repeat(["a", "b"], number // 2),
        patients=np.repeat(["a", "b"], number // 2),
        test=np.ones(number, dtype=bool),
        labels=np.full(number, None, dtype=object),
        positions=generator.normal(size=(number, 2)),
        counts=sparse.csr_matrix(generator.poisson(3, (number, 5))),
        genes=list("ABCDE"),
    )


@pytest.mark.parametrize("name", SUITE)
def test_a_protocol_knows_its_facts(name):
    which = protocol(name)
    assert which.name == name and which.title and which.note and which.headline in which.columns
    assert which.cost > 0 and set(which.drawn) <= set(which.variants)


def test_one_more_protocol_is_one_file_and_one_name(tmp_path, monkeypatch):
    (tmp_path / "nearness.py").write_text(NEW)
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path)])
    monkeypatch.setattr(suite, "SUITE", (*SUITE, "nearness"))
    arms = [Arm("colour", [np.full((20, 2), 0.6)]), Arm("ours", [np.full((20, 2), 0.3)], own=True)]
    findings = run_protocols(Findings(spots(), arms), ["nearness"])
    record = {"protocols": findings.rows, "own_arms": ["ours"], "train_slides": [], "test_slides": ["a"], "skipped": []}
    assert "Nearness to one" in format_results(record) and "0.300" in format_results(record)
    card = results_text(record)
    assert "### Nearness to one" in card and "| ours | 0.300 |" in card
    assert "the nearness of ours (0.300) is not above that of colour (0.600)" in limitations({}, {}, record)
    (task,) = model_index(record, "x")[0]["results"]
    assert task["task"]["type"] == "nearness-estimation" and task["metrics"][0]["value"] == 0.3
    page = write_report([record, record], tmp_path / "report.html", ["x", "x"]).read_text()
    assert page.count("Nearness to one") >= 3 and 'id="figure-arms-nearness"' in page and 'id="figure-spread-0"' in page


def test_resamples_of_the_same_rows_are_drawn_once():
    findings = Findings(spots(), [Arm("ours", [np.eye(20)], own=True)], evaluation=Evaluation(resamples=5))
    rows = np.arange(10)
    first = findings.bootstrap(rows)
    assert findings.bootstrap(rows.copy()) is first and findings.bootstrap(np.arange(5, 15)) is not first
    (block,), (again,) = list(first.weights()), list(first.weights())
    np.testing.assert_array_equal(block, [np.bincount(drawn, minlength=10) for drawn in first.draws()])
    assert again is block
    with pytest.raises(ValueError, match="read-only"):
        block *= 2  # one statistic must not change what the next is given


def test_a_difference_that_is_undefined_is_no_comparison():
    arms = [Arm("colour", [np.eye(20)]), Arm("ours", [np.eye(20)], own=True)]
    findings = Findings(spots(), arms, evaluation=Evaluation(resamples=5))
    constant, rising = np.full((1, 1), 3.0), np.arange(20.0)[:, None]
    one_spot = {arm: pearson_statistic(constant, constant, np.zeros(1)) for arm in ("colour", "ours")}
    findings.compare("hest", "pearson_mean", one_spot, np.arange(1))  # of one spot, no gene varies
    assert findings.comparisons == []
    twenty = {arm: pearson_statistic(rising, rising, np.zeros(20)) for arm in ("colour", "ours")}
    findings.compare("hest", "pearson_mean", twenty, np.arange(20))
    assert [each["difference"] for each in findings.comparisons] == [0.0]


def test_a_protocol_that_the_data_do_not_allow_is_skipped_with_its_reason():
    findings = run_protocols(
        Findings(spots(), [Arm("ours", [np.eye(20)], own=True)], evaluation=Evaluation(resamples=5)),
        ["probes", "retrieval"],
    )
    assert findings.skipped == [
        {"protocol": "probes", "reason": "the spots to score have no labels, or all labels are of one class"},
        {"protocol": "retrieval", "reason": "there are no gene embeddings"},
    ]


def test_names_are_checked_before_any_work(capsys):
    with pytest.raises(ValueError, match=r"protocols \['plip'\] are not known\. Allowed are arms, probes"):
        chosen_protocols(["hest", "plip"])
    with pytest.raises(ValueError, match="protocol 'plip' is not known"):
        protocol("plip")
    with pytest.raises(ValueError, match=r"^no protocol is named\. Allowed are arms, "):
        chosen_protocols([])
    with pytest.raises(ValueError, match=r"\['retreival'\] are not known\. Did you mean 'retrieval'\?"):
        chosen_protocols(["retreival"])
    assert main(["evaluate", "model", "me/dataset", "--protocols", "none"]) == 2
    assert "protocols ['none'] are not known" in capsys.readouterr().err
