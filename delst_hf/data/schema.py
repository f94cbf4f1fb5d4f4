"""The layout of a dataset folder: the columns of its tables, and the manifest that lists its files.

The Arrow schema of the columns (`Features.arrow_schema`) is stored in every parquet file, so that `load_dataset` decodes images
by itself. The manifest of a folder, or of a part, is written last, with sizes, rows and checksums:

    {"format": "delst-dataset-1", "fingerprint": "...", "genes": 200,
     "slides": {"toy_A1": 36},
     "files": {"spots/toy_A1.parquet": {"bytes": 81224, "rows": 36, "sha256": "..."}, "README.md": {}, ...}}

README.md is listed without a checksum, because users may edit its license or description.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from ..atomic.files import write_text

# Columns of a gene table, and further columns that a source's table of features may have (`features.identify`).
GENE_ID, SYMBOL = "gene_id", "symbol"
FEATURE, FEATURE_TYPE, INCLUDED = "feature", "feature_type", "included"

SPOTS = Features(
    {
        # None in the split "unpaired", of slides without an image.
        "image": Image(),
        # Only the expressed genes of the spot: positions in the `genes` config, ascending, and their raw counts (> 0).
        "gene_indices": List(Value("int32")),
        "gene_counts": List(Value("int32")),
        "slide_id": Value("string"),
        "patient_id": Value("string"),
        "barcode": Value("string"),
        # Pixels of the slide image that the patch was cut from; x runs along columns, y along rows.
        "x": Value("float64"),
        "y": Value("float64"),
        # -1 where the source has no array position.
        "array_row": Value("int32"),
        "array_col": Value("int32"),
        # None where the spot has no label.
        "label": Value("string"),
        "n_genes": Value("int32"),
        "total_counts": Value("int64"),
        # Share of the patch that is tissue, 0 to 1.
        "tissue_fraction": Value("float32"),
        # Area of the cell, if the row is a cell and the source states its area; else None.
        "cell_area_um2": Value("float32"),
    }
)

# Made once, since the property is recomputed at each access.
SPOTS_SCHEMA = SPOTS.arrow_schema

GENES = Features({"gene_id": Value("string"), "symbol": Value("string"), "species": Value("string")})

SLIDES = Features(
    {
        "slide_id": Value("string"),
        "patient_id": Value("string"),
        "technology": Value("string"),
        "tissue": Value("string"),
        "species": Value("string"),
        # Micrometres per pixel of the image that x and y refer to.
        "mpp": Value("float64"),
        # Positions in `genes` of the genes that the slide measures: any other gene is missing, not zero.
        "measured_genes": List(Value("int32")),
        "thumbnail": Image(),
        # Who or what gave the labels; "" where there are none.
        "label_source": Value("string"),
        # 0 where the slide has no image.
        "image_width": Value("int32"),
        "image_height": Value("int32"),
        "patch_um": Value("float64"),
        "patch_px": Value("int32"),
        # Diameter of a spot, or side of a bin, in micrometres; None where unknown.
        "spot_um": Value("float64"),
        # Format and names of the files that the slide was read from.
        "source": Value("string"),
        # "train" unless the folder was split; "spot" where spots of the slide are in several splits; "unpaired" of a slide
        # without an image.
        "split": Value("string"),
        # Notes taken while the slide was read, as JSON (`Notes` in notes.py).
        "notes": Value("string"),
    }
)

# Names of the splits, in the order in which their files of spots are read.
SPLITS = ("train", "validation", "test", "unpaired")
# Spots without an image: they train the gene side, and are used only on request.
UNPAIRED = "unpaired"

CONFIGS = {"spots": SPOTS, "genes": GENES, "slides": SLIDES}

MANIFEST = "manifest.json"
FORMAT = "delst-dataset-1"
# Names of all files that a dataset folder may have; any other file in it is foreign.
LAYOUT = re.compile(
    r"README\.md|spots/((train|validation|test|unpaired)/)?[A-Za-z0-9][\w.-]*\.parquet|genes/genes\.parquet|slides/slides\.parquet"
    r"|previews/[A-Za-z0-9][\w.-]*\.png|examples/\d+\.(jpg|png)",
    re.ASCII,
)
_SHARD = re.compile(r"--\d{5}$")

Entry = dict[str, Any]


def describe_files(folder: Path, known: Mapping[str, Entry] | None = None) -> dict[str, Entry]:
    """Return the manifest entry of every file of a folder, by its name relative to the folder.

    Args:
        folder: A dataset folder or a part.
        known: Entries that are known already, so that these files are not read again.
    """
    known = known or {}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: known.get(name) or describe(folder / name) for name in names if name != MANIFEST}


def write_manifest(folder: Path, files: Mapping[str, Entry] | None = None, **facts: Any) -> dict[str, Any]:
    """Write the manifest of a folder that is otherwise complete.

    Args:
        folder: A dataset folder or a part.
        files: Its entries; by default those of `describe_files`.
        **facts: Further entries of the manifest, such as ``parts=``.

    Returns:
        The manifest.
    """
    files = describe_files(folder) if files is None else files
    slides: dict[str, int] = {}
    for name, entry in files.items():
        if name.startswith("spots/"):
            slides[slide_of(name)] = slides.get(slide_of(name), 0) + entry["rows"]
    manifest = {
        "format": FORMAT,
        "fingerprint": content_fingerprint(files),
        "genes": files["genes/genes.parquet"]["rows"],
        "slides": slides,
        "files": files,
        **facts,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def describe(path: Path) -> Entry:
    """Return the size, rows and SHA-256 of a file; an empty entry for README.md, which users may edit."""
    if path.name == "README.md":
        return {}
    entry: Entry = {"bytes": path.stat().st_size}
    if path.suffix == ".parquet":
        entry["rows"] = pq.read_metadata(path).num_rows
    return entry | {"sha256": sha256(path)}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_fingerprint(files: Mapping[str, Entry]) -> str:
    """Return a hash (16 hex digits) of all parquet files of a folder, from their checksums in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: Path(name).parts):
        if name.endswith(".parquet"):
            digest.update(bytes.fromhex(files[name]["sha256"]))
    return digest.hexdigest()[:16]


def slide_of(name: str) -> str:
    """Return the slide of a file of spots by its name: toy_A1 for spots/toy_A1--00002.parquet."""
    return _SHARD.sub("", Path(name).stem)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder; None if it has none, as folders of versions before 0.2.

    Raises:
        ValueError: If the manifest cannot be read, is of another version, or names files that a dataset folder cannot have.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    again = "Make the folder again with delst prepare, or copy it again from its source."
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, slides = dict(manifest["files"]), dict(manifest["slides"])
        sizes = [entry["bytes"] for name, entry in files.items() if name != "README.md"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not the manifest of a dataset folder ({type(error).__name__}). {again}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path} is of format {manifest.get('format')!r}; this version reads {FORMAT!r}. Update delst-hf, or make the "
            "folder again with delst prepare."
        )
    strange = [name for name in files if not LAYOUT.fullmatch(name)]
    numbers = [*sizes, *slides.values(), manifest.get("genes")]
    if strange or not all(isinstance(value, int) and value >= 0 for value in numbers):
        raise ValueError(
            f"{path} names {strange[:3] or 'sizes that are not numbers'}, which a dataset folder cannot have. {again}"
        )
    return manifest


def problems_of_files(folder: Path, manifest: Mapping[str, Any], verify: bool = False) -> list[str]:
    """Return the problems of the files of a folder, in words; an empty list if all match the manifest.

    Args:
        folder: The folder.
        manifest: Its manifest.
        verify: Also read every file and compare its checksum.
    """
    problems = []
    for name, entry in manifest["files"].items():
        path = folder / name
        found = regular_size(path)
        if found is None:
            problems.append(f"{name} is missing or not a regular file")
        elif entry and found != entry["bytes"]:
            problems.append(f"{name} has {found:,} bytes instead of {entry['bytes']:,}")
        elif verify and entry and sha256(path) != entry.get("sha256"):
            problems.append(f"{name} does not match its checksum (SHA-256) in the manifest")
    return problems


def regular_size(path: Path) -> int | None:
    """Return the bytes of a regular file, following symlinks; None for anything else (a pipe, a dangling symlink, nothing)."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
