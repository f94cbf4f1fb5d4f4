"""The spots of a dataset folder as a `datasets.Dataset`, read from the folder's own files and no others.

`datasets.load_dataset` goes by the README of the folder: it follows what is written there out of the folder, and answers from
its cache after a file has changed. Here files are those that `open_folder` found, a checksum of every page is compared as it
is read, and the name of the cache says which files, of which size and time of change, it was made from.
"""

import hashlib
import json
import os
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as arrow_dataset
import pyarrow.parquet as pq
from datasets import Dataset, Features
from datasets.packaged_modules.parquet.parquet import Parquet

from .folder import DatasetFolder, open_folder, read_columns
from .schema import SPLITS, SPOTS, UNPAIRED


def find_folder(
    path: str | os.PathLike, verify: bool = False, revision: str | None = None, token: str | None = None
) -> DatasetFolder:
    """Open a dataset folder, or fetch a dataset of the Hub and open that.

    Args:
        path: The folder, or a Hub id.
        verify: Compare checksums of all files (see `open_folder`).
        revision: Of the Hub id.
        token: By default that of ``hf auth login``.

    Raises:
        FileNotFoundError: If there is no such folder, and the name cannot be one of the Hub.
        OSError: If the Hub cannot be reached or does not give it.
        ValueError: See `open_folder`.
    """
    local = Path(path).expanduser()
    if local.exists():
        return open_folder(local, verify)
    from .remote import EVERYTHING, fetch, hub_name

    return open_folder(fetch(hub_name(path), EVERYTHING, revision, token), verify)


def load_spots(folder: DatasetFolder, cache_dir: str | None = None) -> Dataset:
    """Return all spots of a folder, those of the splits train, validation, test and unpaired one after the other.

    Args:
        folder: What `open_folder` returned.
        cache_dir: Where `datasets` keeps its Arrow files; by default its usual place.

    Raises:
        ValueError: If a file cannot be read, or images are not in it.
    """
    files = files_in_order(folder)
    schema = pq.read_schema(files[0])
    own = Features.from_arrow_schema(schema.remove_metadata())
    builder = Parquet(
        cache_dir=cache_dir,
        config_name=f"delst-{_state(files)}",
        data_files=[str(file) for file in files],
        features=Features({name: SPOTS.get(name, own[name]) for name in schema.names}),
        # Buffered ahead, a file's images would all be in memory at once.
        fragment_scan_options=arrow_dataset.ParquetFragmentScanOptions(
            page_checksum_verification=True, pre_buffer=False
        ),
    )
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"the spots of {folder.path} cannot be read ({said}). `delst check {folder.path}` says which files are "
            "not as they were written; if all are, look whether the disk of the cache is full (HF_DATASETS_CACHE)."
        ) from error
    pa.default_memory_pool().release_unused()  # buffers of the rows that were written
    spots = builder.as_dataset(split="train")
    _refuse_outside_images(folder, spots)
    return spots


def split_of_spots(folder: DatasetFolder) -> list[str]:
    """Return the splits of each spot that `load_spots` gives, in its order: "train" where the folder is not split."""
    splits: list[str] = []
    for file in files_in_order(folder):
        name = file.parent.name
        splits += [name if name in SPLITS else SPLITS[0]] * pq.read_metadata(file).num_rows
    return splits


def read_genes(folder: DatasetFolder) -> pd.DataFrame:
    """Return the table of genes."""
    return _frame(folder.genes_file)


def read_slides(folder: DatasetFolder) -> pd.DataFrame:
    """Return the table of slides, without their thumbnails."""
    return _frame(folder.slides_file, without="thumbnail")


def read_thumbnails(folder: DatasetFolder) -> dict[str, bytes]:
    """Return the encoded thumbnail of each slide that has one."""
    table = read_columns(folder.slides_file, ["slide_id", "thumbnail"])
    images = {
        slide_id: image or {} for slide_id, image in zip(*(table[name].to_pylist() for name in table.column_names))
    }
    return {slide_id: image["bytes"] for slide_id, image in images.items() if image.get("bytes")}


def _frame(path: Path, without: str | None = None) -> pd.DataFrame:
    names = [name for name in pq.read_schema(path).names if name != without]
    table = read_columns(path, names)
    return table.replace_schema_metadata(None).to_pandas(use_threads=False)


def files_in_order(folder: DatasetFolder) -> list[Path]:
    """Return the files of spots in the order of the splits, by name within each."""
    files = [file for own in folder.spot_files.values() for file in own]
    rank = {split: number for number, split in enumerate(SPLITS)}
    return sorted(files, key=lambda file: (rank.get(file.parent.name, -1), file.name))


def _state(files: list[Path]) -> str:
    """Hash of the names, sizes and times of change of files: it differs once one of them was touched."""
    told = [[os.path.realpath(file), *_times(file.stat())] for file in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


def _times(found: os.stat_result) -> list[int]:
    # The time of change cannot be set by hand, as the time of modification can.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _refuse_outside_images(folder: DatasetFolder, spots: Dataset) -> None:
    """Refuse an image given by a path, which would be read from wherever it leads, and a missing one outside of "unpaired"."""
    missing = 0
    for chunk in spots.data.column("image").chunks:
        missing += chunk.null_count
        if pa.types.is_struct(chunk.type) and (
            chunk.field("path").null_count != len(chunk)
            or pc.any(pc.and_(chunk.is_valid(), chunk.field("bytes").is_null())).as_py()
        ):
            raise ValueError(
                f"{folder.path} holds spots whose image is a path or is missing, instead of an image. Such a folder is not "
                "opened: make it again with delst prepare."
            )
    if missing != split_of_spots(folder).count(UNPAIRED):
        raise ValueError(
            f"{folder.path} holds {missing} spots without an image, and not in the split {UNPAIRED!r} alone. Make it again "
            "with delst prepare."
        )
