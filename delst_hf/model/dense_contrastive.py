"""InfoNCE with its matrix of similarities: for batches some of whose pairs are no negatives, or whose rows weigh differently.

It holds the whole matrix, so memory grows with the square of the batch; `contrastive.tiled_contrastive` does all that needs
neither masks nor weights.
"""

import torch
from torch import Tensor

from .similarity import similarity_logits


def dense_contrastive(
    x: Tensor,
    y: Tensor,
    logit_scale: float | Tensor,
    curvature: float | Tensor,
    geometry: str,
    groups: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE of row i of `x` with row i of `y`.

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
