"""The three losses of DELST (arXiv 2503.00804), as free functions of embeddings; `DelstModel.forward` composes them.

``L = contrastive + lambda * cross-modal entailment + beta * intra-modal entailment``

All compute in float32 (float64 for float64 input). With several processes, embeddings are gathered, never logits, and
the gradients averaged by DDP equal those of one process with the joined batch.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .contrastive import dense_contrastive, tiled_contrastive
from .distributed import gather_across_ranks, mean_over_ranks, world_size
from .entailment import entailment_loss, intra_entailment_loss, joint_entailment_losses
from .lorentz import lift


def contrastive_loss(
    image_embeds: Tensor,
    gene_embeds: Tensor,
    logit_scale: float | Tensor,
    curvature: float | Tensor = 1.0,
    geometry: str = "lorentz",
    chunk_size: int | None = None,
    *,
    across_ranks: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    """Return the symmetric InfoNCE: each patch must find its own spot among all spots of the batch, and each spot its patch.

    The similarity matrix is never formed: `contrastive.TiledInfoNCE` walks it in tiles, in both passes. Memory grows with
    the batch and not with its square.

    Args:
        image_embeds: Embeddings of the patches (batch, dim).
        gene_embeds: Embeddings of the same spots' expression (batch, dim), in the same order.
        logit_scale: The multiplier itself, already exponentiated.
        curvature: ``c > 0``, used by the Lorentz geometry.
        geometry: ``"lorentz"``, ``"euclidean"`` or ``"cosine"``.
        chunk_size: Rows and columns of a tile; None chooses a size that is fast on the device. It bounds the memory and
            changes the result by no more than rounding.
        across_ranks: Take the negatives of all ranks: local images against the genes of all ranks, in tiles that serve both
            directions. The mean of the returned value over the ranks is then the loss of the joined batch, and gradients
            averaged over the ranks, as by DDP, are its gradients.
        groups: (batch,) int; spots of one group, such as a slide, are not each other's negatives. The full matrix is then
            formed (`dense_contrastive`). None: all other spots are negatives.

    Returns:
        0-d tensor. log(batch) is chance.

    Raises:
        ValueError: If the two batches differ in shape, or the geometry or the chunk size is not valid.

    >>> x = torch.nn.functional.normalize(torch.eye(3), dim=-1)
    >>> contrastive_loss(x, x, torch.tensor(10.0), 1.0, geometry="cosine") < contrastive_loss(
    ...     x, x.roll(1, 0), torch.tensor(10.0), 1.0, geometry="cosine"
    ... )
    tensor(True)
    """
    if image_embeds.shape != gene_embeds.shape:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and gene_embeds {tuple(gene_embeds.shape)} must have the same shape: "
            "row i of both is the same spot."
        )
    start, across_ranks = 0, across_ranks and world_size() > 1
    if groups is not None:
        if across_ranks:
            image_embeds, gene_embeds, groups = (gather_across_ranks(x)[0] for x in (image_embeds, gene_embeds, groups))
        return dense_contrastive(image_embeds, gene_embeds, logit_scale, curvature, geometry, groups)
    if across_ranks:
        gene_embeds, start = gather_across_ranks(gene_embeds)
    return tiled_contrastive(
        image_embeds, gene_embeds, logit_scale, curvature, geometry, chunk_size, start=start, across_ranks=across_ranks
    )


def part_contrastive_loss(
    wholes: tuple[Tensor, Tensor],
    parts: tuple[Tensor, Tensor],
    logit_scale: float | Tensor,
    curvature: float | Tensor,
    geometry: str,
    uncertainty: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    """Contrast the part of each spot in one modality with the wholes of the other: HyCoCLIP's terms (arXiv 2410.06912).

    Args:
        wholes: Image and gene embeddings of the spots, each (batch, dim).
        parts: Image and gene embeddings of a part of each spot, a crop and some of the genes, each (batch, dim).
        logit_scale: The multiplier itself.
        curvature: ``c > 0``.
        geometry: As in `contrastive_loss`.
        uncertainty: Multiply the logits of a part by ``exp(-u / 2)``, ``u = log(1 + exp(-|x|))``: parts near the origin count
            less (UNCHA, arXiv 2603.22042).
        groups: As in `contrastive_loss`.

    Returns:
        0-d tensor, the mean of both modalities.
    """
    terms = []
    for part, whole in ((parts[0], wholes[1]), (parts[1], wholes[0])):
        weights = None
        if uncertainty:
            weights = torch.exp(-0.5 * F.softplus(-torch.linalg.vector_norm(lift(part), dim=-1)))
        terms.append(dense_contrastive(part, whole, logit_scale, curvature, geometry, groups, weights))
    return (terms[0] + terms[1]) / 2


def regression_loss(
    predicted: Tensor, gene_values: Tensor, gene_mask: Tensor | None = None, across_ranks: bool = False
) -> Tensor:
    """Return the mean squared error of predicted expression over the genes that were measured.

    Args:
        predicted: (batch, genes).
        gene_values: Normalised expression (batch, genes).
        gene_mask: (batch, genes) bool, True where measured; None when all are.
        across_ranks: Divide by the number of values that the ranks have on average: as in `contrastive_loss`, the mean over the
            ranks is then the loss of the joined batch.

    Returns:
        0-d tensor.

    >>> mask = torch.tensor([[True, False]])
    >>> regression_loss(torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 0.0]]), mask).item()
    4.0
    """
    squares = (lift(predicted) - lift(gene_values)).square()
    mask = torch.ones_like(squares) if gene_mask is None else gene_mask
    number = mask.sum().to(squares)
    number = mean_over_ranks(number) if across_ranks else number
    return (squares * mask).sum() / torch.where(number > 0, number, 1)


Pair = tuple[Tensor, Tensor]


def objective(
    config: Any,
    wholes: Pair,
    logit_scale: Tensor,
    curvature: Tensor,
    *,
    level: Tensor | None = None,
    slide_ids: Tensor | None = None,
    negative_groups: Tensor | None = None,
    parts: Pair | None = None,
    niches: Pair | None = None,
    predicted: Tensor | None = None,
    gene_values: Tensor | None = None,
    gene_mask: Tensor | None = None,
    across_ranks: bool = False,
) -> dict[str, Tensor]:
    """Compute the weighted sum of the loss terms, which comes first, and every term that has a weight.

    With `parts` the loss is that of nested views: parts are contrasted with the wholes of the other modality and entail the
    wholes of their own modality, in place of the order by `level`. With `niches` it is that of two levels (HyperST, arXiv
    2511.22107): niches are contrasted as spots are, and each spot entails the niche that it is part of.

    Args:
        config: A `DelstConfig`: geometry, forms and weights.
        wholes: Image and gene embeddings, each (batch, dim).
        logit_scale: The multiplier itself (0-d).
        curvature: ``c > 0`` (0-d).
        level: Hierarchy key (batch,), needed by the intra-modal loss without `parts`.
        slide_ids: Slide of each spot (batch,) int; None treats the batch as one slide.
        negative_groups: (batch,) int; spots of one group are not each other's negatives.
        parts: Image and gene embeddings of a part of each spot, each (batch, dim).
        niches: Image and gene embeddings of the niche of each spot, each (batch, dim); not together with `parts`.
        predicted: Expression predicted from the image embeddings (batch, genes), for the ``regression_weight``.
        gene_values: Normalised expression (batch, genes).
        gene_mask: (batch, genes) bool, True where measured.
        across_ranks: Take negatives and ordered pairs from all processes; all must call it.

    Returns:
        ``loss``, ``contrastive_loss`` and the other terms whose weight is above 0 (0-d tensors).

    Raises:
        ValueError: If the intra-modal loss is asked for without `level`.
    """
    shared: dict[str, Any] = {"across_ranks": across_ranks, "groups": negative_groups}
    contrastive = contrastive_loss(*wholes, logit_scale, curvature, config.geometry, **shared)
    if niches is not None:
        of_niches = contrastive_loss(*niches, logit_scale, curvature, config.geometry, **shared)
        contrastive = (contrastive + of_niches) / 2
    if across_ranks and (config.geometry == "lorentz" or parts is not None):
        level, slide_ids, negative_groups = (_gathered(x) for x in (level, slide_ids, negative_groups))
        wholes = _both(wholes, gather)
        parts, niches = (None if pair is None else _both(pair, gather) for pair in (parts, niches))
    if parts is not None:
        of_parts = part_contrastive_loss(
            wholes, parts, logit_scale, curvature, config.geometry, config.entailment == "uncha", negative_groups
        )
        contrastive = (contrastive + of_parts) / 2
    if niches is not None:
        terms = _by_parts(config, niches, wholes, curvature)
    elif parts is not None:
        terms = _by_parts(config, wholes, parts, curvature)
    else:
        terms = _by_level(config, wholes, curvature, level, slide_ids)
    if config.regression_weight > 0 and predicted is not None and gene_values is not None:
        # Local spots only: gradients are averaged over the ranks.
        terms["regression_loss"] = regression_loss(predicted, gene_values, gene_mask, across_ranks)
    loss = contrastive
    for name, term in terms.items():
        loss = loss + getattr(config, name.replace("_loss", "_weight")) * term
    return {"loss": loss, "contrastive_loss": contrastive, **terms}


def unpaired_objective(
    config: Any,
    halves: Pair,
    logit_scale: Tensor,
    curvature: Tensor,
    *,
    wholes: Tensor | None = None,
    level: Tensor | None = None,
    slide_ids: Tensor | None = None,
    negative_groups: Tensor | None = None,
    across_ranks: bool = False,
) -> dict[str, Tensor]:
    """Compute the loss of spots without an image, by their gene embeddings alone.

    ``contrastive(g(x, m b), g(x, m (1 - b))) + beta * intra-modal entailment(g(x, m))`` with x the expression of a spot, m the
    mask of measured genes and b a coin per gene. Without an image a spot can only be matched with itself. The halves share no
    gene and no count, and the noise of counts is independent, so only the state of the spot links them. (Neufeld et al., arXiv
    2207.00554, split counts for the same reason; SCARF, arXiv 2106.15147, uses parts of the input as views.)

    Args:
        config: A `DelstConfig`: geometry, form of entailment and its weight.
        halves: Gene embeddings of two complementary halves of the genes of each spot, each (batch, dim).
        logit_scale: The multiplier itself (0-d).
        curvature: ``c > 0`` (0-d).
        wholes: Gene embeddings of the whole spots (batch, dim), for the order by `level`; None leaves that term out.
        level: Hierarchy key (batch,), needed with `wholes`.
        slide_ids: Slide of each spot (batch,) int; ordered pairs stay within a slide.
        negative_groups: (batch,) int; spots of one group are not each other's negatives.
        across_ranks: Take negatives and ordered pairs from all processes; all must call it.

    Returns:
        ``loss``, ``unpaired_contrastive_loss`` and, with `wholes`, ``unpaired_entailment_loss`` (0-d tensors).

    >>> from types import SimpleNamespace
    >>> half = torch.nn.functional.normalize(torch.eye(3), dim=-1)
    >>> config = SimpleNamespace(geometry="cosine")
    >>> sorted(unpaired_objective(config, (half, half), torch.tensor(10.0), torch.tensor(1.0)))
    ['loss', 'unpaired_contrastive_loss']
    """
    contrastive = contrastive_loss(
        *halves, logit_scale, curvature, config.geometry, across_ranks=across_ranks, groups=negative_groups
    )
    if wholes is None or level is None:
        return {"loss": contrastive, "unpaired_contrastive_loss": contrastive}
    if across_ranks:
        wholes, level, slide_ids = gather(wholes), gather(level), _gathered(slide_ids)
    entailment = intra_entailment_loss(
        wholes,
        level,
        curvature,
        slide_ids,
        config.intra_parent,
        config.intra_min_level_ratio,
        config.intra_aperture_scale,
        **_options(config),
    )
    loss = contrastive + config.intra_entailment_weight * entailment
    return {"loss": loss, "unpaired_contrastive_loss": contrastive, "unpaired_entailment_loss": entailment}


def gather(x: Tensor) -> Tensor:
    """Join the rows of all ranks."""
    return gather_across_ranks(x)[0]


def _gathered(x: Tensor | None) -> Tensor | None:
    return None if x is None else gather(x)


def _both(pair: Pair, function: Callable[[Tensor], Tensor]) -> Pair:
    return function(pair[0]), function(pair[1])


def _options(config: Any) -> dict[str, Any]:
    return {"min_radius": config.min_radius, "form": config.entailment, "radius_floor": config.radius_floor}


def _cross(config: Any, pair: Pair, curvature: Tensor) -> Tensor:
    """Return the cross-modal entailment of paired embeddings."""
    parent, child = reversed(pair) if config.cross_parent == "gene" else pair
    return entailment_loss(parent, child, curvature, config.cross_aperture_scale, **_options(config))


def _by_parts(config: Any, wholes: Pair, parts: Pair, curvature: Tensor) -> dict[str, Tensor]:
    """Return cross-modal entailment, the mean of wholes and parts, and that of wholes by parts, the mean of modalities."""
    terms = {}
    if config.cross_entailment_weight > 0:
        terms["cross_entailment_loss"] = (_cross(config, wholes, curvature) + _cross(config, parts, curvature)) / 2
    if config.intra_entailment_weight > 0:
        image, gene = (
            entailment_loss(part, whole, curvature, config.intra_aperture_scale, **_options(config))
            for part, whole in zip(parts, wholes, strict=True)
        )
        terms["intra_entailment_loss"] = (image + gene) / 2
    return terms


def _by_level(
    config: Any, wholes: Pair, curvature: Tensor, level: Tensor | None, slide_ids: Tensor | None
) -> dict[str, Tensor]:
    """Return cross-modal entailment, and entailment within each modality by the order of `level`."""
    if config.intra_entailment_weight <= 0:
        return (
            {"cross_entailment_loss": _cross(config, wholes, curvature)} if config.cross_entailment_weight > 0 else {}
        )
    if level is None:
        raise ValueError(
            f"intra_entailment_weight={config.intra_entailment_weight} needs `level`, the number of expressed genes of "
            "each spot (batch,), which DelstProcessor returns. Pass it, or set the weight to 0."
        )
    cross, intra = joint_entailment_losses(
        *wholes,
        level,
        curvature,
        slide_ids,
        cross_parent=config.cross_parent,
        cross_aperture_scale=config.cross_aperture_scale,
        intra_parent=config.intra_parent,
        min_level_ratio=config.intra_min_level_ratio,
        intra_aperture_scale=config.intra_aperture_scale,
        **_options(config),
    )
    across = {"cross_entailment_loss": cross} if config.cross_entailment_weight > 0 else {}
    return {**across, "intra_entailment_loss": intra}
