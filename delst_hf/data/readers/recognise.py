"""Recognise the formats of `delst prepare` that a file or folder may have, from names and small headers alone.

One function per format checks a path and yields the arguments for `delst prepare`, or nothing. All of them run, so a path
that fits two formats yields both.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import open_packed, visible, without
from ..scratch import PACKED
from .deposit import is_without_counts, samples
from .tables import is_first_position
from .visium_cells import CELLS, NUCLEI

_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".mrxs", ".bif")
_TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_MTX = (".mtx", ".mtx.gz")
_PARTS_OF_MTX = (".mtx", "barcodes", "features", "genes")
_DATASET = ("README.md", "spots", "genes", "slides")


@dataclass(frozen=True)
class Candidate:
    """A format that a path may have.

    Attributes:
        format: its name in `delst prepare`.
        arguments: the arguments for `delst prepare FORMAT`.
        why: what was found there.
        missing: an option that is also needed, with its meaning; "" when nothing is missing.
        also: options that read something else of the same format from there.
    """

    format: str
    arguments: tuple[str, ...]
    why: str
    missing: str = ""
    also: str = ""


def recognise(place: str | Path) -> list[Candidate]:
    """Return every format that a path may have; for a folder that has none, the formats of its direct entries.

    Args:
        place: a file or a folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    place = Path(place).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"nothing is at {place}. Give the path of a slide, of its folder, or of a dataset folder."
        )
    found = _ask(place)
    if found or not place.is_dir():
        return found
    within = [candidate for inner in visible(place) for candidate in _ask(inner)]
    # An image beside tables is the image of their slide, not a slide of its own.
    if _named(place, _TABLES) or any(candidate.format != "image" for candidate in within):
        within = [candidate for candidate in within if candidate.format != "image"]
    joined = []
    for name in dict.fromkeys(candidate.format for candidate in within):
        own = [candidate for candidate in within if candidate.format == name]
        if len(own) == 1 or name not in _SEVERAL or any("--prefix" in candidate.arguments for candidate in own):
            joined += own
        else:
            arguments = (*(candidate.arguments[0] for candidate in own), *own[0].arguments[1:])
            joined.append(
                Candidate(name, arguments, f"{len(own)} in it, each {own[0].why}", own[0].missing, own[0].also)
            )
    return joined


def is_dataset(place: Path) -> bool:
    """Tell whether a folder is a dataset folder of `delst prepare`."""
    return all((place / name).exists() for name in _DATASET)


def is_sheet(place: Path) -> bool:
    """Tell whether a file is a table of slides: it has the column path, and is not one of positions."""
    if not (place.is_file() and place.name.lower().endswith(_TABLES)):
        return False
    names = {name.strip().lower() for name in _header(place)}
    return "path" in names and ("format" in names or not names & {"x", "pixel_x"})


def lone_counts(place: Path) -> Path | None:
    """Return the path of counts that stand alone, without positions or an image; None for anything else.

    Args:
        place: a table, an HDF5 or mtx matrix, a folder with the three files of an mtx, or a folder with only one of these.
    """
    if place.is_dir():
        there = visible(place)
        if _named(place, _MTX) and all(any(word in path.name for word in _PARTS_OF_MTX) for path in there):
            return place
        alone = len(there) == 1 and there[0].is_file()
        # Counts have many columns; a narrow table could hold anything.
        wide = alone and (len(_header(there[0])) > 20 or there[0].name.lower().endswith(".h5"))
        return lone_counts(there[0]) if wide and not recognise(place) else None
    name = place.name.lower()
    if name.endswith((*_MTX, ".h5", ".h5.gz")):
        return place
    if not name.endswith((*_TABLES, ".parquet")) or is_sheet(place):
        return None
    # Two columns are names with one value each: labels, or prose.
    few = not name.endswith(".parquet") and len(_columns(place)) < 3
    return None if few or is_of_places(place) else place


def is_of_places(table: Path) -> bool:
    """Tell whether a table holds positions of spots."""
    columns = _columns(table)
    names = {name.lower() for name in columns}
    return bool({"pixel_x", "pxl_row_in_fullres"} & names) or {"x", "y"} <= names or is_first_position(columns)


def _ask(place: Path) -> list[Candidate]:
    found = [candidate for recogniser in _RECOGNISERS for candidate in recogniser(place)]
    return found or list(_deposit(place))


def _named(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    ends = tuple(suffix.lower() for suffix in suffixes)
    return [path for path in visible(folder) if path.is_file() and path.name.lower().endswith(ends)]


def _outs(place: Path) -> Iterable[Path]:
    return (folder for folder in (place, place / "outs") if folder.is_dir())


def _visium(place: Path) -> Iterator[Candidate]:
    for folder in _outs(place):
        matrix = [*folder.glob("*filtered_feature_bc_matrix.h5"), *folder.glob("*filtered_feature_bc_matrix")]
        parts_of_hd = [name for name in ("binned_outputs", "segmented_outputs") if (folder / name).is_dir()]
        of_hd = folder.name.startswith("square_") or parts_of_hd
        if (folder / "spatial").is_dir() and matrix and not of_hd:
            yield Candidate("visium", (str(place),), "spatial/ and a filtered_feature_bc_matrix")
            return


def _deposit(place: Path) -> Iterator[Candidate]:
    """Yield each sample of a deposit of Visium slides, in a folder or an archive, by the prefix of its files."""
    found = samples(place)
    why = "files of Space Ranger, named as in public archives"
    if len(found) == 1:
        yield Candidate("visium", (str(place),), why)
    else:
        for one in filter(None, found):
            yield Candidate("visium", (str(place), "--prefix", one), f"sample {one}: {why}")
    if not found and any(map(is_without_counts, _outs(place))):  # its reader says what to rename
        yield Candidate("visium", (str(place),), "positions and scale factors of Space Ranger")


def _visium_hd(place: Path) -> Iterator[Candidate]:
    for folder in _outs(place):
        bins = sorted({path.name for root in (folder / "binned_outputs", folder) for path in root.glob("square_*um")})
        segmented = [
            one for one in (folder / "segmented_outputs", folder) if (one / CELLS).is_file() or (one / NUCLEI).is_file()
        ]
        if folder.name.startswith("square_") and (folder / "spatial").is_dir():
            side = str(int(folder.name[7:-2]))
            yield Candidate("visium-hd", (str(place), "--bin-um", side), f"one bin size, {folder.name}")
            return
        if bins:
            sizes = [int(name[7:-2]) for name in bins]
            chosen = 8 if 8 in sizes else max(sizes)
            others = [f"--bin-um {size}" for size in sizes if size != chosen] + ["--unit cell"] * bool(segmented)
            why, also = f"bins of {', '.join(bins)}", ", ".join(others)
            yield Candidate("visium-hd", (str(place), "--bin-um", str(chosen)), why, also=also)
            return
        if segmented:
            yield Candidate("visium-hd", (str(place), "--unit", "cell"), f"segmented cells in {segmented[0].name}")
            return


def _her2st(place: Path) -> Iterator[Candidate]:
    folder = place / "data" if (place / "data").is_dir() else place
    needed = ("ST-cnts", "ST-spotfiles", "ST-imgs")
    if all((folder / name).is_dir() for name in needed):
        yield Candidate("her2st", (str(place),), ", ".join(f"{name}/" for name in needed))


def _st(place: Path) -> Iterator[Candidate]:
    """Yield each table of the spot detector with the one table of counts and the one image of its name, or in the folder."""
    headers = {path: _header(path) for path in _named(place, _TABLES)}
    tables = [path for path, header in headers.items() if {"x", "y", "pixel_x", "pixel_y"} <= header]
    counts = [path for path, header in headers.items() if path not in tables and len(header) > 20]
    images = _named(place, _IMAGES)
    for spots in tables:
        own = [
            [path for path in paths if len(tables) == 1 or path.name.split(".")[0] in spots.name]
            for paths in (counts, images)
        ]
        if all(len(paths) == 1 for paths in own):
            arguments = ("--counts", str(own[0][0]), "--spots", str(spots), "--image", str(own[1][0]))
            yield Candidate("st", arguments, f"{spots.name} has pixel_x and pixel_y")


def _table(place: Path) -> Iterator[Candidate]:
    """Yield a folder's coordinates, counts and image, if it holds one of each."""
    headers = {path: {name.lower() for name in _header(path)} for path in _named(place, _TABLES)}
    coordinates = [path for path, header in headers.items() if {"x", "y"} <= header and "pixel_x" not in header]
    counts = [path for path, header in headers.items() if path not in coordinates and len(header) > 20]
    counts += _named(place, (".h5", ".mtx", ".mtx.gz"))
    images = _named(place, _IMAGES)
    if len(coordinates) == len(counts) == len(images) == 1:
        arguments = ("--counts", str(counts[0]), "--coordinates", str(coordinates[0]), "--image", str(images[0]))
        yield Candidate("table", arguments, "a table with x and y, counts and one image")


def _cosmx(place: Path) -> Iterator[Candidate]:
    return _cells_of_tables(place, "exprMat_file.csv", "metadata_file.csv", "CosMx", (
        "--barcode-column", "fov,cell_ID", "--x-column", "CenterX_global_px", "--y-column", "CenterY_global_px",
    ))  # fmt: skip


def _merscope(place: Path) -> Iterator[Candidate]:
    return _cells_of_tables(place, "cell_by_gene.csv", "cell_metadata.csv", "MERSCOPE", (
        "--x-column", "center_x", "--y-column", "center_y",
    ))  # fmt: skip


def _cells_of_tables(place: Path, counts: str, cells: str, name: str, columns: tuple[str, ...]) -> Iterator[Candidate]:
    """Yield the two tables of an imaging platform; its own images are fluorescence, so an H&E image is missing."""
    found = [_named(place, (suffix, f"{suffix}.gz")) for suffix in (counts, cells)]
    if all(len(paths) == 1 for paths in found):
        arguments = ("--counts", str(found[0][0]), "--coordinates", str(found[1][0]), *columns, "--technology", name)
        yield Candidate("table", arguments, f"{name}: {found[0][0].name} and {found[1][0].name}",
                        missing="--image FILE, the H&E image, with --transform CSV or --scale and --mpp")  # fmt: skip


def _anndata(place: Path) -> Iterator[Candidate]:
    if place.is_file() and without(place.name, PACKED).endswith(".h5ad"):
        yield Candidate("anndata", (str(place),), "an .h5ad file")
    elif place.suffix == ".zarr" and _zarr_attributes(place).get("encoding-type") == "anndata":
        yield Candidate("anndata", (str(place),), "a .zarr folder that says it is an AnnData")


def _spatialdata(place: Path) -> Iterator[Candidate]:
    told = _zarr_attributes(place)
    if place.is_dir() and told.get("encoding-type") != "anndata":
        parts = ("tables", "table", "shapes", "labels", "images", "points")
        elements = [name for name in parts if (place / name).is_dir()]
        if "spatialdata_attrs" in told or (place.suffix == ".zarr" and {"tables", "table"} & set(elements)):
            yield Candidate("spatialdata", (str(place),), f"a .zarr folder with {', '.join(elements)}")


def _hest(place: Path) -> Iterator[Candidate]:
    if any((place / "st").glob("*.h5ad")) and ((place / "wsis").is_dir() or (place / "patches").is_dir()):
        yield Candidate("hest", (str(place),), "st/*.h5ad with wsis/ or patches/")


def _stimage(place: Path) -> Iterator[Candidate]:
    folders = (place / "ST", place / "Visium", place / "VisiumHD", place)
    if any(all((folder / name).is_dir() for name in ("coord", "gene_exp", "image")) for folder in folders):
        yield Candidate("stimage", (str(place),), "coord/, gene_exp/ and image/")


def _xenium(place: Path) -> Iterator[Candidate]:
    transcripts = [
        name for name in ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv") if (place / name).is_file()
    ]
    cells = [name for name in ("cells.parquet", "cells.csv.gz", "cells.csv") if (place / name).is_file()]
    if not (transcripts or (cells and any(place.glob("cell_feature_matrix*")))):
        return
    arguments: tuple[str, ...] = (str(place),) if transcripts else (str(place), "--unit", "cell")
    images, matrices = _named(place, ("he_image.ome.tif", "he_image.tif")), _named(place, ("he_imagealignment.csv",))
    if len(images) == 1:
        arguments += ("--image", str(images[0]))
    if len(images) == len(matrices) == 1:
        arguments += ("--alignment", str(matrices[0]))
    yield Candidate("xenium", arguments, " and ".join([*transcripts[:1], *cells[:1]]),
                    missing="" if len(images) == 1 else "--image FILE, the H&E image",
                    also="--unit cell" if transcripts and cells else "")  # fmt: skip


def _image(place: Path) -> Iterator[Candidate]:
    if place.is_file() and place.name.lower().endswith(_IMAGES):
        yield Candidate("image", (str(place),), "an image without counts")


def _header(path: Path) -> set[str]:
    """Return the names in the first line of a table; empty where it is not text."""
    return set(_columns(path))


def _columns(path: Path) -> list[str]:
    """Return the names of the columns of a table in their order; empty where it is not text."""
    try:
        with open_packed(path) as file:
            line = file.readline(1 << 20).decode("utf-8-sig")
    except (OSError, EOFError, ValueError):
        return []
    line = line.rstrip("\r\n")
    for separator in (";", ","):
        line = line.replace(separator, "\t")
    return [name.strip().strip('"') for name in line.split("\t")]


def _zarr_attributes(folder: Path) -> dict[str, object]:
    """Return the attributes of the root of a zarr store, version 2 or 3."""
    for name in (".zattrs", "zarr.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return dict(found.get("attributes", {}) if name == "zarr.json" else found)
    return {}


# Formats whose command takes several sources.
_SEVERAL = ("visium", "visium-hd", "anndata", "image")
_RECOGNISERS: tuple[Callable[[Path], Iterator[Candidate]], ...] = (
    _visium, _visium_hd, _her2st, _table, _cosmx, _merscope, _anndata, _spatialdata, _hest, _stimage, _xenium, _image, _st,
)  # fmt: skip
