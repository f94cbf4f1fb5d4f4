"""Test whether tissue or the slide decides which spots are alike, by PathoROB's robustness index as computed by croma.

PathoROB (arXiv 2507.17845) takes the k nearest neighbours of every patch by cosine. A neighbour of the same class from
another medical centre (SO) speaks for the model, one of another class from the same centre (OS) against it, and the others
do not count: ``index = sum SO / (sum SO + sum OS)``. Here the centre is the slide, or the patient.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..evidence import Spots
from ..findings import Findings
from ..neighbours import highest, query_blocks
from ..preparation import finite_matrix, missing_rows
from ..resampled import mean_statistic
from ..retrieval import as_inner_product
from ..uncertainty import Weighted
from . import Protocol

K_CANDIDATES = (5, 11, 21)
"""Numbers of neighbours, of which croma chooses the one whose vote predicts the classes best."""
# With more spots the index is computed on a random sample of this size: croma loops over neighbours one by one.
MAX_SPOTS = 5_000


def robustness_index(
    features: np.ndarray,
    labels: Sequence[str] | np.ndarray,
    centres: Sequence[str] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    k_candidates: Sequence[int] = K_CANDIDATES,
) -> tuple[dict[str, float], np.ndarray]:
    """Compute the robustness index of embeddings.

    Args:
        features: (spots, columns), of which only the directions matter.
        labels: (spots,) class of each spot.
        centres: (spots,) slide or patient of each spot, which should not matter.
        groups: (spots,) names of sets of near-copies, such as the spots of a slide, that are never each other's neighbours.
        k_candidates: Numbers of neighbours to choose from, each less than the number of spots.

    Returns:
        Scores, and the index of each spot (spots,), NaN where none of its neighbours counts. robustness_index is 1 where
        neighbours share the class and 0 where they share the centre; support is the share of spots with a neighbour that
        counts, neighbours is the k that was chosen, and robustness_chance is the index of randomly drawn neighbours.

    Raises:
        ValueError: If croma is not installed, no class occurs in two centres, or no centre holds two classes.

    Examples:
        >>> labels, centres = ["a", "a", "b", "b"], ["1", "2", "1", "2"]
        >>> features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])  # by class
        >>> robustness_index(features, labels, centres, range(4), [1])[0]["robustness_index"]  # doctest: +SKIP
        1.0
    """
    chance = robustness_chance(labels, centres, groups)
    values = finite_matrix(features, "features")
    try:
        from croma import RI
    except ImportError as error:
        raise ValueError(
            "the robustness index is computed by croma, which is not installed. Run `pip install 'delst-hf[croma]'`."
        ) from error
    numbers = [str(row) for row in range(len(values))]
    table = pd.DataFrame(
        {
            "sample_id": numbers,
            "image_path": numbers,
            "label": np.asarray(labels).astype(str),
            "centre": np.asarray(centres).astype(str),
            "group_id": np.asarray(groups).astype(str),
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of low support, which is among the scores
        found = RI.compute(values, table, confounder_column="centre", k_candidates=list(k_candidates))
    scores = {
        "robustness_index": found.value if found.support > 0 else float("nan"),
        "robustness_chance": chance,
        "support": found.support,
        "neighbours": float(found.k),
    }
    return scores, np.asarray(found.sample_values_aligned, dtype=float)


def robustness_chance(
    labels: Sequence[str] | np.ndarray, centres: Sequence[str] | np.ndarray, groups: Sequence[str] | np.ndarray
) -> float:
    """Return the index of uninformative embeddings: the share of SO pairs among all SO and OS pairs of spots.

    Raises:
        ValueError: If there are no SO pairs or no OS pairs.

    Examples:
        >>> robustness_chance(["a", "a", "b"], ["1", "2", "1"], ["x", "y", "z"])  # two SO and two OS among ordered pairs
        0.5
    """
    columns = {"label": labels, "centre": centres, "group": groups}
    table = pd.DataFrame({name: np.asarray(values).astype(str) for name, values in columns.items()})

    def pairs(*names: str) -> int:
        """Count the ordered pairs of spots, self-pairs included, that are equal in these columns."""
        return int((table.groupby(list(names)).size() ** 2).sum())

    same = pairs("label") - pairs("label", "centre")
    other = pairs("centre") - pairs("label", "centre") - pairs("centre", "group") + pairs("centre", "group", "label")
    if not same or not other:
        missing = "class occurs in two centres" if not same else "centre holds two classes outside of one group"
        raise ValueError(f"no {missing}, so class and centre cannot be told apart")
    return same / (same + other)


def run(findings: Findings) -> None:
    """Score every arm on labelled test spots, with the slide as the centre, and the patient where patients have two slides."""
    spots, rows = findings.spots, findings.test_rows
    rows = rows[~missing_rows(spots.labels[rows])]
    if len(np.unique(spots.slides[rows])) < 2:
        raise ValueError(
            f"two test slides with labels are needed, and there are {len(np.unique(spots.slides[rows]))} such slides"
        )
    reasons = []
    for variant, (centres, groups) in _centres(spots).items():
        try:
            _score(findings, variant, rows, centres, groups)
        except ValueError as error:
            reasons.append(str(error))
    if len(reasons) == 2:
        raise ValueError(reasons[0])


def _centres(spots: Spots) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return variant -> centre of each spot, and its group: a strip of its slide, or its slide."""
    strips = replace(spots, split="block").groups[0]
    within = np.array([f"{slide} {strip}" for slide, strip in zip(spots.slides, strips)])
    return {"": (spots.slides, within), "patient": (spots.patients, spots.slides)}


def _score(findings: Findings, variant: str, rows: np.ndarray, centres: np.ndarray, groups: np.ndarray) -> None:
    labels = findings.spots.labels.astype(str)
    shared = [label for label in np.unique(labels[rows]) if len(np.unique(centres[rows[labels[rows] == label]])) > 1]
    kept = rows[np.isin(labels[rows], shared)]
    if len(shared) < 2:
        raise ValueError(
            f"two labels that each occur on two slides are needed, and there are {len(shared)} such labels"
        )
    if len(kept) > MAX_SPOTS:
        kept = np.sort(np.random.default_rng(findings.seed).choice(kept, MAX_SPOTS, replace=False))
    candidates = [k for k in K_CANDIDATES if k < len(kept)]
    if not candidates:
        raise ValueError(
            f"{len(kept)} spots have a label that occurs on two slides; {K_CANDIDATES[0] + 1} or more are needed"
        )
    statistics: dict[str, Any] = {}
    for arm in findings.arms.values():
        facts = arm.features[kept], labels[kept], centres[kept], groups[kept]
        scores, by_spot = robustness_index(*facts, candidates)
        counting = counting_neighbours(*facts, int(scores["neighbours"]))
        statistics[arm.name] = _moved(by_spot, counting, scores["robustness_index"])
        findings.add(
            "robustness", arm.name, scores, {"robustness_index": statistics[arm.name]}, kept,
            variant=variant, num_spots=len(kept), labels=shared,
        )  # fmt: skip
    findings.compare("robustness", "robustness_index", statistics, kept, variant=variant)


def counting_neighbours(
    features: np.ndarray, labels: np.ndarray, centres: np.ndarray, groups: np.ndarray, neighbours: int
) -> np.ndarray:
    """Count for each spot (spots,) the nearest neighbours that are SO or OS; arguments as for `robustness_index`.

    croma returns the index of each spot and the pooled one, but not this weight of a spot in the latter.
    """
    label, centre, group = (np.unique(names, return_inverse=True)[1] for names in (labels, centres, groups))
    unit = as_inner_product(*(np.asarray(features, dtype=np.float64),) * 2, "cosine", None)[0]
    result = np.empty(len(unit))
    for rows in query_blocks(len(unit), len(unit)):
        similar = np.where(group[rows, None] == group, -np.inf, unit[rows] @ unit.T)
        near = highest(similar, neighbours)
        allowed = np.isfinite(np.take_along_axis(similar, near, axis=1))
        counts = (label[near] == label[rows, None]) != (centre[near] == centre[rows, None])
        result[rows] = (counts & allowed).sum(axis=1)
    return result


def _moved(by_spot: np.ndarray, counting: np.ndarray, value: float) -> Weighted:
    """Return the pooled index of resampled spots, shifted so that drawing every spot once gives croma's digits."""
    pooled = mean_statistic(by_spot, counting)
    shift = value - pooled(np.arange(len(by_spot)))
    return Weighted(len(by_spot), lambda weights: pooled.of(weights) + shift)


PROTOCOL = Protocol(
    name="robustness",
    run=run,
    title="Robustness: does tissue or the slide decide which spots are alike",
    headline="robustness_index",
    shown=("robustness_chance", "support", "neighbours"),
    chance={"robustness_index": "robustness_chance"},
    note="PathoROB's robustness index: among nearest neighbours that share either the label or the slide (not both), the share "
    "with the same label. 1: tissue alone decides; 0: the slide alone. Support is the share of spots with such a neighbour; "
    "an index with low support says little.",
    variants={"": "", "patient": "The patient in place of the slide; neighbours of the same slide are left out."},
)
