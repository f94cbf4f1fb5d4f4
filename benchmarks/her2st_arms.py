"""The arms of docs/results.md: pretrain and evaluate each on HER2ST, over several seeds, and print the table.

    python benchmarks/her2st_arms.py --dataset runs/her2st/data --vision ../shared/weights/mobilenet_v2

Training slides C2-C4; test slides C5 (held-out section of that tumour) and B4 (held-out patient), never seen. A run that was
killed goes on where it stopped: results that exist are kept. --table prints the table of the results that are there.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STRONG = ["--min_radius", "0.3", "--cross_entailment_weight", "1.0"]
ARMS = {
    "cosine": ["--geometry", "cosine"],
    "Euclidean": ["--geometry", "euclidean"],
    "Lorentz": ["--cross_entailment_weight", "0", "--intra_entailment_weight", "0"],
    "Lorentz + cross": ["--intra_entailment_weight", "0"],
    "Lorentz + cross + intra": [],
    "Lorentz + cross + intra, order shuffled": ["--level_key", "shuffled"],
    "Lorentz + strong cross + intra": [*STRONG, "--intra_entailment_weight", "0.3"],
    "Lorentz + strong cross + intra, order shuffled": [*STRONG, "--intra_entailment_weight", "0.3", "--level_key", "shuffled"],
}
BASELINE_ARM = "Lorentz + cross + intra"
SLIDES = ("C5", "B4")


def run_arm(options: argparse.Namespace, arm: str, seed: int) -> None:
    """Pretrain and evaluate one arm with one seed, unless its results are there."""
    folder = Path(options.output) / f"{arm.replace(' ', '_').replace(',', '')}-{seed}"
    if (folder / "results.json").is_file():
        return
    dataset = ["--dataset", options.dataset]
    pretrain = [sys.executable, str(ROOT / "training/pretrain.py"), str(ROOT / "training/configs/her2st.yaml"), *dataset]
    pretrain += ["--vision", options.vision, "--output_dir", str(folder), "--seed", str(seed), "--disable_tqdm", "true"]
    evaluate = [sys.executable, str(ROOT / "training/evaluate.py"), *dataset, "--model", str(folder / "model")]
    evaluate += ["--test_slides", ",".join(SLIDES), "--output", str(folder / "results.json")]
    evaluate += ["--baselines", str(arm == BASELINE_ARM and seed == options.seeds[0])]
    print(f"{arm}, seed {seed}", flush=True)
    if not (folder / "model").is_dir():
        subprocess.run([*pretrain, *ARMS[arm]], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(evaluate, check=True, stdout=subprocess.DEVNULL)


def summarise(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Every metric of every row of the table, as the list of its values over the seeds (one value for a baseline)."""
    table: dict[str, dict[str, list[float]]] = {}

    def add(row: str, key: str, values: list[float]) -> None:
        table.setdefault(row, {}).setdefault(key, []).extend(values)

    for arm in ARMS:
        for seed in options.seeds:
            path = Path(options.output) / f"{arm.replace(' ', '_').replace(',', '')}-{seed}" / "results.json"
            if not path.is_file():
                continue
            results = json.loads(path.read_text())
            for found in results["arms"]:
                kind, slide = found["arm"], found["slide"]
                if not kind.startswith("DELST") or "shuffled" in kind:
                    row = kind.replace("DELST backbone, ", "")
                    for key in ("pearson_mean", "probe_macro_f1_mean"):
                        add(row, f"{slide} {key}", [found[key]])
                        add(row, f"{slide} {key} sd", [found[f"{key}_sd"]] if f"{key}_sd" in found else [])
                    continue
                what = "pearson" if kind == "DELST backbone" else "embedding pearson"
                add(arm, f"{slide} {what}_mean".replace("pearson_mean", "pearson_mean"), [found["pearson_mean"]])
                if kind == "DELST backbone":
                    add(arm, f"{slide} probe_macro_f1_mean", [found["probe_macro_f1_mean"]])
            for found in results["retrieval"]:
                if "shuffled" not in found["arm"]:
                    for key in ("image_to_gene_recall@10", "gene_to_image_recall@10", "image_to_gene_median_rank"):
                        add(arm, f"{found['slide']} {key}", [found[key]])
            for found in results["hierarchy"]:
                for key, value in found.items():
                    if key != "slide":
                        add(arm, f"{found['slide']} {key}", [value])
    return table


def cell(row: dict[str, list[float]], key: str, digits: int = 3, percent: bool = False) -> str:
    """Mean and sample standard deviation over the seeds."""
    values = [100 * value if percent else value for value in row.get(key, [])]
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else next(iter(row.get(f"{key} sd", [])), None)
    return f"{statistics.mean(values):.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def print_tables(table: dict[str, dict[str, list[float]]]) -> None:
    """The tables of docs/results.md, in Markdown."""
    blocks = {
        "Prediction": [(f"{s} {k}", k, s, 3, False) for k in ("pearson_mean", "embedding pearson_mean", "probe_macro_f1_mean") for s in SLIDES],
        "Retrieval": [(f"{s} {k}", k, s, 1, "recall" in k) for k in ("image_to_gene_recall@10", "gene_to_image_recall@10", "image_to_gene_median_rank") for s in SLIDES],
        "Hierarchy": [(f"{s} {k}", k, s, 2, False) for k in ("image_radius_level_rho", "image_radius", "gene_radius", "gene_half_aperture", "in_cone_matched", "in_cone_mismatched") for s in SLIDES],
    }  # fmt: skip
    for title, columns in blocks.items():
        rows = {name: row for name, row in table.items() if any(key in row for key, *_ in columns)}
        print(f"\n### {title}\n")
        print("| arm | " + " | ".join(f"{slide} {key.replace('_', ' ')}" for _, key, slide, *_ in columns) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for name, row in rows.items():
            print(f"| {name} | " + " | ".join(cell(row, key, digits, percent) for key, _, _, digits, percent in columns) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="runs/her2st/data", help="dataset folder written by `delst prepare her2st`")
    parser.add_argument("--vision", default="google/mobilenet_v2_1.0_224", help="backbone to start from")
    parser.add_argument("--output", default="runs/her2st/arms", help="where each run is kept")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--summary", help="write the values behind the table to this JSON file")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds:
            for arm in ARMS:
                run_arm(options, arm, seed)
    table = summarise(options)
    print_tables(table)
    if options.summary:
        Path(options.summary).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
