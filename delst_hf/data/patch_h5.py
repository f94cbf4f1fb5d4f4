"""Read the arrays and attributes of HDF5 files of TRIDENT, CLAM and HEST that describe patches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .values import number

# Key, among the attributes of the file, for the side of the patches of a bag in their own pixels.
_BAG_PX = "side of imgs"


def read_h5(path: Path, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of an HDF5 file, and the attributes of the file, of its coords and of its bag of patches."""
    import h5py

    with h5py.File(path, "r") as file:
        columns = {name: file[name][:] for name in wanted if isinstance(file.get(name), h5py.Dataset)}
        others = {name: np.empty(0) for name in file if name not in columns}
        coords, bag = file.get("coords"), file.get("imgs")
        stated = dict(file.attrs) | (dict(coords.attrs) if coords is not None else {})
        if isinstance(bag, h5py.Dataset) and bag.ndim == 4:
            stated |= {**bag.attrs, _BAG_PX: bag.shape[1]}
        return columns | others, stated


def with_companion(stated: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the attributes that describe patches, with those of the second file in which CLAM keeps them."""
    for folder in (path.parent, path.parent.parent):
        other = folder / "patches" / path.name
        if side_px(stated) is None and path.suffix == ".h5" and other.is_file() and other != path:
            return {**stated, **read_h5(other, ())[1]}
    return dict(stated)


def downsample_of_bag(stated: Mapping[str, Any], name: str) -> float:
    """Return the width of one pixel of the coords in pixels of the full resolution: 1, except in CLAM's bags of patches.

    Raises:
        ValueError: If it is a bag of a level whose factor is not stated.
    """
    if positive(stated, _BAG_PX) is None:
        return 1.0
    downsample = positive(stated, "downsample")
    if downsample is None and positive(stated, "patch_level") is not None:
        raise ValueError(
            f"{name}: coords are in pixels of level {np.ravel(stated['patch_level'])[0]} of the slide, and no attribute "
            "states how far that is reduced (downsample). Make coordinates and features again: CLAM now writes them in pixels "
            "of the full resolution."
        )
    # With --custom_downsample patches and coords are reduced once more: the two sizes of the level give the factor.
    whole, reduced = positive(stated, "level_dim"), positive(stated, "downsampled_level_dim")
    return (downsample or 1.0) * (round(whole / reduced) if whole and reduced else 1.0)


def side_px(stated: Mapping[str, Any]) -> float | None:
    """Return the side of a patch in pixels of the full resolution from these attributes; None if they do not give it."""
    if found := positive(stated, "patch_size_level0"):
        return found
    size, level = positive(stated, "patch_size"), stated.get("patch_level")
    if size is not None:
        target, full = positive(stated, "target_magnification"), positive(stated, "level0_magnification")
        if target and full:
            return size * full / target
        factor = positive(stated, "downsample") or (1.0 if level is not None and int(level) == 0 else None)
        if factor is not None:
            return size * factor * (positive(stated, "custom_downsample") or 1.0)
    pixels, downsample = positive(stated, _BAG_PX), positive(stated, "downsample")
    return None if pixels is None or downsample is None else pixels * downsample_of_bag(stated, "the bag of patches")


def positive(stated: Mapping[str, Any], *names: str) -> float | None:
    """Return the first positive number among the attributes of these names; an array counts by its first value."""
    found = (number(np.ravel(stated[name])[:1]) for name in names if name in stated)
    return next((value for value in found if value is not None and value > 0), None)
