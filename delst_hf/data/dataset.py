"""Slides to a dataset folder that `datasets.load_dataset` opens, in memory or streamed.

    DIR/README.md                  dataset card; its YAML names the configs and their files
    DIR/spots/<slide_id>.parquet   one row per spot, in row groups of 100
    DIR/genes/genes.parquet        the union of the slides' genes, in order of first appearance
    DIR/slides/slides.parquet      one row per slide

The folder appears under its name only when it is complete.
"""

import glob
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from ..atomic import complete_or_nothing
from .card import dataset_card
from .schema import CONFIGS, GENES, SLIDES, SPOTS
from .slide import Slide, check_patch_size

logger = logging.getLogger(__name__)

_ROWS_PER_GROUP = 100
_ENTRIES = {"README.md", *CONFIGS}
_UPSAMPLING_ALARM = 2.0


@dataclass
class DatasetSummary:
    """What was written: spots per slide, spots per label, the number of genes."""

    path: Path
    slides: dict[str, int] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    num_genes: int = 0


@dataclass(frozen=True)
class _Options:
    """How patches are cut and stored."""

    patch_um: float
    patch_px: int
    image_format: str
    quality: int
    outside: str
    progress: bool


def write_dataset(
    slides: Iterable[Slide],
    output: str | Path,
    *,
    patch_um: float = 112.0,
    patch_px: int = 224,
    image_format: str = "jpeg",
    quality: int = 95,
    outside: str = "error",
    overwrite: bool = False,
    licence: str = "unknown",
    progress: bool = False,
) -> DatasetSummary:
    """Writes a dataset folder. Slides are taken one at a time, so a generator keeps memory at one slide.

    Args:
        slides: the slides; each is validated before its patches are cut.
        output: the folder to make.
        patch_um: side of a patch in micrometres.
        patch_px: side of a stored patch in pixels.
        image_format: "jpeg" or "png".
        quality: of JPEG, 1 to 100.
        outside: what to do with spots whose centre lies outside the image: "error" or "drop".
        overwrite: replace a dataset folder at `output`, after the new one is complete.
        licence: for the dataset card, an identifier of the Hub.
        progress: show a bar per slide.

    Returns:
        What was written.

    Raises:
        ValueError: a bad argument, no slides, a slide id given twice, or a slide that `Slide.validate` refuses.
        FileExistsError: `output` exists and `overwrite` is False, or it holds something that is not a dataset folder.
    """
    options = _Options(patch_um, patch_px, image_format.lower(), quality, outside, progress)
    _check_options(options)
    output = check_output(output, overwrite)
    with complete_or_nothing(output) as folder:
        summary = _write_folder(slides, folder, options, output)
        rows = pq.read_table(folder / "slides" / "slides.parquet").drop(["thumbnail"]).to_pylist()
        stored = f"JPEG, quality {quality}" if options.image_format == "jpeg" else "PNG"
        text = dataset_card(
            rows, summary.slides, summary.labels, summary.num_genes, stored, licence, _fingerprint(folder)
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
    return summary


def check_output(output: str | Path, overwrite: bool = False) -> Path:
    """Returns the absolute output path if a dataset may be written there, without touching anything.

    Raises:
        FileExistsError: something is there that may not be replaced.
    """
    output = Path(output).expanduser().resolve()
    for stale in output.parent.glob(f".{glob.escape(output.name)}.incomplete-*"):
        logger.warning(
            "%s is left over from a run that was killed or is still running; if none is running, delete it", stale
        )
    if not output.exists():
        return output
    entries = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if output.is_dir() and not entries:
        return output
    if not output.is_dir() or not entries >= _ENTRIES or entries - _ENTRIES:
        strangers = sorted(entries - _ENTRIES)[:3]
        raise FileExistsError(
            f"{output} exists and is not just a dataset folder (it holds {strangers or 'no complete dataset'}), so it "
            "is never replaced. Choose another output."
        )
    if not overwrite:
        raise FileExistsError(
            f"{output} already holds a dataset. Choose another output, or replace it with overwrite=True (--overwrite)."
        )
    return output


def _check_options(options: _Options) -> None:
    check_patch_size(options.patch_um, options.patch_px)
    for name, value, allowed in (
        ("image_format", options.image_format, ("jpeg", "png")),
        ("outside", options.outside, ("error", "drop")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}. Allowed: {', '.join(map(repr, allowed))}.")
    if not 1 <= options.quality <= 100:
        raise ValueError(f"quality is {options.quality}. Allowed: 1 to 100; 95 is hard to tell from the original.")


def _fingerprint(folder: Path) -> str:
    """Hash of all parquet files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.parquet")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _write_folder(slides: Iterable[Slide], folder: Path, options: _Options, output: Path) -> DatasetSummary:
    for config in CONFIGS:
        (folder / config).mkdir()
    summary = DatasetSummary(output)
    genes: dict[tuple[str, str, str], int] = {}
    with pq.ParquetWriter(folder / "slides" / "slides.parquet", SLIDES.arrow_schema) as writer:
        for slide in slides:
            if slide.slide_id in summary.slides:
                raise ValueError(
                    f"slide_id {slide.slide_id!r} is given twice. Give each its own (--slide-id), or leave one out."
                )
            slide = slide.drop_outside() if options.outside == "drop" else slide
            slide.validate()
            keys = [
                (gene_id, symbol, slide.species) for gene_id, symbol in slide.genes[["gene_id", "symbol"]].to_numpy()
            ]
            measured = np.array([genes.setdefault(key, len(genes)) for key in keys], dtype=np.int32)
            _write_spots(slide, measured, folder / "spots" / f"{slide.slide_id}.parquet", options)
            writer.write_table(pa.Table.from_pylist([_slide_row(slide, measured, options)], schema=SLIDES.arrow_schema))
            summary.slides[slide.slide_id] = len(slide.spots)
            summary.labels.update("(none)" if pd.isna(label) else label for label in slide.spots["label"])
            # Otherwise this image stays alive while the next slide is read.
            del slide
    if not summary.slides:
        raise ValueError("there are no slides to write. Give at least one.")
    columns = zip(*genes, strict=True)
    table = {name: list(values) for name, values in zip(("gene_id", "symbol", "species"), columns, strict=True)}
    pq.write_table(pa.table(table, schema=GENES.arrow_schema), folder / "genes" / "genes.parquet")
    summary.num_genes = len(genes)
    return summary


def _write_spots(slide: Slide, measured: np.ndarray, path: Path, options: _Options) -> None:
    """Writes the rows of one slide, 100 at a time; `measured` maps the slide's genes to the dataset's."""
    side = options.patch_um / slide.mpp
    if options.patch_px > _UPSAMPLING_ALARM * side:
        logger.warning(
            "%s: a patch of %g um is %.0f px of the image, enlarged to %d px: give a sharper image, a larger patch_um "
            "or a smaller patch_px",
            slide.slide_id, options.patch_um, side, options.patch_px,
        )  # fmt: skip
    counts = slide.counts.tocsr().astype(np.int32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    mapped = type(counts)(
        (counts.data, measured[counts.indices], counts.indptr), shape=(counts.shape[0], int(measured.max()) + 1)
    )
    mapped.sort_indices()
    patches = slide.patches(options.patch_um, options.patch_px)
    bar = tqdm(patches, total=len(slide.spots), desc=slide.slide_id, unit="spot", disable=not options.progress)
    with pq.ParquetWriter(path, SPOTS.arrow_schema, use_dictionary=["slide_id", "patient_id", "label"]) as writer:
        batch: list[dict[str, bytes | None]] = []
        for index, patch in enumerate(bar):
            batch.append({"bytes": _encode(patch, options.image_format, options.quality), "path": None})
            if len(batch) == _ROWS_PER_GROUP or index + 1 == len(slide.spots):
                writer.write_table(_spot_rows(slide, mapped, index + 1 - len(batch), batch))
                batch = []


def _spot_rows(slide: Slide, counts: Any, start: int, images: list[dict[str, bytes | None]]) -> pa.Table:
    """Makes the rows from `start` on, one for each of the images."""
    stop = start + len(images)
    spots, counts = slide.spots.iloc[start:stop], counts[start:stop]
    columns = {
        "image": images,
        "gene_indices": pa.ListArray.from_arrays(
            pa.array(counts.indptr, pa.int32()), pa.array(counts.indices, pa.int32())
        ),
        "gene_counts": pa.ListArray.from_arrays(pa.array(counts.indptr, pa.int32()), pa.array(counts.data, pa.int32())),
        "slide_id": [slide.slide_id] * len(spots),
        "patient_id": [slide.patient_id] * len(spots),
        "barcode": [str(barcode) for barcode in spots.index],
        "x": spots["x"].to_numpy(float),
        "y": spots["y"].to_numpy(float),
        "array_row": spots["array_row"].to_numpy(np.int32),
        "array_col": spots["array_col"].to_numpy(np.int32),
        "label": [None if pd.isna(label) else label for label in spots["label"]],
        "n_genes": np.diff(counts.indptr).astype(np.int32),
        "total_counts": np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel(),
    }
    schema = SPOTS.arrow_schema
    return pa.table([pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema)


def _slide_row(slide: Slide, measured: np.ndarray, options: _Options) -> dict[str, Any]:
    height, width = slide.image.shape[:2]
    names = ("slide_id", "patient_id", "technology", "tissue", "species", "label_source")
    return {name: getattr(slide, name) for name in names} | {
        "mpp": float(slide.mpp),
        "measured_genes": np.sort(measured),
        "thumbnail": {"bytes": _encode(slide.thumbnail(), "jpeg", 90), "path": None},
        "image_width": width,
        "image_height": height,
        "patch_um": float(options.patch_um),
        "patch_px": int(options.patch_px),
    }


def _encode(image: Image.Image, image_format: str, quality: int) -> bytes:
    """Encodes an image; JPEG keeps colour at full resolution, since stain carries much of the signal."""
    buffer = io.BytesIO()
    image.save(
        buffer,
        **({"format": "JPEG", "quality": quality, "subsampling": 0} if image_format == "jpeg" else {"format": "PNG"}),
    )
    return buffer.getvalue()
