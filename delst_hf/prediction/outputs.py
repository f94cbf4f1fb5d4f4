"""Predictions as files: AnnData as scanpy and squidpy draw it, SpatialData, or a parquet table.

Shards are read one at a time, so an .h5ad or a table of a million patches needs no more memory than one of a thousand.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..atomic.files import complete_or_nothing, write_file
from ..data.output import disk_explained
from .reliability import reliability
from .shards import Shards
from .source import PatchSource

if TYPE_CHECKING:
    from anndata import AnnData

# Longer side of the pictures in uns["spatial"], as in Space Ranger's output.
_HIRES_PX, _LOWRES_PX = 2000, 600
_ROWS_PER_CHUNK = 512
_KEPT = ("slide_id", "array_row", "array_col", "tissue_fraction", "label")


@dataclass(frozen=True)
class Prediction:
    """The predictions for the patches of a source.

    Attributes:
        source: The patches.
        shards: The predicted arrays, in the order of the rows of `source`.
        predicted: The genes of the array ``expression``, in order.
        genes: The genes to write, one row each, with their held-out scores.
        classes: Names of the columns of ``probabilities``.
        signatures: Name -> weights of predicted genes.
        distance: (patches,) distance to the nearest spots of a reference; None without one.
        provenance: Content of ``uns["delst"]``.
        reference: Spots that the array ``neighbours`` points to; None without it.
    """

    source: PatchSource
    shards: Shards
    predicted: list[str]
    genes: pd.DataFrame
    classes: list[str] = field(default_factory=list)
    signatures: dict[str, dict[str, float]] = field(default_factory=dict)
    distance: np.ndarray | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    reference: pd.DataFrame | None = None

    def expression(self, shard: dict[str, np.ndarray]) -> np.ndarray:
        """Return the predicted expression of `genes` (patches, genes) in a shard."""
        return shard["expression"][:, self._columns(self.genes.index)]

    def _columns(self, genes: Iterable[str]) -> list[int]:
        """Return the columns of these genes in the array ``expression``; the first, where several have one name."""
        place = {gene: i for i, gene in reversed(list(enumerate(self.predicted)))}
        return [place[gene] for gene in genes]

    def reliability(self) -> tuple[np.ndarray, str] | tuple[None, str]:
        """Return how far to trust each patch (patches,), and by which confidence; None and "" where there is none."""
        rows = self.source.rows
        slides = rows["slide_id"].to_numpy(str) if "slide_id" in rows else np.zeros(len(rows))
        return reliability(self.shards.column("radius"), self.distance, slides)

    def table(self) -> pd.DataFrame:
        """Return one row per patch, of single numbers and words: array position, radius, class, signatures, reliability."""
        rows = self.source.rows
        found = rows[[name for name in _KEPT if name in rows]].copy()
        if "label" in found and found["label"].isna().all():
            del found["label"]
        for name in ("slide_id", "label"):
            if name in found:
                found[name] = found[name].astype("category")
        radius = self.shards.column("radius")
        if np.isfinite(radius).any():
            found["delst_radius"] = radius
        if self.distance is not None:
            found["delst_reference_distance"] = self.distance.astype(np.float32)
        ranks, _ = self.reliability()
        if ranks is not None:
            found["delst_reliability"] = ranks
        if self.classes:
            shares = [shard["probabilities"] for shard in self.shards]
            # Where no neighbour has a label there is no class.
            best = np.concatenate([np.where(one.any(axis=1), one.argmax(axis=1), -1) for one in shares])
            found["delst_class"] = pd.Categorical.from_codes(best.tolist(), categories=pd.Index(self.classes))
        for name, weights in self.signatures.items():
            columns, weight = self._columns(weights), np.array(list(weights.values()))
            scores = [shard["expression"][:, columns] @ weight / np.abs(weight).sum() for shard in self.shards]
            found[name] = np.concatenate(scores).astype(np.float32)
        return found


def write_prediction(output: Path, prediction: Prediction, overwrite: bool = False) -> None:
    """Write .h5ad, .zarr or .parquet, completely or not at all.

    Args:
        output: File or folder to write.
        prediction: Its content.
        overwrite: Whether an output that exists, or appeared during the run, may be replaced.

    Raises:
        FileExistsError: If it exists and may not be replaced.
        OSError: If the disk is full.
    """
    with full_disk_explained(output):
        if output.suffix == ".parquet":
            _write_parquet(output, prediction, overwrite)
        elif output.suffix == ".h5ad":
            _write_h5ad(output, prediction, overwrite)
        else:
            _write_spatialdata(output, prediction, overwrite)


def full_disk_explained(output: Path) -> AbstractContextManager[None]:
    """Say what to do if the disk runs full."""
    then = "Free some space and run the same command again: it resumes from what is predicted already"
    return disk_explained(output, f"{output.name} was not touched. {then}")


def skeleton(prediction: Prediction) -> "AnnData":
    """Return an AnnData with all but the two large arrays, X and obsm["X_delst"].

    Returns:
        obs as `Prediction.table`, var with the held-out scores, obsm["spatial"] in pixels of the full resolution,
        obsm["delst_probabilities"], and uns["spatial"] with pictures and scale factors by slide.
    """
    import anndata

    adata = anndata.AnnData(obs=prediction.table(), var=prediction.genes.copy())
    adata.obs_names_make_unique()
    adata.obsm["spatial"] = prediction.source.rows[["x", "y"]].to_numpy(float)
    if prediction.classes:
        values = prediction.shards.column("probabilities")
        adata.obsm["delst_probabilities"] = pd.DataFrame(values, index=adata.obs_names, columns=prediction.classes)
    if prediction.reference is not None:
        adata.obsm["delst_neighbours"] = prediction.shards.column("neighbours")
        adata.obsm["delst_neighbour_distances"] = prediction.shards.column("distances")
        adata.uns["delst_reference"] = prediction.reference.astype({"label": str}).reset_index(drop=True)
    adata.uns["spatial"] = _spatial(prediction.source)
    adata.uns["delst"] = {**prediction.provenance, "reliability": prediction.reliability()[1]}
    return adata


def _spatial(source: PatchSource) -> dict[str, Any]:
    """Return uns["spatial"] in the layout of scanpy's readers of Space Ranger."""
    found: dict[str, Any] = {}
    for name, picture in source.pictures.items():
        height = source.shapes[name][0]
        images, factors = {}, {"spot_diameter_fullres": float(source.spot_px[name])}
        for kind, longest in (("hires", _HIRES_PX), ("lowres", _LOWRES_PX)):
            small = picture.convert("RGB")
            small.thumbnail((longest, longest))
            images[kind] = np.asarray(small)
            factors[f"tissue_{kind}_scalef"] = small.height / height
        metadata = {"microns_per_pixel": float(source.mpp[name]), "source": source.about}
        found[name] = {"images": images, "scalefactors": factors, "metadata": metadata}
    return found


def _write_h5ad(output: Path, prediction: Prediction, overwrite: bool) -> None:
    import h5py

    with write_file(output, replace=overwrite) as file:
        skeleton(prediction).write_h5ad(file.name)
        with h5py.File(file.name, "r+") as target:
            if len(prediction.genes):
                _stream(target, "X", prediction, len(prediction.genes), prediction.expression)
            width = next(iter(prediction.shards))["tangent"].shape[1]
            _stream(target, "obsm/X_delst", prediction, width, lambda shard: shard["tangent"])


def _stream(target: Any, name: str, prediction: Prediction, width: int, values: Any) -> None:
    """Write a dense array in AnnData's own layout (encoding "array"), shard by shard."""
    if name in target:
        del target[name]
    rows = len(prediction.source)
    chunks = min(rows, _ROWS_PER_CHUNK), width
    array = target.create_dataset(
        name, (rows, width), np.float32, chunks=chunks, compression="gzip", compression_opts=1
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    start = 0
    for shard in prediction.shards:
        part = values(shard)
        array[start : start + len(part)] = part
        start += len(part)


def _write_parquet(output: Path, prediction: Prediction, overwrite: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = prediction.source.rows[["x", "y"]]
    table = pd.concat([places, prediction.table()], axis=1)
    table.index.name = "barcode"
    start, writer = 0, None
    with write_file(output, replace=overwrite) as file, ExitStack() as opened:
        for shard in prediction.shards:
            stop = start + len(shard["tangent"])
            part = pa.Table.from_pandas(_wide(table.iloc[start:stop], shard, prediction))
            start = stop
            writer = writer or opened.enter_context(pq.ParquetWriter(file, part.schema))
            writer.write_table(part)


def _wide(table: pd.DataFrame, shard: dict[str, np.ndarray], prediction: Prediction) -> pd.DataFrame:
    """Add one column per gene, class ("p_..."), neighbour and coordinate of the embedding ("X_delst_...") to the table."""
    parts = [table]
    if len(prediction.genes):
        names = [f"{gene}_predicted" if gene in table else gene for gene in prediction.genes.index]
        parts.append(pd.DataFrame(prediction.expression(shard), index=table.index, columns=names))
    if prediction.classes:
        names = [f"p_{name}" for name in prediction.classes]
        parts.append(pd.DataFrame(shard["probabilities"], index=table.index, columns=names))
    if prediction.reference is not None:
        known = (prediction.reference["slide_id"] + " " + prediction.reference["barcode"]).to_numpy(str)
        names = [f"neighbour_{i + 1}" for i in range(shard["neighbours"].shape[1])]
        parts.append(pd.DataFrame(known[shard["neighbours"]], index=table.index, columns=names))
    names = [f"X_delst_{i}" for i in range(shard["tangent"].shape[1])]
    parts.append(pd.DataFrame(shard["tangent"], index=table.index, columns=names))
    return pd.concat(parts, axis=1)


def _write_spatialdata(output: Path, prediction: Prediction, overwrite: bool) -> None:
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    adata, source = skeleton(prediction), prediction.source
    if len(prediction.genes):
        adata.X = np.concatenate([prediction.expression(shard) for shard in prediction.shards])
    adata.obsm["X_delst"] = prediction.shards.column("tangent")
    adata.uns.pop("spatial")
    images, shapes = {}, {}
    adata.obs["region"] = pd.Categorical([f"{name}_spots" for name in source.rows["slide_id"]])
    adata.obs["instance_id"] = np.arange(len(source))
    for name in dict.fromkeys(source.rows["slide_id"]):
        here = (source.rows["slide_id"] == name).to_numpy()
        places = adata.obsm["spatial"][here]
        half = source.spot_px[name] / 2
        # One coordinate system per slide, in pixels of its full resolution.
        shapes[f"{name}_spots"] = ShapesModel.parse(
            places, geometry=0, radius=half, index=adata.obs["instance_id"][here].to_numpy(),
            transformations={name: Identity()},
        )  # fmt: skip
        if name in source.pictures:
            picture = np.asarray(source.pictures[name].convert("RGB"))
            scale = np.array(source.shapes[name]) / picture.shape[:2]
            images[f"{name}_image"] = Image2DModel.parse(
                np.moveaxis(picture, -1, 0), dims=("c", "y", "x"), c_coords=("r", "g", "b"),
                transformations={name: Scale(scale, axes=("y", "x"))},
            )  # fmt: skip
    spatialdata.sanitize_table(adata)  # names of signatures and classes may hold what zarr does not allow
    regions = list(adata.obs["region"].cat.categories)
    table = TableModel.parse(adata, region=regions, region_key="region", instance_key="instance_id")
    data = spatialdata.SpatialData(images=images, shapes=shapes, tables={"table": table})
    with complete_or_nothing(output, replace=overwrite) as folder:
        data.write(folder / "whole")
        for path in (folder / "whole").iterdir():
            os.replace(path, folder / path.name)
        (folder / "whole").rmdir()
