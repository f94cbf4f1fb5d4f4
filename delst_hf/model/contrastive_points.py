"""Triton kernels of the contrastive loss over single points: the inputs of the pairs, and the last step of the gradients."""

from .contrastive_kernels import factor_of, jit, log1p, measure_and_slope, tl, to_tf32


@jit
def measure_points(
    points, curvature, lengths, rapidities, centres, total, dim, GEOMETRY: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Write the norm and rapidity of each point, and a block's sums of directions (euclidean: of points) and rapidities."""
    block = tl.program_id(0)
    rows = block * BR + tl.arange(0, BR)
    inside = rows < total
    square = tl.zeros((BR,), dtype=tl.float64)
    for first in range(0, dim, BD):
        k = first + tl.arange(0, BD)
        mask = inside[:, None] & (k < dim)[None, :]
        x = tl.load(points + rows[:, None].to(tl.int64) * dim + k[None, :], mask=mask, other=0.0).to(tl.float64)
        square += tl.sum(x * x, axis=1)
    root = tl.sqrt(tl.load(curvature).to(tl.float64))
    length = tl.maximum(tl.sqrt(square), 1.1e-16)  # lorentz._tiny of float32
    scaled = root * length
    rapidity = log1p(scaled + scaled * scaled / (1.0 + tl.sqrt(1.0 + scaled * scaled)))
    tl.store(lengths + rows, length, mask=inside)
    tl.store(rapidities + rows, rapidity, mask=inside)
    for first in range(0, dim, BD):
        k = first + tl.arange(0, BD)
        mask = inside[:, None] & (k < dim)[None, :]
        x = tl.load(points + rows[:, None].to(tl.int64) * dim + k[None, :], mask=mask, other=0.0).to(tl.float64)
        if GEOMETRY == "lorentz":
            x = x / length[:, None]
        tl.store(centres + block * (dim + 1) + k, tl.sum(x, axis=0), mask=k < dim)
    tl.store(centres + block * (dim + 1) + dim, tl.sum(tl.where(inside, rapidity, 0.0), axis=0))


@jit
def split_points(
    points, curvature, lengths, rapidities, centre, high, low, statistics, own_h, own_measures,
    n, total, start, dim, width, GEOMETRY: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write points' offsets from the centre in two parts, their statistics, and own pairs' ``h`` and measure (float64)."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    inside, has_own = rows < total, rows < n
    partners = tl.where(has_own, n + start + rows, 0)
    own_length = tl.load(lengths + partners, mask=has_own, other=1.0)
    c = tl.load(curvature).to(tl.float64)
    length = tl.load(lengths + rows, mask=inside, other=1.0)
    rapidity = tl.load(rapidities + rows, mask=inside, other=0.0)
    square, own = tl.zeros((BR,), dtype=tl.float64), tl.zeros((BR,), dtype=tl.float64)
    for first in range(0, width, BD):
        k = first + tl.arange(0, BD)
        known = k < dim
        mask = inside[:, None] & known[None, :]
        x = tl.load(points + rows[:, None].to(tl.int64) * dim + k[None, :], mask=mask, other=0.0).to(tl.float64)
        own_mask = has_own[:, None] & known[None, :]
        y = tl.load(points + partners[:, None].to(tl.int64) * dim + k[None, :], mask=own_mask, other=0.0)
        y = y.to(tl.float64)
        pole = tl.load(centre + k, mask=known, other=0.0) / total
        if GEOMETRY == "lorentz":
            offset = x - length[:, None] * pole[None, :]
            chord = x / length[:, None] - y / own_length[:, None]
            own += tl.sum(chord * chord, axis=1)
        elif GEOMETRY == "euclidean":
            offset = x - pole[None, :]
            own += tl.sum((x - y) * (x - y), axis=1)
        else:
            offset = x
            own -= tl.sum(x * y, axis=1)
        offset = tl.where(mask, offset, 0.0)
        square += tl.sum(offset * offset, axis=1)
        upper = to_tf32(offset.to(tl.float32))
        place = rows[:, None].to(tl.int64) * width + k[None, :]
        written = inside[:, None] & (k < width)[None, :]
        tl.store(high + place, upper, mask=written)
        tl.store(low + place, to_tf32((offset - upper.to(tl.float64)).to(tl.float32)), mask=written)
    zero = tl.zeros((BR,), dtype=tl.float64)
    first, second, third, fourth, fifth = zero, zero, zero, zero, zero + 1.0
    if GEOMETRY == "lorentz":
        half = 0.5 * (rapidity - tl.load(centre + dim) / total)
        grown = tl.exp(half)
        first = tl.sqrt(c) * length
        second = c * square / first
        third, fourth = 0.5 * (grown - 1.0 / grown), 0.5 * (grown + 1.0 / grown)
        fifth = tl.sqrt(1.0 + first * first)
        own_rapidity = tl.load(rapidities + partners, mask=has_own, other=0.0)
        step = tl.exp(0.5 * (rapidity - own_rapidity))
        radial = 0.5 * (step - 1.0 / step)
        own = radial * radial + 0.25 * c * length * own_length * own
        measure = log1p(2.0 * (own + tl.sqrt(own * own + own)))
    elif GEOMETRY == "euclidean":
        first = square
        measure = tl.sqrt(own)
    else:
        measure = own
    tl.store(statistics + rows, first.to(tl.float32), mask=inside)
    tl.store(statistics + total + rows, second.to(tl.float32), mask=inside)
    tl.store(statistics + 2 * total + rows, third.to(tl.float32), mask=inside)
    tl.store(statistics + 3 * total + rows, fourth.to(tl.float32), mask=inside)
    tl.store(statistics + 4 * total + rows, fifth.to(tl.float32), mask=inside)
    tl.store(own_h + rows, own, mask=has_own)
    tl.store(own_measures + rows, measure, mask=has_own)


@jit
def finish_gradients(
    points, lengths, rapidities, centre, high, low, scale, curvature, own_h, own_measures, own_slopes, closing,
    products, sums, gradients, scalar_parts, outer, weight_of_loss,
    n, total, start, dim, width, GEOMETRY: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all points, in float64 from the products and sums of `pair_slopes` and from the own pairs."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    inside, is_left = rows < total, rows < n
    own_row = tl.where(is_left, rows, rows - n - start)
    has_own = inside & (own_row >= 0) & (own_row < n)
    own_row = tl.where(has_own, own_row, 0)
    partner = tl.where(is_left, n + start + rows, own_row)
    partner = tl.where(has_own, partner, 0)
    h = tl.load(own_h + own_row, mask=has_own, other=1.0)
    own_slope = tl.load(own_slopes + own_row, mask=has_own, other=0.0)
    length, own_length = tl.load(lengths + rows, mask=inside, other=1.0), tl.load(lengths + partner)
    rapidity, own_rapidity = tl.load(rapidities + rows, mask=inside, other=0.0), tl.load(rapidities + partner)
    along = tl.zeros((BR,), dtype=tl.float64)
    weight, own_along, by_curvature = along, along, along
    if GEOMETRY == "lorentz":
        cosh, own_cosh = (
            0.5 * (tl.exp(rapidity) + tl.exp(-rapidity)),
            0.5 * (tl.exp(own_rapidity) + tl.exp(-own_rapidity)),
        )
        _, slope = measure_and_slope(tl.where(h > 0.0, h, 1.0), GEOMETRY)
        own_weight = tl.where(h > 0.0, own_slope * slope, 0.0)
        by_curvature = own_weight * (2.0 * h - (cosh - own_cosh) * (cosh - own_cosh) / (2.0 * cosh * own_cosh))
        root = tl.sqrt(tl.load(curvature).to(tl.float64))
        step = tl.exp(rapidity - own_rapidity)
        own_along = own_weight * 0.5 * (step - 1.0 / step) / (root * cosh)
        own_weight = own_weight * own_cosh / cosh * length
        weight = tl.load(sums + rows, mask=inside, other=0.0) / cosh
        along = tl.load(sums + total + rows, mask=inside, other=0.0) / (root * cosh)
    elif GEOMETRY == "euclidean":
        own_weight = tl.where(h > 0.0, own_slope / tl.sqrt(tl.where(h > 0.0, h, 1.0)), 0.0)
        weight = tl.load(sums + rows, mask=inside, other=0.0).to(tl.float64)
    else:
        own_weight = own_slope
    measure = tl.load(own_measures + own_row, mask=has_own, other=0.0) - tl.load(closing + 1) / (total - n)
    counted = has_own & is_left
    tl.store(scalar_parts + 2 * tl.program_id(0), tl.sum(tl.where(counted, own_slope * measure, 0.0), axis=0))
    tl.store(scalar_parts + 2 * tl.program_id(0) + 1, tl.sum(tl.where(counted, by_curvature, 0.0), axis=0))
    factor = factor_of(scale, curvature, outer, weight_of_loss, GEOMETRY)
    for first in range(0, dim, BD):
        k = first + tl.arange(0, BD)
        mask = inside[:, None] & (k < dim)[None, :]
        own_mask = has_own[:, None] & (k < dim)[None, :]
        place, wide = rows[:, None].to(tl.int64) * dim + k[None, :], rows[:, None].to(tl.int64) * width + k[None, :]
        x = tl.load(points + place, mask=mask, other=0.0).to(tl.float64)
        y = tl.load(points + partner[:, None].to(tl.int64) * dim + k[None, :], mask=own_mask, other=0.0).to(tl.float64)
        offset = tl.load(high + wide, mask=mask, other=0.0).to(tl.float64) + tl.load(low + wide, mask=mask, other=0.0)
        pole = tl.load(centre + k, mask=k < dim, other=0.0) / total
        result = weight[:, None] * offset - tl.load(products + wide, mask=mask, other=0.0)
        if GEOMETRY == "lorentz":
            towards = y / own_length[:, None]
            result += along[:, None] * pole[None, :] + own_along[:, None] * towards
            result += own_weight[:, None] * (x / length[:, None] - towards)
        elif GEOMETRY == "euclidean":
            result += own_weight[:, None] * (x - y)
        else:
            result -= own_weight[:, None] * y
        tl.store(gradients + place, (factor * result).to(tl.float32), mask=mask)
