"""Forms of entailment: what one ordered pair costs, in each of the ways that have been published.

With ``a`` the exterior angle of the child at its parent, ``w`` the half-aperture of the parent's cone (times ``eta``), ``r``
the distance to the origin, ``d`` that between the two points, and a prime for the child of another pair:

    cone         max(0, a - w)                                       MERU (arXiv 2304.09172), HyCoCLIP (arXiv 2410.06912)
    uncha        max(0, a - w) + 0.1 a                               UNCHA (arXiv 2603.22042)
    argent       tanh(d) a + max(0, 0.5 - r_parent)                  after ARGENT (arXiv 2603.23311)
    negatives    max(0, a - w) + max(0, m - max(0, a' - w))          entailment cones (arXiv 1804.01882)
    difference   a - a'                                              RCME (arXiv 2506.21476)
    radial       t softplus((r_parent + m - r_child) / t)            order of the radii alone

All are functions of paired points, space parts (..., pairs, dim), and return one penalty per pair (..., pairs).
`losses.entailment_loss` averages them.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .lorentz import distance, exterior_angle, radius

ANGLE_SHARE = 0.1
"""Share of the angle itself in the form ``uncha``: a gradient for pairs that are inside already. As in UNCHA."""

MARGIN = 0.1
"""``m``, in radians outside the cone (``negatives``) or as a distance (``radial``). Ours."""

NORM_FLOOR = 0.5
"""Distance to the origin below which the form ``argent`` pushes parents outwards. ARGENT regularises norms; how is ours."""

TEMPERATURE = 0.1
"""``t`` of the form ``radial``, a distance: how soft the step of its margin is. Ours."""


def cone(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise how far, in radians, the child lies outside the cone; nothing where it is inside."""
    return F.relu(exterior_angle(parent, child, curvature) - aperture)


def uncha(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise as `cone` does, and a tenth of the angle besides, so that the gradient never vanishes."""
    outward = exterior_angle(parent, child, curvature)
    return F.relu(outward - aperture) + ANGLE_SHARE * outward


def argent(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise the angle itself, weighted so that pairs that nearly coincide are spared, and parents near the origin.

    The angle between two points that are all but one is noise. The weight of ARGENT and its regulariser of norms could not be
    read; the hyperbolic tangent of the distance, without gradient, and the floor under the parent's radius are ours.
    """
    weight = distance(parent, child, curvature).detach().tanh()
    return weight * exterior_angle(parent, child, curvature) + F.relu(NORM_FLOOR - radius(parent, curvature))


def negatives(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise as `cone` does, and children of other pairs that come nearer to the cone than the margin."""
    foreign = F.relu(exterior_angle(parent, child.roll(1, -2), curvature) - aperture)
    return cone(parent, child, curvature, aperture) + F.relu(MARGIN - foreign)


def difference(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise the angle of the child, and reward that of the child of another pair: between -pi and pi, chance is 0."""
    return exterior_angle(parent, child, curvature) - exterior_angle(parent, child.roll(1, -2), curvature)


def radial(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise a child that is not farther from the origin than its parent by the margin; directions are left alone."""
    behind = radius(parent, curvature) + MARGIN - radius(child, curvature)
    return TEMPERATURE * F.softplus(behind / TEMPERATURE)


ENTAILMENT_FORMS: dict[str, Callable[[Tensor, Tensor, float | Tensor, Tensor], Tensor]] = {
    "cone": cone,
    "uncha": uncha,
    "argent": argent,
    "negatives": negatives,
    "difference": difference,
    "radial": radial,
}
