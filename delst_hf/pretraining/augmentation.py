"""Random changes of patches that leave their meaning alone, drawn on the device."""

import torch
from torch import Tensor


def random_orientation(pixel_values: Tensor) -> Tensor:
    """Turn each patch to one of its eight orientations: tissue has no preferred one.

    Mirroring at the diagonal, at the vertical and at the horizontal axis, each or not, makes all eight. The choices come from
    the generator of the patches' device, whose state a checkpoint keeps, and the host does not wait for them.

    Args:
        pixel_values: Square patches (batch, channels, side, side).

    Returns:
        The turned patches, of the same shape.

    >>> patch = torch.arange(4.0).view(1, 1, 2, 2)
    >>> sorted(random_orientation(patch).flatten().tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    diagonal, vertical, horizontal = torch.randint(
        2, (3, len(pixel_values), 1, 1, 1), device=pixel_values.device
    ).bool()
    turned = torch.where(diagonal, pixel_values.transpose(-2, -1), pixel_values)
    turned = torch.where(vertical, turned.flip(-1), turned)
    # In the order of memory of all patches here, channels last: convolutions round differently in another.
    return torch.where(horizontal, turned.flip(-2), turned).contiguous(memory_format=torch.channels_last)
