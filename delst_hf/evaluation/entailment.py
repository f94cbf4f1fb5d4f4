"""Entailment as a ranking: whether a parent's own child fits its cone better than others do, and only in that direction.

The score of a pair is its excess, the exterior angle minus the half-aperture, as in the loss: low fits.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..model.lorentz import exterior_angle, half_aperture, radius
from .preparation import finite_matrix

DECILES = 10
_EQUAL = 1e-12  # equal points may differ in their last bits, as rounding depends on the place in the array


def entailment_auc(
    parent_embeds: ArrayLike, child_embeds: ArrayLike, curvature: float, min_radius: float = 0.1, max_pairs: int = 2000
) -> float:
    """Score entailment as a ranking: how often a parent's own child fits its cone better than another spot's child.

    The score of a pair is the exterior angle minus the half-aperture, as in the loss, so 1 can be reached with narrow cones
    that hold nothing, and cones so wide that they hold everything give 0.5.

    Args:
        parent_embeds: Space parts (pairs, dim).
        child_embeds: Space parts (pairs, dim).
        curvature: ``c > 0``.
        min_radius: ``K``.
        max_pairs: Compare so many evenly spaced parents with all children; the result is their mean.

    Returns:
        AUC in [0, 1]: 1 is perfect, 0.5 is chance. Ties count half.

    Raises:
        ValueError: If there are not as many parents as children, and two at least.
    """
    return float(
        np.nanmean(entailment_rankings(parent_embeds, child_embeds, curvature, min_radius, max_pairs)["entailment_auc"])
    )


def entailment_rankings(
    parent_embeds: ArrayLike, child_embeds: ArrayLike, curvature: float, min_radius: float = 0.1, max_pairs: int = 2000
) -> dict[str, np.ndarray]:
    """Score each pair by four rankings, whose means over pairs are the diagnostics of the hierarchy.

    Args:
        parent_embeds: Space parts (pairs, dim).
        child_embeds: Space parts (pairs, dim).
        curvature: ``c > 0``.
        min_radius: ``K``.
        max_pairs: Score so many evenly spaced pairs; the others are NaN.

    Returns:
        Arrays (pairs,):

        - ``entailment_auc``: the share of other children that fit the parent worse than its own. 0.5 is chance.
        - ``entailment_ap``: the average precision of that ranking, which for one right answer is one over its rank. Chance is
          about ``log(pairs) / pairs``.
        - ``entailment_asymmetry``: the AUC less that of parent and child exchanged. Near 0 or below, the cones say no more than
          nearness.
        - ``entailment_auc_decile``: the share of other parents of the same decile of radius, whose cones are as wide, that fit
          the child worse than its own. 0.5 is chance.

        Ties count half.

    Raises:
        ValueError: If there are not as many parents as children, and two at least.
    """
    parents, children = (
        torch.from_numpy(np.asarray(finite_matrix(embeds, name), dtype=np.float64))
        for embeds, name in ((parent_embeds, "parent_embeds"), (child_embeds, "child_embeds"))
    )
    pairs = len(parents)
    if pairs != len(children) or pairs < 2:
        raise ValueError(f"{pairs} parents and {len(children)} children; allowed are as many of both, 2 or more.")
    scored = np.unique(np.linspace(0, pairs - 1, min(max_pairs, pairs)).astype(int))
    decile = _deciles(radius(parents, curvature).numpy())
    names = ("entailment_auc", "entailment_ap", "entailment_asymmetry", "entailment_auc_decile")
    result = {name: np.full(pairs, np.nan) for name in names}
    for row in scored:
        worse, better = _compared(_excess(parents[row], children, curvature, min_radius), row)
        back, _ = _compared(_excess(children[row], parents, curvature, min_radius), row)
        result["entailment_auc"][row] = worse / (pairs - 1)
        result["entailment_ap"][row] = 1 / (1 + better)
        result["entailment_asymmetry"][row] = (worse - back) / (pairs - 1)
        peers = np.flatnonzero(decile == decile[row])
        if len(peers) > 1:
            child = children[row].expand(len(peers), -1)
            excess = exterior_angle(parents[peers], child, curvature) - half_aperture(
                parents[peers], curvature, min_radius
            )
            place = int(np.flatnonzero(peers == row)[0])
            result["entailment_auc_decile"][row] = _compared(excess.numpy(), place)[0] / (len(peers) - 1)
    return result


def _excess(apex: torch.Tensor, candidates: torch.Tensor, curvature: float, min_radius: float) -> np.ndarray:
    """Tell how far, in radians, each candidate lies outside the cone of one apex: (candidates,)."""
    apex = apex.expand_as(candidates)
    return (exterior_angle(apex, candidates, curvature) - half_aperture(apex, curvature, min_radius)).numpy()


def _compared(excess: np.ndarray, own: int) -> tuple[float, float]:
    """Tell how many others fit worse and how many better than the one at `own`; ties count half to both."""
    others = np.delete(excess, own)
    ties = 0.5 * (np.abs(others - excess[own]) <= _EQUAL).sum()
    return float((others > excess[own] + _EQUAL).sum() + ties), float((others < excess[own] - _EQUAL).sum() + ties)


def _deciles(values: np.ndarray) -> np.ndarray:
    """Return the decile of each value (values,) by rank; of few values, fewer groups, so that each has ten members."""
    groups = max(min(DECILES, len(values) // DECILES), 1)
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ranks * groups // len(values)
