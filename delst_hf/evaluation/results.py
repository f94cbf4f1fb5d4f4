"""One JSON of results: what was measured on which data, by which versions, seeds and command; and the Hub's model-index."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset

from ..atomic import write_text
from ..record import training_record
from .resampled import f1_statistic, mean_statistic, pearson_statistic
from .uncertainty import Bootstrap, Statistic

FORMAT = "delst-results-1"
RESULTS = "results.json"  # its name in the folder of a checkpoint
# protocol, metric -> the Hub's task and a name that stands on its own; the arm is the model's first, or its space.
_INDEXED = {
    ("hest", "pearson_mean"): ("expression-prediction", "Pearson, HEST protocol, backbone"),
    ("hest[alpha=cv]", "pearson_mean"): ("expression-prediction", "Pearson, HEST protocol, alpha=cv, backbone"),
    ("linear_probe", "macro_f1"): ("image-classification", "Macro-F1, linear probe on unseen groups, backbone"),
    ("stimage1k4m", "macro_f1_mean"): ("image-classification", "Macro-F1, STimage-1K4M protocol, backbone"),
    ("retrieval", "image_to_gene_recall@10"): ("image-gene-retrieval", "Image to gene recall@10"),
    ("retrieval", "gene_to_image_recall@10"): ("image-gene-retrieval", "Gene to image recall@10"),
}


def results_record(results: Mapping[str, Any], *, spots: Dataset, **facts: Any) -> dict[str, Any]:
    """Results with everything needed to run them again and to know whether the data were the same.

    Args:
        results: What `evaluate_checkpoint` returned.
        spots: The spots that were evaluated, for the fingerprint.
        **facts: Model, dataset, seeds and whatever else JSON holds.
    """
    return training_record(
        format=FORMAT, **facts, data_fingerprint=data_fingerprint(spots), num_spots=len(spots), **results
    )


def data_fingerprint(spots: Dataset) -> str:
    """SHA-256 (16 hex digits) of slides, barcodes, positions, labels, counts and image bytes of the spots, in order."""
    digest = hashlib.sha256()
    columns = ("slide_id", "barcode", "x", "y", "label", "gene_indices", "gene_counts", "image")
    table = spots.select_columns([name for name in columns if name in spots.column_names]).flatten_indices().data.table
    for name in table.column_names:
        digest.update(name.encode())
        for value in table[name].to_pylist():
            value = value.get("bytes") if isinstance(value, dict) else value
            digest.update(value if isinstance(value, bytes) else json.dumps(value).encode())
    return digest.hexdigest()[:16]


def write_results(path: str | os.PathLike, record: Mapping[str, Any]) -> Path:
    """Write the record as JSON, NaN as null, whole or not at all."""
    write_text(path, json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")
    return Path(path)


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON of `delst evaluate` or training/evaluate.py.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}. Make them with `delst evaluate MODEL DATASET --output {path}`.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). Give the file that `delst evaluate --output` wrote.") from None
    if not isinstance(record, dict) or "arms" not in record or "test_slides" not in record:
        raise ValueError(
            f"{path} holds no results of an evaluation. Give the file that `delst evaluate --output` wrote."
        )
    return record


def own_arms(record: Mapping[str, Any]) -> list[str]:
    """The arms that are the model's own, the first of which stands for it; the others are baselines."""
    return record.get("own_arms") or ["DELST backbone", "DELST embedding"]


def model_index(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The `model-index` of a model card: the checkpoint's own headline numbers, each by the name of its protocol."""
    dataset = {"type": "spatial-transcriptomics", "name": ", ".join(record["test_slides"])}
    if "data_fingerprint" in record:
        dataset["revision"] = record["data_fingerprint"]
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in record.get("protocols", []):
        is_own = row["arm"] == own_arms(record)[0] or (row["protocol"] == "retrieval" and "shuffled" not in row["arm"])
        for (protocol, metric), (task, title) in _INDEXED.items():
            if is_own and row["protocol"] == protocol and row["metrics"].get(metric) is not None:
                value = {"type": metric, "name": title, "value": round(row["metrics"][metric], 4)}
                tasks.setdefault(task, []).append(value)
    results = [
        {"task": {"type": task}, "dataset": dict(dataset), "metrics": metrics} for task, metrics in tasks.items()
    ]
    return [{"name": name, "results": results}]


def model_index_yaml(record: Mapping[str, Any], name: str) -> str:
    """`model_index` as YAML, to be pasted between the `---` of a model card."""
    return yaml.safe_dump({"model-index": model_index(record, name)}, sort_keys=False, allow_unicode=True)


def compare_results(
    first: Mapping[str, Any], second: Mapping[str, Any], resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Paired comparison of two models evaluated on the same spots and folds.

    Args:
        first, second: Records with per-spot values, of the same data.
        resamples, seed: Of the bootstrap, over slides or over spots within slides, as the intervals of the first.

    Returns:
        One row a quantity that both have: macro_f1 of each probe and arm, recall@10 and mean rank in both directions, Pearson
        of HEST. A positive difference says that the first is higher (for ranks: worse).

    Raises:
        ValueError: if the data differ, or per-spot values are missing.
    """
    fingerprints = [record.get("data_fingerprint") for record in (first, second)]
    if fingerprints[0] != fingerprints[1] or first["test_slides"] != second["test_slides"]:
        raise ValueError(
            f"the results are of different data: fingerprints {fingerprints}, test slides {first['test_slides']} and "
            f"{second['test_slides']}. Evaluate both models on the same dataset and slides."
        )
    if "spots" not in first or "spots" not in second:
        raise ValueError(
            "results without per-spot values cannot be paired. Run `delst evaluate` without --protocols none."
        )
    rows = []
    for name, metric, kept, statistics in _common(first, second):
        slides = np.array(first["spots"]["slide"])[kept]
        unit = first.get("interval_unit", "spots") if len(set(slides)) > 1 else "spots"
        bootstrap = Bootstrap(int(kept.sum()), slides, unit, resamples=resamples, seed=seed)
        found = bootstrap.difference(statistics[0], statistics[1])
        rows.append({"quantity": name, "metric": metric, **found})
    return rows


def _common(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, str, np.ndarray, tuple[Statistic, ...]]]:
    """What both results hold spot by spot: its name, the metric, the spots and the metric of either as a function of rows."""
    ours, theirs = first["spots"], second["spots"]
    for name, other in _same_quantities(first, second):
        kept = np.array([a is not None and b is not None for a, b in zip(ours[name], theirs[other])])
        if not kept.any():
            continue
        left, right = (np.array(values, dtype=object)[kept] for values in (ours[name], theirs[other]))
        if name.startswith("predicted:"):
            truth = np.array(ours["label"], dtype=object)[kept].astype(str)
            yield name, "macro_f1", kept, tuple(f1_statistic(truth, side.astype(str)) for side in (left, right))
        else:
            ranks = [side.astype(float) for side in (left, right)]
            yield name, "recall@10", kept, tuple(mean_statistic(rank <= 10) for rank in ranks)
            yield name, "mean_rank", kept, tuple(mean_statistic(rank) for rank in ranks)
    sides = [record.get("expression") or {} for record in (first, second)]
    if all(sides) and sides[0]["genes"] == sides[1]["genes"] and sides[0]["groups"] == sides[1]["groups"]:
        measured, groups = np.array(sides[0]["measured"]), np.array(sides[0]["groups"])
        pair = tuple(pearson_statistic(np.array(side["predicted"]), measured, groups) for side in sides)
        yield f"{sides[0]['protocol']}:{sides[0]['arm']}", "pearson_mean", np.ones(len(measured), dtype=bool), pair


def _same_quantities(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names of per-spot values that mean the same in both: the first own arm of one model is that of the other."""
    same = dict(zip(own_arms(first), own_arms(second)))
    pairs = []
    for name in first["spots"]:
        if name.startswith("rank:"):
            pairs.append((name, name))
        elif name.startswith("predicted:"):
            kind, probe, arm = name.split(":", 2)
            pairs.append((name, f"{kind}:{probe}:{same.get(arm, arm)}"))
    return [(name, other) for name, other in pairs if other in second["spots"]]


def _finite(value: Any) -> Any:
    """The same with NaN and infinity, which are not JSON, as None, and numbers to ten digits.

    The last ones of a float depend on the number of threads of the linear algebra, and would make equal results differ.
    """
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float):
        return value
    return float(f"{value:.10g}") if np.isfinite(value) else None
