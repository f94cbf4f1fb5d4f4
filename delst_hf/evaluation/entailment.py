"""Score entailment as a ranking: whether a parent's own child fits its cone better than others do, and not the reverse.

The score of a pair is its excess, the exterior angle minus the half-aperture, as in the loss; low is a good fit.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..model.lorentz import exterior_angle, half_aperture, radius
from .neighbours import query_blocks
from .preparation import finite_matrix

DECILES = 10
_BLOCK = 2**18  # array elements computed at a time, which stay in cache
_EQUAL = 1e-12  # scores of equal points may differ in their last bits, as rounding depends on the position in the array


def entailment_rankings(
    parent_embeds: ArrayLike, child_embeds: ArrayLike, curvature: float, min_radius: float = 0.1, max_pairs: int = 2000
) -> dict[str, np.ndarray]:
    """Score each pair by four rankings, whose means over pairs are the diagnostics of the hierarchy.

    Args:
        parent_embeds: Space parts (pairs, dim).
        child_embeds: Space parts (pairs, dim).
        curvature: ``c > 0``.
        min_radius: ``K``.
        max_pairs: Maximum number of pairs to score, evenly spaced; the others are NaN.

    Returns:
        Arrays (pairs,):

        - ``entailment_auc``: the share of other children that fit the parent worse than its own. 0.5 is chance. 1 can be
          reached with narrow cones that hold nothing, and cones so wide that they hold everything give 0.5.
        - ``entailment_ap``: the average precision of that ranking, which for one right answer is one over its rank. Chance is
          about ``log(pairs) / pairs``.
        - ``entailment_asymmetry``: the AUC minus that with parent and child exchanged. Near 0 or below, the cones show no more
          than proximity.
        - ``entailment_auc_decile``: the share of other parents of the same decile of radius, whose cones are as wide, that fit
          the child worse than its own. 0.5 is chance.

        Ties count half.

    Raises:
        ValueError: If the numbers of parents and children differ, or are below 2.
    """
    parents, children = (
        torch.from_numpy(np.asarray(finite_matrix(embeds, name), dtype=np.float64))
        for embeds, name in ((parent_embeds, "parent_embeds"), (child_embeds, "child_embeds"))
    )
    pairs = len(parents)
    if pairs != len(children) or pairs < 2:
        raise ValueError(f"{pairs} parents and {len(children)} children; allowed are equal numbers, 2 or more.")
    scored = np.unique(np.linspace(0, pairs - 1, min(max_pairs, pairs)).astype(int))
    decile = _deciles(radius(parents, curvature).numpy())
    names = ("entailment_auc", "entailment_ap", "entailment_asymmetry", "entailment_auc_decile")
    result = {name: np.full(pairs, np.nan) for name in names}
    others = pairs - 1
    for block in query_blocks(len(scored), children.numel(), _BLOCK):
        rows = scored[block]
        worse, better = _compared(_excess(parents[rows, None], children, curvature, min_radius), rows)
        back, _ = _compared(_excess(children[rows, None], parents, curvature, min_radius), rows)
        result["entailment_auc"][rows] = worse / others
        result["entailment_ap"][rows] = 1 / (1 + better)
        result["entailment_asymmetry"][rows] = (worse - back) / others
    for number in np.unique(decile):
        peers = np.flatnonzero(decile == number)
        if len(peers) < 2:
            continue
        asked = np.intersect1d(peers, scored)
        for block in query_blocks(len(asked), parents[peers].numel(), _BLOCK):
            rows = asked[block]
            excess = _excess(parents[peers], children[rows, None], curvature, min_radius)
            worse, _ = _compared(excess, np.searchsorted(peers, rows))
            result["entailment_auc_decile"][rows] = worse / (len(peers) - 1)
    return result


def _excess(apices: torch.Tensor, candidates: torch.Tensor, curvature: float, min_radius: float) -> np.ndarray:
    """Return how far, in radians, candidates (..., dim) lie outside the cones of apices (..., dim)."""
    excess = exterior_angle(apices, candidates, curvature) - half_aperture(apices, curvature, min_radius)
    return excess.numpy()


def _compared(excess: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count per row of (rows, candidates) those that fit worse and better than the one at `own`; ties add half to both."""
    score = np.take_along_axis(excess, own[:, None], axis=1)
    worse, better = (excess > score + _EQUAL).sum(axis=1), (excess < score - _EQUAL).sum(axis=1)
    ties = 0.5 * (excess.shape[1] - 1 - worse - better)
    return worse + ties, better + ties


def _deciles(values: np.ndarray) -> np.ndarray:
    """Return the decile of each value (values,) by rank; few values form fewer groups, so that each has ten members."""
    groups = max(min(DECILES, len(values) // DECILES), 1)
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ranks * groups // len(values)
