"""What the figures share: colours, markers, axes, spots on tissue and the Poincare disk."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.spatial import cKDTree

from ..model.lorentz import exp_map0, exterior_angle, half_aperture

INK = "#010203"
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLOURMAP = "cividis"
FONT_SIZE = 9.0
_RASTERISE_FROM = 3000
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": FONT_SIZE - 1, "labelcolor": INK}


def single(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    plain_axes(axes)
    return figure, axes


def plain_axes(axes: Axes) -> None:
    axes.tick_params(colors=INK, labelsize=FONT_SIZE - 1, length=3)
    axes.xaxis.label.set(color=INK, fontsize=FONT_SIZE)
    axes.yaxis.label.set(color=INK, fontsize=FONT_SIZE)
    axes.patch.set_visible(False)
    axes.grid(color=PALETTE[7], alpha=0.3, lw=0.5)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(color=INK, linewidth=0.8, visible=name in ("left", "bottom"))


def tissue(
    axes: Axes, places: np.ndarray, image: np.ndarray | None, extent: tuple[float, float] | None, pale: bool = True
) -> None:
    margin = 0.8 * pitch(places)
    (left, top), (right, bottom) = places.min(axis=0) - margin, places.max(axis=0) + margin
    if image is not None and extent is not None:
        shown = 0.55 * image + 0.45 * 255 if pale else image
        axes.imshow(shown.astype(np.uint8), extent=(0, extent[0], extent[1], 0))
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.axis("off")


def scale_bar(axes: Axes, mpp: float) -> None:
    """Draw a bar of a round length, about a fifth of the axes, with its length as text.

    Args:
        axes: Axes of a map whose limits are set.
        mpp: Micrometres per unit of the axes.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    wanted = 0.25 * (right - left) * mpp
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    start, height = left + 0.04 * (right - left), bottom - 0.04 * (bottom - top)
    axes.plot([start, start + length / mpp], [height, height], color="white", lw=5, solid_capstyle="butt", zorder=5)
    axes.plot([start, start + length / mpp], [height, height], color="black", lw=2.5, solid_capstyle="butt", zorder=6)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0}
    middle = start + length / mpp / 2
    axes.text(middle, height - 0.025 * (bottom - top), text, ha="center", va="bottom", color="black",
              fontsize=FONT_SIZE - 2, bbox=box, zorder=6)  # fmt: skip


def pitch(places: np.ndarray, alone: float = 1.0) -> float:
    """Return the median distance to the nearest other spot; `alone` where there is no other, or that distance is 0."""
    if len(places) < 2:
        return alone
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1])) or alone


def spot_size(axes: Axes, places: np.ndarray, inches: float) -> float:
    """Return the area in points squared of a marker that is two thirds of the pitch wide."""
    span = max(abs(np.subtract(*axes.get_xlim())), abs(np.subtract(*axes.get_ylim())))
    return float(np.clip((0.66 * pitch(places) / span * inches * 72) ** 2, 2, 150))


def draw_categories(
    axes: Axes,
    places: np.ndarray,
    values: Sequence[Any],
    categories: Sequence[str],
    inches: float,
    marker_size: float | None = None,
    opacity: float = 1.0,
) -> None:
    size = marker_size or spot_size(axes, places, inches)
    for number, category in enumerate(categories):
        rows = np.array([value == category for value in values])
        colour, marker = category_style(number)
        x, y = places[rows].T
        axes.scatter(
            x, y, c=colour, marker=marker, s=size, lw=0.3, ec="#808080", alpha=opacity, rasterized=many(places)
        )


def draw_numbers(
    figure: Figure,
    axes: Axes,
    places: np.ndarray,
    values: Sequence[Any],
    limits: tuple[float, float] | None,
    unit: str,
    inches: float,
    opacity: float = 1.0,
) -> None:
    numbers = np.array(values, dtype=float)  # None is NaN
    there = np.isfinite(numbers)
    low, high = limits or (np.quantile(numbers[there], [0.02, 0.98]) if there.any() else (0.0, 1.0))
    x, y = places[there].T
    points = axes.scatter(x, y, c=numbers[there], cmap=COLOURMAP, vmin=low, vmax=high, lw=0.3, ec="#808080",
                          s=spot_size(axes, places, inches), alpha=opacity, rasterized=many(places))  # fmt: skip
    colour_bar(figure, points, unit, [axes])


def colour_bar(figure: Figure, points: Any, unit: str, axes: list[Axes]) -> None:
    bar = figure.colorbar(points, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label(unit, color=INK, fontsize=FONT_SIZE - 1)
    bar.ax.tick_params(colors=INK, labelsize=FONT_SIZE - 2)
    bar.outline.set_edgecolor(INK)  # type: ignore[operator]
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    bar.solids.set(alpha=1)  # type: ignore[union-attr]
    bar.solids.set_rasterized(True)  # type: ignore[union-attr]


def category_style(number: int) -> tuple[str, str]:
    """Return colour and marker of a category; beyond the palette, colours repeat with other markers, for 64 different pairs."""
    turn = number // len(PALETTE)
    return PALETTE[number % len(PALETTE)], MARKERS[(number + turn) % len(MARKERS)]


def category_handles(categories: Sequence[str], shown: Sequence[str] | None = None) -> list[Line2D]:
    """Return legend entries of the categories that are shown."""
    handles = []
    for number, category in enumerate(categories):
        if shown is None or category in shown:
            colour, marker = category_style(number)
            handles.append(
                Line2D([], [], ls="", marker=marker, color=colour, mec="#808080", mew=0.4, ms=7, label=category)
            )
    return handles


def to_disk(plane: np.ndarray, curvature: float) -> np.ndarray:
    """Bring tangent vectors (points, 2) into the Poincare disk: the radius becomes tanh(sqrt(c) r / 2)."""
    length = np.linalg.norm(plane, axis=1, keepdims=True)
    return plane / np.maximum(length, 1e-12) * np.tanh(np.sqrt(curvature) * length / 2)


def draw_cone(axes: Axes, apex: np.ndarray, curvature: float, min_radius: float) -> None:
    """Shade the points of the disk that the apex entails."""
    grid = np.linspace(-1, 1, 401)
    x, y = np.meshgrid(grid, grid)
    length = np.hypot(x, y)
    inside = length < 0.999
    radius = 2 * np.arctanh(np.minimum(length, 0.999)) / np.sqrt(curvature)
    tangent = np.stack([x, y], axis=-1) / np.maximum(length, 1e-12)[..., None] * radius[..., None]
    points = exp_map0(torch.from_numpy(tangent), curvature)
    tip = exp_map0(torch.from_numpy(apex), curvature)
    excess = (
        exterior_angle(tip.expand_as(points), points, curvature) - half_aperture(tip, curvature, min_radius)
    ).numpy()
    excess = np.where(inside, excess, np.nan)
    axes.contourf(x, y, excess, levels=[-10, 0], colors=[PALETTE[2]], alpha=0.25)
    axes.contour(x, y, excess, levels=[0], colors=[PALETTE[2]], linewidths=1)


def many(places: np.ndarray) -> bool:
    """Tell whether to draw points as pixels: a vector image of so many is slow to open."""
    return len(places) >= _RASTERISE_FROM
