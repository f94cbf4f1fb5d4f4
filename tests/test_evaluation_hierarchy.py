import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from delst_hf.evaluation.protocols.hierarchy import hierarchy_report
from delst_hf.model.entailment import cone_statistics
from delst_hf.model.lorentz import exp_map0


def directions(n: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def report(image: np.ndarray, gene: np.ndarray, level: np.ndarray) -> dict[str, float]:
    return hierarchy_report(image, gene, 1.0, num_genes=level, total_counts=level, slides=["a"] * len(level))


def test_radii_and_apertures_by_hand():
    u = directions(10)
    gene, image = exp_map0(0.5 * u, 2.0), exp_map0(1.5 * u, 2.0)
    found = cone_statistics(image, gene, 2.0, min_radius=0.1)
    assert found["gene_radius"] == pytest.approx(0.5, rel=1e-5)
    assert found["image_radius"] == pytest.approx(1.5, rel=1e-5)
    aperture = math.degrees(math.asin(0.2 / math.sinh(math.sqrt(2.0) * 0.5)))
    assert found["gene_half_aperture"] == pytest.approx(aperture, rel=1e-5)


def test_planted_children_are_inside_and_mismatched_ones_are_not():
    u = directions(40)
    general, specific = exp_map0(0.8 * u, 1.0), exp_map0(2.0 * u, 1.0)
    gene_parent = cone_statistics(specific, general, 1.0, parent="gene")
    assert gene_parent["in_cone_matched"] == 1.0
    assert gene_parent["in_cone_mismatched"] < 0.1
    assert cone_statistics(general, specific, 1.0, parent="gene")["in_cone_matched"] == 0.0
    assert cone_statistics(general, specific, 1.0, parent="image")["in_cone_matched"] == 1.0


def test_wide_cones_are_shown_up_by_the_control():
    u = directions(40)
    near_origin = exp_map0(0.05 * u, 1.0)
    found = cone_statistics(exp_map0(2.0 * directions(40, seed=1), 1.0), near_origin, 1.0)
    assert found["gene_half_aperture"] > 85
    assert found["in_cone_mismatched"] > 0.2
    assert abs(found["in_cone_matched"] - found["in_cone_mismatched"]) < 0.3


def test_radius_follows_the_level():
    level = np.arange(50.0)
    noise = np.random.default_rng(0).normal(size=50) * 5
    radii = torch.from_numpy(1 + (level + noise) / 50).clamp_min(0.1)
    image = exp_map0(radii[:, None] * directions(50), 1.0)
    gene = exp_map0(directions(50), 1.0)
    found = report(image.numpy(), gene.numpy(), level)
    assert found["image_radius_level_rho"] == pytest.approx(spearmanr(radii.numpy(), level).statistic, abs=1e-6)
    assert abs(found["gene_radius_level_rho"]) < 0.4


def test_constant_level_has_no_correlation():
    image = exp_map0(directions(5), 1.0).numpy()
    assert report(image, image, np.ones(5))["image_radius_level_rho"] == 0.0
