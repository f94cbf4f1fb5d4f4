import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score
from sklearn.preprocessing import StandardScaler

from delst_hf.evaluation.baselines import permutation_within
from delst_hf.evaluation.linear_probe import (
    PROBE_ALPHAS,
    answers,
    fit_classifier,
    linear_probe,
    macro_f1,
    macro_recall,
    shuffled_macro_f1,
)
from delst_hf.evaluation.preparation import NarrowRows

CLASSES = np.array(["adipose tissue", "connective tissue", "invasive cancer"])


def planted(num_rows=180, distance=6.0, seed=0):
    """Three clouds `distance` apart in ten dimensions, in three slides."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, num_rows)
    features = generator.normal(size=(num_rows, 10))
    features[np.arange(num_rows), labels] += distance
    return features, CLASSES[labels].astype(object), np.repeat(["C2", "C3", "C4"], num_rows // 3)


def probe(features, labels, groups, test="C4", **options):
    train, held = groups != test, groups == test
    return linear_probe(features[train], labels[train], features[held], labels[held], groups[train], **options)


def test_planted_classes_are_found():
    result = probe(*planted())
    assert result["macro_f1_mean"] > 0.97 and result["balanced_accuracy_mean"] > 0.97
    assert result["validation_macro_f1"] > 0.97 and result["alpha"] in PROBE_ALPHAS
    assert result["num_train"] == 120 and result["num_test"] == 60 and result["num_seeds"] == 5
    assert all(type(value) is float and np.isfinite(value) for value in result.values())


def test_shuffled_labels_come_out_at_chance():
    features, labels, groups = planted(num_rows=900)
    result = probe(features, np.random.default_rng(1).permutation(labels), groups)
    assert result["balanced_accuracy_mean"] == pytest.approx(1 / 3, abs=0.08)
    assert result["chance_balanced_accuracy"] == pytest.approx(1 / 3)


def test_scores_equal_those_of_sklearn_for_every_seed():
    features, labels, groups = planted(distance=1.5)
    train, held = groups != "C4", groups == "C4"
    scaler = StandardScaler().fit(features[train])
    truth, scores, recalls = labels[held].astype(str), [], []
    for seed in (3, 4, 5):
        oracle = SGDClassifier(
            loss="log_loss", penalty="l2", alpha=0.001, class_weight="balanced", max_iter=10000, random_state=seed
        ).fit(scaler.transform(features[train]), labels[train].astype(str))
        predicted = oracle.predict(scaler.transform(features[held]))
        scores.append(f1_score(truth, predicted, average="macro"))
        recalls.append(balanced_accuracy_score(truth, predicted))
    result = probe(features, labels, groups, alphas=[0.001], seeds=[3, 4, 5])
    assert result["macro_f1_mean"] == pytest.approx(np.mean(scores)) and 0.3 < np.mean(scores) < 0.97
    assert result["macro_f1_sd"] == pytest.approx(np.std(scores, ddof=1)) and np.std(scores) > 0
    assert result["balanced_accuracy_mean"] == pytest.approx(np.mean(recalls))
    assert result["balanced_accuracy_sd"] == pytest.approx(np.std(recalls, ddof=1))
    assert result["alpha"] == 0.001 and result["alpha_at_edge"] == 0.0


def test_alpha_is_chosen_on_training_slides_by_leaving_one_out():
    features, labels, groups = planted(distance=1.5)
    train = groups != "C4"
    features, labels, groups = features[train], labels[train].astype(str), groups[train]
    alphas, means = [30.0, 1.0, 0.001], []
    for alpha in alphas:
        scores = []
        for group in ("C2", "C3"):
            fit, held = groups != group, groups == group
            scaler = StandardScaler().fit(features[fit])
            for seed in (0, 1):
                oracle = SGDClassifier(
                    loss="log_loss", alpha=alpha, class_weight="balanced", max_iter=10000, random_state=seed
                ).fit(scaler.transform(features[fit]), labels[fit])
                predicted = oracle.predict(scaler.transform(features[held]))
                scores.append(f1_score(labels[held], predicted, average="macro"))
        means.append(np.mean(scores))
    # Test labels that say the opposite must not change the choice.
    result = linear_probe(features, labels, features, labels[::-1], groups, alphas=alphas)
    assert result["alpha"] == alphas[int(np.argmax(means))] and len(set(means)) == 3
    assert result["validation_macro_f1"] == pytest.approx(max(means))


def test_same_seeds_same_result():
    data = planted(distance=1.5)
    assert probe(*data) == probe(*data)


def test_macro_f1_by_hand_ignores_classes_absent_from_the_truth():
    truth, predicted = np.array(["a", "a", "b", "b"]), np.array(["a", "z", "b", "a"])
    # a: precision 1/2, recall 1/2, F1 1/2. b: precision 1, recall 1/2, F1 2/3. z is in no truth.
    assert macro_f1(truth, predicted) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_scores_are_those_of_scikit_learn_bit_by_bit():
    generator = np.random.default_rng(0)
    for _ in range(50):
        rows = generator.integers(1, 40)
        truth = generator.choice(list("abcde")[: generator.integers(1, 6)], rows)
        predicted = generator.choice(list("abcdef"), rows)
        options = {"average": "macro", "zero_division": 0}
        assert macro_f1(truth, predicted) == f1_score(truth, predicted, labels=np.unique(truth), **options)
        assert macro_f1(truth, predicted, everywhere=True) == f1_score(truth, predicted, **options)
        assert macro_recall(truth, predicted) == recall_score(truth, predicted, labels=np.unique(truth), **options)


def test_unseen_test_class_counts_as_zero():
    features, labels, groups = planted()
    train = groups != "C4"
    known = probe(features, labels, groups)
    labels[~train & (labels == CLASSES[2])] = "necrosis"
    result = probe(features, labels, groups)
    assert result["num_unseen_classes"] == 1 and result["num_train_classes"] == 3 and result["num_test_classes"] == 3
    assert result["macro_f1_mean"] == pytest.approx(2 / 3, abs=0.03) and known["num_unseen_classes"] == 0


def test_majority_baseline_by_hand():
    features, labels, groups = planted()
    labels[:] = "a"
    labels[::4] = "b"
    held = labels[groups == "C4"]
    result = probe(features, labels, groups)
    # Always "a": precision is its share, recall 1; "b" scores 0.
    share = np.mean(held == "a")
    assert result["majority_macro_f1"] == pytest.approx((2 * share / (1 + share)) / 2)


def test_the_chance_of_macro_f1_is_its_mean_over_shuffles_of_the_answers():
    generator = np.random.default_rng(0)
    groups = np.repeat(["s", "t"], [30, 50])
    truth = np.where(groups == "s", generator.choice(["a", "b"], 80), generator.choice(["b", "c"], 80))
    answer = np.where(groups == "s", generator.choice(["b", "d"], 80), generator.choice(["a", "b", "c"], 80))

    def shuffled(places):
        order = permutation_within(places, int(generator.integers(2**31)))
        return f1_score(truth, answer[order], labels=np.unique(truth), average="macro", zero_division=0)

    for places in (groups, np.zeros(80, dtype=int)):
        assert shuffled_macro_f1(truth, answer, places) == pytest.approx(
            np.mean([shuffled(places) for _ in range(600)]), abs=0.008
        )


def test_noise_is_at_chance_and_above_the_majority():
    """A balanced classifier of noise answers every class: 0.48 of two classes, where the commonest label alone has 0.33."""
    features, labels, groups = planted()
    labels[:] = np.random.default_rng(1).choice(["a", "b"], len(labels))
    result = probe(np.random.default_rng(0).normal(size=features.shape), labels, groups)
    assert result["macro_f1_mean"] == pytest.approx(result["shuffled_macro_f1"], abs=0.08)
    assert result["shuffled_macro_f1"] > result["majority_macro_f1"] + 0.1


@pytest.mark.parametrize("missing", [None, np.nan, "", "nan", pd.NA])
def test_rows_without_a_label_are_dropped_and_counted(missing):
    features, labels, groups = planted()
    drop = np.zeros(len(labels), dtype=bool)
    drop[[0, 70, 130, 140, 179]] = True
    holed = labels.copy()
    holed[drop] = missing
    result = probe(features, holed, groups, seeds=[0])
    assert result["num_dropped_train"] == 2 and result["num_dropped_test"] == 3
    without = probe(features[~drop], labels[~drop], groups[~drop], seeds=[0])
    assert result["macro_f1_mean"] == without["macro_f1_mean"] and result["macro_f1_sd"] == 0.0


def test_one_slide_falls_back_to_blocks():
    features, labels, _ = planted()
    result = linear_probe(features, labels, features, labels, ["C2"] * len(labels))
    assert result["macro_f1_mean"] > 0.97


def test_errors_name_the_next_step():
    features, labels, groups = planted()
    run = linear_probe
    with pytest.raises(ValueError, match=r"hold 1 class\(es\): \['a'\]; a probe needs at least 2"):
        run(features, ["a"] * 180, features, labels, groups)
    with pytest.raises(ValueError, match="none of the 180 test rows has a label"):
        run(features, labels, features, [None] * 180, groups)
    with pytest.raises(ValueError, match="test_features 9; they must be equal"):
        run(features, labels, features[:, 1:], labels, groups)
    with pytest.raises(ValueError, match="train_labels has 179 entries and train_features 180 rows"):
        run(features, labels[1:], features, labels, groups)
    with pytest.raises(TypeError, match=r"train_labels holds 0 \(int\) in row 0.*int2str"):
        run(features, [0, 1] * 90, features, labels, groups)
    with pytest.raises(ValueError, match="train_groups has 3 entries"):
        run(features, labels, features, labels, ["a", "b", "c"])
    with pytest.raises(ValueError, match="alphas are"):
        run(features, labels, features, labels, groups, alphas=[-1.0])
    with pytest.raises(ValueError, match="seeds are"):
        run(features, labels, features, labels, groups, seeds=[])
    with pytest.raises(ValueError, match="test_features holds NaN"):
        run(features, labels, np.full_like(features, np.inf), labels, groups)
    with pytest.raises(ValueError, match="leaves a single class"):
        run(features, np.where(groups == "C2", "a", "b"), features, labels, np.where(groups == "C2", "C2", "C3"))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_narrow_rows_answer_as_sklearn_does_on_the_rotated_rows(num_classes):
    """The oracle turns the unseen rows too, by the Q of numpy's QR."""
    generator = np.random.default_rng(7)
    fit, unseen = generator.normal(size=(30, 50)), generator.normal(size=(200, 50))
    labels = CLASSES[np.arange(30) % num_classes]
    basis, triangle = np.linalg.qr(fit.T)
    narrow = NarrowRows.of(fit)
    np.testing.assert_array_equal(narrow.rows, triangle.T)
    coefficients = generator.normal(size=(num_classes, 30))
    np.testing.assert_allclose(narrow.widened(coefficients), coefficients @ basis.T, atol=1e-12)
    oracle = SGDClassifier(loss="log_loss", alpha=0.01, class_weight="balanced", max_iter=10000, random_state=2)
    expected = oracle.fit(triangle.T, labels).predict(unseen @ basis)
    classifier = fit_classifier(narrow, labels, alpha=0.01, seed=2)
    np.testing.assert_array_equal(classifier.coef_, oracle.coef_)
    np.testing.assert_array_equal(answers(classifier, narrow, unseen), expected)
