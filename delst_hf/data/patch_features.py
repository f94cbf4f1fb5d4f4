"""Join patch features of other programs, which `feature_files` reads, to the spots of a dataset."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from .feature_files import PatchFeatures, find_feature_files, read_patch_features
from .study import Study

logger = logging.getLogger(__name__)

_LEAST_JOINED = 0.5


@dataclass(frozen=True)
class FeatureTable:
    """Features of the spots of a study, found by the column ``spot_index``.

    Attributes:
        values: (joined spots, width) float32.
        row_of_spot: (spots of the folder,) row of `values`, -1 where a spot has no features.
        patch_um: Distinct sides of the patches in micrometres; empty where the files do not state them.
        encoder: Name of the encoder: that of the folder of the files.
    """

    values: np.ndarray
    row_of_spot: np.ndarray
    patch_um: tuple[float, ...] = ()
    encoder: str = ""

    @property
    def width(self) -> int:
        """Number of values per feature."""
        return self.values.shape[1]

    @property
    def features_fingerprint(self) -> str:
        """Hash (16 hex digits) of the features of every spot."""
        digest = hashlib.sha256(str(self.values.shape).encode())
        for array in (self.values, self.row_of_spot):
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:16]

    def __getitem__(self, spot_index: np.ndarray) -> np.ndarray:
        """Return features (rows, width) of the spots with these values of ``spot_index``."""
        return self.values[self.row_of_spot[np.asarray(spot_index)]]


def join_features(
    path: str | Path, study: Study, slides: Sequence[str], patch_px: float | None = None
) -> tuple[Study, FeatureTable]:
    """Join features of other programs to the spots of a study: by name, else by the patch that a spot lies in.

    Args:
        path: Folder with one file per slide.
        study: The dataset.
        slides: Slides whose features are needed.
        patch_px: As in `read_patch_features`.

    Returns:
        The study without the spots of these slides that have no features, and the features of the others.

    Raises:
        FileNotFoundError: If a slide has no file.
        ValueError: If features are not finite or of several widths, a scale contradicts a file, or less than half of the spots
            of a slide have features.
    """
    study.check_slides(slides)
    columns = study.spots.select_columns(["slide_id", "barcode", "x", "y", "spot_index"]).to_pandas()
    row_of_spot = np.full(int(columns["spot_index"].max()) + 1, -1)
    mpp = dict(zip(study.slide_ids, study.slides["mpp"], strict=True))
    parts: list[np.ndarray] = []
    sides: list[float] = []
    start, lost = 0, 0
    for slide, file in find_feature_files(path, slides).items():
        found = read_patch_features(file, patch_px)
        if mpp[slide] > 0:
            found.check_scale(mpp[slide])
        spots = columns[columns["slide_id"] == slide]
        rows = _row_of_each(found, spots, file)
        there = rows >= 0
        lost += int((~there).sum())
        values = np.asarray(found.values[rows[there]], dtype=np.float32)
        _check_values(values, parts, file)
        parts.append(values)
        row_of_spot[spots["spot_index"].to_numpy()[there]] = start + np.arange(len(values))
        start += len(values)
        if side := found.patch_um(mpp[slide] if mpp[slide] > 0 else None):
            sides.append(side)
    if lost:
        logger.warning("%d of %d spots have no features and are left out", lost, start + lost)
    keep = (row_of_spot[columns["spot_index"].to_numpy()] >= 0) | ~columns["slide_id"].isin(list(slides)).to_numpy()
    joined = replace(study, spots=study.spots.select(np.flatnonzero(keep)))
    folder = Path(path).absolute()
    name = folder.parent.name if folder.is_file() else folder.name
    return joined, FeatureTable(np.concatenate(parts), row_of_spot, tuple(dict.fromkeys(sides)), name)


def _check_values(values: np.ndarray, parts: Sequence[np.ndarray], file: Path) -> None:
    if parts and parts[0].shape[1] != values.shape[1]:
        raise ValueError(
            f"{file.name} has features of width {values.shape[1]}, the files before it of width {parts[0].shape[1]}. All must "
            "come from one encoder."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"{file.name}: {int((~np.isfinite(values)).any(axis=1).sum())} features are not finite. Make them again."
        )


def _row_of_each(found: PatchFeatures, spots: pd.DataFrame, file: Path) -> np.ndarray:
    """Return the row of the features of each spot (spots,), -1 where it has none."""
    if found.barcodes is not None:
        rows = pd.Index(found.barcodes)
        if rows.has_duplicates:
            raise ValueError(
                f"{file.name}: the barcode {rows[rows.duplicated()][0]!r} occurs more than once. Keep one row per barcode."
            )
        return _enough(
            rows.get_indexer(spots["barcode"].astype(str)), spots, file, "their barcodes are not in the file"
        )
    if found.centres is None:
        if len(found.values) != len(spots):
            raise ValueError(
                f"{file.name} has {len(found.values)} rows without barcode or position, but the slide has {len(spots)} "
                "spots. Add barcode, or x and y; without them the file must have one row per spot, in the order of the "
                "dataset."
            )
        return np.arange(len(spots))
    from scipy.spatial import cKDTree

    places = spots[["x", "y"]].to_numpy(float)
    # A spot lies in a patch if it is within half a side of its centre in both directions.
    reach = np.inf if found.side_px is None else found.side_px / 2 * (1 + 1e-6)
    distance, rows = cKDTree(found.centres).query(places, p=np.inf)
    low, high = found.centres.min(axis=0), found.centres.max(axis=0)
    where = (
        f"patches lie at x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}, spots at x "
        f"{places[:, 0].min():.0f} to {places[:, 0].max():.0f}, y {places[:, 1].min():.0f} to "
        f"{places[:, 1].max():.0f}; both must be in pixels of one image"
    )
    return _enough(np.where(distance <= reach, rows, -1), spots, file, where)


def _enough(rows: np.ndarray, spots: pd.DataFrame, file: Path, why: str) -> np.ndarray:
    if np.mean(rows >= 0) < _LEAST_JOINED:
        raise ValueError(
            f"{file.name}: only {int((rows >= 0).sum())} of {len(spots)} spots of {spots['slide_id'].iloc[0]} have "
            f"features; {why}. Give the features of this slide, at its full resolution."
        )
    return rows
