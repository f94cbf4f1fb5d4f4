"""Niches of spots: who is in them, what is added up, and which part of a wide patch is the spot's."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from delst_hf import DelstCollator, Study
from delst_hf.data.dataset import write_dataset
from delst_hf.data.niche import NicheCollator, NicheCounts, centre_px, with_niches
from delst_hf.data.toy import make_toy_slides
from delst_hf.model.feature_extraction_delst import DelstGeneFeatureExtractor
from delst_hf.model.processing_delst import DelstProcessor

NICHE_UM = 336.0


@pytest.fixture(scope="module")
def wide_study(tmp_path_factory):
    """Two toy slides whose patches are 336 um and 96 px wide, stored without loss."""
    folder = tmp_path_factory.mktemp("wide") / "data"
    slides = make_toy_slides(2, spots_per_side=5, image_px=400)
    write_dataset(slides, folder, patch_um=NICHE_UM, patch_px=96, image_format="png")
    return Study.load(folder)


@pytest.fixture(scope="module")
def collator(wide_study):
    from transformers import ViTImageProcessorPil

    vocabulary = wide_study.gene_names[::2]
    images = ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor = DelstProcessor(images, DelstGeneFeatureExtractor(vocabulary=vocabulary))
    spots = wide_study.spots
    counts = NicheCounts(wide_study, [spots], processor.feature_extractor.match(wide_study.gene_names), len(vocabulary))
    about = processor, wide_study.gene_names, wide_study.slide_ids
    return NicheCollator(*about, counts=counts, centre=1 / 3)


def test_a_niche_is_the_spot_and_its_nearest_on_the_wide_patch(wide_study):
    niches = with_niches(wide_study, wide_study.spots, 4, NICHE_UM)
    placed = wide_study.with_positions_um(wide_study.spots).to_pandas()
    for row, niche in zip(placed.itertuples(), niches["niche"]):
        here = placed[placed["slide_id"] == row.slide_id]
        across = np.maximum(abs(here["x_um"] - row.x_um), abs(here["y_um"] - row.y_um))
        distance = np.hypot(here["x_um"] - row.x_um, here["y_um"] - row.y_um)[across <= NICHE_UM / 2]
        found = distance.loc[[placed.index[placed["spot_index"] == spot][0] for spot in niche]]
        assert niche[0] == row.spot_index and len(set(niche)) == len(niche)
        # Ties apart, nobody nearer is left out.
        np.testing.assert_allclose(found.to_numpy(), np.sort(distance.to_numpy())[: len(niche)], atol=1e-9)
        assert len(niche) == min(5, len(distance))


def test_only_given_spots_are_neighbours(wide_study):
    some = wide_study.spots.select(range(0, 25, 2))
    chosen = {spot for niche in with_niches(wide_study, some, 8, NICHE_UM)["niche"] for spot in niche}
    assert chosen == set(some["spot_index"])


def test_spots_that_stand_alone_or_in_one_place(wide_study):
    alone = with_niches(wide_study, wide_study.spots.select([3]), 6, NICHE_UM)
    assert alone["niche"][0] == [3]
    narrow = with_niches(wide_study, wide_study.spots, 6, 1.0)
    assert narrow["niche"][:] == [[spot] for spot in wide_study.spots["spot_index"]]
    same = wide_study.spots.select([0, 1, 2]).remove_columns(["x", "y"])
    same = same.add_column("x", [10.0] * 3).add_column("y", [10.0] * 3)
    niches = with_niches(wide_study, same, 1, NICHE_UM)["niche"]
    assert [niche[0] for niche in niches] == [0, 1, 2] and all(len(set(niche)) == 2 for niche in niches)


def test_genes_of_a_niche_are_added_up_before_the_logarithm(wide_study, collator):
    niches = with_niches(wide_study, wide_study.spots, 4, NICHE_UM)
    rows = [niches[i] for i in (0, 12, 30)]
    batch = collator(rows)
    dense = wide_study.counts(wide_study.spots).toarray().astype(np.float64)
    target = collator.processor.feature_extractor.target_sum
    for values, row in zip(batch["niche_gene_values"], rows):
        added = dense[row["niche"]].sum(axis=0)
        expected = np.log1p(added / added.sum() * target)[::2]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_centre_of_the_patch_is_the_spots(wide_study, collator):
    """Of a patch of 96 px whose centre is a third, the pixels 32 to 64."""
    niches = with_niches(wide_study, wide_study.spots, 4, NICHE_UM)
    rows = [niches[i] for i in (0, 7)]
    plain = DelstCollator(collator.processor, wide_study.gene_names, wide_study.slide_ids)
    crops, wholes = [], []
    for row in rows:
        whole = row["image"] if isinstance(row["image"], Image.Image) else Image.open(io.BytesIO(row["image"]["bytes"]))
        crops.append(Image.fromarray(np.asarray(whole)[32:64, 32:64]))
        wholes.append(whole)
    batch = collator(rows)
    torch.testing.assert_close(batch["pixel_values"], plain.pixel_values(crops), rtol=0, atol=0)
    torch.testing.assert_close(batch["niche_pixel_values"], plain.pixel_values(wholes), rtol=0, atol=0)
    torch.testing.assert_close(batch["gene_values"], torch.from_numpy(plain.gene_values(rows)), rtol=0, atol=0)


def test_patches_of_both_levels_may_wait_to_be_normalised(wide_study, collator):
    about = collator.processor, wide_study.gene_names, wide_study.slide_ids
    later = NicheCollator(*about, counts=collator.counts, centre=1 / 3, defer_pixels=True)
    rows = [with_niches(wide_study, wide_study.spots, 4, NICHE_UM)[5]]
    deferred = later(rows)
    assert deferred["pixel_values"].dtype == torch.uint8
    finished, direct = later.finish(deferred), collator(rows)
    for name in ("pixel_values", "niche_pixel_values"):
        torch.testing.assert_close(finished[name], direct[name], rtol=0, atol=1e-6)
    assert later.finish({"gene_values": direct["gene_values"]}).keys() == {"gene_values"}
    # A wide patch is turned as its centre.
    turned = later.finish(deferred, torch.tensor([1, 0, 1]).bool().view(3, 1, 1, 1, 1))
    for name in ("pixel_values", "niche_pixel_values"):
        assert torch.equal(turned[name], finished[name].transpose(-2, -1).flip(-2))


@pytest.mark.parametrize(
    ("spot_um", "message"),
    [
        (336.0, "must be above 0 and below the side of a niche, which is that of the stored patches: 336 um"),
        (0.0, "must be above 0"),
        (float("nan"), "must be above 0"),
        (10.0, "has only 3 of the 96 px of a stored patch"),
    ],
)
def test_sizes_that_show_nothing_are_refused(spot_um, message):
    with pytest.raises(ValueError, match=message):
        centre_px(96, spot_um, NICHE_UM)
