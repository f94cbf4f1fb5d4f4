"""Ridge and linear probe fitted on the training slides and scored on each test slide, for every arm beside its baselines."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..baselines import permutation_within
from ..evidence import Arm, Spots
from ..expression import RidgePrediction, RidgeReadout, best_floor, gene_pearson
from ..findings import Findings
from ..linear_probe import fit_probe
from ..predicted_genes import most_variable_genes
from ..preparation import SCALE_FLOOR, SCALE_FLOORS, missing_rows
from . import Protocol

LEAST_SPOTS = 20  # to fit on: with fewer no penalty can be chosen
_PROBE = ("macro_f1_mean", "macro_f1_sd", "majority_macro_f1", "shuffled_macro_f1", "num_unseen_classes")


def run(findings: Findings) -> None:
    """Score every arm on every test slide; report mean and standard deviation over the repeats of an arm.

    The most variable genes are chosen on the spots that are not scored, and each test slide is predicted from these spots.
    Where all spots are scored, genes are chosen on all of them, and each slide is predicted from the other groups.
    """
    spots = findings.spots
    number = min(findings.evaluation.num_genes, len(spots.genes))
    genes = most_variable_genes(findings.log_expression, number, spots.reference)
    targets = findings.log_expression[:, genes].toarray()
    findings.facts["arms"] = {"genes": [spots.genes[i] for i in genes]}
    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    for train, test in _folds(spots):
        for arm in findings.arms.values():
            if not arm.control:
                _score(findings, arm, targets, train, test, scores)
    for arm in findings.arms.values():
        for slide in dict.fromkeys(spots.slides[spots.test].tolist()):
            metrics = _summary(scores.get((arm.name, slide), []))
            if metrics:
                number = int((spots.test & (spots.slides == slide)).sum())
                findings.add("arms", arm.name, metrics, slide=str(slide), num_spots=number)
    if not scores:
        raise ValueError(
            f"no test slide leaves {LEAST_SPOTS} spots of other groups to fit a ridge on, or labels of two classes for a probe"
        )


def _folds(spots: Spots) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of masks (spots,): the spots to fit on, and the spots of one or several slides to score with that fit."""
    if not spots.test.all():
        return [(~spots.test, spots.test)]
    names = spots.groups[0]
    slides_of: dict[tuple[str, ...], list[str]] = {}
    for slide in dict.fromkeys(spots.slides.tolist()):
        slides_of.setdefault(tuple(np.unique(names[spots.slides == slide])), []).append(slide)
    return [(~np.isin(names, groups), np.isin(spots.slides, slides)) for groups, slides in slides_of.items()]


def _score(
    findings: Findings,
    arm: Arm,
    targets: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    scores: dict[tuple[str, str], list[dict[str, float]]],
) -> None:
    """Score every repeat of an arm; for the first own arm also its control, targets and labels shuffled within slides."""
    spots, groups = findings.spots, findings.spots.slides[train]
    control = next((each.name for each in findings.arms.values() if each.control), None)
    for features in arm.repeats:
        runs: list[tuple[str, np.ndarray]] = [(arm.name, np.arange(int(train.sum())))]
        if control is not None and arm.name == findings.own[0]:
            runs += [(control, permutation_within(groups, seed)) for seed in findings.evaluation.seeds]
        readouts = []
        if train.sum() >= LEAST_SPOTS:
            parts = features[train], features[test], groups
            readouts = [RidgeReadout(*parts, floor) for floor in SCALE_FLOORS]
        for name, order in runs:
            ridges = [readout.predict(targets[train][order]) for readout in readouts]
            labels = spots.labels[train][order]
            probe = (
                fit_probe(features[train], labels, features[test], groups) if _enough_labels(labels, groups) else None
            )
            for slide in dict.fromkeys(spots.slides[test].tolist()):
                here = spots.slides[test] == slide
                metrics = _ridge_metrics(ridges, targets[test], here)
                if probe is not None and not missing_rows(spots.labels[test][here]).all():
                    of_slide = probe.score(spots.labels[test], here)
                    metrics |= {f"probe_{key}": of_slide[key] for key in _PROBE}
                if metrics:
                    scores.setdefault((name, slide), []).append(metrics)


def _ridge_metrics(ridges: Sequence[RidgePrediction], measured: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Return the mean Pearson over the genes that vary on `rows`, with the floor that was best in training and with each."""
    if not ridges or not np.ptp(measured[rows], axis=0).any():
        return {}
    means = {ridge.floor: float(np.nanmean(gene_pearson(ridge.predicted[rows], measured[rows]))) for ridge in ridges}
    best = best_floor(ridges)
    metrics = {"pearson_mean": means[best.floor], "ridge_alpha": best.alpha, "ridge_floor": best.floor}
    return metrics | {"pearson_plain": means[0.0], "pearson_floored": means[SCALE_FLOOR]}


def _summary(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return means over repeats and, where there are several repeats, standard deviations."""
    repeats = pd.DataFrame(scores)
    metrics: dict[Any, float] = repeats.mean(skipna=False).to_dict()
    if len(repeats) > 1:
        metrics |= repeats.std(skipna=False).add_suffix("_sd").to_dict()
    return metrics


def _enough_labels(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Tell whether a probe can be fitted and its penalty chosen: two classes, and still two when some slide is left out."""
    known = ~missing_rows(labels)
    if len(set(labels[known])) < 2:
        return False
    names = np.unique(groups[known])
    if len(names) == 1:
        return int(known.sum()) >= LEAST_SPOTS
    return any(len(set(labels[known & (groups != name)])) > 1 for name in names)


PROTOCOL = Protocol(
    name="arms",
    run=run,
    title="Arms and their baselines, slide by slide",
    headline="pearson_mean",
    also=("probe_macro_f1_mean",),
    shown=("pearson_plain", "pearson_floored", "probe_majority_macro_f1", "probe_shuffled_macro_f1"),
    chance={"pearson_mean": 0.0, "probe_macro_f1_mean": "probe_shuffled_macro_f1"},
    note="Mean gene-wise Pearson of a ridge regression on frozen features, and macro-F1 of a linear probe for labels. Both are "
    "fitted on the training slides or, without training slides, on the other groups. Training slides also decide whether the "
    "scales of features get a floor: plain is without it, floored with it. Majority is always answering the commonest label; "
    "shuffled, which is chance, are the probe's own answers on shuffled spots. ± is the standard deviation over random "
    "networks, shuffles or probe seeds.",
    cost=4.0,
)
