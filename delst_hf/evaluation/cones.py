"""Did the embedding learn a hierarchy? Radii, cones, and the control without which a cone fraction means nothing."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import spearmanr
from torch import Tensor

from ..model.lorentz import exterior_angle, half_aperture, radius


def cone_statistics(
    image_embeds: Tensor,
    gene_embeds: Tensor,
    curvature: float | Tensor,
    parent: str = "gene",
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
) -> dict[str, float]:
    """Where the two modalities lie, and whether children are inside the cones of their parents.

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
        ``in_cone_mismatched``, the same with each parent given the child of a spot half the pairs away (neighbours in
        a slide look alike, so the next one would be no control). A fraction that does not exceed
        its control says that the cones are wide, not that they are right.
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
    """Whether each parent's cone holds its own child, and the child of a spot half the pairs away: (pairs,) 0 or 1."""
    allowed = aperture_scale * half_aperture(apex, curvature, min_radius)

    def inside(candidates: Tensor) -> np.ndarray:
        return (exterior_angle(apex, candidates, curvature) <= allowed).cpu().numpy().astype(float)

    return inside(child), inside(child.roll(len(child) // 2, dims=0))


def hierarchy(
    image_embeds: ArrayLike,
    gene_embeds: ArrayLike,
    level: ArrayLike,
    curvature: float,
    **cone: Any,
) -> dict[str, float]:
    """`cone_statistics`, and how well the radius follows the level of a spot.

    Args:
        image_embeds: Space parts (spots, dim).
        gene_embeds: Space parts (spots, dim).
        level: Hierarchy key (spots,), for example the number of expressed genes.
        curvature: ``c > 0``.
        **cone: Further arguments of `cone_statistics`.

    Returns:
        The keys of `cone_statistics`; ``image_radius_level_rho`` and ``gene_radius_level_rho``, Spearman correlations in
        [-1, 1]: high means that spots of a high level lie far out. 0 where a radius or the level is constant.
    """
    from .preparation import finite_matrix

    image, gene = (
        torch.from_numpy(finite_matrix(embeds, name))
        for embeds, name in ((image_embeds, "image_embeds"), (gene_embeds, "gene_embeds"))
    )
    result = cone_statistics(image, gene, curvature, **cone)
    for name, embeds in (("image", image), ("gene", gene)):
        radii = radius(embeds, curvature).numpy()
        constant = np.ptp(radii) == 0 or np.ptp(np.asarray(level)) == 0
        result[f"{name}_radius_level_rho"] = 0.0 if constant else float(spearmanr(radii, level).statistic)
    return result
