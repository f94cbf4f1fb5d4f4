"""The objective of `DelstModel`: which terms of `losses.py` a configuration asks for, and their weighted sum."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .distributed import gather_across_ranks
from .losses import contrastive_loss, entailment_loss, joint_entailment_losses, part_contrastive_loss, regression_loss

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
    predicted: Tensor | None = None,
    gene_values: Tensor | None = None,
    gene_mask: Tensor | None = None,
    across_ranks: bool = False,
) -> dict[str, Tensor]:
    """Compute every term that has a weight and, first, their weighted sum.

    With `parts` the loss is that of nested views: parts are contrasted with the wholes of the other modality and entail the
    wholes of their own, in place of the order by `level`.

    Args:
        config: A `DelstConfig`: geometry, forms and weights.
        wholes: Image and gene embeddings, each (batch, dim).
        logit_scale: The multiplier itself (0-d).
        curvature: ``c > 0`` (0-d).
        level: Hierarchy key (batch,), needed by the intra-modal loss without `parts`.
        slide_ids: Slide of each spot (batch,) int; None takes the batch for one slide.
        negative_groups: (batch,) int; spots of one group are not each other's negatives.
        parts: Image and gene embeddings of a part of each spot, each (batch, dim).
        predicted: Expression predicted from the image embeddings (batch, genes), with a ``regression_weight``.
        gene_values: Normalised expression (batch, genes).
        gene_mask: (batch, genes) bool, True where measured.
        across_ranks: Take negatives and ordered pairs from all processes; all must call it.

    Returns:
        ``loss``, ``contrastive_loss`` and the other terms whose weight is above 0 (0-d tensors).

    Raises:
        ValueError: If the intra-modal loss is asked for without `level`.
    """
    contrastive = contrastive_loss(
        *wholes, logit_scale, curvature, config.geometry, across_ranks=across_ranks, groups=negative_groups
    )
    if across_ranks and (config.geometry == "lorentz" or parts is not None):
        level, slide_ids, negative_groups = (_gathered(x) for x in (level, slide_ids, negative_groups))
        wholes, parts = _both(wholes, gather), None if parts is None else _both(parts, gather)
    if parts is not None:
        of_parts = part_contrastive_loss(
            wholes, parts, logit_scale, curvature, config.geometry, config.entailment == "uncha", negative_groups
        )
        contrastive = (contrastive + of_parts) / 2
    terms = (
        _by_parts(config, wholes, parts, curvature) if parts else _by_level(config, wholes, curvature, level, slide_ids)
    )
    if config.regression_weight > 0 and predicted is not None and gene_values is not None:
        # Of local spots alone: the gradients of the ranks are averaged.
        terms["regression_loss"] = regression_loss(predicted, gene_values, gene_mask)
    loss = contrastive
    for name, term in terms.items():
        loss = loss + getattr(config, name.replace("_loss", "_weight")) * term
    return {"loss": loss, "contrastive_loss": contrastive, **terms}


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
    """Cross-modal entailment of paired embeddings."""
    parent, child = reversed(pair) if config.cross_parent == "gene" else pair
    return entailment_loss(parent, child, curvature, config.cross_aperture_scale, **_options(config))


def _by_parts(config: Any, wholes: Pair, parts: Pair, curvature: Tensor) -> dict[str, Tensor]:
    """Entailment across modalities of wholes and of parts, and of wholes by their parts, each the mean of two."""
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
    """Entailment across modalities, and within each by the order of `level`."""
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


__all__ = ["objective"]
