"""Slide-aware batches, checked against brute force over all pairs of a batch."""

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from scipy.spatial.distance import pdist
from torch.utils.data import DataLoader

from delst_hf import DelstTrainingArguments
from delst_hf.data.sampler import SlideSampler
from delst_hf.pretraining.sampling import slide_sampler

SIZES = {"a": 90, "b": 200, "c": 410}


@pytest.fixture
def spots():
    """700 spots of three slides in a random order of rows, on grids of 100 um that start at the same corner."""
    slides = np.repeat(list(SIZES), list(SIZES.values()))
    grids = [np.stack(np.divmod(np.arange(n), 20), axis=1) * 100.0 for n in SIZES.values()]
    order = np.random.default_rng(0).permutation(len(slides))
    return slides[order], np.concatenate(grids)[order]


def batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return np.array(list(sampler)).reshape(-1, sampler.batch_size)


def nearest(rows, slides, positions):
    return min(pdist(positions[rows[slides[rows] == s]]).min(initial=np.inf) for s in np.unique(slides[rows]))


@pytest.mark.parametrize("mode", ["random", "balanced", "within_slide"])
def test_an_epoch_holds_each_spot_at_most_once_and_is_seeded(spots, mode):
    sampler = SlideSampler(spots[0], 64, mode, seed=1)
    first, second = batches(sampler, 0), batches(sampler, 1)
    assert first.shape == (10, 64) and len(sampler) == 640
    assert len(np.unique(first)) == 640 and not np.array_equal(first, second)
    assert np.array_equal(batches(SlideSampler(spots[0], 64, mode, seed=1), 1), second)
    assert not np.array_equal(batches(SlideSampler(spots[0], 64, mode, seed=2), 1), second)


def test_balanced_batches_hold_the_slides_in_proportion(spots):
    found = np.array(
        [[np.sum(spots[0][b] == s) for s in SIZES] for b in batches(SlideSampler(spots[0], 70, "balanced"))]
    )
    expected = np.array([9.0, 20.0, 41.0])
    assert np.abs(found - expected).max() <= 1
    drawn = np.array([[np.sum(spots[0][b] == s) for s in SIZES] for b in batches(SlideSampler(spots[0], 70, "random"))])
    assert np.abs(drawn - expected).max() > 3, "the test would be blind"


def test_batches_within_a_slide(spots):
    slides = [len(np.unique(spots[0][batch])) for batch in batches(SlideSampler(spots[0], 64, "within_slide"))]
    # 1 whole batch of a, 3 of b, 6 of c; the 26 + 8 + 26 spots that are left do not make another.
    assert slides == [1] * 10
    # In batches of 100: 2 of b and 4 of c, and one of the 90 and 10 spots left, which comes anywhere in the epoch.
    sampler = SlideSampler(spots[0], 100, "within_slide")
    each = np.array([[len(np.unique(spots[0][b])) for b in batches(sampler, epoch)] for epoch in range(5)])
    assert np.all(np.sort(each) == [1] * 6 + [2]) and len(np.unique(each.argmax(1))) > 1


@pytest.mark.parametrize("mode", ["random", "balanced", "within_slide"])
def test_no_near_neighbours_in_a_batch(spots, mode):
    slides, positions = spots
    sampler = SlideSampler(slides, 64, mode, positions, min_distance_um=141.0)
    found = np.concatenate([batches(sampler, epoch) for epoch in range(3)])
    assert len(found) == 30 and all(len(np.unique(rows)) == 64 for rows in found)
    assert min(nearest(rows, slides, positions) for rows in found) == pytest.approx(100 * 2**0.5)
    unguarded = batches(SlideSampler(slides, 64, mode))
    assert min(nearest(rows, slides, positions) for rows in unguarded) == 100
    # Almost all spots are seen, and the slides stay in proportion.
    assert len(np.unique(batches(sampler))) > 0.9 * 640
    if mode == "balanced":
        assert np.abs(np.mean(slides[found] == "c") - 410 / 700) < 0.02


def test_the_distance_itself_is_allowed(spots):
    found = batches(SlideSampler(spots[0], 350, "random", spots[1], min_distance_um=100.0))
    assert min(nearest(rows, *spots) for rows in found) == 100


def test_what_cannot_be_is_refused(spots):
    slides, positions = spots
    with pytest.raises(ValueError, match="batch_sampling='slide' is not known.*'within_slide'"):
        SlideSampler(slides, 10, "slide")
    with pytest.raises(ValueError, match="joined batch has 701 spots, but there are 700"):
        SlideSampler(slides, 701)
    with pytest.raises(ValueError, match="min_spot_distance_um=5.0 .* x_um and y_um"):
        SlideSampler(slides, 10, min_distance_um=5.0)
    with pytest.raises(ValueError, match="min_spot_distance_um=300 allows batches of about .* not 300"):
        list(SlideSampler(slides, 300, "balanced", positions, min_distance_um=300))


def test_processes_share_a_joined_batch_without_overlap(spots):
    def loader(rank):
        sampler = SlideSampler(spots[0], 64, "balanced", spots[1], 141.0)
        plain = DataLoader(torch.arange(700), batch_size=32, sampler=sampler, drop_last=True)
        return prepare_data_loader(plain, num_processes=2, process_index=rank, put_on_device=False)

    ranks = [loader(0), loader(1)]
    for each in ranks:
        each.set_epoch(3)
    dealt = [np.stack([batch.numpy() for batch in each]) for each in ranks]
    expected = batches(SlideSampler(spots[0], 64, "balanced", spots[1], 141.0), 3)
    assert np.array_equal(np.concatenate(dealt, axis=1), expected)


def test_arguments_and_columns(toy_study, tmp_path):
    def arguments(**options):
        return DelstTrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=12, **options)

    with pytest.raises(ValueError, match="dataloader_drop_last at True"):
        arguments(batch_sampling="balanced", dataloader_drop_last=False)
    guarded = arguments(min_spot_distance_um=150.0)
    with pytest.raises(ValueError, match=r"needs the columns \['x_um', 'y_um'\]"):
        slide_sampler(toy_study.spots, guarded)
    spots = toy_study.with_positions_um(toy_study.spots)
    table = toy_study.spots.to_pandas().merge(toy_study.slides[["slide_id", "mpp"]])
    np.testing.assert_allclose(spots.with_format("numpy")["y_um"][:], table["y"] * table["mpp"])
    positions = np.stack([table["x"] * table["mpp"], table["y"] * table["mpp"]], axis=1)
    found = batches(slide_sampler(spots, guarded))
    assert min(nearest(rows, table["slide_id"].to_numpy(), positions) for rows in found) >= 150


def test_slides_of_unknown_scale(toy_study):
    import dataclasses

    slides = toy_study.slides.assign(mpp=[2.0, 0.0, float("nan")])
    with pytest.raises(ValueError, match=r"Slides \['toy_A2', 'toy_B1'\] have no micrometres per pixel"):
        dataclasses.replace(toy_study, slides=slides).with_positions_um(toy_study.spots)
