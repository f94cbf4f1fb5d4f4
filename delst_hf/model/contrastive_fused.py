"""InfoNCE on a CUDA device by a few launches of Triton kernels, for none of which the host waits.

The forward pass visits the pairs once, in registers, and keeps the log-sum-exp of each row and column. The backward pass
recomputes the pairs, some thousand rows at a time, and writes their slopes to memory as two TF32 numbers each, which torch
multiplies with the points. Products in three TF32 parts (3xTF32) are as accurate as float32 and take half its time.
Whether float64 is needed is decided on the device: see `contrastive_exact`.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .contrastive_exact import exact_gradients, exact_log_sums, finish_scalars
from .contrastive_kernels import STATISTICS, close_sums, join_log_sums, log_sums, pair_slopes, triton
from .contrastive_points import finish_gradients, measure_points, split_points
from .replay import replayed

ROWS_AT_ONCE = 4096
"""Rows of pairs whose slopes the backward pass holds in memory at a time, two floats per pair."""

PROGRAMS = 1024
"""Programs that the forward pass is divided into: a few waves on the largest current devices."""

ROW_PROGRAMS = 128
"""Most programs that the rows are divided into: each stores two numbers per column."""

BLOCK = {"BR": 16, "BD": 64}

TILES: dict[str, dict[str, int]] = {
    "interpreter": {"BM": 16, "BN": 32, "BK": 32},
    "small": {"BM": 64, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 3},
    "large": {"BM": 128, "BN": 64, "BK": 32, "num_warps": 8, "num_stages": 3},
}
"""Block of pairs per program. Larger ones do not fit the registers of a Hopper GPU (float32: 32 pairs per thread)."""


def _tile(n: int, m: int) -> dict[str, int]:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return TILES["interpreter"]
    return TILES["small" if n * m <= 2048 * 2048 else "large"]


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


@contextmanager
def _in_tf32(x: Tensor) -> Iterator[None]:
    """Let torch multiply float32 matrices in TF32, for factors that are TF32 numbers already."""
    if not x.is_cuda:
        yield
        return
    backend: Any = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(backend, "fp32_precision") else "allow_tf32"
    before = getattr(backend, name)
    setattr(backend, name, "tf32" if name == "fp32_precision" else True)
    try:
        yield
    finally:
        setattr(backend, name, before)


def _on_device(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


class _Points:
    """All points with what the pair kernels read of each: computed by two kernels, identically in both passes."""

    def __init__(self, x: Tensor, y: Tensor, curvature: Tensor, geometry: str, start: int):
        self.n, self.m, self.dim = len(x), len(y), x.shape[-1]
        self.total, self.width = self.n + self.m, 32 * _blocks(self.dim, 32)
        self.points = torch.cat([x, y])
        numbers = self.points.new_empty(2 * self.total + 2 * self.n, dtype=torch.float64)
        self.lengths, self.rapidities, self.own_h, self.own_measures = numbers.split(
            [self.total, self.total, self.n, self.n]
        )
        grid = (_blocks(self.total, BLOCK["BR"]),)
        centres = numbers.new_empty(grid[0], self.dim + 1)
        measure_points[grid](
            self.points, curvature, self.lengths, self.rapidities, centres, self.total, self.dim,
            GEOMETRY=geometry, **BLOCK,
        )  # fmt: skip
        self.centre = centres.sum(0)
        self.high, self.low = self.points.new_empty(2, self.total, self.width)
        self.statistics = self.points.new_empty(STATISTICS, self.total)
        split_points[grid](
            self.points, curvature, self.lengths, self.rapidities, self.centre, self.high, self.low, self.statistics,
            self.own_h, self.own_measures, self.n, self.total, start, self.dim, self.width, GEOMETRY=geometry, **BLOCK,
        )  # fmt: skip


def _log_sums(
    points: _Points, scale: Tensor, curvature: Tensor, geometry: str, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-sum-exp of the foreign logits of rows (n,) and columns (m,), float64, and the sums of the verdict (2,)."""
    n, m, tile = points.n, points.m, _tile(points.n, points.m)
    row_blocks, column_blocks = _blocks(n, tile["BM"]), _blocks(m, tile["BN"])
    blocks = _blocks(row_blocks, ROW_PROGRAMS)
    row_programs = _blocks(row_blocks, blocks)
    share = _blocks(column_blocks, _blocks(PROGRAMS, row_programs))
    column_programs = _blocks(column_blocks, share)
    row_parts = scale.new_empty(3, column_programs, n)
    column_parts = scale.new_empty(2, row_programs, m)
    log_sums[(row_programs, column_programs)](
        points.high, points.low, points.statistics, scale, curvature, row_parts, column_parts,
        n, m, start, points.width, share * tile["BN"], BLOCKS=blocks, GEOMETRY=geometry, **tile,
    )  # fmt: skip
    log_rows, log_columns = points.lengths.new_empty(n + m).split([n, m])
    verdict = points.lengths.new_empty(_blocks(n, 128), 2)
    for parts, sums, judge in ((row_parts, log_rows, True), (column_parts, log_columns, False)):
        join_log_sums[(_blocks(len(sums), 128),)](
            parts, sums, points.own_measures, scale, curvature, verdict, parts.shape[1], len(sums),
            JUDGE=judge, GEOMETRY=geometry, BR=128,
        )  # fmt: skip
    return log_rows, log_columns, verdict.sum(0)


def _exact_log_sums(
    points: _Points, verdict: Tensor, scale: Tensor, curvature: Tensor, log_rows: Tensor, log_columns: Tensor,
    geometry: str, start: int, tolerance: float,
) -> None:  # fmt: skip
    """Overwrite the log-sum-exps with those of float64 if the verdict asks for it."""
    n, m = points.n, points.m
    for sums, first, other, size, other_size, shift in (
        (log_rows, 0, n, n, m, start),
        (log_columns, n, 0, m, n, -start),
    ):
        exact_log_sums[(_blocks(size, 32),)](
            verdict, tolerance, points.points, points.lengths, points.rapidities, scale, curvature, sums,
            first, other, size, other_size, shift, points.dim, GEOMETRY=geometry, B=32,
        )  # fmt: skip


def _join_ranks(log_columns: Tensor, own_measures: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Join the column sums, and the measures of the own pairs of all columns, across ranks in one collective."""
    own = torch.full_like(log_columns, -torch.inf)
    own[start : start + len(own_measures)] = own_measures
    local = torch.cat([log_columns, own])
    ranks = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, local)
    joined = torch.stack(ranks)
    return joined[:, : len(own)].logsumexp(0), joined[:, len(own) :].amax(0)


def _slopes_and_products(
    points: _Points, scale: Tensor, curvature: Tensor, ends: tuple[Tensor, Tensor, Tensor], geometry: str, start: int,
    rows_at_once: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return products of slopes with the other side's offsets, sums of slopes (2, points), and sums for the scalars."""
    n, m, tile = points.n, points.m, _tile(points.n, points.m)
    rows_at_once = min(n, rows_at_once)
    products, sums = torch.empty_like(points.high), points.statistics.new_zeros(2, points.total)
    buffer = points.high.new_empty(2, rows_at_once * m)
    parts = []
    for first in range(0, n, rows_at_once):
        rows = min(rows_at_once, n - first)
        row_blocks, column_blocks = _blocks(rows, tile["BM"]), _blocks(m, tile["BN"])
        row_parts, column_parts = buffer.new_empty(2, column_blocks, rows), buffer.new_empty(2, row_blocks, m)
        scalar_parts = buffer.new_empty(row_blocks * column_blocks, 2)
        high, low = (half[: rows * m].view(rows, m) for half in buffer)
        pair_slopes[(row_blocks * column_blocks,)](
            points.high, points.low, points.statistics, scale, curvature, *ends, high, low, row_parts, column_parts,
            scalar_parts, first, n, m, start, points.width, rows, GROUP=8, GEOMETRY=geometry, **tile,
        )  # fmt: skip
        parts.append(scalar_parts)
        mine, others = slice(first, first + rows), slice(n, None)
        if geometry != "cosine":
            torch.sum(row_parts, 1, out=sums[:, mine]) if rows == n else sums[:, mine].copy_(row_parts.sum(1))
            sums[:, others] += column_parts.sum(1)
        with _in_tf32(high):
            torch.mm(low, points.high[others], out=products[mine])
            products[mine].addmm_(high, points.low[others]).addmm_(high, points.high[others])
            products[others].addmm_(low.T, points.high[mine], beta=0.0 if first == 0 else 1.0)
            products[others].addmm_(high.T, points.low[mine]).addmm_(high.T, points.high[mine])
    return products, sums, parts[0] if len(parts) == 1 else torch.cat(parts)


class FusedInfoNCE(torch.autograd.Function):
    """`contrastive.TiledInfoNCE` by Triton kernels, for float32 on a CUDA device."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, curvature: Tensor, geometry: str, rows_at_once: int | None,
        start: int, across_ranks: bool, tolerance: float,
    ) -> Tensor:  # fmt: skip
        x, y = x.contiguous(), y.contiguous()
        n, m = len(x), len(y)
        with _on_device(x):
            points = _Points(x, y, curvature, geometry, start)
            log_rows, log_columns, verdict = _log_sums(points, scale, curvature, geometry, start)
            if across_ranks:
                dist.all_reduce(verdict)
            if geometry != "cosine":
                _exact_log_sums(points, verdict, scale, curvature, log_rows, log_columns, geometry, start, tolerance)
            own_columns = points.own_measures
            if across_ranks:
                log_columns, own_columns = _join_ranks(log_columns, own_columns, start)
            row_ends, column_ends, own_slopes = points.lengths.new_empty(2 * n + m).split([n, m, n])
            sums = points.lengths.new_empty(_blocks(m, 128), 2)
            close_sums[(len(sums),)](
                log_rows, log_columns, points.own_measures, own_columns, scale, curvature, row_ends, column_ends,
                own_slopes, sums, n, m, start, GEOMETRY=geometry, BR=128,
            )  # fmt: skip
            closing = sums.sum(0)
            # Not the local mean: ranks with fewer rows must weigh less once DDP averages the gradients.
            ctx.weight = (dist.get_world_size() if across_ranks else 1) / (2 * m)
            ctx.geometry, ctx.start, ctx.tolerance = geometry, start, tolerance
            ctx.rows_at_once = rows_at_once or ROWS_AT_ONCE
            ctx.save_for_backward(x, y, scale, curvature, verdict, row_ends, column_ends, own_slopes, closing)
            return (closing[0] * ctx.weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y, scale, curvature, verdict, row_ends, column_ends, own_slopes, closing = ctx.saved_tensors
        n, m, geometry, start = len(x), len(y), ctx.geometry, ctx.start
        judge, ends = (verdict, ctx.tolerance), (row_ends, column_ends, closing)
        with _on_device(x):
            points = _Points(x, y, curvature, geometry, start)
            products, sums, pair_parts = _slopes_and_products(
                points, scale, curvature, ends, geometry, start, ctx.rows_at_once
            )
            gradients = torch.empty_like(points.points)
            known = (points.points, points.lengths, points.rapidities)
            own_parts = points.lengths.new_empty(_blocks(points.total, BLOCK["BR"]), 2)
            finish_gradients[(len(own_parts),)](
                *known, points.centre, points.high, points.low, scale, curvature, points.own_h, points.own_measures,
                own_slopes, closing, products, sums, gradients, own_parts, grad_output, ctx.weight,
                n, points.total, start, points.dim, points.width, GEOMETRY=geometry, **BLOCK,
            )  # fmt: skip
            exact_parts = points.lengths.new_empty(_blocks(n, 32), 2)
            sides = (
                (True, row_ends, column_ends, 0, n, n, m, start),
                (False, column_ends, row_ends, n, 0, m, n, -start),
            )
            for left, own_ends, other_ends, *where in sides if geometry != "cosine" else ():
                exact_gradients[(_blocks(where[2], 32),)](
                    *judge, *known, scale, curvature, own_ends, other_ends, own_slopes, closing, gradients, exact_parts,
                    grad_output, ctx.weight, *where, m, points.dim, LEFT=left, GEOMETRY=geometry, B=32,
                )  # fmt: skip
            scalars = gradients.new_empty(2)
            finish_scalars[(1,)](
                *judge, pair_parts, len(pair_parts), own_parts, len(own_parts), exact_parts, len(exact_parts), scale,
                curvature, grad_output, ctx.weight, scalars, GEOMETRY=geometry, B=1024,
            )  # fmt: skip
        return gradients[:n], gradients[n:], scalars[0], scalars[1], None, None, None, None, None


def fused_contrastive(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    curvature: Tensor,
    geometry: str,
    rows_at_once: int | None,
    start: int,
    across_ranks: bool,
    tolerance: float,
) -> Tensor:
    """Compute `FusedInfoNCE`, by one CUDA graph unless across ranks; arguments as in `contrastive.tiled_contrastive`."""
    constants = geometry, rows_at_once, start, across_ranks, tolerance
    if across_ranks:  # ranks exchange numbers within the loss
        return FusedInfoNCE.apply(x, y, scale, curvature, *constants)
    inputs = [x, y, scale, curvature]
    return replayed(lambda *given: [FusedInfoNCE.apply(*given, *constants)], constants, inputs)[0]


@functools.cache
def _kernels_run(device: torch.device) -> bool:
    """Tell whether Triton compiles and runs here, by a trial on a few points, once per device and process."""
    points = torch.eye(16, 32, device=device).requires_grad_()
    one = torch.ones((), device=device)
    try:
        FusedInfoNCE.apply(points, 2 * points, one, one, "lorentz", None, 0, False, 1e-4).backward()
        if points.is_cuda:
            torch.cuda.synchronize(device)
    except Exception as error:  # no compiler, a driver that is too old, ...: in each case the tiles remain
        warnings.warn(
            f"Triton does not run on {device} ({error}): the loss falls back to tiles of torch.", stacklevel=2
        )
        return False
    return True


def is_fused(x: Tensor) -> bool:
    """Tell whether the kernels can compute this batch: float32, 16 rows or more, a CUDA device with TF32, a working Triton.

    On a CPU only by Triton's interpreter, which tests enable with the environment variable ``TRITON_INTERPRET=1``.
    """
    if triton is None or x.dtype != torch.float32 or len(x) < 16:
        return False
    if not x.is_cuda:
        return x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (8, 0) and _kernels_run(x.device)
