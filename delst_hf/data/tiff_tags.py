"""Read the scale, the depth and the orientation that the tags of a TIFF state."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_UM_PER_UNIT = {
    "": 1.0,
    "µm": 1.0,
    "um": 1.0,
    "&#181;m": 1.0,
    "&#xb5;m": 1.0,
    "pm": 1e-6,
    "Å": 1e-4,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25_400.0,
    "inch": 25_400.0,
    "micron": 1.0,
    "microns": 1.0,
    "\\u00B5m": 1.0,
}
# Meaning of the values of the tag Orientation; 1 is upright.
_ORIENTATIONS = {
    2: "mirrored", 3: "turned by 180 degrees", 4: "mirrored and turned by 180 degrees", 5: "mirrored and turned by 90 degrees",
    6: "turned by 90 degrees", 7: "mirrored and turned by 270 degrees", 8: "turned by 270 degrees",
}  # fmt: skip


def stated_scales(page: Any, ome: str, width: int, imagej: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the names of tags and the micrometres per full-resolution pixel that they state, the most explicit first.

    Args:
        page: The first page of the image.
        ome: OME-XML, or "".
        width: Width of the full resolution, which distinguishes its entry in the OME-XML from those of label and macro.
        imagej: Metadata of ImageJ.
    """
    images = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", ome)
    for image in sorted(images, key=lambda one: f'SizeX="{width}"' not in one)[:1]:
        sizes = []
        for axis in "XY":
            size = re.search(rf'\bPhysicalSize{axis}="([\d.eE+-]+)"', image)
            unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]*)"', image)
            if size and (factor := _UM_PER_UNIT.get(unit[1] if unit else "")):
                sizes.append((f"PhysicalSize{axis}", float(size[1]) * factor))
        # Equal sizes in X and Y are one statement.
        yield from sizes[:1] if len({round(value, 6) for _, value in sizes}) == 1 else sizes
    if found := re.search(r"\bMPP\s*=\s*([\d.]+)", page.description or ""):
        yield "MPP of the description", float(found[1])
    tags = page.tags
    unit, resolution = tags.get("ResolutionUnit"), tags.get("XResolution")
    if resolution is None or not resolution.value[0] > 0:
        return
    per_unit = resolution.value[1] / resolution.value[0]
    length = {2: 25_400.0, 3: 10_000.0}.get(int(unit.value)) if unit is not None else None  # an inch, a centimetre
    if (factor := _UM_PER_UNIT.get(str(imagej.get("unit", "none")))) and not ome:
        yield "XResolution in ImageJ's unit", factor * per_unit
    elif length:
        yield "XResolution", length * per_unit


def significant_bits(page: Any, ome: str) -> int | None:
    """Return the number of used bits per sample: OME's SignificantBits, BitsPerSample, or MaxSampleValue; None without one."""
    if found := re.search(r'\bSignificantBits="(\d+)"', ome):
        return int(found[1])
    bits = page.bitspersample
    if isinstance(bits, int) and page.dtype is not None and bits < 8 * page.dtype.itemsize:
        return bits
    largest = page.tags.get("MaxSampleValue")
    if largest is None:
        return None
    value = max(largest.value) if isinstance(largest.value, tuple) else largest.value
    return int(value).bit_length() or None


def check_upright(page: Any, name: str) -> None:
    """Raise a ValueError if the tag Orientation says that the image is not stored upright."""
    tag = page.tags.get("Orientation")
    refuse_turned(0 if tag is None else int(tag.value), name, "tiffset -s 274 1 FILE")


def refuse_turned(orientation: int, name: str, forget: str) -> None:
    """Refuse an image that must be turned for display.

    Some programs turn it and some do not, so whether positions refer to the stored or to the displayed pixels is unknown.

    Args:
        orientation: 1 to 8 as in TIFF and EXIF; 0 and unknown values are taken for upright.
        name: Name of the file.
        forget: A command that removes the tag, so that the stored pixels are displayed.

    Raises:
        ValueError: It is not upright.
    """
    if orientation not in _ORIENTATIONS:
        return
    raise ValueError(
        f"{name} says that it is stored {_ORIENTATIONS[orientation]} (orientation {orientation}), and it is not known whether "
        "positions refer to the stored or to the displayed pixels. Allowed: upright images. If they refer to the stored ones, "
        f"remove the tag ({forget}); else save the image as it is displayed, e.g. "
        "`python -c \"from PIL import Image, ImageOps; ImageOps.exif_transpose(Image.open('IN')).save('OUT.png')\"`."
    )
