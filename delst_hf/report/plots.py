"""Figures of an evaluation. Each function takes arrays and returns a matplotlib Figure; nothing is shown or saved.

Categories differ by colour (Okabe and Ito, legible with any colour vision) and by marker, so that they survive a grey print;
continuous values use cividis, which rises evenly in lightness. All text and lines are drawn in `INK`, near black, which
`report` replaces by the reader's own text colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import ArrayLike

from .drawing import (
    COLOURMAP,
    FONT_SIZE,
    INK,
    LEGEND,
    PALETTE,
    category_handles,
    colour_bar,
    draw_categories,
    draw_cone,
    draw_numbers,
    many,
    plain_axes,
    scale_bar,
    single,
    tissue,
    to_disk,
)

_COLUMNS = 3


def spatial_map(x: ArrayLike, y: ArrayLike, values: Sequence[Any], *, title: str = "", **options: Any) -> Figure:
    """Draw values at their positions on the tissue: strings as categories, numbers on a colour scale, None not at all.

    Args:
        x: (spots,) pixels of the slide image, to the right.
        y: (spots,) pixels downwards.
        values: (spots,) labels, domains, or numbers such as a gene, a signature or a radius.
        title: Title above the map.
        **options: As in `spatial_maps`: image, extent, limits, unit, mpp, opacity.

    Examples:
        >>> x, y = np.arange(4.0), np.zeros(4)
        >>> figure = spatial_map(x, y, ["tumour", "tumour", "stroma", None], title="labels")
        >>> figure.savefig("labels.png")
    """
    return spatial_maps(x, y, {title: values}, **options)


def spatial_maps(
    x: ArrayLike,
    y: ArrayLike,
    panels: Mapping[str, Sequence[Any]],
    *,
    image: np.ndarray | None = None,
    extent: tuple[float, float] | None = None,
    limits: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    unit: str = "",
    categories: Sequence[str] | None = None,
    mpp: float | None = None,
    bare: bool = False,
    opacity: float = 1.0,
) -> Figure:
    """Draw several maps of one slide side by side, such as a label and its prediction, or a gene measured and predicted.

    Categories share their colours across panels, and across slides when all `categories` are named. Numbers have a scale of
    their own in each panel unless `limits` are given.

    Args:
        x: (spots,) as in `spatial_map`.
        y: (spots,) alike.
        panels: Title -> values (spots,), three maps to a row, and four in two rows.
        image: (height, width, 3) picture of the slide, drawn under the spots where `extent` is given too.
        extent: Width and height that the picture covers, in units of x and y.
        limits: Ends of the scale of all panels, or panel -> ends.
        unit: Unit of the numbers, at the colour bar.
        categories: All categories, in the order of their colours.
        mpp: Micrometres per unit of x and y, for a scale bar; None for no bar.
        bare: Show the tissue without spots before the maps, where there is an image.
        opacity: Opacity of the spots; 1 hides what is beneath.

    Raises:
        ValueError: If a panel has not one value per spot.

    Examples:
        >>> x, y = np.arange(4.0), np.zeros(4)
        >>> figure = spatial_maps(x, y, {"measured": [0, 1, 2, 3], "predicted": [0, 1, 1, 3]}, unit="log counts")
        >>> figure.savefig("maps.png")
    """
    places = np.column_stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)])
    for name, values in panels.items():
        if len(values) != len(places):
            raise ValueError(f"panel {name!r} has {len(values)} values for {len(places)} spots; pass one per spot.")
    present = sorted({str(v) for values in panels.values() for v in values if isinstance(v, str)})
    categories = present if categories is None else list(categories)
    tissue_first = bare and image is not None
    titles = [*(["tissue"] if tissue_first else []), *panels]
    columns, size = min(len(titles), _COLUMNS), 4.0 if len(titles) < _COLUMNS else 3.4
    columns = 2 if len(titles) == 4 else columns
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(size * columns + (1.5 if present else 0.3), (size + 0.25) * lines), layout="constrained")
    for number, name in enumerate(titles):
        axes = figure.add_subplot(lines, columns, number + 1)
        axes.set_title(name, color=INK, fontsize=FONT_SIZE + 1)
        if tissue_first and number == 0:
            tissue(axes, places, image, extent, pale=False)
        else:
            tissue(axes, places, image, extent)
            values = panels[name]
            if any(isinstance(value, str) for value in values):
                draw_categories(axes, places, values, categories, size, opacity=opacity)
            else:
                ends = limits.get(name) if isinstance(limits, Mapping) else limits
                draw_numbers(figure, axes, places, values, ends, unit, size, opacity)
        if mpp:
            scale_bar(axes, mpp)
    if present:
        figure.legend(handles=category_handles(categories, present), loc="outside right upper", **LEGEND)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw numbers of spots (label, prediction), shaded by their share of the label.

    Args:
        counts: (classes, classes), rows are labels.
        classes: Names in that order.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 0.55 * len(classes) + 1.8
    figure, axes = single((size + 0.8, size))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        # The cells keep their own colours, so the text does not take the reader's.
        colour = "white" if share[row, column] > 0.6 else "#222222"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=FONT_SIZE - 1)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="label")
    axes.grid(visible=False)
    return figure


def poincare_disk(
    image_plane: ArrayLike,
    gene_plane: ArrayLike,
    curvature: float,
    labels: Sequence[str | None] | None = None,
    level: ArrayLike | None = None,
    cone_of: int | None = None,
    min_radius: float = 0.1,
    parent: str = "gene",
    shaded: bool = True,
) -> Figure:
    """Draw both modalities in the Poincare disk: distances to the centre are true, angles are those of a 2-D projection.

    Args:
        image_plane: (spots, 2) tangent coordinates at the origin, projected to a plane, at their full length.
        gene_plane: (spots, 2) alike.
        curvature: The positive curvature parameter c.
        labels: (spots,) labels that colour the points; without them, `level` does.
        level: (spots,) hierarchy key, such as the number of expressed genes.
        cone_of: Draw the entailment cone of this spot's parent point, and join the spot's two points by a line.
        min_radius: Constant K of the cone.
        parent: The modality of the cone's apex, "gene" or "image".
        shaded: Draw that cone; False where no spot lies in its parent's cone, so that no cone looks occupied.

    Examples:
        >>> plane = np.random.default_rng(0).normal(size=(10, 2))
        >>> figure = poincare_disk(plane, plane * 0.5, curvature=1.0)
        >>> figure.savefig("disk.png")
    """
    planes = {"image": np.asarray(image_plane, dtype=float), "gene": np.asarray(gene_plane, dtype=float)}
    disks = {name: to_disk(plane, curvature) for name, plane in planes.items()}
    named = [] if labels is None else list(labels)
    categories = sorted({str(label) for label in named if label is not None})
    figure = Figure(figsize=(10.0, 5.0), layout="constrained")
    colours = np.asarray(level, dtype=float) if level is not None else np.zeros(len(planes["image"]))
    points = None
    for number, (modality, disk) in enumerate(disks.items()):
        axes = figure.add_subplot(1, 2, number + 1)
        if cone_of is not None and shaded:
            draw_cone(axes, planes[parent][cone_of], curvature, min_radius)
        if categories:
            draw_categories(axes, disk, named, categories, 4.0, marker_size=16.0)
        else:
            points = axes.scatter(
                disk[:, 0], disk[:, 1], c=colours, cmap=COLOURMAP, s=16, lw=0.3, ec="#808080", rasterized=many(disk)
            )
        if cone_of is not None:
            pair = np.stack([disks["gene"][cone_of], disks["image"][cone_of]])
            axes.plot(*pair.T, color=INK, lw=1.2)
            axes.plot(*pair[:1].T, marker="s", color=INK, ms=6, mfc="none")
            axes.plot(*pair[1:].T, marker="o", color=INK, ms=6, mfc="none")
        axes.add_patch(Circle((0, 0), 1, fill=False, color=INK, lw=0.8))
        axes.plot(0, 0, "+", color=INK, ms=8)
        axes.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), aspect="equal")
        axes.axis("off")
        axes.set_title({"image": "images", "gene": "genes"}[modality], color=INK, fontsize=FONT_SIZE + 1)
    if categories:
        figure.legend(handles=category_handles(categories), loc="outside right upper", **LEGEND)
    elif points is not None:
        colour_bar(figure, points, "expressed genes", list(figure.axes))
    return figure


def radius_histograms(radii: Mapping[str, ArrayLike]) -> Figure:
    """Draw distances to the origin per modality: low is general, high specific. Hatching tells them apart in grey print.

    Examples:
        >>> radii = np.random.default_rng(0).normal(2, 0.1, size=50)
        >>> figure = radius_histograms({"image": radii, "gene": radii - 0.5})
        >>> figure.savefig("radii.png")
    """
    figure, axes = single((6.0, 3.0))
    values = {name: np.asarray(value, dtype=float) for name, value in radii.items()}
    edges = np.linspace(0, max(value.max() for value in values.values()) * 1.05, 50).tolist()
    for (name, value), colour, hatch in zip(values.items(), (PALETTE[4], PALETTE[0]), ("", "////")):
        axes.hist(value, edges, histtype="stepfilled", alpha=0.45, color=colour)
        axes.hist(
            value, edges, histtype="step", color=colour, lw=1.6, hatch=hatch, label=f"{name} (mean {value.mean():.2f})"
        )
    axes.set(xlabel="distance to the origin", ylabel="spots")
    axes.legend(**LEGEND)
    return figure


def retrieval_gallery(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw query patches, and the spots that were retrieved by their genes.

    Args:
        rows: One per query: "query" (patch, caption) and "retrieved", a list of (patch, caption, is the query's own spot).
            Patches are arrays (height, width, 3).

    Examples:
        >>> patch = np.zeros((32, 32, 3), dtype=np.uint8)
        >>> figure = retrieval_gallery([{"query": (patch, "spot 1"), "retrieved": [(patch, "spot 7", False)]}])
        >>> figure.savefig("gallery.png")
    """
    width = 1 + max(len(row["retrieved"]) for row in rows)
    figure = Figure(figsize=(1.75 * width, 2.2 * len(rows) + 0.2), layout="constrained")
    for number, row in enumerate(rows):
        cells = [(*row["query"], False), *row["retrieved"]]
        for column, (patch, caption, own) in enumerate(cells):
            axes = figure.add_subplot(len(rows), width, number * width + column + 1)
            axes.imshow(patch)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=INK, linewidth=3.0 if own else (1.5 if column == 0 else 0.4))
            axes.set_xlabel(caption, color=INK, fontsize=FONT_SIZE - 2)
            if number == 0:
                axes.set_title("query" if column == 0 else f"rank {column}", color=INK, fontsize=FONT_SIZE)
    return figure


def gene_pearson_plot(rows: Sequence[Mapping[str, Any]], top: int = 25) -> Figure:
    """Draw the Pearson correlation of the best and of all genes, with intervals.

    Args:
        rows: One per gene: gene, pearson, low, high.
        top: Number of the highest genes that are named; the small panel shows all genes in order.

    Examples:
        >>> figure = gene_pearson_plot([{"gene": "ERBB2", "pearson": 0.4, "low": 0.3, "high": 0.5}])
        >>> figure.savefig("genes.png")
    """
    ordered = sorted(rows, key=lambda row: row["pearson"], reverse=True)
    shown = ordered[:top]
    figure = Figure(figsize=(8.5, 0.19 * len(shown) + 1.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    place = np.arange(len(shown))[::-1]
    middle = np.array([row["pearson"] for row in shown])
    error = np.abs(np.array([[row["low"], row["high"]] for row in shown]).T - middle)
    left.errorbar(middle, place, xerr=error, fmt="o", ms=4, color=PALETTE[4], ecolor=PALETTE[4], elinewidth=1)
    left.set_yticks(place, [row["gene"] for row in shown])
    left.set(xlabel="Pearson, 95 % interval", ylim=(-0.8, len(shown) - 0.2))
    low, high = (np.array([row[key] for row in ordered]) for key in ("low", "high"))
    right.fill_between(np.arange(len(ordered)), low, high, color=PALETTE[4], alpha=0.3, lw=0)
    right.plot([row["pearson"] for row in ordered], color=PALETTE[4])
    right.set(xlabel=f"all {len(ordered)} genes in order", ylabel="Pearson")
    for axes in (left, right):
        plain_axes(axes)
        (axes.axvline if axes is left else axes.axhline)(0, color=INK, lw=0.8, ls=":")
    left.grid(axis="y", visible=False)
    return figure


def training_curves(log: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each loss term, curvature with its clamps, radii and the cone fractions over the epochs of a training log.

    Examples:
        >>> figure = training_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}])
        >>> figure.savefig("training.png")
    """
    panels: dict[str, tuple[str, ...]] = {
        "loss": ("loss", "eval_loss"),
        "contrastive loss": ("contrastive_loss", "contrastive_chance"),
        "entailment losses": ("cross_entailment_loss", "intra_entailment_loss"),
        "curvature": ("curvature",),
        "radius": ("image_radius", "gene_radius"),
        "in cone": ("in_cone_matched", "in_cone_mismatched"),
    }
    panels = {title: keys for title, keys in panels.items() if any(key in row for key in keys for row in log)}
    if not panels:
        raise ValueError(f"the log of {len(log)} rows holds no loss; pass `log_history` of a DELST training.")
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.3 * lines), layout="constrained")
    for number, (title, keys) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, number + 1)
        for key, colour, style in zip(keys, (PALETTE[4], PALETTE[5]), ("-", "--")):
            points = [(row["epoch"], row[key]) for row in log if row.get(key) is not None and "epoch" in row]
            if points:
                axes.plot(*zip(*points), style, color=colour, label=key.replace("_", " "), marker=".", ms=4)
        if title == "curvature":
            stopped = [(row["epoch"], row["curvature"]) for row in log if row.get("curvature_at_clamp")]
            if stopped:
                axes.plot(*zip(*stopped), "X", color=PALETTE[5], ms=8, label="at a clamp")
        axes.set_title(title, color=INK, fontsize=FONT_SIZE)
        axes.set_xlabel("epoch")
        plain_axes(axes)
        if len(axes.lines) > 1:
            axes.legend(**LEGEND)
    return figure


def risk_coverage_plot(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], ylabel: str) -> Figure:
    """Draw the mean error of the spots that are trusted, by their share: good confidences are low on the left.

    Args:
        curves: Name -> coverages and risks, as `evaluation.reliability.risk_coverage` returns them; all end at one point.
        ylabel: What the error is.

    Examples:
        >>> figure = risk_coverage_plot({"image radius": ([0.5, 1.0], [0.2, 0.4])}, "error of a spot")
        >>> figure.savefig("reliability.png")
    """
    figure, axes = single((7.0, 3.6))
    styles = ("-", "--", ":", "-.")
    for place, (name, (coverage, risk)) in enumerate(curves.items()):
        colour, style = PALETTE[place % len(PALETTE)], styles[place // len(PALETTE) % len(styles)]
        axes.plot(coverage, risk, style, color=colour, lw=1.8, label=name)
    axes.set(xlabel="share of the spots that are trusted, the surest first", ylabel=ylabel, xlim=(0, 1))
    figure.legend(loc="outside right upper", **LEGEND)
    return figure


def arms_plot(rows: Sequence[Mapping[str, Any]], xlabel: str) -> Figure:
    """Draw arms in one column with their spread, the baselines set apart by open markers.

    Args:
        rows: One per arm: name, value, low and high (or None), baseline (bool).
        xlabel: What the value is, and whether high is good.

    Examples:
        >>> rows = [{"name": "DELST", "value": 0.4}, {"name": "colour statistics", "value": 0.2, "baseline": True}]
        >>> figure = arms_plot(rows, "Pearson")
        >>> figure.savefig("arms.png")
    """
    figure, axes = single((7.0, 0.32 * len(rows) + 0.9))
    for place, row in zip(range(len(rows))[::-1], rows):
        colour = PALETTE[7] if row.get("baseline") else PALETTE[4]
        if row.get("low") is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=2)
        axes.plot(row["value"], place, "s" if row.get("baseline") else "o", ms=7, color=colour,
                  mfc="none" if row.get("baseline") else colour, mew=1.6)  # fmt: skip
    axes.set_yticks(range(len(rows))[::-1], [row["name"] for row in rows])
    axes.set(xlabel=xlabel, ylim=(-0.6, len(rows) - 0.4))
    axes.grid(axis="y", visible=False)
    return figure
