"""HEST-Benchmark's expression prediction and its named variants.

Source: mahmoodlab/HEST (arXiv 2406.16192), src/hest/bench/{benchmark,trainer,st_dataset}.py. For each fold: StandardScaler and
PCA-256 fitted on training spots, float32, Ridge(solver="lsqr", alpha=100 / (d * genes), no intercept) with d the number of
columns after the PCA, and Pearson per gene over the pooled test spots. The targets are log(1 + counts), not scaled to a
library size. Without an intercept, predictions are off by the mean of the gene, which does not change Pearson.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from ..evidence import Spots
from ..expression import gene_pearson
from ..findings import Findings
from ..lsqr import lsqr_ridge
from ..predicted_genes import HEST_GENES, hest_genes, most_variable_genes
from ..preparation import MAX_INNER_FOLDS, finite_matrix, group_folds, group_names, nanmean
from ..resampled import fold_pearson, gene_statistic, pearson_statistic
from . import Protocol

HEST_COMPONENTS = 256
HEST_SEED = 1
MAX_PAIRED_SPOTS = 20_000  # with more, the predictions of all genes would make the results too large
# alpha="cv" chooses among these multiples of the benchmark's alpha.
CV_FACTORS: tuple[float, ...] = tuple(float(factor) for factor in np.logspace(0, 8, 9))


@dataclass(frozen=True)
class ExpressionResult:
    """Result of `expression_protocol`.

    Attributes:
        variant: What differs from the benchmark, such as "alpha=cv,pcc=per_slide"; "" where nothing does.
        metrics: Metric -> number.
        genes: Names of the genes predicted, in order.
        gene_pearson: (genes,) Pearson of each gene, averaged over folds; NaN where the gene varies in no fold.
        predicted: (spots, genes) predictions made while the spot's group was left out; NaN where it never was.
    """

    variant: str
    metrics: dict[str, float]
    genes: list[str]
    gene_pearson: np.ndarray
    predicted: np.ndarray


def expression_protocol(
    features: ArrayLike,
    targets: ArrayLike,
    genes: Sequence[str],
    groups: Sequence[Any] | np.ndarray,
    *,
    protocol: str = "hest",
    alpha: str = "hest",
    pcc: str = "pooled",
    pca: int | None = HEST_COMPONENTS,
    slides: Sequence[Any] | np.ndarray | None = None,
    seed: int = HEST_SEED,
    test: np.ndarray | None = None,
) -> ExpressionResult:
    """Predict expression on left-out groups by the protocol of HEST-Benchmark or a named variant of it.

    Args:
        features: (spots, columns).
        targets: (spots, genes) log(1 + counts) of the genes of `hest_genes`.
        genes: (genes,) names, written into the result.
        groups: (spots,) the patient of each spot (the benchmark leaves patients out), or another grouping.
        protocol: "hest", the only choice; the arguments below select its variants.
        alpha: "hest", 100 / (columns after PCA * genes); or "cv", chosen by leaving one training group out.
        pcc: "pooled", Pearson over all test spots of a fold; or "per_slide", the mean over its slides.
        pca: Number of components, capped by the numbers of columns and of training spots; None for no PCA and, as in the
            benchmark, no scaler.
        slides: (spots,) the slide of each spot, needed by pcc="per_slide".
        seed: Seed of the PCA's solver.
        test: (spots,) bool, the spots to score, such as those of slides that the model has not seen; None for all. Groups
            without such spots are only trained on.

    Returns:
        The result, whose metrics are pearson_mean (over genes, then over folds: 1 is perfect, 0 is chance), pearson_sd (over
        folds, with divisor n as in the benchmark), alpha_mean, pca_components, num_genes, num_constant_genes (not scored,
        summed over folds), num_lacking_genes (those of them that do not vary over the training spots, for which HEST's trainer
        gives NaN), num_folds and num_spots.

    Raises:
        ValueError: If an option is not one of those allowed, shapes differ, or there is one group only.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> features = rng.normal(size=(60, 8))
        >>> result = expression_protocol(features, features[:, :2], ["ERBB2", "CD3E"], ["a"] * 30 + ["b"] * 30)
        >>> result.predicted.shape, sorted(result.metrics)[:2]
        ((60, 2), ['alpha_mean', 'num_constant_genes'])
    """
    _check_options(protocol=protocol, alpha=alpha, pcc=pcc)
    rows, values = finite_matrix(features, "features"), finite_matrix(targets, "targets")
    names, parts = _checked_groups(rows, values, genes, groups, slides if pcc == "per_slide" else groups)
    scored = np.ones(len(rows), dtype=bool) if test is None else np.asarray(test, dtype=bool)
    predictions = _predictions(rows, values, names, scored, pca, [alpha], seed)[alpha]
    variants = [f"alpha={alpha}"] * (alpha != "hest") + [f"pcc={pcc}"] * (pcc != "pooled")
    variants += [f"pca={pca}"] * (pca != HEST_COMPONENTS)
    return _result(",".join(variants), predictions, values, [str(gene) for gene in genes], parts)


@dataclass(frozen=True)
class _Predictions:
    """Predictions (spots, genes), NaN where there are none; and the held-out spots, penalty and components of each fold."""

    predicted: np.ndarray
    held: list[np.ndarray]
    alphas: list[float]
    components: list[int]


def _predictions(
    rows: np.ndarray,
    values: np.ndarray,
    names: np.ndarray,
    scored: np.ndarray,
    pca: int | None,
    alphas: Sequence[str],
    seed: int,
) -> dict[str, _Predictions]:
    """Predict the scored spots of each group from the other groups, by each way to choose alpha, all after one PCA."""
    result = {alpha: _Predictions(np.full(values.shape, np.nan), [], [], []) for alpha in alphas}
    for fit, whole_group in group_folds(names):
        held = whole_group[scored[whole_group]]
        if len(held) == 0:
            continue
        inputs, queries = _reduced(rows[fit], rows[held], pca, seed)
        # Nothing is learned of a gene that does not vary in training: HEST's trainer gives it NaN, so it is left out.
        learned = np.flatnonzero(np.ptp(values[fit], axis=0) > 0)
        for alpha, each in result.items():
            factor = _cv_factor(rows[fit], values[fit], names[fit], pca, seed) if alpha == "cv" else 1.0
            penalty = factor * hest_alpha(inputs.shape[1], values.shape[1])
            each.predicted[np.ix_(held, learned)] = _ridge(inputs, values[fit][:, learned], queries, [penalty])[0]
            each.held.append(held)
            each.alphas.append(penalty)
            each.components.append(0 if pca is None else inputs.shape[1])
    return result


def _result(
    variant: str, predictions: _Predictions, values: np.ndarray, genes: list[str], parts: np.ndarray
) -> ExpressionResult:
    """Score predictions, with Pearson computed within each of the `parts` (spots,) of a fold."""
    folds = [(predictions.predicted[held], values[held], parts[held]) for held in predictions.held]
    by_fold = np.array([fold_pearson(*fold) for fold in folds])
    means = nanmean(by_fold.T)
    metrics = {
        "pearson_mean": float(nanmean(means)),
        "pearson_sd": float(np.nanstd(means)) if np.isfinite(means).any() else float("nan"),
        "alpha_mean": float(np.mean(predictions.alphas)),
        "pca_components": float(np.mean(predictions.components)),
        "num_genes": float(values.shape[1]),
        "num_constant_genes": float(np.isnan(by_fold).sum()),
        "num_lacking_genes": float(sum(np.isnan(predicted).any(axis=0).sum() for predicted, _, _ in folds)),
        "num_folds": float(len(by_fold)),
        "num_spots": float(sum(len(measured) for _, measured, _ in folds)),
    }
    return ExpressionResult(variant, metrics, genes, nanmean(by_fold), predictions.predicted)


def _check_options(**options: str) -> None:
    allowed = {"protocol": ("hest",), "alpha": ("hest", "cv"), "pcc": ("pooled", "per_slide")}
    for name, value in options.items():
        if value not in allowed[name]:
            raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed[name])}. Choose one of them.")


def _checked_groups(
    rows: np.ndarray,
    values: np.ndarray,
    genes: Sequence[str],
    groups: Sequence[Any] | np.ndarray,
    parts: Sequence[Any] | np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return, as strings (spots,), the group of every spot and the part of a fold in which its Pearson is computed."""
    if len(rows) != len(values) or values.shape[1] != len(genes):
        raise ValueError(
            f"features {rows.shape}, targets {values.shape} and {len(genes)} genes do not match; pass one row per spot in "
            "both and one name per column of targets."
        )
    names = group_names(groups, len(rows), "groups")
    if len(np.unique(names)) < 2:
        raise ValueError(
            f"all spots are of the group {str(names[0])!r}; 'hest' leaves one group out. Add a second patient or slide."
        )
    if parts is None:
        raise ValueError("pcc='per_slide' needs slides, which is None. Pass the slide of every spot.")
    return names, group_names(parts, len(rows), "slides")


def hest_alpha(num_columns: int, num_genes: int) -> float:
    """Return the benchmark's penalty, 100 / (columns that the ridge sees * genes).

    Examples:
        >>> hest_alpha(256, 50)
        0.0078125
    """
    return 100.0 / (num_columns * num_genes)


def _reduced(fit: np.ndarray, held: np.ndarray, pca: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of both sides, standardised and reduced by PCA unless it is None, float32 as in the benchmark."""
    if pca is None:
        return fit.astype(np.float32), held.astype(np.float32)
    scaler = StandardScaler().fit(fit)
    reducer = PCA(min(pca, *fit.shape), random_state=seed)
    reduced = reducer.fit_transform(scaler.transform(fit))
    return reduced.astype(np.float32), reducer.transform(scaler.transform(held)).astype(np.float32)


def _ridge(inputs: np.ndarray, targets: np.ndarray, queries: np.ndarray, alphas: Sequence[float]) -> list[np.ndarray]:
    """Return predictions (queries, genes) for each alpha of `Ridge(solver="lsqr", fit_intercept=False)`, all fitted at once."""
    # scikit-learn keeps the coefficients in the type of the inputs.
    coefficients = lsqr_ridge(inputs, targets, np.asarray(alphas)).astype(queries.dtype)
    return [queries @ each for each in coefficients]


def _cv_factor(rows: np.ndarray, values: np.ndarray, names: np.ndarray, pca: int | None, seed: int) -> float:
    """Choose the factor of the benchmark's alpha with the highest mean Pearson on left-out groups, the larger on a tie."""
    scores = np.zeros(len(CV_FACTORS))
    for fit, held in group_folds(names, MAX_INNER_FOLDS):
        inputs, queries = _reduced(rows[fit], rows[held], pca, seed)
        base = hest_alpha(inputs.shape[1], values.shape[1])
        predictions = _ridge(inputs, values[fit], queries, [factor * base for factor in CV_FACTORS])
        for i, predicted in enumerate(predictions):
            scores[i] += np.nan_to_num(nanmean(gene_pearson(predicted, values[held])[:, None])[0])
    return CV_FACTORS[int(np.flatnonzero(scores >= scores.max() - 1e-12)[-1])]


def run(findings: Findings) -> None:
    """Score every arm by HEST-Benchmark's expression prediction and its variants."""
    spots, rows = findings.spots, findings.test_rows
    groups, split = spots.groups
    if len(np.unique(groups)) < 2:
        raise ValueError(f"all spots are of one {split}, so none can be left out")
    genes = _target_genes(findings)
    findings.facts["hest"] = {"genes": genes}
    position = {name: index for index, name in enumerate(spots.genes)}
    targets = np.log1p(spots.counts[:, [position[name] for name in genes]].toarray().astype(np.float64))
    measured, statistics = targets[rows], {}
    for arm in findings.arms.values():
        for result, parts in _variants(arm.features, targets, genes, groups, spots):
            statistic = pearson_statistic(result.predicted[rows], measured, groups[rows], parts[rows])
            metrics = {**result.metrics, **_by_slide(result, measured, spots.slides[rows], rows)}
            findings.add(
                "hest", arm.name, metrics, {"pearson_mean": statistic}, rows, variant=result.variant, split=split
            )
            if result.variant == "alpha=cv":
                statistics[arm.name] = statistic
                if arm.own:
                    _keep_genes(findings, arm.name, result, measured, groups[rows])
    findings.compare("hest", "pearson_mean", statistics, rows, variant="alpha=cv")


def _variants(
    features: np.ndarray, targets: np.ndarray, genes: list[str], groups: np.ndarray, spots: Spots
) -> Iterator[tuple[ExpressionResult, np.ndarray]]:
    """Yield the result of each variant of `PROTOCOL` and the parts in which its Pearson is computed; share their fits."""
    rows, names = finite_matrix(features, "features"), group_names(groups, len(features), "groups")
    shared = (rows, targets, names, spots.test)
    both = _predictions(*shared, HEST_COMPONENTS, ["hest", "cv"], HEST_SEED)
    without = _predictions(*shared, None, ["hest"], HEST_SEED)["hest"]
    for variant, predictions, parts in (
        ("", both["hest"], groups),
        ("alpha=cv", both["cv"], groups),
        ("pcc=per_slide", both["hest"], spots.slides),
        ("pca=None", without, groups),
    ):
        yield _result(variant, predictions, targets, genes, parts), parts


def _target_genes(findings: Findings) -> list[str]:
    """Choose genes as HEST does, on spots that are not scored; or by variance where a panel or a slide is too shallow."""
    spots = findings.spots
    counts, slides = spots.counts[spots.reference], spots.slides[spots.reference]
    try:
        return hest_genes(counts, slides, spots.genes, HEST_GENES)
    except ValueError:
        number = min(HEST_GENES, counts.shape[1])
        chosen = most_variable_genes(findings.log_expression, number, spots.reference)
        return sorted(spots.genes[i] for i in chosen)


def _by_slide(result: ExpressionResult, measured: np.ndarray, slides: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Return the mean Pearson within each scored slide."""
    scores = {}
    for slide in np.unique(slides):
        part = slides == slide
        by_gene = fold_pearson(result.predicted[rows[part]], measured[part], slides[part])
        scores[f"pearson_on_{slide}"] = float(nanmean(by_gene))
    return scores


def _keep_genes(
    findings: Findings, arm: str, result: ExpressionResult, measured: np.ndarray, groups: np.ndarray
) -> None:
    """Keep the Pearson and interval of each gene; for the first own arm also its predictions and a map of the best gene."""
    predicted = result.predicted[findings.test_rows]
    bootstrap, by_gene = findings.bootstrap(findings.test_rows), gene_statistic(predicted, measured, groups)
    scores, draws = by_gene(np.arange(len(measured))), bootstrap.resampled(by_gene)
    for i, gene in enumerate(result.genes):
        if np.isfinite(scores[i]):
            interval = bootstrap.interval_of(float(scores[i]), draws[:, i])
            row = {"pearson": interval["value"], "low": interval["low"], "high": interval["high"]}
            findings.per_gene.append({"arm": arm, "gene": gene, **row})
    if arm != findings.own[0] or not np.isfinite(scores).any():
        return
    best = int(np.nanargmax(scores))
    findings.keep(f"gene:measured:{result.genes[best]}", findings.test_rows, measured[:, best])
    findings.keep(f"gene:predicted:{result.genes[best]}", findings.test_rows, predicted[:, best])
    if len(predicted) <= MAX_PAIRED_SPOTS:
        findings.expression = {
            "protocol": "hest",
            "variant": result.variant,
            "arm": arm,
            "genes": result.genes,
            "groups": groups.tolist(),
            "measured": measured.round(4).tolist(),
            "predicted": predicted.round(4).tolist(),
        }


PROTOCOL = Protocol(
    name="hest",
    run=run,
    title="Expression, HEST protocol",
    headline="pearson_mean",
    chance={"pearson_mean": 0.0},
    task="expression-prediction",
    note="HEST-Benchmark: log(1 + counts) predicted by PCA-256 and a ridge without intercept, Pearson over the pooled test "
    "spots. Genes that the training spots of a fold lack are left out, as in HEST's trainer.",
    variants={
        "": "As the benchmark runs it.",
        "alpha=cv": "The penalty is chosen on training groups.",
        "pcc=per_slide": "Pearson within each slide, averaged.",
        "pca=None": "No PCA and, as in HEST's code, no scaler.",
    },
    drawn=("", "alpha=cv"),
    cost=5.0,
)
