"""What a pathologist reads in a report: genes in counts on one scale, tissue, scale bars, classes, cones."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.contour import QuadContourSet

from delst_hf.data.markers import is_housekeeping
from delst_hf.report.classes import class_scores
from delst_hf.report.figures import report_pictures
from delst_hf.report.maps import MapChoice, chosen_genes, slide_maps
from delst_hf.report.plots import confusion_matrix, poincare_disk, spatial_maps

SPOTS = 8


def make_record(inside: float = 0.0) -> dict:
    """Results of one slide: MT-CO1 is predicted best, RARE is hardly measured, GOOD and FAIR are what one wants to see."""
    counts = {
        "MT-CO1": np.arange(8) + 5,
        "GOOD": np.arange(8) + 1,
        "FAIR": np.arange(8)[::-1] + 1,
        "RARE": np.eye(8)[0] * 9,
    }
    measured = np.log1p(np.stack(list(counts.values()), axis=1).astype(float))
    label = ["a", "a", "a", "b", "b", "b", None, "c"]
    answer = ["a", "a", "b", "b", "b", "b", "a", "a"]
    number = np.linspace(0.5, 1.0, SPOTS)
    spots = {
        "slide": ["S1"] * SPOTS, "x": [float(100 * i) for i in range(SPOTS)], "y": [float(100 * (i % 2)) for i in range(SPOTS)],
        "label": label, "predicted:linear:ours": answer, "n_genes": list(range(SPOTS)),
        "image_radius": number.tolist(), "gene_radius": number.tolist(),
        "image_plane": np.stack([number, number], 1).tolist(), "gene_plane": np.stack([number, -number], 1).tolist(),
    }  # fmt: skip
    spots |= {f"signature:s{i}": number.tolist() for i in range(5)}
    pearson = {"MT-CO1": 0.9, "GOOD": 0.8, "FAIR": 0.6, "RARE": 0.85}
    return {
        "spots": spots,
        "own_arms": ["ours"],
        "protocols": [{"protocol": "hierarchy", "variant": "", "arm": "ours", "metrics": {"in_cone_matched": inside}}],
        "per_gene": [
            {"arm": "ours", "gene": gene, "pearson": score, "low": 0.1, "high": 0.95} for gene, score in pearson.items()
        ],
        # A ridge on log counts may predict less than no count at all.
        "expression": {"genes": list(counts), "measured": measured.tolist(), "predicted": (measured - 1).tolist()},
        "space": {"geometry": "lorentz", "curvature": 1.0, "min_radius": 0.1, "parent": "gene"},
    }


def test_genes_are_drawn_in_counts_and_the_telling_ones_first():
    found = list(chosen_genes(make_record()))
    assert [gene for gene, *_ in found][:2] == ["GOOD", "FAIR"]
    _, measured, predicted, pearson = found[0]
    np.testing.assert_allclose(measured, np.arange(8) + 1, atol=1e-9)
    np.testing.assert_allclose(predicted, np.maximum((np.arange(8) + 2) / np.e - 1, 0), atol=1e-9)
    assert predicted.min() >= 0 and pearson == 0.8


def test_genes_may_be_asked_for_and_unknown_ones_are_refused():
    assert [gene for gene, *_ in chosen_genes(make_record(), ["RARE"])] == ["RARE"]
    with pytest.raises(
        ValueError, match=r"NOPE were not predicted by this evaluation.*Known: FAIR, GOOD, MT-CO1, RARE"
    ):
        list(chosen_genes(make_record(), ["NOPE"]))
    with pytest.raises(ValueError, match="opacity is 0; allowed is above 0 to 1"):
        MapChoice(opacity=0.0)


def test_measured_and_predicted_share_one_scale_and_every_signature_is_drawn():
    figures = {one.name: one.figure for one in slide_maps(make_record(), MapChoice(["GOOD"], 0.4))}
    points = [one for axes in figures["gene-S1"].axes for one in axes.collections if isinstance(one, PathCollection)]
    assert len(points) == 3 and points[0].get_clim() == points[1].get_clim() and points[0].get_clim()[0] == 0
    # The third shows the same prediction on its own scale, as its title says.
    low, high = np.quantile(points[1].get_array(), [0.02, 0.98])
    assert points[2].get_array().tolist() == points[1].get_array().tolist()
    assert points[2].get_clim() == pytest.approx((low, high)) and high > low
    assert "GOOD predicted, on a scale of its own" in [axes.get_title() for axes in figures["gene-S1"].axes]
    assert all(one.get_alpha() == 0.4 for one in points)
    titles = [axes.get_title() for axes in figures["signature-S1"].axes]
    assert {f"s{i}" for i in range(5)} <= set(titles)


def test_bare_tissue_comes_first_and_a_scale_bar_has_a_round_length():
    image = np.full((20, 80, 3), 90, np.uint8)
    spots = [float(100 * i) for i in range(8)], [float(100 * (i % 2)) for i in range(8)]
    figure = spatial_maps(
        *spots, {"gene": list(range(8))}, image=image, extent=(800, 200), mpp=0.5, bare=True, opacity=0.5
    )
    first, second = figure.axes[:2]
    assert first.get_title() == "tissue" and not first.collections
    # The tissue by itself keeps its colours; beneath spots it is pale.
    assert first.images[0].get_array()[0, 0, 0] == 90 and second.images[0].get_array()[0, 0, 0] > 150
    for axes in (first, second):
        bar = axes.lines[-1].get_xdata()
        assert axes.texts[0].get_text() == "100 µm" and bar[1] - bar[0] == pytest.approx(200)


def test_classes_by_hand():
    found = class_scores(make_record())
    assert found.classes == ["a", "b", "c"]
    assert found.confusion.tolist() == [[2, 1, 0], [0, 3, 0], [1, 0, 0]]
    rows = found.table().rows
    assert rows[0] == ("a", "3", "0.667", "0.667", "0.667", "b (1)")
    assert rows[1] == ("b", "3", "0.750", "1.000", "0.857", "-")
    assert rows[2] == ("c", "1", "-", "0.000", "0.000", "a (1)")
    texts = [text.get_text() for text in confusion_matrix(found.confusion, found.classes).axes[0].texts]
    assert texts == ["2", "1", "0", "0", "3", "0", "1", "0", "0"]
    unlabelled = make_record()
    unlabelled["spots"]["label"] = [None] * SPOTS
    assert class_scores(unlabelled) is None


def shades(figure) -> int:
    return sum(isinstance(one, QuadContourSet) for axes in figure.axes for one in axes.collections)


def test_no_cone_is_drawn_where_none_holds_a_spot():
    pictures = {
        inside: {
            picture.name: picture for picture in report_pictures(make_record(inside)) if "poincare" in picture.name
        }
        for inside in (0.0, 0.25)
    }
    empty, held = (pictures[inside]["poincare-level"] for inside in (0.0, 0.25))
    assert shades(empty.figure) == 0 and "no spot lies in the cone of its parent" in empty.caption
    assert shades(held.figure) > 0 and "25% of spots lie in their parent's cone" in held.caption


def test_shading_is_a_choice_of_the_caller():
    plane = np.full((3, 2), 0.5)
    assert shades(poincare_disk(plane, plane, 1.0, level=[1, 2, 3], cone_of=0)) > 0
    assert shades(poincare_disk(plane, plane, 1.0, level=[1, 2, 3], cone_of=0, shaded=False)) == 0


def test_housekeeping_genes_tell_a_pathologist_nothing():
    assert all(map(is_housekeeping, ("MT-ND4", "mt-Co1", "RPS12", "Rplp1", "EEF1A1", "GAPDH", "Tmsb4x", "UBC")))
    assert not any(map(is_housekeeping, ("ERBB2", "COL1A1", "ACTA2", "MT1A", "FTLP3X", "RPE65", "ATP1A1", "PSAPL1")))
