"""Predict tissue labels from features by a linear classifier, and score them by macro-F1 on unseen slides.

The classifier is that of the STimage-1K4M benchmark (scikit-learn's SGDClassifier with log loss, L2 penalty and
balanced class weights). The split is not: the benchmark splits by spot, where neighbours leak from training to test;
here the caller passes the rows of complete slides, and alpha is chosen by leaving one training slide out.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.linear_model import SGDClassifier

from .preparation import (
    MAX_INNER_FOLDS,
    FlooredScaler,
    NarrowRows,
    finite_matrix,
    group_folds,
    group_names,
    missing_rows,
)

PROBE_ALPHAS = (1.0, 0.1, 0.01, 0.001, 0.0001)
# Choosing alpha repeats every fit for every fold; two seeds steady that choice at 2/5 of the cost.
SELECTION_SEEDS = 2
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def linear_probe(
    train_features: ArrayLike,
    train_labels: Sequence[str | None] | np.ndarray,
    test_features: ArrayLike,
    test_labels: Sequence[str | None] | np.ndarray,
    train_groups: Sequence[Any] | np.ndarray,
    alphas: Sequence[float] = PROBE_ALPHAS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> dict[str, float]:
    """Fit a linear probe on training slides and score it on test slides.

    Features are standardised by a `FlooredScaler` fitted on the same rows as the probe. Alpha is the one with the highest
    mean macro-F1 over left-out training groups (five at most, or contiguous blocks where there is one group only) and the first
    two seeds; on a tie the larger. Rows without a label (None, NaN, '' or 'nan') are dropped and counted.

    Macro-F1 and balanced accuracy average over the classes present in the test labels. A test class that training
    never saw stays in that average with 0 and is counted.

    Args:
        train_features: (train rows, columns).
        train_labels: (train rows,) strings.
        test_features: (test rows, columns).
        test_labels: (test rows,) strings.
        train_groups: (train rows,) the slide or patient of each row.
        alphas: positive L2 penalties to choose from.
        seeds: Seeds, each of one final fit.

    Returns:
        macro_f1_mean, macro_f1_sd, balanced_accuracy_mean, balanced_accuracy_sd: over the seeds (sd with n - 1, 0.0
        for one seed); 1 is perfect. majority_macro_f1: what always answering the commonest training class gets.
        shuffled_macro_f1: what the same answers in another order get, chance.
        chance_balanced_accuracy: 1 / test classes. alpha, alpha_at_edge (1.0: a wider grid might do better),
        validation_macro_f1 (0.0 when a single alpha leaves no choice), num_train, num_test,
        num_dropped_train, num_dropped_test, num_train_classes, num_test_classes, num_unseen_classes, num_seeds.

    Raises:
        ValueError: If shapes do not match, a feature is not finite, training has fewer than two classes, no test row
            has a label, or alphas or seeds are not usable.
        TypeError: If a label is neither a string nor missing.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(60, 4))
        >>> labels = np.where(x[:, 0] > 0, "tumour", "stroma")
        >>> scores = linear_probe(x[:40], labels[:40], x[40:], labels[40:], ["a"] * 20 + ["b"] * 20)
        >>> scores["macro_f1_mean"] > 0.8
        True
    """
    fitted = fit_probe(train_features, train_labels, test_features, train_groups, alphas, seeds)
    return {**fitted.score(test_labels), "num_dropped_train": float(fitted.num_dropped)}


@dataclass(frozen=True)
class FittedProbe:
    """A linear probe fitted on training rows, and its answers on test rows.

    Attributes:
        answers: One array (test rows,) of labels per seed.
        labels: (labelled training rows,) labels that it was fitted on.
        alpha: The penalty chosen.
        at_edge: Whether it is the smallest or largest of those tried.
        validation: Macro-F1 at this penalty on left-out training groups.
        num_dropped: Training rows without a label.
    """

    answers: list[np.ndarray]
    labels: np.ndarray
    alpha: float
    at_edge: bool
    validation: float
    num_dropped: int

    def score(self, test_labels: Sequence[str | None] | np.ndarray, rows: np.ndarray | None = None) -> dict[str, float]:
        """Score the answers on test rows, or on some of them, as `linear_probe` does.

        Args:
            test_labels: (test rows,) strings.
            rows: bool (test rows,), those to score; None for all.

        Raises:
            ValueError: If labels differ in number from the test rows, or none of the rows has one.
        """
        number = len(self.answers[0])
        chosen = np.ones(number, dtype=bool) if rows is None else np.asarray(rows, dtype=bool)
        matrix, truth, kept = labelled_rows(
            np.flatnonzero(chosen)[:, None], np.asarray(test_labels, dtype=object)[chosen], "test"
        )
        if len(truth) == 0:
            raise ValueError(f"none of the {len(kept)} test rows has a label; test on an annotated slide.")
        answered = [answer[matrix[:, 0].astype(int)] for answer in self.answers]
        scores = np.array([macro_f1(truth, answer) for answer in answered])
        recalls = np.array([macro_recall(truth, answer) for answer in answered])
        classes, test_classes = np.unique(self.labels), np.unique(truth)
        return {
            "macro_f1_mean": float(scores.mean()),
            "macro_f1_sd": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
            "balanced_accuracy_mean": float(recalls.mean()),
            "balanced_accuracy_sd": float(recalls.std(ddof=1)) if len(recalls) > 1 else 0.0,
            "majority_macro_f1": macro_f1(truth, np.full(len(truth), majority(self.labels))),
            "shuffled_macro_f1": float(np.mean([shuffled_macro_f1(truth, answer) for answer in answered])),
            "chance_balanced_accuracy": 1.0 / len(test_classes),
            "alpha": self.alpha,
            "alpha_at_edge": float(self.at_edge),
            "validation_macro_f1": self.validation,
            "num_train": float(len(self.labels)),
            "num_test": float(len(truth)),
            "num_dropped_test": float((~kept).sum()),
            "num_train_classes": float(len(classes)),
            "num_test_classes": float(len(test_classes)),
            "num_unseen_classes": float(len(np.setdiff1d(test_classes, classes))),
            "num_seeds": float(len(scores)),
        }


def fit_probe(
    train_features: ArrayLike,
    train_labels: Sequence[str | None] | np.ndarray,
    test_features: ArrayLike,
    train_groups: Sequence[Any] | np.ndarray,
    alphas: Sequence[float] = PROBE_ALPHAS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> FittedProbe:
    """Fit the probe of `linear_probe` once, for test rows of any number of slides; arguments and errors as there."""
    features, labels, kept = labelled_rows(train_features, train_labels, "train")
    unseen = finite_matrix(test_features, "test_features")
    groups = group_names(train_groups, len(kept), "train_groups")[kept]
    penalties, seeds = checked_grid(alphas, seeds)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(
            f"the labelled training rows hold {len(classes)} class(es): {classes.tolist()}; a probe needs at least 2. "
            "Train on slides that are annotated with more than one label."
        )
    if features.shape[1] != unseen.shape[1]:
        raise ValueError(
            f"train_features have {features.shape[1]} columns and test_features {unseen.shape[1]}; they must be equal. "
            "Embed both with the same model."
        )
    alpha, validation = choose_alpha(features, labels, groups, penalties, seeds[:SELECTION_SEEDS])
    answered = probe_predictions(features, labels, unseen, alpha, seeds)
    at_edge = len(penalties) > 1 and alpha in (penalties[0], penalties[-1])
    return FittedProbe(answered, labels, alpha, at_edge, validation, int((~kept).sum()))


def macro_f1(truth: np.ndarray, predicted: np.ndarray, everywhere: bool = False) -> float:
    """Return F1 averaged over classes, each with the same weight; 1 is perfect.

    It equals scikit-learn's ``f1_score``, whose checks of its arguments take longer than a fit of the probe.

    Args:
        truth: (rows,) strings.
        predicted: (rows,) strings.
        everywhere: Average over the classes of both; by default over those of `truth`.

    Examples:
        >>> macro_f1(np.array(["a", "a", "b"]), np.array(["a", "a", "a"]))
        0.4
    """
    hits, actual, answered = _confusion(truth, predicted)
    scored = (actual > 0) | (everywhere & (answered > 0))
    return float(np.mean(2 * hits[scored] / (actual + answered)[scored]))


def shuffled_macro_f1(truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Return the mean of `macro_f1` over all orders of the answers within each group: what an answer says of no row.

    It is exact, as the numbers of rows and of answers of a class stay the same. A balanced classifier of noise is above the F1
    of always answering the commonest label, which is therefore no chance level.

    Args:
        truth: (rows,) strings.
        predicted: (rows,) strings.
        groups: (rows,) the slide or fold of each row; None for one group.

    Examples:
        >>> shuffled_macro_f1(np.array(["a", "a", "b", "b"]), np.array(["a", "b", "a", "b"]))
        0.5
    """
    places = np.zeros(len(truth)) if groups is None else groups
    parts = [(truth[places == place], predicted[places == place]) for place in np.unique(places)]
    scores = []
    for name in np.unique(truth):
        hits = sum((actual == name).sum() * (answer == name).mean() for actual, answer in parts)
        scores.append(2 * hits / ((truth == name).sum() + (predicted == name).sum()))
    return float(np.mean(scores))


def macro_recall(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the balanced accuracy: recall averaged over the classes present in `truth` (rows,); 1 is perfect.

    Examples:
        >>> macro_recall(np.array(["a", "a", "b"]), np.array(["a", "a", "a"]))
        0.5
    """
    hits, actual, _ = _confusion(truth, predicted)
    return float(np.mean(hits[actual > 0] / actual[actual > 0]))


def _confusion(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count for each class the correct rows, the rows in `truth` and the rows in `predicted`, each (classes,)."""
    classes, numbers = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    actual, answered = np.split(numbers, [len(truth)])
    counted = (actual[actual == answered], actual, answered)
    hits, of_truth, of_answer = (np.bincount(part, minlength=len(classes)) for part in counted)
    return hits, of_truth, of_answer


def majority(labels: np.ndarray) -> str:
    """Return the commonest label, the first by name on a tie.

    Examples:
        >>> majority(np.array(["b", "a", "b"]))
        'b'
    """
    classes, counts = np.unique(labels, return_counts=True)
    return str(classes[counts.argmax()])


def probe_predictions(
    features: np.ndarray, labels: np.ndarray, unseen: np.ndarray, alpha: float, seeds: Sequence[int]
) -> list[np.ndarray]:
    """Return labels (unseen rows,) predicted by one classifier per seed."""
    inputs, queries = _scaled(features, unseen)
    return at_once(lambda seed: answers(fit_classifier(inputs, labels, alpha, seed), inputs, queries), seeds)


def _scaled(features: np.ndarray, unseen: np.ndarray) -> tuple[NarrowRows, np.ndarray]:
    """Scale both by the fitting rows `features`, and return these as `NarrowRows`."""
    scaler = FlooredScaler.fit(features)
    return NarrowRows.of(scaler.transform(features)), scaler.transform(unseen)


def at_once(fit: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> list[_Result]:
    """Apply a function to each task, in as many threads as torch may use, and return the results in order.

    The fits of scikit-learn release the GIL, so the threads run in parallel.

    Examples:
        >>> at_once(len, ["a", "bc"])
        [1, 2]
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(fit, tasks))


def fit_classifier(inputs: NarrowRows, labels: np.ndarray, alpha: float, seed: int) -> SGDClassifier:
    """Fit the classifier of STimage-1K4M to labels (rows,) with the L2 penalty `alpha`."""
    classes, counts = np.unique(labels, return_counts=True)
    return SGDClassifier(
        loss="log_loss",
        penalty="l2",
        alpha=alpha,
        # Equal to "balanced", which scikit-learn computes more slowly.
        class_weight=dict(zip(classes, len(labels) / (len(classes) * counts))),
        max_iter=10_000,
        random_state=seed,
    ).fit(inputs.rows, labels)


def answers(classifier: Any, inputs: NarrowRows, queries: np.ndarray) -> np.ndarray:
    """Return the class (queries,) that a linear classifier fitted on `inputs.rows` gives to features (queries, columns)."""
    scores = queries @ inputs.widened(classifier.coef_).T + classifier.intercept_
    places = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(int)
    return classifier.classes_[places]


def choose_alpha(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, alphas: list[float], seeds: Sequence[int]
) -> tuple[float, float]:
    """Return the alpha with the highest mean macro-F1 on left-out groups, and that F1."""
    if len(alphas) == 1:
        return alphas[0], 0.0
    # A fold that would fit on one class has no classifier and says nothing about alpha.
    folds = [(fit, held) for fit, held in group_folds(groups, MAX_INNER_FOLDS) if len(np.unique(labels[fit])) > 1]
    if not folds:
        raise ValueError(
            "leaving any training group out leaves a single class, so no alpha can be chosen. Train on more annotated "
            f"slides, or pass one alpha instead of {alphas}."
        )
    scaled = [(*_scaled(features[fit], features[held]), labels[fit], labels[held]) for fit, held in folds]

    def score(task: tuple[float, int, int]) -> float:
        alpha, fold, seed = task
        inputs, queries, known, truth = scaled[fold]
        return macro_f1(truth, answers(fit_classifier(inputs, known, alpha, seed), inputs, queries))

    tasks = itertools.product(alphas, range(len(scaled)), seeds)
    means = np.reshape(at_once(score, tasks), (len(alphas), -1)).mean(axis=1)
    best = int(means.argmax())  # the first of equals
    return alphas[best], float(means[best])


def labelled_rows(
    features: ArrayLike, labels: Sequence[str | None] | np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the features and labels of the rows that have a label, and the mask of these rows (rows,)."""
    matrix, values = finite_matrix(features, f"{name}_features"), list(labels)
    if len(values) != len(matrix):
        raise ValueError(
            f"{name}_labels has {len(values)} entries and {name}_features {len(matrix)} rows; pass one label per row, "
            "None where a spot is not annotated."
        )
    kept = ~missing_rows(values)
    for row in np.flatnonzero(kept):
        value = values[row]
        if not isinstance(value, str):
            raise TypeError(
                f"{name}_labels holds {value!r} ({type(value).__name__}) in row {row}; allowed are strings, and None "
                "where a spot is not annotated. Turn class numbers into names with ClassLabel.int2str."
            )
    return matrix[kept], np.array([str(values[row]) for row in np.flatnonzero(kept)], dtype=str), kept


def checked_grid(alphas: Sequence[float], seeds: Sequence[int]) -> tuple[list[float], list[int]]:
    """Return the alphas in descending order, so that the larger wins a tie, and the seeds."""
    if len(alphas) == 0 or not all(np.isfinite(alpha) and alpha > 0 for alpha in alphas):
        raise ValueError(f"alphas are {list(alphas)}; allowed is at least one positive number, such as {PROBE_ALPHAS}.")
    if len(seeds) == 0 or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are {list(seeds)}; allowed are one or more different seeds, such as (0, 1, 2, 3, 4).")
    return sorted({float(alpha) for alpha in alphas}, reverse=True), [int(seed) for seed in seeds]
