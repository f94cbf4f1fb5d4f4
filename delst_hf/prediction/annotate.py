"""Add a model's embeddings and predictions of its spots to an AnnData: never to X, and to a file completely or not at all."""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ..atomic.files import check_file_output, write_file
from ..atomic.locks import clear_finished, writing
from ..data.counts import warn_of_unlikely_counts
from ..data.notes import Notes
from ..data.readers.anndata_file import open_anndata, raw_counts
from ..data.readers.anndata_visium import places_of_anndata
from ..data.scratch import PACKED
from .outputs import full_disk_explained
from .predict import provenance
from .predictor import Predictor, load_predictor
from .shards import in_memory
from .source import slide_source
from .stream import check_reading

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

MODALITIES = ("auto", "image", "genes")
_ROWS = 512
Annotations = dict[str, dict[str, Any]]  # part of an AnnData ("obsm", "obs" or "uns") -> what is added to it


def embed_anndata(
    model: str | Predictor,
    adata: "AnnData",
    *,
    key: str = "X_delst",
    modality: str = "auto",
    image: str | Path | None = None,
    mpp: float | None = None,
    layer: str | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
) -> "AnnData":
    """Embed every spot of an AnnData and add the results to it; X and all that it holds stay unchanged.

    Args:
        model: Folder or Hub id of a checkpoint, or a loaded one.
        adata: With obsm["spatial"] and an image for "image", with raw counts for "genes".
        key: ``obsm[key]`` becomes the coordinates in the tangent space at the origin, which is flat, so that any Euclidean
            method may cluster them.
        modality: "image" embeds the patch at each spot, "genes" its counts, "auto" the patch where there is an image.
        image: Full-resolution image file; by default the reduced image in ``uns["spatial"]``.
        mpp: Micrometres per full-resolution pixel; by default from the spots' array or diameter.
        layer: Layer with raw counts for "genes"; by default X.
        batch_size: Spots per batch.
        num_workers: Threads that read patches.

    Returns:
        The same AnnData, with ``obsm[key]``, ``obs["delst_radius"]`` (hyperbolic and Euclidean models), the predictions of the
        model's head in ``obsm["delst_expression"]`` or ``obsm["delst_probabilities"]`` and ``obs["delst_class"]``, and
        ``uns["delst"]``, which says what made them.

    Raises:
        ValueError: If an option has a value that is not allowed, or the patches or counts cannot be embedded.
        KeyError: If a part of the AnnData is missing; the message lists what there is.
        TypeError: If `adata` is not an AnnData.

    Examples:
        >>> import anndata
        >>> adata = anndata.read_h5ad("slide.h5ad")
        >>> embed_anndata("runs/toy/pretrain/model", adata, modality="image", mpp=0.5, num_workers=0).obsm["X_delst"].shape
        (4, 8)
    """
    if not hasattr(adata, "obsm"):
        raise TypeError(
            f"adata is of type {type(adata).__name__}. Give the AnnData itself, after the model: embed_anndata(model, adata). "
            "For a file there is embed_file(model, path)."
        )
    options = {"image": image, "mpp": mpp, "layer": layer, "batch_size": batch_size, "num_workers": num_workers}
    found = _annotations(model, adata, "adata", key, modality, **options)  # type: ignore[arg-type]
    for part, values in found.items():
        for name, value in values.items():
            getattr(adata, part)[name] = value
    return adata


def embed_file(
    model: str,
    path: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    key: str = "X_delst",
    modality: str = "auto",
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Embed the spots of an .h5ad file: results are added to a copy, otherwise identical to the byte, or to the file itself.

    Args:
        model: Folder or Hub id of a checkpoint.
        path: An .h5ad.
        output: The copy to write, by default NAME_delst.h5ad; `path` itself to change the file in place, atomically.
        key: As in `embed_anndata`.
        modality: As in `embed_anndata`.
        overwrite: Replace a file at `output`, and keys that the file already has.
        **options: ``image``, ``mpp``, ``layer``, ``batch_size``, ``num_workers`` of `embed_anndata`.

    Returns:
        The file that was written.

    Raises:
        FileExistsError: If the output or one of the keys exists, or another run is writing the output.
        ValueError: As `embed_anndata`, or if `path` is not an .h5ad.

    Examples:
        >>> embed_file("runs/toy/pretrain/model", "slide.h5ad", "embedded.h5ad", modality="image", mpp=0.5, num_workers=0).name
        'embedded.h5ad'
    """
    path = Path(path)
    if path.suffix != ".h5ad":
        advice = "Unpack it first" if path.suffix in PACKED else "Write one with adata.write_h5ad(...)"
        raise ValueError(f"{path.name} is not an .h5ad file. {advice}.")
    output = path.with_name(f"{path.stem}_delst.h5ad") if output is None else Path(output)
    check_file_output(output)
    in_place = output.exists() and path.exists() and os.path.samefile(output, path)
    if output.exists() and not (in_place or overwrite):
        clear_finished(output)
        raise FileExistsError(f"{output} exists. Choose another --output, or replace it (--overwrite).")
    before = path.stat() if path.exists() else None
    adata = open_anndata(path)
    taken = [f"obsm[{key!r}]"] * (key in adata.obsm) + ["uns['delst']"] * ("delst" in adata.uns)
    if taken and not overwrite:
        # Another key alone does not help: uns describes one embedding.
        raise FileExistsError(
            f"{path.name} already has {' and '.join(taken)} of an earlier embedding. Replace it (--overwrite; with another "
            "--key the earlier coordinates stay), or give the file without it."
        )
    with writing(output), full_disk_explained(output):
        found = _annotations(model, adata, path.name, key, modality, **options)
        with path.open("rb") as source, write_file(output, replace=in_place or overwrite) as file:
            shutil.copyfileobj(source, file, 2**24)
            file.flush()
            _add(file.name, found, adata.obs_names)
            _refuse_changed(path, before)
    return output


def _refuse_changed(path: Path, before: os.stat_result | None) -> None:
    """Refuse to write results for a file that changed meanwhile: its rows may be different ones."""
    now = path.stat()
    if before is None or (now.st_size, now.st_mtime_ns, now.st_ino) != (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    ):
        raise OSError(f"{path} was changed while it was read. Nothing was written: run the same command again.")


def _add(path: str, found: Annotations, names: pd.Index) -> None:
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        for part, values in found.items():
            group = file.require_group(part)
            for name, value in values.items():
                if name in group:
                    del group[name]
                if part == "obs":
                    value = value.array if isinstance(value, pd.Series) else value
                    order = [str(column) for column in group.attrs["column-order"] if column != name]
                    group.attrs["column-order"] = [*order, name]
                write_elem(group, name, value)


def _annotations(
    model: str | Predictor,
    adata: "AnnData",
    name: str,
    key: str,
    modality: str,
    image: str | Path | None = None,
    mpp: float | None = None,
    layer: str | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
) -> Annotations:
    if modality not in MODALITIES:
        raise ValueError(f"modality is {modality!r}. Allowed: {', '.join(MODALITIES)} (--modality).")
    check_reading(batch_size, num_workers)
    predictor = load_predictor(model) if isinstance(model, str) else model
    if modality == "auto":
        modality = "image" if image is not None or isinstance(adata.uns.get("spatial"), Mapping) else "genes"
        if modality == "genes":
            logger.warning(
                "%s: there is no image, so the counts are embedded, not patches (--image, --modality).", name
            )
    if modality == "genes":
        arrays = _from_genes(predictor, adata, name, layer)
        facts = provenance(predictor, None)
    else:
        slide, _ = places_of_anndata(adata, name, image=image, mpp=mpp)
        source = slide_source(slide, predictor.patch_um(), predictor.cut_px, predictor.encoding)
        facts = provenance(predictor, source)
        arrays = in_memory(source, predictor, batch_size, num_workers)
    return _parts(predictor, arrays, adata.obs_names, key, {**facts, "modality": modality, "key": key})


def _parts(
    predictor: Predictor, arrays: dict[str, np.ndarray], names: pd.Index, key: str, facts: dict[str, Any]
) -> Annotations:
    obsm: dict[str, Any] = {key: arrays["tangent"]}
    obs: dict[str, Any] = {}
    if np.isfinite(arrays["radius"]).any():
        obs["delst_radius"] = arrays["radius"]
    if "expression" in arrays:
        genes = list(predictor.genes.index)
        obsm["delst_expression"] = pd.DataFrame(arrays["expression"], index=names, columns=genes)
    if "probabilities" in arrays:
        values = arrays["probabilities"]
        obsm["delst_probabilities"] = pd.DataFrame(values, index=names, columns=predictor.classes)
        obs["delst_class"] = pd.Categorical.from_codes(
            values.argmax(axis=1).tolist(), categories=pd.Index(predictor.classes)
        )
    return {"obsm": obsm, "uns": {"delst": facts}, "obs": obs}


@torch.no_grad()
def _from_genes(predictor: Predictor, adata: "AnnData", name: str, layer: str | None) -> dict[str, np.ndarray]:
    """Embed the genes of the spots, a few hundred spots at a time."""
    notes = Notes()
    counts, genes = raw_counts(adata, layer, name, notes)
    warn_of_unlikely_counts(counts, name, notes)
    names = [symbol or gene_id for symbol, gene_id in zip(genes["symbol"], genes["gene_id"], strict=True)]
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, counts.shape[0], _ROWS):
        rows = counts[start : start + _ROWS].toarray()
        inputs = predictor.processor.feature_extractor(rows, names, return_tensors="pt").to(predictor.model.device)
        output = predictor.model.get_gene_features(inputs["gene_values"], inputs["gene_mask"])
        space = predictor.in_space(output.pooler_output)  # type: ignore[union-attr]
        parts.append({one: value.float().cpu().numpy() for one, value in space.items()})
    return {one: np.concatenate([part[one] for part in parts]) for one in parts[0]}
