"""Measure the CPU seconds of a complete evaluation, and compare its numbers with those of another version.

    python benchmarks/evaluation.py runs/her2st/pretrain/model runs/her2st/data --test-slides C5,B4 --reference old.json

--reference is the JSON of `delst evaluate` by another version on the same model, data and slides; the format of 2309afe is
read too. Two things differ from 2309afe on purpose: random-init backbones have measured batch norms, so they are listed
separately, and `arms` chooses the floor of the feature scales, so the old Pearson is compared with the floored one.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from delst_hf.commands.evaluate import EvaluationArguments, run_evaluation

Key = tuple[str, str, str, str, str]  # protocol, variant, arm, slide, metric
_OLD = {
    "linear_probe": ("probes", "linear"),
    "knn_probe": ("probes", "knn"),
    "prototype_probe": ("probes", "prototype"),
    "retrieval_within": ("retrieval", "within"),
    "zero_shot": ("signatures", ""),
}


def numbers(record: dict[str, Any]) -> Iterator[tuple[Key, float]]:
    """Return every metric of results, by a name that does not depend on their format."""
    for row in record.get("arms", []):  # as 2309afe wrote them
        for metric, value in row.items():
            name = metric.replace("pearson_mean", "pearson_floored") if metric.startswith("pearson_mean") else metric
            if isinstance(value, float):
                yield ("arms", "", row["arm"], row["slide"], name), value
    for row in record["protocols"]:
        protocol, _, variant = row["protocol"].partition("[")
        protocol, variant = _OLD.get(protocol, (protocol, row.get("variant", variant.removesuffix("]"))))
        slide = row.get("slide", "all test slides")
        for metric, value in row["metrics"].items():
            if value is not None:
                yield (protocol, variant, row["arm"], slide, metric), float(value)
        for metric, interval in row["intervals"].items():
            if interval["low"] is not None:
                yield (protocol, variant, row["arm"], slide, f"{metric}, low"), interval["low"]
                yield (protocol, variant, row["arm"], slide, f"{metric}, high"), interval["high"]


def print_comparison(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Print per protocol how many numbers both have, how many are equal to 1e-6, and the largest difference."""
    first, second = dict(numbers(ours)), dict(numbers(theirs))
    by_protocol: dict[str, list[tuple[float, Key]]] = defaultdict(list)
    for key in first.keys() & second.keys():
        name = f"{key[0]}[{key[1]}]" if key[1] else key[0]
        kind = "random-init" if key[2].startswith("random-init") else "other arms"
        by_protocol[f"{name}, {kind}"].append((abs(first[key] - second[key]), key))
    print(f"{'protocol':40} {'numbers':>8} {'equal':>6} {'largest difference':>19}")
    for name in sorted(by_protocol):
        differences = by_protocol[name]
        largest, where = max(differences)
        equal = sum(difference <= 1e-6 for difference, _ in differences)
        print(
            f"{name:40} {len(differences):8} {equal:6} {largest:19.2g}   {' / '.join(where[2:]) if largest > 1e-6 else ''}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--test-slides", default="")
    parser.add_argument("--protocols", default="all")
    parser.add_argument("--signatures")
    parser.add_argument(
        "--frozen-backbone", help="folder or Hub id of the backbone, if the one in the training record no longer exists"
    )
    parser.add_argument("--reference", help="results of another version to compare with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        run_evaluation(
            EvaluationArguments(
                options.model,
                options.dataset,
                test_slides=options.test_slides,
                protocols=options.protocols,
                signatures=options.signatures,
                frozen_backbone=options.frozen_backbone,
                output=str(output),
            )
        )
        print(f"\n{time.process_time():.0f} CPU seconds, the start of Python and all imports included")
        if options.reference:
            print_comparison(json.loads(output.read_text()), json.loads(Path(options.reference).read_text()))


if __name__ == "__main__":
    main()
