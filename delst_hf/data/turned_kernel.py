"""Turn and normalise patches on a CUDA device by one Triton kernel: each byte is read once and each value written once.

A byte has 256 values, so normalising is a lookup in a table of 256 rows. `collator.PixelTransform` makes the table by its own
formula, so that the kernel's pixels equal its pixels to the last bit, however a compiler rounds. Blocks are read in the memory
order of the input and written in that of the output; mirroring at the diagonal exchanges the axes of a block in between.
"""

import functools
import os
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..model.contrastive_kernels import jit, tl, triton

TILE = 32
"""Side of a block, in pixels: 96 bytes of a line in, 384 out."""


@jit
def turn_and_normalise(pixels, choices, table, out, n, side, TILE: tl.constexpr):
    """Write one block of one patch; `pixels` and `out` are (n, side, side, 3), `choices` (3, n), `table` (256, 3)."""
    tiles = tl.cdiv(side, TILE)
    patch = tl.program_id(0) // (tiles * tiles)
    tile = tl.program_id(0) % (tiles * tiles)
    row, column = (tile // tiles) * TILE + tl.arange(0, TILE), (tile % tiles) * TILE + tl.arange(0, TILE)
    # A fourth, masked channel, since sizes of blocks are powers of 2.
    channel = tl.arange(0, 4)[None, None, :]
    inside = (row < side)[:, None, None] & (column < side)[None, :, None] & (channel < 3)
    first = patch.to(tl.int64) * side * side * 3
    place = (row[:, None, None] * side + column[None, :, None]) * 3 + channel
    values = tl.load(pixels + first + place, mask=inside, other=0)
    diagonal, vertical = tl.load(choices + patch) != 0, tl.load(choices + n + patch) != 0
    horizontal = tl.load(choices + 2 * n + patch) != 0
    if diagonal:
        values = tl.permute(values, (1, 0, 2))
    down, right = tl.where(diagonal, column, row), tl.where(diagonal, row, column)
    inside = (down < side)[:, None, None] & (right < side)[None, :, None] & (channel < 3)
    numbers = tl.load(table + values.to(tl.int32) * 3 + channel, mask=inside, other=0.0)
    down, right = tl.where(horizontal, side - 1 - down, down), tl.where(vertical, side - 1 - right, right)
    tl.store(out + first + (down[:, None, None] * side + right[None, :, None]) * 3 + channel, numbers, mask=inside)


def turned_and_normalised(pixels: Tensor, choices: Tensor, table: Tensor) -> Tensor:
    """Turn patches and look up the normalised values of their bytes.

    Args:
        pixels: Square patches (batch, 3, side, side) uint8; best in channels-last order, as the collator makes them.
        choices: Result of `orientation_choices` for the patches.
        table: Normalised value of each byte, per channel (256, 3) float32, on the patches' device.

    Returns:
        (batch, 3, side, side) float32, channels last.
    """
    n, _, side, _ = pixels.shape
    rows = pixels.permute(0, 2, 3, 1).contiguous()
    out = torch.empty(rows.shape, dtype=torch.float32, device=pixels.device)
    on_device: Any = torch.cuda.device(pixels.device) if pixels.is_cuda else nullcontext()
    with on_device:
        turn_and_normalise[(n * (-(-side // TILE)) ** 2,)](
            rows, choices.view(torch.uint8), table, out, n, side, TILE=TILE
        )
    return out.permute(0, 3, 1, 2)


@functools.cache
def _kernel_runs(device: torch.device) -> bool:
    """Tell whether the kernel compiles here and gives the same result as torch; tried once per device and process."""
    pixels = torch.arange(16 * 37 * 37 * 3, device=device).remainder(251).to(torch.uint8).view(16, 37, 37, 3)
    pixels = pixels.permute(0, 3, 1, 2)
    choices = (torch.arange(16, device=device) >> torch.arange(3, device=device)[:, None]).bitwise_and(1).bool()
    choices = choices.view(3, 16, 1, 1, 1)
    table = torch.arange(256.0 * 3, device=device).view(256, 3)
    mirrored = torch.where(choices[0], pixels.transpose(-2, -1), pixels)
    mirrored = torch.where(choices[1], mirrored.flip(-1), mirrored)
    mirrored = torch.where(choices[2], mirrored.flip(-2), mirrored)
    plain = table[mirrored.permute(0, 2, 3, 1).long(), torch.arange(3, device=device)]
    try:
        why = "its pixels are not those of torch"
        if torch.equal(turned_and_normalised(pixels, choices, table).permute(0, 2, 3, 1), plain):
            return True
    except Exception as error:  # no compiler, a driver that is too old, ...: torch is used instead
        why = str(error)
    warnings.warn(f"Triton cannot turn patches on {device} ({why}): torch does it, in more passes.", stacklevel=2)
    return False


def kernel_serves(pixels: Tensor) -> bool:
    """Tell whether the kernel can turn these patches: square, three channels of bytes, on a CUDA device where it runs.

    On a CPU it runs only with Triton's interpreter, which tests enable by the environment variable ``TRITON_INTERPRET=1``.
    """
    square = pixels.dim() == 4 and pixels.shape[1] == 3 and pixels.shape[2] == pixels.shape[3]
    if triton is None or pixels.dtype != torch.uint8 or not square or not len(pixels):
        return False
    if not pixels.is_cuda:
        return pixels.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return torch.version.hip is None and _kernel_runs(pixels.device)
