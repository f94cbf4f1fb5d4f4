"""Write slides to a dataset folder that `datasets.load_dataset` opens, in memory or streamed.

    DIR/README.md                  dataset card; its YAML names the configs and their files
    DIR/spots/<slide_id>.parquet   one row per spot, in row groups of 100; in DIR/spots/<split>/ where the dataset is split
    DIR/genes/genes.parquet        the union of the slides' genes, in order of first appearance
    DIR/slides/slides.parquet      one row per slide
    DIR/examples/                  three patches for the card
    DIR/previews/<slide_id>.png    if asked for
    DIR/manifest.json              files, rows and checksums, written last (`manifest`)

The folder gets its name only when it is complete. Each slide is first written as its own part (`part`). When all parts are
there, `merge` joins them: their files are hard-linked into the new folder, and the parts are removed once it is in place. A run
that is to be resumed keeps its finished parts.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..atomic.files import check_folder_output, complete_or_nothing
from ..atomic.locks import writing
from ..atomic.processes import end_with_parent
from ..errors import mark_told, reading
from .folder import open_folder
from .merge import DatasetSummary, join_parts, merge_datasets
from .names import check_slide_names, check_split_of_named
from .output import check_output, clear_unfinished, disk_explained, parts_folder
from .part import PatchOptions, write_part
from .quality import QualityFilter
from .schema import MANIFEST
from .scratch import scratch
from .shards import shard
from .slide import Slide
from .splits import SplitRequest

__all__ = ["DatasetSummary", "check_output", "merge_datasets", "shard", "write_dataset"]

logger = logging.getLogger(__name__)

Job = Callable[[], Slide]
_FULL_DISK = (
    "Nothing was left half-written. Free some space, or choose an --output on another disk, and run the same command "
    "again"
)
_FORMAT_VERSION = 3


def write_dataset(
    slides: Iterable[Slide | Job],
    output: str | Path,
    *,
    patch_um: float = 112.0,
    patch_px: int = 224,
    image_format: str = "jpeg",
    quality: int = 95,
    outside: str = "error",
    off_tissue: str = "error",
    scale: str = "error",
    swap_xy: bool = False,
    one_slide: bool = False,
    quality_filter: QualityFilter | None = None,
    aliases: dict[str, tuple[str, str]] | None = None,
    split: SplitRequest | None = None,
    preview: bool = False,
    max_shard_bytes: int = 256 * 2**20,
    num_proc: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    license: str = "unknown",
    progress: bool = False,
    shard_of: Mapping[str, int] | None = None,
) -> DatasetSummary:
    """Write a dataset folder. Slides are taken one at a time, so with a generator only one slide is in memory.

    Args:
        slides: slides, or functions that read one each (`functools.partial(read_her2st, root, "C2")`); only functions can be
            distributed over processes and resumed. Each slide is checked before its patches are cut.
        output: the folder to make.
        patch_um: side of a patch in micrometres.
        patch_px: side of a stored patch in pixels.
        image_format: "jpeg" or "png".
        quality: JPEG quality, 1 to 100.
        outside: what to do with spots whose centre lies outside the image: "error" or "drop".
        off_tissue: what to do when most spots lie beside the tissue: "error" or "allow".
        scale: what to do when sources of the scale disagree by more than 5 %: "error" or "allow".
        swap_xy: swap x and y of all spots.
        one_slide: accept slides that look like several samples in one table (see `samples`).
        quality_filter: least counts, genes and tissue of a spot; spots below are removed.
        aliases: see `delst_hf.data.genes.read_aliases`.
        split: how to split; None puts every slide into "train".
        preview: write a picture of each slide with its spots into DIR/previews.
        max_shard_bytes: size at which a new file begins for the further rows of a slide.
        num_proc: number of slides processed at a time, one process each.
        resume: keep finished slides in a hidden folder beside the output until all are done, and reuse those of an earlier run.
        overwrite: replace a dataset folder at `output`, after the new one is complete.
        license: for the dataset card, an identifier of the Hub.
        progress: show a progress bar per slide, or one over the slides with several processes.
        shard_of: number of this run among several, for the manifest: {"index": 0, "of": 3, "slides": 36}.

    Returns:
        What was written.

    Raises:
        ValueError: a bad argument, no slides, a slide id given twice, or a slide that the checks refuse.
        FileExistsError: `output` exists and `overwrite` is False, or it holds something that is not a dataset folder.
        BusyError: another run is writing to `output`.
        OSError: the disk is full.

    Examples:
        >>> from delst_hf.data.toy import make_toy_slides
        >>> summary = write_dataset(make_toy_slides(2, spots_per_side=4, image_px=300), "data", patch_px=32)
        >>> summary.slides
        {'toy_A1': 16, 'toy_A2': 16}
        >>> sorted(path.name for path in Path("data").iterdir())
        ['README.md', 'examples', 'genes', 'manifest.json', 'slides', 'spots']
    """
    if split is not None:
        split.check()
    slides = check_slide_names(slides)
    if split is not None:
        check_split_of_named(slides, split)
    if num_proc < 1:
        raise ValueError(f"num_proc is {num_proc}. Allowed: 1 or more (--num-proc).")
    options = PatchOptions(
        patch_um, patch_px, image_format.lower(), quality, outside, off_tissue, scale, swap_xy, preview, max_shard_bytes,
        quality_filter or QualityFilter(), aliases, progress and num_proc == 1,
        str(Path(output).expanduser().resolve()), one_slide,
    )  # fmt: skip
    options.check()
    if not os.path.isfile(output):  # a file is refused below, with another message
        check_folder_output(output)
    # Clean up before refusing anything: a run that was killed after its dataset was in place has left its parts.
    with writing(output, "dataset") as goal, disk_explained(goal, _FULL_DISK):
        _drop_joined_parts(goal)
        check_output(goal, overwrite)
        with (
            _workspace(goal, resume) as work,
            complete_or_nothing(goal, replace=overwrite, check=partial(check_output, goal, overwrite)) as folder,
        ):
            parts = _write_parts(slides, work, options, num_proc, progress)
            facts = {"parts": [part.name for part in parts]} | ({"shard": dict(shard_of)} if shard_of else {})
            return join_parts([open_folder(part) for part in parts], folder, goal, split, license, facts=facts)


@contextmanager
def _workspace(output: Path, resume: bool) -> Iterator[Path]:
    """Make a folder beside the output for its parts.

    It is removed once the output is in place, or after an error of a run that is not to be resumed.
    """
    work = parts_folder(output) if resume else output.parent / f".{output.name}.incomplete-parts-{uuid.uuid4().hex[:8]}"
    clear_unfinished(work)
    work.mkdir(exist_ok=True)
    try:
        yield work
    except BaseException:
        if resume:
            clear_unfinished(work)
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)


def _drop_joined_parts(output: Path) -> None:
    """Remove the parts of a finished dataset that a killed run has left."""
    manifest = output / MANIFEST
    if not parts_folder(output).is_dir() or not manifest.is_file():
        return
    for name in json.loads(manifest.read_text(encoding="utf-8")).get("parts", []):
        if Path(name).name == name:
            shutil.rmtree(parts_folder(output) / name, ignore_errors=True)
    clear_unfinished(parts_folder(output))


def _write_parts(
    slides: Iterable[Slide | Job], work: Path, options: PatchOptions, num_proc: int, progress: bool
) -> list[Path]:
    """Write the part of every slide that has none yet; return all parts in the order of the slides."""
    if num_proc == 1:
        parts: list[Path] = []
        seen: set[str] = set()
        for item in slides:  # not enumerate, which would keep the last slide alive
            part = work / _key(item, options, len(parts))
            if part not in parts and not _is_whole(part):
                _write_whole(item, part, options)
            # Otherwise its image would stay in memory while the next slide is read.
            del item
            slide_id = _slide_id(part)
            if slide_id in seen:
                raise ValueError(
                    f"slide_id {slide_id!r} is given twice. Give each its own (--slide-id), or leave one out."
                )
            seen.add(slide_id)
            parts.append(part)
        return parts
    jobs = list(slides)
    if any(isinstance(job, Slide) for job in jobs):
        raise ValueError(
            "slides in memory cannot be distributed over processes. Give functions that read them, such as "
            "functools.partial(read_her2st, root, 'C2'), or num_proc=1."
        )
    parts = [work / _key(job, options, index) for index, job in enumerate(jobs)]
    todo = {part: job for part, job in zip(parts, jobs, strict=True) if not _is_whole(part)}
    _write_in_processes(todo, options, num_proc, len(parts), progress)
    return parts


def _write_in_processes(
    todo: Mapping[Path, Slide | Job], options: PatchOptions, num_proc: int, number: int, progress: bool
) -> None:
    # A new interpreter each: threads of torch and arrow do not survive a fork.
    context = multiprocessing.get_context("spawn")
    level = logging.getLogger("delst_hf").level
    with ProcessPoolExecutor(num_proc, context, initializer=_start_worker, initargs=(level, os.getpid())) as pool:
        futures = [pool.submit(_write_whole, job, part, options) for part, job in todo.items()]
        try:
            with tqdm(total=number, initial=number - len(todo), unit="slide", disable=not progress) as bar:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process was killed, most often because memory ran out. Use fewer processes (--num-proc) and run the "
                "same command again: finished slides are reused."
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _is_whole(part: Path) -> bool:
    """Tell whether an earlier run finished this part; remove a part that does not match its manifest, to write it again."""
    if not part.exists():
        return False
    try:
        taken = open_folder(part, verify=True)
        if taken.manifest is None:
            raise ValueError(f"{part} has no {MANIFEST}")
    except (ValueError, OSError) as error:
        logger.warning("a slide of an earlier run is written again: %s", error)
        shutil.rmtree(part, ignore_errors=True)
        return False
    logger.info("reused from an earlier run: %s", _slide_id(part))
    return True


def _write_whole(item: Slide | Job, part: Path, options: PatchOptions) -> None:
    """Write a part, which gets its name once it is complete and on disk."""
    try:
        with complete_or_nothing(part, replace=False) as unfinished, scratch():  # pixels are decoded as patches are cut
            slide = item if isinstance(item, Slide) else item()
            with reading(slide.source or slide.slide_id, "slide"):
                write_part(slide, unfinished, options)
            del slide
    except BaseException as error:
        mark_told(error)
        raise


def _slide_id(part: Path) -> str:
    return next(iter(open_folder(part).spot_files))


def _key(item: Slide | Job, options: PatchOptions, index: int) -> str:
    """Name the part of a job by a hash of all that decides its content: the reader, its arguments, its files, the options.

    The content of a slide in memory is not hashed, so its part is never reused by another run.
    """
    if isinstance(item, Slide) or not isinstance(item, partial):
        return f"{index:05d}.once-{uuid.uuid4().hex[:8]}"
    values = [*item.args, *item.keywords.values()]
    files = [_state(Path(value)) for value in values if isinstance(value, str | Path) and os.path.exists(value)]
    told = [_FORMAT_VERSION, item.func.__module__, item.func.__qualname__, repr(item.args), repr(item.keywords), files]
    described = {
        name: repr(value) for name, value in vars(options).items() if name not in ("progress", "refused_preview")
    }
    return hashlib.sha256(json.dumps([told, described], default=repr).encode()).hexdigest()[:24]


def _state(path: Path) -> list[Any]:
    """Return size and time of a file, or of the files in a folder: a changed file means a changed slide."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())[:5000]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _start_worker(level: int, parent: int) -> None:
    end_with_parent(parent)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("delst_hf")
    own.addHandler(handler)
    own.setLevel(level or logging.WARNING)
