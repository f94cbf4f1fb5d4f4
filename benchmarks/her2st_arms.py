"""Pretrain and evaluate each arm of docs/results.md on HER2ST, over several seeds, and print the tables.

    python benchmarks/her2st_arms.py --dataset runs/her2st/data --vision ../shared/weights/mobilenet_v2

Training slides are C2-C4. Test slides, never seen, are C5 (held-out section of that tumour), B4 (held-out patient) and A1
(another held-out patient, labelled by a pathologist, image at 3.4 um/px). A killed run resumes: existing results are kept.
--table only prints the tables of the existing results.
"""

import argparse
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delst_hf.evaluation.results import read_results

ROOT = Path(__file__).resolve().parents[1]
SIGNATURES = Path(__file__).with_name("her2st_signatures.json")
STRONG = ["--min_radius", "0.3", "--cross_entailment_weight", "1.0", "--intra_entailment_weight", "0.3"]
ARMS = {
    "cosine": ["--geometry", "cosine"],
    "Euclidean": ["--geometry", "euclidean"],
    "Lorentz": ["--cross_entailment_weight", "0", "--intra_entailment_weight", "0"],
    "Lorentz + cross": ["--intra_entailment_weight", "0"],
    "Lorentz + cross + intra": [],
    "Lorentz + cross + intra, order shuffled": ["--level_key", "shuffled"],
    "Lorentz + cross + intra, order by total counts": ["--level_key", "total_counts"],
    "Lorentz + strong cross + intra": STRONG,
    "Lorentz + strong cross + intra, order shuffled": [*STRONG, "--level_key", "shuffled"],
    "Lorentz + strong cross + intra, order by total counts": [*STRONG, "--level_key", "total_counts"],
}
BASELINES = ("colour statistics", "random-init backbone", "frozen backbone", "shuffled pairs")
BASELINE_RUN = ("Lorentz + cross + intra", 0)  # the arm and seed whose evaluation scores the baselines too
SLIDES = ("C5", "B4", "A1")


@dataclass(frozen=True)
class Column:
    """One metric of the tables, shown once per test slide."""

    key: str
    title: str
    digits: int = 3
    factor: float = 1.0


TABLES = {
    "Prediction": [
        Column("backbone pearson_mean", "Pearson, backbone"),
        Column("embedding pearson_mean", "Pearson, embedding"),
        Column("backbone probe_macro_f1_mean", "probe F1, backbone"),
        Column("embedding probe_macro_f1_mean", "probe F1, embedding"),
    ],
    "Retrieval over the whole slide": [
        Column("image_to_gene_recall@10", "image to gene R@10, %", 1, 100),
        Column("gene_to_image_recall@10", "gene to image R@10, %", 1, 100),
        Column("image_to_gene_median_rank", "image to gene median rank", 0),
    ],
    "Hierarchy": [
        Column("curvature", "curvature", 2),
        Column("image_radius", "image radius", 2),
        Column("gene_radius", "gene radius", 2),
        Column("gene_half_aperture", "gene half-aperture, degrees", 0),
        Column("in_cone_matched", "in cone", 2),
        Column("in_cone_mismatched", "in cone, mismatched", 2),
        Column("image_radius_level_rho", "rho(image radius, genes)", 2),
        Column("gene_radius_level_rho", "rho(gene radius, genes)", 2),
    ],
}
# Protocols of docs/evaluation.md over all test slides: (protocol, variant, arm of the results, metric) -> column.
PROTOCOLS = {
    ("hest", "", "DELST backbone", "pearson_mean"): Column("hest", "HEST, backbone"),
    ("hest", "alpha=cv", "DELST backbone", "pearson_mean"): Column("hest_cv", "HEST alpha=cv, backbone"),
    ("probes", "linear", "DELST backbone", "macro_f1"): Column("probe", "linear probe F1, backbone"),
    ("probes", "linear", "DELST embedding", "macro_f1"): Column("probe_embedding", "linear probe F1, embedding"),
    ("probes", "knn", "DELST embedding", "macro_f1"): Column("knn", "kNN F1, embedding"),
    ("retrieval", "within", "DELST", "image_to_gene_recall@10"): Column("within", "R@10 within slide, %", 1, 100),
    ("imputation", "", "DELST", "imputation_pearson_within"): Column(
        "imputation", "", "imputation, Pearson within slide"
    ),
    ("signatures", "", "immune", "auroc"): Column("immune", "AUROC immune"),
    ("signatures", "", "stroma", "auroc"): Column("stroma", "AUROC stroma"),
    ("signatures", "", "HER2 amplicon", "auroc"): Column("her2", "AUROC HER2"),
}
ALL = "all"
# (row, slide, metric) -> its values, one per seed; a baseline of several networks has its own spread.
Values = dict[tuple[str, str, str], list[float]]


def run_folder(options: argparse.Namespace, arm: str, seed: int) -> Path:
    return Path(options.output) / f"{arm.replace(' ', '_').replace(',', '')}-{seed}"


def run_arm(options: argparse.Namespace, arm: str, seed: int) -> None:
    """Pretrain and evaluate one arm with one seed, unless its results exist."""
    folder = run_folder(options, arm, seed)
    if (folder / "results.json").is_file():
        return
    dataset = ["--dataset", options.dataset]
    pretrain = [
        sys.executable,
        str(ROOT / "training/pretrain.py"),
        str(ROOT / "training/configs/her2st.yaml"),
        *dataset,
    ]
    pretrain += ["--vision", options.vision, "--output_dir", str(folder), "--seed", str(seed), "--disable_tqdm", "true"]
    evaluate = [sys.executable, str(ROOT / "training/evaluate.py"), *dataset, "--model", str(folder / "model")]
    evaluate += ["--test_slides", ",".join(SLIDES), "--output", str(folder / "results.json")]
    evaluate += ["--signatures", str(SIGNATURES), "--baselines", str((arm, seed) == BASELINE_RUN)]
    print(f"{arm}, seed {seed}", flush=True)
    if not (folder / "model").is_dir():
        subprocess.run([*pretrain, *ARMS[arm]], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(evaluate, check=True, stdout=subprocess.DEVNULL)


def collect(options: argparse.Namespace) -> Values:
    """Return the values of every row of the tables, from the existing results."""
    values: Values = defaultdict(list)
    for arm in ARMS:
        for seed in options.seeds:
            path = run_folder(options, arm, seed) / "results.json"
            if not path.is_file():
                continue
            for row in read_results(path)["protocols"]:
                add_row(values, arm, row)
    return values


def add_row(values: Values, arm: str, row: dict[str, Any]) -> None:
    """Add the values of one row of results that the tables show."""
    metrics, protocol, own = row["metrics"], row["protocol"], row["arm"]
    name = arm if row["own"] else "shuffled pairs" if row["control"] else own
    if row.get("slide") and protocol == "arms":
        kind = own.removeprefix("DELST ") if row["own"] else "backbone"
        for key in ("pearson_mean", "pearson_mean_sd", "probe_macro_f1_mean", "probe_macro_f1_mean_sd"):
            if key in metrics:
                values[name, row["slide"], f"{kind} {key}"].append(metrics[key])
    elif row.get("slide"):
        for key, value in metrics.items():
            values[name, row["slide"], key].append(value)
    for (wanted, variant, of, metric), column in PROTOCOLS.items():
        here = (protocol, row["variant"]) == (wanted, variant) and not row.get("slide")
        if here and metrics.get(metric) is not None and (own == of or not (row["own"] or of.endswith("embedding"))):
            values[name, ALL, column.key].append(metrics[metric])


def cell(values: Values, row: str, slide: str, column: Column) -> str:
    """Return mean and sample standard deviation over the seeds, as text."""
    found = [column.factor * value for value in values.get((row, slide, column.key), [])]
    if not found:
        return ""
    own_spread = values.get((row, slide, f"{column.key}_sd"), [None])[0]
    spread = statistics.stdev(found) if len(found) > 1 else own_spread
    return f"{statistics.mean(found):.{column.digits}f}" + ("" if spread is None else f" ± {spread:.{column.digits}f}")


def print_tables(values: Values) -> None:
    """Print the tables of docs/results.md in Markdown, each cell with one value per test slide."""
    rows = sorted({row for row, _, _ in values}, key=lambda row: [*BASELINES, *ARMS].index(row))
    tables = {**TABLES, "Protocols, over all test slides": list(PROTOCOLS.values())}
    for title, columns in tables.items():
        slides = SLIDES if title in TABLES else (ALL,)
        shown = [row for row in rows if any((row, slides[0], column.key) in values for column in columns)]
        print(f"\n### {title}" + (f" ({' / '.join(slides)})" if len(slides) > 1 else "") + "\n")
        print("| arm | runs | " + " | ".join(column.title for column in columns) + " |")
        print("|---" * (len(columns) + 2) + "|")
        for row in shown:
            cells = (" / ".join(cell(values, row, slide, column) for slide in slides) for column in columns)
            runs = max(len(values.get((row, slides[0], column.key), ())) for column in columns)
            print(f"| {row} | {runs} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", default="runs/her2st/data", help="dataset folder written by `delst prepare her2st`"
    )
    parser.add_argument("--vision", default="google/mobilenet_v2_1.0_224", help="backbone to start from")
    parser.add_argument("--output", default="runs/her2st/arms", help="folder for the runs")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, metavar="ARM", help="arms to run, by their names in the table"
    )
    parser.add_argument("--table", action="store_true", help="only print the tables of the existing results")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds:
            for arm in options.arms or ARMS:
                run_arm(options, arm, seed)
    print_tables(collect(options))


if __name__ == "__main__":
    main()
