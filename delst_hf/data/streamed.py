"""A study larger than the machine: its spots are streamed from a folder or the Hub, and never all loaded."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse
import torch
import torch.distributed
from datasets import Dataset

from ..model.distributed import process_rank, world_size
from .folder import DatasetFolder, open_folder
from .remote import fetch, hub_name, open_remote
from .schema import SPLITS
from .spot_files import COUNTS, HUB, SpotFile, SpotFiles
from .study import LEVEL_KEYS, Study, files_in_order, load_spots, read_genes, read_slides, sparse_counts


@dataclass(frozen=True)
class StreamedStudy(Study):
    """The tables of a dataset whose spots are streamed from a folder or from the Hub.

    ``spots`` and the results of `subset` are `SpotFiles`, which give a training run all that it needs of a `Study`; methods
    that need a column of all spots at once are refused.

    Examples:
        >>> study = StreamedStudy.load("runs/toy/data")
        >>> study.subset(["toy_D1"]).num_rows, len(study.gene_names)
        (36, 40)
    """

    spots: SpotFiles  # type: ignore[assignment]

    @classmethod
    def load(cls, path: str | os.PathLike, **options: Any) -> "StreamedStudy":
        """Open a dataset folder, or a dataset of the Hub, fetching only its small tables.

        Args:
            path: Folder written by ``delst prepare``, or a Hub id.
            **options: ``revision`` and ``token`` of the Hub id.

        Raises:
            FileNotFoundError: If there is no such folder.
            OSError: If the Hub cannot be reached or denies access.
            ValueError: If the dataset does not match its manifest.
        """
        if Path(path).expanduser().exists():
            folder, base = open_folder(Path(path).expanduser()), None
        else:
            folder = open_remote(hub_name(path), **options)
            base = f"{HUB}datasets/{hub_name(path)}@{folder.path.name}"
        files = tuple(_spot_files(folder, base))
        return cls(SpotFiles(files, folder.num_genes), read_genes(folder), read_slides(folder), folder)

    def subset(self, slide_ids: Sequence[str], spot_split: str | None = None) -> SpotFiles:  # type: ignore[override]
        """Return the spots of these slides in the order of the folder, without reading them; arguments as in `Study.subset`."""
        self.check_slides(slide_ids)
        chosen, torn = set(slide_ids), set(self.slides["slide_id"][self.slides["split"] == "spot"])
        files = [
            file for file in self.spots.files
            if file.slide_id in chosen
            and (spot_split is None or file.slide_id not in torn or _split_of(file) == spot_split)
        ]  # fmt: skip
        return SpotFiles(files, len(self.genes))

    def resident(self, slide_ids: Sequence[str], spot_split: str | None = None) -> Dataset:
        """Load the spots of held-out slides, whose scores need all of them at once; files on the Hub are fetched."""
        chosen = self.subset(slide_ids, spot_split)
        assert self.folder is not None
        own = [_place(self.folder, file) for file in chosen.files]
        if not own:
            return Dataset.from_dict({})
        if chosen.files[0].address.startswith(HUB):
            _fetch(chosen.files, self.folder)
        files = {slide: [path for path in paths if path in set(own)] for slide, paths in self.folder.spot_files.items()}
        part = load_spots(replace(self.folder, spot_files=files))
        index = np.concatenate([np.arange(file.first, file.first + file.rows) for file in chosen.files])
        split = [_split_of(file) for file in chosen.files for _ in range(file.rows)]
        return part.add_column("split", split).add_column("spot_index", index)

    def with_level(self, spots: SpotFiles, key: str = "n_genes", seed: int = 0) -> SpotFiles:  # type: ignore[override]
        """Return these spots with the key by which the intra-modal loss orders them.

        Raises:
            ValueError: If the key is unknown, or needs all spots of a slide at once.
        """
        if key == "shuffled" or key not in LEVEL_KEYS:
            allowed = ", ".join(repr(name) for name in LEVEL_KEYS if name != "shuffled")
            raise ValueError(
                f"level_key={key!r} does not work with streaming: it would need the values of all spots of a slide at once. "
                f"Allowed: {allowed}; or leave --streaming out."
            )
        return SpotFiles(spots.files, spots.num_genes, key)

    def count_batches(self, spots: SpotFiles, batch_size: int = 8192) -> Iterator[scipy.sparse.csr_matrix]:  # type: ignore[override]
        """Yield the counts of these spots as sparse matrices of `batch_size` spots, without reading patches."""
        for table in spots.tables(COUNTS, batch_size):
            yield sparse_counts(table, len(self.genes))

    def own_count_batches(self, spots: SpotFiles, batch_size: int = 8192) -> Iterator[scipy.sparse.csr_matrix]:  # type: ignore[override]
        """Yield the counts of this process's part of the spots, so that no process waits for another to read all of them."""
        for table in spots.part(process_rank(), world_size()).tables(COUNTS, batch_size):
            yield sparse_counts(table, len(self.genes))

    def summed(self, *sums: Any) -> tuple[Any, ...]:
        """Sum over processes, in the order of their ranks, so that all of them get the same result."""
        if world_size() == 1:
            return sums
        of_all: list[Any] = [None] * world_size()
        torch.distributed.all_gather_object(of_all, sums)
        return tuple(sum(parts[1:], start=parts[0]) for parts in zip(*of_all, strict=True))

    def with_positions_um(self, spots: Any) -> Any:
        """Refuse, since this needs the positions of all spots at once."""
        raise ValueError("min_spot_distance_um does not work with streaming. Leave one of the two out.")


def _spot_files(folder: DatasetFolder, base: str | None) -> Iterator[SpotFile]:
    """Yield the files of spots in the order of `load_spots`, with their numbers of spots."""
    first = 0
    for path in files_in_order(folder):
        name = path.relative_to(folder.path).as_posix()
        known = (folder.manifest or {}).get("files", {}).get(name, {}).get("rows")
        rows = pq.read_metadata(path).num_rows if known is None else int(known)
        yield SpotFile(str(path) if base is None else f"{base}/{name}", rows, first)
        first += rows


def _split_of(file: SpotFile) -> str:
    name = file.address.rsplit("/", 2)[-2]
    return name if name in SPLITS else SPLITS[0]


def _place(folder: DatasetFolder, file: SpotFile) -> Path:
    """Return the local path of a file, whether or not it was fetched."""
    if not file.address.startswith(HUB):
        return Path(file.address)
    return folder.path / file.address.split(f"@{folder.path.name}/", 1)[1]


def _fetch(files: Sequence[SpotFile], folder: DatasetFolder) -> None:
    """Fetch complete files of a dataset of the Hub into the folder of its small tables."""
    name, revision = files[0].address.removeprefix(f"{HUB}datasets/").split("/spots/")[0].split("@")
    wanted = [_place(folder, file).relative_to(folder.path).as_posix() for file in files]
    fetch(name, wanted, revision)
