"""What the page shows: maps over the tissue, the legend of a map, the nearest spots, the position in the Poincare disk."""

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgba_array
from PIL import Image, ImageDraw

from ..evaluation.illustrations import leading_plane
from ..evaluation.tables import Table
from ..markup import as_html, element
from ..prediction.predictor import Predictor
from ..prediction.reference import Reference
from ..report.drawing import category_style
from ..report.maps import Picture
from ..report.page import figure_svg
from ..report.plots import poincare_disk
from .slide import OpenSlide

_OPACITY = 0.75
_MANY = 1500


def number_map(
    slide: OpenSlide, values: np.ndarray, colours: str = "viridis", unit: str = ""
) -> tuple[np.ndarray, str]:
    """Draw numbers over the tissue.

    Args:
        slide: The slide.
        values: (patches,) numbers; patches whose number is not finite are not painted.
        colours: Name of a colour map of matplotlib.
        unit: What the numbers are, for the legend.

    Returns:
        The picture (height, width, 3), and its legend as HTML.
    """
    there = np.isfinite(values)
    low, high = np.quantile(values[there], [0.02, 0.98]) if there.any() else (0.0, 1.0)
    shade = colormaps[colours](np.clip((values - low) / max(high - low, 1e-9), 0, 1))[:, :3]
    stops = ", ".join(map(to_hex, colormaps[colours](np.linspace(0, 1, 9))))
    bar = element("i", style=f"background:linear-gradient(90deg, {stops})")
    ends = element("span", f"{low:.2f}"), bar, element("span", f"{high:.2f} {unit}".strip())
    legend = element("div", *ends, class_="delst-legend")
    return _painted(slide, shade, there), legend


def class_map(slide: OpenSlide) -> tuple[np.ndarray, str]:
    """Draw the likeliest class of every patch, as `number_map`."""
    best = slide.values["probabilities"].argmax(axis=1)
    palette = to_rgba_array([category_style(number)[0] for number in range(len(slide.classes))])[:, :3]
    names = (
        element("span", element("b", style=f"background:{to_hex(colour)}"), name)
        for name, colour in zip(slide.classes, palette, strict=True)
    )
    return _painted(slide, palette[best], np.ones(len(best), bool)), element("div", *names, class_="delst-legend")


def _painted(slide: OpenSlide, colours: np.ndarray, there: np.ndarray) -> np.ndarray:
    picture = slide.picture.astype(np.float32)
    half = slide.side / 2
    for (x, y), colour in zip(slide.places[there], colours[there], strict=True):
        rows = slice(max(round(y - half), 0), max(round(y + half), 0))
        columns = slice(max(round(x - half), 0), max(round(x + half), 0))
        area = picture[rows, columns]
        # The tissue shows through in grey.
        grey = area.mean(axis=2, keepdims=True)
        picture[rows, columns] = (1 - _OPACITY) * grey + _OPACITY * 255 * colour
    return picture.round().astype(np.uint8)


def marked(picture: np.ndarray, slide: OpenSlide, number: int) -> np.ndarray:
    """Return the picture with a frame around one patch."""
    image, half = Image.fromarray(picture), slide.side / 2
    x, y = slide.places[number]
    left, top = max(round(x - half), 0), max(round(y - half), 0)
    right, bottom = round(x + half), round(y + half)
    for colour, grow in (("white", 2), ("black", 0)):
        corners = max(left - grow, 0), max(top - grow, 0), right + grow - 1, bottom + grow - 1
        ImageDraw.Draw(image).rectangle(corners, outline=colour, width=2)
    return np.asarray(image)


def spots_table(table: pd.DataFrame) -> str:
    """Return the nearest spots of the reference as an HTML table."""
    labels = (label if isinstance(label, str) else "" for label in table["label"])
    distances = (f"{distance:.3f}" for distance in table["distance"])
    rows = zip(table["slide_id"], table["barcode"], labels, distances, table["top_genes"], strict=True)
    return Table("", ("slide", "spot", "label", "distance", "genes that stand out"), tuple(rows)).as_html()


def patch_facts(slide: OpenSlide, number: int) -> str:
    """Return what is known of a patch as lines of HTML."""
    x, y = slide.source.rows[["x", "y"]].iloc[number]
    facts = [f"x {x:.0f}, y {y:.0f} px"]
    if np.isfinite(slide.values["radius"][number]):
        facts.append(f"radius {slide.values['radius'][number]:.2f}")
    if slide.distance is not None:
        facts.append(f"distance to the reference {slide.distance[number]:.3f}")
    if "probabilities" in slide.values:
        shares = slide.values["probabilities"][number]
        facts.append(f"{slide.classes[int(shares.argmax())]} ({shares.max():.0%})")
    return "<br>".join(map(as_html, facts))


def disk(slide: OpenSlide, number: int, predictor: Predictor, reference: Reference | None) -> str:
    """Draw a patch in the Poincare disk, beside spots of the reference, with the cone of its parent, or say why not.

    The patch has no counts of its own: the genes of its nearest spot stand in for them.
    """
    config = predictor.model.config
    if config.geometry != "lorentz":
        return f"<p>The geometry of this model is {config.geometry}: there is no disk.</p>"
    if reference is None:
        return "<p>The disk is drawn with the spots of a reference. Make one: delst reference MODEL DATASET.</p>"
    tangent = slide.values["tangent"][number : number + 1]
    nearest = reference.nearest(predictor, tangent, 1, "image")[0][0, 0]
    some = np.unique(np.linspace(0, len(reference.spots) - 1, _MANY).astype(int))
    image = np.concatenate([tangent, _tangents(predictor, reference.image[some])])
    gene = _tangents(predictor, reference.gene[[nearest, *some]])
    planes = leading_plane(image, gene)
    labels = [None, *(name if isinstance(name, str) else None for name in reference.spots["label"].iloc[some])]
    figure = poincare_disk(
        *planes, predictor.model.curvature.item(), labels=labels, cone_of=0, min_radius=config.min_radius,
        parent=config.cross_parent,
    )  # fmt: skip
    parent = "genes" if config.cross_parent == "gene" else "image"
    told = (
        "Images and genes in the Poincare disk: the centre is general, the rim specific. The circle is this patch, the square "
        f"the genes of its nearest spot; shaded is the cone of its parent, the {parent}."
    )
    picture = figure_svg(Picture("poincare", "Poincare disk", told, figure))
    return element("figure", picture, element("figcaption", told), class_="delst-disk")


def _tangents(predictor: Predictor, embeds: np.ndarray) -> np.ndarray:
    return predictor.in_space(torch.from_numpy(embeds).to(predictor.model.device))["tangent"].detach().cpu().numpy()
