"""Read slides in a scanner's own format with openslide (optional: `pip install delst-hf[openslide]`)."""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import optional_library
from .pixels import borders, to_rgb


class OpenSlideImage:
    """One level of a slide as uint8 RGB, read region by region, transparent parts white.

    Attributes:
        shape: (height, width, 3).
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: str | Path, level: int = 0):
        """Open the slide; no pixel is decoded.

        Raises:
            ImportError: openslide is not installed.
            ValueError: openslide cannot read the file.
        """
        self.path = Path(path)
        needed = f"{self.path.name} is in a scanner's format that needs openslide: pip install 'delst-hf[openslide]'"
        openslide = optional_library("openslide", f"{needed}, or convert it to a tiled TIFF.")
        try:
            self._slide = openslide.OpenSlide(str(path))
        except openslide.OpenSlideError as error:
            raise ValueError(
                f"openslide cannot read {path}: {error}. The file is damaged or of another format: export it as a tiled TIFF."
            ) from error
        self.level = level
        width, height = self._slide.level_dimensions[level]
        self.shape = (height, width, 3)

    @property
    def scale_statements(self) -> list[tuple[str, float]]:
        """The micrometres per pixel of this level that the scanner states, true or not, with their source."""
        value = self._slide.properties.get("openslide.mpp-x")
        return [("its metadata", float(value) * self._slide.level_downsamples[self.level])] if value else []

    def overview(self, longest_px: int) -> "OpenSlideImage":
        """Return the smallest level whose longer side is at least `longest_px`, or the largest level."""
        fitting = [level for level, size in enumerate(self._slide.level_dimensions) if max(size) >= longest_px]
        return OpenSlideImage(self.path, fitting[-1] if fitting else 0)

    def __getitem__(self, region: Any) -> np.ndarray:
        """Read `[y0:y1, x0:x1]` as uint8 (rows, columns, 3)."""
        (y0, y1, step_y), (x0, x1, step_x) = borders(region, self.shape)
        if y1 <= y0 or x1 <= x0:
            return np.empty((max(y1 - y0, 0), max(x1 - x0, 0), 3), np.uint8)
        scale = self._slide.level_downsamples[self.level]  # openslide expects positions in level 0
        corner = round(x0 * scale), round(y0 * scale)
        pixels = to_rgb(np.asarray(self._slide.read_region(corner, self.level, (x1 - x0, y1 - y0))))
        return pixels[::step_y, ::step_x]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.level)
