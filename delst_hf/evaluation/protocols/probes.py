"""Tissue labels predicted from features by three probes, on folds that never split a slide or a patient.

linear      the classifier of STimage-1K4M on standardised features (see linear_probe)
knn         majority of the k nearest training spots, in the geometry of the embedding
prototype   one point per class on the hyperboloid, and the nearest one wins: what the geometry separates without a new layer
"""

from collections.abc import Sequence
from typing import Any

import geoopt
import numpy as np
import torch
from numpy.typing import ArrayLike

from ...model.lorentz import exp_map0, log_map0, pairwise_distance
from ..findings import Findings
from ..linear_probe import (
    checked_grid,
    choose_alpha,
    labelled_rows,
    macro_f1,
    macro_recall,
    majority,
    probe_predictions,
    shuffled_macro_f1,
)
from ..neighbours import most_similar
from ..preparation import group_names, missing_rows
from ..resampled import f1_statistic, recall_statistic
from ..retrieval import GEOMETRIES, as_inner_product
from ..uncertainty import Statistic
from . import Protocol
from .stimage1k4m import stimage1k4m_probe

PROBES = ("linear", "knn", "prototype")
SPLITS = ("slide", "patient", "block")
PROTOCOLS = ("grouped", "stimage1k4m")


def label_probe(
    features: ArrayLike,
    labels: Sequence[str | None] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    protocol: str = "grouped",
    split: str = "slide",
    probe: str = "linear",
    geometry: str = "euclidean",
    curvature: float | None = None,
    k: int = 20,
    seed: int = 0,
    alphas: Sequence[float] = (1.0, 0.01, 0.0001),
    test: np.ndarray | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """Predict every spot's label from spots of other slides or patients, and score the predictions.

    Args:
        features: (spots, columns); space parts for geometry "lorentz".
        labels: (spots,) strings, None where nobody labelled the spot.
        groups: (spots,) the slide or the patient of each spot, as `split` says; needed by "grouped".
        protocol: "grouped", leave one group out; or "stimage1k4m" (see `stimage1k4m_probe`), which ignores all other options.
        split: What a group is, for error messages: "slide", "patient" or "block" (a part of a slide).
        probe: "linear", "knn" or "prototype".
        geometry: Distances of "knn": "euclidean", "cosine" or "lorentz".
        curvature: Positive c, for "lorentz" and for "prototype".
        k: Number of neighbours of "knn".
        seed: Seed of the linear probe's classifier.
        alphas: Penalties of the linear probe to choose from by leaving one training group out; a single one is used as it is.
        test: (spots,) bool, the spots to score, such as those of slides that the model has not seen; None for all. Groups
            without such spots are only trained on.

    Returns:
        Scores and predictions. Scores: macro_f1 over all spots that could be predicted, pooled over the folds (1 is
        perfect), balanced_accuracy, majority_macro_f1 (always the commonest training class), shuffled_macro_f1 (these
        predictions shuffled within each group: chance), macro_f1_fold_mean and macro_f1_fold_sd over the folds, num_folds,
        num_spots, num_classes. Predictions (spots,): a label, or None where the spot has no label or is in no fold; for
        "stimage1k4m" always None.

    Raises:
        ValueError: If an option is not one of those allowed, or no fold can be fitted.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(60, 4))
        >>> labels = np.where(x[:, 0] > 0, "tumour", "stroma")
        >>> scores, predicted = label_probe(x, labels, ["a"] * 30 + ["b"] * 30, probe="knn", k=5)
        >>> scores["macro_f1"] > 0.7, predicted.shape
        (True, (60,))
    """
    for name, value, allowed in (("protocol", protocol, PROTOCOLS), ("split", split, SPLITS), ("probe", probe, PROBES)):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}. Choose one of them.")
    if protocol == "stimage1k4m":
        return stimage1k4m_probe(features, labels), np.full(len(labels), None, dtype=object)
    rows, truth, kept = labelled_rows(features, labels, "all")
    scored = np.ones(len(truth), dtype=bool) if test is None else np.asarray(test, dtype=bool)[kept]
    if groups is None:
        raise ValueError(f"groups is None; split={split!r} needs the {split} of every spot. Pass one name per spot.")
    names = group_names(groups, len(kept), "groups")[kept]
    grid = checked_grid(alphas, [seed])[0]

    def predict(fit: np.ndarray, held: np.ndarray) -> np.ndarray:
        parts = rows[fit], truth[fit], rows[held]
        if probe == "linear":
            alpha, _ = choose_alpha(rows[fit], truth[fit], names[fit], grid, [seed])
            return probe_predictions(*parts, alpha, [seed])[0]
        if probe == "knn":
            return knn_predictions(*parts, k, geometry, curvature)
        return prototype_predictions(*parts, _positive(curvature))

    predicted, common = np.full((2, len(truth)), None, dtype=object)
    scores = []
    for fit, held in _folds(names, truth, scored, split):
        predicted[held], common[held] = predict(fit, held), majority(truth[fit])
        scores.append(macro_f1(truth[held], predicted[held].astype(str)))
    everyone = np.full(len(kept), None, dtype=object)
    everyone[np.flatnonzero(kept)] = predicted
    done = predicted != None  # noqa: E711, elementwise
    truth, answer = truth[done], predicted[done].astype(str)
    return {
        "macro_f1": macro_f1(truth, answer),
        "balanced_accuracy": macro_recall(truth, answer),
        "majority_macro_f1": macro_f1(truth, common[done].astype(str)),
        "shuffled_macro_f1": shuffled_macro_f1(truth, answer, names[done]),
        "macro_f1_fold_mean": float(np.mean(scores)),
        "macro_f1_fold_sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        "num_folds": float(len(scores)),
        "num_spots": float(len(truth)),
        "num_classes": float(len(np.unique(truth))),
    }, everyone


def _folds(names: np.ndarray, truth: np.ndarray, scored: np.ndarray, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (rows to fit on, rows to predict) for each group that has scored rows and leaves two classes to fit on."""
    folds = [
        (np.flatnonzero(names != group), np.flatnonzero((names == group) & scored))
        for group in np.unique(names[scored])
    ]
    folds = [(fit, held) for fit, held in folds if len(np.unique(truth[fit])) > 1]
    if not folds:
        raise ValueError(
            f"the labels {np.unique(truth).tolist()} of the {split}s {np.unique(names).tolist()} leave no fold that trains "
            f"on two classes. Label a second {split}, or use protocol='stimage1k4m'."
        )
    return folds


def knn_predictions(
    features: np.ndarray,
    labels: np.ndarray,
    unseen: np.ndarray,
    k: int = 20,
    geometry: str = "euclidean",
    curvature: float | None = None,
) -> np.ndarray:
    """Return the majority label (unseen rows,) among the k nearest training rows; the first by name on a tie.

    Raises:
        ValueError: If k is not positive or the geometry is unknown.
    """
    if k < 1:
        raise ValueError(f"k is {k}; allowed is 1 or more. 20 neighbours are usual.")
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry is {geometry!r}; allowed are {', '.join(GEOMETRIES)}.")
    queries, targets = as_inner_product(unseen, features, geometry, curvature)
    classes, numbers = np.unique(labels, return_inverse=True)
    answers = []
    for _, nearest in most_similar(queries, targets, k):
        votes = (numbers[nearest][:, :, None] == np.arange(len(classes))).sum(axis=1)
        answers.append(classes[votes.argmax(axis=1)])
    return np.concatenate(answers)


def prototype_predictions(
    features: np.ndarray,
    labels: np.ndarray,
    unseen: np.ndarray,
    curvature: float,
    steps: int = 100,
    learning_rate: float = 0.1,
) -> np.ndarray:
    """Return the label (unseen rows,) of the nearest class prototype on the hyperboloid.

    A prototype starts at its class's tangent mean and is moved by geoopt's RiemannianAdam to minimise the class-balanced
    cross-entropy of -distance (Snell et al., arXiv 1703.05175, with hyperbolic distance). The curvature is fixed: learning
    it together with points of the manifold gives NaN within steps. Everything is in float64 and nothing is random.

    Args:
        features: (rows, dim) space parts of training points.
        labels: (rows,) strings.
        unseen: (unseen rows, dim) space parts.
        curvature: The positive c of the hyperboloid of curvature -c.
        steps: Steps of the optimiser.
        learning_rate: Learning rate of the optimiser.

    Raises:
        ValueError: If the curvature is not positive.
    """
    curvature = _positive(curvature)
    points, queries = torch.from_numpy(features).double(), torch.from_numpy(unseen).double()
    classes, numbers = np.unique(labels, return_inverse=True)
    target = torch.from_numpy(numbers)
    manifold = geoopt.Lorentz(k=1.0 / curvature, learnable=False)
    tangent = log_map0(points, curvature)
    means = torch.stack([tangent[target == i].mean(0) for i in range(len(classes))])
    space = exp_map0(means, curvature)
    time = (1.0 / curvature + space.square().sum(-1, keepdim=True)).sqrt()
    prototypes = geoopt.ManifoldParameter(torch.cat([time, space], dim=-1).double(), manifold=manifold)
    optimiser = geoopt.optim.RiemannianAdam([prototypes], lr=learning_rate, stabilize=10)
    weight = 1.0 / torch.bincount(target).double()
    # The mean distance of spots to their own prototype sets the temperature: else points close together give a flat softmax.
    own = pairwise_distance(points, space, curvature).gather(1, target[:, None]).mean().clamp_min(1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        logits = -pairwise_distance(points, prototypes[:, 1:], curvature) / (own / 4)
        torch.nn.functional.cross_entropy(logits, target, weight=weight).backward()
        optimiser.step()
    nearest = pairwise_distance(queries, prototypes.detach()[:, 1:], curvature).argmin(dim=1)
    return classes[nearest.numpy()]


def _positive(curvature: float | None) -> float:
    if curvature is None or not (np.isfinite(curvature) and curvature > 0):
        raise ValueError(
            f"curvature is {curvature}; prototypes need a positive number c, where the hyperboloid has curvature -c. "
            "Pass the curvature of the model, or use probe='knn'."
        )
    return float(curvature)


def run(findings: Findings) -> None:
    """Score the linear, the kNN and the hyperbolic nearest-prototype probe, each group predicted from the others."""
    spots = findings.spots
    if not spots.labelled:
        raise ValueError("the spots to score have no labels, or all labels are of one class")
    groups, split = spots.groups
    statistics: dict[str, dict[str, Statistic]] = {}
    for arm, probe, values, options in _runs(findings):
        scores, predicted = label_probe(
            values, spots.labels, groups, split=split, probe=probe, seed=findings.seed, test=spots.test, **options
        )
        rows = np.flatnonzero(~missing_rows(predicted))
        truth, answer = spots.labels[rows].astype(str), predicted[rows].astype(str)
        whole = {"macro_f1": f1_statistic(truth, answer), "balanced_accuracy": recall_statistic(truth, answer)}
        statistics.setdefault(probe, {})[arm] = whole["macro_f1"]
        for slide in np.unique(spots.slides[rows]):
            scores[f"macro_f1_on_{slide}"] = whole["macro_f1"](np.flatnonzero(spots.slides[rows] == slide))
        findings.add("probes", arm, scores, whole, rows, variant=probe, split=split)
        if arm in findings.own:
            findings.keep(f"predicted:{probe}:{arm}", np.arange(len(predicted)), predicted)
    for probe, by_arm in statistics.items():
        findings.compare("probes", "macro_f1", by_arm, rows, variant=probe)


def _runs(findings: Findings) -> list[tuple[str, str, np.ndarray, dict[str, Any]]]:
    """Return (arm, probe, features, options) of every fit; the embeddings of a space are compared by its own distances."""
    space, arms = findings.space, findings.arms.values()
    runs: list[tuple[str, str, np.ndarray, dict[str, Any]]] = [(arm.name, "linear", arm.features, {}) for arm in arms]
    runs += [(arm.name, "knn", arm.features, {"geometry": "cosine"}) for arm in arms]
    if space is not None:
        geometry = {"geometry": space.geometry, "curvature": space.curvature}
        runs = [each for each in runs if each[:2] != (space.arm, "knn")] + [(space.arm, "knn", space.image, geometry)]
        if space.geometry == "lorentz":
            runs.append((space.arm, "prototype", space.image, geometry))
    return runs


PROTOCOL = Protocol(
    name="probes",
    run=run,
    title="Labels, probes on unseen groups",
    headline="macro_f1",
    shown=("balanced_accuracy", "majority_macro_f1", "shuffled_macro_f1", "num_folds"),
    chance={"macro_f1": "shuffled_macro_f1"},
    task="image-classification",
    note="Each group (patient, slide or strip of a slide) is predicted from the others. Majority is always answering the "
    "commonest label; shuffled, which is chance, are the probe's own answers on shuffled spots of the same group.",
    variants={
        "linear": "Linear classifier of STimage-1K4M on standardised features.",
        "knn": "Majority of the 20 nearest spots of other groups.",
        "prototype": "Nearest of one hyperbolic prototype per class, learnt at fixed curvature.",
    },
    drawn=("linear",),
    cost=5.0,
)
