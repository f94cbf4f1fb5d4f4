"""Read and write results as one JSON: scores, data, versions, seeds and command; make the Hub's model-index."""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset

from ..atomic.files import write_file
from ..data.places import is_only_id
from ..record import training_record
from .suite import protocol

FORMAT = "delst-results-2"
RESULTS = "results.json"  # name of the file in the folder of a checkpoint
_FINGERPRINT_BATCH = 256  # spots


def results_record(results: Mapping[str, Any], dataset: Dataset, /, **facts: Any) -> dict[str, Any]:
    """Join results with everything needed to reproduce them and to know whether the data were the same.

    Args:
        results: What `evaluate_checkpoint` returned.
        dataset: The spots that were evaluated, for the fingerprint.
        **facts: Model, dataset, seeds and other facts that JSON can hold.
    """
    return training_record(
        format=FORMAT, **facts, data_fingerprint=data_fingerprint(dataset), num_spots=len(dataset), **results
    )


def data_fingerprint(dataset: Dataset) -> str:
    """Return the SHA-256 (16 hex digits) of slides, barcodes, positions, labels, counts and image bytes of spots, in order."""
    digest = hashlib.sha256()
    columns = ("slide_id", "barcode", "x", "y", "label", "gene_indices", "gene_counts", "image")
    for name in (name for name in columns if name in dataset.column_names):
        digest.update(name.encode())
        # Batch by batch: the images of a large study do not fit into memory.
        for batch in dataset.select_columns([name]).with_format("arrow").iter(_FINGERPRINT_BATCH):
            for value in batch[name].to_pylist():
                value = value.get("bytes") if isinstance(value, dict) else value
                digest.update(value if isinstance(value, bytes) else json.dumps(value).encode())
    return digest.hexdigest()[:16]


def write_results(path: str | os.PathLike, record: Mapping[str, Any]) -> Path:
    """Write the record as JSON, with NaN as null, atomically."""
    with write_file(path, "w") as file:  # streamed: the pieces of the text take many times the memory of the text
        json.dump(_finite(record), file, indent=1, allow_nan=False)
        file.write("\n")
    return Path(path)


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read the results of `delst evaluate` or training/evaluate.py: a file, or results.json in the folder of a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no results, or results in the format of another version.

    Examples:
        >>> record = read_results("runs/toy/results.json")
        >>> record["test_slides"]
        ['toy_D1']
    """
    path = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    if not path.is_file():
        if is_only_id(str(path)) and not path.suffix:
            raise FileNotFoundError(
                f"no results at {path}. Those of a model on the Hub are downloaded first: hf download {path} {RESULTS} "
                "--local-dir DIR."
            )
        raise FileNotFoundError(f"no results at {path}. Make them with `delst evaluate MODEL DATASET --output {path}`.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Give the file that `delst evaluate --output` wrote.") from None
    if not isinstance(record, dict) or "test_slides" not in record:
        raise ValueError(
            f"{path} holds no results of an evaluation. Give the file that `delst evaluate --output` wrote."
        )
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {record.get('format')!r}; this version reads {FORMAT!r}. Evaluate again: "
            f"`{_command(record, path)}`."
        )
    wrong = [name for name in ("protocols", "own_arms", "test_slides") if not isinstance(record.get(name, []), list)]
    if wrong or not all(isinstance(row, dict) for row in record.get("protocols", [])):
        raise ValueError(
            f"{path} was changed after `delst evaluate --output` wrote it: {(wrong or ['protocols'])[0]} is not a list of "
            "results. Evaluate again."
        )
    return record


def _command(record: Mapping[str, Any], path: Path) -> str:
    """Return the command that repeats the evaluation of an earlier version."""
    slides = {"--test-slides": record["test_slides"], "--train-slides": record.get("train_slides")}
    options = [part for name, names in slides.items() if names for part in (name, ",".join(names))]
    words = [str(record.get("model", "MODEL")), str(record.get("dataset", "DATASET")), *options, "--output", str(path)]
    return shlex.join(["delst", "evaluate", *words])


def model_index(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Make the `model-index` of a model card: the model's own headline numbers over all test slides.

    Only protocols with a task on the Hub are listed, and only the first of several own arms.
    """
    dataset = {"type": "spatial-transcriptomics", "name": ", ".join(record["test_slides"])}
    if "data_fingerprint" in record:
        dataset["revision"] = record["data_fingerprint"]
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in record["protocols"]:
        which = protocol(row["protocol"])
        if not which.task or not row["own"] or row.get("slide") or row["arm"] in record["own_arms"][1:]:
            continue
        for metric in which.judged:
            if row["metrics"].get(metric) is not None:
                title = f"{which.title_of(row['variant'])}: {metric} of {row['arm']}"
                value = {"type": metric, "name": title, "value": round(row["metrics"][metric], 4)}
                tasks.setdefault(which.task, []).append(value)
    results = [
        {"task": {"type": task}, "dataset": dict(dataset), "metrics": metrics} for task, metrics in tasks.items()
    ]
    return [{"name": name, "results": results}]


def model_index_yaml(record: Mapping[str, Any], name: str) -> str:
    """Return `model_index` as YAML, to be pasted between the `---` of a model card."""
    return yaml.safe_dump({"model-index": model_index(record, name)}, sort_keys=False, allow_unicode=True)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None, and round numbers to ten digits.

    The last digits of a float depend on the number of threads of the linear algebra, and would make equal results differ.
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
