"""Compare two results on the same data, paired spot by spot."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .findings import MIN_SLIDES
from .resampled import f1_statistic, mean_statistic, pearson_statistic
from .suite import protocol
from .uncertainty import Bootstrap, Statistic


def compare_results(
    first: Mapping[str, Any], second: Mapping[str, Any], resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare two models that were evaluated on the same spots and folds, spot by spot.

    Args:
        first: Record with per-spot values.
        second: Another record, of the same data.
        resamples: Number of bootstrap resamples, over slides or over spots within slides as in the intervals of the first.
        seed: Seed of the resamples.

    Returns:
        One row per quantity that both have: macro_f1 of each probe and arm, recall@10 and mean rank in both directions, Pearson
        of HEST. A positive difference means that the first is higher (for ranks: worse).

    Raises:
        ValueError: If the data differ, or per-spot values are missing.

    Examples:
        >>> from delst_hf.evaluation.results import read_results
        >>> record = read_results("runs/toy/results.json")
        >>> rows = compare_results(record, record, resamples=20)
        >>> {row["difference"] for row in rows}
        {0.0}
    """
    fingerprints = [record.get("data_fingerprint") for record in (first, second)]
    if fingerprints[0] != fingerprints[1] or first["test_slides"] != second["test_slides"]:
        raise ValueError(
            f"the results are of different data: fingerprints {fingerprints}, test slides {first['test_slides']} and "
            f"{second['test_slides']}. Evaluate both models on the same dataset and slides."
        )
    if "spots" not in first or "spots" not in second:
        raise ValueError("results without per-spot values cannot be paired. Run `delst evaluate` with this version.")
    rows = []
    for name, metric, kept, statistics in _common(first, second):
        slides = np.array(first["spots"]["slide"])[kept]
        unit = first.get("interval_unit", "spots") if len(set(slides)) >= MIN_SLIDES else "spots"
        bootstrap = Bootstrap(int(kept.sum()), slides, unit, resamples=resamples, seed=seed)
        difference = bootstrap.difference(statistics[0], statistics[1])
        rows.append({"quantity": name, "metric": metric, **difference})
    return rows


def _common(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, str, np.ndarray, tuple[Statistic, ...]]]:
    """Yield what both results hold per spot: name, metric, mask of spots, and the metric of each as a function of rows."""
    ours, theirs = first["spots"], second["spots"]
    for name, other in _same_quantities(first, second):
        kept = np.array([a is not None and b is not None for a, b in zip(ours[name], theirs[other])])
        if not kept.any():
            continue
        left, right = (np.array(values, dtype=object)[kept] for values in (ours[name], theirs[other]))
        if name.startswith("predicted:"):
            truth = np.array(ours["label"], dtype=object)[kept].astype(str)
            yield name, "macro_f1", kept, tuple(f1_statistic(truth, side.astype(str)) for side in (left, right))
        else:
            ranks = [side.astype(float) for side in (left, right)]
            found = [_recall(spots, name, kept, rank) for spots, rank in zip((ours, theirs), ranks)]
            yield name, "recall@10", kept, tuple(mean_statistic(recall) for recall in found)
            yield name, "mean_rank", kept, tuple(mean_statistic(rank) for rank in ranks)
    sides = [record.get("expression") or {} for record in (first, second)]
    if all(sides) and sides[0]["genes"] == sides[1]["genes"] and sides[0]["groups"] == sides[1]["groups"]:
        measured, groups = np.array(sides[0]["measured"]), np.array(sides[0]["groups"])
        pair = tuple(pearson_statistic(np.array(side["predicted"], dtype=float), measured, groups) for side in sides)
        name = f"{protocol(sides[0]['protocol']).title_of(sides[0]['variant'])}:{sides[0]['arm']}"
        yield name, "pearson_mean", np.ones(len(measured), dtype=bool), pair


def _recall(spots: Mapping[str, Any], name: str, kept: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return recall@10 of the spots `kept`: as it was stored, where spots tie, else by their rank."""
    stored = spots.get(name.replace("rank:", "recall@10:"))
    return (rank <= 10).astype(float) if stored is None else np.array(stored, dtype=float)[kept]


def _same_quantities(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return pairs of names of per-spot values with the same meaning; the own arms of both correspond in order."""
    same = dict(zip(first["own_arms"], second["own_arms"]))
    pairs = []
    for name in first["spots"]:
        if name.startswith("rank:"):
            pairs.append((name, name))
        elif name.startswith("predicted:"):
            kind, probe, arm = name.split(":", 2)
            pairs.append((name, f"{kind}:{probe}:{same.get(arm, arm)}"))
    return [(name, other) for name, other in pairs if other in second["spots"]]
