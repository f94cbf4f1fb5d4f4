"""Bring a Visium slide from a public archive into the layout of Space Ranger.

    GSM1234567_S1_filtered_feature_bc_matrix.h5(.gz), or ..._filtered_feature_bc_matrix.tar.gz, or ..._matrix.mtx.gz,
        ..._barcodes.tsv.gz, ..._features.tsv.gz
    GSM1234567_S1_spatial.tar.gz, or ..._spatial/, or, flat: ..._tissue_positions_list.csv.gz,
        ..._scalefactors_json.json.gz, ..._tissue_hires_image.png.gz
    all of that within a .tar

File names end as those of Space Ranger; the prefix before them is the sample. Files of several samples are refused and listed,
unless `prefix` chooses one; so are files with different prefixes, since all Visium slides have the same barcodes.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..files import only_one, split_prefix, visible, without
from ..scratch import ARCHIVES, PACKED, is_archive, names_within, new_folder, plain_file, unpack

logger = logging.getLogger(__name__)

# Role of a file -> pattern of the end of its name, and the name that it gets; "" keeps the end of its name.
_ROLES = {
    "counts": (r"filtered_feature_bc_matrix\.h5", "filtered_feature_bc_matrix.h5"),
    "positions": (r"tissue_positions(?:_list)?\.(?:csv|parquet)", ""),
    "scale factors": (r"scalefactors_json\.json", "spatial/scalefactors_json.json"),
    "hires image": (r"tissue_hires_image\.(?:png|jpe?g|tiff?)", ""),
    "lowres image": (r"tissue_lowres_image\.(?:png|jpe?g|tiff?)", ""),
    "matrix": (r"(?:filtered_feature_bc_)?matrix\.mtx", "filtered_feature_bc_matrix/matrix.mtx"),
    "barcodes": (r"barcodes\.tsv", "filtered_feature_bc_matrix/barcodes.tsv"),
    "features": (r"features\.tsv|genes\.tsv", "filtered_feature_bc_matrix/features.tsv"),
}
_MATRIX = ("matrix", "barcodes", "features")
# Ends of the names of folders and archives that hold files of one sample.
_CONTAINERS = ("spatial", "filtered_feature_bc_matrix", "outs")
# Endings by which the counts and the positions of a sample are recognised.
_TOLD_BY = {
    _ROLES["counts"][0]: ("counts",), _ROLES["matrix"][0]: ("counts",), _ROLES["positions"][0]: ("positions",),
    "filtered_feature_bc_matrix": ("counts",), "spatial": ("positions",), "outs": ("counts", "positions"),
}  # fmt: skip
# Other output of Space Ranger: files of the same names with other matrices.
_OTHERS = ("raw_feature_bc_matrix", "analysis", "binned_outputs", "segmented_outputs", "raw_probe_bc_matrix")


@dataclass(frozen=True)
class _File:
    """A file of a deposit: its role, the prefix and the ending of its name, and its path."""

    role: str
    prefix: str
    ending: str
    path: Path


def standard_layout(path: Path, prefix: str | None = None) -> Path:
    """Return a folder in the layout of Space Ranger: the given one if it has it, else a scratch folder of symlinks.

    Args:
        path: the folder `outs`, its parent, a folder of a deposit, or a .tar of one.
        prefix: prefix of the sample's files, where there are several samples.

    Raises:
        FileNotFoundError: no positions or scale factors; the message lists the files found.
        ValueError: files of several samples.
    """
    roots = [unpack(path)] if path.is_file() and is_archive(path) else [path, path / "outs"]
    files: list[_File] = []
    for root in roots:
        files = list(_files(root, "", everything=root not in (path, path / "outs")))
        if any(file.role in ("positions", "scale factors") for file in files):
            break
    chosen = _choose(files, prefix, path)
    if not {"positions", "scale factors"} <= set(chosen):
        for root in roots:
            if (root / "spatial").is_dir():
                return root  # a run that lacks a file: its reader reports which
        names = [entry.name for entry in visible(path)] if path.is_dir() else [file.path.name for file in files]
        if path.is_file() and not is_archive(path):
            raise FileNotFoundError(
                f"{path} is one file of a run. Give the folder `outs` of Space Ranger that it lies in."
            )
        zipped = [name for name in names if name.lower().endswith(".zip")]
        raise FileNotFoundError(
            f"no spatial/ in {path}, and no files named ..._tissue_positions_list.csv and ..._scalefactors_json.json; it holds "
            f"{names[:12]}. "
            + (f"Unpack {zipped[0]}, or give" if zipped else "Give")
            + " the folder `outs` of Space Ranger, or the files of one sample of a deposit."
            + (f" For a folder of several runs, `delst check {path}` gives the command." if path.is_dir() else "")
        )
    if all(_is_standard(file, root) for one in chosen.values() for file in one):
        return root
    if not {"counts", "matrix"} & set(chosen):
        raise without_counts(path)
    return _link(chosen, path)


def samples(place: Path) -> list[str]:
    """Return the samples of a deposit by the prefixes of their files ("" for files without one), from names alone.

    Args:
        place: a folder, or an archive of one. A sample has counts and positions; anything else yields none.
    """
    if place.is_file():
        within = [PurePosixPath(name) for name in names_within(place)] if is_archive(place) else []
        names = [(name.name, False) for name in within if not set(_OTHERS) & set(name.parts)]
    else:
        names = [(entry.name, entry.is_dir()) for entry in visible(place)]
    found: dict[str, set[str]] = {}
    for name, is_folder in names:
        holds_several = is_folder or is_archive(Path(name))
        plain = without(name, ARCHIVES if holds_several else PACKED)
        for ending, parts in _TOLD_BY.items():
            own = split_prefix(plain, ending)
            if own and is_folder and ending == "outs":  # NAME_outs is a run of its own, beside other runs
                continue
            if own is not None and holds_several == (ending in _CONTAINERS) and not any(one in name for one in _OTHERS):
                found.setdefault(own, set()).update(parts)
    return sorted(own for own, parts in found.items() if len(parts) == 2)


def is_without_counts(place: Path) -> bool:
    """Tell whether a folder has the positions and the scale factors of Space Ranger, in it or in spatial/."""
    for folder in (place, place / "spatial"):
        plain = [without(entry.name, PACKED) for entry in visible(folder)]
        if all(
            any(split_prefix(name, _ROLES[role][0]) is not None for name in plain)
            for role in ("positions", "scale factors")
        ):
            return True
    return False


def without_counts(folder: Path) -> FileNotFoundError:
    """Return the error for a folder with positions but no counts, which names what lies there instead and how to read it."""
    found = [entry for place in (folder, folder / "outs") for entry in visible(place)]
    raw = [entry for entry in found if re.search(r"raw_(feature|probe)_bc_matrix", entry.name)]
    other = [entry.name for entry in found if without(entry.name.lower(), PACKED).endswith(".h5")]
    advice = "Give the whole `outs` folder."
    if raw:
        called = re.sub(r"raw_(feature|probe)", "filtered_feature", raw[0].name)
        where = "" if raw[0].parent == folder else f" in {raw[0].parent}"
        advice = f"There is {raw[0].name}{where}, whose spots on tissue are those of the filtered matrix: copy it to {called}."
    elif other:
        advice = (
            f"There is {other[0]}: if it is the filtered matrix, rename it to end in _filtered_feature_bc_matrix.h5."
        )
    elif folder.name == "spatial":
        advice = f"Give the folder that holds it, {folder.parent}."
    return FileNotFoundError(
        f"no filtered_feature_bc_matrix.h5 and no folder filtered_feature_bc_matrix in {folder}. {advice}"
    )


def _files(folder: Path, prefix: str, everything: bool) -> Iterator[_File]:
    """Yield the files in a folder that have a role; search folders and archives only of a sample, unless `everything`."""
    for entry in visible(folder):
        if any(other in entry.name for other in _OTHERS):
            continue
        plain = without(entry.name, PACKED)
        inner = split_prefix(without(entry.name, ARCHIVES) if is_archive(entry) else entry.name, "|".join(_CONTAINERS))
        if entry.is_dir() and (inner is not None or everything):
            yield from _files(entry, inner or prefix, everything)
        elif entry.is_file() and is_archive(entry) and (inner is not None or everything):
            yield from _files(unpack(entry), inner or prefix, True)
        elif entry.is_file():
            for role, (ending, _) in _ROLES.items():
                own = split_prefix(plain, ending)
                if own is not None:
                    yield _File(role, own or prefix, plain[len(own) :].lstrip("_.-"), entry)
                    break


def _choose(files: list[_File], prefix: str | None, where: Path) -> dict[str, list[_File]]:
    """Return the files of one sample by role; several positions may be one table with and without a header."""
    if prefix is not None:
        wanted = prefix.rstrip("_.-")
        if all(file.prefix != wanted for file in files):
            known = sorted({file.prefix for file in files if file.prefix})
            raise FileNotFoundError(f"no file in {where} begins with {prefix!r}. Available: {known} (--prefix).")
        own = {file.role for file in files if file.prefix == wanted}
        files = [file for file in files if file.prefix == wanted or (not file.prefix and file.role not in own)]
    by_role: dict[str, list[_File]] = {}
    for file in files:
        by_role.setdefault(file.role, []).append(file)
    if "counts" in by_role:
        by_role = {role: found for role, found in by_role.items() if role not in _MATRIX}
    how = "Choose the sample by the prefix of its files (--prefix), or put the files of each into its own folder."
    for role, found in by_role.items():
        # One table of positions may be there with and without a header, under two names.
        named = (
            {file.ending for file in found}
            if role == "positions" and len({file.prefix for file in found}) == 1
            else {""}
        )
        groups = [[file.path for file in found if not name or file.ending == name] for name in sorted(named)]
        kept = [only_one(group, f"the {role} of one slide", how) for group in groups]
        by_role[role] = [file for file in found if file.path in kept]
    prefixes = {file.prefix: file.path.name for found in by_role.values() for file in found if file.prefix}
    if len(prefixes) > 1:
        raise ValueError(
            f"the files in {where} are of {len(prefixes)} samples: {', '.join(sorted(prefixes.values()))}. All Visium "
            f"slides have the same barcodes, so they would be joined. {how}"
        )
    return by_role


def _is_standard(file: _File, root: Path) -> bool:
    if file.role in _MATRIX:  # read as they are, compressed or not
        return (
            without(file.path.name, PACKED) == file.ending and file.path.parent == root / "filtered_feature_bc_matrix"
        )
    return file.path.name == file.ending and file.path.parent == (root if file.role == "counts" else root / "spatial")


def _link(chosen: dict[str, list[_File]], where: Path) -> Path:
    """Return a folder of symlinks to the unpacked files of a sample, under the names of Space Ranger."""
    folder = new_folder("outs")
    logger.info(
        "%s: read as a run of Space Ranger: %s",
        where.name,
        ", ".join(f.path.name for one in chosen.values() for f in one),
    )
    for role, files in chosen.items():
        for file in files:
            target = folder / (_ROLES[role][1] or f"spatial/{file.ending}")
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(plain_file(file.path).resolve())
    return folder
