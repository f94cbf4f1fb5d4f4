"""Read and write the results files of hierarchy_study.py, and compute the statistics of its tables.

Differences are paired by seed and section. Their intervals are over seeds and sections, both taken as random: the variance of
the mean of a table (sections, seeds) is estimated by the mean squares of its two margins minus the residual mean square, and
the interval is Student's with Satterthwaite's degrees of freedom. P-values are corrected over a table's arms by Holm.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

# (arm, metric) -> {(split, slide): {seed: value}}
Values = dict[tuple[str, str], dict[tuple[str, str], dict[int, float]]]


def unpack(packed: dict[str, Any]) -> dict[str, Any]:
    """Return units with their scores by name, from a results file that holds names once and values in their order."""
    names = packed["metrics"]
    units = {
        key: {
            **unit,
            "scores": {
                slide: {name: value for name, value in zip(names, values, strict=False) if value is not None}
                for slide, values in unit["scores"].items()
            },
        }
        for key, unit in packed["units"].items()
    }
    return {**packed, "units": units}


def pack(results: dict[str, Any]) -> dict[str, Any]:
    """Reverse `unpack`; values that are not finite are left out."""
    every = (scores for unit in results["units"].values() for scores in unit["scores"].values())
    names = list(dict.fromkeys(name for scores in every for name in scores))
    units = {
        key: {
            **unit,
            "scores": {
                slide: [scores[name] if math.isfinite(scores.get(name, math.nan)) else None for name in names]
                for slide, scores in unit["scores"].items()
            },
        }
        for key, unit in results["units"].items()
    }
    return {**results, "metrics": names, "units": units}


def load(path: str | Path) -> dict[str, Any]:
    """Read a results file."""
    return unpack(json.loads(Path(path).read_text(encoding="utf-8")))


def read(paths: Sequence[str], splits: Sequence[str]) -> Values:
    """Return the values of the units of these splits."""
    values: Values = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        for key, unit in load(path)["units"].items():
            split, arm, seed = key.split("|")
            if split not in splits:
                continue
            for slide, scores in unit["scores"].items():
                for metric, value in scores.items():
                    if math.isfinite(value):
                        values[arm, metric][split, slide][int(seed)] = value
    return values


def paired(first: dict, second: dict | None = None) -> np.ndarray:
    """Return a table (sections, seeds) of values, or of differences, for the sections and seeds that are complete."""
    sections = [section for section in first if second is None or section in second]
    seeds = [
        set(first[section]) & (set(second[section]) if second is not None else set(first[section]))
        for section in sections
    ]
    common = sorted(set.intersection(*seeds)) if seeds else []
    return np.array(
        [[first[s][seed] - (second[s][seed] if second is not None else 0.0) for seed in common] for s in sections]
    ).reshape(len(sections), len(common))


def crossed_interval(table: np.ndarray, level: float = 0.95) -> tuple[float, float, float, float]:
    """Return the mean of a table (sections, seeds), its interval, and the p-value of a mean of 0.

    With sections and seeds both random, ``var(mean) = (MS_sections + MS_seeds - MS_rest) / (sections * seeds)``, or the larger
    of the two shares if it is below either; degrees of freedom are Satterthwaite's. With one section or one seed
    only the other margin varies, and the interval says nothing about the one that does not. NaN where neither varies.
    """
    rows, columns = table.shape
    mean = float(table.mean()) if table.size else math.nan
    if table.size < 2:
        return mean, math.nan, math.nan, math.nan
    by_section, by_seed = table.mean(axis=1), table.mean(axis=0)
    shares, freedom = [], []
    if rows > 1:
        shares.append(columns * ((by_section - mean) ** 2).sum() / (rows - 1))
        freedom.append(rows - 1)
    if columns > 1:
        shares.append(rows * ((by_seed - mean) ** 2).sum() / (columns - 1))
        freedom.append(columns - 1)
    variance, spread = sum(shares), sum(share**2 / df for share, df in zip(shares, freedom, strict=True))
    if len(shares) == 2:
        rest = ((table - by_section[:, None] - by_seed + mean) ** 2).sum() / ((rows - 1) * (columns - 1))
        variance, spread = max(variance - rest, *shares), spread + rest**2 / ((rows - 1) * (columns - 1))
    error = math.sqrt(variance / table.size)
    if error == 0:
        return mean, mean, mean, 1.0 if mean == 0 else 0.0
    degrees = max(variance**2 / spread, min(freedom))
    reach = float(student.ppf(0.5 + level / 2, degrees)) * error
    return mean, mean - reach, mean + reach, float(2 * student.sf(abs(mean) / error, degrees))


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down; NaN does not count.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    corrected, highest = [math.nan] * len(values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * values[index]))
        corrected[index] = highest
    return corrected


def best_rates(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the learning rates with the highest mean Pearson on validation slides, by geometry."""
    found: dict[str, dict[tuple[float, float], list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, unit in results["units"].items():
        geometry, head, vision = key.split("|")[1].split(" ")
        for scores in unit["scores"].values():
            found[geometry][float(head), float(vision)].append(scores["pearson:embedding"])
    best = {name: max(rates, key=lambda pair: float(np.mean(rates[pair]))) for name, rates in found.items()}
    return {name: {"learning_rate": pair[0], "vision_learning_rate": pair[1]} for name, pair in best.items()}
