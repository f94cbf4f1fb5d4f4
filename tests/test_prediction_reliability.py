"""How far to believe a patch: a rank within its slide, by the radius or by the distance to the reference."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from delst_hf.prediction.reliability import DISTANCE, RADIUS, reliability


def test_the_rank_is_that_of_the_radius_within_each_slide():
    generator = np.random.default_rng(0)
    slides = np.array(["b", "a", "a", "b", "a", "b", "b"])
    radius = generator.normal(size=7)
    radius[2] = radius[1]  # a tie within slide a
    found, name = reliability(radius, generator.normal(size=7), slides)
    assert name == RADIUS
    for slide in "ab":
        here = slides == slide
        np.testing.assert_allclose(found[here], (rankdata(radius[here]) - 0.5) / here.sum(), rtol=1e-6)
        assert found[here].mean() == pytest.approx(0.5)


def test_without_a_radius_near_patches_are_trusted_and_without_either_none():
    nothing, distance = np.full(4, np.nan), np.array([3.0, 1.0, 4.0, 2.0])
    found, name = reliability(nothing, distance, np.zeros(4))
    assert name == DISTANCE and spearmanr(found, -distance).statistic == pytest.approx(1)
    assert reliability(nothing, None, np.zeros(4)) == (None, "")
