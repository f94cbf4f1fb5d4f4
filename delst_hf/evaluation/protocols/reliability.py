"""Test which confidences tell, from H&E alone, how large the error of a spot's prediction is."""

from typing import Any

import numpy as np
import pandas as pd

from ..baselines import COLOUR_STATISTICS, shuffled
from ..evidence import Arm, Space
from ..expression import gene_pearson, ridge_prediction
from ..findings import Findings
from ..neighbours import query_blocks
from ..preparation import FlooredScaler, missing_rows
from ..reliability import selective_prediction
from ..resampled import spearman_statistic, within_slides
from ..retrieval import as_inner_product
from . import Protocol
from .imputation import fold_shares, imputed, variable_expression

BANK_NEIGHBOURS = 10
"""The distance of a spot to the reference is its mean distance to this many nearest fitting spots."""


def run(findings: Findings) -> None:
    """Score every confidence against the errors of ridge, of retrieval and of the linear probe, on test spots."""
    rows = findings.test_rows
    errors, predictions = _errors(findings)
    if not errors:
        raise ValueError("nothing was predicted: there are neither spots to fit on nor labels of two classes")
    confidences = _confidences(findings, predictions)
    for variant, error in errors.items():
        known = rows[~np.isnan(error[rows])]
        if len(known) < 3 or np.ptp(error[known]) == 0:
            continue
        statistics = {}
        for each in confidences:
            scores = _within_slides(error[known], each.features[known], findings.spots.slides[known])
            columns = [each.features[known], -error[known]]
            statistics[each.name] = within_slides(spearman_statistic, columns, findings.spots.slides[known])
            facts: dict[str, Any] = {"variant": variant, "own": each.own, "control": each.control}
            findings.add("reliability", each.name, scores, {"spearman": statistics[each.name]}, known, **facts)
        ours = [each.name for each in confidences if each.own]
        findings.compare("reliability", "spearman", statistics, known, variant=variant, own=ours)
    for each in confidences:
        if not each.control:
            findings.keep(f"confidence:{each.name}", rows, each.features[rows])
    drawn = next((variant for variant in ("ridge", "retrieval") if variant in errors), None)
    if drawn is not None:
        findings.keep(f"error:{drawn}", rows, errors[drawn][rows])


def _within_slides(error: np.ndarray, confidence: np.ndarray, slides: np.ndarray) -> dict[str, float]:
    """Score each slide separately and average by spots: a confidence has to rank the spots of a map, not the slides."""
    parts = [slides == slide for slide in np.unique(slides)]
    scores = pd.DataFrame([selective_prediction(error[part], confidence[part]) for part in parts])
    weights = scores.notna().mul([part.sum() for part in parts], axis=0)  # a slide without a score has no weight
    means: dict[Any, float] = ((scores * weights).sum() / weights.sum()).to_dict()
    return means


def _errors(findings: Findings) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Predict each test spot from spots of other groups; return errors (spots,) by variant and the predicted expression."""
    spots, space = findings.spots, findings.space
    _, measured = variable_expression(findings)
    features = findings.arms[findings.own[0]].features
    means, predictions = np.full(measured.shape, np.nan), {"ridge": np.full(measured.shape, np.nan)}
    for fit, scored in spots.folds:
        means[scored] = measured[fit].mean(axis=0)
        predictions["ridge"][scored] = ridge_prediction(
            features[fit], measured[fit], features[scored], spots.slides[fit]
        ).predicted
    if space is not None:
        predictions["retrieval"] = imputed(measured, fold_shares(findings, space))
    predictions = {
        name: values for name, values in predictions.items() if not np.isnan(values[findings.test_rows]).any()
    }
    errors = {}
    for name, predicted in predictions.items():
        errors[name] = profile_errors(predicted, measured, findings.test_rows)
        errors[f"{name}, centred"] = profile_errors(predicted - means, measured - means, findings.test_rows)
    answer = findings.per_spot.get(f"predicted:linear:{findings.own[0]}")
    if answer is not None and spots.labelled:
        known = ~missing_rows(spots.labels) & ~missing_rows(answer)
        errors["labels"] = np.where(known, spots.labels != answer, np.nan).astype(float)
    return errors, predictions


def profile_errors(predicted: np.ndarray, measured: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return 1 minus the Pearson correlation, over genes, between the predicted and measured profile of each spot (spots,)."""
    errors = np.full(len(measured), np.nan)
    errors[rows] = 1 - gene_pearson(predicted[rows].T, measured[rows].T)
    return errors


def _confidences(findings: Findings, predictions: dict[str, np.ndarray]) -> list[Arm]:
    """Return confidences (spots,) as arms; the radius in the model's space is its own, the others are baselines."""
    spots, space = findings.spots, findings.space
    features = findings.arms[findings.own[0]].features
    size = len(spots.slides)
    result = []
    if space is not None and space.geometry != "cosine":
        radius = np.linalg.norm(space.tangent(space.image), axis=1)
        control = shuffled(radius, spots.slides, findings.seed)
        result = [Arm("image radius", [radius], own=True), Arm("image radius, shuffled", [control], control=True)]
    num_genes, distance = np.full(size, np.nan), np.full(size, np.nan)
    entropy, similarity = np.full(size, np.nan), np.full(size, np.nan)
    complexity = np.log1p(spots.counts.getnnz(axis=1)).astype(float)
    for fit, scored in spots.folds:
        num_genes[scored] = ridge_prediction(
            features[fit], complexity[fit, None], features[scored], spots.slides[fit]
        ).predicted[:, 0]
        distance[scored] = distance_to_reference(features[fit], features[scored])
        if space is not None:
            entropy[scored], similarity[scored] = retrieval_certainty(space, fit, scored)
    result += [Arm("predicted number of genes", [num_genes]), Arm("nearness to the reference", [-distance])]
    if space is not None:
        result += [Arm("certainty of retrieval", [-entropy]), Arm("similarity of retrieval", [similarity])]
    if len(predictions) == 2:
        agreement = np.full(size, np.nan)
        first, second = (values[findings.test_rows].T for values in predictions.values())
        agreement[findings.test_rows] = gene_pearson(first, second)
        result.append(Arm("agreement of ridge and retrieval", [agreement]))
    for arm in findings.arms.values():
        if arm.features.shape[1] == len(COLOUR_STATISTICS) and not arm.own and not arm.control:
            tissue = arm.features[:, COLOUR_STATISTICS.index("tissue_fraction")]
            result.append(Arm("tissue fraction", [np.asarray(tissue, dtype=float)]))
    return result


def distance_to_reference(reference: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the mean distance (spots,) of standardised features to their nearest neighbours in the reference."""
    scaler = FlooredScaler.fit(np.asarray(reference, dtype=np.float64))
    bank, queries = scaler.transform(reference), scaler.transform(features)
    lengths, number = (bank**2).sum(1), min(BANK_NEIGHBOURS, len(bank))
    result = np.empty(len(queries))
    for rows in query_blocks(len(queries), len(bank)):
        squares = (queries[rows] ** 2).sum(1)[:, None] + lengths - 2 * queries[rows] @ bank.T
        nearest = np.sort(np.partition(np.maximum(squares, 0.0), number - 1, axis=1)[:, :number], axis=1)
        result[rows] = np.sqrt(nearest).mean(axis=1)
    return result


def retrieval_certainty(space: Space, fit: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each image (spots,) the entropy of its softmax over fitting spots, and the similarity of the nearest one.

    Similarities are divided by their standard deviation before the softmax, so that no temperature has to be chosen.
    """
    left, right = as_inner_product(space.image[scored], space.gene[fit], space.geometry, space.curvature)
    entropy, top = np.empty(len(left)), np.empty(len(left))
    for rows in query_blocks(len(left), len(right)):
        similarities = left[rows] @ right.T
        if space.geometry == "lorentz":  # the product is -cosh(sqrt(c) d) / c
            similarities = -np.arccosh(np.maximum(-similarities * float(space.curvature or 1.0), 1.0))
        top[rows] = similarities.max(axis=1)
        spread = np.maximum(similarities.std(axis=1, keepdims=True), 1e-12)
        weights = np.exp((similarities - top[rows, None]) / spread)
        weights /= weights.sum(axis=1, keepdims=True)
        entropy[rows] = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)
    return entropy, top


PROTOCOL = Protocol(
    name="reliability",
    run=run,
    title="Reliability: which predictions to believe, from H&E alone",
    headline="spearman",
    shown=("excess_aurc", "error_of_confident_half", "mean_error"),
    chance={"spearman": 0.0, "excess_aurc": 1.0},
    note="Whether a confidence ranks the spots of a slide by their error. The error of a spot is 1 minus the Pearson "
    "correlation of its predicted and measured profile, or for labels 1 where the label is wrong. Spearman is high where "
    "confident spots are predicted well. Excess AURC (area under the risk-coverage curve) is 0 for the best possible order and "
    "1 for chance. The baseline that matters most is the number of genes that a ridge predicts from the same features.",
    variants={
        "ridge": "Expression predicted by ridge regression.",
        "ridge, centred": "The same, with the mean profile of the training spots subtracted.",
        "retrieval": "Expression predicted by retrieval.",
        "retrieval, centred": "The same, with the mean profile of the training spots subtracted.",
        "labels": "Labels predicted by the linear probe.",
    },
    cost=2.0,
)
