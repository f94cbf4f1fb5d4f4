"""Sources of patches: cut from a slide on demand, or stored in a dataset folder; or features of patches made elsewhere."""

import copy
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, load_dataset
from PIL import Image

from ..data.appearance import PatchEncoding
from ..data.collator import open_patch
from ..data.feature_files import read_patch_features
from ..data.patch_features import FeatureTable
from ..data.patches import Cutter
from ..data.quality import describe_wrong_frame
from ..data.readers.image import read_slide_image
from ..data.slide import Slide
from ..data.study import Study
from .positions import check_places

logger = logging.getLogger(__name__)

_UPSAMPLING_ALARM = 2.0
# Longer side of the picture that goes into an output.
_PICTURE_PX = 2000


@dataclass(frozen=True)
class PatchSource:
    """Patches of one or several slides.

    Attributes:
        rows: One row per patch: x, y in pixels of the slide, slide_id, and what else is known; the index names the patches.
        read: Positions in `rows` -> uint8 patches (height, width, 3), or features (width,); called by several threads.
        patch_um: Side of a patch in micrometres; None where it is not known.
        mpp: Micrometres per pixel of each slide.
        spot_px: Diameter at which a spot of each slide is drawn, in its pixels.
        pictures: The slides, reduced.
        shapes: (height, width) of each slide in pixels.
        species: Species of the slides, "" where it is not known.
        about: What the patches were read from, for the record.
        width: Width of the features where `read` returns features, None for patches.
        encoder: Encoder that made the features.
    """

    rows: pd.DataFrame
    read: Callable[[Sequence[int]], list[np.ndarray]]
    patch_um: float | None
    mpp: dict[str, float] = field(default_factory=dict)
    spot_px: dict[str, float] = field(default_factory=dict)
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    species: str = ""
    about: str = ""
    width: int | None = None
    encoder: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def order(self, start: int, stop: int) -> np.ndarray:
        """Return positions from `start` to `stop` in order of rows of the image, so that a TIFF tile is decoded about once."""
        rows = self.rows.iloc[start:stop]
        side = 512.0 if not self.mpp else max((self.patch_um or 0) / next(iter(self.mpp.values())), 512.0)
        return start + np.lexsort((rows["x"].to_numpy(), rows["y"].to_numpy() // side))


def slide_source(
    slide: Slide, patch_um: float, patch_px: int, encoding: PatchEncoding | None = None, *, on_grid: bool = False
) -> PatchSource:
    """Return patches of a slide at its spots, cut on demand.

    A pyramid is read at its coarsest level on which a patch still has enough pixels.

    Args:
        slide: The slide; its spots may have any further columns.
        patch_um: Side of a patch in micrometres.
        patch_px: Side of a patch in pixels.
        encoding: How the training patches were stored; patches of the slide then look as if they came from that dataset.
        on_grid: Whether the positions are a grid laid on the tissue of this image; others are warned of if they lie beside it.

    Raises:
        ValueError: If patches are larger than the slide, or a spot has no position or lies beyond the image.
    """
    height, width = slide.image.shape[:2]
    side = patch_um / slide.mpp
    if slide.stored_patches is None and side > max(height, width):
        raise ValueError(
            f"slide {slide.slide_id!r}: a patch of {patch_um:g} um is {side:.0f} px wide, but the slide has only {width} x "
            f"{height} px. Check the micrometres per pixel (--mpp), or give the full-resolution image."
        )
    if slide.stored_patches is None and patch_px > _UPSAMPLING_ALARM * side:
        logger.warning(
            "%s: a patch of %g um is %.0f px of the image, enlarged to %d px. Give a sharper image (--image).",
            slide.slide_id, patch_um, side, patch_px,
        )  # fmt: skip
    shape = None if slide.stored_patches is not None else slide.image.shape
    places = check_places(slide.spots, f"slide {slide.slide_id!r}", shape, side)
    slide = replace(slide, spots=slide.spots.assign(x=places["x"], y=places["y"]))
    pictures = {} if slide.stored_patches is not None else {slide.slide_id: slide.thumbnail(_PICTURE_PX)}
    for picture in () if on_grid else pictures.values():
        if beside := describe_wrong_frame(slide, picture, swap="exchange the two columns"):
            logger.warning("%s What is computed for patches beside the tissue means nothing.", beside)
    reduced = _at_best_level(slide, side / patch_px)
    spot_um = slide.spot_um or patch_um
    return PatchSource(
        rows=slide.spots.assign(slide_id=slide.slide_id).astype({"array_row": int, "array_col": int}),
        read=_Reader(reduced, patch_um, patch_px, encoding),
        patch_um=patch_um,
        mpp={slide.slide_id: slide.mpp},
        spot_px={slide.slide_id: spot_um / slide.mpp},
        pictures=pictures,
        shapes={slide.slide_id: (height, width)},
        species=slide.species,
        about=slide.source,
    )


class _Reader:
    """A callable that cuts patches for several threads: an array in memory is shared, a file is opened once per thread."""

    def __init__(self, slide: Slide, patch_um: float, patch_px: int, encoding: PatchEncoding | None):
        self.slide, self.patch_um, self.patch_px = slide, patch_um, patch_px
        self.restored = encoding.restored if encoding is not None else np.asarray
        self.own, self.lock = threading.local(), threading.Lock()

    def __call__(self, positions: Sequence[int]) -> list[np.ndarray]:
        cut = self._cutter()
        if self.slide.stored_patches is not None:  # in one HDF5 file, which one thread reads at a time
            with self.lock:
                patches = [cut(position) for position in positions]
            return [self.restored(patch) for patch in patches]
        return [self.restored(cut(position)) for position in positions]

    def _cutter(self) -> Cutter:
        if not hasattr(self.own, "cut"):
            image = self.slide.image
            own = image if isinstance(image, np.ndarray) else copy.copy(image)
            self.own.cut = replace(self.slide, image=own).cutter(self.patch_um, self.patch_px)
        return self.own.cut


def _at_best_level(slide: Slide, factor: float) -> Slide:
    """Return the slide at the coarsest level of its pyramid whose pixels are not `factor` times as wide."""
    shapes = getattr(slide.image, "level_shapes", None)
    if shapes is None or slide.stored_patches is not None:
        return slide
    full = slide.image.shape[1]
    fitting = [level for level, shape in enumerate(shapes) if full / shape[1] <= factor * 1.01]
    if not fitting or fitting[-1] <= slide.image.level:
        return slide
    image = type(slide.image)(slide.image.path, fitting[-1])
    scale = np.array([image.shape[1] / full, image.shape[0] / slide.image.shape[0]])
    spots = slide.spots.assign(x=slide.spots["x"] * scale[0], y=slide.spots["y"] * scale[1])
    return replace(slide, image=image, spots=spots, mpp=slide.mpp / scale[0])


def in_full_resolution(source: PatchSource, scale: float) -> PatchSource:
    """Return the source in pixels of the full resolution; the image that was read has `scale` pixels per such pixel."""
    return replace(
        source,
        rows=source.rows.assign(x=source.rows["x"] / scale, y=source.rows["y"] / scale),
        mpp={name: value * scale for name, value in source.mpp.items()},
        spot_px={name: value / scale for name, value in source.spot_px.items()},
        shapes={name: (round(h / scale), round(w / scale)) for name, (h, w) in source.shapes.items()},
    )


def features_source(
    path: str | os.PathLike, mpp: float | None = None, image: str | None = None, patch_px: float | None = None
) -> PatchSource:
    """Return the features of one slide that were made elsewhere.

    Args:
        path: A file of features as `data.feature_files` reads it, with positions.
        mpp: Micrometres per pixel of the full resolution; by default those that `image` or the file states.
        image: The slide, for its picture and its scale.
        patch_px: Side of a patch in pixels of the full resolution, where the file does not state it.

    Raises:
        ValueError: If there are no positions, or the size of the patches or the scale is not known.
    """
    found = read_patch_features(path, patch_px)
    if found.centres is None or found.side_px is None:
        raise ValueError(
            f"{Path(path).name} does not state where its patches lie and how large they are. Needed: coords with "
            "patch_size_level0, or x and y with --features-patch-px."
        )
    places = pd.DataFrame(found.centres, columns=["x", "y"])
    places.index = pd.Index(
        [f"{x:.0f}x{y:.0f}" for x, y in found.centres] if found.barcodes is None else found.barcodes
    )
    pictures, shapes, scale = {}, {}, mpp or found.mpp
    if image is not None:
        slide = read_slide_image(image, mpp=scale, positions=places)
        scale, shapes = slide.mpp, {found.slide_id: (slide.image.shape[0], slide.image.shape[1])}
        pictures = {found.slide_id: slide.thumbnail(_PICTURE_PX)}
    if scale is None:
        raise ValueError(
            f"{Path(path).name} does not state the micrometres per pixel of the slide, without which its patches cannot be "
            "compared in size with those of the training. Give them (--mpp), or the slide that states them (--image)."
        )
    found.check_scale(scale)
    check_places(places, Path(path).name, shapes.get(found.slide_id), found.side_px)
    values = found.values
    return PatchSource(
        rows=places.assign(slide_id=found.slide_id),
        read=lambda positions: list(values[np.asarray(positions)]),
        patch_um=found.patch_um(scale),
        mpp={found.slide_id: scale},
        spot_px={found.slide_id: found.side_px},
        pictures=pictures,
        shapes=shapes,
        about=f"features: {Path(path).name}",
        width=values.shape[1],
        encoder=found.encoder,
    )


def dataset_source(
    path: str, study: Study, slides: Sequence[str], features: FeatureTable | None = None, spot_split: str | None = None
) -> PatchSource:
    """Return the patches of these slides in a dataset folder, or features of its spots that were made elsewhere.

    Args:
        path: The folder, or the id of a dataset of the Hub.
        study: The same dataset, opened.
        slides: Slide ids.
        features: Features to read in place of the patches, if given.
        spot_split: Split to which slides whose spots were split one by one are restricted.

    Raises:
        ValueError: If a slide is not in the folder, or patches of several sizes in micrometres would be mixed.
    """
    if features is None:
        study.check_images(slides)
    spots = study.subset(slides, spot_split)
    table = study.slides.set_index("slide_id").loc[list(slides)]
    sizes = sorted(set(table["patch_um"]))
    if features is not None and features.patch_um:
        sizes = list(features.patch_um)
    if len(sizes) > 1 and max(sizes) > 1.02 * min(sizes):
        raise ValueError(
            f"the slides have patches of {', '.join(f'{size:g}' for size in sizes)} um. Allowed: one size; predict slides of "
            "each size on their own (--slides)."
        )
    index = np.asarray(spots.with_format("numpy")["spot_index"][:])
    names = [name for name in spots.column_names if name not in ("image", "gene_indices", "gene_counts", "spot_index")]
    rows = spots.select_columns(names).to_pandas().set_index("barcode")
    if rows.index.has_duplicates:
        rows.index = pd.Index(rows["slide_id"] + "_" + rows.index, name="barcode")
    sides = table["spot_um"].fillna(table["patch_um"]) / table["mpp"]
    for slide_id, here in rows.groupby("slide_id"):
        check_places(here, f"slide {slide_id!r}")
    species = set(table["species"]) - {""}
    return PatchSource(
        rows=rows,
        read=_decoded(spots) if features is None else lambda rows: list(features[index[np.asarray(rows)]]),
        patch_um=sizes[0],
        mpp={str(name): float(value) for name, value in table["mpp"].items()},
        spot_px={str(name): float(value) for name, value in sides.items()},
        pictures=_thumbnails(path, slides),
        shapes={name: (int(row.image_height), int(row.image_width)) for name, row in table.iterrows()},  # type: ignore[misc]
        species=next(iter(species)) if len(species) == 1 else "",
        about=f"dataset: {', '.join(slides)}",
        width=None if features is None else features.width,
        encoder="" if features is None else features.encoder,
    )


def _thumbnails(path: str, slides: Sequence[str]) -> dict[str, Image.Image]:
    table = load_dataset(path, "slides", split="train")
    if "thumbnail" not in table.column_names:
        return {}
    return {row["slide_id"]: row["thumbnail"] for row in table if row["slide_id"] in slides and row["thumbnail"]}


def _decoded(spots: Dataset) -> Callable[[Sequence[int]], list[np.ndarray]]:
    """Return a function that decodes stored patches."""
    images = spots.select_columns("image").with_format("arrow")
    return lambda rows: [np.asarray(open_patch(cell)) for cell in images[list(map(int, rows))]["image"].to_pylist()]
