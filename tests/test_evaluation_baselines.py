import colorsys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from delst_hf.evaluation.baselines import COLOUR_STATISTICS, colour_statistics, permutation_within, shuffled

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29]) / np.linalg.norm([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11]) / np.linalg.norm([0.07, 0.99, 0.11])


def statistics(images):
    return dict(zip(COLOUR_STATISTICS, colour_statistics(images).T.astype(float), strict=True))


def stained(haematoxylin, eosin):
    """A pixel behind the given amounts of two stains, by the law of Beer and Lambert."""
    return np.round(255 * 10 ** -(haematoxylin * HAEMATOXYLIN + eosin * EOSIN)).astype(np.uint8)


def test_colours_by_hand():
    patch = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    patch[0] = [[[255, 255, 255], [255, 255, 255]], [[255, 51, 102], [255, 51, 102]]]
    result = statistics(patch)
    assert result["red_mean"] == pytest.approx(1) and result["red_sd"] == pytest.approx(0)
    assert result["green_mean"] == pytest.approx(0.6) and result["green_sd"] == pytest.approx(0.4)
    assert result["blue_mean"] == pytest.approx(0.7) and result["blue_sd"] == pytest.approx(0.3)
    assert result["saturation_mean"] == pytest.approx(0.8 / 2)  # white has none, the other (1 - 0.2) / 1
    assert result["tissue_fraction"] == pytest.approx(0.5)


def test_saturation_equals_colorsys():
    patch = np.random.default_rng(0).integers(1, 256, size=(1, 6, 5, 3), dtype=np.uint8)
    expected = np.mean([colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in patch.reshape(-1, 3)])
    assert statistics(patch)["saturation_mean"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("haematoxylin", "eosin"), [(0.6, 0.0), (0.0, 0.5), (0.4, 0.3), (0.0, 0.0)])
def test_planted_stains_are_unmixed(haematoxylin, eosin):
    result = statistics(np.tile(stained(haematoxylin, eosin), (1, 4, 4, 1)))
    assert result["haematoxylin_mean"] == pytest.approx(haematoxylin, abs=0.01)
    assert result["eosin_mean"] == pytest.approx(eosin, abs=0.01)
    assert result["haematoxylin_sd"] == pytest.approx(0, abs=1e-6)
    assert result["tissue_fraction"] == float(haematoxylin + eosin > 0)


def test_haematoxylin_spread_and_tissue_by_hand():
    patch = np.empty((1, 1, 4, 3), dtype=np.uint8)
    patch[0, 0] = [stained(0.8, 0.1), stained(0.2, 0.1), stained(0.8, 0.1), [240, 240, 240]]
    result = statistics(patch)
    background = -np.log10(240 / 255) * (np.linalg.pinv(np.stack([HAEMATOXYLIN, EOSIN])).sum(axis=0))
    assert result["haematoxylin_sd"] == pytest.approx(np.std([0.8, 0.2, 0.8, background[0]]), abs=0.01)
    assert result["tissue_fraction"] == 0.75


def test_pil_images_arrays_and_generators_agree():
    patches = np.random.default_rng(0).integers(0, 256, size=(3, 8, 8, 3), dtype=np.uint8)
    expected = colour_statistics(patches)
    assert expected.shape == (3, 11) == (3, len(COLOUR_STATISTICS)) and expected.dtype == np.float32
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(colour_statistics(Image.fromarray(patch) for patch in patches), expected)
    np.testing.assert_array_equal(colour_statistics(list(patches)), expected)
    grey = colour_statistics([Image.new("L", (4, 6), 128), Image.new("RGB", (9, 2), (128, 128, 128))])
    np.testing.assert_allclose(grey[0], grey[1], atol=1e-7)


def test_black_and_white_are_finite():
    result = colour_statistics(np.stack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)]))
    assert np.isfinite(result).all()
    assert result[:, COLOUR_STATISTICS.index("tissue_fraction")].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)]
)
def test_what_is_no_image_of_bytes_is_refused(image):
    with pytest.raises(ValueError, match="image 0 has the type .* before the image processor"):
        colour_statistics([image])


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="images is empty"):
        colour_statistics([])


def test_rows_are_shuffled_within_their_group_only():
    groups = np.array(["C2", "B4"] * 100)
    rows = np.arange(200)
    result = shuffled(rows, groups, seed=0)
    np.testing.assert_array_equal(groups[result], groups)
    assert sorted(result) == rows.tolist() and (result != rows).mean() > 0.9
    np.testing.assert_array_equal(rows, np.arange(200))
    np.testing.assert_array_equal(shuffled(rows, groups, seed=0), result)
    assert (shuffled(rows, groups, seed=1) != result).any()


def test_every_kind_of_rows_is_permuted_alike():
    groups = np.array(["a"] * 6 + ["b"])
    order = permutation_within(groups, seed=3)
    table = np.arange(14.0).reshape(7, 2) + 1
    np.testing.assert_array_equal(shuffled(table, groups, 3), table[order])
    np.testing.assert_array_equal(shuffled(sparse.csr_matrix(table), groups, 3).toarray(), table[order])
    assert shuffled(list("stuvwxy"), groups.tolist(), 3) == ["stuvwxy"[i] for i in order]
    assert order[6] == 6 and order.tolist() != list(range(7))


def test_every_permutation_is_equally_likely():
    drawn = Counter(tuple(permutation_within(np.array(["a"] * 3), seed).tolist()) for seed in range(3000))
    assert len(drawn) == 6
    np.testing.assert_allclose(np.array(list(drawn.values())) / 3000, 1 / 6, atol=0.03)


def test_one_group_per_row():
    with pytest.raises(ValueError, match="groups has 2 entries for 3 rows"):
        shuffled([1, 2, 3], ["a", "b"], seed=0)
