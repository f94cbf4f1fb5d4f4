"""Read files of patch features made by other programs.

TRIDENT    NAME.h5: features (patches, width); coords (patches, 2), the top left corner of each patch in pixels of the full
           resolution, with patch_size_level0, level0_magnification, target_magnification as attributes
CLAM       NAME.h5: features and coords; patch_size, patch_level, downsample are attributes of the coords in patches/NAME.h5.
           Where that file is a bag of patches (imgs, which have the attributes), coords are in pixels of the patches' level
HEST       NAME.h5: embeddings, coords and barcodes, as its benchmark keeps them
arrays     NAME.npy (patches, width), in the order of the slide's spots; NAME.npz and NAME.parquet with features, and barcode or
           x and y (the centre of each patch)
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import reading
from .array_files import read_arrays
from .files import visible
from .patch_h5 import downsample_of_bag, positive, read_h5, side_px, with_companion
from .values import texts

SUFFIXES = (".h5", ".hdf5", ".npy", ".npz", ".parquet")
FEATURES = ("features", "embeddings", "image", "image_embeds", "embedding", "feats")
_BARCODES = ("barcode", "barcodes")
_KEYS = (*_BARCODES, "x", "y")
_IN_H5 = (*FEATURES, "coords", *_KEYS)
# Endings that tools add to the name of a slide.
_ENDINGS = ("_patches", "_features", "_feats", "_embeddings")
# A magnification names a range of scales: 20x means 0.4 to 0.6 um per pixel; 0.34 to 0.74 is accepted here.
_UM_OF_MAGNIFICATION, _MAGNIFICATION_FACTOR = 10.0, 1.48
_SAME = 0.05


@dataclass(frozen=True)
class PatchFeatures:
    """Features of the patches of one slide.

    Attributes:
        slide_id: Name of the slide, from the name of the file.
        values: (patches, width), in the type of the file.
        centres: (patches, 2) x and y in pixels of the full resolution; None where the file does not state them.
        barcodes: (patches,) names of spots, None where the file has none.
        side_px: Side of a patch in pixels of the full resolution, None where the file does not state it.
        mpp: Micrometres per pixel of the full resolution, None where the file does not state it.
        magnification: Magnification of the full resolution, None where the file does not state it.
        encoder: Name of the encoder: that of the folder of the file.
    """

    slide_id: str
    values: np.ndarray
    centres: np.ndarray | None = None
    barcodes: np.ndarray | None = None
    side_px: float | None = None
    mpp: float | None = None
    magnification: float | None = None
    encoder: str = ""

    def patch_um(self, mpp: float | None = None) -> float | None:
        """Return the side of a patch in micrometres, None where it is not known.

        Args:
            mpp: Micrometres per pixel of the slide; by default those of the file.
        """
        scale = mpp or self.mpp
        return None if self.side_px is None or scale is None else self.side_px * scale

    def check_scale(self, mpp: float) -> None:
        """Refuse a slide whose scale contradicts the file.

        Args:
            mpp: Micrometres per pixel of the slide.

        Raises:
            ValueError: If the file states other micrometres per pixel, or a magnification that `mpp` is far from.
        """
        told = None
        if self.mpp is not None and abs(self.mpp / mpp - 1) > _SAME:
            told = f"{self.mpp:g} um per pixel"
        elif self.magnification is not None:
            factor = _UM_OF_MAGNIFICATION / self.magnification / mpp
            if not 1 / _MAGNIFICATION_FACTOR <= factor <= _MAGNIFICATION_FACTOR:
                usual = _UM_OF_MAGNIFICATION / self.magnification
                told = f"a magnification of {self.magnification:g}, which is about {usual:g} um per pixel"
        if told:
            raise ValueError(
                f"the features of {self.slide_id} were made at {told}, but the slide has {mpp:g} um per pixel. Their "
                "positions are in pixels of the full resolution: prepare the dataset from the full-resolution image, "
                "or correct its --mpp."
            )


def is_features(path: str | Path) -> bool:
    """Tell whether a path is a file of features, or a folder with such files that is neither a model nor a dataset."""
    path = Path(path)
    if path.is_file():
        return path.suffix in SUFFIXES
    return (
        path.is_dir() and not (path / "config.json").exists() and not (path / "spots").exists() and bool(_files(path))
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in visible(folder, "*") if path.suffix in SUFFIXES and path.is_file()]


def slide_of_file(path: str | Path) -> str:
    """Return the name of the slide that a file belongs to.

    >>> slide_of_file("features_uni_v1/C5.h5"), slide_of_file("C5_patches.h5")
    ('C5', 'C5')
    """
    stem = Path(path).stem
    return next((stem.removesuffix(ending) for ending in _ENDINGS if stem.endswith(ending)), stem)


def find_feature_files(path: str | Path, slides: Sequence[str]) -> dict[str, Path]:
    """Find the file of each slide.

    Args:
        path: A folder, or a file if there is only one slide.
        slides: Slide ids.

    Raises:
        FileNotFoundError: If there is nothing at `path`, or a slide has no file.
        ValueError: If a slide has several files.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no features at {path}. Give the folder of the files, one per slide (--features).")
    files = [path] if path.is_file() else _files(path)
    found: dict[str, list[Path]] = {slide: [] for slide in slides}
    for file in files:
        # The complete name goes first: a slide may be called S1_patches.
        name = file.stem if file.stem in found else slide_of_file(file)
        if name in found:
            found[name].append(file)
    missing = [slide for slide, where in found.items() if not where]
    if missing:
        names = ", ".join(sorted(file.name for file in files)[:5]) or "no such file"
        raise FileNotFoundError(
            f"{path} has no features of {', '.join(missing[:5])}{' ...' * (len(missing) > 5)}; it holds {names}. Allowed: "
            f"files named by their slides, {missing[0]}.h5 (or {', '.join(SUFFIXES[2:])}). Rename them, or leave the "
            "slide out."
        )
    for slide, where in found.items():
        if len(where) > 1:
            raise ValueError(
                f"{path} holds several files of {slide}: {', '.join(file.name for file in where)}. Keep one of them."
            )
    return {slide: where[0] for slide, where in found.items()}


def read_patch_features(path: str | os.PathLike, patch_px: float | None = None) -> PatchFeatures:
    """Read the features of the patches of one slide.

    Args:
        path: .h5 of TRIDENT, CLAM or HEST, .npy, .npz or .parquet.
        patch_px: Side of a patch in pixels of the full resolution, where no file states it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no features, or features, positions and barcodes of different numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no features at {path}. Give a file that ends in {', '.join(SUFFIXES)}.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name} is not a file of features. Allowed: {', '.join(SUFFIXES)}.")
    with reading(path):
        of_h5 = path.suffix in (".h5", ".hdf5")
        columns, stated = read_h5(path, _IN_H5) if of_h5 else (read_arrays(path, _KEYS, FEATURES), {})
    name = next((name for name in FEATURES if name in columns), None)
    if name is None:
        raise ValueError(_no_features(path, columns))
    values = _rows(columns[name])
    if values.ndim != 2 or not len(values):
        raise ValueError(f"{path.name}: {name} has the shape {values.shape}. Needed: (patches, width).")
    stated = with_companion(stated, path)
    side, level = side_px(stated) if patch_px is None else patch_px, downsample_of_bag(stated, path.name)
    found = PatchFeatures(
        slide_id=slide_of_file(path),
        values=values,
        centres=_centres(columns, side, path, level),
        barcodes=_barcodes(columns),
        side_px=side,
        mpp=positive(stated, "level0_mpp", "mpp_level0", "mpp"),
        magnification=positive(stated, "level0_magnification"),
        encoder=path.absolute().parent.name,
    )
    for what, rows in (("coords", found.centres), ("barcodes", found.barcodes)):
        if rows is not None and len(rows) != len(values):
            raise ValueError(
                f"{path.name} has {len(values)} features and {len(rows)} {what}. Each patch must have one of both."
            )
    return found


def _no_features(path: Path, columns: Mapping[str, Any]) -> str:
    held = ", ".join(columns) or "nothing"
    if "img" in columns:
        return (
            f"{path.name} holds patches ({held}), not their features. Make a dataset of them (delst prepare hest ROOT "
            "--output DIR), and train or predict on that."
        )
    return f"{path.name} holds {held}, and no features. Name the array of features one of {', '.join(FEATURES)}."


def _rows(values: np.ndarray) -> np.ndarray:
    """Return (patches, width) of an array that some tools write as (1, patches, width)."""
    return values[0] if values.ndim == 3 and len(values) == 1 else values


def _barcodes(columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    name = next((name for name in _BARCODES if name in columns), None)
    if name is None:
        return None
    return np.array(texts(columns[name]))


def _centres(columns: Mapping[str, np.ndarray], side: float | None, path: Path, level: float) -> np.ndarray | None:
    """Return the centres of the patches: x and y, or from corners in pixels `level` times as wide as the full resolution's."""
    if "x" in columns and "y" in columns:
        return np.column_stack([columns["x"], columns["y"]]).astype(float)
    if "coords" not in columns:
        return None
    corners = _rows(np.asarray(columns["coords"])).astype(float)
    if corners.ndim != 2 or corners.shape[1] != 2:
        raise ValueError(f"{path.name}: coords has the shape {corners.shape}. Needed: (patches, 2).")
    if side is None:
        if _barcodes(columns) is not None:  # spots are found by name
            return None
        raise ValueError(
            f"{path.name}: coords are corners of patches, but neither its attributes (patch_size_level0, or patch_size and "
            f"downsample) nor a file patches/{path.name} state the size of a patch. Give the side of a patch in pixels of the "
            "full resolution (--features-patch-px)."
        )
    return corners * level + side / 2
