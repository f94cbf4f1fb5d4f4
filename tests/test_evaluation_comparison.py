"""Two results paired spot by spot, by hand-made records."""

import numpy as np
import pytest
from scipy import sparse

from delst_hf.evaluation.comparison import compare_results
from delst_hf.evaluation.evidence import Evaluation, Space, Spots
from delst_hf.evaluation.findings import Findings
from delst_hf.evaluation.suite import run_protocols


def record(answers, labels, slides):
    spots = {"slide": slides.tolist(), "label": labels.tolist(), "predicted:linear:ours": answers.tolist()}
    names = {"data_fingerprint": "1", "test_slides": sorted(set(slides)), "own_arms": ["ours"]}
    return {**names, "interval_unit": "slides", "spots": spots}


@pytest.mark.parametrize(("labelled", "unit"), [(2, "spots"), (6, "slides")])
def test_slides_are_resampled_where_five_of_them_are_compared(labelled, unit):
    slides, generator = np.repeat(list("uvwxyz"), 10), np.random.default_rng(0)
    labels = np.where(np.arange(60) < 10 * labelled, generator.choice(["a", "b"], 60), None)
    wrong = np.where(np.arange(60) % 3 == 0, np.where(labels == "a", "b", "a"), labels)
    answers = [np.where(labels == None, None, side) for side in (labels, wrong)]  # noqa: E711, elementwise
    (found,) = compare_results(*(record(each, labels, slides) for each in answers), resamples=50)
    assert found["metric"] == "macro_f1" and found["difference"] > 0 and found["unit"] == unit


def test_recall_of_tied_spots_is_that_of_their_table():
    """A collapsed model finds 10 of 40 by chance; by its mean rank of 20.5 it had found none."""
    generator = np.random.default_rng(0)
    slides, places = np.repeat(["s", "t"], 20), generator.normal(size=(40, 2))
    nobody, counts = np.full(40, None, dtype=object), sparse.csr_matrix((40, 1))
    spots = Spots(slides, slides, np.ones(40, dtype=bool), nobody, places, counts, ["A"])
    records, rows = [], []
    for embeds in (places, np.zeros((40, 2))):
        findings = Findings(spots, [], Space(embeds, embeds, "euclidean"), Evaluation(resamples=20))
        rows.append(run_protocols(findings, ["retrieval"]).rows[0]["metrics"])
        kept = {name: values.tolist() for name, values in findings.per_spot.items()}
        names = {"data_fingerprint": "1", "test_slides": ["s", "t"], "own_arms": []}
        records.append({**names, "spots": {"slide": slides.tolist(), **kept}})
    assert "recall@10:image_to_gene" not in records[0]["spots"] and rows[1]["image_to_gene_recall@10"] == 0.25
    found = next(row for row in compare_results(*records, resamples=20) if row["metric"] == "recall@10")
    assert found["difference"] == rows[0]["image_to_gene_recall@10"] - rows[1]["image_to_gene_recall@10"] == 0.75
