"""Float64 Triton kernels of the contrastive loss, from differences of points, for batches that float32 does not resolve.

They are launched in each step and return at once unless the verdict on the device (`contrastive_kernels.join_log_sums`) says
that rounding may change the loss or its gradients by more than the tolerance. Then they overwrite the results of the fast
kernels. They make one pass over the coordinates of every pair, so exact duplicates are at distance 0, with zero gradient.
"""

from .contrastive_kernels import factor_of, jit, log1p, multiplier_of, tl


@jit
def is_unresolved(verdict, tolerance):
    """Tell whether the mean error of the logits, rows weighted by their foreign columns' probability, exceeds the tolerance."""
    return tl.load(verdict) > tolerance * tl.load(verdict + 1)


@jit
def pair_of_points(
    points, lengths, rapidities, curvature, rows, others, inside, other_inside, dim, GEOMETRY: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """Return the measure of each pair of a tile, its ``h``, and the slope of the measure for gradients, all (B, B) float64."""
    length, other_length = tl.load(lengths + rows), tl.load(lengths + others)
    left, right = points + rows.to(tl.int64) * dim, points + others.to(tl.int64) * dim
    h = tl.zeros((B, B), dtype=tl.float64)
    for k in range(dim):
        x, y = tl.load(left + k).to(tl.float64), tl.load(right + k).to(tl.float64)
        if GEOMETRY == "cosine":
            h -= x[:, None] * y[None, :]
        elif GEOMETRY == "lorentz":
            step = (x / length)[:, None] - (y / other_length)[None, :]
            h += step * step
        else:
            step = x[:, None] - y[None, :]
            h += step * step
    if GEOMETRY == "cosine":
        measure, slope = h, tl.full((B, B), 1.0, dtype=tl.float64)
    else:
        if GEOMETRY == "lorentz":
            rapidity, other_rapidity = tl.load(rapidities + rows), tl.load(rapidities + others)
            grown = tl.exp(0.5 * (rapidity[:, None] - other_rapidity[None, :]))
            radial = 0.5 * (grown - 1.0 / grown)
            h = radial * radial + 0.25 * tl.load(curvature).to(tl.float64) * length[:, None] * other_length[None, :] * h
            root = tl.sqrt(h * h + h)
            measure = log1p(2.0 * (h + root))
        else:
            root = tl.sqrt(h)
            measure = root
        slope = tl.where(root > 0.0, 1.0 / tl.where(root > 0.0, root, 1.0), 0.0)
    return measure, h, slope


@jit
def exact_log_sums(
    verdict, tolerance, points, lengths, rapidities, scale, curvature, log_sums_out,
    first_row, first_other, size, other_size, shift, dim, GEOMETRY: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write the log-sum-exp of the foreign logits of each point of one side."""
    if is_unresolved(verdict, tolerance):
        index = tl.program_id(0) * B + tl.arange(0, B)
        inside = index < size
        rows = first_row + tl.minimum(index, size - 1)
        multiplier = multiplier_of(scale, curvature, GEOMETRY).to(tl.float64)
        best, mass = tl.full((B,), float("-inf"), dtype=tl.float64), tl.zeros((B,), dtype=tl.float64)
        for first in range(0, other_size, B):
            other = first + tl.arange(0, B)
            other_inside = other < other_size
            others = first_other + tl.minimum(other, other_size - 1)
            measure, _, _ = pair_of_points(
                points, lengths, rapidities, curvature, rows, others, inside, other_inside, dim, GEOMETRY, B
            )
            foreign = inside[:, None] & other_inside[None, :] & (index[:, None] + shift != other[None, :])
            logits = tl.where(foreign, -multiplier * measure, float("-inf"))
            upper = tl.maximum(best, tl.max(logits, axis=1))
            base = tl.where(upper == float("-inf"), 0.0, upper)
            mass = mass * tl.exp(best - base) + tl.sum(tl.exp(logits - base[:, None]), axis=1)
            best = upper
        alone = mass == 0.0
        total = tl.where(alone, float("-inf"), best + tl.log(tl.where(alone, 1.0, mass)))
        tl.store(log_sums_out + index, total, mask=inside)


@jit
def exact_gradients(
    verdict, tolerance, points, lengths, rapidities, scale, curvature, ends, other_ends, own_slopes, closing, gradients,
    scalar_parts, outer, weight_of_loss, first_row, first_other, size, other_size, shift, columns, dim,
    LEFT: tl.constexpr, GEOMETRY: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write the gradient of each point of one side, pair by pair, and for the left side a block's sums for the scalars."""
    by_measure, by_curvature = tl.zeros((B,), dtype=tl.float64), tl.zeros((B,), dtype=tl.float64)
    if is_unresolved(verdict, tolerance):
        index = tl.program_id(0) * B + tl.arange(0, B)
        inside = index < size
        read = tl.minimum(index, size - 1)
        rows = first_row + read
        c = tl.load(curvature).to(tl.float64)
        root, multiplier = tl.sqrt(c), multiplier_of(scale, curvature, GEOMETRY).to(tl.float64)
        factor = factor_of(scale, curvature, outer, weight_of_loss, GEOMETRY)
        end, length, rapidity = tl.load(ends + read), tl.load(lengths + rows), tl.load(rapidities + rows)
        cosh = 0.5 * (tl.exp(rapidity) + tl.exp(-rapidity))
        for first in range(0, other_size, B):
            other = first + tl.arange(0, B)
            other_inside = other < other_size
            other_read = tl.minimum(other, other_size - 1)
            others = first_other + other_read
            measure, h, slope = pair_of_points(
                points, lengths, rapidities, curvature, rows, others, inside, other_inside, dim, GEOMETRY, B
            )
            probability = tl.exp(-multiplier * measure - end[:, None])
            probability += tl.exp(-multiplier * measure - tl.load(other_ends + other_read)[None, :])
            is_pair = inside[:, None] & other_inside[None, :]
            is_own = is_pair & (index[:, None] + shift == other[None, :])
            if LEFT:
                own = tl.load(own_slopes + index, mask=inside, other=0.0)[:, None]
            else:
                own = tl.load(own_slopes + other, mask=other_inside, other=0.0)[None, :]
            probability = tl.where(is_pair, tl.where(is_own, own, probability), 0.0)
            by_measure += tl.sum(probability * (measure - tl.load(closing + 1) / columns), axis=1)
            slopes = probability * slope
            other_length, other_rapidity = tl.load(lengths + others), tl.load(rapidities + others)
            if GEOMETRY == "lorentz":
                other_cosh = 0.5 * (tl.exp(other_rapidity) + tl.exp(-other_rapidity))
                apart = cosh[:, None] - other_cosh[None, :]
                excess = 2.0 * h - apart * apart / (2.0 * cosh[:, None] * other_cosh[None, :])
                by_curvature += tl.sum(slopes * excess, axis=1)
                grown = tl.exp(rapidity[:, None] - other_rapidity[None, :])
                along = slopes * 0.5 * (grown - 1.0 / grown) / (root * cosh)[:, None]
                across = slopes * (length / cosh)[:, None] * other_cosh[None, :]
            for k in range(dim):
                x = tl.load(points + rows.to(tl.int64) * dim + k).to(tl.float64)
                y = tl.load(points + others.to(tl.int64) * dim + k).to(tl.float64)
                if GEOMETRY == "lorentz":
                    y = y / other_length
                    share = along * y[None, :] + across * ((x / length)[:, None] - y[None, :])
                elif GEOMETRY == "euclidean":
                    share = slopes * (x[:, None] - y[None, :])
                else:
                    share = -slopes * y[None, :]
                place = gradients + rows.to(tl.int64) * dim + k
                earlier = tl.load(place, mask=inside & (first > 0), other=0.0)
                tl.debug_barrier()
                tl.store(place, earlier + (factor * tl.sum(share, axis=1)).to(tl.float32), mask=inside)
                tl.debug_barrier()
    if LEFT:
        tl.store(scalar_parts + 2 * tl.program_id(0), tl.sum(by_measure, axis=0))
        tl.store(scalar_parts + 2 * tl.program_id(0) + 1, tl.sum(by_curvature, axis=0))


@jit
def add_parts(parts, count, column, B: tl.constexpr):
    """Sum one of the two columns of partial sums, in float64."""
    total = tl.zeros((B,), dtype=tl.float64)
    for first in range(0, count, B):
        index = first + tl.arange(0, B)
        total += tl.load(parts + 2 * index + column, mask=index < count, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@jit
def finish_scalars(
    verdict, tolerance, pair_parts, pair_count, own_parts, own_count, exact_parts, exact_count, scale, curvature, outer,
    weight_of_loss, gradients, GEOMETRY: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write the derivatives of the loss with respect to logit scale and curvature."""
    if is_unresolved(verdict, tolerance):
        by_measure = add_parts(exact_parts, exact_count, 0, B)
        by_curvature = add_parts(exact_parts, exact_count, 1, B)
    else:
        by_measure = add_parts(pair_parts, pair_count, 0, B) + add_parts(own_parts, own_count, 0, B)
        by_curvature = add_parts(pair_parts, pair_count, 1, B) + add_parts(own_parts, own_count, 1, B)
    multiplier = multiplier_of(scale, curvature, GEOMETRY).to(tl.float64)
    weight = weight_of_loss * tl.load(outer).to(tl.float64)
    by_scale, c = -weight * by_measure, tl.load(curvature).to(tl.float64)
    if GEOMETRY == "lorentz":
        by_scale = by_scale / tl.sqrt(c)
        by_curvature = weight * multiplier / (2.0 * c) * (by_measure - by_curvature)
    else:
        by_curvature = 0.0 * c
    tl.store(gradients, by_scale.to(tl.float32))
    tl.store(gradients + 1, by_curvature.to(tl.float32))
