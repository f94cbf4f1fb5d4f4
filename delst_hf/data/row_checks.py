"""Check the spots of a dataset folder row by row, when a folder is verified, merged or streamed.

Opening a folder with a manifest does not need it, since checksums guarantee the content of its files.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import is_out_of_memory
from .schema import content_fingerprint, describe_files, regular_size, slide_of

_CHECKED = ["slide_id", "barcode", "x", "y", "gene_indices", "gene_counts", "n_genes", "total_counts"]
_README_SPOTS = re.compile(r"^# Spatial transcriptomics: \d+ slides, (\d+) spots", re.MULTILINE)
_README_CONTENT = re.compile(r"content ([0-9a-f]{16})\b")


def problems_of_spots(folder: Path, files: Sequence[Path], num_genes: int) -> Iterator[str]:
    """Yield the problems in the small columns of all spots of a slide."""
    barcodes: set[str] = set()
    number = 0
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(columns=_CHECKED, batch_size=4096):
                    number += len(batch)
                    barcodes.update(batch["barcode"].to_pylist())
                    wrong = problem_of_rows(batch, num_genes, slide_of(name))
                    if wrong:
                        yield f"{name}: {wrong}"
                        break
        except (pa.ArrowException, OSError) as error:
            if is_out_of_memory(error):
                raise
            yield f"{name} cannot be read ({str(error).splitlines()[0]})"
    if len(barcodes) != number:
        yield f"barcodes of slide {slide_of(files[0].name)!r} are not unique"


def problem_of_rows(rows: pa.RecordBatch | pa.Table, num_genes: int, slide_id: str | None = None) -> str:
    """Return the first problem of rows of spots, in words; "" if there is none.

    Args:
        rows: Rows with at least the columns of genes and counts; ``n_genes``, ``total_counts``, ``x``, ``y`` and ``slide_id``
            are checked if present.
        num_genes: Number of rows of the genes table.
        slide_id: The slide to which the rows must belong; None does not check it.
    """
    indices, counts = (_combined(rows, name) for name in ("gene_indices", "gene_counts"))
    places, values = (column.flatten().to_numpy(zero_copy_only=False) for column in (indices, counts))
    lengths = indices.value_lengths().to_numpy(zero_copy_only=False)
    if len(places) and not 0 <= places.min() <= places.max() < num_genes:
        return f"gene_indices go from {places.min()} to {places.max()}, but there are {num_genes} genes"
    if not np.array_equal(lengths, counts.value_lengths().to_numpy(zero_copy_only=False)):
        return "gene_indices and gene_counts differ in length"
    if len(values) and values.min() < 1:
        return f"gene_counts go down to {values.min()}; allowed: 1 or more"
    if "n_genes" in rows.schema.names and not np.array_equal(
        _combined(rows, "n_genes").to_numpy(zero_copy_only=False), lengths
    ):
        return "n_genes is not the number of gene_indices"
    if "total_counts" in rows.schema.names:
        ends = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])[
            np.concatenate([[0], np.cumsum(lengths)]).astype(int)
        ]
        if not np.array_equal(_combined(rows, "total_counts").to_numpy(zero_copy_only=False), np.diff(ends)):
            return "total_counts is not the sum of gene_counts"
    for name in [name for name in ("x", "y") if name in rows.schema.names]:
        places = _combined(rows, name).to_numpy(zero_copy_only=False)
        if not np.isfinite(places).all():
            return f"{name} of a spot is {places[~np.isfinite(places)][0]}; allowed: numbers"
    if slide_id is not None and set(_combined(rows, "slide_id").to_pylist()) - {slide_id}:
        return f"it holds spots of another slide than {slide_id!r}"
    return ""


def _combined(rows: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    column = rows[name]
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def problems_of_readme(folder: Path, spots: int, verify: bool) -> Iterator[str]:
    """Yield the differences between a folder without a manifest and its README."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if regular_size(readme) is not None else ""
    stated = _README_SPOTS.search(text)
    if stated and int(stated[1]) != spots:
        yield f"README.md states {stated[1]} spots, but the files hold {spots}"
    content = _README_CONTENT.search(text)
    if verify and content and content_fingerprint(describe_files(folder)) != content[1]:
        yield "the content does not match the fingerprint in README.md"
