"""Open image files of any kind as a `Slide` needs them: uint8 RGB, (height, width, 3), at once or region by region."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import reading
from .declared import check_declared
from .pixels import to_rgb
from .scratch import plain_file
from .tiff import TiffImage
from .tiff_tags import refuse_turned

__all__ = ["check_readable", "image_size", "open_image", "read_image", "to_rgb"]

# A large image with more decoded bytes per stored byte than this is of one colour, so it is not a slide.
_LARGE_BYTES, _DENSEST_IMAGE = 2**31, 1000
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# The EXIF tag Orientation.
_ORIENTATION = 274
# Scanner formats that are not TIFF, or a TIFF with overlapping tiles: read by openslide.
_OPENSLIDE_SUFFIXES = {".mrxs", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi", ".zvi"}


class StatedImage(np.ndarray):
    """Pixels in memory, with the scales that their file states: pairs of tag and micrometres per pixel."""

    scale_statements: tuple[tuple[str, float], ...] = ()


def open_image(path: str | Path) -> Any:
    """Open the image of a slide, reading no more than needed.

    The first bytes decide what a file is, not its suffix: STimage-1K4M, for one, has TIFF and JPEG named ".png".

    Args:
        path: a TIFF of any kind (read region by region), JPEG, PNG or another format of Pillow (read at once), or a format
            of openslide (with the extra `openslide`).

    Returns:
        uint8 (height, width, 3): an array, or an object with `.shape`, `.dtype` and `[y0:y1, x0:x1]`.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the file may not be read.
        ValueError: the file is truncated, corrupt or not an image.
        ImportError: the format needs openslide, which is not installed.
    """
    path = plain_file(check_readable(path, "image", "Give the path of the slide's image (JPEG, PNG or TIFF)."))
    if path.suffix.lower() in _OPENSLIDE_SUFFIXES:
        from .openslide_image import OpenSlideImage

        return OpenSlideImage(path)
    with path.open("rb") as file:
        is_tiff = file.read(4) in _TIFF_MAGIC
    return TiffImage(path) if is_tiff else read_image(path)


def image_size(path: str | Path) -> tuple[int, int] | None:
    """Return (height, width) of an image file from its header; None where Pillow cannot tell."""
    try:
        with _opened(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError):
        return None


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file of any size: slides routinely exceed Pillow's limit against decompression bombs."""
    guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = guard


def check_readable(path: str | Path, what: str = "file", advice: str = "Give the path of an existing file.") -> Path:
    """Return the path if it is a file that may be read.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the file may not be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no {what} file at {path}. {advice}")
    if not os.access(path, os.R_OK):
        raise PermissionError(
            f"the {what} {path} may not be read by this user. Ask its owner for access, or `chmod u+r` it."
        )
    return path


def read_image(path: str | Path) -> np.ndarray:
    """Read a complete image file; refuse one that must be turned for display (see `tiff_tags.refuse_turned`).

    Args:
        path: a file that Pillow opens (JPEG, PNG, plain TIFF, ...), of any size.

    Returns:
        uint8 (height, width, 3), transparent parts on white.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupt, not an image, or not stored upright.
    """
    path = check_readable(path, "image", "Give the path of the slide's image (JPEG, PNG or TIFF).")
    advice = (
        "Allowed: a complete JPEG, PNG or TIFF of 8 or 16 bits. Download or export it again, and check that it opens in an "
        "image viewer."
    )
    with reading(path, "image", advice), _opened(path) as image:
        width, height = image.size
        large = 3.0 * width * height > _LARGE_BYTES
        check_declared(4.0 * width * height, path, f"an image of {width} x {height} px",
                       path.stat().st_size if large else None, _DENSEST_IMAGE)  # fmt: skip
        orientation = int(image.getexif().get(_ORIENTATION, 0))
        deep = _deep_png(path) if image.format == "PNG" else None
        dpi = image.info.get("dpi")
        pixels = to_rgb(np.asarray(_plain(image)) if deep is None else deep, name=path.name)
    refuse_turned(orientation, path.name, "exiftool -Orientation= FILE")
    if dpi and float(dpi[0]) > 0:
        stated = pixels.view(StatedImage)
        stated.scale_statements = (("dpi", 25_400 / float(dpi[0])),)
        return stated
    return pixels


def _deep_png(path: Path) -> np.ndarray | None:
    """Return a 16-bit PNG with colour or opacity, of which Pillow would keep only 8 bits; None for any other PNG."""
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or header[24] != 16 or header[25] not in (2, 4, 6):
        return None
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def _plain(image: Image.Image) -> Image.Image:
    """Convert modes whose numbers are not samples of grey, red, green and blue (palette, CMYK, YCbCr, 1 bit)."""
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "1") else image
