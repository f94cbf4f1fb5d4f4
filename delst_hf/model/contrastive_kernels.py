"""Triton kernels of the contrastive loss on a CUDA device; `contrastive_fused` launches them.

The points of both sides lie in one array: rows 0 to n - 1 are x, the others y. Each point is kept as its offset from a
centre, split into two float32 numbers that TF32 holds exactly (`high`, `low`): three TF32 products then have the accuracy of
one in float32. With ``q`` the mean rapidity, ``p`` the mean direction and ``n = sqrt(c)|x|``, the statistics of a point are

    lorentz     n, c|e|^2 / n, sinh((r - q)/2), cosh((r - q)/2), cosh(r)      e = x - |x| p
    euclidean   |e|^2, 0, 0, 0, 1                                             e = x - mean of all points
    cosine      0, 0, 0, 0, 1                                                 e = x

and ``h``, as in `contrastive.py`, is a product of offsets plus a function of two points' statistics. What is linear in the
number of points, own pairs included, is computed in float64. Kernels whose names begin with ``exact`` compute every pair from
differences in float64. They are slow, and run only if a number on the device says that float32 does not resolve the batch;
the host never reads it.
"""

import os
from typing import Any

import torch

try:
    if torch.version.cuda is None and os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError("torch without CUDA has no use for Triton, whose import takes half a second")
    import triton
    import triton.language as tl
except ImportError:
    triton = None

    class tl:  # type: ignore[no-redef]
        """Stand-in for triton.language, with what the signatures below need."""

        constexpr = None


STATISTICS = 5
"""Statistics per point."""


COUNTS = (
    "n", "start", "total", "first_row", "first_other", "size", "other_size", "shift", "columns", "rows_of_chunk",
    "parts_count", "pair_count", "own_count", "exact_count", "columns_of_program",
)  # fmt: skip
"""Arguments whose divisibility makes no kernel faster: one compilation serves all batch sizes, such as that of a last batch."""


def jit(function: Any) -> Any:
    """Apply ``triton.jit``; without Triton return the function unchanged, as it is never called."""
    return function if triton is None else triton.jit(function, do_not_specialize=COUNTS)


# --- what the kernels share -------------------------------------------------------------------------------------------


@jit
def log1p(w):
    """Return ``log(1 + w)``, accurate for small ``w``."""
    one = 1.0 + w
    rest = one - 1.0
    small = rest == 0.0
    return tl.where(small, w, tl.log(one) * (w / tl.where(small, 1.0, rest)))


@jit
def to_tf32(x):
    """Round float32 to the nearest number of TF32, of 11 significant bits."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@jit
def measure_and_slope(h, GEOMETRY: tl.constexpr):
    """Return the measure of ``h`` and its derivative by ``h``, as in `contrastive.measure_and_slope`."""
    if GEOMETRY == "lorentz":
        root = tl.sqrt(h * h + h)
        measure, slope = log1p(2.0 * (h + root)), 1.0 / root
    elif GEOMETRY == "euclidean":
        measure = tl.sqrt(h)
        slope = 1.0 / measure  # by h / 2, whose derivative by a point is a plain difference
    else:
        measure, slope = h, h * 0.0 + 1.0
    return measure, slope


@jit
def multiplier_of(scale, curvature, GEOMETRY: tl.constexpr):
    """Return the multiplier of a measure, float32, from the addresses of the logit scale and the curvature."""
    multiplier = tl.load(scale)
    if GEOMETRY == "lorentz":
        multiplier = multiplier / tl.sqrt(tl.load(curvature))
    return multiplier


@jit
def factor_of(scale, curvature, outer, weight_of_loss, GEOMETRY: tl.constexpr):
    """Return the factor from ``probability * slope`` to the derivative of the loss by a point, float64."""
    factor = -weight_of_loss * tl.load(outer).to(tl.float64) * multiplier_of(scale, curvature, GEOMETRY)
    if GEOMETRY == "lorentz":
        factor = 0.5 * factor * tl.load(curvature)
    return factor


@jit
def load_statistics(statistics, index, total):
    """Return the first four statistics of the points at these indices."""
    first = statistics + index
    return tl.load(first), tl.load(first + total), tl.load(first + 2 * total), tl.load(first + 3 * total)


@jit
def product(high, low, rows, columns, width, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Return the inner products of offsets, (BM, BN) float32, by three products of TF32."""
    k = tl.arange(0, BK)
    left = rows[:, None].to(tl.int64) * width + k[None, :]
    right = columns[None, :].to(tl.int64) * width + k[:, None]
    result = tl.zeros((BM, BN), dtype=tl.float32)
    for first in range(0, width, BK):
        left_high, right_high = tl.load(high + left + first), tl.load(high + right + first)
        left_low, right_low = tl.load(low + left + first), tl.load(low + right + first)
        result = tl.dot(left_low, right_high, result, input_precision="tf32")
        result = tl.dot(left_high, right_low, result, input_precision="tf32")
        result = tl.dot(left_high, right_high, result, input_precision="tf32")
    return result


@jit
def haversine(dot, n_x, w_x, s_x, k_x, n_y, w_y, s_y, k_y, curvature, GEOMETRY: tl.constexpr):
    """Return ``h`` of a tile, clamped from below to its resolution, that resolution, and ``sinh((r_x - r_y)/2)``."""
    eps = 4.8e-7  # four roundings of float32: TF32 units truncate
    if GEOMETRY == "lorentz":
        radial = s_x[:, None] * k_y[None, :] - k_x[:, None] * s_y[None, :]
        extent = tl.abs(s_x)[:, None] * k_y[None, :] + k_x[:, None] * tl.abs(s_y)[None, :]
        spread = 0.25 * (n_x[:, None] * w_y[None, :] + w_x[:, None] * n_y[None, :])
        h = spread - 0.5 * curvature * dot + radial * radial
        floor = eps * (2.0 * spread + tl.abs(radial) * extent) + eps * eps  # |dot| is at most twice the spread over c
        h = tl.maximum(h, floor)
    elif GEOMETRY == "euclidean":
        radial = dot * 0.0
        spread = n_x[:, None] + n_y[None, :]
        h = spread - 2.0 * dot
        floor = 2.0 * eps * spread + eps * eps
        h = tl.maximum(h, floor)
    else:
        radial = dot * 0.0
        h, floor = -dot, radial
    return h, floor, radial


# --- forward ----------------------------------------------------------------------------------------------------------


@jit
def log_sums(
    high, low, statistics, scale, curvature, row_parts, column_parts,
    n, m, start, width, columns_of_program, BLOCKS: tl.constexpr,
    GEOMETRY: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write the maximum and sum of exponentials of the foreign logits in a program's share of each row and of each column.

    For rows also the error that rounding may have caused in the logits, weighted like the logits themselves.
    """
    row_program, column_program, row_programs = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    column_programs = tl.num_programs(1)
    multiplier, c = multiplier_of(scale, curvature, GEOMETRY), tl.load(curvature)
    last_column = tl.minimum((column_program + 1) * columns_of_program, m)
    for block in range(BLOCKS):
        rows = (row_program * BLOCKS + block) * BM + tl.arange(0, BM)
        read_rows = tl.minimum(rows, n - 1)
        n_x, w_x, s_x, k_x = load_statistics(statistics, read_rows, n + m)
        best = tl.full((BM,), float("-inf"), dtype=tl.float32)
        mass, error = tl.zeros((BM,), dtype=tl.float32), tl.zeros((BM,), dtype=tl.float32)
        for first in range(column_program * columns_of_program, last_column, BN):
            columns = first + tl.arange(0, BN)
            read_columns = n + tl.minimum(columns, m - 1)
            dot = product(high, low, read_rows, read_columns, width, BM, BN, BK)
            n_y, w_y, s_y, k_y = load_statistics(statistics, read_columns, n + m)
            h, floor, _ = haversine(dot, n_x, w_x, s_x, k_x, n_y, w_y, s_y, k_y, c, GEOMETRY)
            measure, slope = measure_and_slope(h, GEOMETRY)
            foreign = (rows < n)[:, None] & (columns < m)[None, :] & (rows[:, None] + start != columns[None, :])
            logits = tl.where(foreign, -multiplier * measure, float("-inf"))
            upper = tl.maximum(best, tl.max(logits, axis=1))
            base = tl.where(upper == float("-inf"), 0.0, upper)
            share, shrink = tl.exp(logits - base[:, None]), tl.exp(best - base)
            mass = mass * shrink + tl.sum(share, axis=1)
            if GEOMETRY != "cosine":
                rounding = floor * (multiplier * slope + 0.5 / h) + 1.2e-7 * multiplier * measure
                error = error * shrink + tl.sum(share * rounding, axis=1)
            best = upper
            part = column_parts + row_program * m + columns
            size = row_programs * m
            earlier = (columns < m) & (block > 0)
            upper = tl.max(logits, axis=0)
            if BLOCKS > 1:
                old_best = tl.load(part, mask=earlier, other=float("-inf"))
                old_mass = tl.load(part + size, mask=earlier, other=0.0)
                upper = tl.maximum(upper, old_best)
            base = tl.where(upper == float("-inf"), 0.0, upper)
            column_mass = tl.sum(tl.exp(logits - base[None, :]), axis=0)
            if BLOCKS > 1:
                column_mass += old_mass * tl.exp(old_best - base)
                tl.debug_barrier()
            tl.store(part, upper, mask=columns < m)
            tl.store(part + size, column_mass, mask=columns < m)
            if BLOCKS > 1:
                tl.debug_barrier()
        part = row_parts + column_program * n + rows
        tl.store(part, best, mask=rows < n)
        tl.store(part + column_programs * n, mass, mask=rows < n)
        tl.store(part + 2 * column_programs * n, error, mask=rows < n)


@jit
def join_log_sums(
    parts, log_sums_out, own_measures, scale, curvature, verdict, parts_count, size,
    JUDGE: tl.constexpr, GEOMETRY: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Write the log-sum-exp from its parts (float64); for rows (`JUDGE`) also a block's share of the mean error."""
    index = tl.program_id(0) * BR + tl.arange(0, BR)
    inside = index < size
    upper = tl.full((BR,), float("-inf"), dtype=tl.float32)
    for part in range(parts_count):
        upper = tl.maximum(upper, tl.load(parts + part * size + index, mask=inside, other=float("-inf")))
    base = tl.where(upper == float("-inf"), 0.0, upper)
    mass, error = tl.zeros((BR,), dtype=tl.float32), tl.zeros((BR,), dtype=tl.float32)
    for part in range(parts_count):
        place = parts + part * size + index
        shrink = tl.exp(tl.load(place, mask=inside, other=float("-inf")) - base)
        mass += shrink * tl.load(place + parts_count * size, mask=inside, other=0.0)
        if JUDGE:
            error += shrink * tl.load(place + 2 * parts_count * size, mask=inside, other=0.0)
    alone = mass == 0.0
    total = tl.where(alone, float("-inf"), base.to(tl.float64) + tl.log(tl.where(alone, 1.0, mass).to(tl.float64)))
    tl.store(log_sums_out + index, total, mask=inside)
    if JUDGE:
        multiplier = multiplier_of(scale, curvature, GEOMETRY).to(tl.float64)
        own = multiplier * tl.load(own_measures + index, mask=inside, other=0.0)
        foreign = tl.where(inside & (mass > 0.0), 1.0 / (1.0 + tl.exp(-own - total)), 0.0)
        wrong = foreign * (error / tl.where(alone, 1.0, mass)).to(tl.float64)
        tl.store(verdict + 2 * tl.program_id(0), tl.sum(wrong, axis=0))
        tl.store(verdict + 2 * tl.program_id(0) + 1, tl.sum(foreign, axis=0))


@jit
def close_sums(
    log_rows, log_columns, own_measures, own_columns, scale, curvature, row_ends, column_ends, own_slopes, sums,
    n, m, start, GEOMETRY: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Write log-sum-exps with the own pairs, slopes of the loss by the own logits, and a block's sums of losses and of measures
    of own pairs, those of all ranks."""
    index = tl.program_id(0) * BR + tl.arange(0, BR)
    inside, is_column = index < n, index < m
    multiplier = multiplier_of(scale, curvature, GEOMETRY).to(tl.float64)
    own = -multiplier * tl.load(own_measures + index, mask=inside, other=0.0)
    row_gap = tl.load(log_rows + index, mask=inside, other=0.0) - own
    column_gap = tl.load(log_columns + start + index, mask=inside, other=0.0) - own
    # log(1 + exp(gap)), in the form that stays accurate where the own pair dominates
    row_loss = tl.maximum(row_gap, 0.0) + log1p(tl.exp(-tl.abs(row_gap)))
    column_loss = tl.maximum(column_gap, 0.0) + log1p(tl.exp(-tl.abs(column_gap)))
    tl.store(row_ends + index, own + row_loss, mask=inside)
    slope = -1.0 / (1.0 + tl.exp(-row_gap)) - 1.0 / (1.0 + tl.exp(-column_gap))
    tl.store(own_slopes + index, slope, mask=inside)
    tl.store(sums + 2 * tl.program_id(0), tl.sum(tl.where(inside, row_loss + column_loss, 0.0), axis=0))
    # Columns of other ranks too: their own pairs are on those ranks, which sent the measures in `own_columns`.
    column_measure = tl.load(own_columns + index, mask=is_column, other=0.0)
    tl.store(sums + 2 * tl.program_id(0) + 1, tl.sum(column_measure, axis=0))
    column_own = -multiplier * column_measure
    gap = tl.load(log_columns + index, mask=is_column, other=0.0) - column_own
    tl.store(column_ends + index, column_own + tl.maximum(gap, 0.0) + log1p(tl.exp(-tl.abs(gap))), mask=is_column)


# --- backward ---------------------------------------------------------------------------------------------------------


@jit
def pair_slopes(
    high, low, statistics, scale, curvature, row_ends, column_ends, closing,
    slopes_high, slopes_low, row_parts, column_parts, scalar_parts,
    first_row, n, m, start, width, rows_of_chunk, GROUP: tl.constexpr,
    GEOMETRY: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write each foreign pair's probability times the slope of its measure, in two parts, and the sums that gradients need."""
    program = tl.program_id(0)
    row_blocks, column_blocks = tl.cdiv(rows_of_chunk, BM), tl.cdiv(m, BN)
    group = program // (GROUP * column_blocks)
    group_size = tl.minimum(row_blocks - group * GROUP, GROUP)
    row_block = group * GROUP + (program % (GROUP * column_blocks)) % group_size
    column_block = (program % (GROUP * column_blocks)) // group_size
    local, columns = row_block * BM + tl.arange(0, BM), column_block * BN + tl.arange(0, BN)
    rows = first_row + local
    inside_rows, inside_columns = local < rows_of_chunk, columns < m
    read_rows, read_columns = tl.minimum(rows, n - 1), n + tl.minimum(columns, m - 1)
    multiplier, c = multiplier_of(scale, curvature, GEOMETRY), tl.load(curvature)
    dot = product(high, low, read_rows, read_columns, width, BM, BN, BK)
    n_x, w_x, s_x, k_x = load_statistics(statistics, read_rows, n + m)
    n_y, w_y, s_y, k_y = load_statistics(statistics, read_columns, n + m)
    h, _, radial = haversine(dot, n_x, w_x, s_x, k_x, n_y, w_y, s_y, k_y, c, GEOMETRY)
    measure, slope = measure_and_slope(h, GEOMETRY)
    logits = -multiplier * measure
    row_end = tl.load(row_ends + read_rows).to(tl.float32)
    column_end = tl.load(column_ends + read_columns - n).to(tl.float32)
    foreign = inside_rows[:, None] & inside_columns[None, :] & (rows[:, None] + start != columns[None, :])
    probability = tl.exp(logits - row_end[:, None]) + tl.exp(logits - column_end[None, :])
    probability = tl.where(foreign, probability, 0.0)
    slopes = probability * slope
    place = local[:, None].to(tl.int64) * m + columns[None, :]
    mask = inside_rows[:, None] & inside_columns[None, :]
    upper = to_tf32(slopes)
    tl.store(slopes_high + place, upper, mask=mask)
    tl.store(slopes_low + place, to_tf32(slopes - upper), mask=mask)
    # All slopes add up to 0, so any number may be subtracted from the measures: their mean keeps rounding smallest.
    centre = (tl.load(closing + 1) / m).to(tl.float32)
    tl.store(scalar_parts + 2 * program, tl.sum(tl.sum(probability * (measure - centre), axis=1), axis=0))
    if GEOMETRY == "lorentz":
        cosh_x = tl.load(statistics + 4 * (n + m) + read_rows)
        cosh_y = tl.load(statistics + 4 * (n + m) + read_columns)
        apart = cosh_x[:, None] - cosh_y[None, :]
        by_curvature = 2.0 * h - apart * apart / (2.0 * cosh_x[:, None] * cosh_y[None, :])
        tl.store(scalar_parts + 2 * program + 1, tl.sum(tl.sum(slopes * by_curvature, axis=1), axis=0))
        along = slopes * (2.0 * radial * tl.sqrt(1.0 + radial * radial))
        tl.store(
            row_parts + column_block * rows_of_chunk + local, tl.sum(slopes * cosh_y[None, :], axis=1), mask=inside_rows
        )
        tl.store(
            row_parts + (column_blocks + column_block) * rows_of_chunk + local, tl.sum(along, axis=1), mask=inside_rows
        )
        tl.store(column_parts + row_block * m + columns, tl.sum(slopes * cosh_x[:, None], axis=0), mask=inside_columns)
        tl.store(column_parts + (row_blocks + row_block) * m + columns, -tl.sum(along, axis=0), mask=inside_columns)
    elif GEOMETRY == "euclidean":
        tl.store(scalar_parts + 2 * program + 1, 0.0)
        tl.store(row_parts + column_block * rows_of_chunk + local, tl.sum(slopes, axis=1), mask=inside_rows)
        tl.store(column_parts + row_block * m + columns, tl.sum(slopes, axis=0), mask=inside_columns)
    else:
        tl.store(scalar_parts + 2 * program + 1, 0.0)
