"""Open a dataset folder for training or evaluation: its spots, genes and slides, and subsets of them.

`datasets.load_dataset` follows the README of a folder, even to files outside of it, and answers from its cache after a file has
changed. Here only the files that `open_folder` found are read, the checksum of every page is compared while reading, and the
name of the cache depends on the size and the change time of the files.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as arrow_dataset
import pyarrow.parquet as pq
import scipy.sparse
from datasets import Dataset, Features
from datasets.packaged_modules.parquet.parquet import Parquet

from .folder import DatasetFolder, check_gene_indices, open_folder, read_columns
from .schema import CONFIGS, SPLITS, SPOTS, UNPAIRED

LEVEL_KEYS = ("n_genes", "total_counts", "shuffled")


@dataclass(frozen=True)
class Study:
    """The three tables of a dataset folder.

    Attributes:
        spots: One row per spot, with the columns of the folder and ``spot_index`` (its position) and ``split``.
        genes: One row per gene; ``gene_indices`` of the spots refer to its rows.
        slides: One row per slide.
        folder: The folder of the tables, None for tables of another origin.

    Examples:
        >>> study = Study.load("runs/toy/data")
        >>> study.slide_ids
        ['toy_A1', 'toy_A2', 'toy_B1', 'toy_C1', 'toy_D1']
        >>> part = study.subset(["toy_D1"])
        >>> study.counts(part).shape, len(study.gene_names)
        ((36, 40), 40)
    """

    spots: Dataset
    genes: pd.DataFrame
    slides: pd.DataFrame
    folder: DatasetFolder | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        verify: bool = False,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
    ) -> "Study":
        """Open a dataset folder or a dataset of the Hub, after checking it.

        Args:
            path: Folder written by ``delst prepare``, or a Hub id.
            verify: Also read all files and compare their checksums.
            revision: Revision of the dataset on the Hub.
            token: Access token of the Hub; by default that of ``hf auth login``.
            cache_dir: Folder of the Arrow files of ``datasets``.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it is damaged or inconsistent (see `data.folder.open_folder`).
        """
        folder = find_folder(path, verify, revision, token)
        # All splits are opened, since slides are chosen by name.
        spots = load_spots(folder, cache_dir)
        spots = spots.add_column("split", split_of_spots(folder))
        spots = spots.add_column("spot_index", np.arange(len(spots)))
        return cls(spots=spots, genes=read_genes(folder), slides=read_slides(folder), folder=folder)

    @cached_property
    def slide_of_spot(self) -> np.ndarray:
        """Slide id of every spot (spots,)."""
        return np.asarray(self.spots.with_format("numpy")["slide_id"][:])

    @property
    def slide_ids(self) -> list[str]:
        """Slide ids in the order of the folder."""
        return list(self.slides["slide_id"])

    @property
    def gene_names(self) -> list[str]:
        """Name of each gene: its symbol, or its id where it has no symbol."""
        return [symbol or gene_id for symbol, gene_id in zip(self.genes["symbol"], self.genes["gene_id"], strict=True)]

    @property
    def measured_genes(self) -> dict[str, np.ndarray]:
        """Indices of the genes that each slide's panel measures."""
        return dict(zip(self.slide_ids, map(np.asarray, self.slides["measured_genes"]), strict=True))

    def patients(self, slide_ids: Iterable[str]) -> set[str]:
        """Return the patients of these slides."""
        chosen = self.slides[self.slides["slide_id"].isin(list(slide_ids))]
        return set(chosen["patient_id"])

    @property
    def split_of_slide(self) -> dict[str, str]:
        """Split of each slide: "train", "validation", "test", "spot" where its spots are split one by one, or "unpaired"."""
        return {name: split or "train" for name, split in zip(self.slide_ids, self.slides["split"], strict=True)}

    @property
    def is_split(self) -> bool:
        """Whether the folder holds out any slide or spot."""
        return bool(set(self.split_of_slide.values()) - {"train", UNPAIRED})

    @property
    def unpaired_slides(self) -> list[str]:
        """Slides without an image, whose spots train the gene side alone, in the order of the folder."""
        return [slide_id for slide_id, split in self.split_of_slide.items() if split == UNPAIRED]

    @property
    def paired_slides(self) -> list[str]:
        """Slides with an image, in the order of the folder."""
        return [slide_id for slide_id, split in self.split_of_slide.items() if split != UNPAIRED]

    def check_images(self, slide_ids: Iterable[str]) -> None:
        """Refuse slides without an image, and slides that are not in this study.

        Raises:
            ValueError: There are such slides; the message names them.
        """
        names = list(slide_ids)
        self.check_slides(names)
        if blind := [slide_id for slide_id in names if slide_id in self.unpaired_slides]:
            raise ValueError(
                f"Slides {blind} have no image (split {UNPAIRED!r}): their spots train the gene side alone "
                f"(--unpaired_slides of a pretraining). Slides with an image: {self.paired_slides}. Choose among these."
            )

    def check_slides(self, slide_ids: Sequence[str]) -> None:
        """Refuse slides that the folder does not hold.

        Raises:
            ValueError: Slides are unknown; the message names them, similar names, and all slides of the folder.
        """
        known = self.slide_ids
        unknown = [slide_id for slide_id in slide_ids if slide_id not in known]
        if not unknown:
            return
        from ..errors import did_you_mean  # rarely needed, and a training need not load it

        raise ValueError(f"No slide {unknown} in this dataset.{did_you_mean(unknown, known)} It holds {known}.")

    def subset(self, slide_ids: Sequence[str], spot_split: str | None = None) -> Dataset:
        """Return the spots of these slides, in the order of the folder.

        Args:
            slide_ids: Ids of the slides.
            spot_split: Split to keep of slides whose spots were split one by one; None keeps all spots.

        Raises:
            ValueError: If a slide is not in the folder.
        """
        self.check_slides(slide_ids)
        chosen = np.isin(self.slide_of_spot, list(slide_ids))
        torn = self.slides["slide_id"][self.slides["split"] == "spot"]
        if spot_split is not None and len(torn):
            split = np.asarray(self.spots.with_format("numpy")["split"][:])
            chosen &= (split == spot_split) | ~np.isin(self.slide_of_spot, list(torn))
        return self.spots.select(np.flatnonzero(chosen))

    def patch_um(self, slide_ids: Sequence[str]) -> list[float]:
        """Return the distinct sides of the patches of these slides in micrometres."""
        return sorted(set(self.slides["patch_um"][self.slides["slide_id"].isin(list(slide_ids))]))

    def patch_px(self, slide_ids: Iterable[str]) -> list[int]:
        """Return the distinct sides of the stored patches of these slides in pixels."""
        return sorted(set(self.slides["patch_px"][self.slides["slide_id"].isin(list(slide_ids))]))

    def with_positions_um(self, spots: Dataset) -> Dataset:
        """Return these spots with the columns ``x_um`` and ``y_um``, their position on the slide in micrometres.

        Raises:
            ValueError: If the micrometres per pixel of a slide are not known.
        """
        columns = spots.with_format("numpy")
        slides = np.asarray(columns["slide_id"][:])
        mpp = dict(zip(self.slide_ids, self.slides["mpp"], strict=True))
        unknown = [str(name) for name in np.unique(slides) if not mpp[name] > 0]
        if unknown:
            raise ValueError(
                f"Slides {unknown} have no micrometres per pixel (mpp), so distances on them are not known. Prepare them with "
                "their mpp, or leave out options that need distances (min_spot_distance_um, levels)."
            )
        scale = np.asarray([mpp[name] for name in slides])
        for axis in ("x", "y"):
            places = np.asarray(columns[axis][:], dtype=float)  # older versions of datasets give None for NaN
            if not np.isfinite(places).all():
                raise ValueError(
                    f"{np.sum(~np.isfinite(places))} spots of {slides[~np.isfinite(places)][0]} have no {axis}. The dataset "
                    "folder was not written by delst prepare, or is damaged: make it again."
                )
            spots = spots.add_column(f"{axis}_um", scale * places)
        return spots

    def counts(self, spots: Dataset) -> scipy.sparse.csr_matrix:
        """Return the counts of these spots as a sparse matrix (spots, genes) float32, without a second copy in memory."""
        values, indices = np.empty(0, np.float32), np.empty(0, np.int32)
        ends, used = [np.zeros(1, np.int64)], 0
        for batch in self.count_batches(spots):
            start, used = used, used + batch.nnz
            ends.append(start + batch.indptr[1:].astype(np.int64))
            if used > len(values):  # make room for all spots, estimated from the spots so far
                room = max(used, int(1.05 * used * len(spots) / sum(map(len, ends[1:]))))
                values.resize(room, refcheck=False)
                indices.resize(room, refcheck=False)
            values[start:used], indices[start:used] = batch.data, batch.indices
        values.resize(used, refcheck=False)
        indices.resize(used, refcheck=False)
        return scipy.sparse.csr_matrix((values, indices, np.concatenate(ends)), (len(spots), len(self.genes)))

    def count_batches(self, spots: Dataset, batch_size: int = 8192) -> Iterator[scipy.sparse.csr_matrix]:
        """Yield the counts of these spots as sparse matrices of `batch_size` spots, for studies that do not fit in memory."""
        columns = spots.select_columns(["gene_indices", "gene_counts"]).with_format("arrow")
        for start in range(0, max(len(spots), 1), batch_size):
            yield sparse_counts(columns[start : start + batch_size], len(self.genes))

    def own_count_batches(self, spots: Dataset, batch_size: int = 8192) -> Iterator[scipy.sparse.csr_matrix]:
        """Yield the counts that this process adds to sums over all spots: here all spots, in a stream a part per process."""
        return self.count_batches(spots, batch_size)

    def summed(self, *sums: Any) -> tuple[Any, ...]:
        """Return sums over the `own_count_batches` of all processes."""
        return sums

    def resident(self, slide_ids: Sequence[str], spot_split: str | None = None) -> Dataset:
        """Return spots that can be indexed: here those of `subset`; a streamed study loads them."""
        return self.subset(slide_ids, spot_split)

    def with_level(self, spots: Dataset, key: str = "n_genes", seed: int = 0) -> Dataset:
        """Return these spots with the column ``level``, the key by which the intra-modal loss orders them."""
        return spots.add_column("level", hierarchy_level(spots, key, seed))


def sparse_counts(table: pa.Table, num_genes: int) -> scipy.sparse.csr_matrix:
    """Return the counts of rows of spots as a sparse matrix (rows, genes) float32.

    Args:
        table: Rows with ``gene_indices`` and ``gene_counts``.
        num_genes: Number of rows of the table of genes.
    """
    indices, values = (table[name].combine_chunks() for name in ("gene_indices", "gene_counts"))
    lengths = indices.value_lengths().to_numpy(zero_copy_only=False)
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    check_gene_indices(indices.flatten().to_numpy(), num_genes)
    return scipy.sparse.csr_matrix(
        (values.flatten().to_numpy().astype(np.float32), indices.flatten().to_numpy(), indptr),
        shape=(len(lengths), num_genes),
    )


class SpotRows:
    """Spots for a loader, which gets a batch as an arrow table and not as a list of Python objects.

    A row of a `Dataset` holds thousands of gene indices, each of which would become a Python integer that is read only once.

    Args:
        spots: Spots of a `Study`.
    """

    def __init__(self, spots: Dataset):
        self.spots = spots.with_format("arrow")

    def __len__(self) -> int:
        return len(self.spots)

    def __getitem__(self, index: int) -> pa.Table:
        return self.spots[[index]]

    def __getitems__(self, indices: list[int]) -> pa.Table:
        return self.spots[indices]


def hierarchy_level(spots: Dataset, key: str = "n_genes", seed: int = 0) -> np.ndarray:
    """Return the key by which the intra-modal loss orders spots.

    Args:
        spots: Spots with ``n_genes``, ``total_counts`` and ``slide_id``.
        key: ``"n_genes"``, the number of expressed genes; ``"total_counts"``, a control for sequencing depth; or
            ``"shuffled"``, a control for having any order at all: the numbers of expressed genes, permuted once within each
            slide.
        seed: Seed of the permutation.

    Returns:
        Levels (spots,) float32.

    Raises:
        ValueError: If the key is unknown.

    Examples:
        >>> study = Study.load("runs/toy/data")
        >>> levels = hierarchy_level(study.spots)
        >>> len(levels) == len(study.spots)
        True
    """
    if key not in LEVEL_KEYS:
        raise ValueError(f"level_key={key!r} is not known. Choose one of {', '.join(map(repr, LEVEL_KEYS))}.")
    columns = spots.with_format("numpy")
    level = np.asarray(columns["total_counts" if key == "total_counts" else "n_genes"][:], dtype=np.float32)
    if key == "shuffled":
        generator = np.random.default_rng(seed)
        slides = np.asarray(columns["slide_id"][:])
        for slide in np.unique(slides):
            rows = np.flatnonzero(slides == slide)
            level[rows] = level[generator.permutation(rows)]
    return level


# --- reading the tables of a folder ----------------------------------------------------------------------------------


def find_folder(
    path: str | os.PathLike, verify: bool = False, revision: str | None = None, token: str | None = None
) -> DatasetFolder:
    """Open a dataset folder, or fetch a dataset of the Hub and open it.

    Args:
        path: The folder, or a Hub id.
        verify: Compare checksums of all files (see `open_folder`).
        revision: Revision of the dataset on the Hub.
        token: Access token of the Hub; by default that of ``hf auth login``.

    Raises:
        FileNotFoundError: If there is no such folder, and the name cannot be an id of the Hub.
        OSError: If the Hub cannot be reached or denies access.
        ValueError: See `open_folder`.
    """
    local = Path(path).expanduser()
    if local.exists():
        return open_folder(local, verify)
    from .remote import EVERYTHING, fetch, hub_name

    fetched = fetch(hub_name(path), EVERYTHING, revision, token)
    if missing := [name for name in CONFIGS if not (fetched / name).is_dir()]:
        raise ValueError(
            f"{path} on the Hub{f' at {revision}' if revision else ''} is not a dataset of delst prepare: {missing} missing. "
            "Give the id, or the revision=, of one that delst push --dataset pushed."
        )
    return open_folder(fetched, verify)


def load_spots(folder: DatasetFolder, cache_dir: str | None = None) -> Dataset:
    """Return all spots of a folder, first those of the split train, then validation, test and unpaired.

    Args:
        folder: The folder, as `open_folder` returns it.
        cache_dir: Folder of the Arrow files of `datasets`; by default its usual cache.

    Raises:
        ValueError: If a file cannot be read, or does not contain its images.
    """
    files = files_in_order(folder)
    schema = pq.read_schema(files[0])
    own = Features.from_arrow_schema(schema.remove_metadata())
    builder = Parquet(
        cache_dir=cache_dir,
        config_name=f"delst-{_state(files)}",
        data_files=[str(file) for file in files],
        features=Features({name: SPOTS.get(name, own[name]) for name in schema.names}),
        # With pre-buffering, all images of a file would be in memory at once.
        fragment_scan_options=arrow_dataset.ParquetFragmentScanOptions(
            page_checksum_verification=True, pre_buffer=False
        ),
    )
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"the spots of {folder.path} cannot be read ({said}). `delst check {folder.path}` lists damaged files; if there "
            "are none, check whether the disk of the cache is full (HF_DATASETS_CACHE)."
        ) from error
    pa.default_memory_pool().release_unused()  # buffers of the rows that were written
    spots = builder.as_dataset(split="train")
    _refuse_outside_images(folder, spots)
    return spots


def split_of_spots(folder: DatasetFolder) -> list[str]:
    """Return the split of each spot in the order of `load_spots`: "train" if the folder is not split."""
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
    """Return a hash of the names, sizes and change times of files, which differs once a file was touched."""
    told = [[os.path.realpath(file), *_times(file.stat())] for file in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


def _times(found: os.stat_result) -> list[int]:
    # The change time cannot be set by users, unlike the modification time.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _refuse_outside_images(folder: DatasetFolder, spots: Dataset) -> None:
    """Refuse images given by paths, which could lead to any file, and missing images outside of the split "unpaired"."""
    missing = 0
    for chunk in spots.data.column("image").chunks:
        missing += chunk.null_count
        if pa.types.is_struct(chunk.type) and (
            chunk.field("path").null_count != len(chunk)
            or pc.any(pc.and_(chunk.is_valid(), chunk.field("bytes").is_null())).as_py()
        ):
            raise ValueError(
                f"{folder.path} holds spots whose image is missing, or is a path in place of bytes. Such a folder is not "
                "opened: make it again with delst prepare."
            )
    if missing != split_of_spots(folder).count(UNPAIRED):
        raise ValueError(
            f"{folder.path} holds {missing} spots without an image, which are not exactly those of the split {UNPAIRED!r}. "
            "Make it again with delst prepare."
        )
