"""Selective prediction against arithmetic by hand, and the protocol on spots whose reliability is planted."""

import numpy as np
import pytest
from scipy import sparse
from scipy.special import softmax
from scipy.stats import entropy, spearmanr
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from delst_hf.evaluation.evidence import Arm, Evaluation, Space, Spots
from delst_hf.evaluation.findings import Findings
from delst_hf.evaluation.neighbours import query_blocks
from delst_hf.evaluation.protocols import reliability
from delst_hf.evaluation.protocols.reliability import PROTOCOL, distance_to_reference, retrieval_certainty
from delst_hf.evaluation.reliability import risk_coverage, selective_prediction


def test_risk_at_each_coverage_by_hand():
    coverage, risk = risk_coverage([3.0, 0.0, 1.0], [0.1, 0.9, 0.5])
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk.tolist() == pytest.approx([0, 1 / 2, 4 / 3])


def test_ties_count_with_the_mean_over_their_orders():
    errors, confidence = np.array([1.0, 0.0, 4.0, 2.0]), [2, 1, 1, 1]
    orders = [(0, a, b, c) for a, b, c in [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]]
    expected = np.mean([np.cumsum(errors[list(order)]) / np.arange(1, 5) for order in orders], axis=0)
    assert risk_coverage(errors, confidence)[1].tolist() == pytest.approx(expected.tolist())


def test_the_scale_of_the_excess():
    errors = np.random.default_rng(0).random(50)
    assert selective_prediction(errors, -errors)["excess_aurc"] == pytest.approx(0)
    assert selective_prediction(errors, np.zeros(50))["excess_aurc"] == pytest.approx(1)
    assert selective_prediction(errors, errors)["excess_aurc"] > 1.5


def test_rank_correlation_and_halves_agree_with_scipy_and_numpy():
    generator = np.random.default_rng(1)
    errors, confidence = generator.random(41), generator.integers(0, 9, 41)
    scores = selective_prediction(errors, confidence)
    assert scores["spearman"] == pytest.approx(spearmanr(confidence, -errors).statistic)
    distinct = confidence + np.linspace(0, 0.5, 41)
    surest = errors[np.argsort(-distinct)[:21]]
    assert selective_prediction(errors, distinct)["error_of_confident_half"] == pytest.approx(surest.mean())


@pytest.mark.parametrize(
    ("errors", "confidence", "message"),
    [
        ([1.0, 2.0], [1.0], "2 errors and 1 confidences. Give one of each per spot"),
        ([], [], "errors has the shape"),
        ([1.0, np.nan], [1.0, 2.0], "errors holds NaN"),
    ],
)
def test_wrong_arrays_are_named(errors, confidence, message):
    with pytest.raises(ValueError, match=message):
        selective_prediction(errors, confidence)


@pytest.fixture(scope="module")
def planted():
    """Two slides, fit and scored. Far from the origin images say what the genes are; near it they are noise."""
    generator = np.random.default_rng(0)
    n, genes, dim = 240, 30, 6
    latent = generator.normal(size=(n, dim))
    clear = generator.random(n) > 0.5
    counts = generator.poisson(np.exp(1.5 + latent @ generator.normal(size=(dim, genes)) * 0.6))
    image = np.where(clear[:, None], 2.0 * latent, 0.1 * generator.normal(size=(n, dim)))
    slides = np.repeat(["fit", "scored"], n // 2)
    spots = Spots(
        slides=slides, patients=slides, test=slides == "scored", labels=np.where(latent[:, 0] > 0, "a", "b").astype(object),
        positions=generator.random((n, 2)), counts=sparse.csr_matrix(counts), genes=[f"g{i}" for i in range(genes)],
    )  # fmt: skip
    space = Space(image=image, gene=2.0 * latent, geometry="lorentz", curvature=1.0)
    findings = Findings(spots, [Arm("ours", [image], own=True)], space, Evaluation(resamples=50, progress=False))
    PROTOCOL.run(findings)
    return findings


def rows_of(findings, variant):
    return {row["arm"]: row for row in findings.rows if row["variant"] == variant}


def test_a_radius_that_knows_is_found(planted):
    rows = rows_of(planted, "retrieval, centred")
    known, control = rows["image radius"], rows["image radius, shuffled"]
    assert known["own"] and not known["control"] and control["control"]
    assert known["metrics"]["spearman"] > 0.4
    assert known["intervals"]["spearman"]["low"] > 0.2
    assert abs(control["metrics"]["spearman"]) < 0.2
    assert known["metrics"]["error_of_confident_half"] < known["metrics"]["mean_error"] - 0.1


def test_every_rival_stands_beside_it(planted):
    for variant in ("ridge", "ridge, centred", "retrieval", "retrieval, centred"):
        assert set(rows_of(planted, variant)) == {
            "image radius",
            "image radius, shuffled",
            "predicted number of genes",
            "nearness to the reference",
            "certainty of retrieval",
            "similarity of retrieval",
            "agreement of ridge and retrieval",
        }
    compared = {(row["variant"], row["second"]) for row in planted.comparisons}
    assert ("ridge", "predicted number of genes") in compared


def test_the_confidence_of_each_spot_is_kept_for_the_report(planted):
    kept = planted.per_spot["confidence:image radius"]
    assert np.isnan(kept[:120]).all() and np.isfinite(kept[120:]).all()


def test_without_a_space_the_rivals_remain(planted):
    alone = Findings(planted.spots, list(planted.arms.values()), None, planted.evaluation)
    PROTOCOL.run(alone)
    assert {row["variant"] for row in alone.rows} == {"ridge", "ridge, centred"}
    assert {row["arm"] for row in alone.rows} == {"predicted number of genes", "nearness to the reference"}


def test_slides_are_scored_by_themselves(planted):
    """A confidence that only knows which slide is easy is worth nothing within a slide."""
    from delst_hf.evaluation.protocols.reliability import _within_slides

    generator = np.random.default_rng(2)
    slides, error = np.repeat(["easy", "hard"], 60), np.concatenate([generator.random(60), 3 + generator.random(60)])
    knows_the_slide = (slides == "easy") + 0.01 * generator.random(120)
    assert selective_prediction(error, knows_the_slide)["spearman"] > 0.7
    scores = _within_slides(error, knows_the_slide, slides)
    expected = [
        spearmanr(knows_the_slide[part], -error[part]).statistic for part in (slides == "easy", slides == "hard")
    ]
    assert scores["spearman"] == pytest.approx(np.mean(expected))
    assert abs(scores["spearman"]) < 0.3


@pytest.mark.parametrize("pairs", [1, 50, 2**20])
def test_confidences_block_by_block_are_those_of_all_pairs(pairs, monkeypatch):
    monkeypatch.setattr(reliability, "query_blocks", lambda *sizes: query_blocks(*sizes, pairs=pairs))
    generator = np.random.default_rng(0)
    bank, queries = generator.normal(size=(30, 4)), generator.normal(size=(7, 4))

    scaled = StandardScaler().fit(bank)
    distances, _ = NearestNeighbors(n_neighbors=10).fit(scaled.transform(bank)).kneighbors(scaled.transform(queries))
    np.testing.assert_allclose(distance_to_reference(bank, queries), distances.mean(axis=1), rtol=1e-9)

    image, gene = generator.normal(size=(37, 4)), np.concatenate([queries, bank])
    entropies, nearest = retrieval_certainty(Space(image, gene, "lorentz", 0.7), np.arange(7, 37), np.arange(7))
    for row in range(7):
        own = [-_geodesic(image[row], other, 0.7) for other in gene[7:]]
        shares = softmax((np.array(own) - max(own)) / np.std(own))
        assert entropies[row] == pytest.approx(entropy(shares))
        assert nearest[row] == pytest.approx(max(own) * 0.7**0.5)


def _geodesic(first, second, curvature):
    """Return the distance of two points of a hyperboloid by its definition."""
    times = [(1 / curvature + (point**2).sum()) ** 0.5 for point in (first, second)]
    return np.arccosh(curvature * (times[0] * times[1] - first @ second)) / curvature**0.5
