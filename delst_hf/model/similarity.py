"""Similarity of points in three geometries: as a matrix of logits, and as a product of factors and a function of its entries.

In every geometry a logit is ``-multiplier * measure(h)``, where ``h`` is one matrix product of factors that cost O(batch) to
make:

    lorentz     h = sinh^2(sqrt(c) d / 2)     measure = sqrt(c) d      multiplier = logit_scale / sqrt(c)
    euclidean   h = |x - y|^2                 measure = sqrt(h)        multiplier = logit_scale
    cosine      h = -x.y                      measure = h              multiplier = logit_scale

All is computed in float32 (float64 where the input is) under any autocast and any TF32 setting.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .lorentz import distance, haversine_factors, pairwise_distance

GEOMETRIES = ("lorentz", "euclidean", "cosine")


def lift(x: Tensor) -> Tensor:
    """Return bf16 and fp16 as float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def check_geometry(geometry: str) -> None:
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry={geometry!r} is not known. Choose 'lorentz', 'euclidean' or 'cosine'.")


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Compute matrix products of float32 in float32: no autocast, and no TF32, which transformers' Trainer turns on.

    A compiled graph cannot switch TF32: there the setting of the process holds (`torch.set_float32_matmul_precision`).
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
    """Symmetric InfoNCE of row i of `x` with row i of `y`, for negatives that are masked and rows that weigh differently.

    It holds the whole matrix of similarities, so memory grows with the square of the batch.

    Args:
        x: Embeddings (n, dim).
        y: Embeddings (n, dim), in the same order.
        logit_scale: The multiplier itself, already exponentiated.
        curvature: ``c > 0``.
        geometry: ``"lorentz"``, ``"euclidean"`` or ``"cosine"``.
        groups: (n,) int; two rows of one group are not each other's negatives. None: all others are negatives.
        weights: (n,) factors of the logits of each row of `x`.

    Returns:
        0-d tensor. A row without a negative costs nothing.

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
    """Return ``|x_i - y_j|^2`` as ``left @ right.T``, around the mean of all points for the sake of rounding."""
    with torch.no_grad():
        centre = (x.sum(0) + y.sum(0)) / max(len(x) + len(y), 1)
    x, y = x - centre, y - centre
    x_square, y_square = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    left = torch.cat([-2 * x, x_square, torch.ones_like(x_square)], dim=-1)
    return left, torch.cat([y, torch.ones_like(y_square), y_square], dim=-1)


def factors_of(inputs: list[Tensor], geometry: str, start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the tiles are made of: left factor (n, k), right factor (m, k), logits of the own pairs (n,), multiplier.

    The own pairs, row i of `x` with row ``start + i`` of `y`, are the ones that training brings together, where a matrix
    product has nothing left of a distance. They are computed one by one, to full precision, and left out of the tiles.
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
    if x.device.type != "cpu":  # rows of odd length keep matrix units from aligned loads
        padding = (0, -left.shape[-1] % 8)
        left, right = F.pad(left, padding), F.pad(right, padding)
    return left, right, own_logits, multiplier


def measure_of(h: Tensor, geometry: str, out: Tensor) -> Tensor:
    """Return the measure of ``h``, written into `out`."""
    if geometry == "lorentz":  # as lorentz.scaled_distance, in place
        return torch.addcmul(h, h, h, out=out).sqrt_().add_(h).mul_(2.0).log1p_()
    return torch.sqrt(h, out=out) if geometry == "euclidean" else out.copy_(h)


def measure_and_slope(h: Tensor, geometry: str, out: Tensor) -> Tensor:
    """Return the measure of ``h``, which takes its place, and, written into `out`, its derivative by ``h``."""
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
    """Bound of the rounding error of each row of ``left @ right.T``, (n, 1): what is below it cannot be told from 0."""
    main = torch.linalg.vector_norm(left[:, :dim], dim=-1) * torch.linalg.vector_norm(right[:, :dim], dim=-1).amax()
    rest = left[:, dim:].abs() @ right[:, dim:].abs().amax(0)
    eps = torch.finfo(left.dtype).eps
    return (eps * (main + rest) + eps**2).unsqueeze(-1)
