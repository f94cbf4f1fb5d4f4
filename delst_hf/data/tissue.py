"""Find tissue on a slide by its colour, or read it from a mask image or from polygons of QuPath."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .images import check_readable, read_image

logger = logging.getLogger(__name__)

# Side of the reduced image in which tissue is searched: about 10 to 30 um per pixel.
MASK_PX = 1024
# Saturation, 0 to 255: glass is below the first value and stained tissue above the second. They bound Otsu's threshold, which
# fails on a slide of only glass or only tissue.
_GLASS, _STAINED = 12, 50
# Darker than any dye: background that was cut out.
_BLACK = 12
# A slide with a median brightness below this, 0 to 255, has a dark background, as in fluorescence.
_DARK_BACKGROUND = 40
# Vessels, ducts and fat vacuoles are holes that belong to tissue; a larger hole is glass inside a ring of tissue.
_LARGEST_HOLE_MM2 = 0.5
# Gaps of this width, in fat and between fibres, are tissue; closing them turns bays with a narrow opening into holes.
_GAP_UM = 60
# Smaller pieces are dust, not a section.
_SMALLEST_PIECE_MM2 = 0.02
# Values of a mask that are neither black nor white, and the share of its pixels that may have them: JPEG and blurred edges.
_GREY, _MOST_GREY = (48, 208), 0.2
# Aspect ratios of mask and slide may differ by this share, because a reduced image has whole pixels.
_SAME_RATIO = 0.02


@dataclass(frozen=True)
class TissueMask:
    """Tissue on a reduced copy of a slide.

    Attributes:
        mask: (rows, columns) bool; it covers the whole image.
        image_shape: (height, width) of the image in pixels.
    """

    mask: np.ndarray
    image_shape: tuple[int, int]

    def fractions(self, centres: np.ndarray, side: float) -> np.ndarray:
        """Return the share of tissue in squares (squares,), exact to the pixels of the mask; outside the image it is 0.

        Args:
            centres: (squares, 2) x, y in pixels of the image.
            side: side of the squares in pixels of the image.

        >>> half = TissueMask(np.array([[True, False]]), (100, 200))
        >>> half.fractions(np.array([[50, 50], [100, 50], [150, 50]]), 100).tolist()
        [1.0, 0.5, 0.0]
        """
        rows, columns = self.mask.shape
        scale = np.array([columns / self.image_shape[1], rows / self.image_shape[0]])
        # The integral of a mask is bilinear between its corners: four lookups give the area of any rectangle.
        integral = np.pad(self.mask, ((1, 0), (1, 0))).cumsum(0, dtype=np.float64).cumsum(1)
        low = np.clip((centres - side / 2) * scale, 0, [columns, rows])
        high = np.clip((centres + side / 2) * scale, 0, [columns, rows])

        def area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return ndimage.map_coordinates(integral, [y, x], order=1, mode="nearest")

        inside = area(high[:, 0], high[:, 1]) - area(low[:, 0], high[:, 1])
        inside += area(low[:, 0], low[:, 1]) - area(high[:, 0], low[:, 1])
        return np.clip(inside / (side**2 * scale.prod()), 0.0, 1.0)


def otsu_threshold(values: np.ndarray) -> int:
    """Return the threshold of uint8 values with the highest variance between the two classes (Otsu, 1979).

    Values above the threshold are one class, all others the other.

    >>> otsu_threshold(np.array([10] * 50 + [12] * 50 + [200] * 30, dtype=np.uint8))
    12
    """
    counts = np.bincount(values.reshape(-1), minlength=256).astype(float)
    below = counts.cumsum()
    above = below[-1] - below
    total = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = total / below - (total[-1] - total) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return int(between.argmax())


def find_tissue(thumbnail: np.ndarray, image_shape: Sequence[int], mpp: float) -> TissueMask:
    """Find tissue by its saturation (Otsu), drop dust, close gaps and fill holes.

    Faint fat is found if it lies within 60 um of stained tissue or is enclosed by it; pen marks are taken for tissue.

    Args:
        thumbnail: uint8 (rows, columns, 3), the whole slide at a reduced size.
        image_shape: (height, width) of the image in pixels.
        mpp: micrometres per pixel of the image.

    Raises:
        ValueError: a dark background, as in fluorescence, or no tissue.
    """
    largest, smallest = thumbnail.max(-1).astype(np.float32), thumbnail.min(-1).astype(np.float32)
    lit = largest[largest >= _BLACK]
    if not lit.size or (np.median(largest) < _DARK_BACKGROUND and np.median(lit) < 2 * _DARK_BACKGROUND):
        raise ValueError(
            f"the slide is dark, as in fluorescence: the median of its brightest channel is {np.median(largest):.0f} of 255. "
            "Allowed: a stained section on bright glass. Give the H&E image, or mark the tissue (--mask)."
        )
    saturation = np.where(largest >= _BLACK, 255 * (largest - smallest) / np.maximum(largest, 1), 0)
    saturation = ndimage.gaussian_filter(saturation, 1).round().astype(np.uint8)
    mask = saturation > np.clip(otsu_threshold(saturation), _GLASS, _STAINED)
    pixel_mm2 = (mpp / 1000) ** 2 * (image_shape[0] * image_shape[1]) / mask.size
    mask = _without_pieces(mask, _SMALLEST_PIECE_MM2 / pixel_mm2)
    mask = _closed(mask, _GAP_UM / 1000 / 2 / pixel_mm2**0.5)
    mask = ~_without_pieces(~mask, _LARGEST_HOLE_MM2 / pixel_mm2, but_at_border=True)
    if not mask.any():
        raise ValueError(
            "no tissue was found: nothing on this slide is more coloured than glass. Look at the image; if it shows faint "
            "tissue, draw that (--mask with an image, or with GeoJSON of QuPath)."
        )
    return TissueMask(mask, (int(image_shape[0]), int(image_shape[1])))


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    """Close gaps: dilate by a disk of `radius` pixels and erode again. Distance transforms are fast at any radius."""
    if radius < 1 or not mask.any():
        return mask
    margin = int(np.ceil(radius)) + 1  # so that nothing grows from the border
    grown = ndimage.distance_transform_edt(~np.pad(mask, margin)) <= radius
    return (ndimage.distance_transform_edt(grown) > radius)[margin:-margin, margin:-margin]


def _without_pieces(mask: np.ndarray, smallest: float, but_at_border: bool = False) -> np.ndarray:
    """Drop connected pieces of fewer pixels than `smallest`; with `but_at_border`, keep all pieces that touch the border."""
    pieces, number = ndimage.label(mask)
    keep = np.bincount(pieces.reshape(-1), minlength=number + 1) >= smallest
    if but_at_border:
        keep[np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))] = True
    keep[0] = False
    return keep[pieces]


def read_tissue(path: str | Path, image_shape: Sequence[int]) -> TissueMask:
    """Read the tissue from a mask image, or from polygons in GeoJSON.

    Args:
        path: an image of the whole slide at any size, in which tissue is not black; or .geojson or .json as QuPath exports it,
            with coordinates in pixels of the image.
        image_shape: (height, width) of the image in pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a mask of another aspect ratio, no polygon, or no tissue on the image.
    """
    path = check_readable(path, "mask", "Give a mask image, or GeoJSON as QuPath exports it (--mask).")
    height, width = int(image_shape[0]), int(image_shape[1])
    if path.suffix.lower() in (".geojson", ".json"):
        mask = _drawn_polygons(path, height, width)
    else:
        colours = read_image(path)
        pixels = colours.max(-1)
        rows, columns = pixels.shape
        if abs(columns * height / (rows * width) - 1) > _SAME_RATIO:
            raise ValueError(
                f"the mask {path.name} is {columns} x {rows} px, but the slide is {width} x {height} px: their aspect ratios "
                "differ. Give a mask of the whole slide, at any size."
            )
        # A mask of classes has few, small numbers; JPEG turns black and white into many values.
        few = len(np.unique(pixels)) <= 16
        mask = pixels > (0 if few else 127)
        grey = 0 if few else ((colours > _GREY[0]) & (colours < _GREY[1])).any(-1).mean()
        if grey > _MOST_GREY:
            logger.warning(
                "the mask %s does not look like one: %.0f %% of it is neither black nor white. What is brighter than grey is "
                "taken for tissue, which is %.0f %% of the slide. If it is the slide itself, leave --mask out",
                path.name, 100 * grey, 100 * mask.mean(),
            )  # fmt: skip
    if not mask.any():
        raise ValueError(
            f"the mask {path.name} marks no tissue on this slide: all of it is black. Draw the tissue in white, or leave "
            "--mask out."
        )
    return TissueMask(mask, (height, width))


def _drawn_polygons(path: Path, height: int, width: int) -> np.ndarray:
    factor = min(1.0, MASK_PX / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    try:
        polygons = list(_polygons(json.loads(path.read_text(encoding="utf-8"))))
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"cannot read {path.name} as GeoJSON: {error}. Export the annotations again.") from error
    if not polygons:
        raise ValueError(
            f"{path.name} holds no polygon. Allowed: GeoJSON features of type Polygon or MultiPolygon, as QuPath writes "
            "them (File > Export objects as GeoJSON)."
        )
    mask = np.zeros(size[::-1], dtype=bool)
    for outline, *holes in polygons:
        drawn = Image.new("1", size)
        draw = ImageDraw.Draw(drawn)
        for ring, fill in [(outline, 1), *((hole, 0) for hole in holes)]:
            if len(ring) > 2:
                draw.polygon([(x * factor, y * factor) for x, y, *_ in ring], fill=fill)
        mask |= np.asarray(drawn)
    if not mask.any():
        corner = np.max([point[:2] for outline, *_ in polygons for point in outline], axis=0)
        raise ValueError(
            f"no polygon of {path.name} lies on the slide: they reach to x {corner[0]:g}, y {corner[1]:g}; the slide is "
            f"{width} x {height} px. Export them from the same image, in pixels of its full resolution."
        )
    return mask


def _polygons(node: Any) -> Iterator[list[Any]]:
    """Yield the rings of every polygon, outline first, in GeoJSON or in a list of its features."""
    if isinstance(node, list):
        for item in node:
            yield from _polygons(item)
        return
    kind = node["type"]
    if kind == "Polygon":
        yield node["coordinates"]
    elif kind == "MultiPolygon":
        yield from node["coordinates"]
    else:
        inner = {"FeatureCollection": "features", "Feature": "geometry", "GeometryCollection": "geometries"}.get(kind)
        if inner and node[inner]:
            yield from _polygons(node[inner])
