"""InfoNCE in three geometries: similarities, the loss from their full matrix, and the loss in tiles without it.

In every geometry a logit is ``-multiplier * measure(h)``, where ``h`` is one matrix product of factors that cost O(batch) to
compute:

    lorentz     h = sinh^2(sqrt(c) d / 2)     measure = sqrt(c) d      multiplier = logit_scale / sqrt(c)
    euclidean   h = |x - y|^2                 measure = sqrt(h)        multiplier = logit_scale
    cosine      h = -x.y                      measure = h              multiplier = logit_scale

A tile needs only the product, the measure and its slope of the geometry; autograd on the factors does the rest, curvature
included. On a CUDA device Triton kernels compute the tiles (`contrastive_fused`); everywhere else, and in float64,
`TiledInfoNCE` does. All is computed in float32 (float64 for float64 input) under any autocast and any TF32 setting.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .lorentz import distance, haversine_factors, lift, pairwise_distance

GEOMETRIES = ("lorentz", "euclidean", "cosine")
TOLERANCE = 1e-4
"""Relative error of the loss above which `TiledInfoNCE` switches from float32 to float64; see `_is_unresolved`."""


def check_geometry(geometry: str) -> None:
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry={geometry!r} is not known. Choose 'lorentz', 'euclidean' or 'cosine'.")


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Compute matrix products of float32 in float32: no autocast, and no TF32, which transformers' Trainer turns on.

    A compiled graph cannot switch TF32: there the setting of the process applies (`torch.set_float32_matmul_precision`).
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        if torch.compiler.is_compiling():
            yield
            return
        if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch before 2.9
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(precision)
            return
        backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        precisions = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, precision in zip(backends, precisions, strict=True):
                backend.fp32_precision = precision


def similarity_logits(
    x: Tensor, y: Tensor, logit_scale: float | Tensor, curvature: float | Tensor = 1.0, geometry: str = "lorentz"
) -> Tensor:
    """Return the similarity of every row of `x` to every row of `y`, times `logit_scale`.

    Args:
        x: Embeddings (n, dim): space parts (lorentz), unit vectors (cosine) or plain vectors (euclidean).
        y: Embeddings (m, dim).
        logit_scale: The multiplier itself, already exponentiated.
        curvature: ``c > 0``, used by the Lorentz geometry.
        geometry: ``"lorentz"`` or ``"euclidean"`` (negative distance), ``"cosine"`` (dot product).

    Returns:
        Logits (n, m), float32 or better. High means similar.

    Raises:
        ValueError: If the geometry is not known.

    Examples:
        >>> x = torch.eye(2)
        >>> similarity_logits(x, x, logit_scale=10.0, geometry="cosine")
        tensor([[10.,  0.],
                [ 0., 10.]])
    """
    check_geometry(geometry)
    x, y = lift(x), lift(y)
    with full_precision(x):
        if geometry == "lorentz":
            return -logit_scale * pairwise_distance(x, y, curvature)
        if geometry == "euclidean":
            # By differences: in the quicker form |x|^2 + |y|^2 - 2xy, near points lose their distance to rounding.
            return -logit_scale * torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        return logit_scale * (x @ y.T)


def dense_contrastive(
    x: Tensor,
    y: Tensor,
    logit_scale: float | Tensor,
    curvature: float | Tensor,
    geometry: str,
    groups: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the symmetric InfoNCE of row i of `x` with row i of `y`, with masked negatives and weighted rows.

    It holds the full matrix of similarities, so memory grows with the square of the batch.

    Args:
        x: Embeddings (n, dim).
        y: Embeddings (n, dim), in the same order.
        logit_scale: The multiplier itself, already exponentiated.
        curvature: ``c > 0``.
        geometry: ``"lorentz"``, ``"euclidean"`` or ``"cosine"``.
        groups: (n,) int; two rows of one group are not each other's negatives. None: all others are negatives.
        weights: (n,) factors of the logits of each row of `x`.

    Returns:
        0-d tensor. A row without negatives adds 0.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> dense_contrastive(x, x, 1.0, 1.0, "cosine", groups=torch.tensor([0, 0, 0])).item()
    0.0
    """
    logits = similarity_logits(x, y, logit_scale, curvature, geometry)
    if weights is not None:
        logits = logits * weights[:, None]
    own = logits.diagonal()
    if groups is not None:
        same = groups[:, None] == groups[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
    return (logits.logsumexp(1) + logits.logsumexp(0) - 2 * own).mean() / 2


# --- the three geometries as a product and a function of its entries -------------------------------------------------


def _euclidean_factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``|x_i - y_j|^2`` as ``left @ right.T``, centred on the mean of all points to reduce rounding."""
    with torch.no_grad():
        centre = (x.sum(0) + y.sum(0)) / max(len(x) + len(y), 1)
    x, y = x - centre, y - centre
    x_square, y_square = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    left = torch.cat([-2 * x, x_square, torch.ones_like(x_square)], dim=-1)
    return left, torch.cat([y, torch.ones_like(y_square), y_square], dim=-1)


def factors_of(inputs: list[Tensor], geometry: str, start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the inputs of the tiles: left factor (n, k), right factor (m, k), logits of the own pairs (n,), multiplier.

    Training brings the own pairs, row i of `x` with row ``start + i`` of `y`, so close together that a matrix product loses
    their distance. They are computed one by one, to full precision, and left out of the tiles.
    """
    x, y, scale, curvature = inputs
    own = y[start : start + len(x)]
    if geometry == "lorentz":
        left, right = haversine_factors(x, y, curvature)
        own_logits, multiplier = -scale * distance(x, own, curvature), scale / curvature.sqrt()
    elif geometry == "euclidean":
        left, right = _euclidean_factors(x, y)
        own_logits, multiplier = -scale * torch.linalg.vector_norm(x - own, dim=-1), scale
    else:
        left, right = -x, y
        own_logits, multiplier = scale * (x * own).sum(-1), scale
    if x.device.type != "cpu":  # rows of odd length prevent aligned loads of matrix units
        padding = (0, -left.shape[-1] % 8)
        left, right = F.pad(left, padding), F.pad(right, padding)
    return left, right, own_logits, multiplier


def measure_of(h: Tensor, geometry: str, out: Tensor) -> Tensor:
    """Return the measure of ``h``, written into `out`."""
    if geometry == "lorentz":  # as lorentz.scaled_distance, in place
        return torch.addcmul(h, h, h, out=out).sqrt_().add_(h).mul_(2.0).log1p_()
    return torch.sqrt(h, out=out) if geometry == "euclidean" else out.copy_(h)


def measure_and_slope(h: Tensor, geometry: str, out: Tensor) -> Tensor:
    """Return the measure of ``h``, computed in its place, and write its derivative by ``h`` into `out`."""
    if geometry == "cosine":
        out.fill_(1.0)
        return h
    if geometry == "euclidean":
        torch.rsqrt(h, out=out).mul_(0.5)
        return h.sqrt_()
    torch.addcmul(h, h, h, out=out).sqrt_()
    h.add_(out).mul_(2.0).log1p_()
    out.reciprocal_()
    return h


def resolution(left: Tensor, right: Tensor, dim: int) -> Tensor:
    """Return a bound (n, 1) of the rounding error of each row of ``left @ right.T``: entries below it may as well be 0."""
    main = torch.linalg.vector_norm(left[:, :dim], dim=-1) * torch.linalg.vector_norm(right[:, :dim], dim=-1).amax()
    rest = left[:, dim:].abs() @ right[:, dim:].abs().amax(0)
    eps = torch.finfo(left.dtype).eps
    return (eps * (main + rest) + eps**2).unsqueeze(-1)


# --- InfoNCE in tiles -----------------------------------------------------------------------------------------------


def _tiles(left: Tensor, right: Tensor, chunk_size: int, buffers: int) -> Iterator[tuple[slice, slice, list[Tensor]]]:
    """Yield rows and columns of each tile, and uninitialised buffers of its shape.

    All tiles share their memory: on a CPU, freeing and allocating it takes longer than the arithmetic.
    """
    memory = left.new_empty(buffers, min(chunk_size, len(left)) * min(chunk_size, len(right)))
    for row in range(0, len(left), chunk_size):
        for column in range(0, len(right), chunk_size):
            shape = min(chunk_size, len(left) - row), min(chunk_size, len(right) - column)
            tile = [buffer[: shape[0] * shape[1]].view(shape) for buffer in memory]
            yield slice(row, row + shape[0]), slice(column, column + shape[1]), tile


def _products(left: Tensor, right: Tensor, floor: Tensor, geometry: str, out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a tile of ``h``, clamped from below to its resolution, and, in float64, a mask of the entries that were clamped.

    The measure of a clamped entry counts as 0, with zero gradient, so that exact duplicates are exact. In float32 the mask
    is None: a batch in which such entries matter is computed in float64.
    """
    h = torch.mm(left, right.T, out=out)
    if geometry == "cosine":
        return h, None
    h = torch.maximum(h, floor, out=h)
    return h, h == floor if h.dtype == torch.float64 else None


def _log_sums(
    left: Tensor, right: Tensor, floor: Tensor, multiplier: Tensor, geometry: str, start: int, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-sum-exp of each row's (n,) and column's (m,) logits without own pairs, and the least ``h`` of each row."""
    log_rows, log_columns = left.new_full((len(left),), -torch.inf), right.new_full((len(right),), -torch.inf)
    nearest, factor = left.new_full((len(left),), torch.inf), -multiplier
    for rows, columns, (h, scratch) in _tiles(left, right, chunk_size, buffers=2):
        h, coincident = _products(left[rows], right[columns], floor[rows], geometry, out=h)
        h.diagonal(rows.start + start - columns.start).fill_(torch.inf)
        nearest[rows] = torch.minimum(nearest[rows], h.amin(1))
        logits = measure_of(h, geometry, out=scratch).mul_(factor)
        if coincident is not None:
            coincident.diagonal(rows.start + start - columns.start).fill_(False)
            logits.masked_fill_(coincident, 0.0)
        log_rows[rows] = torch.logaddexp(log_rows[rows], logits.logsumexp(1))
        log_columns[columns] = torch.logaddexp(log_columns[columns], logits.logsumexp(0))
    return log_rows, log_columns, nearest


def _is_unresolved(
    nearest: Tensor,
    floor: Tensor,
    own_logits: Tensor,
    own_floor: Tensor,
    gap: Tensor,
    multiplier: Tensor,
    geometry: str,
) -> Tensor:
    """Tell whether rounding may change the loss or its gradients by more than `TOLERANCE` of themselves (0-d bool).

    The bound of the relative error of each row is a sum of four terms: the shift of its nearest foreign logit (by the rounding
    of that entry of ``h``); the relative error of that ``h``, a factor of the gradient; the rounding of long logits; and the
    rounding of the direction of the own pair, in its logit and, where its two points nearly coincide, in its gradient. A row
    is weighted by the largest share of its probability that foreign columns may have.
    """
    eps, floor = torch.finfo(floor.dtype).eps, floor.squeeze(-1)
    measure, pessimistic = (
        measure_of(h, geometry, out=torch.empty_like(h)) for h in (nearest, (nearest - floor).clamp_min(0.0))
    )
    shift = multiplier * (measure - pessimistic)
    error = shift + 0.5 * floor / nearest + eps * multiplier * measure
    own_measure = own_logits.abs() / multiplier
    own_shift = multiplier * own_floor / (own_measure / 2).cosh()
    error = error + torch.where(own_logits == 0, 0.0, own_shift + own_floor / own_measure)
    foreign = torch.sigmoid(gap + shift)
    # A row without foreign columns has no nearest one: inf - inf above.
    return (foreign * error).nan_to_num(0.0, posinf=0.0).sum() > TOLERANCE * foreign.nan_to_num(0.0).sum()


def _join_ranks(
    log_columns: Tensor, own_logits: Tensor, unresolved: Tensor, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Join the column sums, the own logits of all columns and the verdict across ranks, in one small collective.

    Each is a log-sum-exp over the ranks: own logits are -inf except on the rank that holds the pair.
    """
    own = torch.full_like(log_columns, -torch.inf)
    own[start : start + len(own_logits)] = own_logits
    verdict = torch.where(unresolved, 0.0, -torch.inf).to(own).reshape(1)
    local = torch.cat([log_columns, own, verdict])
    ranks = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, local)
    joined = torch.stack(ranks).logsumexp(0)
    return joined[: len(own)], joined[len(own) : -1], joined[-1] > -torch.inf


def _walk_back(
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    log_rows: Tensor,
    log_columns: Tensor,
    own_slope: Tensor,
    centre: Tensor,
    geometry: str,
    start: int,
    chunk_size: int,
    dim: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of ``sum_i (log_rows_i + log_columns_i - 2 own_i)`` by the four outputs of `factors_of`.

    All slopes, over all ranks, add up to 0, so any number may be subtracted from the measures in the gradient by the
    multiplier: `centre` is their mean over the own pairs. Otherwise the rounding of a probability would be multiplied by the
    full length of a logit.
    """
    left, right, _, multiplier = outputs
    floor, factor = resolution(left, right, dim), -multiplier
    grad_left, grad_right = torch.zeros_like(left), torch.zeros_like(right)
    grad_multiplier = centre * own_slope.sum()
    for rows, columns, (h, slope, logits, by_row) in _tiles(left, right, chunk_size, buffers=4):
        h, coincident = _products(left[rows], right[columns], floor[rows], geometry, out=h)
        measure = measure_and_slope(h, geometry, out=slope)
        if coincident is not None:
            measure.masked_fill_(coincident, 0.0)
            slope.masked_fill_(coincident, 0.0)
        torch.mul(measure, factor, out=logits)
        torch.sub(logits, log_rows[rows, None], out=by_row).exp_()
        probability = by_row.add_(torch.sub(logits, log_columns[columns], out=logits).exp_())
        probability.diagonal(rows.start + start - columns.start).zero_()
        grad_multiplier -= torch.dot(measure.sub_(centre).flatten(), probability.flatten())
        if left.requires_grad or right.requires_grad:
            grad_h = slope.mul_(probability)
            grad_left[rows].addmm_(grad_h, right[columns])
            grad_right[columns].addmm_(grad_h.T, left[rows])
    return grad_left.mul_(factor), grad_right.mul_(factor), own_slope, grad_multiplier


class TiledInfoNCE(torch.autograd.Function):
    """Symmetric InfoNCE of local rows against the columns of all ranks, in memory that grows with the batch.

    The forward pass keeps the log-sum-exp of each row and each column, ``a`` and ``b``; the backward pass recomputes the tiles
    of the logits ``z`` and from them the gradient of every foreign pair, ``(exp(z - a) + exp(z - b)) / 2N``. It is the
    memory-efficient softmax of FlashAttention (arXiv 2205.14135) for a loss that normalises both rows and columns.

    Each of several ranks compares its rows with all columns, once for both directions: row sums are then complete, and column
    sums are completed by exchanging (2, N) numbers. The backward pass assumes that all ranks scale their losses alike.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        curvature: Tensor,
        geometry: str,
        chunk_size: int,
        start: int,
        across_ranks: bool,
    ) -> Tensor:
        inputs: list[Tensor] = [x, y, scale, curvature]
        ctx.precise = False
        while True:
            left, right, own_logits, multiplier = factors_of(inputs, geometry, start)
            floor = resolution(left, right, x.shape[-1])
            log_rows, log_columns, nearest = _log_sums(left, right, floor, multiplier, geometry, start, chunk_size)
            row_gap = log_rows - own_logits
            own_floor = torch.finfo(left.dtype).eps * inputs[3].sqrt() * torch.linalg.vector_norm(inputs[0], dim=-1)
            unresolved = _is_unresolved(nearest, floor, own_logits, own_floor, row_gap, multiplier, geometry)
            own_columns = own_logits
            if across_ranks:
                log_columns, own_columns, unresolved = _join_ranks(log_columns, own_logits, unresolved, start)
            can_be_resolved = left.dtype == torch.float32 and x.device.type != "mps" and geometry != "cosine"
            # Pairs too near for float32 are worth a second pass. On a CPU reading the verdict costs nothing; on an
            # accelerator without the kernels, the host waits for the device here and nowhere else.
            if not (can_be_resolved and unresolved.cpu().numpy()):
                break
            inputs, ctx.precise = [tensor.double() for tensor in inputs], True
        column_gap = (log_columns - own_columns)[start : start + len(x)]
        # Not the local mean: ranks with fewer rows must weigh less once DDP averages the gradients.
        ctx.weight = (dist.get_world_size() if across_ranks else 1) / (2 * len(y))
        ctx.geometry, ctx.chunk_size, ctx.start = geometry, chunk_size, start
        rows, columns = torch.logaddexp(log_rows, own_logits), torch.logaddexp(log_columns, own_columns)
        own_slope = -torch.sigmoid(row_gap) - torch.sigmoid(column_gap)
        centre = (own_columns.mean() / -multiplier).nan_to_num(0.0, 0.0, 0.0)
        ctx.save_for_backward(x, y, scale, curvature, rows, columns, own_slope, centre)
        # lse - own, in the form that stays accurate where the own pair dominates.
        zero = torch.zeros_like(row_gap)
        losses = torch.logaddexp(row_gap, zero) + torch.logaddexp(column_gap, zero)
        return (losses.sum() * ctx.weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *inputs, log_rows, log_columns, own_slope, centre = ctx.saved_tensors
        with full_precision(inputs[0]), torch.enable_grad():
            leaves = [
                tensor.detach().requires_grad_(needed)
                for tensor, needed in zip(inputs, ctx.needs_input_grad[:4], strict=True)
            ]
            lifted = [tensor.double() for tensor in leaves] if ctx.precise else leaves
            outputs = factors_of(lifted, ctx.geometry, ctx.start)
            with torch.no_grad():
                tiling = (ctx.geometry, ctx.start, ctx.chunk_size)
                slopes = _walk_back(outputs, log_rows, log_columns, own_slope, centre, *tiling, leaves[0].shape[-1])
            weight = grad_output * ctx.weight
            pairs = [
                (output, slope * weight) for output, slope in zip(outputs, slopes, strict=True) if output.requires_grad
            ]
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            ends, slopes = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(ends, wanted, slopes, allow_unused=True))
        return *(next(found) if leaf.requires_grad else None for leaf in leaves), None, None, None, None


CHUNK_SIZES = {"cpu": 512}
"""Rows and columns of a tile by device. The buffers of 512 stay in the cache of a core; 4096, elsewhere, is not measured."""


@torch.compiler.disable(recursive=True)
def tiled_contrastive(
    x: Tensor,
    y: Tensor,
    logit_scale: float | Tensor,
    curvature: float | Tensor,
    geometry: str,
    chunk_size: int | None,
    start: int = 0,
    across_ranks: bool = False,
) -> Tensor:
    """Return InfoNCE of row i of `x` against all rows of `y`, of which ``start + i`` is its own, as is fast on the device.

    Args:
        x: Local rows (n, dim).
        y: Rows of all ranks (m, dim).
        logit_scale: The multiplier itself, already exponentiated.
        curvature: ``c > 0``.
        geometry: ``"lorentz"``, ``"euclidean"`` or ``"cosine"``.
        chunk_size: Rows and columns of a tile (for the kernels, rows whose slopes are kept at a time); None for the default
            of the device.
        start: Row of `y` that belongs to the first row of `x`.
        across_ranks: Whether other ranks hold the other rows of `x`; all must call it.

    Returns:
        0-d tensor, whose mean over the ranks is the loss.

    Raises:
        ValueError: If the geometry is not known or the chunk size is not positive.
    """
    check_geometry(geometry)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            f"chunk_size must be a positive integer, such as 1024, or None for the device's default, got {chunk_size}."
        )
    rows_at_once, chunk_size = chunk_size, chunk_size or CHUNK_SIZES.get(x.device.type, 4096)
    x, y = lift(x), lift(y)
    logit_scale, curvature = (
        torch.as_tensor(scalar, dtype=x.dtype, device=x.device) for scalar in (logit_scale, curvature)
    )
    with full_precision(x):
        if x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1":  # Triton's interpreter, on a CPU, for tests
            # Imported only where it may run.
            from .contrastive_fused import fused_contrastive, is_fused

            if is_fused(x):
                return fused_contrastive(
                    x, y, logit_scale, curvature, geometry, rows_at_once, start, across_ranks, TOLERANCE
                )
        return TiledInfoNCE.apply(x, y, logit_scale, curvature, geometry, chunk_size, start, across_ranks)
