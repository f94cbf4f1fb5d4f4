import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from delst_hf.evaluation import expression, predicted_genes
from delst_hf.evaluation.preparation import SCALE_FLOOR, FlooredScaler, group_folds, group_names


def planted(num_rows=160, num_columns=20, num_genes=8, noise=0.5, seed=0):
    """Features, expression that depends on them linearly, and four slides."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(num_rows, num_columns))
    targets = features @ generator.normal(size=(num_columns, num_genes)) / np.sqrt(num_columns)
    targets += noise * generator.normal(size=targets.shape)
    return features, targets, np.repeat(["C2", "C3", "C4", "C5"], num_rows // 4)


class TestMostVariableGenes:
    def test_highest_variance_first_and_ties_by_index(self):
        base = np.random.default_rng(0).normal(size=50)
        values = np.stack([base, 3 * base, base, 2 * base, 0 * base], axis=1)
        for kind in (np.asarray, sparse.csr_matrix):
            assert predicted_genes.most_variable_genes(kind(values), 4).tolist() == [1, 3, 0, 2]

    def test_many_ties_keep_the_order_of_the_columns(self):
        values = np.arange(5.0)[:, None] * np.tile([1.0, 3.0, 2.0], 100)
        assert predicted_genes.most_variable_genes(values, 200).tolist() == [*range(1, 300, 3), *range(2, 300, 3)]

    def test_blocks_of_rows_give_the_sums_of_the_whole(self):
        """Bit by bit, so that the choice among nearly equal genes is that of the whole."""
        generator = np.random.default_rng(3)
        matrix = sparse.random(900, 40, 0.3, format="csr", dtype=np.float32, random_state=generator)
        rows = generator.random(900) < 0.7
        for chosen in (None, rows):
            whole = sparse.csr_matrix(matrix if chosen is None else matrix[chosen], dtype=np.float64)
            mean, square = predicted_genes._column_moments(matrix, chosen)
            np.testing.assert_array_equal(mean, np.asarray(whole.mean(axis=0)).reshape(-1))
            np.testing.assert_array_equal(square, np.asarray(whole.multiply(whole).mean(axis=0)).reshape(-1))
            genes = predicted_genes.most_variable_genes(matrix, 40, chosen)
            variance = whole.toarray().var(axis=0)
            assert (np.diff(variance[genes]) <= 1e-12).all()

    def test_each_gene_of_blocks_counts_where_it_was_measured(self):
        generator = np.random.default_rng(5)
        values = generator.normal(size=(90, 12)).astype(np.float32) * generator.uniform(0.5, 2, 12).astype(np.float32)
        measured = generator.random((90, 12)) < 0.6
        measured[:, 7] = False  # by no slide
        blocks = [(values[rows], measured[rows]) for rows in (slice(0, 1), slice(1, 50), slice(50, 90))]
        found = predicted_genes.most_variable_of_blocks(blocks, 12)
        variance = [
            values[measured[:, gene], gene].astype(np.float64).var() if gene != 7 else 0.0 for gene in range(12)
        ]
        assert found.tolist() == np.argsort(variance)[::-1].tolist() and found[-1] == 7
        assert predicted_genes.most_variable_of_blocks(blocks, 3).tolist() == found[:3].tolist()

    @pytest.mark.parametrize("num_genes", [0, 4])
    def test_num_genes_must_fit_the_panel(self, num_genes):
        with pytest.raises(ValueError, match=f"num_genes is {num_genes}; allowed is 1 to 3"):
            predicted_genes.most_variable_genes(np.ones((5, 3)), num_genes)

    def test_nan_is_refused(self):
        for kind in (np.asarray, sparse.csr_matrix):
            with pytest.raises(ValueError, match="NaN or infinity"):
                predicted_genes.most_variable_genes(kind([[1.0, np.nan], [0.0, 2.0]]), 1)


class TestGenePearson:
    def test_equals_scipy(self):
        generator = np.random.default_rng(0)
        measured = generator.normal(size=(40, 6))
        predicted = measured * generator.uniform(-1, 1, 6) + generator.normal(size=(40, 6)) + 100
        expected = [stats.pearsonr(p, m).statistic for p, m in zip(predicted.T, measured.T, strict=True)]
        np.testing.assert_allclose(expression.gene_pearson(predicted, measured), expected, atol=1e-12)

    def test_scale_does_not_matter_however_small(self):
        measured = np.array([[1.0], [2.0], [4.0]])
        for scale in (1e-200, 1.0, 1e150):
            np.testing.assert_allclose(expression.gene_pearson(-scale * measured, measured), [-1.0])

    def test_constant_prediction_is_zero_and_constant_measurement_is_nan(self):
        varying = np.array([0.1, 0.5, 0.2, 0.9])
        constant = np.full(4, 0.1)
        predicted = np.stack([constant, varying, constant, varying], axis=1)
        measured = np.stack([varying, constant, constant, varying], axis=1)
        np.testing.assert_allclose(expression.gene_pearson(predicted, measured), [0.0, np.nan, np.nan, 1.0])

    def test_rounding_noise_on_a_constant_counts_as_constant(self):
        predicted = 0.3 + np.spacing(0.3) * np.array([[0], [1], [0], [1]])
        assert expression.gene_pearson(predicted, np.array([[0.0], [1.0], [0.0], [1.0]])).tolist() == [0.0]

    def test_shapes_must_be_equal(self):
        with pytest.raises(ValueError, match=r"predicted has the shape \(3, 2\) and measured \(3, 1\)"):
            expression.gene_pearson(np.ones((3, 2)), np.ones((3, 1)))


class TestFlooredScaler:
    def test_equals_standard_scaler_when_no_channel_is_dead(self):
        features = np.random.default_rng(0).normal(3, [1, 2, 0.5], size=(30, 3))
        expected = StandardScaler().fit_transform(features)
        np.testing.assert_allclose(FlooredScaler.fit(features).transform(features), expected, atol=1e-12)

    def test_dead_and_nearly_dead_channels_get_the_floor(self):
        generator = np.random.default_rng(0)
        features = generator.normal(size=(50, 5))
        features[:, 3] *= 1e-6
        features[:, 4] = 0.1
        scaler = FlooredScaler.fit(features)
        typical = np.median(features[:, :4].std(axis=0))  # the constant channel has no say
        np.testing.assert_allclose(scaler.scale[3:], SCALE_FLOOR * typical)
        assert np.abs(scaler.transform(np.ones((1, 5)))).max() < 2 / (SCALE_FLOOR * typical)

    def test_constant_features_are_harmless(self):
        scaler = FlooredScaler.fit(np.full((4, 2), 0.1))
        assert (scaler.scale > 0).all() and np.abs(scaler.transform(np.full((4, 2), 0.1))).max() < 1e-12


class TestFolds:
    def test_no_group_is_on_both_sides_and_every_row_is_held_out_once(self):
        groups = np.array(list("abcabcaab"))
        folds = group_folds(groups)
        assert len(folds) == 3
        for fit, held in folds:
            assert not set(groups[fit]) & set(groups[held]) and len(fit) + len(held) == 9
        assert sorted(np.concatenate([held for _, held in folds])) == list(range(9))

    def test_one_group_is_cut_into_five_contiguous_blocks(self):
        folds = group_folds(np.full(23, "a"))
        assert [held.tolist() for _, held in folds] == [block.tolist() for block in np.array_split(np.arange(23), 5)]
        assert all(sorted([*fit, *held]) == list(range(23)) for fit, held in folds)

    def test_too_few_rows_for_blocks(self):
        with pytest.raises(ValueError, match="only training group has 9 rows"):
            group_folds(np.full(9, "a"))

    @pytest.mark.parametrize("missing", [None, np.nan, ""])
    def test_missing_group_is_refused(self, missing):
        with pytest.raises(ValueError, match="train_groups is missing in 1 rows, first in row 1"):
            group_names(["a", missing], 2, "train_groups")

    def test_one_group_per_row(self):
        with pytest.raises(ValueError, match="1 entries for 2 rows"):
            group_names(["a"], 2, "train_groups")


class TestRidge:
    @pytest.mark.parametrize("num_columns", [20, 300])
    def test_primal_and_dual_equal_sklearn(self, num_columns):
        features, targets, _ = planted(num_columns=num_columns)
        scaler = StandardScaler().fit(features[:100])
        alphas = np.array([1.0, 30.0, 1e4])
        decomposition = expression._Decomposition.of(features[:100], features[100:], floor=0.0)
        predictions = decomposition.predict(targets[:100], alphas)
        for alpha, predicted in zip(alphas, predictions, strict=True):
            oracle = Ridge(alpha=alpha).fit(scaler.transform(features[:100]), targets[:100])
            np.testing.assert_allclose(predicted, oracle.predict(scaler.transform(features[100:])), atol=1e-6)

    def test_alpha_is_the_one_a_loop_over_sklearn_would_choose(self):
        features, targets, groups = planted(num_rows=80, num_columns=60, noise=1.5)
        alphas = [1.0, 10.0, 100.0, 1000.0, 10000.0]
        scores = np.zeros((4, len(alphas)))
        for fold, group in enumerate(np.unique(groups)):
            fit, held = groups != group, groups == group
            scaler = StandardScaler().fit(features[fit])  # refitted in every fold
            for column, alpha in enumerate(alphas):
                oracle = Ridge(alpha=alpha).fit(scaler.transform(features[fit]), targets[fit])
                predicted = oracle.predict(scaler.transform(features[held]))
                scores[fold, column] = np.mean(
                    [stats.pearsonr(p, m).statistic for p, m in zip(predicted.T, targets[held].T, strict=True)]
                )
        result = expression.ridge_prediction(features, targets, features, groups, alphas[::-1])
        np.testing.assert_allclose(result.validation_pearson, scores.mean(axis=0), atol=1e-6)
        assert result.alpha == alphas[scores.mean(axis=0).argmax()]
        assert 1.0 < result.alpha < 10000.0  # else the choice would be no choice

    def test_the_larger_alpha_wins_a_tie(self):
        """One column: the correlation does not depend on the penalty."""
        features = np.arange(40.0)[:, None]
        result = expression.ridge_prediction(features, features, features, np.repeat(["a", "b"], 20), [1.0, 2.0, 4.0])
        np.testing.assert_allclose(result.validation_pearson, 1.0)
        assert result.alpha == 4.0


class TestExpressionPrediction:
    def test_planted_answer_is_found(self):
        features, targets, groups = planted(noise=0.01)
        train, test = groups != "C5", groups == "C5"
        result = expression.expression_prediction(
            features[train], targets[train], features[test], targets[test], groups[train]
        )
        assert result["pearson_mean"] > 0.99 and result["pearson_median"] > 0.99 and result["validation_pearson"] > 0.99
        assert result["num_train"] == 120 and result["num_test"] == 40
        assert result["num_genes"] == 8 and result["num_folds"] == 3
        assert result["alpha"] == expression.RIDGE_ALPHAS[0] and result["alpha_at_edge"] == 1.0
        assert all(type(value) is float for value in result.values())

    def test_known_signal_to_noise_gives_the_known_correlation(self):
        """Signal of variance about 1 and noise of variance 1 cannot correlate above sqrt(1/2)."""
        features, targets, groups = planted(num_rows=8000, num_genes=30, noise=1.0)
        train, test = groups != "C5", groups == "C5"
        result = expression.expression_prediction(
            features[train], targets[train], features[test], targets[test], groups[train]
        )
        assert result["pearson_mean"] == pytest.approx(np.sqrt(0.5), abs=0.04)

    def test_shuffled_pairs_come_out_at_chance(self):
        features, targets, groups = planted(num_rows=800, num_genes=30)
        order = np.random.default_rng(1).permutation(len(targets))
        train, test = groups != "C5", groups == "C5"
        control = targets[order]
        result = expression.expression_prediction(
            features[train], control[train], features[test], targets[test], groups[train]
        )
        assert abs(result["pearson_mean"]) < 0.1

    def test_test_rows_have_no_say_in_the_fit(self):
        features, targets, groups = planted()
        more = np.vstack([features[:5], 1e3 * features[5:10]])
        alone = expression.ridge_prediction(features, targets, features[:5], groups)
        beside = expression.ridge_prediction(features, targets, more, groups)
        np.testing.assert_allclose(beside.predicted[:5], alone.predicted, atol=1e-9)
        assert beside.alpha == alone.alpha

    def test_nearly_dead_channel_that_wakes_up_does_not_drown_the_rest(self):
        features, targets, groups = planted(num_rows=400, noise=0.1)
        train, test = groups != "C5", groups == "C5"
        generator = np.random.default_rng(2)
        waking = np.where(test, generator.normal(size=400), 1e-5 * generator.normal(size=400))
        result = expression.expression_prediction(
            np.column_stack([features, waking])[train],
            targets[train],
            np.column_stack([features, waking])[test],
            targets[test],
            groups[train],
        )
        assert result["pearson_mean"] > 0.95

    def test_constant_genes_are_counted_and_do_not_poison_the_mean(self):
        features, targets, groups = planted(noise=0.01)
        train, test = groups != "C5", groups == "C5"
        targets[test, 0] = 0.0  # silent on the test slide
        targets[train, 1] = 0.0  # silent in training: a constant prediction
        result = expression.expression_prediction(
            features[train], targets[train], features[test], targets[test], groups[train]
        )
        assert result["num_constant_genes"] == 1 and result["num_constant_predictions"] == 1
        assert result["pearson_mean"] == pytest.approx(6 / 7, abs=0.01)

    def test_one_slide_falls_back_to_blocks(self):
        features, targets, _ = planted()
        result = expression.expression_prediction(features, targets, features, targets, ["C2"] * len(features))
        assert result["num_folds"] == 5

    def test_errors_name_the_next_step(self):
        features, targets, groups = planted()
        run = expression.expression_prediction
        with pytest.raises(ValueError, match="same training rows"):
            run(features[1:], targets, features, targets, groups[1:])
        with pytest.raises(ValueError, match="both features the same columns"):
            run(features, targets, features[:, 1:], targets, groups)
        with pytest.raises(ValueError, match="alphas are"):
            run(features, targets, features, targets, groups, alphas=[0.0, 1.0])
        with pytest.raises(ValueError, match="Test on more spots"):
            run(features, targets, features, np.ones_like(targets), groups)
        with pytest.raises(ValueError, match="no alpha can be"):
            run(features, np.ones_like(targets), features, targets, groups)
        with pytest.raises(ValueError, match="non-empty matrix"):
            run(features, targets, features[:0], targets[:0], groups)
        for position, name in enumerate(["train_features", "train_targets", "test_features", "test_targets"]):
            arrays = [features.copy(), targets.copy(), features.copy(), targets.copy()]
            arrays[position][7, 3] = np.nan
            with pytest.raises(ValueError, match=f"{name} holds NaN or infinity in 1 of 160 rows, first in row 7"):
                run(*arrays, groups)
