import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsRegressor

from delst_hf.evaluation.expression import gene_pearson
from delst_hf.evaluation.protocols.imputation import impute_by_retrieval
from delst_hf.evaluation.protocols.signatures import known_genes, signature_map, signature_profile
from delst_hf.evaluation.resampled import pearson_statistic, region_auroc
from delst_hf.model.lorentz import exp_map0, pairwise_distance


def test_profile_by_hand():
    profile = signature_profile({"B": 1.0, "C": -5.0, "X": 1.0}, ["A", "B", "C"], [1.0, 2.0, 3.0], [0.1, 0.2, 0.4])
    np.testing.assert_allclose(profile, [1.0, 2.4, 0.0])
    np.testing.assert_allclose(signature_profile(["A"], ["A", "B"], [1.0, 1.0], [1.0, 1.0], strength=3), [4.0, 1.0])


def test_the_lesser_part_of_a_signature_does_not_pass_under_its_name():
    her2 = ["ERBB2", "GRB7", "STARD3", "PGAP3", "MIEN1"]
    with pytest.raises(ValueError, match="signature 'HER2': 2 of 5 genes .*Absent: STARD3, PGAP3, MIEN1"):
        known_genes("signature 'HER2'", {"genes": her2}, ["ERBB2", "GRB7", "KRT8"])
    assert known_genes("HER2", {"genes": her2}, ["ERBB2", "GRB7", "MIEN1"]) == "3 of 5 genes"
    assert known_genes("cell", {"profile": dict.fromkeys(her2, 3.0)}, ["ERBB2"]) == "1 of 5 genes"


def test_map_is_the_negative_distance_of_the_model():
    generator = torch.Generator().manual_seed(0)
    spots = exp_map0(torch.randn(7, 4, generator=generator, dtype=torch.float64), 0.6)
    signatures = exp_map0(torch.randn(2, 4, generator=generator, dtype=torch.float64), 0.6)
    expected = -pairwise_distance(spots, signatures, 0.6).numpy()
    np.testing.assert_allclose(signature_map(signatures.numpy(), spots.numpy(), "lorentz", 0.6), expected, atol=1e-9)
    flat = signature_map(signatures.numpy(), spots.numpy(), "euclidean")
    np.testing.assert_allclose(flat, -torch.cdist(spots, signatures).numpy(), atol=1e-9)
    contrast = signature_map(signatures[:1].numpy(), spots.numpy(), "lorentz", 0.6, signatures[1:].numpy())
    np.testing.assert_allclose(contrast[:, 0], expected[:, 0] - expected[:, 1], atol=1e-9)


def test_planted_signature_is_found_in_its_region_and_a_permuted_map_is_at_chance():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.array(["tumour", "fat", "stroma"], dtype=object), 100)
    centres = {"tumour": [3.0, 0], "fat": [0, 3.0], "stroma": [-3.0, 0]}
    spots = np.array([centres[label] for label in labels]) + generator.normal(size=(300, 2))
    scores = signature_map(np.array([[3.0, 0.0]]), spots, "cosine")[:, 0]
    found = region_auroc(scores, labels)
    assert found["tumour"] > 0.97 and found["stroma"] < 0.2
    control = region_auroc(generator.permutation(scores), labels)
    assert all(value == pytest.approx(0.5, abs=0.08) for value in control.values())


def test_auroc_equals_sklearn_with_ties_and_missing_labels():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, 80).astype(float)
    labels = generator.choice(np.array(["a", "b", "c", None], dtype=object), 80)
    kept = labels != None  # noqa: E711
    found = region_auroc(scores, labels)
    for label in "abc":
        assert found[label] == pytest.approx(roc_auc_score(labels[kept] == label, scores[kept]))
    assert region_auroc(scores, ["a"] * 80) == {}


def test_imputation_equals_sklearns_neighbours_and_finds_what_is_planted():
    generator = np.random.default_rng(0)
    genes, images = generator.normal(size=(200, 3)), generator.normal(size=(50, 3))
    weights = generator.normal(size=(3, 4))
    predicted = impute_by_retrieval(images, genes, genes @ weights, "euclidean", k=7)
    expected = KNeighborsRegressor(7).fit(genes, genes @ weights).predict(images)
    np.testing.assert_allclose(predicted, expected)
    assert gene_pearson(predicted, images @ weights).mean() > 0.8
    control = impute_by_retrieval(images, generator.permutation(genes), genes @ weights, "euclidean", k=7)
    assert abs(gene_pearson(control, images @ weights).mean()) < 0.3


def test_imputation_within_slides_is_the_mean_of_slides():
    generator = np.random.default_rng(0)
    measured = generator.normal(size=(60, 2)) + np.repeat([0.0, 9.0], 30)[:, None]
    predicted = np.repeat([0.0, 9.0], 30)[:, None] + generator.normal(size=(60, 2))
    everyone = np.arange(60)
    assert pearson_statistic(predicted, measured, np.zeros(60))(everyone) > 0.9
    assert abs(pearson_statistic(predicted, measured, np.repeat(["a", "b"], 30))(everyone)) < 0.3


def test_errors_name_the_next_step():
    with pytest.raises(
        ValueError, match="0 of 1 genes are among the 2 that the model reads; half of them is the least. Absent: ENSG1"
    ):
        signature_profile(["ENSG1"], ["A", "B"], [0, 0], [1, 1])
    with pytest.raises(ValueError, match="3 scores and 2 labels"):
        region_auroc([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ValueError, match="k is 0"):
        impute_by_retrieval(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), "cosine", k=0)
    with pytest.raises(ValueError, match="2 target_embeds and 3 rows"):
        impute_by_retrieval(np.ones((2, 2)), np.ones((2, 2)), np.ones((3, 2)), "cosine")
