"""Evaluate the gene side alone, on the eight annotated sections of HER2ST: counts and a pathologist's labels, no images.

    python benchmarks/gene_side.py --source ../shared/data/her2st --arms runs/her2st/arms

It prints two tables of docs/evaluation.md. Labels: linear and kNN probes of gene embeddings, of PCA and of the counts
themselves, one patient left out at a time. Radius: does the order of a model mean biology or depth? Its gene radius against
expressed genes, total counts, genes given counts, and labels, within slides and across, beside levels shuffled within slides.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from delst_hf import DelstModel, DelstProcessor
from delst_hf.evaluation.baselines import permutation_within
from delst_hf.evaluation.linear_probe import macro_f1, macro_recall
from delst_hf.evaluation.preparation import FlooredScaler
from delst_hf.evaluation.protocols.hierarchy import explained_by_labels, rank_correlation
from delst_hf.evaluation.protocols.probes import label_probe
from delst_hf.model.feature_extraction_delst import log_normalize
from delst_hf.model.lorentz import log_map0, radius

SECTIONS = ("A1", "B1", "C1", "D1", "E1", "F1", "G2", "H1")
PRETRAINING = ("C2", "C3", "C4")
COMPONENTS = 50
# Arms that differ in what shapes the gene side: no geometry, geometry alone, entailment, and its control.
PROBED = ("cosine", "Lorentz", "Lorentz + cross + intra", "Lorentz + cross + intra order shuffled")
# L2 penalty per row, fixed. The linear probe is logistic regression by L-BFGS: SGDClassifier, the probe of `delst evaluate`,
# takes a minute per set of features on 3,500 spots.
PROBE_ALPHA = 0.01


def read_counts(source: Path, section: str) -> pd.DataFrame:
    return pd.read_csv(source / f"data/ST-cnts/{section}.tsv.gz", sep="\t", index_col=0)


def read_labels(source: Path, section: str) -> pd.Series:
    """Return the labels by array position; the file's coordinates are floats, rounded to join."""
    table = pd.read_csv(source / f"data/ST-pat/lbl/{section}_labeled_coordinates.tsv", sep="\t").dropna(
        subset=["x", "y"]
    )
    index = table["x"].round().astype(int).astype(str) + "x" + table["y"].round().astype(int).astype(str)
    labels = table["label"].set_axis(index)
    return labels[~labels.index.duplicated()]


def read_sections(source: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return counts (spots, genes) of the eight sections, the slide of each spot, and its label or None."""
    counts, slides, labels = [], [], []
    for section in SECTIONS:
        table = read_counts(source, section)
        found = read_labels(source, section).reindex(table.index)
        counts.append(table)
        slides += [section] * len(table)
        labels += [None if pd.isna(label) or label == "undetermined" else str(label) for label in found]
    return pd.concat(counts).fillna(0), np.array(slides), np.array(labels, dtype=object)


class GeneSide:
    """The gene encoders of checkpoints on the same spots; expression is normalised once per vocabulary."""

    def __init__(self, counts: pd.DataFrame, slides: np.ndarray):
        self.counts, self.slides = counts, slides
        self.batches: dict[tuple[str, ...], Any] = {}

    @torch.no_grad()
    def embed(self, folder: Path, random_seed: int | None = None) -> tuple[torch.Tensor, DelstModel]:
        """Return gene embeddings (spots, dim) and the model, which has random weights if a seed is given."""
        if random_seed is None:
            model = DelstModel.from_pretrained(folder)
        else:
            torch.manual_seed(random_seed)
            model = DelstModel(DelstModel.config_class.from_pretrained(folder))
        batch = self._batch(DelstProcessor.from_pretrained(folder).feature_extractor)
        return model.eval().get_gene_features(batch["gene_values"], batch["gene_mask"]).pooler_output, model

    def _batch(self, extractor: Any) -> Any:
        key = tuple(extractor.vocabulary)
        if key not in self.batches:
            names = list(self.counts.columns)
            self.batches[key] = extractor(self.counts.to_numpy(np.float32), names, return_tensors="pt")
        return self.batches[key]


def tangent(embeds: torch.Tensor, model: DelstModel) -> np.ndarray:
    if model.config.geometry != "lorentz":
        return embeds.double().numpy()
    return log_map0(embeds.double(), model.curvature.item()).numpy()


def baselines(source: Path, counts: pd.DataFrame, vocabulary: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    expression = log_normalize(counts.to_numpy())
    chosen = [i for i, gene in enumerate(counts.columns) if gene in set(vocabulary)]
    yield f"raw counts, {len(chosen)} genes", counts.to_numpy()[:, chosen]
    yield f"log counts, {len(chosen)} genes", expression[:, chosen]
    yield f"PCA-{COMPONENTS} of these sections", PCA(COMPONENTS, random_state=0).fit_transform(expression[:, chosen])
    seen = (
        pd.concat([read_counts(source, section) for section in PRETRAINING]).reindex(columns=counts.columns).fillna(0)
    )
    pca = PCA(COMPONENTS, random_state=0).fit(log_normalize(seen.to_numpy())[:, chosen])
    yield f"PCA-{COMPONENTS} of the pretraining slides", pca.transform(expression[:, chosen])


def probe_row(features: np.ndarray, labels: np.ndarray, slides: np.ndarray) -> dict[str, float]:
    """Score features by both probes; each section is of another patient, so leaving one out leaves a patient out."""
    kept = np.array([label is not None for label in labels])
    rows, truth, names = features[kept], labels[kept].astype(str), slides[kept]
    answer = np.empty(len(truth), dtype=object)
    for slide in SECTIONS:
        fit, held = names != slide, names == slide
        scaler = FlooredScaler.fit(rows[fit])
        probe = LogisticRegression(C=1 / (PROBE_ALPHA * fit.sum()), class_weight="balanced", max_iter=1000)
        answer[held] = probe.fit(scaler.transform(rows[fit]), truth[fit]).predict(scaler.transform(rows[held]))
    knn, _ = label_probe(features, labels, slides, split="patient", probe="knn", geometry="cosine")
    return {
        "linear macro-F1": macro_f1(truth, answer.astype(str)),
        "linear balanced accuracy": macro_recall(truth, answer.astype(str)),
        "kNN macro-F1": knn["macro_f1"],
        "kNN balanced accuracy": knn["balanced_accuracy"],
        "majority macro-F1": knn["majority_macro_f1"],
    }


def radius_row(radii: np.ndarray, counts: pd.DataFrame, labels: np.ndarray, slides: np.ndarray) -> dict[str, float]:
    genes, totals = (counts > 0).sum(axis=1).to_numpy(float), counts.sum(axis=1).to_numpy(float)
    known = np.array([label is not None for label in labels])
    return {
        "genes, across slides": rank_correlation(radii, genes),
        "genes, within": rank_correlation(radii, genes, slides),
        "total counts, within": rank_correlation(radii, totals, slides),
        "genes given counts, within": rank_correlation(radii, genes, slides, given=totals),
        "genes shuffled, within": rank_correlation(radii, genes[permutation_within(slides, 0)], slides),
        "labels explain": explained_by_labels(radii[known], labels[known].astype(str), slides[known]),
    }


def print_table(title: str, rows: dict[str, list[dict[str, float]]]) -> None:
    columns = list(next(iter(rows.values()))[0])
    print(f"\n### {title}\n\n| | runs | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 2) + "|")
    for name, found in rows.items():
        cells = []
        for column in columns:
            values = [row[column] for row in found]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        print(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of almaan/her2st")
    parser.add_argument(
        "--arms", type=Path, default=Path("runs/her2st/arms"), help="folder of benchmarks/her2st_arms.py"
    )
    parser.add_argument("--probe-runs", type=int, default=2, help="number of seeds of each arm to probe")
    parser.add_argument("--probe-arms", nargs="*", default=PROBED, help="arms to probe; the radius is shown for all")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON")
    options = parser.parse_args()
    counts, slides, labels = read_sections(options.source)
    encoders = GeneSide(counts, slides)
    runs = sorted(path.parent for path in options.arms.glob("*/model"))
    probes: dict[str, list[dict[str, float]]] = {}
    radii, embeddings = defaultdict(list), defaultdict(list)
    for run in runs:
        arm = run.name.rsplit("-", 1)[0].replace("_", " ")
        embeds, model = encoders.embed(run / "model")
        if model.config.geometry == "lorentz":
            found = radius(embeds.double(), model.curvature.item()).numpy()
            radii[arm].append(radius_row(found, counts, labels, slides))
        if arm in options.probe_arms:
            embeddings[arm].append(tangent(embeds, model))
    print_table("Spearman of the gene radius", radii)
    known = pd.Series([label for label in labels if label is not None])
    print(f"\n{len(slides)} spots, {len(known)} labelled: {known.value_counts().to_dict()}\n", flush=True)
    vocabulary = DelstProcessor.from_pretrained(runs[0] / "model").feature_extractor.vocabulary
    random = [tangent(*encoders.embed(runs[0] / "model", random_seed=seed)) for seed in range(options.probe_runs)]
    features = {name: [values] for name, values in baselines(options.source, counts, vocabulary)}
    for name, found in {**features, "random-init gene encoder": random, **embeddings}.items():
        probes[name] = [probe_row(values, labels, slides) for values in found[: options.probe_runs]]
        print(name, probes[name], flush=True)
        if options.output:
            options.output.write_text(json.dumps({"probes": probes, "radius": radii}, indent=1))
    print_table("Labels from genes, one patient left out at a time", probes)


if __name__ == "__main__":
    main()
