"""Make the pictures and the table of genes of docs/radius.md and docs/reliability.md, from an evaluation and its dataset.

    delst evaluate MODEL DATASET --test-slides C5,B4,A1 --protocols reliability,hierarchy --output runs/radius.json
    python benchmarks/radius_pictures.py runs/radius.json DATASET --output docs/pictures

The table lists genes whose expression correlates with the radius of the image within a slide, the total counts of a spot held
fixed (partial Spearman of log-normalised expression), at a false discovery rate below .05 (Benjamini and Hochberg) among the
genes found in a tenth of its spots. Their number is printed beside that for radii shuffled within the slide (mean of a hundred
shuffles), which is chance. Last come the genes that correlate in all slides, with one sign.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import false_discovery_control, rankdata
from scipy.stats import t as student

from delst_hf import Study
from delst_hf.evaluation.reliability import risk_coverage
from delst_hf.model.feature_extraction_delst import log_normalize
from delst_hf.report.plots import risk_coverage_plot, spatial_maps

RATE, LEAST_SHARE, SHUFFLES = 0.05, 0.1, 100
CURVES = ("image radius", "predicted number of genes", "similarity of retrieval", "nearness to the reference")


def discovered(correlations: np.ndarray, spots: int) -> np.ndarray:
    """Tell which partial correlations (genes,) have a small false discovery rate."""
    statistic = correlations * np.sqrt((spots - 3) / np.maximum(1 - correlations**2, 1e-12))
    return false_discovery_control(2 * student.sf(np.abs(statistic), spots - 3)) < RATE


def rank_correlations(columns: np.ndarray, level: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return the partial Spearman correlation (columns,) of each column (spots, columns) with a level, with `given` fixed."""
    ranks, by_level, fixed = (_unit_ranks(values.reshape(len(level), -1)) for values in (columns, level, given))
    first, second, third = (by_level.T @ ranks)[0], (fixed.T @ ranks)[0], (fixed.T @ by_level)[0]
    rest = (1 - second**2) * (1 - third**2)
    return np.where(rest < 1e-9, 0.0, np.clip((first - second * third) / np.sqrt(np.maximum(rest, 1e-9)), -1, 1))


def _unit_ranks(columns: np.ndarray) -> np.ndarray:
    """Return the ranks of columns (rows, columns), centred and of length 1; 0 where a column is constant."""
    ranks = rankdata(columns, axis=0) - (len(columns) + 1) / 2
    return ranks / np.maximum(np.linalg.norm(ranks, axis=0), 1e-12)


def print_genes(record: dict, study: Study, slides: list[str], top: int) -> None:
    """Print the genes that correlate with the radius, slide by slide, and those that do so in all slides."""
    spots, generator = record["spots"], np.random.default_rng(0)
    radius, totals = np.array(spots["image_radius"]), np.array(spots["total_counts"])
    rows, signs = [], []
    for slide in slides:
        own = np.array(spots["slide"]) == slide
        subset = study.subset([slide])
        places = np.asarray(subset["x"][:])  # results round to a decimal
        if len(places) != own.sum() or np.abs(places - np.array(spots["x"])[own]).max() > 0.1:
            raise SystemExit(
                f"the spots of {slide} differ from those of the dataset. Give the dataset that was evaluated."
            )
        values = log_normalize(study.counts(subset)).toarray()
        often = np.flatnonzero((values > 0).mean(axis=0) >= LEAST_SHARE)
        values, names = values[:, often], np.array(study.gene_names)[often]
        found = rank_correlations(values, radius[own], totals[own])
        kept = discovered(found, len(values))
        shuffled = [
            discovered(rank_correlations(values, generator.permutation(radius[own]), totals[own]), len(values)).sum()
            for _ in range(SHUFFLES)
        ]
        order = np.argsort(found)
        rising, falling = ([i for i in some[:top] if kept[i]] for some in (order[::-1], order))
        told = [", ".join(f"{names[i]} {found[i]:.2f}" for i in some) or "none" for some in (rising, falling)]
        rows.append([slide, f"{kept.sum()} of {len(names)}", f"{np.mean(shuffled):.1f}", *told])
        signs.append({name: sign for name, sign, one in zip(names, np.sign(found), kept, strict=True) if one})
    print(
        "| slide | genes that go with the radius | of shuffled radii | rising most | falling most |\n|---|---|---|---|---|"
    )
    for row in rows:
        print("| " + " | ".join(row) + " |")
    common = [name for name, sign in signs[0].items() if all(other.get(name) == sign for other in signs[1:])]
    print(f"\nIn all of {', '.join(slides)}, with one sign: {', '.join(common) or 'none'}.")


def draw(record: dict, slides: list[str], output: Path) -> None:
    """Draw radius, expressed genes and labels of each slide, radius and error, and the risk-coverage curves."""
    spots = record["spots"]
    of_slide = np.array(spots["slide"])
    number = {name: np.array(spots[name], dtype=float) for name in ("x", "y", "image_radius", "n_genes", "error:ridge")}
    for slide in slides:
        own = of_slide == slide
        place = {"x": number["x"][own], "y": number["y"][own]}
        error = number["error:ridge"][own]
        panels = {"radius of the image": number["image_radius"][own], "expressed genes": number["n_genes"][own]}
        save(spatial_maps(**place, panels=panels), output / f"radius-{slide}.png")
        labels = [label or None for label in np.array(spots["label"], dtype=object)[own]]
        save(spatial_maps(**place, panels={"tissue": labels}), output / f"tissue-{slide}.png")
        panels = {"radius of the image": number["image_radius"][own], "error of the prediction": error}
        save(spatial_maps(**place, panels=panels), output / f"error-{slide}.png")
        known = np.isfinite(error)
        confidences = {name: np.array(spots[f"confidence:{name}"], dtype=float)[own] for name in CURVES}
        confidences["the best order there is"] = -error
        curves = {name: risk_coverage(error[known], values[known]) for name, values in confidences.items()}
        save(risk_coverage_plot(curves, "1 - Pearson of a spot"), output / f"coverage-{slide}.png")


def save(figure, path: Path) -> None:
    """Write a PNG with few colours, a third of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80, facecolor="white")
    Image.open(drawn).convert("RGB").quantize(96).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of delst evaluate, with the protocols named above")
    parser.add_argument("dataset", help="the dataset that was evaluated")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), help="folder of the pictures")
    parser.add_argument("--top", type=int, default=10, help="number of genes to name of each kind")
    options = parser.parse_args()
    record = json.loads(options.results.read_text(encoding="utf-8"))
    slides = list(dict.fromkeys(record["spots"]["slide"]))
    options.output.mkdir(parents=True, exist_ok=True)
    print_genes(record, Study.load(options.dataset), slides, options.top)
    draw(record, slides, options.output)


if __name__ == "__main__":
    main()
