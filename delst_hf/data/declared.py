"""Check the sizes and codecs that a file declares, before memory is allocated for it.

A header of a few bytes can declare more than any machine has. Libraries allocate what a file declares, so the declared size is
first compared with the size of the file and with the free memory, and refused with a message where it is out of proportion.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# Bytes of zeros per byte of deflate, the densest common compression of tables.
_DENSEST = 1100
# The same for a zarr store: chunks of only the fill value are not stored, and zstd is denser than deflate.
_DENSEST_ZARR = 100_000
# Elements of SpatialData that are read chunk by chunk; all others are read at once.
_IN_PIECES = ("images", "labels")
_SLACK = 1 << 26
GIB = 1 << 30
# A zarr store chooses the code of its filters and compressors; these only transform bytes.
_CODECS = {
    "blosc", "zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "shuffle", "delta", "fixedscaleoffset", "quantize",
    "packbits", "bitround", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "bytes", "transpose",
    "sharding_indexed", "astype", "categorize", "vlen-utf8", "vlen-bytes", "vlen-array", "variable_length_utf8",
    "imagecodecs_jpeg2k", "imagecodecs_jpeg",
}  # fmt: skip


def free_memory() -> int:
    """Return the bytes that this process may still allocate, by the machine's memory and the limit of its cgroup."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def check_declared(
    needed: float, path: object, what: str, stored: float | None = None, densest: float = _DENSEST
) -> None:
    """Refuse a declared size that exceeds what the file can hold, or the free memory.

    Args:
        needed: bytes of memory that reading takes.
        path: the file, for the message.
        what: what it declares, such as "a matrix of 10 x 20 with 30 entries".
        stored: bytes in which the file stores it; None where that does not limit the size.
        densest: the most bytes that one stored byte can stand for.

    Raises:
        ValueError: the size is too large; the message gives both sizes and the next step.
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
    """Check the declared size of everything in an HDF5 file, and that all of it is in this file.

    Raises:
        ValueError: see `check_declared`; or an array or group that is kept in another file, which could be any file of the
            machine.
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
                "any of this machine. Allowed: arrays in the file itself. Write it as one file, e.g. with h5repack."
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
    """Check the declared size of a parquet file: rows and columns, and the values of all its row groups.

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
    """Check the codecs and sizes that a zarr store declares in any of its groups, before a library follows them.

    Raises:
        ValueError: a codec that is not known to be safe (pickle, for one, runs code), metadata that cannot be read, or an
            impossible size (see `check_declared`).
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
    """Yield the files that declare how the arrays of a store are encoded, following symlinks as zarr does."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(folder, name)) not in seen)
        for name in sorted(set(files) & {".zarray", "zarr.json", ".zmetadata"}):
            file = Path(folder, name)
            if not file.is_file():  # reading a pipe would block; a dangling symlink is not metadata
                raise ValueError(f"{file} is not a file. The store is damaged: write or download it again.")
            yield file


def _arrays(told: Any, folder: Path) -> Iterator[tuple[Path, float, list[float], list[float]]]:
    """Yield the arrays that the metadata of a store declare: folder, bytes per item, shape, and shape of a chunk."""
    if not isinstance(told, dict):
        return
    below = told.get("consolidated_metadata") or told
    inner = below.get("metadata") if isinstance(below, dict) else None
    for name, one in (inner if isinstance(inner, dict) else {}).items():
        yield from _arrays(one, folder / str(name).removesuffix(".zarray"))
    if isinstance(told.get("shape"), list):
        # The chunks of a shard are read one by one.
        shards = [one for one in told.get("codecs") or [] if "sharding_indexed" in (_under(one, "name"), one)]
        about = _under(shards[0] if shards else told.get("chunk_grid"), "configuration")
        piece = _under(about, "chunk_shape") or told.get("chunks")
        shape = [float(side) for side in told["shape"]]
        sides = [float(side) for side in piece] if isinstance(piece, list) else shape
        yield folder, _itemsize(told.get("data_type", told.get("dtype"))), shape, sides


def _itemsize(kind: Any) -> float:
    """Return the bytes per item of a zarr array by the name of its type; 8, a pointer, for text of variable length."""
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
    """Return the total size in bytes of all files below a folder."""
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def _product(itemsize: float, shape: Iterable[float]) -> float:
    """Return the bytes of an array, as a float: a declared size may exceed any machine integer."""
    return math.prod(map(float, shape), start=float(itemsize))


def _codecs(told: Any) -> list[str]:
    """Return the names of filters, compressors and codecs, wherever they occur in the metadata of a store.

    Attributes of a node are left out, since they are free text; a group may also be named "attributes".
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
