"""The Lorentz model of hyperbolic space, as pure functions of tensors.

One convention throughout: the hyperboloid has curvature ``-c`` with ``c > 0``, and a point is kept by its *space part*
``x`` of shape (..., dim); its time coordinate ``x_t = sqrt(1/c + |x|^2)`` is derived. ``curvature`` is ``c``, a float or
a 0-d tensor. The *rapidity* of a point is ``sqrt(c)`` times its distance to the origin: ``sinh(rapidity) = sqrt(c) |x|``.

Distances and angles are computed from polar coordinates (rapidity and direction) instead of from the Lorentzian inner
product. The two agree in exact arithmetic, but the inner product subtracts two numbers of the size of ``cosh(r)^2``, which
in float32 cancels all digits of the distance between neighbours from a rapidity of about 6 on.

All functions compute in the dtype that they are given; callers `lift` bf16 and fp16 to float32 first.
Sources: MERU (arXiv 2304.09172), entailment cones (arXiv 1804.01882).
"""

import torch
from torch import Tensor

MAX_RAPIDITY = 8.0
"""`exp_map0` keeps points within this rapidity, where float32 still resolves distances; trained models live near 1."""


def lift(x: Tensor) -> Tensor:
    """Return bf16 and fp16 as float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def _sqrt(curvature: float | Tensor) -> float | Tensor:
    return curvature**0.5


def _tiny(x: Tensor) -> float:
    """Return a norm below which a vector counts as zero: far under any embedding, yet its square is a normal number."""
    return torch.finfo(x.dtype).tiny ** 0.5 * 2**10


def _norm(x: Tensor) -> Tensor:
    """Return the norm of vectors (..., dim), shape (..., 1), never below `_tiny` and without gradient there.

    Below `_tiny` the norm is a constant, so no part of a polar formula differentiates it or divides by another value, and the
    sum keeps the gradient that it has at the origin although its parts have none there.
    """
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_tiny(x))


def time_component(x: Tensor, curvature: float | Tensor) -> Tensor:
    """Return the time coordinate of points on the hyperboloid.

    Args:
        x: Space parts (..., dim).
        curvature: ``c > 0``.

    Returns:
        ``sqrt(1/c + |x|^2)``, shape (..., 1).

    >>> time_component(torch.tensor([[3.0, 4.0]]), 1.0)
    tensor([[5.0990]])
    """
    return (1.0 / curvature + x.square().sum(-1, keepdim=True)).sqrt()


def rapidity(x: Tensor, curvature: float | Tensor) -> Tensor:
    """Return ``sqrt(c)`` times the distance of points (..., dim) to the origin, shape (...).

    >>> rapidity(exp_map0(torch.tensor([[3.0, 4.0]]), 1.0), 1.0)
    tensor([5.])
    """
    return torch.asinh(_sqrt(curvature) * torch.linalg.vector_norm(x, dim=-1))


def radius(x: Tensor, curvature: float | Tensor) -> Tensor:
    """Return the hyperbolic distance of points (..., dim) to the origin, shape (...). High means specific, low means general.

    >>> radius(exp_map0(torch.tensor([[3.0, 4.0]]), 1.0), 1.0)
    tensor([5.])
    """
    root = _sqrt(curvature)
    return torch.asinh(root * torch.linalg.vector_norm(x, dim=-1)) / root


def exp_map0(v: Tensor, curvature: float | Tensor) -> Tensor:
    """Return the exponential map at the origin: a tangent vector becomes the point at distance ``|v|`` in its direction.

    Args:
        v: Tangent vectors at the origin (..., dim).
        curvature: ``c > 0``.

    Returns:
        Space parts (..., dim), their rapidity capped at `MAX_RAPIDITY` (where capped, the radial gradient is zero).

    >>> exp_map0(torch.tensor([[1.0, 0.0]]), 1.0)
    tensor([[1.1752, 0.0000]])
    """
    r = _sqrt(curvature) * _norm(v)
    return v * (torch.sinh(r.clamp_max(MAX_RAPIDITY)) / r)


def log_map0(x: Tensor, curvature: float | Tensor) -> Tensor:
    """Return the logarithmic map at the origin, the inverse of `exp_map0`: Euclidean coordinates for linear probes.

    Args:
        x: Space parts (..., dim).
        curvature: ``c > 0``.

    Returns:
        Tangent vectors at the origin (..., dim).

    >>> log_map0(exp_map0(torch.tensor([[1.0, 0.0]]), 1.0), 1.0).round(decimals=5)
    tensor([[1., 0.]])
    """
    scaled = _sqrt(curvature) * _norm(x)
    return x * (torch.asinh(scaled) / scaled)


def _polar(x: Tensor, root: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the hyperbolic sine of the rapidity (...) and the direction (..., dim) of points; `root` is ``sqrt(c)``."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (root * norm).squeeze(-1), x / norm.clamp_min(_tiny(x))


def _distance_from_haversine(h: Tensor, root: float | Tensor, eps: float) -> Tensor:
    """Return ``2 asinh(sqrt(h)) / root`` with a zero gradient where ``h <= eps``, where the true one is undefined."""
    resolved = h > eps
    return torch.where(resolved, scaled_distance(torch.where(resolved, h, torch.ones_like(h))), 0.0) / root


def scaled_distance(h: Tensor) -> Tensor:
    """Return ``sqrt(c) d = 2 asinh(sqrt(h))`` from ``h = sinh^2(sqrt(c) d / 2) > 0``, any shape.

    Written as ``log1p(2 (h + sqrt(h + h^2)))``, which on a CPU is twenty times as fast as torch's asinh and acosh.
    """
    return torch.log1p(2.0 * (h + torch.sqrt(h + h * h)))


def distance(x: Tensor, y: Tensor, curvature: float | Tensor) -> Tensor:
    """Return the geodesic distance between paired points.

    With rapidities ``r`` and directions ``u``, ``sinh^2(sqrt(c) d / 2) = sinh^2((r_x - r_y)/2) + sinh(r_x) sinh(r_y)
    |u_x - u_y|^2 / 4``. Only the directions cancel, so float32 keeps four digits of a distance of 0.1 at a rapidity of 6, and
    more of a longer distance.

    Args:
        x: Space parts (..., dim).
        y: Space parts (..., dim), broadcast against `x`.
        curvature: ``c > 0``.

    Returns:
        Distances, shape (...). Zero, with zero gradient, at identical points.

    >>> x, y = exp_map0(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), 1.0)
    >>> distance(x, y, 1.0)
    tensor(2.4444)
    """
    x_norm, y_norm, root = _norm(x), _norm(y), _sqrt(curvature)
    r_x, r_y = torch.asinh(root * x_norm), torch.asinh(root * y_norm)
    chord = torch.linalg.vector_norm(x / x_norm - y / y_norm, dim=-1)
    radial = torch.sinh((r_x - r_y) / 2).square().squeeze(-1)
    angular = chord.square() * (x_norm * y_norm).squeeze(-1)
    return _distance_from_haversine(radial + curvature / 4 * angular, root, eps=torch.finfo(x.dtype).tiny)


def haversine_factors(x: Tensor, y: Tensor, curvature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product holds ``h = sinh^2(sqrt(c) d(x_i, y_j) / 2)`` of every pair.

    `distance` splits ``h`` into a radial and an angular part. With any rapidity ``q`` and any vector ``p``, and
    ``s, k = sinh, cosh((r - q)/2)``, ``e = sqrt(c)(x - |x| p)`` for each point, both are sums of products of a number of `x`
    and a number of `y`,

        sinh^2((r_x - r_y)/2) = s_x^2 k_y^2 + k_x^2 s_y^2 - 2 s_x k_x s_y k_y
        c (|x||y| - x.y) / 2 = sqrt(c) (|x| |e_y|^2 / n_y + |e_x|^2 / n_x |y|) / 4 - e_x.e_y / 2,      n = sqrt(c)|x|

    and so one matrix product holds them all. ``q`` and ``p`` are the mean rapidity and the mean direction of all points:
    the product then rounds in proportion to the spread of the points instead of to their distance from the origin.

    Args:
        x: Space parts (n, dim).
        y: Space parts (m, dim).
        curvature: ``c > 0``.

    Returns:
        ``left`` (n, dim + 5) and ``right`` (m, dim + 5) with ``h = left @ right.T``; the first `dim` columns are the offsets,
        ``e / sqrt(2)`` and ``-e / sqrt(2)``.
    """
    root = _sqrt(curvature)
    norms = [_norm(points) for points in (x, y)]
    lengths = [root * norm for norm in norms]
    rapidities = [torch.asinh(length) for length in lengths]
    with torch.no_grad():  # the product does not depend on the centre, so neither do the gradients
        count = max(len(x) + len(y), 1)
        centre = (rapidities[0].sum() + rapidities[1].sum()) / count
        pole = ((1 / norms[0]).T @ x + (1 / norms[1]).T @ y) / count
    parts: list[tuple[Tensor, ...]] = []
    for points, norm, length, r in zip((x, y), norms, lengths, rapidities, strict=True):
        scale = root * (-(0.5**0.5) if parts else 0.5**0.5)
        # addmm saves one pass over (n, dim), forward and backward.
        offset = torch.addmm(points * scale, norm * scale, pole, alpha=-1)
        spread = torch.linalg.vector_norm(offset, dim=-1, keepdim=True).square()
        half = (r - centre) / 2
        parts.append((offset, length, 2 * spread / length, torch.sinh(half), torch.cosh(half)))
    (e_x, n_x, spread_x, s_x, k_x), (e_y, n_y, spread_y, s_y, k_y) = parts
    left = torch.cat([e_x, n_x / 4, spread_x / 4, s_x.square(), k_x.square(), -2 * s_x * k_x], dim=-1)
    right = torch.cat([e_y, spread_y, n_y, k_y.square(), s_y.square(), s_y * k_y], dim=-1)
    return left, right


def pairwise_distance(x: Tensor, y: Tensor, curvature: float | Tensor) -> Tensor:
    """Return the geodesic distance of every row of `x` to every row of `y`, by one matrix product (`haversine_factors`).

    Args:
        x: Space parts (n, dim).
        y: Space parts (m, dim).
        curvature: ``c > 0``.

    Returns:
        Distances (n, m). ``sinh^2(sqrt(c) d / 2)`` carries the rounding of the product, a few eps of its value for points as
        far apart as the batch is wide. It matters only to pairs a hundred times closer than that. Pairs that float arithmetic
        cannot tell apart are at 0, with zero gradient.

    >>> x = exp_map0(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 1.0)
    >>> pairwise_distance(x, x, 1.0).round(decimals=3)
    tensor([[0., 2.],
            [2., 0.]])
    """
    left, right = haversine_factors(x, y, curvature)
    return _distance_from_haversine(left @ right.T, _sqrt(curvature), eps=torch.finfo(x.dtype).eps)


def half_aperture(x: Tensor, curvature: float | Tensor, min_radius: float = 0.1) -> Tensor:
    """Return the half-aperture of the entailment cone with its apex at `x`, opening away from the origin.

    Args:
        x: Apices, space parts (..., dim).
        curvature: ``c > 0``.
        min_radius: ``K``. Points with ``sqrt(c)|x| <= 2K`` entail a half-space (angle pi/2).

    Returns:
        ``asin(2K / (sqrt(c)|x|))`` in (0, pi/2], shape (...). High means general: a wide cone, an apex near the origin.

    >>> half_aperture(torch.tensor([[0.2, 0.0], [2.0, 0.0]]), 1.0).rad2deg()
    tensor([90.0000,  5.7392])
    """
    scaled = _sqrt(curvature) * torch.linalg.vector_norm(x, dim=-1)
    narrow = scaled > 2.0 * min_radius
    # Where the cone is a half-space its gradient is zero; asin, whose slope is infinite there, gets another value.
    sine = 2.0 * min_radius / torch.where(narrow, scaled, torch.full_like(scaled, 4.0 * min_radius))
    limit = 1.0 - torch.finfo(x.dtype).eps
    return torch.where(narrow, torch.asin(sine.clamp_max(limit)), torch.pi / 2)


def exterior_angle(parent: Tensor, child: Tensor, curvature: float | Tensor) -> Tensor:
    """Return the angle at `parent` between the ray that leaves the origin and the geodesic to `child`.

    This is ``pi`` minus the angle at the parent of the triangle (origin, parent, child). By the four-part formula of
    hyperbolic trigonometry, with ``t`` the angle between the two points as seen from the origin,

        angle = atan2(sin(t) sinh(r_child), sinh(r_child - r_parent) - (1 - cos(t)) cosh(r_parent) sinh(r_child)),

    which equals MERU's arccos expression but neither subtracts large numbers nor has a boundary to clamp.

    Args:
        parent: Space parts (..., dim).
        child: Space parts (..., dim).
        curvature: ``c > 0``.

    Returns:
        Angles in [0, pi], shape (...). Low means that the child lies straight behind its parent. 0, with zero gradient,
        where parent and child coincide, and for a parent at the origin, which entails everything. The gradient is also zero
        for a parent nearer to the origin than the dtype's eps, where the true gradient is unbounded.

    >>> parent, child, other = exp_map0(torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]]), 1.0)
    >>> exterior_angle(parent, child, 1.0).rad2deg(), exterior_angle(parent, other, 1.0).rad2deg()
    (tensor(0.), tensor(180.))
    """
    root = _sqrt(curvature)
    (sinh_parent, u_parent), (sinh_child, u_child) = _polar(parent, root), _polar(child, root)
    r_parent, r_child = torch.asinh(sinh_parent), torch.asinh(sinh_child)
    chord = torch.linalg.vector_norm(u_parent - u_child, dim=-1)
    sine = chord * torch.linalg.vector_norm(u_parent + u_child, dim=-1) / 2
    y = sine * sinh_child
    x = torch.sinh(r_child - r_parent) - chord.square() / 2 * torch.cosh(r_parent) * sinh_child
    # atan2 has no gradient at (0, 0), and one of 1/length next to it, where both points are the same to the dtype. Near the
    # origin both lengths shrink with the radii. The direction of a parent at the origin has no gradient either.
    eps = torch.finfo(parent.dtype).eps
    apart = torch.maximum(x.abs(), y.abs()) > eps * (r_parent + r_child).clamp_max(1.0)
    defined = apart & (r_parent > _tiny(parent))
    y, x = torch.where(defined, y, torch.zeros_like(y)), torch.where(defined, x, torch.ones_like(x))
    angle, steep = torch.atan2(y, x), r_parent <= eps
    return torch.where(steep, angle.detach(), angle)
