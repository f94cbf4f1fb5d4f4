"""Ridge and linear probe fitted on the training slides and scored on each test slide, for every arm beside its baselines."""

from collections.abc import Sequence

import numpy as np

from ..baselines import permutation_within
from ..evidence import Arm, Spots
from ..expression import expression_prediction, most_variable_genes
from ..findings import Findings
from ..linear_probe import linear_probe
from ..preparation import missing_rows
from . import Protocol

LEAST_SPOTS = 20  # to fit on: fewer leave nothing to choose a penalty by
_PROBE = ("macro_f1_mean", "macro_f1_sd", "majority_macro_f1", "num_unseen_classes")


def run(findings: Findings) -> None:
    """Score every arm on every test slide; means over the repeats of an arm, with their standard deviation.

    The most variable genes are chosen on the spots that fit. Each test slide is predicted from the spots that are not scored;
    where all are scored, from those of other groups.
    """
    spots = findings.spots
    number = min(findings.evaluation.num_genes, len(spots.genes))
    genes = most_variable_genes(findings.log_expression[spots.reference], number)
    targets = findings.log_expression[:, genes].toarray()
    findings.facts["arms"] = {"genes": [spots.genes[i] for i in genes]}
    seeds = findings.evaluation.seeds
    for arm in findings.arms.values():
        _score(findings, arm, targets, seeds if arm.control else None)
    if not any(row["protocol"] == "arms" for row in findings.rows):
        raise ValueError(
            f"no test slide leaves {LEAST_SPOTS} spots of other groups to fit on, nor labels of two classes"
        )


def _score(findings: Findings, arm: Arm, targets: np.ndarray, shuffle_seeds: Sequence[int] | None) -> None:
    """Add one row per test slide. With `shuffle_seeds` the targets of the spots that fit are shuffled within their slide."""
    spots = findings.spots
    for slide in dict.fromkeys(spots.slides[spots.test].tolist()):
        test = spots.test & (spots.slides == slide)
        if shuffle_seeds is None:
            scores = [_metrics(spots, features, targets, test, None) for features in arm.repeats]
        else:
            scores = [_metrics(spots, arm.features, targets, test, seed) for seed in shuffle_seeds]
        metrics: dict[str, float] = {}
        for key in scores[0]:
            values = [score[key] for score in scores]
            metrics[key] = float(np.mean(values))
            if len(values) > 1:
                metrics[f"{key}_sd"] = float(np.std(values, ddof=1))
        if metrics:
            findings.add("arms", arm.name, metrics, slide=str(slide), num_spots=int(test.sum()))


def _metrics(
    spots: Spots, features: np.ndarray, targets: np.ndarray, test: np.ndarray, shuffle_seed: int | None
) -> dict[str, float]:
    names = spots.groups[0]
    train = ~spots.test if not spots.test.all() else ~np.isin(names, names[test])
    groups = spots.slides[train]
    fitted, labels = targets[train], spots.labels[train]
    if shuffle_seed is not None:
        order = permutation_within(groups, shuffle_seed)
        fitted, labels = fitted[order], labels[order]
    metrics: dict[str, float] = {}
    if train.sum() >= LEAST_SPOTS and np.ptp(targets[test], axis=0).any():
        ridge = expression_prediction(features[train], fitted, features[test], targets[test], groups)
        metrics = {"pearson_mean": ridge["pearson_mean"], "ridge_alpha": ridge["alpha"]}
    if _enough_labels(labels, groups) and not missing_rows(spots.labels[test]).all():
        probe = linear_probe(features[train], labels, features[test], spots.labels[test], groups)
        metrics |= {f"probe_{key}": probe[key] for key in _PROBE}
    return metrics


def _enough_labels(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Whether a probe can be fitted and its penalty chosen: two classes, also when any one slide is left out."""
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
    shown=("probe_majority_macro_f1",),
    chance={"pearson_mean": 0.0, "probe_macro_f1_mean": "probe_majority_macro_f1"},
    note="Mean gene-wise Pearson of a ridge from frozen features, and macro-F1 of a linear probe on labels, both fitted on the "
    "training slides, or on other groups where there are none. ± is the standard deviation over random networks, shuffles, or "
    "seeds of the probe.",
    cost=4.0,
)
