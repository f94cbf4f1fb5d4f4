"""What a file says it holds, looked at before room is made for it.

A header of a few bytes can declare more than any machine has. Libraries make room by what a file declares, so that is compared
with the size of the file and with the memory there is, and refused in words where it is out of proportion.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# What deflate, the densest common compression of tables, makes of nothing but zeros.
_DENSEST = 1100
# What a zarr store makes of it: pieces that are all fill value are not stored, and zstd is denser than deflate.
_DENSEST_ZARR = 100_000
# Elements of SpatialData that are read piece by piece; all others are read at once.
_IN_PIECES = ("images", "labels")
_SLACK = 1 << 26
GIB = 1 << 30
# A filter or compressor of a zarr store is code that is chosen by the store; these only move bytes.
_CODECS = {
    "blosc", "zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "shuffle", "delta", "fixedscaleoffset", "quantize",
    "packbits", "bitround", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "bytes", "transpose",
    "sharding_indexed", "astype", "categorize", "vlen-utf8", "vlen-bytes", "vlen-array", "variable_length_utf8",
    "imagecodecs_jpeg2k", "imagecodecs_jpeg",
}  # fmt: skip


def free_memory() -> int:
    """Return the bytes that this process may still take, by the machine and by its group's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def check_declared(
    needed: float, path: object, what: str, stored: float | None = None, densest: float = _DENSEST
) -> None:
    """Refuse what cannot be: more than the file can hold, or than there is memory for.

    Args:
        needed: bytes that reading takes.
        path: the file, for the message.
        what: what it declares, such as "a matrix of 10 x 20 with 30 entries".
        stored: bytes of the file that this is stored in; None where that says nothing.
        densest: bytes that one stored byte can stand for.

    Raises:
        ValueError: with the two sizes and the next step.
    """
    if stored is not None and needed > _SLACK + densest * stored:
        raise ValueError(
            f"{path} declares {what}, {needed / GIB:.3g} GiB, but holds {stored / 2**20:.3g} MiB. It is damaged or made to "
            "exhaust memory: download it again."
        )
    free = free_memory()
    if needed > free:
        raise ValueError(
            f"{path} declares {what}: reading it takes {needed / GIB:.3g} GiB, and {free / GIB:.3g} GiB of memory are "
            "free. Use a machine with more memory, or a smaller part of the data."
        )


def check_hdf5(path: Path) -> None:
    """Look at the declared size of everything in an HDF5 file, and whether all of it is in this file.

    Raises:
        ValueError: see `check_declared`; or an array or group that is kept in another file, which may be any of the machine.
    """
    import h5py

    total = 0.0

    def look(name: str, node: Any) -> None:
        nonlocal total
        if isinstance(node, h5py.Group):
            elsewhere = [one for one in node if isinstance(node.get(one, getlink=True), h5py.ExternalLink)]
        else:
            elsewhere = [""] if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual) else []
        if elsewhere:
            raise ValueError(
                f"{path} keeps {name.strip('/')}{'/' if name.strip('/') else ''}{elsewhere[0]} in another file, which could be "
                "any of this machine. Allowed: arrays in the file itself. Write it as one file, e.g. by h5repack."
            )
        if isinstance(node, h5py.Dataset) and node.shape is not None:
            size = _product(node.dtype.itemsize, node.shape)
            total += size
            check_declared(size, path, f"{name} of shape {node.shape}", float(node.id.get_storage_size()))

    with h5py.File(path, "r") as file:
        look("", file)
        file.visititems(look)
    check_declared(total, path, "all of its arrays")


def check_parquet(path: Path) -> None:
    """Look at the declared size of a parquet file: numbers of a column, and what its pages come to.

    Raises:
        ValueError: see `check_declared`.
    """
    import pyarrow.parquet as pq

    told = pq.read_metadata(path)
    check_declared(8.0 * told.num_rows * told.num_columns, path, f"{told.num_rows} rows of {told.num_columns} columns")
    groups = [told.row_group(number) for number in range(told.num_row_groups)]
    values = sum(float(group.column(i).num_values) for group in groups for i in range(group.num_columns))
    check_declared(8.0 * values, path, f"{values:g} values in {told.num_row_groups} groups of rows")


def check_zarr(path: Path) -> None:
    """Look at the codecs and sizes that a zarr store names, in any of its groups, before a library obeys them.

    Raises:
        ValueError: a codec that is not in the list of those that only move bytes (pickle, for one, runs code), metadata that
            cannot be read, or a size that cannot be (see `check_declared`).
    """
    import json

    whole: dict[Path, float] = {}
    for file in _metadata_files(path):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            odd = sorted({name for name in _codecs(told) if name.removeprefix("numcodecs.").lower() not in _CODECS})
            arrays = list(_arrays(told, file.parent))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"cannot read {file}: {error}. The store is damaged: write or download it again."
            ) from error
        if odd:
            raise ValueError(
                f"{file} names the codec {odd[0]!r}, which is not one of those that are safe to run. Allowed: "
                f"{sorted(_CODECS)}. Write the store with one of these."
            )
        for folder, itemsize, shape, piece in arrays:
            size, name = _product(itemsize, shape), os.path.relpath(folder, path)
            check_declared(_product(itemsize, piece), file, f"pieces of {name} of {_sides(piece)}")
            if name.split(os.sep)[0] not in _IN_PIECES:
                stored = _stored(folder) if size > _SLACK else None
                check_declared(size, file, f"{name} of {_sides(shape)}", stored, _DENSEST_ZARR)
                whole[folder] = size
    check_declared(sum(whole.values()), path, "all of its arrays")


def _metadata_files(path: Path) -> Iterator[Path]:
    """Yield the files that say how the arrays of a store are coded, through links too, as zarr follows them."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(folder, name)) not in seen)
        for name in sorted(set(files) & {".zarray", "zarr.json", ".zmetadata"}):
            file = Path(folder, name)
            if not file.is_file():  # a pipe would be waited for, a link to nothing is no metadata
                raise ValueError(f"{file} is not a file. The store is damaged: write or download it again.")
            yield file


def _arrays(told: Any, folder: Path) -> Iterator[tuple[Path, float, list[float], list[float]]]:
    """Yield the arrays of which metadata of a store tell: where they are, bytes per item, shape, and shape of a piece."""
    if not isinstance(told, dict):
        return
    below = told.get("consolidated_metadata") or told
    inner = below.get("metadata") if isinstance(below, dict) else None
    for name, one in (inner if isinstance(inner, dict) else {}).items():
        yield from _arrays(one, folder / str(name).removesuffix(".zarray"))
    if isinstance(told.get("shape"), list):
        # Of a shard its pieces are read one by one.
        shards = [one for one in told.get("codecs") or [] if "sharding_indexed" in (_under(one, "name"), one)]
        about = _under(shards[0] if shards else told.get("chunk_grid"), "configuration")
        piece = _under(about, "chunk_shape") or told.get("chunks")
        shape = [float(side) for side in told["shape"]]
        sides = [float(side) for side in piece] if isinstance(piece, list) else shape
        yield folder, _itemsize(told.get("data_type", told.get("dtype"))), shape, sides


def _itemsize(kind: Any) -> float:
    """Return the bytes of an item of a zarr array, by the name of its type; 8, a pointer, for text of any length."""
    import numpy as np

    length = _under(_under(kind, "configuration"), "length_bytes")
    if isinstance(length, int):
        return float(length)
    try:
        return float(np.dtype([tuple(one) for one in kind] if isinstance(kind, list) else kind).itemsize)
    except (TypeError, ValueError):
        return 8.0


def _under(told: Any, name: str) -> Any:
    return told.get(name) if isinstance(told, dict) else None


def _sides(shape: list[float]) -> str:
    return " x ".join(f"{side:.15g}" for side in shape) or "one number"


def _stored(folder: Path) -> float:
    """Return the bytes of all files below a folder."""
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def _product(itemsize: float, shape: Iterable[float]) -> float:
    """Return the bytes of an array, as a float: what a file declares may be larger than any integer of a machine."""
    return math.prod(map(float, shape), start=float(itemsize))


def _codecs(told: Any) -> list[str]:
    """Return the names of filters, compressors and codecs, wherever they stand in the metadata of a store.

    Attributes of a group are left out, in which anything may be said; a group may be named "attributes".
    """
    if isinstance(told, list):
        return [name for one in told for name in _codecs(one)]
    if not isinstance(told, dict):
        return []
    is_node = isinstance(told.get("zarr_format"), int)
    inner = [one for key, one in told.items() if not (is_node and key == "attributes") and not key.endswith(".zattrs")]
    found = [name for one in inner for name in _codecs(one)]
    for key in ("compressor", "filters", "codecs", "index_codecs"):
        several = told.get(key)
        for one in several if isinstance(several, list) else [several]:
            if isinstance(one, dict):
                found += [str(one[word]) for word in ("id", "name") if word in one] or ["?"]
            elif isinstance(one, str):
                found.append(one)
    return found


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
