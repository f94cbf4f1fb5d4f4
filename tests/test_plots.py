from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from delst_hf.evaluation.pictures import decode, encode
from delst_hf.report import plots
from delst_hf.report.drawing import COLOURMAP, INK, MARKERS, PALETTE, spot_size, to_disk

GENERATOR = np.random.default_rng(0)
X, Y = (grid.ravel() * 100.0 for grid in np.meshgrid(np.arange(6), np.arange(6)))
LABELS = [["tumour", "stroma", None][i % 3] for i in range(36)]


def texts(figure: Figure) -> str:
    found = [text.get_text() for axes in figure.axes for text in [axes.title, axes.xaxis.label, axes.yaxis.label]]
    found += [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return " | ".join(found + [text.get_text() for legend in legends for text in legend.get_texts()])


def scatters(figure: Figure) -> list[PathCollection]:
    return [item for axes in figure.axes for item in axes.collections if isinstance(item, PathCollection)]


def test_map_draws_every_labelled_spot_in_its_place():
    figure = plots.spatial_map(X, Y, LABELS, title="labels", image=np.zeros((60, 60, 3), np.uint8), extent=(600, 600))
    assert isinstance(figure, Figure) and "labels" in texts(figure) and "tumour" in texts(figure)
    drawn = np.concatenate([item.get_offsets() for item in scatters(figure)])
    expected = [(x, y) for x, y, label in zip(X, Y, LABELS) if label]
    assert sorted(map(tuple, drawn)) == sorted(expected)
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top, "rows of an image run downwards"


# Linear RGB as it is seen without one kind of cone (Machado et al. 2009, severity 1).
COLOUR_VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def cielab(rgb: np.ndarray, vision: str = "all cones") -> np.ndarray:
    """CIELAB of sRGB in [0, 1] (colours, 3), as `vision` sees them."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.array(COLOUR_VISION[vision]).T
    xyz = (
        np.clip(linear, 0, 1)
        @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    )
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", COLOUR_VISION)
def test_colours_stay_apart_for_any_colour_vision(vision):
    colours = cielab(np.array([matplotlib.colors.to_rgb(colour) for colour in PALETTE]), vision)
    # A difference of 2 is just seen; side by side in a map, 8 is clear.
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 8


def test_values_read_the_same_in_grey():
    lightness = cielab(matplotlib.colormaps[COLOURMAP](np.linspace(0, 1, 64))[:, :3])[:, 0]
    assert (np.diff(lightness) > 0).all()


def test_categories_differ_by_marker_and_keep_their_colour_across_panels():
    figure = plots.spatial_maps(X, Y, {"truth": LABELS, "predicted": LABELS[::-1]})
    first, second = figure.axes[:2]
    shapes = {len(item.get_paths()[0].vertices) for item in first.collections}
    assert len(shapes) == 2
    colours = [[tuple(item.get_facecolor()[0]) for item in axes.collections] for axes in (first, second)]
    assert colours[0] == colours[1]
    assert len(set(PALETTE)) == len(PALETTE) == len(MARKERS) == len(set(MARKERS))


def test_numbers_have_a_scale_and_missing_ones_are_not_drawn():
    values = [None if i < 6 else float(i) for i in range(36)]
    figure = plots.spatial_map(X, Y, values, title="gene", unit="log counts")
    assert len(scatters(figure)[0].get_offsets()) == 30
    assert any(axes.get_ylabel() == "log counts" for axes in figure.axes)


def test_marker_is_two_thirds_of_the_pitch():
    x, y = (grid.ravel() * 100.0 for grid in np.meshgrid(np.arange(20), np.arange(20)))
    axes = plots.spatial_map(x, y, list(x)).axes[0]
    span = abs(np.subtract(*axes.get_xlim()))
    assert spot_size(axes, np.column_stack([x, y]), 4.0) == pytest.approx((0.66 * 100 / span * 4 * 72) ** 2)


def test_poincare_disk_keeps_the_distance_to_the_centre():
    plane = np.array([[1.0, 0.0], [0.0, 3.0]])
    disk = to_disk(plane, 0.5)
    np.testing.assert_allclose(2 * np.arctanh(np.linalg.norm(disk, axis=1)) / np.sqrt(0.5), [1.0, 3.0])
    image, gene = GENERATOR.normal(size=(36, 2)), GENERATOR.normal(size=(36, 2)) * 0.5
    figure = plots.poincare_disk(image, gene, 0.5, labels=LABELS, cone_of=3)
    assert "images" in texts(figure) and "genes" in texts(figure) and "stroma" in texts(figure)
    assert len(figure.axes) == 2
    coloured = plots.poincare_disk(image, gene, 0.5, level=np.arange(36), cone_of=3)
    assert any(axes.get_ylabel() == "expressed genes" for axes in coloured.axes)


def test_cone_holds_the_points_behind_its_apex_only():
    """The apex at (0.6, 0) of the disk: what lies behind it is shaded, what lies before it or beside it is not."""
    apex = np.array([[2 * np.arctanh(0.6), 0.0]])
    figure = plots.poincare_disk(apex, apex, 1.0, cone_of=0, level=[1.0], min_radius=0.1)
    shaded = next(item for item in figure.axes[0].collections if not isinstance(item, PathCollection))
    inside = [
        any(path.contains_point(point) for path in shaded.get_paths()) for point in ((0.9, 0), (0.3, 0), (0, 0.9))
    ]
    assert inside == [True, False, False]


def test_histograms_genes_curves_arms_and_gallery():
    assert "mean 1.00" in texts(plots.radius_histograms({"image": np.ones(9), "gene": np.full(9, 0.5)}))
    rows = [{"gene": f"G{i}", "pearson": i / 50, "low": i / 50 - 0.1, "high": i / 50 + 0.1} for i in range(40)]
    found = texts(plots.gene_pearson_plot(rows, top=5))
    assert all(f"G{i}" in found for i in range(35, 40)) and "G34" not in found and "all 40 genes" in found
    log = [
        {"epoch": float(i), "loss": 3.0 - i, "curvature": 1.0 - i / 5, "curvature_at_clamp": float(i == 2)}
        for i in range(3)
    ]
    curves = plots.training_curves(log)
    assert "at a clamp" in texts(curves) and len(curves.axes) == 2
    arms = [{"name": "a", "value": 0.3, "low": 0.2, "high": 0.4}, {"name": "b", "value": 0.1, "baseline": True}]
    assert "macro-F1" in texts(plots.arms_plot(arms, "macro-F1")) and "a" in texts(plots.arms_plot(arms, "macro-F1"))
    patch = np.zeros((8, 8, 3), np.uint8)
    gallery = plots.retrieval_gallery(
        [{"query": (patch, "ERBB2"), "retrieved": [(patch, "KRT8", True), (patch, "MYC", False)]}]
    )
    assert "query" in texts(gallery) and "rank 2" in texts(gallery) and "KRT8" in texts(gallery)


def test_text_is_drawn_in_the_ink_that_the_report_replaces():
    figure = plots.arms_plot([{"name": "a", "value": 0.3}], "x")
    assert figure.axes[0].xaxis.label.get_color() == INK
    assert all(label.get_color() == INK for label in figure.axes[0].get_yticklabels())


def test_images_survive_the_way_through_text():
    from PIL import Image

    image = Image.new("RGB", (300, 100), (200, 30, 90))
    pixels = decode(encode(image, 90))
    assert pixels.shape == (30, 90, 3) and abs(pixels.astype(int) - [200, 30, 90]).max() < 8


def test_errors_name_the_next_step():
    with pytest.raises(ValueError, match="panel 'a' has 1 values for 36 spots"):
        plots.spatial_maps(X, Y, {"a": [1.0]})
    with pytest.raises(ValueError, match="the log of 1 rows holds no loss"):
        plots.training_curves([{"epoch": 1.0}])


def test_risk_and_coverage_are_drawn_as_they_are():
    curves = {"sure": ([0.5, 1.0], [0.1, 0.4]), "chance": ([0.5, 1.0], [0.4, 0.4])}
    figure = plots.risk_coverage_plot(curves, "error")
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert list(lines) == ["sure", "chance"]
    np.testing.assert_array_equal(lines["sure"], [0.1, 0.4])


def test_the_curve_of_a_report_is_the_mean_over_slides():
    """Two slides, one easy: a confidence that only knows the slide is level within each, and so is their mean."""
    from delst_hf.report.figures import _curve

    slides = ["easy"] * 40 + ["hard"] * 40
    errors = np.r_[np.full(40, 0.1), np.full(40, 0.9)]
    at, risk = _curve(errors, np.r_[np.ones(40), np.zeros(40)] + np.tile(np.linspace(0, 0.1, 40), 2), slides)
    np.testing.assert_allclose(risk, 0.5)
    ordered = np.tile(np.linspace(0, 1, 40), 2)
    at, risk = _curve(ordered, -ordered, slides)
    assert risk[0] < 0.05 and risk[-1] == pytest.approx(0.5) and (np.diff(risk) > 0).all()
    assert at[-1] == 1.0
