"""Score one trained model for hierarchy_study.py: numbers per test slide, and predictions per spot."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from delst_hf.evaluation.baselines import shuffled
from delst_hf.evaluation.entailment import entailment_rankings
from delst_hf.evaluation.evidence import Space, Spots
from delst_hf.evaluation.expression import RidgeReadout, best_floor, gene_pearson
from delst_hf.evaluation.linear_probe import answers, macro_f1
from delst_hf.evaluation.predicted_genes import most_variable_genes
from delst_hf.evaluation.preparation import SCALE_FLOORS, NarrowRows, missing_rows
from delst_hf.evaluation.protocols.hierarchy import rank_correlation
from delst_hf.evaluation.protocols.imputation import IMPUTED_GENES, NEIGHBOURS, impute_by_retrieval
from delst_hf.evaluation.protocols.reliability import (
    distance_to_reference,
    profile_errors,
    retrieval_certainty,
)
from delst_hf.evaluation.reliability import selective_prediction
from delst_hf.evaluation.retrieval import bidirectional_retrieval
from delst_hf.evaluation.subjects import Subject
from delst_hf.model.entailment import cone_membership
from delst_hf.model.feature_extraction_delst import log_normalize

Scores = dict[str, dict[str, float]]
SELECTIVE = {"spearman": "rho", "excess_aurc": "aurc"}
ENSEMBLE = 3


def score(subject: Subject, spots: Spots, tissue: np.ndarray, seed: int) -> tuple[Scores, dict[str, np.ndarray]]:
    """Score a subject on its test slides, which are used for nothing else.

    Args:
        subject: Features by arm, and the space.
        spots: Spots of all slides of the split.
        tissue: Share of tissue of each patch (spots,), a confidence that needs no model.
        seed: Seed of the shuffled control.

    Returns:
        Metrics by test slide, and the predictions and errors of the test spots, for ensembles of seeds.
    """
    test, fit = np.flatnonzero(spots.test), np.flatnonzero(~spots.test)
    expression = log_normalize(spots.counts, spots.target_sum)
    genes = most_variable_genes(expression[fit], min(IMPUTED_GENES, expression.shape[1]))
    measured = expression[:, genes].toarray()
    means = measured[fit].mean(axis=0)
    complexity = np.log1p(spots.counts.getnnz(axis=1)).astype(float)
    scores: Scores = {str(slide): {} for slide in dict.fromkeys(spots.slides[test])}
    parts = {slide: np.flatnonzero(spots.slides[test] == slide) for slide in scores}
    predicted, num_genes, labels = {}, {}, {}
    for arm in subject.arms:
        name = arm.name.removeprefix("DELST ")
        predicted[name], num_genes[name] = _ridge(arm.features, [measured, complexity[:, None]], fit, test, spots)
        labels[name] = _labels(arm.features, spots, fit, test)
    space, main = subject.space, subject.arms[0]
    if space is not None:
        predicted["retrieval"] = impute_by_retrieval(
            space.image[test], space.gene[fit], measured[fit], space.geometry, space.curvature, NEIGHBOURS
        )
    for slide, rows in parts.items():
        for name, values in predicted.items():
            scores[slide][f"pearson:{name}"] = float(np.nanmean(gene_pearson(values[rows], measured[test][rows])))
        for name, answer in labels.items():
            known = rows[~missing_rows(spots.labels[test][rows])]
            if answer is not None and len(known):
                scores[slide][f"f1:{name}"] = macro_f1(spots.labels[test][known].astype(str), answer[known])
        if space is not None:
            scores[slide] |= _space_scores(space, spots, test[rows])
    confidences = _confidences(subject, spots, fit, test, seed) | {"tissue fraction": tissue[test]}
    first = main.name.removeprefix("DELST ")
    confidences["predicted number of genes"] = num_genes[first][:, 0]
    if space is not None:
        confidences["agreement"] = gene_pearson(predicted[first].T, predicted["retrieval"].T)
    errors = _errors(predicted, first, measured[test], means)
    answer = labels[first]
    if answer is not None:
        known = ~missing_rows(spots.labels[test])
        errors["labels"] = np.where(known, spots.labels[test] != answer, np.nan).astype(float)
    for slide, rows in parts.items():
        for name, confidence in confidences.items():
            scores[slide] |= selective(errors, confidence, rows, name)
    kept = {
        f"predicted:{name}": predicted[name].astype(np.float32) for name in (first, "retrieval") if name in predicted
    }
    kept |= {f"error:{name}": values.astype(np.float32) for name, values in errors.items()}
    rounded = {slide: {name: round(value, 4) for name, value in values.items()} for slide, values in scores.items()}
    return rounded, {**kept, "slides": spots.slides[test].astype(str)} if space is not None else {}


def _ridge(
    features: np.ndarray, targets: list[np.ndarray], fit: np.ndarray, test: np.ndarray, spots: Spots
) -> list[np.ndarray]:
    """Return `ridge_prediction` of several targets, with the features decomposed once."""
    train, unseen = features[fit], features[test]
    readouts = [RidgeReadout(train, unseen, spots.slides[fit], floor) for floor in SCALE_FLOORS]
    return [best_floor([readout.predict(target[fit]) for readout in readouts]).predicted for target in targets]


def _labels(features: np.ndarray, spots: Spots, fit: np.ndarray, test: np.ndarray) -> np.ndarray | None:
    """Predict the class of each test spot by logistic regression on labelled training spots; None without two classes."""
    from sklearn.linear_model import LogisticRegression

    from delst_hf.evaluation.preparation import FlooredScaler

    known = fit[~missing_rows(spots.labels[fit])]
    if len(set(spots.labels[known])) < 2:
        return None
    scaler = FlooredScaler.fit(np.asarray(features[known], dtype=np.float64))
    train = NarrowRows.of(scaler.transform(features[known]))
    # As strong as `delst fit` mostly chooses; one strength for all arms.
    model = LogisticRegression(C=1.0 / len(known), class_weight="balanced", max_iter=500, tol=1e-3)
    return answers(model.fit(train.rows, spots.labels[known].astype(str)), train, scaler.transform(features[test]))


def _space_scores(space: Space, spots: Spots, rows: np.ndarray) -> dict[str, float]:
    """Score retrieval within a slide, and the hierarchy of its space."""
    image, gene = space.image[rows], space.gene[rows]
    found = bidirectional_retrieval(image, gene, space.geometry, curvature=space.curvature)
    result = {f"recall@10:{way}": found[f"{way}_recall@10"] for way in ("image_to_gene", "gene_to_image")}
    if space.geometry == "cosine":
        return result
    genes, totals = spots.counts.getnnz(axis=1)[rows].astype(float), np.asarray(spots.counts.sum(axis=1)).ravel()[rows]
    for modality, embeds in (("image", image), ("gene", gene)):
        radii = np.linalg.norm(space.tangent(embeds), axis=1)
        result[f"radius:{modality}"] = float(radii.mean())
        result[f"rho:{modality} radius, genes"] = rank_correlation(radii, genes)
        result[f"rho:{modality} radius, genes given counts"] = rank_correlation(radii, genes, given=totals)
    if space.geometry == "lorentz":
        import torch

        curvature = float(space.curvature or 1.0)
        rankings = entailment_rankings(gene, image, curvature, space.min_radius)
        result |= {name: float(np.nanmean(values)) for name, values in rankings.items()}
        apex, child = torch.from_numpy(gene).float(), torch.from_numpy(image).float()
        inside = cone_membership(apex, child, curvature, space.min_radius, space.aperture_scale)
        result |= {"in_cone_matched": float(inside[0].mean()), "in_cone_mismatched": float(inside[1].mean())}
        result["curvature"] = curvature
    return result


def _confidences(subject: Subject, spots: Spots, fit: np.ndarray, test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return confidences (test spots,) that need no prediction."""
    space, features = subject.space, subject.arms[0].features
    result = {"nearness": -distance_to_reference(features[fit], features[test])}
    if space is not None:
        entropy, similarity = retrieval_certainty(space, fit, test)
        result["nearness in the space"] = -_distance_in_space(space, fit, test)
        result |= {"certainty of retrieval": -entropy, "similarity of retrieval": similarity}
        if space.geometry != "cosine":
            radius = np.linalg.norm(space.tangent(space.image[test]), axis=1)
            result["image radius"] = radius
            result["image radius, shuffled"] = shuffled(radius, spots.slides[test], seed)
    return result


def _distance_in_space(space: Space, fit: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the mean distance of each test image to its five nearest training images in the space, as in `delst predict`."""
    import torch

    from delst_hf.model.contrastive import similarity_logits

    images = [torch.from_numpy(np.asarray(space.image[rows], dtype=np.float64)) for rows in (test, fit)]
    similarity = similarity_logits(*images, 1.0, float(space.curvature or 1.0), space.geometry)
    return -similarity.topk(5).values.mean(1).numpy()


def _errors(
    predicted: dict[str, np.ndarray], first: str, measured: np.ndarray, means: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the error of each test spot: 1 minus Pearson of its profile, as it is and with the training mean subtracted."""
    every, errors = np.arange(len(measured)), {}
    for name, label in ((first, "ridge"), ("retrieval", "retrieval")):
        if name in predicted:
            errors[label] = profile_errors(predicted[name], measured, every)
            errors[f"{label}, centred"] = profile_errors(predicted[name] - means, measured - means, every)
    return errors


def selective(errors: dict[str, np.ndarray], confidence: np.ndarray, rows: np.ndarray, name: str) -> dict[str, float]:
    """Score one confidence on the spots of one slide, for every kind of error."""
    result = {}
    for kind, error in errors.items():
        known = rows[np.isfinite(error[rows]) & np.isfinite(confidence[rows])]
        if len(known) < 3 or np.ptp(error[known]) == 0:
            continue
        found = selective_prediction(error[known], confidence[known])
        for metric, short in SELECTIVE.items():
            result[f"{short}:{kind}|{name}"] = float(found[metric])
        result[f"gain:{kind}|{name}"] = float(found["mean_error"] - found["error_of_confident_half"])
    return result


def score_ensembles(units: dict[str, Any], scratch: Path) -> None:
    """Add the confidence of three seeds, minus the spread of their predictions, scored on the errors of the first."""
    runs: dict[tuple[str, str], list[int]] = {}
    for key in units:
        split, arm, seed = key.split("|")
        if (scratch / f"{split}-{arm}-{seed}.npz").is_file():
            runs.setdefault((split, arm), []).append(int(seed))
    for (split, arm), seeds in runs.items():
        if len(seeds) < ENSEMBLE:
            continue
        loaded = {}
        for seed in seeds:
            with np.load(scratch / f"{split}-{arm}-{seed}.npz") as archive:
                loaded[seed] = dict(archive)
        for place, seed in enumerate(seeds):
            three = [loaded[seeds[(place + step) % len(seeds)]] for step in range(ENSEMBLE)]
            spread = np.std([one["predicted:backbone"] for one in three], axis=0).mean(axis=1)
            alike = [
                gene_pearson(a["predicted:backbone"].T, b["predicted:backbone"].T) for a, b in combinations(three, 2)
            ]
            errors = {name[6:]: values for name, values in loaded[seed].items() if name.startswith("error:")}
            slides = loaded[seed]["slides"]
            for slide in dict.fromkeys(slides.tolist()):
                rows, found = np.flatnonzero(slides == slide), units[f"{split}|{arm}|{seed}"]["scores"][slide]
                for name, confidence in (
                    ("spread of 3 seeds", -spread),
                    ("agreement of 3 seeds", np.mean(alike, axis=0)),
                ):
                    found |= {key: round(value, 4) for key, value in selective(errors, confidence, rows, name).items()}
