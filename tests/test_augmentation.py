"""Random changes of patches: stains by themselves, and parts that lie within their wholes."""

import numpy as np
import pytest
import torch

from delst_hf.pretraining.augmentation import CROP_SHARE, STAIN_JITTER, STAINS, part_views, random_crops, stain_jitter

MEAN, STD = torch.tensor([0.5, 0.4, 0.6]), torch.tensor([0.5, 0.3, 0.2])


def stained(concentrations: torch.Tensor) -> torch.Tensor:
    """Normalised patches of these concentrations (batch, 2, height, width) of the two stains."""
    stains = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    light = 10.0 ** -np.einsum("bshw,sc->bchw", concentrations.numpy(), stains)
    return (torch.from_numpy(light) - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


def concentrations_of(pixels: torch.Tensor) -> np.ndarray:
    """Least squares of the optical density on the two stains: (batch, 2, height, width)."""
    density = -np.log10((pixels * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)).numpy())
    stains = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    rows = density.transpose(1, 0, 2, 3).reshape(3, -1)
    solved = np.linalg.lstsq(stains.T, rows, rcond=None)[0]
    return solved.reshape(2, len(density), *density.shape[2:]).transpose(1, 0, 2, 3)


@pytest.mark.parametrize("strength", [STAIN_JITTER["light"], STAIN_JITTER["strong"]])
def test_each_stain_changes_by_a_line_of_its_own(strength):
    torch.manual_seed(0)
    before = 0.3 + 0.4 * torch.rand(40, 2, 3, 3, dtype=torch.float64)
    after = concentrations_of(stain_jitter(stained(before), strength, MEAN, STD))
    lines = []
    for patch in range(len(before)):
        for stain in range(2):
            old, new = before[patch, stain].flatten().numpy(), after[patch, stain].flatten()
            slope, shift = np.polyfit(old, new, 1)
            np.testing.assert_allclose(new, slope * old + shift, atol=1e-5)  # one line for all pixels of a patch
            lines.append((slope - 1, shift))
    changes = np.array(lines)
    assert np.abs(changes).max() <= strength + 1e-3
    assert (np.abs(changes).max(axis=0) > 0.8 * strength).all()  # the range is used
    by_stain = changes.reshape(-1, 2, 2)
    assert abs(np.corrcoef(by_stain[:, 0, 0], by_stain[:, 1, 0])[0, 1]) < 0.5  # the two stains by themselves


def test_off_is_the_patch_itself_and_the_generator_decides():
    pixels = stained(torch.full((2, 2, 4, 4), 0.5, dtype=torch.float64)).float()
    assert stain_jitter(pixels, STAIN_JITTER["off"], MEAN, STD) is pixels
    torch.manual_seed(3)
    first = stain_jitter(pixels, 0.2, MEAN, STD)
    torch.manual_seed(3)
    assert torch.equal(first, stain_jitter(pixels, 0.2, MEAN, STD))
    assert not torch.equal(first, stain_jitter(pixels, 0.2, MEAN, STD))


def test_light_stays_light():
    torch.manual_seed(0)
    extremes = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]).repeat(50, 1, 1, 1)
    pixels = (extremes - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    light = stain_jitter(pixels, 0.2, MEAN, STD) * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert light.min() >= -1e-6 and light.max() <= 1 + 1e-6 and light.isfinite().all()


def test_a_part_is_a_square_within_its_patch():
    """Patches whose channels are the coordinates: a crop shows where it was taken from, and how large it is."""
    torch.manual_seed(0)
    side = 32
    ramp = (torch.arange(side) + 0.5) / side
    patch = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])
    crops, _ = part_views(patch.expand(200, 3, side, side), torch.ones(200, 4, dtype=torch.bool))
    inner = crops[:, :, 2:-2, 2:-2]
    for axis, channel in ((3, 0), (2, 1)):
        steps = inner[:, channel].diff(dim=axis - 1) * side  # how far one pixel of the crop reaches in the patch
        shares = steps.flatten(1).mean(1)
        assert shares.min() > CROP_SHARE[0] - 0.01 and shares.max() < CROP_SHARE[1] + 0.01
        assert shares.max() - shares.min() > 0.3
    assert crops[:, :2].min() >= 0 and crops[:, :2].max() <= 1
    across = inner[:, 0].diff(dim=2).flatten(1).mean(1)
    down = inner[:, 1].diff(dim=1).flatten(1).mean(1)
    torch.testing.assert_close(across, down, atol=1e-4, rtol=1e-3)


def test_the_genes_of_a_part_were_measured():
    torch.manual_seed(0)
    measured = torch.rand(50, 400) < 0.7
    _, kept = part_views(torch.rand(50, 3, 8, 8), measured)
    assert not (kept & ~measured).any()
    assert 0.45 < kept.sum() / measured.sum() < 0.55


def test_a_crop_is_a_square_of_the_patch():
    """On a patch whose value is its place, a crop spans its share of the range and stays inside."""
    torch.manual_seed(0)
    side = 64
    ramp = (torch.arange(side) + 0.5) / side
    patch = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])
    crops = random_crops(patch.repeat(200, 1, 1, 1), 0.5)
    spans = []
    for crop in crops:
        across, down = crop[0, side // 2], crop[1, :, side // 2]
        assert across.min() >= 0 and across.max() <= 1
        # One pixel of the crop is `share` of a pixel of the patch, in both directions.
        steps = torch.cat([across.diff()[8:-8], down.diff()[8:-8]]) * side
        assert steps.std() < 1e-3
        spans.append(float(steps.mean()))
    assert 0.5 <= min(spans) < 0.55 and 0.95 < max(spans) <= 1.001  # uniform between the two shares
    whole = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(random_crops(whole, 1.0), whole, rtol=0, atol=1e-5)
