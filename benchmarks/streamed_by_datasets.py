"""Show why `--streaming true` distributes and shuffles spots itself: what datasets' own stream does with the same files.

    python benchmarks/streamed_by_datasets.py

Three toy slides of 36, 169 and 121 spots, one file each, are read by ``load_dataset("parquet", streaming=True)``. Printed are
the spots that each of two processes gets and reads by ``split_dataset_by_node``, and the spots of a stream with a shuffle
buffer that resumes from its ``state_dict`` after 100 spots; beside both, the same for ours.
"""

import inspect
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.packaged_modules.parquet.parquet import Parquet

from delst_hf.data.dataset import write_dataset
from delst_hf.data.spot_files import SpotFiles
from delst_hf.data.spot_stream import SpotStream
from delst_hf.data.streamed import StreamedStudy
from delst_hf.data.toy import make_toy_slide

SIZES = {"toy_A1": 6, "toy_A2": 13, "toy_B1": 11}
BATCH, BUFFER, SEEN = 16, 64, 100
Example = tuple[str, str]
ROWS_READ: list[int] = []


def count_rows() -> None:
    """Make both readers of parquet files record how many rows they read."""
    original, read_group = Parquet._generate_tables, pq.ParquetFile.read_row_group

    def counted(self: Parquet, *arguments: Any, **options: Any) -> Iterator[Any]:
        for key, table in original(self, *arguments, **options):
            ROWS_READ.append(table.num_rows)
            yield key, table

    def counted_group(self: pq.ParquetFile, *arguments: Any, **options: Any) -> pa.Table:
        table = read_group(self, *arguments, **options)
        ROWS_READ.append(table.num_rows)
        return table

    Parquet._generate_tables, pq.ParquetFile.read_row_group = counted, counted_group


def opened(folder: Path) -> IterableDataset:
    """Open the files, with a shard per row group if this version of datasets supports it."""
    files = sorted(map(str, (folder / "spots").glob("*.parquet")))
    stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
    stream = stream.select_columns(["slide_id", "barcode"])
    return stream.reshard() if hasattr(stream, "reshard") else stream


def names(examples: Iterable[dict[str, Any]]) -> list[Example]:
    return [(example["slide_id"], example["barcode"]) for example in examples]


def print_split(stream: IterableDataset, spots: SpotFiles) -> None:
    """Print which spots of an epoch each of two processes gets, and how many rows it reads for them."""
    ways: list[dict[str, Any]] = [{}]
    if "strategy" in inspect.signature(split_dataset_by_node).parameters:
        ways += [{"strategy": "shards"}]
    for way in ways:
        given, read = [], []
        for rank in range(2):
            ROWS_READ.clear()
            given.append(len(names(split_dataset_by_node(stream, rank, 2, **way))))
            read.append(sum(ROWS_READ))
        print(
            f"split_dataset_by_node{' by shards' if way else ''}, {stream.num_shards} shards: spots {given}, whole batches of "
            f"{BATCH} {[count // BATCH for count in given]}, rows read {read}"
        )
    given, read = [], []
    for rank in range(2):
        ROWS_READ.clear()
        given.append(sum(batch.num_rows for batch in SpotStream(spots, BATCH, rank=rank, ranks=2)))
        read.append(sum(ROWS_READ))
    print(f"ours: spots {given}, whole batches of {BATCH} {[count // BATCH for count in given]}, rows read {read}")


def print_resumed(stream: IterableDataset, spots: SpotFiles) -> None:
    """Print what a stream with a shuffle buffer yields after it is resumed."""
    whole = names(stream.shuffle(seed=0, buffer_size=BUFFER))
    first, given = stream.shuffle(seed=0, buffer_size=BUFFER), []
    for example in first:
        given.append(example)
        if len(given) == SEEN:
            break
    again = stream.shuffle(seed=0, buffer_size=BUFFER)
    again.load_state_dict(first.state_dict())
    rest = names(again)
    lost = set(whole) - set(names(given)) - set(rest)
    print(
        f"shuffle buffer of {BUFFER}, resumed after {SEEN} of {len(whole)} spots: {len(rest)} more, {len(lost)} of the epoch "
        f"never given, the order is {'' if rest == whole[SEEN:] else 'not '}that of the uninterrupted stream"
    )
    batches = [set(batch["spot_index"].to_pylist()) for batch in SpotStream(spots, BATCH, BUFFER)]
    resumed = SpotStream(spots, BATCH, BUFFER)
    resumed.load_state_dict({"epoch": 0, "batches": SEEN // BATCH})
    after = [set(batch["spot_index"].to_pylist()) for batch in resumed if batch is not None]
    same = after == batches[SEEN // BATCH :]
    print(
        f"ours, resumed after {SEEN // BATCH} batches: the order is {'' if same else 'not '}that of the uninterrupted one"
    )


def main() -> None:
    print(f"datasets {datasets.__version__}")
    count_rows()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        slides = (make_toy_slide(name, spots_per_side=side, image_px=400) for name, side in SIZES.items())
        write_dataset(slides, folder, patch_um=112, patch_px=32)
        spots, stream = StreamedStudy.load(folder).spots, opened(folder)
        print_split(stream, spots)
        print_resumed(stream, spots)


if __name__ == "__main__":
    main()
