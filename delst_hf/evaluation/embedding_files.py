"""Write embeddings of a dataset to disk, one file per process, so that no process holds all and none sends any.

    DIR/embeddings-00000-of-00004.parquet   slide_id, barcode, features, image_embeds, gene_embeds of the spots of a process
    DIR/training.json                       the record of the checkpoint, if it has one: which slides it has seen

`delst evaluate DIR DATASET` reads only the rows of the slides that it evaluates.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..atomic.files import check_folder_output, write_file, write_text
from ..atomic.locks import clear_finished, writing
from ..model.distributed import process_rank, wait_for_all, world_size
from ..model.modeling_delst import DelstModel
from ..model.processing_delst import DelstProcessor
from ..record import TRAINING_RECORD, find_training_record
from .embed import embed_share, model_collator

KEYS = ("slide_id", "barcode")
ARRAYS = ("features", "image_embeds", "gene_embeds")
_PART = re.compile(r"embeddings-(\d{5})-of-(\d{5})\.parquet")
_ABOUT = b"delst"


def embed_dataset(
    model: str,
    dataset: str,
    output: str | os.PathLike,
    *,
    slides: Sequence[str] = (),
    batch_size: int = 64,
    num_workers: int = 2,
    progress: bool = True,
) -> Path:
    """Embed the spots of a dataset with a checkpoint; all processes of a launcher call it, each embeds a share.

    Args:
        model: Folder or Hub id of a checkpoint.
        dataset: Dataset folder, or a Hub id.
        output: Folder to write, which must be new, empty, or hold only what a killed run left; for several machines, a folder
            that all of them share.
        slides: Ids of the slides to embed; by default all that have an image.
        batch_size: Spots per batch of a process.
        num_workers: Worker processes of the loader.
        progress: Show a progress bar, on the first process.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder is not empty, or another run is writing to it.
        ValueError: If a slide is unknown, or the model does not read patches.

    Examples:
        >>> folder = embed_dataset("runs/toy/pretrain/model", "runs/toy/data", "embedded", num_workers=0, progress=False)
        >>> [path.name for path in sorted(folder.glob("*.parquet"))]
        ['embeddings-00000-of-00001.parquet']
    """
    import torch
    from accelerate import PartialState

    from ..data.study import Study

    PartialState()  # starts the process group
    output = Path(output)
    check_folder_output(output)
    if output.exists() and not _left_by_a_kill(output):
        if process_rank() == 0:
            clear_finished(output, "folder of embeddings")
        raise FileExistsError(f"{output} is not empty. Choose another --output.")
    with writing(output, "folder of embeddings") if process_rank() == 0 else nullcontext():
        wait_for_all()  # so that nobody writes before all have checked the folder
        loaded, processor = DelstModel.from_pretrained(model), DelstProcessor.from_pretrained(model)
        loaded.to(device="cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[call-arg]
        study = Study.load(dataset)
        study.check_images(slides)
        spots = study.subset(slides or study.paired_slides)
        collator = model_collator(loaded, processor, study)
        if process_rank() == 0:
            for stale in list(output.glob("*")):
                stale.unlink()
            if record := find_training_record(model):  # written first, so that no embeddings are without it
                write_text(output / TRAINING_RECORD, json.dumps(record, indent=1) + "\n")
        wait_for_all()
        write_embeddings(
            loaded, spots, collator, output, batch_size=batch_size, num_workers=num_workers, progress=progress
        )
        wait_for_all()
    return output


def _left_by_a_kill(folder: Path) -> bool:
    """Tell whether a folder is empty, or holds only what a run left that was killed before all of its files were complete."""
    names = [path.name for path in folder.iterdir()]
    parts = [match for name in names if (match := _PART.fullmatch(name))]
    others = [name for name in names if not _PART.fullmatch(name) and name != TRAINING_RECORD]
    return all(len(parts) < int(part[2]) for part in parts) and all(
        name.startswith((".embeddings-", f".{TRAINING_RECORD}.incomplete-")) for name in others
    )


def write_embeddings(
    model: DelstModel,
    spots: Dataset,
    collator: Callable[..., dict[str, Any]],
    folder: str | os.PathLike,
    **options: Any,
) -> Path:
    """Embed this process's share of spots into a file of its own, a batch at a time; arguments are those of `embed`.

    Returns:
        The file, which exists only once it is complete.
    """
    config = model.config
    widths = (config.vision_feature_size, config.projection_dim, config.projection_dim)
    fields = [pa.field(name, pa.string()) for name in KEYS]
    fields += [pa.field(name, pa.list_(pa.float32(), width)) for name, width in zip(ARRAYS, widths, strict=True)]
    about = {"geometry": config.geometry, "curvature": model.curvature.item() if config.geometry == "lorentz" else None}
    schema = pa.schema(fields, metadata={_ABOUT: json.dumps(about).encode()})
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / f"embeddings-{process_rank():05d}-of-{world_size():05d}.parquet"
    names = spots.select_columns(list(KEYS)).with_format("arrow")
    with write_file(path) as file, pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for start, *arrays in embed_share(model, spots, collator, **options):
            keys = names[start : start + len(arrays[0])]
            values = [
                pa.FixedSizeListArray.from_arrays(pa.array(array.float().numpy().ravel()), width)
                for array, width in zip(arrays, widths, strict=True)
            ]
            writer.write_table(pa.table([*(keys[name] for name in KEYS), *values], schema=schema))
    return path


def embedding_files(folder: str | os.PathLike) -> list[Path]:
    """Return the embedding files of a folder; an empty list if it has none.

    Raises:
        ValueError: If some are missing, or they come from several runs.
    """
    found = {
        path: match
        for path in sorted(Path(folder).glob("embeddings-*.parquet"))
        if (match := _PART.fullmatch(path.name))
    }
    numbers = {int(match[2]) for match in found.values()}
    if len(numbers) > 1 or (numbers and len(found) != max(numbers)):
        raise ValueError(
            f"{folder} holds {', '.join(path.name for path in found)}, which are not all the files of one run. Embed the "
            "dataset again into another folder (delst embed MODEL DATASET --output DIR)."
        )
    return list(found)


def read_embedding_files(folder: str | os.PathLike, slides: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the keys and the embeddings of some slides; files and row groups without these slides are skipped.

    Args:
        folder: Folder that `write_embeddings` wrote to.
        slides: Ids of the slides.

    Returns:
        ``slide_id``, ``barcode``, ``image_embeds`` and ``gene_embeds``.
    """
    columns = [*KEYS, *ARRAYS[1:]]
    chosen = [("slide_id", "in", list(slides))]
    tables = [
        pq.read_table(path, columns=columns, filters=chosen, partitioning=None) for path in embedding_files(folder)
    ]
    table = pa.concat_tables(tables).combine_chunks()
    arrays = {name: np.asarray(table[name].to_pylist(), dtype=object) for name in KEYS}
    for name in ARRAYS[1:]:
        column = table[name].combine_chunks()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        arrays[name] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return arrays


def space_of_files(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the geometry of the embeddings and its curvature."""
    metadata = pq.read_schema(embedding_files(folder)[0]).metadata or {}
    return dict(json.loads(metadata.get(_ABOUT, b"{}")))
