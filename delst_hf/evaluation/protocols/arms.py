"""The table of arms: ridge and linear probe fitted on training slides, scored on each test slide, beside the baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...model.normalization import log_normalize
from ..baselines import permutation_within
from ..cones import hierarchy
from ..evidence import Space, Spots
from ..expression import expression_prediction, most_variable_genes
from ..linear_probe import linear_probe
from ..preparation import missing_rows
from ..retrieval import bidirectional_retrieval
from ..space_protocols import MAX_QUERIES

Results = dict[str, Any]
HEADLINES = (
    "pearson_mean", "macro_f1_mean", "macro_f1", "image_to_gene_recall@10", "imputation_pearson", "auroc", "ari", "silhouette"
)  # fmt: skip
LEAST_SPOTS = 20  # to fit on: fewer leave nothing to choose a penalty by


class ArmsTable:
    """What is predicted, and on which rows: the most variable genes and the labels, chosen on the spots that fit.

    Each test slide is predicted from the spots that are not scored; where all are scored, from those of other groups.

    Args:
        spots: The spots.
        num_genes: How many of the most variable genes to predict.
    """

    def __init__(self, spots: Spots, num_genes: int):
        self.spots = spots
        self.test_slides = list(dict.fromkeys(spots.slides[spots.test]))
        expression = log_normalize(spots.counts)
        self.genes = most_variable_genes(expression[spots.reference], min(num_genes, expression.shape[1]))
        self.targets = expression[:, self.genes].toarray()

    def score(self, arm: str, repeats: list[np.ndarray], shuffle_seeds: Sequence[int] | None = None) -> list[Results]:
        """One row a test slide: means over the repeats, and their standard deviation where there are several."""
        rows = []
        for slide in self.test_slides:
            test = self.spots.test & (self.spots.slides == slide)
            metrics = [
                self._metrics(features, test, None if shuffle_seeds is None else shuffle_seeds[i])
                for i, features in enumerate(repeats)
            ]
            row: Results = {"arm": arm, "slide": str(slide), "spots": int(test.sum())}
            for key in metrics[0]:
                values = [metric[key] for metric in metrics]
                row[key] = float(np.mean(values))
                if len(values) > 1:
                    row[f"{key}_sd"] = float(np.std(values, ddof=1))
            rows.append(row)
        return rows

    def _metrics(self, features: np.ndarray, test: np.ndarray, shuffle_seed: int | None) -> dict[str, float]:
        spots = self.spots
        names = spots.groups[0]
        train = ~spots.test if not spots.test.all() else ~np.isin(names, names[test])
        groups = spots.slides[train]
        targets, labels = self.targets[train], spots.labels[train]
        if shuffle_seed is not None:
            order = permutation_within(groups, shuffle_seed)
            targets, labels = targets[order], labels[order]
        metrics: dict[str, float] = {}
        if train.sum() >= LEAST_SPOTS and np.ptp(self.targets[test], axis=0).any():
            found = expression_prediction(features[train], targets, features[test], self.targets[test], groups)
            metrics = {"pearson_mean": found["pearson_mean"], "ridge_alpha": found["alpha"]}
        if _enough_labels(labels, groups) and not missing_rows(spots.labels[test]).all():
            probe = linear_probe(features[train], labels, features[test], spots.labels[test], groups)
            for key in ("macro_f1_mean", "macro_f1_sd", "majority_macro_f1", "num_unseen_classes"):
                metrics[f"probe_{key}"] = probe[key]
        return metrics

    def retrieval(self, space: Space, seed: int) -> list[Results]:
        """Retrieval over the whole pool of each test slide, and with its pairs shuffled."""
        rows = []
        for slide in self.test_slides:
            test = np.flatnonzero(self.spots.test & (self.spots.slides == slide))
            order = np.random.default_rng(seed).permutation(len(test))
            for arm, genes in ((space.name, test), (f"{space.name}, shuffled pairs", test[order])):
                scores = bidirectional_retrieval(
                    space.image[test], space.gene[genes], space.geometry, space.curvature, num_queries=MAX_QUERIES
                )
                rows.append({"arm": arm, "slide": slide, **scores})
        return rows

    def hierarchy(self, space: Space, aperture_scale: float = 1.0) -> list[Results]:
        """Radii, cones and their control on each test slide; nothing for a flat space."""
        if space.geometry != "lorentz":
            return []
        rows = []
        for slide in self.test_slides:
            test = self.spots.test & (self.spots.slides == slide)
            scores = hierarchy(
                space.image[test],
                space.gene[test],
                np.diff(self.spots.counts.indptr)[test],
                float(space.curvature),  # type: ignore[arg-type]
                parent=space.parent,
                min_radius=space.min_radius,
                aperture_scale=aperture_scale,
            )
            rows.append({"slide": slide, "curvature": space.curvature, **scores})
        return rows


def _enough_labels(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Whether a probe can be fitted and its penalty chosen: two classes, also when any one slide is left out."""
    known = ~missing_rows(labels)
    if len(set(labels[known])) < 2:
        return False
    names = np.unique(groups[known])
    if len(names) == 1:
        return int(known.sum()) >= LEAST_SPOTS
    return any(len(set(labels[known & (groups != name)])) > 1 for name in names)


def format_results(results: Results) -> str:
    """The results as tables to read: arms, retrieval, hierarchy, and what was skipped."""
    blocks = [_format_arms(results)] if results["arms"] else []
    keys = ("recall@1", "recall@5", "recall@10", "median_rank")
    for direction in ("image_to_gene", "gene_to_image"):
        rows = [
            [
                f"{row['slide']} {row['arm']}",
                f"{row['pool_size']:.0f}",
                *(f"{row[f'{direction}_{key}']:.3g}" for key in keys),
            ]
            for row in results["retrieval"]
        ]
        if rows:
            blocks.append(_table([direction.replace("_", " "), "pool", *keys], rows))
    if results["hierarchy"]:
        names = [key for key in results["hierarchy"][0] if key != "slide"]
        rows = [[name, *(f"{row[name]:.3g}" for row in results["hierarchy"])] for name in names]
        blocks.append(_table(["hierarchy", *results["test_slides"]], rows))
    if results.get("protocols"):
        blocks.append(_format_protocols(results["protocols"]))
    if results.get("skipped"):
        blocks.append("\n".join(f"Skipped {row['protocol']}: {row['reason']}" for row in results["skipped"]))
    return "\n\n".join(blocks)


def _format_arms(results: Results) -> str:
    slides = results["test_slides"]
    arms = list(dict.fromkeys(row["arm"] for row in results["arms"]))
    by_key = {(row["arm"], row["slide"]): row for row in results["arms"]}
    header = ["", *(f"{slide} {metric}" for slide in slides for metric in ("Pearson", "probe F1"))]
    body = [[arm, *(cell for slide in slides for cell in _cells(by_key.get((arm, slide), {})))] for arm in arms]
    fitted = ", ".join(results["train_slides"]) or f"the other {results.get('split') or 'group'}s of each test slide"
    note = (
        f"Expression: mean gene-wise Pearson over {len(results['genes'])} genes (ridge). Probe: macro-F1, labels from "
        f"{', '.join(results['label_source']) or 'none'}.\nFitted on {fitted}; +- is the sd over seeds.\n"
    )
    return note + _table(header, body)


def _format_protocols(rows: Sequence[Mapping[str, Any]]) -> str:
    """The headline number of each protocol and arm."""
    body = []
    for row in rows:
        metric = next((key for key in HEADLINES if row["metrics"].get(key) is not None), None)
        if metric is None or row["protocol"] == "hierarchy":
            continue
        found = row["intervals"].get(metric, {})
        interval = f"{found['low']:.3f} to {found['high']:.3f}" if found else ""
        body.append([f"{row['protocol']}: {row['arm']}", metric, f"{row['metrics'][metric]:.3f}", interval])
    return _table(["protocol: arm", "metric", "value", "95 %"], body)


def _cells(row: Results) -> tuple[str, str]:
    def shown(key: str, spread: str) -> str:
        if key not in row:
            return "-"
        return f"{row[key]:.3f}" + (f" +- {row[spread]:.3f}" if spread in row else "")

    # Of several networks the spread between them counts, not that of the probe's own seeds.
    probe_sd = "probe_macro_f1_mean_sd" if "probe_macro_f1_mean_sd" in row else "probe_macro_f1_sd"
    return shown("pearson_mean", "pearson_mean_sd"), shown("probe_macro_f1_mean", probe_sd)


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))
        )
        for line in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
