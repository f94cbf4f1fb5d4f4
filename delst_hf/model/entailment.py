"""Entailment: penalties of ordered pairs of points, losses over such pairs, and the share of children inside their cones.

With ``a`` the exterior angle of the child at its parent, ``w`` the half-aperture of the parent's cone (times ``eta``), ``r``
the distance to the origin, ``d`` the distance between the two points, and a prime for the child of another pair:

    cone         max(0, a - w)                                       MERU (arXiv 2304.09172), HyCoCLIP (arXiv 2410.06912)
    uncha        max(0, a - w) + 0.1 a                               UNCHA (arXiv 2603.22042)
    argent       tanh(d) a + max(0, 0.5 - r_parent)                  after ARGENT (arXiv 2603.23311)
    negatives    max(0, a - w) + max(0, m - max(0, a' - w))          entailment cones (arXiv 1804.01882)
    difference   a - a'                                              RCME (arXiv 2506.21476)
    radial       t softplus((r_parent + m - r_child) / t)            order of the radii alone

A form is a function of paired points, space parts (..., pairs, dim), and returns one penalty per pair (..., pairs);
`entailment_loss` averages them. All are computed in float32 (float64 for float64 input).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .lorentz import distance, exterior_angle, half_aperture, lift, radius

ANGLE_SHARE = 0.1
"""Weight of the angle itself in the form ``uncha``: it gives a gradient to pairs that are inside already. As in UNCHA."""

MARGIN = 0.1
"""``m``, in radians outside the cone (``negatives``) or as a distance (``radial``). Our choice."""

NORM_FLOOR = 0.5
"""Distance to the origin below which the form ``argent`` pushes parents outwards. ARGENT regularises norms; the way is ours."""

TEMPERATURE = 0.1
"""``t`` of the form ``radial``, a distance: the softness of its margin. Our choice."""


def cone(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise the angle, in radians, by which the child lies outside the cone; 0 inside."""
    return F.relu(exterior_angle(parent, child, curvature) - aperture)


def uncha(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise as `cone` does, plus a tenth of the angle, so that the gradient never vanishes."""
    outward = exterior_angle(parent, child, curvature)
    return F.relu(outward - aperture) + ANGLE_SHARE * outward


def argent(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise the angle, weighted so that nearly coincident pairs count little, and parents near the origin.

    The angle between two nearly coincident points is noise. We could not read ARGENT's own weight and norm regulariser; the
    hyperbolic tangent of the distance, without gradient, and the floor under the parent's radius are ours.
    """
    weight = distance(parent, child, curvature).detach().tanh()
    return weight * exterior_angle(parent, child, curvature) + F.relu(NORM_FLOOR - radius(parent, curvature))


def negatives(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise as `cone` does, plus children of other pairs that come nearer to the cone than the margin."""
    foreign = F.relu(exterior_angle(parent, child.roll(1, -2), curvature) - aperture)
    return cone(parent, child, curvature, aperture) + F.relu(MARGIN - foreign)


def difference(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise the angle of the child less that of another pair's child: between -pi and pi, 0 by chance."""
    return exterior_angle(parent, child, curvature) - exterior_angle(parent, child.roll(1, -2), curvature)


def radial(parent: Tensor, child: Tensor, curvature: float | Tensor, aperture: Tensor) -> Tensor:
    """Penalise a child that is not farther from the origin than its parent by the margin, whatever its direction."""
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


def entailment_loss(
    parent: Tensor,
    child: Tensor,
    curvature: float | Tensor,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
    counts: Tensor | None = None,
    form: str = "cone",
    radius_floor: float = 0.0,
) -> Tensor:
    """Average how much children violate entailment by their parents: by default, their angles outside the cones in radians.

    ``mean(max(0, exterior_angle(parent, child) - aperture_scale * half_aperture(parent)))``

    Args:
        parent: The more general points, space parts (pairs, dim).
        child: The more specific points, space parts (pairs, dim).
        curvature: ``c > 0``.
        aperture_scale: ``eta``; below 1 narrows the cones, above 1 widens them.
        min_radius: ``K`` of the half-aperture.
        counts: (pairs,) bool, which pairs count; None when all do.
        form: Penalty of a pair, one of `ENTAILMENT_FORMS`.
        radius_floor: Distance to the origin below which a parent is penalised by the shortfall, so that cones do not widen as
            parents collapse onto the origin. 0 for none.

    Returns:
        0-d tensor; 0 for zero pairs and, with the form ``"cone"``, when every child is inside its cone.

    Raises:
        ValueError: If `form` is not known.

    >>> parent, child = torch.tensor([[0.5, 0.0]]), torch.tensor([[2.0, 0.0]])
    >>> entailment_loss(parent, child, curvature=1.0).item()  # straight behind its parent
    0.0
    >>> round(entailment_loss(child, parent, curvature=1.0).item(), 2)  # pi less the half-aperture
    3.04
    """
    if form not in ENTAILMENT_FORMS:
        raise ValueError(f"form={form!r} is not known. Choose one of {', '.join(ENTAILMENT_FORMS)}.")
    parent, child = lift(parent), lift(child)
    aperture = aperture_scale * half_aperture(parent, curvature, min_radius)
    penalties = ENTAILMENT_FORMS[form](parent, child, curvature, aperture)
    if radius_floor > 0:
        penalties = penalties + F.relu(radius_floor - radius(parent, curvature))
    if counts is None:
        return penalties.sum() / max(penalties.numel(), 1)
    return (penalties * counts).sum() / counts.sum().clamp_min(1)


def _half_slide_pairs(
    level: Tensor, slide_ids: Tensor | None, parent: str, min_level_ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the candidates of `ordered_pairs`, one per spot: parents, children and which of them count, all (batch,).

    Their shape is fixed, so that the host need not wait for the device.
    """
    if parent not in ("fewer", "more"):
        raise ValueError(f"parent={parent!r} is not known. Choose 'fewer' or 'more'.")
    order = torch.argsort(level, stable=True)
    position = torch.arange(len(order), device=level.device)
    first, last = torch.zeros_like(position), torch.full_like(position, len(order) - 1)
    if slide_ids is not None:
        order = order[torch.argsort(slide_ids[order], stable=True)]
        slides = slide_ids[order]
        # First and last position of the slide at each position, by cumulative extrema over the borders.
        border = slides[1:] != slides[:-1]
        first[1:] = torch.where(border, position[1:], 0)
        last[:-1] = torch.where(border, position[:-1], len(order) - 1)
        first, last = first.cummax(0).values, last.flip(0).cummin(0).values.flip(0)
    size = last - first + 1
    partner = position + (size + 1) // 2
    low, high = order, order[partner.clamp_max(len(order) - 1)]
    clear = (level[high] >= min_level_ratio * level[low]) & (level[high] > level[low])
    counts = (partner <= last) & clear
    return (low, high, counts) if parent == "fewer" else (high, low, counts)


def ordered_pairs(
    level: Tensor, slide_ids: Tensor | None = None, parent: str = "fewer", min_level_ratio: float = 1.25
) -> tuple[Tensor, Tensor]:
    """Return pairs of spots of one slide whose levels differ clearly, the general one first.

    The spots of each slide are sorted by level, and the spot of rank r is paired with the one half a slide further up. Every
    spot is in at most one pair, and no pair is of near neighbours in rank. No random number is drawn (a shuffled batch is
    random enough), so a resumed or a distributed run pairs the same spots.

    Args:
        level: Hierarchy key (batch,), for example the number of expressed genes.
        slide_ids: Slide of each spot (batch,) int; None treats the batch as one slide.
        parent: ``"fewer"`` makes the spot of the lower level the parent, ``"more"`` that of the higher level.
        min_level_ratio: Pairs whose levels differ by a smaller factor are dropped.

    Returns:
        Indices of parents and of children, both (pairs,) with ``pairs <= batch / 2``.

    Raises:
        ValueError: If `level` holds NaN or negative values, or `parent` is not known.
    """
    _check_level(level)
    parents, children, counts = _half_slide_pairs(level, slide_ids, parent, min_level_ratio)
    return parents[counts], children[counts]


def _check_level(level: Tensor) -> None:
    if not (level >= 0).all().cpu().numpy():
        raise ValueError("level holds NaN or negative values. Give counts, such as the number of expressed genes.")


def intra_entailment_loss(
    embeds: Tensor,
    level: Tensor,
    curvature: float | Tensor,
    slide_ids: Tensor | None = None,
    parent: str = "fewer",
    min_level_ratio: float = 1.25,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
    form: str = "cone",
    radius_floor: float = 0.0,
) -> Tensor:
    """Average the entailment loss within one modality over `ordered_pairs`: the more general spot entails the other.

    Args:
        embeds: Space parts of one modality (batch, dim).
        level: Hierarchy key (batch,), for example the number of expressed genes.
        curvature: ``c > 0``.
        slide_ids: Slide of each spot (batch,) int; pairs stay within a slide. None treats the batch as one slide.
        parent: Whether ``"fewer"`` or ``"more"`` expressed genes make the parent.
        min_level_ratio: As in `ordered_pairs`.
        aperture_scale: ``eta`` of the cones.
        min_radius: ``K`` of the half-aperture.
        form: As in `entailment_loss`.
        radius_floor: As in `entailment_loss`.

    Returns:
        0-d tensor; 0 when the batch holds no ordered pair. On an accelerator NaN if `level` holds NaN or negative values:
        checking it there would make the host wait in every step.

    Raises:
        ValueError: If `level`, on a CPU, holds NaN or negative values, or `parent` or `form` is not known.

    Examples:
        >>> outwards = torch.arange(1.0, 9.0)[:, None] * torch.tensor([[0.3, 0.1]])  # the further out, the more genes
        >>> intra_entailment_loss(outwards, level=torch.arange(1.0, 9.0), curvature=1.0)
        tensor(0.)
        >>> bool(intra_entailment_loss(outwards, level=torch.arange(8.0, 0.0, -1), curvature=1.0) > 1)
        True
    """
    on_cpu = level.device.type == "cpu"
    if on_cpu:
        _check_level(level)
    parents, children, counts = _half_slide_pairs(level, slide_ids, parent, min_level_ratio)
    pairs = embeds[parents], embeds[children]
    loss = entailment_loss(*pairs, curvature, aperture_scale, min_radius, counts, form, radius_floor)
    return loss if on_cpu else torch.where((level >= 0).all(), loss, torch.nan)


def joint_entailment_losses(
    image: Tensor,
    gene: Tensor,
    level: Tensor,
    curvature: float | Tensor,
    slide_ids: Tensor | None = None,
    *,
    cross_parent: str = "gene",
    cross_aperture_scale: float = 1.0,
    intra_parent: str = "fewer",
    min_level_ratio: float = 1.25,
    intra_aperture_scale: float = 1.0,
    min_radius: float = 0.1,
    form: str = "cone",
    radius_floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the cross-modal `entailment_loss` and the mean `intra_entailment_loss` of both modalities, computed together.

    On an accelerator each of the three alone costs as much as all together: hundreds of operations on a few numbers.

    Args:
        image: Space parts of the images (batch, dim).
        gene: Space parts of the genes (batch, dim).
        level: Hierarchy key (batch,).
        curvature: ``c > 0``.
        slide_ids: Slide of each spot (batch,) int; None treats the batch as one slide.
        cross_parent: Which modality is the parent of the other, ``"gene"`` or ``"image"``.
        cross_aperture_scale: ``eta`` across modalities.
        intra_parent: As ``parent`` of `intra_entailment_loss`.
        min_level_ratio: As in `intra_entailment_loss`.
        intra_aperture_scale: ``eta`` within a modality.
        min_radius: As in `entailment_loss`.
        form: As in `entailment_loss`.
        radius_floor: As in `entailment_loss`.

    Returns:
        Both losses, 0-d tensors.

    Raises:
        ValueError: As `intra_entailment_loss`.
    """
    if form not in ENTAILMENT_FORMS:
        raise ValueError(f"form={form!r} is not known. Choose one of {', '.join(ENTAILMENT_FORMS)}.")
    if level.device.type == "cpu":
        _check_level(level)
    apertures = cross_aperture_scale, intra_aperture_scale, min_radius
    constants = cross_parent, intra_parent, min_level_ratio, apertures, form, radius_floor
    inputs: list[Any] = [image, gene, level, curvature, *([] if slide_ids is None else [slide_ids])]
    if not _may_be_replayed(image):
        return _joint_losses(constants, *inputs)
    # Imported on CUDA devices only, which alone use it.
    from .replay import replayed

    cross, intra = replayed(lambda *given: _joint_losses(constants, *given), ("entailment", constants), inputs)
    return cross, intra


def _may_be_replayed(x: Tensor) -> bool:
    """Tell whether a CUDA graph could hold the losses of these points; under torch.compile the compiler makes its own."""
    return x.is_cuda and not torch.compiler.is_compiling()


def _joint_losses(
    constants: tuple,
    image: Tensor,
    gene: Tensor,
    level: Tensor,
    curvature: float | Tensor,
    slide_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `joint_entailment_losses` of checked inputs."""
    cross_parent, intra_parent, min_level_ratio, apertures, form, radius_floor = constants
    cross_aperture_scale, intra_aperture_scale, min_radius = apertures
    parents, children, counts = _half_slide_pairs(level, slide_ids, intra_parent, min_level_ratio)
    both = torch.stack([lift(image), lift(gene)])
    across = both if cross_parent == "image" else both.flip(0)
    # The gradient of index_select is one addition; that of plain indexing sorts first.
    parent = torch.cat([across[:1], both.index_select(1, parents)])
    child = torch.cat([across[1:], both.index_select(1, children)])
    aperture = half_aperture(parent, curvature, min_radius)
    aperture = torch.cat([aperture[:1] * cross_aperture_scale, aperture[1:] * intra_aperture_scale])
    penalties = ENTAILMENT_FORMS[form](parent, child, curvature, aperture)
    if radius_floor > 0:
        penalties = penalties + F.relu(radius_floor - radius(parent, curvature))
    cross = penalties[0].sum() / max(len(level), 1)
    intra = (penalties[1:] * counts).sum() / (2 * counts.sum().clamp_min(1))
    return cross, intra if level.device.type == "cpu" else torch.where((level >= 0).all(), intra, torch.nan)


def cone_statistics(
    image_embeds: Tensor,
    gene_embeds: Tensor,
    curvature: float | Tensor,
    parent: str = "gene",
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
) -> dict[str, float]:
    """Return radii and half-apertures of the two modalities, and the share of children inside the cones of their parents.

    Args:
        image_embeds: Space parts on the hyperboloid (pairs, dim).
        gene_embeds: The same spots' genes (pairs, dim).
        curvature: ``c > 0``.
        parent: The modality whose points are the apices, ``"gene"`` or ``"image"``.
        min_radius: ``K`` of the half-aperture.
        aperture_scale: ``eta``, as in the loss.

    Returns:
        ``image_radius`` and ``gene_radius``, mean distance to the origin (low: general); ``image_half_aperture`` and
        ``gene_half_aperture``, mean half-angle of their cones in degrees (high: general, 90 is a half-space);
        ``in_cone_matched``, the fraction of pairs whose child lies inside its parent's cone; and its control
        ``in_cone_mismatched``, the same fraction with each parent given the child of a spot half the pairs away (neighbours
        in a slide look alike, so the next spot would be no control). A fraction that does not exceed its control says that
        the cones are wide, not that they are right.
    """
    image, gene = image_embeds.detach().float(), gene_embeds.detach().float()
    apex, child = (gene, image) if parent == "gene" else (image, gene)
    matched, mismatched = cone_membership(apex, child, curvature, min_radius, aperture_scale)
    return {
        "image_radius": radius(image, curvature).mean().item(),
        "gene_radius": radius(gene, curvature).mean().item(),
        "image_half_aperture": torch.rad2deg(half_aperture(image, curvature, min_radius)).mean().item(),
        "gene_half_aperture": torch.rad2deg(half_aperture(gene, curvature, min_radius)).mean().item(),
        "in_cone_matched": float(matched.mean()),
        "in_cone_mismatched": float(mismatched.mean()),
    }


def cone_membership(
    apex: Tensor, child: Tensor, curvature: float | Tensor, min_radius: float = 0.1, aperture_scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Tell whether each parent's cone holds its own child, and the child of a spot half the pairs away: (pairs,) 0 or 1."""
    allowed = aperture_scale * half_aperture(apex, curvature, min_radius)

    def inside(candidates: Tensor) -> np.ndarray:
        return (exterior_angle(apex, candidates, curvature) <= allowed).cpu().numpy().astype(float)

    return inside(child), inside(child.roll(len(child) // 2, dims=0))
