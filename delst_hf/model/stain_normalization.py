"""Stain normalisation: the stains of each patch become those of one reference, whichever laboratory stained and scanned it."""

import math

import torch
from torch import Tensor

_TISSUE_DENSITY = 0.15
"""Optical density (natural logarithm) that a pixel must exceed in every channel to count as tissue (Macenko's beta)."""
_LEAST_TISSUE = 0.02
"""Least share of tissue in a patch: statistics of less say nothing about its stains, and the patch is left unchanged."""
_MOST_GAIN = 10.0
"""Largest factor by which a stain or a channel is amplified: in a patch without that stain, it would amplify noise."""

# From RGB to the cones of the eye, and from their logarithms to lightness, yellow-blue and red-green (Ruderman et al., 1998).
_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_LAB = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)),
    (1 / math.sqrt(2), -1 / math.sqrt(2), 0.0),
)
# The reference of HistomicsTK: a region of the breast tumour TCGA-A2-A3XS (Amgad et al., 2019).
_REFERENCE_MEAN = (8.74108109, -0.12440419, 0.0444982)
_REFERENCE_SD = (0.6135447, 0.10989545, 0.0286032)

_WHITE = 240.0
"""Light, out of 255, that passes where there is no tissue."""
# The customary reference of Macenko's method, from its first implementation: stains in red, green and blue (columns
# haematoxylin and eosin), and the 99th percentile of their concentrations.
_REFERENCE_STAINS = ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581))
_REFERENCE_CONCENTRATION = (1.9705, 1.0308)
_LEAST_ANGLE = 0.02
"""Stains whose directions are nearer than this (sine of the angle) count as one stain, as they cannot be told apart."""


def normalize_stains(pixel_values: Tensor, method: str, mean: Tensor, std: Tensor) -> Tensor:
    """Give each patch the stains of the reference, independently of other patches and of its slide.

    Args:
        pixel_values: Normalised patches (batch, 3, height, width).
        method: ``"reinhard"`` matches mean and standard deviation of the tissue in a perceptual colour space; ``"macenko"``
            finds the two stains of the patch and replaces them by those of the reference.
        mean: Mean of the normalisation per channel (3,), for light from 0 to 1.
        std: Its standard deviation per channel (3,).

    Returns:
        The patches, of the same shape, type and normalisation; those with almost no tissue are unchanged.

    Source: Reinhard et al., Color transfer between images (2001); Macenko et al., A method for normalizing histology slides
    for quantitative analysis (ISBI 2009).

    >>> glass = torch.full((1, 3, 4, 4), 0.97)
    >>> torch.equal(normalize_stains(glass, "macenko", torch.zeros(3), torch.ones(3)), glass)
    True
    """
    normalise = {"reinhard": _reinhard, "macenko": _macenko}[method]
    mean, std = (x.to(pixel_values.device, torch.float32).view(3, 1, 1) for x in (mean, std))
    pixels = ((pixel_values.float() * std + mean) * 255).clamp(0, 255)
    flat = pixels.flatten(2)
    density = -((flat + 1) / _WHITE).log()
    tissue = (density > _TISSUE_DENSITY).all(dim=1)
    normalised, usable = normalise(flat, density, tissue)
    usable &= tissue.float().mean(dim=1) >= _LEAST_TISSUE
    changed = (normalised.clamp(0, 255).view_as(pixels) / 255 - mean) / std
    changed = torch.where(usable[:, None, None, None], changed.to(pixel_values.dtype), pixel_values)
    channels_last = pixel_values.is_contiguous(memory_format=torch.channels_last)
    return changed.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _reinhard(pixels: Tensor, density: Tensor, tissue: Tensor) -> tuple[Tensor, Tensor]:
    """Match the tissue's mean and spread, glass unchanged; return (batch, 3, pixels) from 0 to 255, and which are usable."""
    lms, lab = pixels.new_tensor(_LMS), pixels.new_tensor(_LAB)
    colour = lab @ (lms @ pixels.clamp(min=1)).log()
    mean, covariance = _moments(colour, tissue)
    spread = covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()[:, :, None]
    target_mean, target_sd = (pixels.new_tensor(x)[:, None] for x in (_REFERENCE_MEAN, _REFERENCE_SD))
    matched = (colour - mean) * target_sd / torch.maximum(spread, target_sd / _MOST_GAIN) + target_mean
    rgb = torch.linalg.inv(lms) @ (lab.T @ matched).exp()
    return torch.where(tissue[:, None], rgb, pixels), torch.ones_like(tissue[:, 0])


def _macenko(pixels: Tensor, density: Tensor, tissue: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the patch's stains by the reference's; return (batch, 3, pixels) from 0 to 255, and which are usable."""
    plane = torch.linalg.eigh(_moments(density, tissue)[1])[1].flip(2)[:, :, :2]  # of most variance first
    # The sign of an eigenvector is arbitrary; along the positive axis no angles lie at the jump of arctan2.
    plane = plane * torch.where(plane.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    first, second = (plane.transpose(1, 2) @ density).unbind(1)
    angle = torch.atan2(second, first)
    ends = torch.stack([_percentile(angle, tissue, share) for share in (0.01, 0.99)], dim=1)
    stains = plane @ torch.stack([ends.cos(), ends.sin()], dim=1)  # (batch, channels, stains)
    # Haematoxylin takes away more red than eosin does.
    swap = stains[:, 0, 0] < stains[:, 0, 1]
    stains = torch.where(swap[:, None, None], stains.flip(2), stains)
    apart = torch.linalg.cross(stains[:, :, 0], stains[:, :, 1]).norm(dim=1) > _LEAST_ANGLE
    safe = torch.where(apart[:, None, None], stains, pixels.new_tensor(_REFERENCE_STAINS))
    gram = safe.transpose(1, 2) @ safe
    concentration = torch.linalg.solve(gram, safe.transpose(1, 2) @ density)
    everywhere = torch.ones_like(tissue)
    strongest = torch.stack([_percentile(stain, everywhere, 0.99) for stain in concentration.unbind(1)], dim=1)
    target = pixels.new_tensor(_REFERENCE_CONCENTRATION)
    gain = (target / torch.maximum(strongest, target / _MOST_GAIN))[:, :, None]
    return _WHITE * (-pixels.new_tensor(_REFERENCE_STAINS) @ (concentration * gain)).exp(), apart


def _moments(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (batch, channels, 1) and covariance (batch, channels, channels) over the chosen pixels."""
    weight = chosen[:, None].float()
    number = weight.sum(dim=2, keepdim=True).clamp(min=2)
    mean = (values * weight).sum(dim=2, keepdim=True) / number
    centred = (values - mean) * weight
    return mean, centred @ centred.transpose(1, 2) / (number - 1)


def _percentile(values: Tensor, chosen: Tensor, share: float) -> Tensor:
    """Return the percentile over the chosen pixels of each patch (batch,), linear between neighbours; 0 where there is none."""
    ordered = torch.where(chosen, values, torch.inf).sort(dim=1).values
    last = (chosen.sum(dim=1) - 1).clamp(min=0)
    place = last * share
    below = place.floor().long()
    low, high = (ordered.gather(1, at[:, None])[:, 0] for at in (below, torch.minimum(below + 1, last)))
    return torch.where(chosen.any(dim=1), torch.lerp(low, high, place - below), 0.0)


__all__ = ["normalize_stains"]
