"""InfoNCE with masks and weights, against the tiled form and arithmetic by hand."""

import math

import pytest
import torch

from delst_hf.model.contrastive import dense_contrastive
from delst_hf.model.losses import contrastive_loss, part_contrastive_loss, regression_loss

SQUARE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
def test_without_masks_it_is_the_tiled_form(geometry):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, 5, dtype=torch.float64, generator=generator)
    if geometry == "cosine":
        x, y = torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)
    values, gradients = [], []
    for options in ({}, {"groups": torch.arange(9)}):  # every spot a group of its own: nothing is masked
        left, right = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss = contrastive_loss(left, right, 3.0, 0.7, geometry, **options)
        values.append(loss.item())
        gradients.append(torch.autograd.grad(loss, (left, right)))
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_spots_of_one_group_are_no_negatives_by_hand():
    """Four spots at right angles, scale 1, in two groups: each spot has two negatives, at a right angle or opposite."""
    groups = torch.tensor([0, 0, 1, 1])
    # Spots 0 and 3: opposite or aside. Row 0 sees rows 2 (opposite, -1) and 3 (aside, 0); row 1 sees 2 (0) and 3 (-1); ...
    expected = math.log(math.e + 1 + math.exp(-1)) - 1
    assert contrastive_loss(SQUARE, SQUARE, 1.0, 1.0, "cosine", groups=groups).item() == pytest.approx(expected)
    everything = math.log(math.e + 2 + math.exp(-1)) - 1
    assert contrastive_loss(SQUARE, SQUARE, 1.0, 1.0, "cosine").item() == pytest.approx(everything)


def test_a_row_without_negatives_costs_nothing_and_has_a_gradient():
    x = SQUARE.clone().requires_grad_()
    loss = dense_contrastive(x, SQUARE, 1.0, 1.0, "cosine", groups=torch.tensor([0, 0, 0, 1]))
    # Row 3 has three negatives, two aside and one opposite; each of the others has row 3 alone.
    last = math.log(math.e + 2 + math.exp(-1)) - 1
    aside, opposite = math.log(math.e + 1) - 1, math.log(math.e + math.exp(-1)) - 1
    assert loss.item() == pytest.approx((last + 2 * aside + opposite) / 4)
    loss.backward()
    assert x.grad.isfinite().all()
    alone = dense_contrastive(SQUARE, SQUARE, 1.0, 1.0, "cosine", groups=torch.zeros(4, dtype=torch.long))
    assert alone.item() == 0


def test_uncertain_parts_weigh_less_by_hand():
    """UNCHA: the logits of a part x are multiplied by exp(-u / 2), u = log(1 + exp(-|x|))."""
    parts = SQUARE, SQUARE
    factor = math.exp(-0.5 * math.log(1 + math.exp(-1.0)))
    plain = part_contrastive_loss((SQUARE, SQUARE), parts, 2.0, 1.0, "cosine").item()
    assert plain == pytest.approx(math.log(math.exp(2) + 2 + math.exp(-2)) - 2)
    weighted = part_contrastive_loss((SQUARE, SQUARE), parts, 2.0, 1.0, "cosine", uncertainty=True).item()
    scale = 2 * factor
    assert weighted == pytest.approx(math.log(math.exp(scale) + 2 + math.exp(-scale)) - scale)


def test_parts_are_contrasted_with_the_other_modality():
    image, gene, image_part, gene_part = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    found = part_contrastive_loss((image, gene), (image_part, gene_part), 1.5, 1.0, "lorentz")
    expected = contrastive_loss(image_part, gene, 1.5) + contrastive_loss(gene_part, image, 1.5)
    torch.testing.assert_close(found, expected / 2)


def test_regression_counts_measured_genes_alone():
    predicted, values = torch.tensor([[1.0, 2.0], [0.0, 9.0]]), torch.tensor([[0.0, 4.0], [3.0, 0.0]])
    assert regression_loss(predicted, values).item() == pytest.approx((1 + 4 + 9 + 81) / 4)
    mask = torch.tensor([[True, True], [True, False]])
    assert regression_loss(predicted, values, mask).item() == pytest.approx((1 + 4 + 9) / 3)
    assert regression_loss(predicted, values, torch.zeros(2, 2, dtype=torch.bool)).item() == 0
