import sys

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from delst_hf.evaluation.evidence import Arm, Evaluation, Spots
from delst_hf.evaluation.findings import Findings
from delst_hf.evaluation.protocols.domains import PROTOCOL, smoothness, spatial_domains, spot_neighbours
from delst_hf.evaluation.suite import run_protocols


def planted(seed=0, side=12):
    """Two slides of a grid, left half 'a', right half 'b', features that follow the half."""
    generator = np.random.default_rng(seed)
    x, y = (grid.ravel().astype(float) for grid in np.meshgrid(np.arange(side), np.arange(side)))
    positions = np.tile(np.column_stack([x, y]), (2, 1))
    slides = np.repeat(["s1", "s2"], side * side)
    labels = np.where(positions[:, 0] < side / 2, "a", "b").astype(object)
    features = np.where(labels == "a", -2.0, 2.0)[:, None] + generator.normal(size=(len(labels), 4)) * 0.7
    return features, positions, slides, labels


def test_planted_domains_are_found_and_are_smooth():
    found, domains = spatial_domains(*planted())
    assert found["ari"] > 0.95 and found["nmi"] > 0.9 and found["num_domains"] == 2
    assert found["smoothness"] > 0.9 and found["smoothness_shuffled"] == pytest.approx(0.5, abs=0.06)
    features, _, _, labels = planted()
    assert found["silhouette"] == pytest.approx(silhouette_score(features, domains))
    assert found["label_silhouette"] == pytest.approx(silhouette_score(features, labels.astype(str)))


def test_shuffled_labels_are_at_chance():
    features, positions, slides, labels = planted()
    found, _ = spatial_domains(features, positions, slides, np.random.default_rng(1).permutation(labels))
    assert found["ari"] == pytest.approx(0, abs=0.03) and found["nmi"] == pytest.approx(0, abs=0.03)
    assert found["label_silhouette"] < 0.05


def test_the_nmi_of_unrelated_domains_is_the_chance_beside_it():
    """Ten random domains of sixty spots share 0.2 of their information with five random labels, and not 0."""
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(60, 4)), generator.choice(list("abcde"), 60).astype(object)
    found, domains = spatial_domains(features, features[:, :2], ["s"] * 60, labels, num_domains=10)
    shuffles = [normalized_mutual_info_score(labels, generator.permutation(domains)) for _ in range(400)]
    assert found["nmi_shuffled"] == pytest.approx(np.mean(shuffles), abs=0.005) and found["nmi_shuffled"] > 0.15
    assert abs(found["nmi"] - found["nmi_shuffled"]) < 2 * np.std(shuffles)
    assert PROTOCOL.chance_of("nmi", {"metrics": found}) == found["nmi_shuffled"]


def test_labels_on_two_of_six_slides_are_not_resampled_by_slide():
    """Six slides are resampled, but two say nothing of how slides vary: their ARI had an interval over six slides."""
    slides, (features, places) = np.repeat(list("uvwxyz"), 20), np.random.default_rng(0).normal(size=(2, 120, 3))
    labels = np.where(slides < "w", np.where(features[:, 0] > 0, "a", "b"), None)
    everyone = np.ones(120, dtype=bool)
    data = Spots(slides, slides, everyone, labels, places[:, :2], sparse.csr_matrix((120, 1)), ["A"])
    findings = Findings(data, [Arm("ours", [features], own=True)], evaluation=Evaluation(resamples=50))
    (row,) = run_protocols(findings, ["domains"]).rows
    units = {name: (interval["unit"], interval["num_units"]) for name, interval in row["intervals"].items()}
    assert units["smoothness"] == units["silhouette"] == ("slides", 6)
    assert units["ari"] == units["nmi"] == units["label_silhouette"] == ("spots", 40)
    assert row["intervals"]["ari"]["low"] < row["metrics"]["ari"] < row["intervals"]["ari"]["high"]


def test_smoothness_by_hand():
    line = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0]])
    neighbours = spot_neighbours(line, np.array(["s"] * 4), k=1)
    assert neighbours[0, 0] == 1 and neighbours[3, 0] == 2
    # 0-1 the same, 3-2 differ; 1 and 2 each have two equally near, either of which is right.
    assert smoothness(np.array([0, 0, 0, 1]), np.array([[1], [0], [1], [2]])) == pytest.approx(3 / 4)


def test_neighbours_never_leave_the_slide_and_spots_in_one_place_are_neighbours():
    positions = np.array([[0.0, 0], [0, 0], [5, 5], [0, 0]])
    neighbours = spot_neighbours(positions, np.array(["s", "s", "s", "t"]), k=2)
    assert set(neighbours[0]) == {1, 2} and set(neighbours[1]) == {0, 2} and (neighbours[3] == -1).all()


def test_without_labels_only_the_shape_is_scored():
    features, positions, slides, labels = planted()
    found, _ = spatial_domains(features, positions, slides, num_domains=3)
    assert "ari" not in found and found["num_domains"] == 3
    unlabelled, _ = spatial_domains(features, positions, slides, [None] * len(labels))
    assert unlabelled["num_domains"] == 7


def test_same_seed_same_domains():
    first, second = (spatial_domains(*planted(), seed=3)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_leiden():
    pytest.importorskip("leidenalg", reason="the optional extra leiden is not installed")
    found, _ = spatial_domains(*planted(), method="leiden", resolution=0.1)
    assert found["ari"] > 0.9


def test_leiden_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "leidenalg", None)
    with pytest.raises(ImportError, match=r"pip install 'delst-hf\[leiden\]'"):
        spatial_domains(*planted(), method="leiden")


def test_errors_name_the_next_step():
    features, positions, slides, _ = planted()
    with pytest.raises(ValueError, match="method is 'louvain'; allowed are kmeans, leiden"):
        spatial_domains(features, positions, slides, method="louvain")
    with pytest.raises(ValueError, match=r"shape \(288, 1\); allowed is \(288, 2\)"):
        spatial_domains(features, positions[:, :1], slides)
    with pytest.raises(ValueError, match="num_domains is 1; allowed is 2 to 287"):
        spatial_domains(features, positions, slides, num_domains=1)


def test_scores_do_not_depend_on_the_scale_of_the_features():
    """Features of 1e-21 had a Davies-Bouldin of 0, the best there is, and were clustered by chance."""
    features, positions, slides, labels = planted()
    expected, _ = spatial_domains(features, positions, slides, labels)
    tiny, _ = spatial_domains(1e-21 * features, positions, slides, labels)
    assert tiny == pytest.approx(expected) and tiny["davies_bouldin"] > 0.1


def test_constant_features_are_refused():
    features, positions, slides, labels = planted()
    with pytest.raises(ValueError, match="features are constant over the 288 spots"):
        spatial_domains(np.full_like(features, 3.7), positions, slides, labels)
