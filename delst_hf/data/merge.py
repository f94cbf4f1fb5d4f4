"""Join parts or dataset folders, with different gene panels, into one dataset folder."""

import glob
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from ..atomic.files import check_folder_output, complete_or_nothing, link_or_copy
from ..atomic.locks import writing
from ..errors import reading
from ..record import license_of, read_header
from .card import dataset_card
from .folder import DatasetFolder, open_folder, read_columns, refuse_links
from .genes import union_genes
from .output import check_output
from .part import WRITER, count_columns
from .places import is_only_id
from .row_checks import problem_of_rows
from .schema import (
    CONFIGS,
    GENES,
    SLIDES,
    SPLITS,
    SPOTS_SCHEMA,
    UNPAIRED,
    Entry,
    content_fingerprint,
    describe_files,
    sha256,
    write_manifest,
)
from .shards import check_shards
from .splits import SplitPlan, SplitRequest, check_leak, plan_split
from .values import labels as clean_labels

logger = logging.getLogger(__name__)

_FEW_SHARED = 0.5


@dataclass
class DatasetSummary:
    """What was written: spots per slide, spots per label, spots per split, and the number of genes."""

    path: Path
    slides: dict[str, int] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    num_genes: int = 0
    splits: Counter[str] = field(default_factory=Counter)


def merge_datasets(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    split: SplitRequest | None = None,
    overwrite: bool = False,
    license: str | None = None,
    verify: bool = False,
) -> DatasetSummary:
    """Merge dataset folders; genes are joined by Ensembl id or, where a panel has none, by symbol.

    A gene that a folder does not measure stays missing for its slides (`measured_genes`); columns that prove to be one
    gene are summed. Patches are copied unchanged.

    Args:
        folders: folders written by `write_dataset` or `merge_datasets`.
        output: the folder to make.
        split: how to split the result; None keeps the splits of the folders.
        overwrite: replace a dataset at `output`, after the new one is complete.
        license: license of the result; None keeps that of the folders if they agree, else "other".
        verify: first compare the checksums of all files.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: a folder is not a dataset folder.
        ValueError: no folders, a folder that does not match its manifest, missing folders of a sharded run, a slide given
            twice, or a patient in two splits.
        FileExistsError: see `check_output`.

    Examples:
        >>> from delst_hf.data.dataset import write_dataset
        >>> from delst_hf.data.toy import make_toy_slide
        >>> for name in ("toy_A1", "toy_B1"):
        ...     _ = write_dataset([make_toy_slide(name, spots_per_side=4, image_px=300)], name, patch_px=32)
        >>> merge_datasets(["toy_A1", "toy_B1"], "both").slides
        {'toy_A1': 16, 'toy_B1': 16}
    """
    if not folders:
        raise ValueError("there are no datasets to merge. Name at least one folder.")
    if not os.path.isfile(output):  # a file is refused below, with another message
        check_folder_output(output)
    with writing(output, "dataset") as goal:
        check_output(goal, overwrite)
        for name in folders:
            if is_only_id(str(name)):
                raise FileNotFoundError(
                    f"there is no dataset folder {name} here. One of the Hub is downloaded first: hf download {name} "
                    "--repo-type dataset --local-dir DIR."
                )
        opened = [open_folder(Path(folder).expanduser().resolve(), verify) for folder in folders]
        check_shards(opened)
        for folder in opened:
            refuse_links(folder)
        licenses = sorted({license_of(read_header(folder.path / "README.md")) or "unknown" for folder in opened})
        chosen = license or (licenses[0] if len(licenses) == 1 else "other")
        with complete_or_nothing(goal, replace=overwrite, check=partial(check_output, goal, overwrite)) as unfinished:
            return join_parts(opened, unfinished, goal, split, chosen, copied=True)


def join_parts(
    parts: Sequence[DatasetFolder],
    folder: Path,
    output: Path,
    request: SplitRequest | None,
    license: str,
    copied: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> DatasetSummary:
    """Write a dataset folder from parts, which stay unchanged.

    Args:
        parts: folders in the layout of `part` or of a dataset.
        folder: the folder to write in.
        output: the final path of the folder.
        request: how to split; None keeps the splits of the parts.
        license: license for the card.
        copied: copy files that do not change, and compare each with the manifest of its part; False links them, for parts that
            were verified before.
        facts: further facts for the manifest.
    """
    genes = [_conformed(read_columns(part.genes_file), GENES.arrow_schema) for part in parts]
    slides = [_conformed(read_columns(part.slides_file), SLIDES.arrow_schema) for part in parts]
    rows = [row for table in slides for row in table.drop_columns(["thumbnail"]).to_pylist()]
    _check_unique(rows)
    union, places = union_genes([table.to_pandas() for table in genes])
    _report_overlap(slides, places, len(union))
    plan = _plan(rows, request)
    summary = DatasetSummary(output, num_genes=len(union))
    for config in CONFIGS:
        (folder / config).mkdir()
    known: dict[str, Entry] = {}
    for part, table, place in zip(parts, slides, places, strict=True):
        counted = _place_spots(part, folder, place, plan, summary, copied, known)
        for slide_id in table["slide_id"].to_pylist():
            summary.slides[slide_id] = counted[slide_id]
        _copy_previews(part, folder)
    _write_tables(folder, union, slides, places, plan)
    final = read_columns(folder / "slides" / "slides.parquet").drop_columns(["thumbnail"]).to_pylist()
    stored = _write_examples(folder)
    files = describe_files(folder, known)
    present = [name for name in SPLITS if (folder / "spots" / name).is_dir()]
    text = dataset_card(final, summary.slides, summary.labels, len(union), stored, license,
                        content_fingerprint(files), splits=present, split_text=plan.describe())  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
    write_manifest(folder, {"README.md": {}, **files}, **(facts or {}))
    return summary


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema; columns that an older version did not write are null."""
    columns = [
        table[name].cast(schema.field(name).type) if name in table.column_names
        else pa.nulls(len(table), schema.field(name).type) for name in schema.names
    ]  # fmt: skip
    return pa.table(columns, schema=schema)


def _check_unique(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise ValueError("there are no slides to write. Give at least one.")
    repeated = [name for name, number in Counter(row["slide_id"] for row in rows).items() if number > 1]
    if repeated:
        raise ValueError(f"slide_id {repeated[0]!r} is given twice. Give each its own (--slide-id), or leave one out.")
    for name in ("patch_um", "patch_px"):
        sizes = sorted({row[name] for row in rows})
        if len(sizes) > 1:
            logger.warning("slides have patches of different %s: %s", name, sizes)


def _report_overlap(slides: Sequence[pa.Table], places: Sequence[np.ndarray], num_genes: int) -> None:
    """Log how well the panels match; few shared genes are mostly due to names, not to biology."""
    panels = [(table["slide_id"][0].as_py(), set(place.tolist())) for table, place in zip(slides, places, strict=True)]
    everywhere = set.intersection(*(panel for _, panel in panels))
    if all(len(panel) == num_genes for _, panel in panels):
        return
    logger.info("genes: %d in all, %d in every panel", num_genes, len(everywhere))
    for i, (slide_id, panel) in enumerate(panels):
        others = set().union(*(other for j, (_, other) in enumerate(panels) if j != i))
        rate = len(panel & others) / max(len(panel), 1)
        if others and rate < _FEW_SHARED:
            logger.warning("%s: only %.0f %% of its %d genes are in another panel. Check that all panels have names of one "
                           "kind (symbols or Ensembl ids) and one species; an alias table helps (--aliases)",
                           slide_id, 100 * rate, len(panel))  # fmt: skip


def _plan(rows: Sequence[Mapping[str, Any]], request: SplitRequest | None) -> SplitPlan:
    unpaired = tuple(row["slide_id"] for row in rows if row["split"] == UNPAIRED)
    if unpaired:
        named = [] if request is None else [*request.test_slides, *request.validation_slides]
        if blind := [slide_id for slide_id in named if slide_id in unpaired]:
            raise ValueError(
                f"slides {blind} have no image, so they belong to the split {UNPAIRED!r} and cannot be held out. Name other "
                "slides (--test-slides, --validation-slides)."
            )
        paired = [row for row in rows if row["split"] != UNPAIRED]
        return replace(_plan(paired, request) if paired else SplitPlan(None), unpaired=unpaired)
    slides = [(row["slide_id"], row["patient_id"]) for row in rows]
    kept = {row["slide_id"]: row["split"] or "train" for row in rows}
    if request is not None or set(kept.values()) == {"train"}:
        return plan_split(slides, request)
    if "spot" not in kept.values():
        check_leak(slides, kept, "slide")
    return SplitPlan(None, kept)


def _place_spots(
    part: DatasetFolder,
    folder: Path,
    place: np.ndarray,
    plan: SplitPlan,
    summary: DatasetSummary,
    copied: bool,
    known: dict[str, Entry],
) -> Counter[str]:
    """Write the spots of one part into the folder; return the number of spots per slide.

    The manifest entry of each file that is copied or linked unchanged is added to `known`.
    """
    counted: Counter[str] = Counter()
    entries = part.manifest["files"] if part.manifest is not None else {}
    same = bool((place == np.arange(len(place))).all())
    # Files of one slide in order: a split by spot depends on the position of a spot within its slide.
    for slide_id, files in part.spot_files.items():
        lengths = [pq.ParquetFile(path).metadata.num_rows for path in files]
        splits = plan.of_spots(slide_id, sum(lengths))
        start = 0
        for path, length in zip(files, lengths, strict=True):
            own = splits[start : start + length]
            if plan.request is None and path.parent.name in SPLITS:
                own = np.full(length, path.parent.name, dtype=object)
            start += length
            with reading(path, "spots"):
                table = read_columns(path, ["label"])
            stored = table["label"].to_pylist()
            classes = clean_labels(stored)  # older versions wrote 1.0 beside 1
            summary.labels.update("(none)" if label is None else label for label in classes)
            summary.splits.update(own.tolist())
            goals = {
                name: _free_path(folder / "spots" / (name if plan.is_split else ""), slide_id, len(files) > 1)
                for name in set(own)
            }
            if same and len(goals) == 1 and classes == stored and pq.read_schema(path).equals(SPOTS_SCHEMA):
                name = path.relative_to(part.path).as_posix()
                if copied:
                    _copy_as_written(path, goals[own[0]], entries.get(name, {}))
                else:
                    link_or_copy(path, goals[own[0]])
                if name in entries:
                    known[goals[own[0]].relative_to(folder).as_posix()] = entries[name]
            else:
                _rewrite(path, place, own, goals)
        counted[slide_id] = sum(lengths)
    return counted


def _copy_as_written(source: Path, target: Path, entry: Entry) -> None:
    """Copy a file, and refuse it if it does not match its manifest: its new checksum would hide the damage."""
    shutil.copyfile(source, target)
    if "sha256" in entry and sha256(target) != entry["sha256"]:
        raise ValueError(
            f"{source} does not match the checksum in its folder's manifest: it is damaged. Make the folder again with delst "
            "prepare, or download it again."
        )


def _free_path(folder: Path, slide_id: str, several: bool) -> Path:
    """Return the next free file name of a slide; numbered from 0 where there are several, so that names sort in order."""
    folder.mkdir(exist_ok=True)
    number = len(list(folder.glob(f"{glob.escape(slide_id)}--[0-9]*.parquet")))
    return folder / (f"{slide_id}--{number:05d}.parquet" if several else f"{slide_id}.parquet")


def _rewrite(path: Path, place: np.ndarray, splits: np.ndarray, goals: Mapping[str, Path]) -> None:
    """Copy a file of spots with renumbered genes, to one file per split."""
    file, start = pq.ParquetFile(path, page_checksum_verification=True), 0
    writers = {name: pq.ParquetWriter(goal, SPOTS_SCHEMA, **WRITER) for name, goal in goals.items()}
    try:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            wrong = problem_of_rows(rows, len(place))
            if wrong:
                raise ValueError(f"{path}: {wrong}. Make the folder again with delst prepare.")
            rows = _renumber(rows, place)
            own = splits[start : start + len(rows)]
            start += len(rows)
            for name, writer in writers.items():
                chosen = rows if len(writers) == 1 else rows.filter(pa.array(own == name))
                if len(chosen):
                    writer.write_table(chosen)
    finally:
        for writer in writers.values():
            writer.close()


def _renumber(rows: pa.Table, place: np.ndarray) -> pa.Table:
    """Replace gene indices by those of the union; counts of genes that became one are summed."""
    indices, counts = (rows[name].combine_chunks() for name in ("gene_indices", "gene_counts"))
    lengths = indices.value_lengths().to_numpy(zero_copy_only=False)
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    width = int(place.max(initial=-1)) + 1
    values = counts.flatten().to_numpy().astype(np.int64)
    matrix = sp.csr_matrix((values, place[indices.flatten().to_numpy()], indptr), shape=(len(rows), width))
    matrix.sum_duplicates()  # also sorts
    labels = pa.array(clean_labels(rows["label"].to_pylist()), pa.string())
    changed = {**count_columns(matrix), "label": labels}
    kept = {name: rows[name] for name in rows.column_names if name not in changed}
    return _conformed(pa.table(kept | changed), SPOTS_SCHEMA)


def _write_tables(folder: Path, union: pd.DataFrame, slides: Sequence[pa.Table], places, plan: SplitPlan) -> None:
    pq.write_table(pa.Table.from_pandas(union, GENES.arrow_schema, preserve_index=False).replace_schema_metadata(
        GENES.arrow_schema.metadata), folder / "genes" / "genes.parquet", write_page_checksum=True)  # fmt: skip
    with pq.ParquetWriter(
        folder / "slides" / "slides.parquet", SLIDES.arrow_schema, write_page_checksum=True
    ) as writer:
        for table, place in zip(slides, places, strict=True):
            rows = table.to_pylist()
            for row in rows:
                row["measured_genes"] = np.unique(place[np.asarray(row["measured_genes"], dtype=np.int64)])
                row["split"] = plan.of(row["slide_id"])
            writer.write_table(pa.Table.from_pylist(rows, schema=SLIDES.arrow_schema))


def _copy_previews(part: DatasetFolder, folder: Path) -> None:
    for name in part.files:
        if name.startswith("previews/"):
            (folder / "previews").mkdir(exist_ok=True)
            shutil.copyfile(part.path / name, folder / name, follow_symlinks=False)


def _write_examples(folder: Path) -> str:
    """Write three patches of slides with an image for the card; return their encoding, "" if no slide has an image."""
    files = sorted(file for file in (folder / "spots").rglob("*.parquet") if file.parent.name != UNPAIRED)
    if not files:
        return ""
    (folder / "examples").mkdir()
    for number, fraction in enumerate((0.2, 0.5, 0.8)):
        file = pq.ParquetFile(files[int(fraction * len(files))], page_checksum_verification=True)
        group = file.read_row_group(int(fraction * file.num_row_groups), columns=["image"])
        data = group["image"][int(fraction * len(group))].as_py()["bytes"]
        suffix = "jpg" if data[:2] == b"\xff\xd8" else "png"
        (folder / "examples" / f"{number + 1}.{suffix}").write_bytes(data)
    return "JPEG" if any((folder / "examples").glob("*.jpg")) else "PNG"
