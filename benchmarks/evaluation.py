"""Measure the CPU seconds of a complete evaluation, and compare its numbers with those of another version.

    python benchmarks/evaluation.py runs/her2st/pretrain/model runs/her2st/data --test-slides C5,B4 --reference old.json

--reference is the JSON of `delst evaluate` by another version on the same model, data and slides; the format of 2309afe is
read too. Two things differ from 2309afe on purpose: random-init backbones have measured batch norms, so they are listed
separately, and `arms` chooses the floor of the feature scales, so the old Pearson is compared with the floored one.

--steps adds the CPU seconds of each step, those of a step inside another one not counted twice; run it with OMP_NUM_THREADS=1.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
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


class Steps:
    """CPU seconds and calls of functions, less those of the functions inside them; for a single thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inside = [0.0]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose time is added to the step."""

        def wrapper(*args: Any, **options: Any) -> Any:
            begun = time.process_time()
            self._inside.append(0.0)
            try:
                return function(*args, **options)
            finally:
                spent = time.process_time() - begun
                self.seconds[name] += spent - self._inside.pop()
                self.calls[name] += 1
                self._inside[-1] += spent

        return wrapper

    def watch(self) -> None:
        """Replace the functions of the steps by timed ones. Everything is imported before, which is a step of its own."""
        import sklearn.decomposition

        from delst_hf.evaluation import linear_probe, subjects, suite
        from delst_hf.evaluation.protocols import hest, stimage1k4m

        whole = {name: suite.protocol(name) for name in suite.SUITE}
        timed = {name: dataclasses.replace(each, run=self.timed(name, each.run)) for name, each in whole.items()}
        suite.protocol = timed.__getitem__
        for step, owner, function in (
            ("backbones over patches, gene encoder", subjects._Embedder, "__call__"),
            ("backbones over patches, gene encoder", subjects._Embedder, "random_features"),
            ("colour statistics", subjects, "_colours"),
            ("SGD of the linear probes", linear_probe, "fit_classifier"),
            ("SGD of the linear probes", stimage1k4m, "fit_classifier"),
            ("LSQR of hest", hest, "lsqr_ridge"),
            ("PCA of hest", sklearn.decomposition.PCA, "fit_transform"),
        ):
            setattr(owner, function, self.timed(step, getattr(owner, function)))
        self.seconds["start of Python, imports"] = time.process_time()

    def print(self, total: float) -> None:
        """Print the steps, longest first, and what is in none of them."""
        self.seconds["all else: data, tables, what a report draws"] = total - sum(self.seconds.values())
        for step, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            print(f"{step:48} {seconds:6.1f} s {self.calls[step] or '':>5}")


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
    parser.add_argument("--steps", action="store_true", help="print the CPU seconds of each step")
    parser.add_argument("--reference", help="results of another version to compare with")
    options, steps = parser.parse_args(), Steps()
    if options.steps:
        steps.watch()
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
        total = time.process_time()
        if options.steps:
            steps.print(total)
        print(f"\n{total:.0f} CPU seconds, the start of Python and all imports included")
        if options.reference:
            print_comparison(json.loads(output.read_text()), json.loads(Path(options.reference).read_text()))


if __name__ == "__main__":
    main()
