import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from delst_hf.evaluation.protocols.probes import knn_predictions, label_probe, prototype_predictions
from delst_hf.evaluation.protocols.stimage1k4m import stimage1k4m_probe
from delst_hf.model.lorentz import exp_map0


def planted(num_rows=240, distance=3.0, seed=0, dim=6):
    generator = np.random.default_rng(seed)
    numbers = generator.integers(0, 3, num_rows)
    features = generator.normal(size=(num_rows, dim))
    features[np.arange(num_rows), numbers] += distance
    return features, np.array(["a", "b", "c"], dtype=object)[numbers], np.repeat(["s1", "s2", "s3"], num_rows // 3)


def on_hyperboloid(features, curvature):
    return exp_map0(torch.from_numpy(features) / 3, curvature).numpy()


# --- STimage-1K4M ---------------------------------------------------------------------------------------------------


def test_stimage_equals_the_published_procedure():
    """The procedure of the benchmark, written down once more with pandas-free numpy: global seed, set differences sorted."""
    features, labels, _ = planted(distance=1.5)
    scores = {}
    for seed in range(5):
        np.random.seed(seed)
        index = np.arange(240)
        train = np.random.choice(index, int(0.8 * 240), replace=False)
        test = np.random.choice(sorted(set(index) - set(train)), int(0.1 * 240), replace=False)
        validation = sorted(set(index) - set(train) - set(test))
        for alpha in (1.0, 0.1, 0.01, 0.001, 0.0001):
            model = SGDClassifier(
                random_state=1, loss="log_loss", alpha=alpha, penalty="l2", max_iter=10000, class_weight="balanced"
            ).fit(features[train], labels[train].astype(str))
            for name, part in (("test", test), ("validation", validation)):
                f1 = f1_score(labels[part].astype(str), model.predict(features[part]), average="macro")
                scores.setdefault((name, alpha), []).append(f1)
    best = max((0.0001, 0.001, 0.01, 0.1, 1.0), key=lambda alpha: np.mean(scores["validation", alpha]))
    found = stimage1k4m_probe(features, labels)
    assert found["alpha"] == best
    assert found["macro_f1_mean"] == pytest.approx(np.mean(scores["test", best]))
    assert found["macro_f1_sd"] == pytest.approx(np.std(scores["test", best], ddof=1))
    assert 0.4 < found["macro_f1_mean"] < 0.99 and found["num_train"] == 192 and found["num_test"] == 24


def test_stimage_drops_what_the_benchmark_drops():
    features, labels, _ = planted(60)
    found = stimage1k4m_probe(features, np.concatenate([["undetermined", "Exclude", None], labels[3:]]))
    assert found["num_spots"] == 57 and found["num_classes"] == 3


def test_stimage_does_not_depend_on_the_hash_seed():
    script = (
        "import numpy as np; from delst_hf.evaluation.protocols.stimage1k4m import stimage1k4m_probe as p;"
        "x = np.random.default_rng(0).normal(size=(60, 4));"
        "print(p(x, [str(v) for v in np.where(x[:, 0] + x[:, 1] > 0, 'a', 'b')]))"
    )
    features = np.random.default_rng(0).normal(size=(60, 4))
    here = stimage1k4m_probe(features, [str(v) for v in np.where(features[:, 0] + features[:, 1] > 0, "a", "b")])
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": other}
    command = [sys.executable, "-c", script]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


def test_spots_leak_and_slides_do_not():
    """A feature that only names the slide predicts the label by spots, and nothing on an unseen slide."""
    generator = np.random.default_rng(0)
    slide = np.repeat(np.arange(10), 30)
    features = np.eye(10)[slide] * 5 + generator.normal(size=(300, 10)) * 0.1
    labels = np.where(slide % 2 == 0, "a", "b").astype(object)
    by_spot, _ = label_probe(features, labels, protocol="stimage1k4m")
    by_slide, _ = label_probe(features, labels, slide.astype(str), split="slide")
    assert by_spot["macro_f1_mean"] > 0.95
    assert by_slide["balanced_accuracy"] < 0.7


# --- grouped folds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["linear", "knn", "prototype"])
def test_planted_classes_are_found_and_shuffled_ones_are_at_chance(probe):
    features, labels, slides = planted(300, distance=4.0)
    points = on_hyperboloid(features, 0.5)
    options = {"probe": probe, "geometry": "lorentz", "curvature": 0.5}
    found, predicted = label_probe(points, labels, slides, **options)
    assert found["macro_f1"] > 0.93 and found["num_folds"] == 3 and found["num_spots"] == 300
    assert found["macro_f1"] == pytest.approx(f1_score(labels.astype(str), predicted.astype(str), average="macro"))
    control, _ = label_probe(points, np.random.default_rng(1).permutation(labels), slides, **options)
    assert control["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.1)


def test_no_spot_of_the_group_is_fitted():
    """The label of a slide's spots is readable from its own spots alone: a leak would find it."""
    features, labels, slides = planted(90, distance=5.0)
    features[slides == "s3"] *= -1
    _, predicted = label_probe(features, labels, slides, probe="knn", k=5)
    held = slides == "s3"
    expected = KNeighborsClassifier(5).fit(features[~held], labels[~held].astype(str)).predict(features[held])
    np.testing.assert_array_equal(predicted[held].astype(str), expected)


def test_unlabelled_spots_get_no_prediction():
    features, labels, slides = planted(90)
    labels[:5] = None
    found, predicted = label_probe(features, labels, slides, probe="knn")
    assert found["num_spots"] == 85 and all(value is None for value in predicted[:5]) and predicted[5] in "abc"


def test_only_test_spots_are_scored_and_their_group_never_trains():
    features, labels, slides = planted(90, distance=1.0)
    test = np.zeros(90, dtype=bool)
    test[[70, 80, 85]] = True  # all of s3
    found, predicted = label_probe(features, labels, slides, probe="knn", test=test)
    everyone, all_predicted = label_probe(features, labels, slides, probe="knn")
    assert found["num_folds"] == 1 and found["num_spots"] == 3 and everyone["num_spots"] == 90
    np.testing.assert_array_equal(predicted[test], all_predicted[test])
    assert all(value is None for value in predicted[~test])


def test_knn_equals_sklearn():
    features, labels, _ = planted(distance=1.0)
    train, test = features[:160], features[160:]
    expected = KNeighborsClassifier(15).fit(train, labels[:160].astype(str)).predict(test)
    np.testing.assert_array_equal(knn_predictions(train, labels[:160].astype(str), test, 15), expected)


def test_prototypes_use_the_radius():
    """Two classes in one direction at two radii: only distance from the origin tells them apart."""
    generator = np.random.default_rng(0)
    labels = np.repeat(["inner", "outer"], 40)
    length = np.where(labels == "inner", 0.5, 2.0)[:, None]
    direction = np.array([[1.0, 0.0, 0.0]]) + 0.05 * generator.normal(size=(80, 3))
    points = exp_map0(torch.from_numpy(length * direction), 1.0).numpy()
    np.testing.assert_array_equal(prototype_predictions(points, labels, points, 1.0), labels)


def test_prototypes_move_from_the_means_and_stay_finite():
    """Unequal spreads: the bisector of the means is wrong, the optimised one is not."""
    generator = np.random.default_rng(0)
    narrow, wide = generator.normal(0, 0.05, (60, 2)), generator.normal(0, 0.35, (60, 2)) + [1.0, 0]
    points = exp_map0(torch.from_numpy(np.concatenate([narrow, wide])), 1.0).numpy()
    labels = np.repeat(["n", "w"], 60)
    trained = (prototype_predictions(points, labels, points, 1.0) == labels).mean()
    means = (prototype_predictions(points, labels, points, 1.0, steps=0) == labels).mean()
    assert trained > means


def test_errors_name_the_next_step():
    features, labels, slides = planted(90)
    with pytest.raises(ValueError, match="protocol is 'plip'; allowed are grouped, stimage1k4m"):
        label_probe(features, labels, slides, protocol="plip")
    with pytest.raises(ValueError, match="split is 'spot'; allowed are slide, patient"):
        label_probe(features, labels, slides, split="spot")
    with pytest.raises(ValueError, match="probe is 'mlp'; allowed are linear, knn, prototype"):
        label_probe(features, labels, slides, probe="mlp")
    with pytest.raises(ValueError, match="groups is None; split='patient' needs the patient"):
        label_probe(features, labels, split="patient")
    with pytest.raises(ValueError, match="leave no fold"):
        label_probe(features, labels, ["s1"] * 90)
    with pytest.raises(ValueError, match="curvature is None; prototypes need"):
        label_probe(features, labels, slides, probe="prototype")
    with pytest.raises(ValueError, match="k is 0"):
        label_probe(features, labels, slides, probe="knn", k=0)
    with pytest.raises(ValueError, match="geometry is 'poincare'"):
        label_probe(features, labels, slides, probe="knn", geometry="poincare")
    with pytest.raises(ValueError, match="2 labelled spots; the 80/10/10 split"):
        stimage1k4m_probe(features[:2], labels[:2])
