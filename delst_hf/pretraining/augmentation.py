"""Random augmentations of patches that preserve their meaning, drawn on the device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STAIN_JITTER = {"off": 0.0, "light": 0.05, "strong": 0.2}
"""Half-width of the uniform factors and shifts of each stain: HED-light and HED-strong of arXiv 1902.06543."""

STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
"""Optical densities of haematoxylin and of eosin in red, green and blue (Ruifrok and Johnston, 2001), of length 1."""


def stain_jitter(pixel_values: Tensor, strength: float, mean: Tensor, std: Tensor) -> Tensor:
    """Vary the haematoxylin and the eosin of each patch at random, independently of each other.

    Optical density (the negative logarithm, to base 10, of the transmitted light) is unmixed into the two stains and a rest
    orthogonal to them; the concentration ``c`` of each stain becomes ``(1 + a) c + b`` with ``a`` and ``b`` uniform in
    ``[-strength, strength]``, drawn per patch and stain. The draws come from the generator of the patches' device.

    Args:
        pixel_values: Normalised patches (batch, 3, height, width).
        strength: A value of `STAIN_JITTER`; 0 changes nothing.
        mean: Mean of the normalisation per channel (3,), for light from 0 to 1.
        std: Its standard deviation per channel (3,).

    Returns:
        The patches in other stains, of the same shape and normalisation; light stays within 0 and 1.

    Source: HED augmentation (Tellez et al., arXiv 1902.06543).

    >>> white = torch.ones(1, 3, 2, 2)
    >>> stain_jitter(white, 0.0, torch.zeros(3), torch.ones(3)).unique().tolist()
    [1.0]
    """
    if strength == 0:
        return pixel_values
    device = pixel_values.device
    mean, std = mean.to(device).view(3, 1, 1), std.to(device).view(3, 1, 1)
    light = (pixel_values.float() * std + mean).clamp(1 / 256, 1)
    change = (2 * torch.rand(2, len(pixel_values), 2, device=device) - 1) * strength
    # (stains, channels), and the matrix from optical densities to concentrations: (channels, stains).
    stains = F.normalize(torch.tensor(STAINS), dim=-1)
    unmix = torch.linalg.pinv(stains).to(device)
    stains = stains.to(device)
    density = -light.log10()
    concentration = torch.einsum("bchw,cs->bshw", density, unmix)
    added = change[0][:, :, None, None] * concentration + change[1][:, :, None, None]
    density = density + torch.einsum("bshw,sc->bchw", added, stains)
    jittered = torch.pow(10.0, -density).clamp(0, 1)
    return ((jittered - mean) / std).to(pixel_values.dtype).contiguous(memory_format=torch.channels_last)


CROP_SHARE = (0.4, 0.8)
"""Range of the crop's side in `part_views`, as a share of the patch's."""

KEPT_GENES = 0.5
"""Share of the genes that are the part of a profile in `part_views`."""


def random_crops(pixel_values: Tensor, smallest: float, largest: float = 1.0) -> Tensor:
    """Cut a square out of each patch, at a random position, and enlarge it to the patch's size (bilinear).

    Sides are uniform between two shares of the patch's side; they and the positions come from the generator of its device.

    Args:
        pixel_values: Square patches (batch, channels, side, side).
        smallest: Smallest side, as a share of the patch's; 1 leaves patches as they are.
        largest: Largest side, likewise.

    Returns:
        The squares, of the shape and type of the patches.

    >>> random_crops(torch.rand(2, 3, 8, 8), 0.5).shape
    torch.Size([2, 3, 8, 8])
    """
    size, device = len(pixel_values), pixel_values.device
    share = smallest + (largest - smallest) * torch.rand(size, device=device)
    # A centre in [-1, 1] coordinates of the patch, such that the square stays inside.
    centre = (1 - share)[:, None] * (2 * torch.rand(size, 2, device=device) - 1)
    theta = torch.zeros(size, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = share
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, list(pixel_values.shape), align_corners=False)
    crops = F.grid_sample(pixel_values.float(), grid, padding_mode="border", align_corners=False)
    return crops.to(pixel_values.dtype)


def part_views(pixel_values: Tensor, gene_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a part of each spot: a square crop of its patch, and half of its genes.

    Args:
        pixel_values: Square patches (batch, channels, side, side).
        gene_mask: (batch, genes) bool, which genes were measured.

    Returns:
        Crops, resized to the shape of the patches, and which genes are the part (batch, genes) bool.

    >>> crops, genes = part_views(torch.rand(2, 3, 8, 8), torch.ones(2, 100, dtype=torch.bool))
    >>> crops.shape, 20 < int(genes[0].sum()) < 80
    (torch.Size([2, 3, 8, 8]), True)
    """
    crops = random_crops(pixel_values, *CROP_SHARE)
    kept = torch.rand(gene_mask.shape, device=pixel_values.device) < KEPT_GENES
    return crops, gene_mask & kept


def augmented(inputs: dict[str, Any], args: Any, processor: Any) -> dict[str, Any]:
    """Jitter the stains of a training batch, crop its patches, and add its parts, as the training arguments say.

    Args:
        inputs: The batch.
        args: `DelstTrainingArguments`.
        processor: The `DelstProcessor` that normalised the pixels; None if they are light from 0 to 1.
    """
    inputs, pixels = dict(inputs), inputs["pixel_values"]
    if pixels.dim() == 4 and args.stain_jitter != "off":  # cached features have no stains
        light = (torch.zeros(3), torch.ones(3)) if processor is None else processor.light_of_pixels()
        for name in [name for name in ("pixel_values", "niche_pixel_values") if name in inputs]:
            inputs[name] = stain_jitter(inputs[name], STAIN_JITTER[args.stain_jitter], *light)
        pixels = inputs["pixel_values"]
    if pixels.dim() == 4 and args.min_crop < 1:
        pixels = inputs["pixel_values"] = random_crops(pixels, args.min_crop)
    if args.views == "nested":
        inputs["part_pixel_values"], inputs["part_gene_mask"] = part_views(pixels, inputs["gene_mask"])
    return inputs
