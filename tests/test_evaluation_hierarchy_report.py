import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from delst_hf.evaluation.entailment import entailment_rankings
from delst_hf.evaluation.illustrations import traversal
from delst_hf.evaluation.protocols.hierarchy import (
    MEANINGS,
    PROTOCOL,
    delta_hyperbolicity,
    explained_by_labels,
    hierarchy_report,
    rank_correlation,
    relative_delta,
)
from delst_hf.model.lorentz import exp_map0, radius


def unit(n, dim=6, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def at(radii, directions, curvature=1.0):
    return exp_map0(torch.from_numpy(np.asarray(radii)[:, None] * directions), curvature).numpy()


def planted(n=120, seed=0):
    """Radius follows expressed genes beyond depth; two slides, the second deeper."""
    generator = np.random.default_rng(seed)
    counts = generator.lognormal(0, 0.4, n) * np.where(np.arange(n) < n // 2, 1000, 4000)
    extra = generator.normal(size=n)
    genes = counts**0.5 * np.exp(0.3 * extra)
    radii = 1 + 0.2 * extra
    u = unit(n)
    return {
        "image_embeds": at(1.5 * radii, u),
        "gene_embeds": at(0.5 * radii, u),
        "curvature": 1.0,
        "num_genes": genes,
        "total_counts": counts,
        "slides": np.repeat(["a", "b"], n // 2),
        "labels": np.where(extra > 0, "tumour", "stroma").astype(object),
    }


def test_every_number_is_explained_and_planted_answers_are_found():
    found = hierarchy_report(**planted(), curvature_bounds=(0.1, 10.0))
    assert {key for key in found if "_radius_of_" not in key} == set(MEANINGS)
    assert all(len(text) > 20 and text.endswith(".") for text in MEANINGS.values())
    assert found["image_radius_genes_given_counts"] > 0.8 > found["image_radius_counts_within"]
    assert abs(found["image_radius_genes_shuffled"]) < 0.25
    assert found["image_radius_genes_within"] > found["image_radius_level_rho"]
    assert found["image_radius_label_eta"] > 0.5
    assert found["image_radius_of_tumour"] > found["image_radius_of_stroma"]
    assert found["entailment_auc"] > 0.99 and found["curvature_at_clamp"] == 0.0


def test_an_embedding_of_the_slide_alone_is_no_better_than_its_controls():
    """Over two slides it had an AUC of 0.74 beside a chance of 0.5, and all children in cones that held a fifth of others."""
    generator, slides = np.random.default_rng(0), np.repeat(["a", "b"], [70, 50])
    directions = np.where(slides[:, None] == "a", [1.0, 0, 0], [0, 1.0, 0])
    embeds = [size * directions + noise * generator.normal(size=(120, 3)) for size, noise in ((1.2, 0.05), (0.3, 0.02))]
    levels = {"num_genes": generator.random(120), "total_counts": generator.random(120)}
    found = hierarchy_report(*embeds, 1.0, slides=slides, **levels)
    assert found["entailment_auc"] > 0.7 and found["entailment_auc_decile"] > 0.7 and found["in_cone_matched"] == 1.0
    assert found["in_cone_mismatched"] == 1.0
    for name in ("entailment_auc", "entailment_auc_decile", "entailment_asymmetry"):
        assert found[name] == pytest.approx(found[f"{name}_shuffled"], abs=0.05)
        assert PROTOCOL.chance_of(name, {"metrics": found}) == found[f"{name}_shuffled"]


@pytest.mark.parametrize(("curvature", "at_clamp"), [(0.1, 1.0), (10.0, 1.0), (1.0, 0.0)])
def test_clamp_state(curvature, at_clamp):
    options = planted(20) | {"curvature": curvature}
    assert hierarchy_report(**options, curvature_bounds=(0.1, 10.0))["curvature_at_clamp"] == at_clamp


def entailment_auc(parents, children, curvature, min_radius=0.1):
    return entailment_rankings(parents, children, curvature, min_radius)["entailment_auc"].mean()


def test_auc_by_hand_planted_and_permuted():
    u = unit(60)
    parents, children = at(np.full(60, 0.8), u), at(np.full(60, 2.0), u)
    assert entailment_auc(parents, children, 1.0) == 1.0
    shuffled = np.random.default_rng(1).permutation(60)
    assert entailment_auc(parents, children[shuffled], 1.0) == pytest.approx(0.5, abs=0.1)
    # All children in one place: every comparison is a tie.
    assert entailment_auc(parents, np.repeat(children[:1], 60, axis=0), 1.0) == pytest.approx(0.5)
    # Parent 0 prefers its own child, parent 1 prefers child 0: one win of two.
    two = at(np.full(2, 0.8), np.array([[1.0, 0], [1.0, 0.0]]))
    kids = at(np.full(2, 2.0), np.array([[1.0, 0], [0.0, 1.0]]))
    assert entailment_auc(two, kids, 1.0) == 0.5


def test_rankings_by_hand():
    """Three spots in a plane: parents at 0, 90 and 180 degrees, children behind the first two and, of the third, at 80."""
    turned = np.deg2rad([0.0, 90.0, 180.0])
    behind = np.deg2rad([0.0, 90.0, 80.0])
    parents = at(np.full(3, 0.8), np.stack([np.cos(turned), np.sin(turned)], 1))
    children = at(np.full(3, 2.0), np.stack([np.cos(behind), np.sin(behind)], 1))
    found = entailment_rankings(parents, children, 1.0)
    # The third parent likes child 1 (90 degrees aside) better than its own (100 aside), and child 0 (180) least.
    assert found["entailment_auc"].tolist() == [1.0, 1.0, 0.5]
    assert found["entailment_ap"].tolist() == [1.0, 1.0, 0.5]
    # Exchanged, the apex is a child far out, and what lies straight inward is 180 degrees off its axis. Child 0: its own parent
    # and the one across the origin tie, the third fits better (0.25). Child 1: both others fit better (0). Child 2: the parent
    # 80 degrees aside fits better than its own, the one 10 degrees aside worse (0.5).
    assert found["entailment_asymmetry"].tolist() == [0.75, 1.0, 0.0]
    assert found["entailment_auc_decile"].tolist() == [1.0, 1.0, 0.0]


def test_nested_points_are_asymmetric_and_a_cloud_is_not():
    u = unit(80)
    parents = at(np.full(80, 0.3), u)
    children = at(np.full(80, 3.0), u + 0.2 * unit(80, seed=5))
    nested = entailment_rankings(parents, children, 1.0)
    cloud, other = at(np.full(80, 1.0), u), at(np.full(80, 1.0), unit(80, seed=9))
    chance = entailment_rankings(cloud, other, 1.0)
    assert nested["entailment_auc"].mean() > 0.95 and abs(chance["entailment_asymmetry"].mean()) < 0.1
    assert chance["entailment_auc_decile"].mean() == pytest.approx(0.5, abs=0.12)
    assert chance["entailment_ap"].mean() == pytest.approx((1 / np.arange(1, 81)).mean(), abs=0.05)


def test_width_alone_cannot_win_within_a_decile():
    """Parents near the origin hold everything: among all parents they win, among parents as near they do not."""
    generator = np.random.default_rng(0)
    radii = np.repeat([0.15, 2.0], 50)
    parents = at(radii, unit(100, seed=1))
    children = at(np.full(100, 3.0), unit(100, seed=2))[generator.permutation(100)]
    found = entailment_rankings(parents, children, 1.0)["entailment_auc_decile"]
    assert found[:50].mean() == pytest.approx(0.5, abs=0.1)
    sparse = entailment_rankings(parents, children, 1.0, max_pairs=10)
    assert np.isfinite(sparse["entailment_auc"]).sum() == 10


def test_auc_does_not_depend_on_the_aperture():
    u = unit(40)
    noisy = u + 0.5 * unit(40, seed=3)
    parents, children = at(np.full(40, 0.8), u), at(np.full(40, 2.0), noisy / np.linalg.norm(noisy, axis=1)[:, None])
    values = {float(entailment_auc(parents, children, 1.0, min_radius)) for min_radius in (0.05, 0.1, 0.3)}
    assert len(values) == 1 and 0.6 < values.pop() < 1


def test_partial_correlation_equals_that_of_residual_ranks():
    generator = np.random.default_rng(0)
    z = generator.normal(size=200)
    x, y = z + generator.normal(size=200), z + generator.normal(size=200)
    from scipy.stats import rankdata

    ranks = [rankdata(v) for v in (x, y, z)]
    residuals = [v - np.polyval(np.polyfit(ranks[2], v, 1), ranks[2]) for v in ranks[:2]]
    assert rank_correlation(x, y, given=z) == pytest.approx(np.corrcoef(residuals)[0, 1])
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation(x, z, given=z) == 0.0 and rank_correlation(x, np.ones(200)) == 0.0
    assert rank_correlation(x, y, given=np.ones(200)) == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation(x[:2], y[:2]) == 0.0


def test_within_slides_ignores_what_slides_differ_by():
    generator = np.random.default_rng(0)
    slides = np.repeat(["a", "b"], 100)
    offset = np.repeat([0.0, 20.0], 100)
    x, y = offset + generator.normal(size=200), offset + generator.normal(size=200)
    assert rank_correlation(x, y) > 0.7 and abs(rank_correlation(x, y, slides)) < 0.2


def test_labels_explain_what_they_should():
    generator = np.random.default_rng(0)
    labels, slides = np.tile(["t", "s"], 100), np.repeat(["a", "b"], 100)
    values = np.where(labels == "t", 5.0, 0.0) + generator.normal(size=200)
    assert explained_by_labels(values, labels, slides) > 0.6
    assert explained_by_labels(values, generator.permutation(labels), slides) < 0.05


def test_delta_of_a_tree_a_square_and_of_far_points():
    star = np.array([[0.0, 1, 1, 1], [1, 0, 2, 2], [1, 2, 0, 2], [1, 2, 2, 0]])
    assert relative_delta(star) == 0.0
    # The cycle of four: delta 1 at diameter 2.
    cycle = np.array([[0.0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]])
    assert relative_delta(cycle) == pytest.approx(1.0)
    far = at(np.full(60, 7.0), unit(60))
    assert delta_hyperbolicity(far, 1.0) < 0.2 < delta_hyperbolicity(7.0 * unit(60), None)
    assert delta_hyperbolicity(np.ones((5, 3)), None) == 0.0


def test_traversal_names_specific_then_general_then_the_origin():
    direction = np.array([1.0, 0, 0])
    candidates = at(np.array([2.0, 1.0]), np.stack([direction, direction]))
    steps = traversal(at(np.array([2.1]), direction[None])[0], candidates, ["specific", "general"], 1.0, steps=8)
    assert steps[0]["nearest"] == "specific" and steps[-2]["nearest"] == "general"
    assert [row["radius"] for row in steps] == pytest.approx(np.linspace(2.1, 0, 8))
    assert not steps[0]["origin_nearer"] and steps[-1]["origin_nearer"]
    assert steps[0]["distance"] == pytest.approx(0.1, abs=1e-6)


def test_radius_of_the_report_is_lorentz_radius():
    options = planted(40)
    found = hierarchy_report(**options)
    expected = radius(torch.from_numpy(options["image_embeds"]), 1.0).mean()
    assert found["image_radius"] == pytest.approx(float(expected), rel=1e-5)


def test_errors_name_the_next_step():
    with pytest.raises(ValueError, match="1 parents and 2 children"):
        entailment_rankings(np.ones((1, 2)), np.ones((2, 2)), 1.0)
    with pytest.raises(ValueError, match="1 names for 2 candidates and 10 steps"):
        traversal(np.ones(2), np.ones((2, 2)), ["a"], 1.0)
