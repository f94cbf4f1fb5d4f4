"""Stream files of spots from the disk or the Hub, a stretch of rows at a time.

They are read by datasets' own `IterableDataset`. Its shards are stretches of rows instead of complete files, since a file is a
slide, and shuffled spots must come from more slides than a machine can hold.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset
from datasets.iterable_dataset import ArrowExamplesIterable

from .folder import raise_memory
from .row_checks import problem_of_rows
from .schema import slide_of

# Rows per stretch: those of a row group of `delst prepare`, so that nothing is read twice.
STRETCH_ROWS = 100
HUB = "hf://"
COUNTS = ("gene_indices", "gene_counts")
# The columns that a batch needs; others are not fetched.
TRAINING = ("image", *COUNTS, "slide_id", "n_genes", "total_counts")
# Large binaries, since the patches of a shuffle buffer may exceed 2 GiB.
_TYPES = {
    "image": pa.struct({"bytes": pa.large_binary(), "path": pa.string()}),
    "gene_indices": pa.list_(pa.int32()),
    "gene_counts": pa.list_(pa.int32()),
    "slide_id": pa.string(),
    "n_genes": pa.int32(),
    "total_counts": pa.int64(),
}


@dataclass(frozen=True)
class SpotFile:
    """A file of spots.

    Attributes:
        address: Path of the file, or ``hf://datasets/USER/NAME@REVISION/PATH``.
        rows: Number of spots.
        first: ``spot_index`` of the first spot, counted over all files of the dataset.
    """

    address: str
    rows: int
    first: int

    @property
    def slide_id(self) -> str:
        """The slide to which the spots belong."""
        return slide_of(self.address)


class Stretch(NamedTuple):
    """Rows `start` to `stop` of a file."""

    file: SpotFile
    start: int
    stop: int


class SpotFiles:
    """Spots of a dataset that are read only when they are needed, and not kept in memory.

    Args:
        files: Files of the spots, in the order of the dataset.
        num_genes: Number of rows of the table of genes.
        level: Column that the intra-modal loss orders spots by.

    Examples:
        >>> from delst_hf.data.streamed import StreamedStudy
        >>> spots = StreamedStudy.load("runs/toy/data").subset(["toy_A1"])
        >>> spots.num_rows, [table.num_rows for table in spots.tables(("gene_counts",), 20)]
        (36, [20, 16])
    """

    def __init__(self, files: Sequence[SpotFile], num_genes: int, level: str = "n_genes"):
        self.files, self.num_genes, self.level = tuple(files), num_genes, level
        self.num_rows = sum(file.rows for file in self.files)
        stretches = [-(-file.rows // STRETCH_ROWS) for file in self.files]
        # Number of the first stretch of each file, and of all stretches at the end, to find a stretch by its number.
        self._numbers = np.concatenate([[0], np.cumsum(stretches, dtype=np.int64)])

    def __len__(self) -> int:
        return self.num_rows

    @property
    def num_stretches(self) -> int:
        """The number of stretches of all files."""
        return int(self._numbers[-1])

    def stretch_sizes(self) -> np.ndarray:
        """Return the rows of each stretch (stretches,) uint8; only the last one of a file can be shorter."""
        sizes = np.full(self.num_stretches, STRETCH_ROWS, dtype=np.uint8)
        for number, file in zip(self._numbers[1:], self.files, strict=True):
            if file.rows:
                sizes[number - 1] = (file.rows - 1) % STRETCH_ROWS + 1
        return sizes

    def stretch(self, number: int) -> Stretch:
        """Return a stretch by its number."""
        place = int(np.searchsorted(self._numbers, number, side="right")) - 1
        start = (number - int(self._numbers[place])) * STRETCH_ROWS
        return Stretch(self.files[place], start, min(start + STRETCH_ROWS, self.files[place].rows))

    def read(self, stretches: Sequence[Stretch], columns: Sequence[str] = TRAINING) -> IterableDataset:
        """Return a stream of arrow tables of these stretches, in their order.

        Args:
            stretches: The stretches to read.
            columns: Columns of the files; ``spot_index`` is added, and ``level`` if its column is among them.
        """
        about = {"columns": tuple(columns), "num_genes": self.num_genes, "level": self.level}
        source = ArrowExamplesIterable(_tables, {"stretches": list(stretches), **about})
        return IterableDataset(source).with_format("arrow")

    def part(self, index: int, parts: int) -> "SpotFiles":
        """Return every `parts`-th file from the `index`-th on."""
        return SpotFiles(self.files[index::parts], self.num_genes, self.level)

    def tables(self, columns: Sequence[str] = TRAINING, batch_size: int = 8192) -> Iterator[pa.Table]:
        """Yield all spots in the order of the dataset, `batch_size` at a time."""
        whole = [Stretch(file, 0, file.rows) for file in self.files if file.rows]
        yield from self.read(whole, columns).iter(batch_size=batch_size)

    def some_images(self, number: int = 512) -> list[dict[str, Any]]:
        """Return up to `number` undecoded patches, from about thirty stretches spread evenly over all spots."""
        places = np.unique(np.linspace(0, self.num_stretches - 1, 32).astype(int))
        each = -(-number // len(places))
        some = [(one.file, one.start, min(one.start + each, one.stop)) for one in map(self.stretch, places.tolist())]
        tables = self.read([Stretch(*one) for one in some], ("image",)).iter(batch_size=each)
        return [image for table in tables for image in table["image"].to_pylist()][:number]


def _tables(
    stretches: list[Stretch], columns: tuple[str, ...], num_genes: int, level: str
) -> Iterator[tuple[Any, pa.Table]]:
    """Yield the tables of a shard as datasets expects them: those of each stretch, one per row group."""
    for number, (file, start, stop) in enumerate(stretches):
        for part, table in enumerate(_groups(file, start, stop, columns)):
            yield (number, part), _checked(table, file, num_genes, level)


def _groups(file: SpotFile, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of a stretch from the row groups that it covers."""
    given = 0
    try:
        with open_spots(file.address) as handle:
            parquet = pq.ParquetFile(
                handle, metadata=_footer(file.address), pre_buffer=True, page_checksum_verification=True
            )
            first = 0
            for group in range(parquet.metadata.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                low, high = max(start - first, 0), min(stop - first, rows)
                first += rows
                if low < high:
                    table = parquet.read_row_group(group, columns=list(columns), use_threads=False)
                    given += high - low
                    types = pa.schema([(name, _TYPES[name]) for name in table.column_names])
                    yield (
                        table.slice(low, high - low)
                        .cast(types)
                        .append_column("spot_index", pa.array(np.arange(high - low) + file.first + first - rows + low))
                    )
    except (pa.ArrowException, OSError) as error:
        raise_memory(error)
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file.address} cannot be read ({said}). Check that it still exists and can be reached, then resume with "
            "--resume_from_checkpoint true; `delst check FOLDER` lists the files that do not match the manifest."
        ) from error
    if given != stop - start:
        raise ValueError(
            f"{file.address} holds fewer than the {file.rows} spots that its dataset states. Make the dataset again with delst "
            "prepare, or copy it again from its source."
        )


def _checked(table: pa.Table, file: SpotFile, num_genes: int, level: str) -> pa.Table:
    """Check rows as opening a folder does, and add the column by which the loss orders spots."""
    wrong, names = "", table.column_names
    if set(COUNTS) <= set(names):
        wrong = problem_of_rows(table, num_genes, file.slide_id if "slide_id" in names else None)
    if not wrong and "image" in names:
        images = table["image"].combine_chunks()
        if images.field("path").null_count != len(images) or images.field("bytes").null_count:
            wrong = "an image is missing, or is a path in place of bytes"
    if wrong:
        raise ValueError(f"{file.address}: {wrong}. Make the dataset again with delst prepare.")
    return table.append_column("level", table[level].cast(pa.float32())) if level in names else table


def open_spots(address: str) -> Any:
    """Open a file of spots, of which only the requested ranges are read or fetched."""
    if not address.startswith(HUB):
        return pa.OSFile(address)
    from huggingface_hub import HfFileSystem

    # Arrow requests the ranges that it needs; a block cache would fetch more.
    return HfFileSystem().open(address, "rb", cache_type="none")


@functools.lru_cache(maxsize=128)
def _footer(address: str) -> pq.FileMetaData:
    with open_spots(address) as handle:
        return pq.read_metadata(handle)
