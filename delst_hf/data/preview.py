"""One picture to check how a slide was read: the image, its spots by label, and patches as they are cut."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .slide import Slide

# Okabe and Ito's colours, distinguishable with colour blindness; labels beyond the eighth share the last.
_COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442", "#000000"]
_UNLABELLED = "#00AA00"
_PATCHES = 12
_LONGER_PX = 1200
_TILE = 112
_OUTLINED = {"fill": "#D00000", "stroke_width": 2, "stroke_fill": "#FFFFFF"}  # read on dark tissue and on glass


def draw_preview(slide: Slide, patch_um: float) -> Image.Image:
    """Draw the slide with a circle per spot in the colour of its label, squares where patches are cut, and those patches.

    Args:
        slide: the slide.
        patch_um: side of a patch in micrometres.

    Returns:
        RGB image, about 1200 px and 3 patches wide: the slide on the left, numbered patches on the right.
    """
    base = slide.thumbnail(_LONGER_PX).convert("RGB")
    if max(base.size) < _LONGER_PX:
        ratio = _LONGER_PX / max(base.size)
        base = base.resize((round(base.width * ratio), round(base.height * ratio)))
    scale = base.width / slide.image.shape[1], base.height / slide.image.shape[0]
    labels = [None if label is None or label != label else str(label) for label in slide.spots["label"]]
    names = sorted({label for label in labels if label is not None}, key=lambda name: (-labels.count(name), name))
    colours = {name: _COLOURS[min(i, len(_COLOURS) - 1)] for i, name in enumerate(names)}
    height, width = slide.image.shape[:2]
    x, y = slide.spots["x"].to_numpy(float), slide.spots["y"].to_numpy(float)
    inside = np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))
    shown = np.sort(np.random.default_rng(0).permutation(inside)[:_PATCHES])
    picture = Image.new(
        "RGB", (base.width + 3 * _TILE + 24, max(base.height, 4 * (_TILE + 6) + 20 * (len(names) + 3))), "white"
    )
    picture.paste(base, (0, 0))
    brush = ImageDraw.Draw(picture)
    # A quarter of the distance between spots spread evenly over the image, so that circles do not touch.
    radius = max(2.0, min(12.0, 0.25 * np.sqrt(base.width * base.height / max(len(labels), 1))))
    for i in inside:
        a, b = x[i] * scale[0], y[i] * scale[1]
        label = labels[i]
        brush.ellipse((a - radius, b - radius, a + radius, b + radius), width=2,
                      outline=_UNLABELLED if label is None else colours[label])  # fmt: skip
    _draw_patches(slide, patch_um, shown, picture, brush, base.width, scale)
    _draw_scale_bar(slide, brush, base.height, scale[0])
    _draw_legend(slide, len(inside), names, colours, labels, brush, base.width + 6)
    return picture


def _draw_patches(slide, patch_um, shown, picture, brush, left, scale) -> None:
    cut = slide.cutter(patch_um, _TILE)
    half, font = patch_um / slide.mpp / 2, ImageFont.load_default(16)
    for number, i in enumerate(shown):
        x, y = slide.spots["x"].iloc[i], slide.spots["y"].iloc[i]
        corners = ((x - half) * scale[0], (y - half) * scale[1], (x + half) * scale[0], (y + half) * scale[1])
        brush.rectangle(corners, outline="#FFFFFF", width=3)
        brush.rectangle(corners, outline="#D00000", width=1)
        brush.text((corners[2] + 3, corners[1]), str(number + 1), font=font, **_OUTLINED)
        place = (left + 6 + (number % 3) * (_TILE + 6), 6 + (number // 3) * (_TILE + 6))
        picture.paste(Image.fromarray(cut(int(i))), place)
        brush.text((place[0] + 4, place[1] + 2), str(number + 1), font=font, **_OUTLINED)


def _draw_scale_bar(slide, brush, bottom, scale) -> None:
    """Draw a bar of one millimetre, which makes a wrong scale obvious."""
    length = 1000 / slide.mpp * scale
    brush.rectangle((15, bottom - 22, 15 + length, bottom - 16), fill="#000000", outline="#FFFFFF")
    brush.text((15, bottom - 46), "1 mm", font=ImageFont.load_default(16), **{**_OUTLINED, "fill": "#000000"})


def _draw_legend(slide, num_inside, names, colours, labels, brush, left) -> None:
    top = 4 * (_TILE + 6) + 10
    lines = [(f"{slide.slide_id}: {num_inside} of {len(labels)} spots inside, {slide.mpp:.3f} um/px", "#000000")]
    lines += [(f"{name} ({labels.count(name)})", colours[name]) for name in names]
    if None in labels:
        lines.append((f"no label ({labels.count(None)})", _UNLABELLED))
    for i, (text, colour) in enumerate(lines):
        brush.text((left, top + 20 * i), text[:46], fill=colour, font=ImageFont.load_default(15))
