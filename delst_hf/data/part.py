"""Write one slide as a part of a dataset: patches cut and encoded, genes cleaned.

    PART/spots/<slide_id>.parquet      rows in the order of the slide, row groups of 100; more files where one grows too large
    PART/genes/genes.parquet           the slide's own genes
    PART/slides/slides.parquet         one row
    PART/previews/<slide_id>.png       if asked for
    PART/manifest.json                 these files with rows and checksums, written last

A part has the layout of a dataset folder without a card, so `merge` joins parts as it merges datasets.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from PIL import Image
from tqdm.auto import tqdm

from .appearance import encode
from .genes import clean_genes
from .patches import check_patch_size
from .preview import draw_preview
from .quality import QualityFilter, describe_wrong_frame, tissue_fractions, tissue_sample
from .samples import check_one_slide
from .schema import CONFIGS, GENES, SLIDES, SPOTS_SCHEMA, UNPAIRED, write_manifest
from .slide import Slide, WrongFrameError
from .understood import measure

logger = logging.getLogger(__name__)

_ROWS_PER_GROUP = 100
# Buffer of encoded patches: they are cut in the order of the image's tiles, but written in the order of the spots.
_BUFFER_BYTES = 192 * 2**20
_UPSAMPLING_ALARM = 2.0
# Columns of few distinct values. Patches are all different: a dictionary of them would cost as much as writing them.
DICTIONARY = ["slide_id", "patient_id", "label", "array_row", "array_col", "gene_counts.list.element"]
# A checksum of every page: a bit that flips on the disk is an error for readers, not a wrong number.
WRITER: dict[str, Any] = {"use_dictionary": DICTIONARY, "write_page_checksum": True}


@dataclass(frozen=True)
class PatchOptions:
    """Options for checking slides and for cutting and storing patches, with the meaning of `write_dataset`'s arguments."""

    patch_um: float = 112.0
    patch_px: int = 224
    image_format: str = "jpeg"
    quality: int = 95
    outside: str = "error"
    off_tissue: str = "error"
    scale: str = "error"
    swap_xy: bool = False
    preview: bool = False
    max_shard_bytes: int = 256 * 2**20
    quality_filter: QualityFilter = field(default_factory=QualityFilter)
    aliases: dict[str, tuple[str, str]] | None = None
    progress: bool = False
    refused_preview: str = ""
    one_slide: bool = False

    def check(self) -> None:
        """Raise a ValueError for an impossible option."""
        check_patch_size(self.patch_um, self.patch_px)
        for name, value, allowed in (
            ("image_format", self.image_format, ("jpeg", "png")),
            ("outside", self.outside, ("error", "drop")),
            ("off_tissue", self.off_tissue, ("error", "allow")),
            ("scale", self.scale, ("error", "allow")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}. Allowed: {', '.join(map(repr, allowed))}.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}. Allowed: 1 to 100; at 95 patches look like the originals.")
        if self.max_shard_bytes < 2**20:
            raise ValueError(f"max_shard_bytes is {self.max_shard_bytes}. Allowed: a megabyte (2**20) or more.")
        self.quality_filter.check()


def write_part(slide: Slide, folder: Path, options: PatchOptions) -> None:
    """Check a slide and write its part.

    Args:
        slide: the slide.
        folder: a new, empty folder.
        options: options of checking, cutting and storing.

    Raises:
        ValueError: what `Slide.validate`, `clean_genes` and the quality checks refuse.
    """
    try:
        slide, thumbnail = check_slide(slide, options)
    except WrongFrameError as error:
        path = f"{options.refused_preview or slide.slide_id}.{slide.slide_id}.refused.png"
        draw_preview(swapped(slide, options), options.patch_um).save(path)
        raise WrongFrameError(f"{error} The spots on the image: {os.path.relpath(path)}") from error
    for name in CONFIGS:
        (folder / name).mkdir(parents=True)
    if options.preview and slide.image is not None:
        (folder / "previews").mkdir()
        draw_preview(slide, options.patch_um).save(folder / "previews" / f"{slide.slide_id}.png")
    kept = _write_spots(slide, folder / "spots", options)
    measure(slide if kept.all() else slide.select(kept), thumbnail)
    genes = pa.table(
        {
            "gene_id": slide.genes["gene_id"].tolist(),
            "symbol": slide.genes["symbol"].tolist(),
            "species": [slide.species] * len(slide.genes),
        },
        schema=GENES.arrow_schema,
    )
    pq.write_table(genes, folder / "genes" / "genes.parquet", write_page_checksum=True)
    row = slide_row(slide, thumbnail, options)
    table = pa.Table.from_pylist([row], schema=SLIDES.arrow_schema)
    pq.write_table(table, folder / "slides" / "slides.parquet", write_page_checksum=True)
    write_manifest(folder)


def check_slide(slide: Slide, options: PatchOptions) -> tuple[Slide, Image.Image | None]:
    """Return the slide as it would be written, and its thumbnail (None without an image); write nothing.

    Raises:
        ValueError: what `Slide.validate`, `clean_genes` and the quality checks refuse.
    """
    slide = swapped(slide, options)
    slide = slide.drop_outside() if options.outside == "drop" else slide
    slide.validate(allow_scale=options.scale == "allow")
    side = options.patch_um / slide.mpp
    if slide.image is not None and slide.stored_patches is None and side > max(slide.image.shape[:2]):
        height, width = slide.image.shape[:2]
        logger.warning(
            "%s: a patch of %g um is %.0f px, larger than the whole image of %d x %d px: lower --patch-um, correct the scale "
            "(--mpp), or give the full-resolution image",
            slide.slide_id, options.patch_um, side, width, height,
        )  # fmt: skip
    if not options.one_slide:
        check_one_slide(slide)
    if slide.has_counts:
        counts, genes, species = clean_genes(
            slide.counts, slide.genes, slide.slide_id, slide.species, options.aliases, slide.notes
        )
        slide = options.quality_filter.by_counts(replace(slide, counts=counts, genes=genes, species=species))
    if slide.image is None:
        return slide, None
    thumbnail = slide.thumbnail()
    # A slide without counts has a grid laid on the tissue of this image, so its coordinates fit.
    wrong = describe_wrong_frame(slide, thumbnail) if slide.has_counts else None
    if wrong and options.off_tissue == "error":
        raise WrongFrameError(f"{wrong} To keep them as they are: off_tissue='allow' (--allow-off-tissue).")
    if wrong:
        logger.warning(wrong)
    return slide, thumbnail


def swapped(slide: Slide, options: PatchOptions) -> Slide:
    """Return the slide with x and y swapped if the options say so."""
    return replace(slide, spots=slide.spots.rename(columns={"x": "y", "y": "x"})) if options.swap_xy else slide


def _write_spots(slide: Slide, folder: Path, options: PatchOptions) -> np.ndarray:
    """Cut, filter and write the spots; return which were written (spots,) bool."""
    side = options.patch_um / slide.mpp
    if slide.image is not None and slide.stored_patches is None and options.patch_px > _UPSAMPLING_ALARM * side:
        logger.warning(
            "%s: a patch of %g um is %.0f px of the image, enlarged to %d px: give a sharper image, a larger patch_um "
            "or a smaller patch_px",
            slide.slide_id, options.patch_um, side, options.patch_px,
        )  # fmt: skip
    shards = _Shards(folder, slide.slide_id, options.max_shard_bytes)
    counts = slide.counts.tocsr()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    waiting: list[tuple[int, bytes | None, float]] = []
    kept = np.ones(len(slide.spots), dtype=bool)
    try:
        for position, data, tissue in _encoded_patches(slide, options):
            if tissue < options.quality_filter.min_tissue:
                kept[position] = False
                continue
            waiting.append((position, data, tissue))
            if len(waiting) == _ROWS_PER_GROUP:
                shards.write(_spot_rows(slide, counts, waiting))
                waiting = []
        if waiting:
            shards.write(_spot_rows(slide, counts, waiting))
    finally:
        shards.close()
    removed = int((~kept).sum())
    if removed:
        logger.warning("%s: removed %d of %d spots whose patch is less than %g tissue",
                       slide.slide_id, removed, len(slide.spots), options.quality_filter.min_tissue)  # fmt: skip
    slide.notes.leave_out_spots(f"patch of less than {options.quality_filter.min_tissue:g} tissue", removed)
    if removed == len(slide.spots):
        raise ValueError(
            f"slide {slide.slide_id!r}: no patch has {options.quality_filter.min_tissue:g} tissue. Lower --min-tissue, and "
            "look at the slide with --preview."
        )
    return kept


def _encoded_patches(slide: Slide, options: PatchOptions) -> Iterator[tuple[int, bytes | None, float]]:
    """Yield row, encoded patch and tissue fraction in the order of the spots; None and NaN for a slide without an image.

    Within a block, patches are cut along the rows of the image, so that each tile of a TIFF is decoded about once.
    """
    if slide.image is None:
        yield from ((position, None, np.nan) for position in range(len(slide.spots)))
        return
    cut = slide.cutter(options.patch_um, options.patch_px)
    side = options.patch_um / slide.mpp
    block = _ROWS_PER_GROUP  # for an image in memory, the order does not matter
    if not isinstance(slide.image, np.ndarray):
        block = max(block, int(_BUFFER_BYTES / (1.5 * options.patch_px**2)))
    x, y = slide.spots["x"].to_numpy(float), slide.spots["y"].to_numpy(float)
    with tqdm(total=len(slide.spots), desc=slide.slide_id, unit="spot", disable=not options.progress) as bar:
        for start in range(0, len(slide.spots), block):
            stop = min(start + block, len(slide.spots))
            encoded, samples = [b""] * (stop - start), [np.empty(0)] * (stop - start)
            order = start + np.lexsort((x[start:stop], y[start:stop] // max(side, 512)))
            for position in order.tolist():
                patch = cut(position)
                encoded[position - start] = encode(patch, options.image_format, options.quality)
                samples[position - start] = tissue_sample(patch)
                bar.update()
            yield from zip(range(start, stop), encoded, tissue_fractions(samples).tolist(), strict=True)


class _Shards:
    """The parquet files of one slide; a new one begins when the last has reached the limit."""

    def __init__(self, folder: Path, slide_id: str, limit: int):
        self.folder, self.slide_id, self.limit = folder, slide_id, limit
        self.number, self.size = 0, 0
        self.writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        if self.writer is not None and self.size >= self.limit:
            self.close()
            if self.number == 0:
                os.replace(self.folder / f"{self.slide_id}.parquet", self.folder / f"{self.slide_id}--00000.parquet")
            self.number, self.size = self.number + 1, 0
        if self.writer is None:
            suffix = f"--{self.number:05d}" if self.number else ""
            path = self.folder / f"{self.slide_id}{suffix}.parquet"
            self.writer = pq.ParquetWriter(path, SPOTS_SCHEMA, **WRITER)
        self.writer.write_table(rows)
        self.size += rows.nbytes

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _spot_rows(slide: Slide, counts: Any, patches: list[tuple[int, bytes | None, float]]) -> pa.Table:
    """Return the table rows of these spots."""
    positions = np.array([position for position, _, _ in patches])
    spots, counts = slide.spots.iloc[positions], counts[positions]
    columns = {
        "image": _images([data for _, data, _ in patches]),
        **count_columns(counts),
        "slide_id": [slide.slide_id] * len(spots),
        "patient_id": [slide.patient_id] * len(spots),
        "barcode": [str(barcode) for barcode in spots.index],
        "x": spots["x"].to_numpy(float),
        "y": spots["y"].to_numpy(float),
        "array_row": spots["array_row"].to_numpy(np.int32),
        "array_col": spots["array_col"].to_numpy(np.int32),
        "label": [None if pd.isna(label) else label for label in spots["label"]],
        "total_counts": np.diff(np.concatenate([[0], np.cumsum(counts.data, dtype=np.int64)])[counts.indptr]),
        "tissue_fraction": pa.array(np.array([tissue for *_, tissue in patches], dtype=np.float32), from_pandas=True),
        "cell_area_um2": pa.array(spots["cell_area_um2"].to_numpy(np.float32), from_pandas=True),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in SPOTS_SCHEMA], schema=SPOTS_SCHEMA)


def count_columns(counts: sp.csr_matrix) -> dict[str, pa.Array]:
    """Return the counts of spots as table columns: gene indices, counts, and the number of expressed genes."""
    offsets = pa.array(counts.indptr, pa.int32())
    return {
        "gene_indices": pa.ListArray.from_arrays(offsets, pa.array(counts.indices, pa.int32())),
        "gene_counts": pa.ListArray.from_arrays(offsets, pa.array(counts.data, pa.int32())),
        "n_genes": pa.array(np.diff(counts.indptr), pa.int32()),
    }


def _images(encoded: list[bytes | None]) -> pa.Array:
    """Return images as `datasets` stores them, null where there is none.

    They are built from arrays, since a list of dictionaries takes five times as long.
    """
    kind = SPOTS_SCHEMA.field("image").type
    return pa.StructArray.from_arrays(
        [pa.array(encoded, pa.binary()), pa.nulls(len(encoded), pa.string())],
        fields=list(kind),
        mask=pa.array([data is None for data in encoded]),
    )


def slide_row(slide: Slide, thumbnail: Image.Image | None, options: PatchOptions) -> dict[str, Any]:
    """Return the row of a slide in the slides table."""
    height, width = (0, 0) if slide.image is None else slide.image.shape[:2]
    picture = None if thumbnail is None else {"bytes": encode(np.asarray(thumbnail), "jpeg", 90), "path": None}
    names = ("slide_id", "patient_id", "technology", "tissue", "species", "label_source", "source")
    return {name: getattr(slide, name) for name in names} | {
        "mpp": float(slide.mpp),
        "measured_genes": np.arange(len(slide.genes), dtype=np.int32),
        "thumbnail": picture,
        "image_width": width,
        "image_height": height,
        "patch_um": float(options.patch_um),
        "patch_px": int(options.patch_px),
        "spot_um": None if slide.spot_um is None else float(slide.spot_um),
        "split": "train" if slide.image is not None else UNPAIRED,
        "notes": slide.notes.to_json(),
    }
