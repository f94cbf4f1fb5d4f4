"""Toy slides: deterministic, valid, and with the hierarchy that they promise."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from delst_hf.data.toy import REGIONS, make_toy_slide, make_toy_slides


@pytest.fixture(scope="module")
def slides():
    return list(make_toy_slides(3))


def test_slides_are_valid_and_share_their_genes(slides):
    for slide in slides:
        slide.validate()
        assert len(slide.spots) == 196
        assert slide.genes["symbol"].tolist() == [f"TOY{i:03d}" for i in range(200)]
    assert [slide.slide_id for slide in slides] == ["toy_A1", "toy_A2", "toy_B1"]
    assert [slide.patient_id for slide in slides] == ["A", "A", "B"]


def test_the_seed_decides_everything(slides):
    again, other = make_toy_slide("toy_A2", seed=0), make_toy_slide("toy_A2", seed=1)
    np.testing.assert_array_equal(again.image, slides[1].image)
    np.testing.assert_array_equal(again.counts.toarray(), slides[1].counts.toarray())
    assert again.spots.equals(slides[1].spots)
    assert (other.image != again.image).any()
    assert (slides[0].image != slides[1].image).any()


def test_every_region_appears_and_is_the_fifth_of_the_level(slides):
    for slide in slides:
        assert set(slide.spots["label"]) == set(REGIONS)
        fifth = np.floor(slide.spots["level"] * 5).astype(int)
        assert [REGIONS[i] for i in fifth] == slide.spots["label"].tolist()


def test_more_structure_goes_with_more_expressed_genes(slides):
    for slide in slides:
        level, expressed = slide.spots["level"], slide.counts.getnnz(axis=1)
        assert spearmanr(level, expressed).statistic > 0.95
        # Depth varies on its own: the number of expressed genes is not just the total.
        assert spearmanr(slide.counts.sum(axis=1), expressed).statistic < 0.97


def test_gene_programmes_are_nested(slides):
    for slide in slides:
        tumour = slide.spots["label"].to_numpy() == "tumour"
        adipose = slide.spots["label"].to_numpy() == "adipose"
        rate = (slide.counts > 0).toarray()
        programme = slice(0, 120)  # 60 % of 200 genes, thresholds ascending
        high, low = rate[tumour][:, programme].mean(axis=0), rate[adipose][:, programme].mean(axis=0)
        # Thresholds reach 0.95: tumour (from 0.8) has the first 96 on in all spots, adipose (to 0.2) none from 30 on.
        assert high[:96].mean() > 0.85
        assert high[:96].min() > 0.45
        assert low[30:].max() < 0.25
        assert (high + 0.25 >= low).all()


def test_more_structure_shows_in_the_picture(slides):
    for slide in slides:
        patches = [np.asarray(patch, dtype=float) for patch in slide.patches(112, 56)]
        # Hematoxylin takes red; eosin hardly does.
        dark_red = [(patch[:, :, 0] < 140).mean() for patch in patches]
        assert spearmanr(slide.spots["level"], dark_red).statistic > 0.85


def test_stains_differ_between_slides(slides):
    means = [slide.image.reshape(-1, 3).mean(axis=0) for slide in slides]
    assert np.abs(means[0] - means[1]).max() > 1
    assert np.abs(means[0] - means[2]).max() > 1


def test_size_is_a_choice():
    slide = make_toy_slide(spots_per_side=4, num_genes=30, image_px=96)
    slide.validate()
    assert slide.image.shape == (96, 96, 3)
    assert slide.counts.shape == (16, 30)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"spots_per_side": 1}, "spots_per_side is 1. Allowed: 2 or more"),
        ({"num_genes": 3}, "num_genes is 3"),
        ({"image_px": 64}, "image_px is 64. Allowed: 112"),
    ],
)
def test_sizes_that_are_too_small_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        make_toy_slide(**options)
    with pytest.raises(ValueError, match="num_slides is 0"):
        make_toy_slides(0)
