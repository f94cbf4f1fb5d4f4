"""Open a dataset folder: find its files, and check that they are complete and consistent.

All code that reads a folder (`Study`, `merge`, `vocabulary`, a push) begins with `open_folder`, which finds files by the layout
and the manifest, never by the README.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .schema import (
    CONFIGS,
    LAYOUT,
    MANIFEST,
    SPLITS,
    UNPAIRED,
    problems_of_files,
    read_manifest,
    regular_size,
    slide_of,
)

logger = logging.getLogger(__name__)

# Columns that every version wrote; others may be missing and are then null.
_REQUIRED = {
    "spots": ("image", "gene_indices", "gene_counts", "slide_id", "patient_id", "barcode", "x", "y", "n_genes", "total_counts"),
    "genes": ("gene_id", "symbol"),
    "slides": ("slide_id", "patient_id", "mpp", "measured_genes", "patch_um", "patch_px"),
}  # fmt: skip
_SCHEMAS = {name: features.arrow_schema for name, features in CONFIGS.items()}
_TABLES = ("genes/genes.parquet", "slides/slides.parquet")
_WATCHED = {
    "gene_indices.list.element": "indices",
    "gene_counts.list.element": "counts",
    "slide_id": "slide",
    "image.path": "path",
    "image.bytes": "bytes",
}
_AGAIN = "Make it again with delst prepare, or copy it again from its source."


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset folder that was opened and checked.

    Attributes:
        path: The folder.
        spot_files: Files of spots by slide, in the order of the slides table; those of one slide in the order of its spots.
        rows: Number of spots by slide.
        num_genes: Number of rows of the genes table.
        manifest: The manifest; None for a folder of a version that wrote none.
    """

    path: Path
    spot_files: dict[str, list[Path]]
    rows: dict[str, int]
    num_genes: int
    manifest: Mapping[str, Any] | None

    @property
    def genes_file(self) -> Path:
        """The table of genes."""
        return self.path / "genes" / "genes.parquet"

    @property
    def slides_file(self) -> Path:
        """The table of slides."""
        return self.path / "slides" / "slides.parquet"

    @property
    def files(self) -> list[str]:
        """The names of all files of the folder, including README.md and manifest.json, without foreign ones."""
        if self.manifest is not None:
            return [MANIFEST, *self.manifest["files"]]
        names = (path.relative_to(self.path).as_posix() for path in sorted(self.path.rglob("*")))
        return [name for name in names if LAYOUT.fullmatch(name) and regular_size(self.path / name) is not None]


def open_folder(path: str | Path, verify: bool = False) -> DatasetFolder:
    """Open a dataset folder, after checking files, sizes, rows, columns, ranges, and slides against spots.

    This reads the manifest, the two small tables and the footers of the files of spots. Of a folder without a manifest, the
    small columns of all spots are read too.

    Args:
        path: Folder written by ``delst prepare`` or ``delst merge``.
        verify: Also read every file and compare checksums, and check the columns of every spot.

    Raises:
        FileNotFoundError: If it is not a dataset folder.
        ValueError: If it is damaged or inconsistent; the message names the problems.

    Examples:
        >>> folder = open_folder("runs/toy/data", verify=True)
        >>> folder.rows["toy_A1"], folder.num_genes
        (36, 40)
    """
    path = Path(path).expanduser()
    missing = [name for name in CONFIGS if not (path / name).is_dir()]
    if missing:
        from .places import check_dataset  # it reports what is there instead

        check_dataset(str(path))
        raise FileNotFoundError(
            f"{path} is not a complete dataset folder: {missing} missing. Make it with delst prepare."
        )
    manifest = read_manifest(path)
    spots = sorted((path / "spots").rglob("*.parquet"))
    there = [file.relative_to(path).as_posix() for file in spots if not file.name.startswith(".")]
    if manifest is not None:
        refuse(path, problems_of_files(path, manifest, verify))
        named = [name for name in manifest["files"] if name.startswith("spots/")]
        refuse(path, [f"{name} is not in {MANIFEST}" for name in sorted(set(there) - set(named))])
    else:
        logger.info(
            "%s has no %s (it is of an older version): its files cannot be compared with a manifest", path, MANIFEST
        )
        named = there
    names = [*_TABLES, *sorted(named)]
    refuse(path, [f"{name} is missing or not a regular file" for name in names if regular_size(path / name) is None])
    folder = _tables(path, sorted(named), manifest)
    refuse(path, list(problems_of_slides(folder)))
    if manifest is None or verify:
        from .row_checks import problems_of_readme, problems_of_spots

        files = folder.spot_files.values()
        refuse(path, [problem for own in files for problem in problems_of_spots(path, own, folder.num_genes)])
        if manifest is None:
            refuse(path, list(problems_of_readme(path, sum(folder.rows.values()), verify)))
    return folder


def refuse_links(folder: DatasetFolder) -> None:
    """Refuse a folder with symlinks, since their targets would be copied or pushed.

    Raises:
        ValueError: The folder holds symlinks; the message names them.
    """
    names = {part for name in folder.files for part in (name, *map(str, Path(name).parents))} - {"."}
    links = sorted(name for name in names if (folder.path / name).is_symlink())
    if links:
        raise ValueError(
            f"{folder.path} holds symlinks ({', '.join(links[:3])}), whose targets are neither copied nor pushed. Put the "
            "files themselves there (cp -rL)."
        )


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raise a ValueError that names the first five problems of a folder, if it has any."""
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"The dataset folder {path} is damaged or was changed: {'; '.join(problems[:5])}{more}. {_AGAIN}"
        )


def _tables(path: Path, names: Sequence[str], manifest: Mapping[str, Any] | None) -> DatasetFolder:
    """Check the footers of all files, and assign the files of spots to the slides of the slides table."""
    footers = {name: _footer(path, name) for name in (*_TABLES, *names)}
    num_genes = footers["genes/genes.parquet"].num_rows
    refuse(path, [wrong for name, footer in footers.items() for wrong in _problems_of_columns(name, footer)])
    refuse(path, [wrong for name in names for wrong in _problems_of_ranges(name, footers[name], num_genes)])
    slides = _read(path, "slides/slides.parquet", ["slide_id"])["slide_id"].to_pylist()
    if len(slides) != len(set(slides)):
        refuse(path, ["slides/slides.parquet names a slide twice"])
    own = files_of_slides(path, slides, names)
    return DatasetFolder(
        path,
        spot_files={slide_id: [path / name for name in files] for slide_id, files in own.items()},
        rows={slide_id: sum(footers[name].num_rows for name in files) for slide_id, files in own.items()},
        num_genes=num_genes,
        manifest=manifest,
    )


def files_of_slides(path: Path, slides: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of spots of each slide by their names; refuse files of slides that the slides table lacks."""
    own: dict[str, list[str]] = {slide_id: [] for slide_id in slides}
    unknown = sorted({slide_of(name) for name in names} - own.keys())
    refuse(path, [f"spots of {slide_id!r} belong to no row of slides/slides.parquet" for slide_id in unknown])
    for name in names:
        own[slide_of(name)].append(name)
    return own


def problems_of_slides(folder: DatasetFolder) -> Iterator[str]:
    """Yield the differences between slides and spots, and between both and the manifest."""
    expected = folder.manifest["slides"] if folder.manifest is not None else {}
    for slide_id, number in folder.rows.items():
        if not number:
            yield f"slide {slide_id!r} has no spots"
        elif folder.manifest is not None and expected.get(slide_id) != number:
            yield f"slide {slide_id!r} has {number} spots instead of {expected.get(slide_id)}"
    for slide_id in expected.keys() - folder.rows.keys():
        yield f"slide {slide_id!r} is not in slides/slides.parquet"
    if folder.manifest is not None and folder.manifest["genes"] != folder.num_genes:
        yield f"genes/genes.parquet has {folder.num_genes} rows instead of {folder.manifest['genes']}"
    table = _read(folder.path, "slides/slides.parquet", ["measured_genes", "patch_um", "patch_px"])
    measured = table["measured_genes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(measured) and not 0 <= measured.min() <= measured.max() < folder.num_genes:
        yield f"measured_genes of a slide lie outside the {folder.num_genes} genes"
    for name in table.column_names[1:]:
        sizes = sorted(set(table[name].to_pylist()), key=str)
        if len(sizes) > 1:
            logger.warning("%s: slides have patches of different %s: %s", folder.path, name, sizes)


def _problems_of_ranges(name: str, footer: pq.FileMetaData, num_genes: int) -> list[str]:
    """Return the problems of a file of spots by the statistics that parquet keeps of every row group."""
    slide_id, found = slide_of(name), set()
    paths = [footer.schema.column(i).path for i in range(footer.num_columns)]
    watched = [(i, _WATCHED[path]) for i, path in enumerate(paths) if path in _WATCHED]
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for i, kind in watched:
            statistics = group.column(i).statistics
            if statistics is None:
                continue
            low, high = (statistics.min, statistics.max) if statistics.has_min_max else (None, None)
            if kind == "path" and statistics.has_null_count and statistics.null_count != group.num_rows:
                found.add(f"images of {name} are paths in place of bytes")
            elif kind == "bytes" and statistics.has_null_count:
                found |= _problems_of_images(name, statistics.null_count, group.num_rows)
            elif low is None or high is None:
                continue
            elif kind == "indices" and not 0 <= low <= high < num_genes:
                found.add(f"gene_indices of {name} go from {low} to {high}, but there are {num_genes} genes")
            elif kind == "counts" and low < 1:
                found.add(f"gene_counts of {name} go down to {low}; allowed: 1 or more")
            elif kind == "slide" and not low == high == slide_id:
                found.add(f"{name} holds spots of another slide, {low if low != slide_id else high!r}")
    return sorted(found)


def _problems_of_images(name: str, missing: int, rows: int) -> set[str]:
    """Check a row group for missing images: a slide has all or none, and only slides of the split "unpaired" have none."""
    split = Path(name).parent.name
    if 0 < missing < rows or (missing and split in SPLITS and split != UNPAIRED):
        return {f"images of {name} are missing"}
    return {f"{name} holds images in the split of spots without images"} if split == UNPAIRED and not missing else set()


def check_gene_indices(indices: np.ndarray, num_genes: int) -> None:
    """Refuse indices outside the table of genes, which would read other genes or foreign memory.

    Args:
        indices: Gene indices (any,).
        num_genes: Number of rows of the table.

    Raises:
        ValueError: Indices are out of range; the message states their range.

    Examples:
        >>> check_gene_indices(np.array([0, 3]), num_genes=4)
    """
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_genes:
        raise ValueError(
            f"gene_indices go from {indices.min()} to {indices.max()}, but there are {num_genes} genes. The dataset folder is "
            f"damaged or was changed. {_AGAIN}"
        )


def _problems_of_columns(name: str, footer: pq.FileMetaData) -> Iterator[str]:
    """Yield the differences between the columns of a file and those of its config."""
    config = name.split("/")[0]
    schema = footer.schema.to_arrow_schema()
    missing = [column for column in _REQUIRED[config] if column not in schema.names]
    if missing:
        yield f"{name} has no column {', '.join(missing)}"
    for column in sorted(set(schema.names) & set(CONFIGS[config])):
        expected, found = _SCHEMAS[config].field(column).type, schema.field(column).type
        if not _same_kind(expected, found):
            yield f"column {column} of {name} is of type {found} instead of {expected}"


def _same_kind(expected: pa.DataType, found: pa.DataType) -> bool:
    """Tell whether a column has the type of the schema, whatever the name of its list items."""
    if pa.types.is_list(expected):
        return (pa.types.is_list(found) or pa.types.is_large_list(found)) and _same_kind(
            expected.value_type, found.value_type
        )
    return expected == found


def raise_memory(error: Exception) -> None:
    """Re-raise an error of arrow that means that memory ran out, so that the file is not reported as damaged."""
    from ..errors import is_out_of_memory  # imported late: a training loads this file and rarely needs it

    if is_out_of_memory(error):
        raise error


def read_columns(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a small table of a dataset folder, all of its columns by default.

    It is read without threads, since arrow waits forever for a thread that cannot be started for lack of memory.

    Raises:
        pyarrow.ArrowException: If the file is damaged.
        OSError: If the file cannot be read.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(None if columns is None else list(columns), use_threads=False)


def _footer(path: Path, name: str) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path / name)
    except (pa.ArrowException, OSError) as error:
        raise_memory(error)
        raise ValueError(
            f"{path / name} is not a complete parquet file ({str(error).splitlines()[0]}). {_AGAIN}"
        ) from error


def _read(path: Path, name: str, columns: Sequence[str]) -> pa.Table:
    try:
        return read_columns(path / name, columns)
    except (pa.ArrowException, OSError) as error:
        raise_memory(error)
        raise ValueError(f"{path / name} cannot be read ({str(error).splitlines()[0]}). {_AGAIN}") from error
