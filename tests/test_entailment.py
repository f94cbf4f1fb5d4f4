"""What a pair costs, against arithmetic by hand on points of a plane."""

import math

import pytest
import torch

from delst_hf import DelstConfig
from delst_hf.model.entailment import ENTAILMENT_FORMS, entailment_loss, intra_entailment_loss


def at(rapidity: float, degrees: float) -> list[float]:
    """The point of the plane of curvature -1 at this distance from the origin, in this direction."""
    length = math.sinh(rapidity)
    return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]


def exterior(parent: float, child: float, degrees: float) -> float:
    """Exterior angle at the parent of the triangle with the origin, by the hyperbolic laws of cosines."""
    side = math.acosh(
        math.cosh(parent) * math.cosh(child) - math.sinh(parent) * math.sinh(child) * math.cos(math.radians(degrees))
    )
    inner = (math.cosh(parent) * math.cosh(side) - math.cosh(child)) / (math.sinh(parent) * math.sinh(side))
    return math.pi - math.acos(max(-1.0, min(1.0, inner)))


# Two pairs: a child 20 degrees aside of its parent, and one 90 degrees aside; each is the other's foreign child.
PARENTS = torch.tensor([at(1.0, 0.0), at(0.5, 180.0)], dtype=torch.float64)
CHILDREN = torch.tensor([at(2.0, 20.0), at(0.8, 90.0)], dtype=torch.float64)
ANGLES = [exterior(1.0, 2.0, 20.0), exterior(0.5, 0.8, 90.0)]
FOREIGN = [exterior(1.0, 0.8, 90.0), exterior(0.5, 2.0, 160.0)]
APERTURES = [math.asin(0.2 / math.sinh(1.0)), math.asin(0.2 / math.sinh(0.5))]
DISTANCES = [
    math.acosh(math.cosh(p) * math.cosh(c) - math.sinh(p) * math.sinh(c) * math.cos(math.radians(t)))
    for p, c, t in ((1.0, 2.0, 20.0), (0.5, 0.8, 90.0))
]


def outside(angles):
    return [max(0.0, angle - aperture) for angle, aperture in zip(angles, APERTURES, strict=True)]


EXPECTED = {
    "cone": outside(ANGLES),
    "uncha": [out + 0.1 * angle for out, angle in zip(outside(ANGLES), ANGLES, strict=True)],
    "argent": [math.tanh(d) * angle for d, angle in zip(DISTANCES, ANGLES, strict=True)],
    "negatives": [own + max(0.0, 0.1 - far) for own, far in zip(outside(ANGLES), outside(FOREIGN), strict=True)],
    "difference": [own - far for own, far in zip(ANGLES, FOREIGN, strict=True)],
    "radial": [0.1 * math.log1p(math.exp(behind / 0.1)) for behind in (1.0 + 0.1 - 2.0, 0.5 + 0.1 - 0.8)],
}


@pytest.mark.parametrize("form", ENTAILMENT_FORMS)
def test_each_form_by_hand(form):
    aperture = torch.tensor(APERTURES, dtype=torch.float64)
    penalties = ENTAILMENT_FORMS[form](PARENTS, CHILDREN, 1.0, aperture)
    assert penalties.tolist() == pytest.approx(EXPECTED[form], abs=1e-12)
    assert entailment_loss(PARENTS, CHILDREN, 1.0, form=form).item() == pytest.approx(
        sum(EXPECTED[form]) / 2, abs=1e-12
    )
    one = entailment_loss(PARENTS, CHILDREN, 1.0, counts=torch.tensor([True, False]), form=form).item()
    assert one == pytest.approx(EXPECTED[form][0], abs=1e-12)


@pytest.mark.parametrize("form", ENTAILMENT_FORMS)
def test_each_form_can_be_descended(form):
    """From random points, each form falls along its gradient, and the points stay finite."""
    generator = torch.Generator().manual_seed(0)
    parent, child = torch.randn(2, 64, 8, generator=generator).requires_grad_().unbind()
    parent, child = parent.detach().requires_grad_(), child.detach().requires_grad_()
    optimiser = torch.optim.SGD([parent, child], lr=1.0)
    losses = []
    for _ in range(30):
        loss = entailment_loss(parent, child, 1.0, form=form)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert parent.isfinite().all() and child.isfinite().all()


def test_the_floor_costs_what_a_parent_lacks():
    expected = sum(EXPECTED["cone"]) / 2 + (0.7 - 0.5) / 2
    assert entailment_loss(PARENTS, CHILDREN, 1.0, radius_floor=0.7).item() == pytest.approx(expected, abs=1e-12)


def test_argent_keeps_parents_off_the_origin():
    parent, child = (torch.tensor([at(r, 0.0)], dtype=torch.float64) for r in (0.3, 1.0))
    aside = torch.tensor([at(1.0, 90.0)], dtype=torch.float64)
    assert entailment_loss(parent, child, 1.0, form="argent").item() == pytest.approx(0.5 - 0.3, abs=1e-6)
    side = math.acosh(math.cosh(0.3) * math.cosh(1.0))
    expected = math.tanh(side) * exterior(0.3, 1.0, 90.0) + 0.2
    assert entailment_loss(parent, aside, 1.0, form="argent").item() == pytest.approx(expected, abs=1e-12)


def test_the_intra_modal_loss_takes_the_form():
    embeds, level = torch.cat([PARENTS, CHILDREN]), torch.tensor([10.0, 20.0, 30.0, 40.0])
    pairs = PARENTS, CHILDREN  # ranks half a slide apart
    for form in ENTAILMENT_FORMS:
        intra = intra_entailment_loss(embeds, level, 1.0, form=form, radius_floor=0.7)
        assert intra.item() == pytest.approx(
            entailment_loss(*pairs, 1.0, form=form, radius_floor=0.7).item(), abs=1e-12
        )


def test_unknown_forms_are_named():
    with pytest.raises(ValueError, match="form='wedge' is not known. Choose one of cone, uncha"):
        entailment_loss(PARENTS, CHILDREN, 1.0, form="wedge")
    with pytest.raises(ValueError, match="entailment='wedge' is not known. Choose one of 'cone'"):
        DelstConfig(entailment="wedge")


def test_no_entailment_is_no_weight():
    config = DelstConfig(entailment="none")
    assert (config.cross_entailment_weight, config.intra_entailment_weight) == (0.0, 0.0)
    with pytest.raises(ValueError, match="intra_entailment_weight=0.1 needs geometry='lorentz' and an entailment"):
        DelstConfig(entailment="none", intra_entailment_weight=0.1)
