"""TIFF slides of any size as arrays: only the tiles of the requested region are read and decoded."""

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from ..errors import reading
from .pixels import borders, check_channels, to_eight_bits, to_rgb, white_level
from .tiff_tags import check_upright, significant_bits, stated_scales

# Two rows of 512 px tiles across 20,000 px; on a wider slide some tiles are decoded twice.
_CACHE_BYTES = 64 * 2**20
# Tiles and pixels read to find the value of white, where samples have more than 8 bits; share of a tile that may be brighter.
_SAMPLED_TILES, _SAMPLED_PIXELS, _BRIGHTER = 32, 2**22, 1e-3
# Many tools write the whole image as one strip, which must be decoded at once.
_LARGEST_CHUNK = 2**30
# Axes along which the colour planes of an image may lie.
_COLOUR_AXES = "CQS"
_RETILE = (
    "Convert it to tiles, e.g. `vips tiffsave IN.tif OUT.tif --tile --pyramid --compression jpeg --Q 95 --bigtiff`"
)


class TiffImage:
    """One level of a TIFF (tiled or in strips, plain, OME, SVS, BigTIFF) as uint8 RGB.

    The cache of decoded tiles has a fixed size, so memory does not grow with the slide. The object can be sent to another
    process, which opens the file again.

    Attributes:
        shape: (height, width, 3).
        dtype: uint8.
        level_shapes: (height, width) of every level of the pyramid, the largest first.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: str | Path, level: int = 0, cache_bytes: int = _CACHE_BYTES, white: float | None = None):
        """Open the file and read its directory; no pixel is decoded.

        Args:
            path: a TIFF.
            level: level of the pyramid, 0 for full resolution.
            cache_bytes: size of the cache of decoded tiles.
            white: the value of white, where it is known; by default it is stated or measured (`pixels.white_level`).

        Raises:
            ValueError: a truncated or damaged file, or an image that is neither grey nor colour, or is not stored upright.
        """
        self.path, self.level, self.cache_bytes, self.white = Path(path), level, cache_bytes, white
        with reading(self.path, "TIFF", "It is damaged or incomplete: download or export it again."):
            self._open()

    def _open(self) -> None:
        self._file = tifffile.TiffFile(self.path)
        series = max(self._file.series, key=lambda one: int(np.prod(_height_width(one))))
        self.level_shapes = [_height_width(level) for level in series.levels]
        if not 0 <= self.level < len(series.levels):
            raise ValueError(f"{self.path.name}: no level {self.level}. It has {len(series.levels)}: 0 is the largest.")
        chosen = series.levels[self.level]
        height, width = _height_width(chosen)
        self.shape = (height, width, 3)
        self._pages: list[Any] = [page for page in chosen.pages if page is not None]
        page = self._pages[0]
        self._planes = self._check_kind(chosen, page)
        self._chunk = page.chunks[1:3] if page.planarconfig == 2 and len(page.chunks) == 3 else page.chunks[:2]
        self._grid = (-(-height // self._chunk[0]), -(-width // self._chunk[1]))
        self._separate = page.samplesperpixel if page.planarconfig == 2 else 1
        self._raw: np.ndarray | None = None
        self._check_complete()
        if self.white is None:
            self.white = self._white()
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cached = 0

    def _check_kind(self, chosen: Any, page: Any) -> int:
        """Return the number of pages that hold colour planes of one image; refuse what is not a grey or colour image."""
        axes = "".join(axis for axis, size in zip(chosen.axes, chosen.shape, strict=True) if size > 1 or axis in "YX")
        colour = page.photometric in (0, 1, 2, 3, 5, 6)  # white is zero, black is zero, RGB, palette, CMYK, YCbCr
        if (
            axes not in ("YX", "YXS", *(f"{axis}YX" for axis in _COLOUR_AXES))
            or not colour
            or page.dtype is None
            or page.dtype.kind not in "biuf"
        ):
            raise ValueError(
                f"{self.path.name}: an image with axes {chosen.axes}, shape {chosen.shape} of {page.dtype}, photometric "
                f"{getattr(page.photometric, 'name', page.photometric)}. Allowed: grey, RGB, RGBA, palette, CMYK or YCbCr of 8 "
                "to 16 bits, or floats. A fluorescence stack is not a histology image: export the H&E as RGB."
            )
        check_channels(
            re.findall(r'<(?:\w+:)?Channel\b[^>]*?\b(?:Name|Fluor)="([^"]*)"', self._file.ome_metadata or ""),
            self.path.name,
        )
        check_upright(page, self.path.name)
        planes = len(self._pages) if axes[0] in _COLOUR_AXES and page.planarconfig != 2 else 1
        if planes not in (1, 3):
            raise ValueError(
                f"{self.path.name}: {planes} channels in separate planes. Allowed: 1 or 3. Export the H&E as RGB."
            )
        return planes

    def _check_complete(self) -> None:
        size = os.path.getsize(self.path)
        for page in self._pages:
            needed = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
            tiles = self._grid[0] * self._grid[1] * self._separate
            if len(page.dataoffsets) < tiles:
                raise ValueError(
                    f"the TIFF {self.path} declares {self.shape[1]} x {self.shape[0]} px in {tiles} tiles or strips, but lists "
                    f"{len(page.dataoffsets)}: it is damaged. Download or export it again."
                )
            if needed > size:
                raise ValueError(
                    f"the TIFF {self.path} is truncated: its pixels reach to byte {needed}, but it has {size}. Download or "
                    "export it again."
                )
        chunk, page = int(np.prod(self._chunk)) * 3, self._pages[0]
        if not page.is_tiled and self._planes == self._separate == 1 and page.is_memmappable:
            # Uncompressed consecutive rows can be mapped, so that no strip is read as a whole.
            kind = page.dtype.newbyteorder(self._file.byteorder)
            self._raw = np.memmap(self.path, kind, "r", page.dataoffsets[0], (*self.shape[:2], page.samplesperpixel))
        elif chunk > _LARGEST_CHUNK:
            raise ValueError(
                f"{self.path.name} is not a tiled TIFF: {chunk / 2**30:.1f} GiB would be decoded at once. {_RETILE}."
            )

    @property
    def depth(self) -> str:
        """The significant bits of a sample, "" for the usual 8."""
        kind = self._pages[0].dtype
        if kind == np.uint8 or self.white is None:
            return ""
        return f"{round(np.log2(self.white + 1))} of {8 * kind.itemsize} bits" if kind.kind in "iu" else str(kind)

    def _white(self) -> float:
        """Return the value of white, as the file states it or from a sample of its tiles."""
        page = self._pages[0]
        if page.dtype == np.uint8 or int(page.photometric) == 3:  # the numbers of a palette are not samples
            return 255.0
        tiles = self._grid[0] * self._grid[1]
        chosen = np.unique(np.linspace(0, tiles - 1, min(tiles, _SAMPLED_TILES)).round().astype(int))
        if self._raw is not None:
            step = max(1, int(np.sqrt(self._raw.shape[0] * self._raw.shape[1] / _SAMPLED_PIXELS)))
            sample = np.array(self._raw[::step, ::step], page.dtype)
        else:
            pieces = [self._samples(int(index)) for index in chosen]
            sample = np.concatenate([piece.reshape(-1, piece.shape[-1]) for piece in pieces])
        return white_level(
            _without_extra(sample, page), self.path.name, significant_bits(page, self._file.ome_metadata or "")
        )

    @property
    def scale_statements(self) -> list[tuple[str, float]]:
        """Pairs of tag and the micrometres per pixel of this level that it states, true or not, the most explicit first."""
        full, scale = self.level_shapes[0], self.level_shapes[0][1] / self.shape[1]
        found = stated_scales(self._pages[0], self._file.ome_metadata or "", full[1], self._file.imagej_metadata or {})
        return [(tag, value * scale) for tag, value in found]

    @property
    def chunks(self) -> tuple[int, int]:
        """(rows, columns) of a tile or strip, which is decoded at once."""
        return self._chunk[0], self._chunk[1]

    def overview(self, longest_px: int) -> "TiffImage":
        """Return the smallest stored level whose longer side is at least `longest_px`; this level if none is smaller."""
        fitting = [index for index, shape in enumerate(self.level_shapes) if max(shape) >= longest_px]
        return TiffImage(self.path, fitting[-1], white=self.white) if fitting and fitting[-1] > self.level else self

    def __getitem__(self, region: Any) -> np.ndarray:
        """Read `[y0:y1, x0:x1]` as uint8 (rows, columns, 3)."""
        (y0, y1, step_y), (x0, x1, step_x) = borders(region, self.shape)
        height, width = max(y1 - y0, 0), max(x1 - x0, 0)
        if not height or not width:
            return np.empty((height, width, 3), np.uint8)
        if self._raw is not None:
            samples = np.array(self._raw[y0:y1, x0:x1], self._pages[0].dtype)
            return self._coloured(samples)[::step_y, ::step_x]
        result = np.empty((height, width, 3), np.uint8)
        tall, wide = self._chunk
        for i in range(y0 // tall, -(-y1 // tall)):
            for j in range(x0 // wide, -(-x1 // wide)):
                tile = self._tile(i * self._grid[1] + j)
                top, left = i * tall, j * wide
                a, b = max(y0, top), min(y1, top + tile.shape[0])
                c, d = max(x0, left), min(x1, left + tile.shape[1])
                result[a - y0 : b - y0, c - x0 : d - x0] = tile[a - top : b - top, c - left : d - left]
        return result[::step_y, ::step_x]

    def _tile(self, index: int) -> np.ndarray:
        """Return one tile as uint8 (rows, columns, 3), from the cache or decoded."""
        if (tile := self._cache.get(index)) is not None:
            self._cache.move_to_end(index)
            return tile
        tile = self._coloured(self._samples(index))
        self._cache[index], self._cached = tile, self._cached + tile.nbytes
        while self._cached > self.cache_bytes and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _coloured(self, samples: np.ndarray) -> np.ndarray:
        """Return the samples (rows, columns, samples) as uint8 RGB.

        Raises:
            ValueError: they are far brighter than the tiles by which the value of white was found.
        """
        white, page = 255.0 if self.white is None else self.white, self._pages[0]
        if samples.dtype != np.uint8 and int(page.photometric) != 3:
            colours = _without_extra(samples, page)
            if (colours > white).mean() <= _BRIGHTER:
                return _colours(samples, page, white)
            raise ValueError(
                f"{self.path.name}: white was taken to be {white:g}, but a region holds values up to {colours.max():g}. Store "
                "the image with all its bits, or with 8 bits."
            )
        return _colours(samples, page, white)

    def _samples(self, index: int) -> np.ndarray:
        """Return one tile with its stored samples (rows, columns, samples)."""
        per_plane = self._grid[0] * self._grid[1]
        planes = [
            self._decode(page, plane * per_plane + index) for page in self._pages[: self._planes]
            for plane in range(self._separate)
        ]  # fmt: skip
        return np.ascontiguousarray(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2))

    def _decode(self, page: Any, index: int) -> np.ndarray:
        count = page.databytecounts[index]
        if not count:  # a tile that the scanner left out: background
            background = 0 if int(page.photometric) == 0 else 255 if page.dtype == np.uint8 else self.white or 0
            return np.full((*self._chunk, 1 if self._separate > 1 else page.samplesperpixel), background, page.dtype)
        try:
            handle = self._file.filehandle
            handle.seek(page.dataoffsets[index])
            encoded = handle.read(count)  # on its own line: `page.decode` may itself read from the file on first use
            header = getattr(page.keyframe, "jpegheader", None)  # only Hamamatsu's NDPI has one
            decoded = page.decode(encoded, index, jpegtables=page.jpegtables, jpegheader=header)[0]
        except Exception as error:  # every codec has its own errors
            raise ValueError(
                f"cannot decode tile {index} of {self.path}: {error}. The file is damaged, or its compression needs another "
                "version of imagecodecs: download or export it again."
            ) from error
        return decoded[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.level, self.cache_bytes, self.white)


def _colours(array: np.ndarray, page: Any, white: float) -> np.ndarray:
    """Convert the samples of a page (rows, columns, samples) to uint8 RGB by its photometric interpretation and its white."""
    kind = int(page.photometric)
    if page.is_svs and page.samplesperpixel == 3:  # by OpenSlide's notes, Aperio's tag is wrong beside its JPEG 2000
        kind = {33003: 6, 33005: 2}.get(int(page.compression), kind)
    if kind == 3:  # a palette of 16 bits, stored (3, colours)
        array = (page.colormap >> 8).astype(np.uint8).T[array[:, :, 0]]
    elif kind == 0:
        array = white - np.minimum(array, array.dtype.type(white)) if array.dtype != np.uint8 else 255 - array
    elif kind == 5 and array.shape[2] == 4:
        return np.asarray(Image.fromarray(to_eight_bits(array, white), "CMYK").convert("RGB"))
    elif kind == 6 and int(page.compression) not in (6, 7):  # a decoder of JPEG gives RGB
        return np.asarray(Image.fromarray(to_eight_bits(array, white), "YCbCr").convert("RGB"))
    elif page.extrasamples and int(page.extrasamples[0]) == 0:  # an extra sample that is not opacity
        array = _without_extra(array, page)
    return to_rgb(array, white, premultiplied=bool(page.extrasamples) and int(page.extrasamples[0]) == 1)


def _without_extra(samples: np.ndarray, page: Any) -> np.ndarray:
    """Return the colours (..., samples) without opacity, which may use all 16 bits although colours use 12."""
    return samples[..., : samples.shape[-1] - len(page.extrasamples)] if page.extrasamples else samples


def _height_width(series: Any) -> tuple[int, int]:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return int(sizes.get("Y", 0)), int(sizes.get("X", 0))
