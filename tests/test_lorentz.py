"""Hyperboloid maths against geoopt, MERU's formulas and trigonometry by hand in float64; float32 and the edges."""

import math

import geoopt
import pytest
import torch
import torch.nn.functional as F

from delst_hf.model import lorentz
from delst_hf.model.lorentz import MAX_RAPIDITY

CURVATURES = [0.1, 0.5, 1.0, 3.0, 10.0]
DTYPES = [torch.float32, torch.float64]


def directions(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    u = torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return u / u.norm(dim=-1, keepdim=True)


def at_rapidity(u: torch.Tensor, rapidity, curvature: float) -> torch.Tensor:
    """Space parts of the points at these rapidities in these directions."""
    return u * torch.as_tensor(rapidity, dtype=u.dtype).sinh().reshape(-1, 1) / math.sqrt(curvature)


def with_time(x: torch.Tensor, curvature: float) -> torch.Tensor:
    """geoopt's coordinates: time first."""
    return torch.cat([(1 / curvature + (x * x).sum(-1, keepdim=True)).sqrt(), x], dim=-1)


def geoopt_lorentz(curvature: float) -> geoopt.Lorentz:
    return geoopt.Lorentz(torch.tensor(1 / curvature, dtype=torch.float64))


def geoopt_distance(x: torch.Tensor, y: torch.Tensor, curvature: float) -> torch.Tensor:
    x, y = with_time(x.double(), curvature), with_time(y.double(), curvature)
    return geoopt_lorentz(curvature).dist(x, y).detach()


def meru_exterior_angle(x: torch.Tensor, y: torch.Tensor, c: float) -> torch.Tensor:
    """acos((y_t + x_t c<x,y>) / (|x| sqrt((c<x,y>)^2 - 1))), MERU's equation for parent x and child y, in float64."""
    x, y = x.double(), y.double()
    x_t, y_t = (1 / c + (x * x).sum(-1)).sqrt(), (1 / c + (y * y).sum(-1)).sqrt()
    inner = c * ((x * y).sum(-1) - x_t * y_t)
    return torch.acos((y_t + x_t * inner) / (x.norm(dim=-1) * (inner**2 - 1).sqrt()))


def random_pair(curvature: float, n: int = 40, low: float = 0.05, high: float = 3.0):
    generator = torch.Generator().manual_seed(5)
    rapidities = low + (high - low) * torch.rand(2, n, dtype=torch.float64, generator=generator)
    return at_rapidity(directions(n, seed=1), rapidities[0], curvature), at_rapidity(
        directions(n, seed=2), rapidities[1], curvature
    )


# --- maps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
def test_exp_map0_and_log_map0_agree_with_geoopt(curvature):
    lengths = torch.linspace(0.01, 5, 40, dtype=torch.float64) / math.sqrt(curvature)
    v = directions(40) * lengths[:, None]
    expected = geoopt_lorentz(curvature).expmap0(torch.cat([torch.zeros(40, 1, dtype=torch.float64), v], -1)).detach()
    x = lorentz.exp_map0(v, curvature)
    torch.testing.assert_close(x, expected[:, 1:], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lorentz.time_component(x, curvature), expected[:, :1], rtol=1e-12, atol=0)
    back = geoopt_lorentz(curvature).logmap0(expected).detach()[:, 1:]
    torch.testing.assert_close(lorentz.log_map0(x, curvature), back, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_log_map0_inverts_exp_map0(curvature, dtype, tolerance):
    lengths = torch.logspace(-6, math.log10(7.9), 50, dtype=torch.float64) / math.sqrt(curvature)
    v = (directions(50) * lengths[:, None]).to(dtype)
    x = lorentz.exp_map0(v, curvature)
    torch.testing.assert_close(lorentz.log_map0(x, curvature), v, rtol=tolerance, atol=tolerance * 1e-3)
    torch.testing.assert_close(lorentz.exp_map0(lorentz.log_map0(x, curvature), curvature), x, rtol=1e-5, atol=0)


def test_exp_map0_by_hand():
    # c = 4: sinh(2 * 0.5) / 2 along the first axis; the distance to the origin is the length of the tangent vector.
    x = lorentz.exp_map0(torch.tensor([0.5, 0.0], dtype=torch.float64), 4.0)
    assert x.tolist() == pytest.approx([math.sinh(1.0) / 2, 0.0])
    assert lorentz.radius(x, 4.0).item() == pytest.approx(0.5)
    assert lorentz.rapidity(x, 4.0).item() == pytest.approx(1.0)
    assert lorentz.time_component(x, 4.0).item() == pytest.approx(math.cosh(1.0) / 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("curvature", [0.1, 1.0, 10.0])
def test_exp_map0_caps_the_rapidity_and_stops_the_radial_gradient(dtype, curvature):
    unit = directions(6, 4).to(dtype)
    far = (unit * 3 * MAX_RAPIDITY / math.sqrt(curvature)).requires_grad_()
    x = lorentz.exp_map0(far, curvature)
    rapidity = lorentz.rapidity(x, curvature)
    torch.testing.assert_close(rapidity, torch.full_like(rapidity, MAX_RAPIDITY), rtol=1e-5, atol=0)
    rapidity.sum().backward()
    assert torch.isfinite(far.grad).all()
    assert far.grad.abs().max() < 1e-4
    near = (unit * (MAX_RAPIDITY - 0.01) / math.sqrt(curvature)).requires_grad_()
    lorentz.radius(lorentz.exp_map0(near, curvature), curvature).sum().backward()
    torch.testing.assert_close(near.grad, unit, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_at_the_origin_are_the_identity_to_first_order(dtype):
    for function in (lorentz.exp_map0, lorentz.log_map0):
        zero = torch.zeros(3, dtype=dtype, requires_grad=True)
        assert function(zero, 2.0).tolist() == [0, 0, 0]
        jacobian = torch.autograd.functional.jacobian(lambda v, f=function: f(v, 2.0), zero)
        torch.testing.assert_close(jacobian, torch.eye(3, dtype=dtype))


# --- distances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
def test_distances_agree_with_geoopt(curvature):
    x, y = random_pair(curvature)
    expected = geoopt_distance(x, y, curvature)
    torch.testing.assert_close(lorentz.distance(x, y, curvature), expected, rtol=1e-9, atol=0)
    table = geoopt_distance(x[:, None, :], y[None, :, :], curvature)
    torch.testing.assert_close(lorentz.pairwise_distance(x, y, curvature), table, rtol=1e-8, atol=0)
    assert lorentz.pairwise_distance(x[:3], y, curvature).shape == (3, 40)


def test_distance_by_hand():
    c = 4.0
    x = at_rapidity(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 1.0, c)
    behind = at_rapidity(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 2.5, c)
    across = at_rapidity(torch.tensor([[-1.0, 0.0]], dtype=torch.float64), 2.0, c)
    beside = at_rapidity(torch.tensor([[0.0, 1.0]], dtype=torch.float64), 2.0, c)
    for function in (lorentz.distance, lambda a, b, c: lorentz.pairwise_distance(a, b, c)[0]):
        assert function(x, behind, c).item() == pytest.approx(1.5 / 2, rel=1e-12)
        assert function(x, across, c).item() == pytest.approx(3.0 / 2, rel=1e-12)
        # Hyperbolic Pythagoras: cosh(hypotenuse) = cosh(leg) cosh(leg).
        assert function(x, beside, c).item() == pytest.approx(math.acosh(math.cosh(1) * math.cosh(2)) / 2, rel=1e-12)


def test_distance_broadcasts():
    x, y = random_pair(1.0)
    table = lorentz.distance(x[:5, None], y[None, :7], 1.0)
    assert table.shape == (5, 7)
    torch.testing.assert_close(table, lorentz.pairwise_distance(x[:5], y[:7], 1.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("rapidity", [0.01, 0.1, 1.0, 3.0, 5.0, 6.0])
def test_float32_distance_between_neighbours(rapidity, curvature):
    """Half the points lie behind their neighbour, half beside it; the oracle sees the same rounded points."""
    gap = min(0.1, rapidity)
    u, other = directions(64, 16, seed=3), directions(64, 16, seed=4)
    across = other - (other * u).sum(-1, keepdim=True) * u
    turn = torch.as_tensor(gap / math.sinh(rapidity))
    beside = u * turn.cos() + across / across.norm(dim=-1, keepdim=True) * turn.sin()
    x = at_rapidity(u, rapidity, curvature).float()
    y = torch.cat(
        [at_rapidity(u[:32], rapidity + gap, curvature), at_rapidity(beside[32:], rapidity, curvature)]
    ).float()
    expected = geoopt_distance(x, y, curvature)
    tolerance = 6e-5 if rapidity > 5 else 3e-5
    torch.testing.assert_close(lorentz.distance(x, y, curvature).double(), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("rapidity", [0.01, 0.1, 1.0, 3.0, 5.0, 6.0])
def test_float32_pairwise_distance_of_random_pairs(rapidity, curvature):
    x = at_rapidity(directions(32, 16, seed=3), torch.linspace(rapidity / 2, rapidity, 32), curvature).float()
    y = at_rapidity(directions(32, 16, seed=4), torch.linspace(rapidity, rapidity / 2, 32), curvature).float()
    expected = geoopt_distance(x[:, None], y[None], curvature)
    torch.testing.assert_close(lorentz.pairwise_distance(x, y, curvature).double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(lorentz.distance(x[:, None], y[None], curvature).double(), expected, rtol=1e-5, atol=0)


def test_float32_resolves_points_on_one_ray_at_the_radius_cap():
    u = directions(16, 16)
    x, y = at_rapidity(u, MAX_RAPIDITY, 1.0).float(), at_rapidity(u, MAX_RAPIDITY - 0.5, 1.0).float()
    expected = torch.full((16,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(lorentz.distance(x, y, 1.0).double(), expected, rtol=1e-3, atol=0)


# --- cones ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
def test_half_aperture_by_formula(curvature):
    x = directions(5) * torch.tensor([0.3, 1, 2, 5, 50], dtype=torch.float64)[:, None] / math.sqrt(curvature)
    expected = [math.asin(2 * 0.1 / length) for length in (0.3, 1, 2, 5, 50)]
    assert lorentz.half_aperture(x, curvature).tolist() == pytest.approx(expected, rel=1e-12)
    wide = [math.asin(2 * 0.14 / length) for length in (0.3, 1, 2, 5, 50)]
    assert lorentz.half_aperture(x, curvature, min_radius=0.14).tolist() == pytest.approx(wide, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_aperture_near_the_origin_is_a_half_space_with_a_finite_gradient(dtype):
    norms = [0.0, 1e-30, 1e-3, 0.2, 0.2 * (1 + 1e-6), 0.21]
    x = torch.tensor([[norm, 0.0] for norm in norms], dtype=dtype, requires_grad=True)
    angle = lorentz.half_aperture(x, 1.0)
    angle.sum().backward()
    assert angle[:4].tolist() == pytest.approx([math.pi / 2] * 4, abs=1e-3)
    assert torch.isfinite(x.grad).all()
    assert x.grad[:3].abs().max() == 0
    assert x.grad[-1, 0] < 0


@pytest.mark.parametrize("curvature", CURVATURES)
def test_exterior_angle_agrees_with_the_acos_form(curvature):
    parent, child = random_pair(curvature, n=200)
    child[:100] = 2 * parent[:100] + 0.3 * child[:100]  # some children behind their parents
    expected = meru_exterior_angle(parent, child, curvature)
    assert expected.min() < 0.3 and expected.max() > 2.5
    torch.testing.assert_close(lorentz.exterior_angle(parent, child, curvature), expected, rtol=0, atol=1e-11)
    swapped = meru_exterior_angle(child, parent, curvature)
    torch.testing.assert_close(lorentz.exterior_angle(child, parent, curvature), swapped, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("curvature", [0.1, 1.0, 10.0])
def test_exterior_angle_by_hand(curvature, dtype, tolerance):
    def angle(parent_rapidity, child_rapidity, turn):
        parent = at_rapidity(torch.tensor([[1.0, 0.0]], dtype=torch.float64), parent_rapidity, curvature).to(dtype)
        ray = torch.tensor([[math.cos(turn), math.sin(turn)]], dtype=torch.float64)
        return lorentz.exterior_angle(parent, at_rapidity(ray, child_rapidity, curvature).to(dtype), curvature).item()

    assert angle(0.5, 2.0, 0.0) == pytest.approx(0, abs=tolerance)  # straight behind
    assert angle(2.0, 0.5, 0.0) == pytest.approx(math.pi, abs=tolerance)  # between the parent and the origin
    assert angle(2.0, 1.0, math.pi) == pytest.approx(math.pi, abs=1e-6)  # beyond the origin
    assert angle(2.0, 0.0, 0.0) == pytest.approx(math.pi, abs=tolerance)  # at the origin
    # A right angle at the origin: tan of the parent's angle is tanh(child) / sinh(parent).
    right = math.pi - math.atan(math.tanh(1.5) / math.sinh(0.7))
    assert angle(0.7, 1.5, math.pi / 2) == pytest.approx(right, abs=tolerance)
    # A right angle at the parent: cos of the angle at the origin is tanh(parent) / tanh(child).
    turn = math.acos(math.tanh(0.7) / math.tanh(1.5))
    assert angle(0.7, 1.5, turn) == pytest.approx(math.pi / 2, abs=tolerance)
    # An isosceles triangle: tan(angle at the parent) tan(half the angle at the origin) = 1 / cosh(side).
    isosceles = math.pi - math.atan(1 / (math.cosh(1.2) * math.tan(0.4)))
    assert angle(1.2, 1.2, 0.8) == pytest.approx(isosceles, abs=tolerance)


@pytest.mark.parametrize("rapidity", [0.01, 0.1, 1.0, 3.0, 6.0])
def test_float32_exterior_angle(rapidity):
    parent = at_rapidity(directions(64, 16, seed=3), rapidity, 1.0).float()
    child = at_rapidity(directions(64, 16, seed=4), 1.5 * rapidity, 1.0).float()
    angle = lorentz.exterior_angle(parent, child, 1.0).double()
    torch.testing.assert_close(angle, meru_exterior_angle(parent, child, 1.0), rtol=0, atol=2e-6)


def test_a_cone_holds_what_lies_behind_it():
    """The two definitions together: on the rim of the cone, the exterior angle is the half-aperture."""
    parent = at_rapidity(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 1.0, 1.0)
    aperture = lorentz.half_aperture(parent, 1.0).item()
    turns = torch.linspace(0, 0.5, 51, dtype=torch.float64)
    rays = torch.stack([turns.cos(), turns.sin()], -1)
    angles = lorentz.exterior_angle(parent, at_rapidity(rays, 3.0, 1.0), 1.0)
    assert (angles.diff() > 0).all()
    assert angles[0] < aperture < angles[-1]


# --- gradients ------------------------------------------------------------------------------------------------------

FUNCTIONS_OF_PAIRS = {
    "distance": lorentz.distance,
    "pairwise_distance": lorentz.pairwise_distance,
    "exterior_angle": lorentz.exterior_angle,
}
FUNCTIONS_OF_POINTS = {
    "exp_map0": lorentz.exp_map0,
    "log_map0": lorentz.log_map0,
    "time_component": lorentz.time_component,
    "radius": lorentz.radius,
    "half_aperture": lorentz.half_aperture,
}


@pytest.mark.parametrize("name", FUNCTIONS_OF_PAIRS)
def test_gradients_of_pairs_by_finite_differences(name):
    x, y = random_pair(0.8, n=4, low=0.4, high=2.0)
    c = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FUNCTIONS_OF_PAIRS[name], (x.requires_grad_(), y.requires_grad_(), c))


@pytest.mark.parametrize("name", FUNCTIONS_OF_POINTS)
def test_gradients_of_points_by_finite_differences(name):
    x, _ = random_pair(0.8, n=4, low=0.4, high=2.0)
    c = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FUNCTIONS_OF_POINTS[name], (x.requires_grad_(), c))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS_OF_PAIRS | FUNCTIONS_OF_POINTS)
def test_curvature_may_be_a_float_or_a_tensor(name, dtype):
    x, y = (points.to(dtype) for points in random_pair(1.7, n=5))
    function = (FUNCTIONS_OF_PAIRS | FUNCTIONS_OF_POINTS)[name]
    points = (x, y) if name in FUNCTIONS_OF_PAIRS else (x,)
    plain, tensor = function(*points, 1.7), function(*points, torch.tensor(1.7, dtype=dtype))
    assert plain.dtype == tensor.dtype == dtype
    torch.testing.assert_close(plain, tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS_OF_PAIRS)
@pytest.mark.parametrize(
    "case",
    [
        "identical",
        "both at origin",
        "parent at origin",
        "child at origin",
        "opposite",
        "same ray",
        "at the cap",
        "adjacent",
    ],
)
def test_gradients_are_finite_at_the_edges(case, name, dtype):
    u = directions(6, 4)
    v = {
        "identical": (u, u),
        "both at origin": (u * 0, u * 0),
        "parent at origin": (u * 0, u),
        "child at origin": (u, u * 0),
        "opposite": (u, -u),
        "same ray": (u, 2 * u),
        "at the cap": (100 * u, 100 * directions(6, 4, seed=9)),
        "adjacent": (u, u * (1 + 1e-7)),
    }[case]
    x, y = (vector.to(dtype).requires_grad_() for vector in v)
    c = torch.tensor(1.3, dtype=dtype, requires_grad=True)
    value = FUNCTIONS_OF_PAIRS[name](lorentz.exp_map0(x, c), lorentz.exp_map0(y, c), c)
    value.sum().backward()
    assert torch.isfinite(value).all()
    for gradient in (x.grad, y.grad, c.grad):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < (1e8 if case == "adjacent" and name == "exterior_angle" else 1e3)
    undefined = case in ("identical", "both at origin") or (case == "parent at origin" and name == "exterior_angle")
    if undefined and name != "pairwise_distance":
        assert value.abs().max() == 0
        assert max(gradient.abs().max() for gradient in (x.grad, y.grad, c.grad)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairwise_distance_to_oneself_is_zero_with_zero_gradient(dtype):
    x = (directions(8, 4) * 0.8).to(dtype).requires_grad_()
    diagonal = lorentz.pairwise_distance(x, x, 1.0).diagonal()
    diagonal.sum().backward()
    assert diagonal.abs().max() == 0
    assert x.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_distance_gradient_has_unit_length_right_up_to_identical_points(dtype):
    """|grad d| in the tangent space is 1 wherever d > 0: no spike next to the boundary. Checked along a ray."""
    base = torch.tensor([[0.7, 0.0]], dtype=dtype)
    step = 1e-3 if dtype == torch.float32 else 1e-6
    v = torch.tensor([[0.7 + step, 0.0]], dtype=dtype, requires_grad=True)
    lorentz.distance(lorentz.exp_map0(v, 1.0), lorentz.exp_map0(base, 1.0), 1.0).sum().backward()
    assert v.grad[0, 0].item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 1e-9, 1e-14])
def test_next_to_the_origin_distances_are_euclidean(scale, dtype):
    x, y = ((directions(20, seed=seed) * scale).to(dtype) for seed in (1, 2))
    expected = (x.double() / scale - y.double() / scale).norm(dim=-1)
    torch.testing.assert_close(lorentz.distance(x, y, 3.0).double() / scale, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_angle_to_a_child_closer_than_the_rounding_has_no_gradient(dtype):
    parent = torch.tensor([[0.7, 0.0]], dtype=dtype, requires_grad=True)
    child = torch.tensor([[0.7, 0.3 * torch.finfo(dtype).eps]], dtype=dtype, requires_grad=True)
    angle = lorentz.exterior_angle(parent, child, 1.0)
    angle.sum().backward()
    assert angle.item() == 0
    assert parent.grad.abs().max() == child.grad.abs().max() == 0


@pytest.mark.parametrize("radius", [1e-15, 1e-12, 1e-8, 1e-6, 1e-3, 0.1, 1.0, lorentz.MAX_RAPIDITY])
def test_cones_in_float32_from_the_origin_to_the_cap(radius):
    """Angle, half-aperture and what lies outside the cone, against the same points in float64."""
    generator = torch.Generator().manual_seed(0)
    rays = F.normalize(torch.randn(2, 64, 32, dtype=torch.float64, generator=generator), dim=-1)
    parent, child = (rays * math.sinh(radius)).float()
    child = (child + 0.9 * (parent - child)).requires_grad_()
    parent.requires_grad_()
    angle, aperture = lorentz.exterior_angle(parent, child, 1.0), lorentz.half_aperture(parent, 1.0)
    exact = [lorentz.exterior_angle(parent.double(), child.double(), 1.0), lorentz.half_aperture(parent.double(), 1.0)]
    if radius < 0.01:  # there the plane is flat: the angle at the parent is that of a triangle of straight sides
        ray, away = parent.double() / radius, (child.double() - parent.double()) / radius
        straight = torch.acos(torch.cosine_similarity(ray, away, dim=-1))
        torch.testing.assert_close(exact[0], straight, rtol=0, atol=1e-3 * radius + 1e-6)
    torch.testing.assert_close(angle.double(), exact[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(aperture.double(), exact[1], rtol=0, atol=1e-6)
    (angle - aperture).relu().sum().backward()
    assert parent.grad.isfinite().all() and child.grad.isfinite().all()


def test_half_aperture_at_the_origin_is_exactly_a_right_angle():
    assert lorentz.half_aperture(torch.zeros(3, 8), 1.0).tolist() == [torch.tensor(math.pi / 2).item()] * 3
