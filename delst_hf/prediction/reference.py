"""The reference of a checkpoint: embeddings and profiles of training spots, and the nearest of them to any patch."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from datasets import Dataset
from safetensors.numpy import load_file, save_file
from transformers.utils import cached_file

from ..atomic.files import check_folder_output, complete_or_nothing, write_text
from ..atomic.locks import writing
from ..data.counts import check_places
from ..data.patch_features import join_features
from ..data.schema import regular_size, sha256
from ..data.study import Study
from ..errors import optional_library, reading
from ..evaluation.embed import Embeddings, embed, model_collator
from ..model.backbone_delst import tensor_fingerprint
from ..model.lorentz import exp_map0, pairwise_distance
from ..record import check_patch_size
from .fit import measured_values
from .predictor import Predictor, load_predictor

logger = logging.getLogger(__name__)

FOLDER = "reference"
FORMAT = "delst-reference-1"
# File that names the model of a reference and the sizes and checksums of its files; it is written last.
_LIST = "reference.json"
_AGAIN = "Make one: delst reference MODEL DATASET"
_FILES = ("reference.safetensors", "spots.parquet", "genes.parquet")
_CHUNK = 1024
# The distance of a patch to the reference is the mean over so many spots: a single one may be an outlier.
_NEIGHBOURS = 5


@dataclass(frozen=True)
class Reference:
    """Spots whose counts are known.

    Attributes:
        image: (spots, projection_dim) image embeddings, as the model returns them.
        gene: (spots, projection_dim) gene embeddings.
        spots: slide_id, barcode, label, x and y of each.
        profiles: (spots, genes) normalised expression of the model's vocabulary, sparse.
        genes: Names of the columns of `profiles`.
    """

    image: np.ndarray
    gene: np.ndarray
    spots: pd.DataFrame
    profiles: sp.csr_matrix
    genes: list[str]

    @torch.no_grad()
    def nearest(
        self, predictor: Predictor, tangent: np.ndarray, number: int, modality: str = "gene", search: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest spots of patches, exactly, in chunks.

        Args:
            predictor: The model that made the embeddings.
            tangent: (patches, projection_dim) as `Predictor` returns them.
            number: Number of spots per patch.
            modality: "gene" or "image": which embeddings of the spots to compare with.
            search: A `FaissSearch` of the same embeddings, which is quicker for hundreds of thousands of spots and may miss
                some; None compares with all of them.

        Returns:
            Positions (patches, number) and distances (patches, number) in the model's space, the nearest first.

        Raises:
            ValueError: If `number` is not 1 to the number of spots.
        """
        known = torch.from_numpy(self.gene if modality == "gene" else self.image).to(predictor.model.device)
        if not 1 <= number <= len(known):
            raise ValueError(f"number is {number}. Allowed: 1 to {len(known)}, the spots of the reference.")
        positions, distances = [], []
        for start in range(0, len(tangent), _CHUNK):
            part = torch.from_numpy(tangent[start : start + _CHUNK]).to(known)
            if search is None:
                close, rows = torch.topk(_distances(predictor, part, known), number, largest=False)
            else:  # the candidates are compared exactly
                some = torch.from_numpy(search(predictor, part, number)).to(known.device)
                exact = [_distances(predictor, one[None], known[row])[0] for one, row in zip(part, some, strict=True)]
                close, order = torch.topk(torch.stack(exact), number, largest=False)
                rows = some.gather(1, order)
            positions.append(rows.cpu().numpy())
            distances.append(close.cpu().numpy())
        return np.concatenate(positions), np.concatenate(distances)

    def distance(self, predictor: Predictor, tangent: np.ndarray) -> np.ndarray:
        """Return the mean distance (patches,) to the nearest image embeddings: high for patches unlike all training patches."""
        number = min(_NEIGHBOURS, len(self.image))
        return self.nearest(predictor, tangent, number, "image")[1].mean(axis=1)

    def impute(self, positions: np.ndarray) -> np.ndarray:
        """Return the mean normalised profile (patches, genes) of the spots at these positions (patches, number)."""
        rows = np.repeat(np.arange(len(positions)), positions.shape[1])
        weights = np.full(positions.size, 1 / positions.shape[1])
        mean = sp.csr_matrix((weights, (rows, positions.ravel())), (len(positions), len(self.spots)))
        return np.asarray((mean @ self.profiles).todense(), dtype=np.float32)

    def shares(self, positions: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Return the share of each class (patches, classes) among the labelled spots at these positions, 0 without any."""
        table = self.spots["label"].to_numpy(dtype=object)[positions]
        counts = np.stack([(table == name).sum(axis=1) for name in classes], axis=1).astype(np.float32)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def top_genes(self, positions: np.ndarray, number: int = 5) -> list[list[str]]:
        """Return the genes of each of these spots (spots,) that exceed the mean of the reference most, the highest first."""
        mean = np.asarray(self.profiles.mean(axis=0)).ravel()
        above = np.asarray(self.profiles[np.ravel(positions)].todense()) - mean
        return [[self.genes[i] for i in np.argsort(-row)[:number] if row[i] > 0] for row in above]

    def describe(self, positions: np.ndarray, distances: np.ndarray) -> pd.DataFrame:
        """Return the spots at these positions as a table, with their distances and the genes that stand out."""
        table = self.spots.iloc[positions].reset_index(drop=True)
        genes = [", ".join(names) for names in self.top_genes(positions)]
        return table.assign(distance=np.asarray(distances, dtype=float), top_genes=genes)


class FaissSearch:
    """Candidates for the nearest spots by faiss (extra ``faiss``), from a graph of neighbours.

    A graph is good at Euclidean distances and poor at inner products of vectors of different lengths: of ten neighbours in a
    Lorentz space it found four. So every geometry is reduced to Euclidean distances. Lorentz distances have the order of the
    inner products of (x, -time) and (y, time), and these have the order of Euclidean distances once a further column gives
    all spots equal length (Bachrach et al., RecSys 2014). On a sphere both orders agree.

    Args:
        predictor: The model that made the embeddings.
        known: (spots, projection_dim) embeddings of the spots by that model.

    Raises:
        ImportError: If faiss is not installed.
    """

    def __init__(self, predictor: Predictor, known: np.ndarray):
        advice = "faiss is not installed: pip install 'delst-hf[faiss]', or search exactly (--search exact)."
        faiss = optional_library("faiss", advice)
        rows = self._vectors(predictor, torch.from_numpy(known), of_spots=True)
        self.index = faiss.IndexHNSWFlat(rows.shape[1], 32)
        self.index.hnsw.efConstruction = 200
        self.index.add(rows)

    def __call__(self, predictor: Predictor, tangent: torch.Tensor, number: int) -> np.ndarray:
        """Return candidates (patches, 4 x `number`, or all spots) for the nearest spots of patches."""
        wanted = min(4 * number, self.index.ntotal)
        self.index.hnsw.efSearch = max(256, 4 * wanted)
        points = tangent.cpu()
        if predictor.model.config.geometry == "lorentz":
            points = exp_map0(points, predictor.model.curvature.cpu())
        found = self.index.search(self._vectors(predictor, points, of_spots=False), wanted)[1]
        for row in np.flatnonzero(
            (found < 0).any(axis=1)
        ):  # the graph ended early: any other spots will do, as all candidates are compared exactly
            missing = found[row] < 0
            others = np.setdiff1d(np.arange(self.index.ntotal), found[row])
            found[row, missing] = others[: missing.sum()]
        return found

    @staticmethod
    def _vectors(predictor: Predictor, points: torch.Tensor, of_spots: bool) -> np.ndarray:
        values = points.float()
        if predictor.model.config.geometry == "lorentz":
            time = (1 / predictor.model.curvature.cpu() + values.square().sum(-1, keepdim=True)).sqrt()
            values = torch.cat([values, -time if of_spots else time], dim=-1)
            lengths = values.square().sum(-1, keepdim=True)
            filled = (lengths.max() - lengths).sqrt() if of_spots else torch.zeros_like(lengths)
            values = torch.cat([values, filled], dim=-1)
        return np.ascontiguousarray(values.detach().numpy())


def _distances(predictor: Predictor, tangent: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    geometry = predictor.model.config.geometry
    if geometry == "lorentz":
        curvature = predictor.model.curvature
        return pairwise_distance(exp_map0(tangent, curvature), known, curvature)
    if geometry == "euclidean":
        return torch.cdist(tangent, known)
    return 1 - tangent @ known.T


def build_reference(
    model: str,
    dataset: str,
    *,
    size: int = 10_000,
    slides: Sequence[str] = (),
    seed: int = 0,
    features: str | None = None,
    features_patch_px: float | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Path:
    """Embed training spots and save them in MODEL/reference.

    Args:
        model: Checkpoint folder.
        dataset: Dataset folder with the spots.
        size: Maximum number of spots, drawn evenly from the slides.
        slides: Slides to draw from; by default those that the model was trained on.
        seed: Equal seeds draw equal spots.
        features: Folder of the features, for a model that was trained on features made elsewhere.
        features_patch_px: As in `data.feature_files.read_patch_features`.
        batch_size: Spots per batch.
        progress: Show a bar.

    Returns:
        The folder.

    Raises:
        ValueError: If slides are unknown, or the model was trained on none of this dataset.
        FileNotFoundError: If the model is not a local folder.
        OSError: If nothing can be written there, or another run is writing; raised before the work.

    Examples:
        >>> build_reference("runs/toy/pretrain/model", "runs/toy/data", size=50, progress=False).name
        'reference'
    """
    if not Path(model).is_dir():
        raise FileNotFoundError(
            f"no folder {model}. A reference is saved in the checkpoint's folder; one on the Hub is downloaded first: "
            f"hf download {model} --local-dir MODEL_DIR."
        )
    if size < 1:
        raise ValueError(f"size is {size}. Allowed: 1 or more (--size).")
    folder = Path(model) / FOLDER
    check_folder_output(folder)
    with writing(folder, "reference"):
        predictor, study = load_predictor(model), Study.load(dataset)
        study.check_images(slides)
        trained = [slide for slide in predictor.record.get("train_slides", []) if slide in study.slide_ids]
        chosen, table = list(slides) or trained, None
        if not chosen:
            raise ValueError(
                f"the model was trained on no slide of this dataset ({study.slide_ids}). Name some (--slides)."
            )
        if features is not None:
            study, table = join_features(features, study, chosen, features_patch_px)
        else:
            check_patch_size(predictor.record, study.patch_um(chosen), model, study.patch_px(chosen))
        collator = model_collator(predictor.model, predictor.processor, study, table)
        spots = study.subset(chosen)
        spots = spots.select(_drawn(np.asarray(spots.with_format("numpy")["slide_id"][:]), size, seed))
        embeddings = embed(predictor.model, spots, collator, batch_size, progress=progress)
        profiles = sp.vstack([sp.csr_matrix(values) for values, _ in measured_values(spots, collator)], format="csr")
        _write(folder, predictor, spots, embeddings, profiles)
    return folder


def _write(folder: Path, predictor: Predictor, spots: Dataset, embeddings: Embeddings, profiles: sp.csr_matrix) -> None:
    with complete_or_nothing(folder) as partial:
        arrays = {
            "image": embeddings.image_embeds,
            "gene": embeddings.gene_embeds,
            "data": profiles.data.astype(np.float32),
            "indices": profiles.indices.astype(np.int32),
            "indptr": profiles.indptr.astype(np.int64),
        }
        arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        save_file(arrays, partial / "reference.safetensors")
        columns = ["slide_id", "barcode", "label", "x", "y"]
        spots.select_columns(columns).to_pandas().to_parquet(partial / "spots.parquet")
        names = predictor.processor.feature_extractor.vocabulary
        pd.DataFrame({"gene": names}).to_parquet(partial / "genes.parquet")
        files = {name: {"bytes": (partial / name).stat().st_size, "sha256": sha256(partial / name)} for name in _FILES}
        told = {"format": FORMAT, "weights": weights_of(predictor), "files": files}
        write_text(partial / _LIST, json.dumps(told, indent=1) + "\n")


def weights_of(predictor: Predictor) -> str:
    """Return a hash of the weights that make embeddings, which a model and the heads fitted on it share."""
    return tensor_fingerprint(predictor.model.state_dict(), predictor.model.config.vision_pooling)


def _drawn(slides: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return positions of at most `size` spots, in order: equally many from each slide, as far as it has them."""
    generator = np.random.default_rng(seed)
    rank = np.empty(len(slides))
    for slide in np.unique(slides):
        rows = np.flatnonzero(slides == slide)
        rank[rows] = generator.permutation(len(rows))
    return np.sort(np.argsort(rank, kind="stable")[:size])


def load_reference(
    model: str | os.PathLike, required: bool = False, predictor: Predictor | None = None
) -> Reference | None:
    """Read the reference in a checkpoint folder, or that folder itself; None where there is none.

    Args:
        model: The folder, or the id of a checkpoint on the Hub.
        required: Whether there must be one.
        predictor: The model whose patches are compared with it; a reference made by other weights is refused.

    Raises:
        FileNotFoundError: If `required` and there is none.
        ValueError: If it does not match its checksums, or was made by another model.

    Examples:
        >>> len(load_reference("runs/toy/expression").spots)
        108
    """
    for folder in (Path(model) / FOLDER, Path(model)) if os.path.isdir(model) else _fetched(str(model)):
        if (folder / "reference.safetensors").is_file() or (folder / _LIST).is_file():
            with reading(folder, "reference", f"{_AGAIN}."):
                _check(folder, predictor)
                arrays: dict[str, Any] = load_file(folder / "reference.safetensors")
                spots, genes = pd.read_parquet(folder / "spots.parquet"), pd.read_parquet(folder / "genes.parquet")
                names = genes["gene"].tolist()
                parts = arrays["data"], arrays["indices"], arrays["indptr"]
                profiles = check_places(sp.csr_matrix(parts, (len(spots), len(names))), f"{folder}: the profiles")
                return Reference(arrays["image"], arrays["gene"], spots, profiles, names)
    if required:
        on_hub = (
            "" if os.path.isdir(model) else f" (download the model for that: hf download {model} --local-dir MODEL)"
        )
        raise FileNotFoundError(f"no reference in {model}. {_AGAIN}{on_hub}.")
    return None


def _fetched(model: str) -> Iterator[Path]:
    """Yield the folder of the reference that was pushed with a checkpoint on the Hub (delst push --with-reference)."""
    places = [
        cached_file(
            model,
            f"{FOLDER}/{name}",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        for name in (_LIST, *_FILES)
    ]
    if places[0] is not None:
        yield Path(places[0]).parent


def _check(folder: Path, predictor: Predictor | None) -> None:
    """Refuse a reference whose files do not match its checksums, or that another model made."""
    if not (folder / _LIST).is_file():
        logger.warning(
            "%s has no %s, like references of earlier versions: neither its files nor its model are checked. %s.",
            folder, _LIST, _AGAIN,
        )  # fmt: skip
        return
    told = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    for name in _FILES:
        size, digest = told["files"][name]["bytes"], told["files"][name]["sha256"]
        if regular_size(folder / name) != size or sha256(folder / name) != digest:
            raise ValueError(
                f"the reference {folder} does not match its checksums: {name} is missing or differs. {_AGAIN}."
            )
    if predictor is not None and told["weights"] != weights_of(predictor):
        raise ValueError(
            f"the reference {folder} was made by other weights than those of {predictor.name}, so distances to it mean "
            "nothing. Make one with this model: delst reference MODEL DATASET."
        )
