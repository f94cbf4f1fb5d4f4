"""The arrays that `Suite` reads, taken from a checkpoint and a study; and what its report draws beside the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.study import Study
from ..modeling_delst import DelstModel
from ..processing_delst import DelstProcessor
from .embed import Embeddings
from .evidence import Space, Spots
from .expression import log_normalize
from .hierarchy_report import traversal
from .preparation import missing_rows
from .retrieval import retrieval_ranks
from .signatures import signature_map, signature_profile
from .suite import SUITE, Suite

# name -> {"genes": {name: weight} or [names], "region": label}
Signatures = Mapping[str, Mapping[str, Any]]


def run_suite(
    model: DelstModel,
    processor: DelstProcessor,
    study: Study,
    spots: Dataset,
    embeddings: Embeddings,
    features: Mapping[str, np.ndarray],
    test_slides: Sequence[str],
    *,
    protocols: Sequence[str] = SUITE,
    signatures: Signatures | None = None,
    ignore_labels: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Run the protocols on the embeddings of a checkpoint.

    Args:
        model: The checkpoint's model; it embeds signatures.
        processor: Its processor.
        study: The dataset folder.
        spots: The spots that were embedded, of training and test slides.
        embeddings: Of these spots, by the model.
        features: Arm -> features of these spots.
        test_slides: Slides to score.
        protocols: Which of `SUITE`.
        signatures: Name -> {"genes": {gene: weight} or [genes], "region": label or nothing}. Beside them, the mean profile of
            each label on the training slides is tried as a signature of that label.
        ignore_labels: Labels that are no tissue class.
        seed: Of clusterings, probes, controls and resamples.
        resamples: Of every interval.

    Returns:
        ``protocols`` (rows with metrics and intervals), ``comparisons`` (paired), ``per_gene`` and ``spots`` (lists, one
        entry a test spot: slide, x, y, label, predictions, ranks, maps, radii and 2-D coordinates), ``space`` (geometry),
        ``gallery`` (queries at the quartiles of rank, not chosen by eye) and ``traversals`` (from images to the origin).
    """
    known = _spots(study, spots, test_slides, ignore_labels)
    space = _space(model, processor, known, embeddings, signatures or {})
    suite = Suite(known, features, space, seed, resamples).run(protocols)
    return {
        "protocols": suite.rows,
        "comparisons": suite.comparisons,
        "per_gene": suite.per_gene,
        "interval_unit": suite.unit,
        "spots": _per_spot(suite),
        "space": _space_facts(space),
        "gallery": _gallery(suite),
        "traversals": _traversals(suite),
    }


def _spots(study: Study, spots: Dataset, test_slides: Sequence[str], ignore_labels: Sequence[str]) -> Spots:
    columns = spots.remove_columns("image").with_format("numpy")
    slides = np.asarray(columns["slide_id"][:])
    labels = np.array([None if label in ignore_labels else label for label in spots["label"]], dtype=object)
    return Spots(
        slides=slides,
        patients=np.asarray(columns["patient_id"][:]),
        test=np.isin(slides, list(test_slides)),
        labels=labels,
        positions=np.column_stack([columns["x"][:], columns["y"][:]]).astype(np.float64),
        counts=study.counts(spots),
        genes=study.gene_names,
    )


def _space(
    model: DelstModel, processor: DelstProcessor, spots: Spots, embeddings: Embeddings, signatures: Signatures
) -> Space:
    config = model.config
    extractor = processor.feature_extractor
    profiles, regions = _profiles(extractor.vocabulary, spots, signatures)
    with torch.no_grad():
        values = torch.from_numpy(np.stack(list(profiles.values()))).float().to(model.device)
        embeds = model.get_gene_features(values).pooler_output
    named = dict(zip(profiles, embeds.cpu().numpy(), strict=True))  # type: ignore[union-attr]
    lorentz = config.geometry == "lorentz"
    return Space(
        image=embeddings.image_embeds,
        gene=embeddings.gene_embeds,
        geometry=config.geometry,
        curvature=model.curvature.item() if lorentz else None,
        curvature_bounds=model.curvature_bounds if lorentz else None,
        parent=config.cross_parent,
        min_radius=config.min_radius,
        mean_profile=named.pop("mean profile")[None],
        signatures=named,
        regions=regions,
    )


def _profiles(
    vocabulary: Sequence[str], spots: Spots, signatures: Signatures
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Normalised profiles over the vocabulary: the mean training spot, each signature, each label's mean training spot."""
    column = {name: index for index, name in enumerate(spots.genes)}
    train = np.flatnonzero(~spots.test)
    shared = [index for index, name in enumerate(vocabulary) if name in column]
    expression = np.zeros((len(train), len(vocabulary)), dtype=np.float32)
    expression[:, shared] = log_normalize(spots.counts[train])[:, [column[vocabulary[i]] for i in shared]].toarray()
    mean, spread = expression.mean(axis=0), expression.std(axis=0)
    profiles, regions = {"mean profile": mean.astype(np.float64)}, {}
    for name, signature in signatures.items():
        profiles[name] = signature_profile(signature["genes"], vocabulary, mean, spread)
        if signature.get("region"):
            regions[name] = str(signature["region"])
    labels = spots.labels[train]
    for label in np.unique(labels[~missing_rows(labels)].astype(str)):
        profiles[f"mean profile of {label}"] = expression[labels == label].mean(axis=0).astype(np.float64)
        regions[f"mean profile of {label}"] = str(label)
    return profiles, regions


def _per_spot(suite: Suite) -> dict[str, list[Any]]:
    """One list a quantity, one entry a test spot, ready for JSON."""
    spots, space, rows = suite.spots, suite.space, suite.test_rows
    result: dict[str, list[Any]] = {
        "slide": spots.slides[rows].tolist(),
        "x": spots.positions[rows, 0].round(1).tolist(),
        "y": spots.positions[rows, 1].round(1).tolist(),
        "label": spots.labels[rows].tolist(),
        "n_genes": np.diff(spots.counts.indptr)[rows].tolist(),
        "total_counts": np.asarray(spots.counts.sum(axis=1)).reshape(-1)[rows].tolist(),
    }
    for name, values in suite.per_spot.items():
        result[name] = [_plain(value) for value in values[rows]]
    image, gene = space.tangent(space.image)[rows], space.tangent(space.gene)[rows]
    for modality, tangent, plane in zip(("image", "gene"), (image, gene), _planes(image, gene)):
        result[f"{modality}_radius"] = np.linalg.norm(tangent, axis=1).round(5).tolist()
        result[f"{modality}_plane"] = plane.round(4).tolist()
    return result


def _space_facts(space: Space) -> dict[str, Any]:
    names = ("geometry", "curvature", "curvature_bounds", "parent", "min_radius")
    return {name: getattr(space, name) for name in names}


def _gallery(suite: Suite, retrieved: int = 5) -> list[dict[str, Any]]:
    """Image queries at the best, the quartile and the worst rank of their own genes, and the spots retrieved for each."""
    spots, space, rows = suite.spots, suite.space, suite.test_rows
    ranks = retrieval_ranks(space.image[rows], space.gene[rows], similarity=space.geometry, curvature=space.curvature)
    order = np.argsort(ranks, kind="stable")
    queries = order[[round(share * (len(order) - 1)) for share in (0.0, 0.25, 0.5, 0.75)]]
    scores = signature_map(space.gene[rows], space.image[rows[queries]], space.geometry, space.curvature)
    expression = log_normalize(spots.counts)
    train = expression[~spots.test]
    mean = np.asarray(train.mean(axis=0)).reshape(-1)
    spread = np.sqrt(np.maximum(np.asarray(train.multiply(train).mean(axis=0)).reshape(-1) - mean**2, 0)) + 0.1
    # A top gene is high against training spots, among those that half of these express.
    common = np.asarray((train > 0).mean(axis=0)).reshape(-1) > 0.5
    result = []
    for query, row in zip(queries, scores, strict=True):
        found = np.argsort(-row, kind="stable")[:retrieved]
        genes = []
        for spot in [query, *found]:
            score = np.where(common, (expression[rows[spot]].toarray()[0] - mean) / spread, -np.inf)
            genes.append([spots.genes[i] for i in np.argsort(-score, kind="stable")[:3]])
        result.append(
            {"query": int(query), "rank": float(ranks[query]), "retrieved": [int(i) for i in found], "top_genes": genes}
        )
    return result


def _traversals(suite: Suite) -> list[dict[str, Any]]:
    """For each label, from the image of median radius to the origin: which training spots' and mean profiles lie nearest."""
    spots, space, rows = suite.spots, suite.space, suite.test_rows
    if space.geometry != "lorentz" or space.mean_profile is None:
        return []
    train = np.flatnonzero(~spots.test)
    names = [*space.signatures, "mean profile of all training spots"]
    names += [f"a spot of {label}" if isinstance(label, str) else "an unlabelled spot" for label in spots.labels[train]]
    candidates = np.concatenate(
        [*(embeds[None] for embeds in space.signatures.values()), space.mean_profile, space.gene[train]]
    )
    radii = np.linalg.norm(space.tangent(space.image), axis=1)
    known = rows[~missing_rows(spots.labels[rows])]
    result = []
    for label in np.unique(spots.labels[known].astype(str)):
        members = known[spots.labels[known] == label]
        start = members[np.argsort(radii[members], kind="stable")[len(members) // 2]]
        steps = traversal(space.image[start], candidates, names, float(space.curvature), 8)  # type: ignore[arg-type]
        result.append({"from": label, "slide": str(spots.slides[start]), "steps": steps})
    return result


def _planes(image: np.ndarray, gene: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tangent coordinates of both modalities in the plane of their two leading directions, each at its own true length."""
    both = np.concatenate([image, gene])
    _, _, axes = np.linalg.svd(both, full_matrices=False)
    flat = both @ axes[:2].T
    flat *= np.linalg.norm(both, axis=1, keepdims=True) / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return flat[: len(image)], flat[len(image) :]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return round(float(value), 5) if np.isfinite(value) else None
