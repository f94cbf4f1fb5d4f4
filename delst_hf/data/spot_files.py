"""Files of spots read where they lie, on the disk or on the Hub, a stretch of rows at a time.

What reads them is datasets' own `IterableDataset`. Its shards are stretches of rows instead of whole files: a slide is a file,
and spots that are shuffled must come from more slides than a machine can hold.
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

# Rows of a stretch: those of a group of rows, as `delst prepare` writes them, so that nothing is read twice.
STRETCH_ROWS = 100
HUB = "hf://"
COUNTS = ("gene_indices", "gene_counts")
# What a batch is made of; other columns are not fetched.
TRAINING = ("image", *COUNTS, "slide_id", "n_genes", "total_counts")
# Large binaries: the patches of a shuffle buffer may be more than 2 GiB.
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
        address: Its path, or ``hf://datasets/USER/NAME@REVISION/PATH``.
        rows: Its number of spots.
        first: ``spot_index`` of the first of them, which counts in all files of the dataset.
    """

    address: str
    rows: int
    first: int

    @property
    def slide_id(self) -> str:
        """The slide that its spots are of."""
        return slide_of(self.address)


class Stretch(NamedTuple):
    """Rows `start` to `stop` of a file."""

    file: SpotFile
    start: int
    stop: int


class SpotFiles:
    """Spots of a dataset that are not opened but read when they are needed; nothing of them is in memory.

    Args:
        files: Their files, in the order of the dataset.
        num_genes: Rows of the table of genes.
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
        # Number of the first stretch of each file, and of all at the end: a stretch is found by its number.
        self._numbers = np.concatenate([[0], np.cumsum(stretches, dtype=np.int64)])

    def __len__(self) -> int:
        return self.num_rows

    @property
    def num_stretches(self) -> int:
        """How many stretches all files have."""
        return int(self._numbers[-1])

    def stretch_sizes(self) -> np.ndarray:
        """Return rows of each stretch (stretches,) uint8: all but the last of a file are whole."""
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
        """Return a stream of these stretches, in their order, that gives arrow tables.

        Args:
            stretches: What to read.
            columns: Columns of the files; where they are those of a batch, ``level`` and ``spot_index`` are added.
        """
        about = {"columns": tuple(columns), "num_genes": self.num_genes, "level": self.level}
        source = ArrowExamplesIterable(_tables, {"stretches": list(stretches), **about})
        return IterableDataset(source).with_format("arrow")

    def part(self, index: int, parts: int) -> "SpotFiles":
        """Return every `parts`-th file from the `index`-th on."""
        return SpotFiles(self.files[index::parts], self.num_genes, self.level)

    def tables(self, columns: Sequence[str] = TRAINING, batch_size: int = 8192) -> Iterator[pa.Table]:
        """Go through all spots in the order of the dataset, `batch_size` at a time."""
        whole = [Stretch(file, 0, file.rows) for file in self.files if file.rows]
        yield from self.read(whole, columns).iter(batch_size=batch_size)

    def some_images(self, number: int = 512) -> list[dict[str, Any]]:
        """Return undecoded patches from some thirty places that are spread evenly over all spots, at most `number`."""
        places = np.unique(np.linspace(0, self.num_stretches - 1, 32).astype(int))
        each = -(-number // len(places))
        some = [(one.file, one.start, min(one.start + each, one.stop)) for one in map(self.stretch, places.tolist())]
        tables = self.read([Stretch(*one) for one in some], ("image",)).iter(batch_size=each)
        return [image for table in tables for image in table["image"].to_pylist()][:number]


def _tables(
    stretches: list[Stretch], columns: tuple[str, ...], num_genes: int, level: str
) -> Iterator[tuple[Any, pa.Table]]:
    """Read stretches, a group of rows at a time: what datasets calls the tables of a shard."""
    for number, (file, start, stop) in enumerate(stretches):
        for part, table in enumerate(_groups(file, start, stop, columns)):
            yield (number, part), _checked(table, file, num_genes, level)


def _groups(file: SpotFile, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read the rows of a stretch from the groups of rows that it lies in."""
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
            f"{file.address} cannot be read ({said}). Look whether it is still there and reachable, then go on with "
            "--resume_from_checkpoint true; `delst check FOLDER` says which files are not as they were written."
        ) from error
    if given != stop - start:
        raise ValueError(
            f"{file.address} holds fewer than the {file.rows} spots that its dataset states. Make the dataset again with delst "
            "prepare, or copy it again from where it came from."
        )


def _checked(table: pa.Table, file: SpotFile, num_genes: int, level: str) -> pa.Table:
    """Check rows as the opening of a folder does, and add the column that the loss orders spots by."""
    wrong, names = "", table.column_names
    if set(COUNTS) <= set(names):
        wrong = problem_of_rows(table, num_genes, file.slide_id if "slide_id" in names else None)
    if not wrong and "image" in names:
        images = table["image"].combine_chunks()
        if images.field("path").null_count != len(images) or images.field("bytes").null_count:
            wrong = "an image is a path or is missing, instead of an image"
    if wrong:
        raise ValueError(f"{file.address}: {wrong}. Make the dataset again with delst prepare.")
    return table.append_column("level", table[level].cast(pa.float32())) if level in names else table


def open_spots(address: str) -> Any:
    """Open a file of spots, of which only what is asked for is read or fetched."""
    if not address.startswith(HUB):
        return pa.OSFile(address)
    from huggingface_hub import HfFileSystem

    # Arrow asks for the ranges that it needs; a cache of blocks would fetch more.
    return HfFileSystem().open(address, "rb", cache_type="none")


@functools.lru_cache(maxsize=128)
def _footer(address: str) -> pq.FileMetaData:
    with open_spots(address) as handle:
        return pq.read_metadata(handle)
