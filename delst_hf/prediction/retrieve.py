"""The reference's answer for a slide: profiles and labels of the nearest training spots, and the spots most like a position."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from ..data.places import check_prediction
from .outputs import Prediction, full_disk_explained, write_prediction
from .predict import PatchChoice, open_source, provenance, state_of
from .predictor import Predictor, load_predictor
from .reference import FaissSearch, Reference, load_reference
from .shards import Shards, run, workspace

MODALITIES = ("gene", "image")
SEARCHES = ("exact", "faiss")


def retrieve_slide(
    model: str,
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    neighbours: int = 10,
    modality: str = "image",
    search: str = "exact",
    reference: str | None = None,
    choice: PatchChoice | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Prediction:
    """Find the nearest spots of the reference for every patch of a slide, and write their mean profile and commonest label.

    Args:
        model: Folder or Hub id of a checkpoint.
        source: As in `predict_slide`.
        output: .h5ad, .zarr (SpatialData) or .parquet to write.
        neighbours: Spots per patch.
        modality: Compare the patch with the "image" or the "gene" embeddings of the spots.
        search: "exact" compares with all spots, "faiss" searches a graph (extra ``faiss``).
        reference: Checkpoint with a reference; by default the model.
        choice: Which patches to compare.
        batch_size: Patches per batch.
        num_workers: Threads that read patches.
        overwrite: Replace a file at `output`.
        progress: Show a bar.

    Returns:
        The prediction that was written: X is the mean profile (log-normalised) of the nearest spots,
        ``delst_probabilities`` the share of each label among them, ``delst_neighbours`` their rows in
        ``uns["delst_reference"]``, nearest first.

    Raises:
        ValueError: If an option has a value that is not allowed, or the slide cannot be predicted.
        FileNotFoundError: If there is no reference.
        FileExistsError: If `output` exists.

    Examples:
        >>> choice = PatchChoice(mpp=2.0, patch_um=112)
        >>> found = retrieve_slide("runs/toy/expression", "he.png", "near.h5ad", choice=choice, num_workers=0, progress=False)
        >>> Path("near.h5ad").exists()
        True
    """
    for name, value, allowed in (("by", modality, MODALITIES), ("search", search, SEARCHES)):
        if value not in allowed:
            raise ValueError(f"--{name} is {value!r}. Allowed: {', '.join(allowed)}.")
    output, choice = Path(output), choice or PatchChoice()
    check_prediction(output, overwrite)
    predictor = load_predictor(model)
    known = _reference(predictor, reference or model, neighbours)
    patches = open_source(source, predictor, choice)
    told = {
        "model": state_of(model),
        "reference": state_of(reference or model),
        "source": state_of(source),
        "choice": asdict(choice),
        "retrieve": 1,
    }
    with full_disk_explained(output), workspace(output, told, partial(check_prediction, output, overwrite)) as folder:
        embedded = run(patches, predictor, folder, ("tangent", "radius"), batch_size, num_workers, progress)
        classes = sorted({name for name in known.spots["label"] if isinstance(name, str) and name})
        graph = FaissSearch(predictor, known.gene if modality == "gene" else known.image) if search == "faiss" else None
        nearest = partial(known.nearest, predictor, number=neighbours, modality=modality, search=graph)
        shards = Shards([_found(path, known, nearest, classes) for path in embedded.paths])
        facts = provenance(predictor, patches) | {"neighbours": neighbours, "compared_with": f"{modality} embeddings"}
        prediction = Prediction(
            source=patches,
            shards=shards,
            predicted=known.genes,
            genes=pd.DataFrame(index=pd.Index(known.genes, name="gene")),
            classes=classes,
            distance=shards.column("distances").mean(axis=1),
            provenance=facts,
            reference=known.spots,
        )
        write_prediction(output, prediction, overwrite)
    return prediction


def _reference(predictor: Predictor, place: str, neighbours: int) -> Reference:
    known = load_reference(place, required=True, predictor=predictor)
    assert known is not None
    if not 1 <= neighbours <= len(known.spots):
        raise ValueError(f"--neighbours is {neighbours}. Allowed: 1 to {len(known.spots)}, the spots of the reference.")
    width = predictor.model.config.projection_dim
    if known.image.shape[1] != width:
        raise ValueError(
            f"the reference in {place} has embeddings of {known.image.shape[1]} numbers, but the model's have {width}: another "
            "model made the reference. Make one with this model: delst reference MODEL DATASET."
        )
    return known


def _found(
    path: Path, known: Reference, nearest: Callable[..., tuple[np.ndarray, np.ndarray]], classes: list[str]
) -> Path:
    """Turn a shard of embeddings into one of neighbours, profiles and shares of labels, written beside it."""
    arrays = load_file(path)
    places, distances = nearest(tangent=arrays["tangent"])
    found = {
        "tangent": arrays["tangent"],
        "radius": arrays["radius"],
        "expression": known.impute(places),
        "neighbours": places.astype(np.int32),
        "distances": distances.astype(np.float32),
    }
    if classes:
        found["probabilities"] = known.shares(places, classes)
    target = path.with_suffix(".found")
    save_file(found, target)
    return target


def spots_like(
    model: str,
    source: str | os.PathLike,
    places: Any,
    *,
    neighbours: int = 5,
    modality: str = "image",
    reference: str | None = None,
    choice: PatchChoice | None = None,
) -> Iterator[pd.DataFrame]:
    """Find the spots of the reference that are most similar to a slide at given positions.

    Args:
        model: Folder or Hub id of a checkpoint.
        source: Image of a slide.
        places: x and y (positions, 2) in pixels of the full resolution.
        neighbours: As in `retrieve_slide`.
        modality: As in `retrieve_slide`.
        reference: As in `retrieve_slide`.
        choice: Scale and size of the patches.

    Yields:
        For each position a table of the nearest spots: slide_id, barcode, label, x, y, distance and top_genes, nearest first.

    Examples:
        >>> choice = PatchChoice(mpp=2.0, patch_um=112)
        >>> table = next(spots_like("runs/toy/expression", "he.png", [(150, 150)], neighbours=3, choice=choice))
        >>> len(table), table.columns[-2:].tolist()
        (3, ['distance', 'top_genes'])
    """
    predictor = load_predictor(model)
    known = _reference(predictor, reference or model, neighbours)
    table = pd.DataFrame(np.asarray(places, dtype=float).reshape(-1, 2), columns=["x", "y"])
    table.index = pd.Index([f"place{i}" for i in range(len(table))])
    patches = open_source(source, predictor, replace(choice or PatchChoice(), positions=table))
    arrays = predictor(patches.read(list(range(len(patches)))))
    rows, distances = known.nearest(predictor, arrays["tangent"], neighbours, modality)
    for row, distance in zip(rows, distances, strict=True):
        yield known.describe(row, distance)
