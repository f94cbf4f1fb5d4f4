"""Did the embedding learn a hierarchy? Radii, cones, and the control without which a cone fraction means nothing."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from ..model.entailment import cone_statistics
from ..model.lorentz import radius


def hierarchy(
    image_embeds: ArrayLike, gene_embeds: ArrayLike, level: ArrayLike, curvature: float, **cone: Any
) -> dict[str, float]:
    """Return `cone_statistics`, and how well the radius follows the level of a spot.

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
