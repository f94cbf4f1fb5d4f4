import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from delst_hf.evaluation.protocols.hest import expression_protocol, hest_alpha, hest_genes


def planted(num_spots=180, columns=12, num_genes=6, noise=1.0, seed=0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(num_spots, columns))
    weights = generator.normal(size=(columns, num_genes))
    targets = features @ weights + noise * generator.normal(size=(num_spots, num_genes)) + 3
    return features, targets, [f"G{i}" for i in range(num_genes)], np.repeat(["P1", "P2", "P3"], num_spots // 3)


def benchmark(features, targets, groups, components):
    """The pipeline of HEST's benchmark.py and trainer.py, step by step."""
    folds = []
    for group in np.unique(groups):
        test = groups == group
        pipe = Pipeline([("scaler", StandardScaler()), ("PCA", PCA(n_components=components, random_state=1))])
        train = pipe.fit_transform(features[~test]).astype(np.float32)
        alpha = 100 / (train.shape[1] * targets.shape[1])
        ridge = Ridge(solver="lsqr", alpha=alpha, random_state=1, fit_intercept=False, max_iter=1000)
        predicted = ridge.fit(train, targets[~test]).predict(pipe.transform(features[test]).astype(np.float32))
        folds.append([pearsonr(targets[test][:, g], predicted[:, g])[0] for g in range(targets.shape[1])])
    return np.array(folds)


def test_hest_equals_the_benchmark():
    features, targets, genes, groups = planted()
    oracle = benchmark(features, targets, groups, 5)
    found = expression_protocol(features, targets, genes, groups, pca=5)
    assert found.metrics["pearson_mean"] == pytest.approx(oracle.mean(axis=1).mean(), abs=1e-6)
    assert found.metrics["pearson_sd"] == pytest.approx(oracle.mean(axis=1).std(), abs=1e-6)
    np.testing.assert_allclose(found.gene_pearson, oracle.mean(axis=0), atol=1e-6)
    assert found.variant == "pca=5" and found.genes == genes
    assert found.metrics["alpha_mean"] == pytest.approx(100 / (5 * 6)) and 0.1 < oracle.mean() < 0.99


def test_the_default_is_the_benchmark_and_d_counts_components():
    generator = np.random.default_rng(0)
    features, groups = generator.normal(size=(620, 300)), np.repeat(["P1", "P2"], 310)
    targets = features[:, :2] + generator.normal(size=(620, 2))
    found = expression_protocol(features, targets, ["A", "B"], groups)
    oracle = benchmark(features, targets, groups, 256)
    assert found.variant == "" and found.metrics["pca_components"] == 256
    assert found.metrics["alpha_mean"] == pytest.approx(hest_alpha(256, 2)) == pytest.approx(100 / 512)
    # 256 of 300 columns: the randomised solver of both draws the same numbers.
    assert found.metrics["pearson_mean"] == pytest.approx(oracle.mean(), abs=1e-4)


def test_permuted_targets_are_at_chance():
    features, targets, genes, groups = planted(600)
    shuffled = np.random.default_rng(1).permutation(targets)
    assert expression_protocol(features, targets, genes, groups).metrics["pearson_mean"] > 0.8
    assert abs(expression_protocol(features, shuffled, genes, groups).metrics["pearson_mean"]) < 0.12


def test_without_pca_the_ridge_sees_the_features():
    features, targets, genes, groups = planted()
    found = expression_protocol(features, targets, genes, groups, pca=None)
    test = groups == "P2"
    ridge = Ridge(solver="lsqr", alpha=100 / (12 * 6), fit_intercept=False, max_iter=1000)
    ridge.fit(features[~test].astype(np.float32), targets[~test])
    expected = ridge.predict(features[test].astype(np.float32))
    np.testing.assert_allclose(found.predicted[test], expected, atol=1e-4)
    assert found.variant == "pca=None" and found.metrics["pca_components"] == 0


def test_cross_validated_alpha_helps_where_there_is_much_noise():
    generator = np.random.default_rng(0)
    hidden, groups = generator.normal(size=(240, 3)), np.repeat(["P1", "P2", "P3"], 80)
    features = hidden @ generator.normal(size=(3, 150)) + generator.normal(size=(240, 150))
    targets = hidden + 2 * generator.normal(size=(240, 3))
    fixed = expression_protocol(features, targets, list("ABC"), groups)
    chosen = expression_protocol(features, targets, list("ABC"), groups, alpha="cv")
    assert chosen.variant == "alpha=cv"
    assert chosen.metrics["alpha_mean"] > 10 * fixed.metrics["alpha_mean"]
    assert chosen.metrics["pearson_mean"] > fixed.metrics["pearson_mean"] + 0.05


def test_pooled_pearson_sees_slides_and_per_slide_does_not():
    """Features that only tell one slide of a patient from the other: all of the pooled correlation, none within slides."""
    generator = np.random.default_rng(0)
    slides, groups = np.repeat(["a1", "a2", "b1", "b2"], 100), np.repeat(["A", "B"], 200)
    second = np.isin(slides, ["a2", "b2"])[:, None]
    features = second * 4.0 + generator.normal(size=(400, 3))
    targets = second * 4.0 + generator.normal(size=(400, 2))
    pooled = expression_protocol(features, targets, ["A", "B"], groups)
    within = expression_protocol(features, targets, ["A", "B"], groups, pcc="per_slide", slides=slides)
    assert pooled.metrics["pearson_mean"] > 0.6 and abs(within.metrics["pearson_mean"]) < 0.15
    assert within.variant == "pcc=per_slide"


def test_only_test_spots_are_scored():
    features, targets, genes, groups = planted()
    test = (groups == "P2") & (np.arange(180) % 2 == 0)
    found = expression_protocol(features, targets, genes, groups, test=test)
    everyone = expression_protocol(features, targets, genes, groups)
    assert found.metrics["num_folds"] == 1 and np.isnan(found.predicted[~test]).all()
    np.testing.assert_allclose(found.predicted[test], everyone.predicted[test], rtol=1e-5)


def test_constant_genes_are_counted_and_not_scored():
    features, targets, genes, groups = planted()
    targets[groups == "P1", 0] = 1.0
    found = expression_protocol(features, targets, genes, groups)
    assert found.metrics["num_constant_genes"] == 1 and np.isfinite(found.metrics["pearson_mean"])


def seurat_dispersion(counts):
    """What scanpy's highly_variable_genes(flavor="seurat") computes, by pandas."""
    table = pd.DataFrame({"mean": counts.mean(0), "var": counts.var(0, ddof=1)})
    table["dispersion"] = np.log(table["var"] / table["mean"])
    groups = table.groupby(pd.cut(np.log1p(table["mean"]), bins=20), observed=True)["dispersion"]
    scaled = (table["dispersion"] - groups.transform("mean")) / groups.transform("std")
    return scaled.where(groups.transform("count") > 1, 1.0)


def test_gene_list_equals_scanpys_seurat_flavour():
    generator = np.random.default_rng(0)
    rate = generator.lognormal(1, 1, 120) * generator.lognormal(0, 0.7, (90, 120))
    counts = generator.poisson(rate).astype(float)
    genes = [f"G{i:03d}" for i in range(120)]
    slides = np.repeat(["a", "b"], 45)
    counts[:45, 7] = 0  # absent from slide a
    genes[9] = "BLANK_1"
    expressed = np.array([((counts[slides == s] > 0).mean(0) >= 0.1) for s in ("a", "b")]).all(0)
    expressed &= np.array(["BLANK" not in gene for gene in genes])
    kept = [i for i in np.argsort(genes) if expressed[i]]
    scaled = seurat_dispersion(counts[:, kept])
    expected = sorted(np.array(genes)[kept][np.argsort(-scaled.to_numpy(), kind="stable")[:30]])
    assert hest_genes(sparse.csr_matrix(counts), slides, genes, 30) == expected
    assert "G007" not in expected and "BLANK_1" not in expected


def test_errors_name_the_next_step():
    features, targets, genes, groups = planted()
    run = expression_protocol
    with pytest.raises(ValueError, match="protocol is 'HEST'; allowed are hest"):
        run(features, targets, genes, groups, protocol="HEST")
    with pytest.raises(ValueError, match="alpha is '1'; allowed are hest, cv"):
        run(features, targets, genes, groups, alpha="1")
    with pytest.raises(ValueError, match="pcc is 'mean'; allowed are pooled, per_slide"):
        run(features, targets, genes, groups, pcc="mean")
    with pytest.raises(ValueError, match="needs slides, which is None"):
        run(features, targets, genes, groups, pcc="per_slide")
    with pytest.raises(ValueError, match="all spots are of the group 'P'"):
        run(features, targets, genes, ["P"] * 180)
    with pytest.raises(ValueError, match="5 genes do not match"):
        run(features, targets, genes[:5], groups)
    with pytest.raises(ValueError, match="3 genes are expressed in 10 %"):
        hest_genes(np.ones((20, 3)), ["a"] * 20, list("ABC"), 4)
