import itertools
import tracemalloc

import numpy as np
import pytest

from delst_hf.evaluation.retrieval import bidirectional_retrieval, retrieval, retrieval_scores, retrieval_within


def distances(queries, targets, geometry, curvature=None):
    """Pair by pair, straight from the definition: an oracle that shares nothing with the code under test."""
    result = np.zeros((len(queries), len(targets)))
    for (i, q), (j, t) in itertools.product(enumerate(queries), enumerate(targets)):
        if geometry == "cosine":
            result[i, j] = -np.dot(q, t) / np.sqrt(np.dot(q, q) * np.dot(t, t))
        elif geometry == "euclidean":
            result[i, j] = np.sqrt(((q - t) ** 2).sum())
        else:
            inner = np.dot(q, t) - np.sqrt(1 / curvature + np.dot(q, q)) * np.sqrt(1 / curvature + np.dot(t, t))
            result[i, j] = np.arccosh(max(1.0, -curvature * inner)) / np.sqrt(curvature)
    return result


def pairs(num_pairs=60, dim=5, noise=0.7, seed=0):
    generator = np.random.default_rng(seed)
    queries = generator.normal(size=(num_pairs, dim)) * generator.uniform(0.3, 3, size=(num_pairs, 1))
    return queries, queries + noise * generator.normal(size=queries.shape)


@pytest.mark.parametrize("chunk_size", [1, 7, 60, 1000])
@pytest.mark.parametrize(("geometry", "curvature"), [("cosine", None), ("euclidean", None), ("lorentz", 0.4)])
def test_ranks_equal_brute_force(geometry, curvature, chunk_size):
    queries, targets = pairs()
    table = distances(queries, targets, geometry, curvature)
    ranks = np.array([1 + (row < row[i]).sum() for i, row in enumerate(table)])
    assert 1 < ranks.mean() < 20  # neither trivial nor chance
    result = retrieval(queries, targets, similarity=geometry, curvature=curvature, chunk_size=chunk_size)
    for k in (1, 5, 10):
        assert result[f"recall@{k}"] == pytest.approx((ranks <= k).mean())
    assert result["median_rank"] == np.median(ranks) and result["mean_rank"] == pytest.approx(ranks.mean())
    assert result["mrr"] == pytest.approx((1 / ranks).mean()) and result["pool_size"] == 60


def test_the_geometries_order_differently():
    """Otherwise the test above could not tell them apart."""
    queries, targets = pairs()
    options = [("cosine", None), ("euclidean", None), ("lorentz", 0.4), ("lorentz", 4.0)]
    means = {retrieval(queries, targets, similarity=name, curvature=c)["mean_rank"] for name, c in options}
    assert len(means) == 4


def test_planted_pairs_are_found_and_permuted_pairs_are_at_chance():
    queries, targets = pairs(num_pairs=500, noise=0.001)
    assert retrieval(queries, targets, similarity="euclidean")["recall@1"] > 0.99
    order = np.random.default_rng(1).permutation(500)
    control = retrieval(queries, targets[order], similarity="euclidean", ks=(50,))
    assert control["recall@50"] == pytest.approx(0.1, abs=0.04)
    assert control["mean_rank"] == pytest.approx(250.5, abs=20)


@pytest.mark.parametrize("chunk_size", [8, 1024])
@pytest.mark.parametrize("point", [[0.3, -1.7, 0.9], [0.0, 0.0, 0.0], [40.0, 10.0, -3.0]])
@pytest.mark.parametrize(("geometry", "curvature"), [("cosine", None), ("euclidean", None), ("lorentz", 0.7)])
def test_collapsed_targets_come_out_at_chance(geometry, curvature, point, chunk_size):
    queries = np.random.default_rng(0).normal(size=(50, 3))
    targets = np.tile(point, (50, 1))
    result = retrieval(queries, targets, similarity=geometry, curvature=curvature, chunk_size=chunk_size)
    for k in (1, 5, 10):
        assert result[f"recall@{k}"] == pytest.approx(k / 50)
    assert result["median_rank"] == result["mean_rank"] == 25.5
    assert result["mrr"] == pytest.approx(np.mean(1 / np.arange(1, 51)))


def test_targets_that_differ_by_rounding_alone_are_ties():
    """One direction at many lengths: the unit vectors differ in their last bits."""
    generator = np.random.default_rng(0)
    queries, lengths = generator.normal(size=(50, 64)), generator.uniform(0.1, 10, size=(50, 1))
    result = retrieval(queries, lengths * generator.normal(size=64), similarity="cosine")
    assert result["recall@10"] == pytest.approx(0.2) and result["median_rank"] == 25.5


def test_partial_ties_by_hand():
    """Query 0: its target ties with one other, below one that is better. Queries 1 and 2 are clear."""
    scores = np.array([[5.0, 5.0, 9.0], [0.0, 1.0, 0.0], [2.0, 3.0, 1.0]])
    index = np.arange(3.0)[:, None]
    result = retrieval(
        index, index, similarity=lambda q, t: scores[np.ix_(q[:, 0].astype(int), t[:, 0].astype(int))], ks=(1, 2, 3, 9)
    )
    # Ranks: 2 or 3; 1; 3.
    assert result["recall@1"] == pytest.approx(1 / 3) and result["recall@2"] == pytest.approx((0.5 + 1) / 3)
    assert result["recall@3"] == 1.0 and result["recall@9"] == 1.0
    assert result["median_rank"] == 2.5 and result["mean_rank"] == pytest.approx((2.5 + 1 + 3) / 3)
    assert result["mrr"] == pytest.approx(((1 / 2 + 1 / 3) / 2 + 1 + 1 / 3) / 3)


def test_a_function_gives_what_the_named_similarity_gives():
    queries, targets = pairs()
    named = retrieval(queries, targets, similarity="euclidean")
    function = retrieval(queries, targets, similarity=lambda q, t: -distances(q, t, "euclidean"), chunk_size=16)
    assert function == pytest.approx(named)


def test_only_tiles_are_asked_for():
    shapes = []

    def score(queries, targets):
        shapes.append((len(queries), len(targets)))
        return queries @ targets.T

    queries, targets = pairs()
    retrieval(queries, targets, similarity=score, chunk_size=16)
    assert max(max(shape) for shape in shapes) == 16 and sum(a * b for a, b in shapes) == 60 * 60


def test_whole_numbers_as_scores_are_ranked_exactly():
    scores = np.array([[10**6, 10**6 + 1], [0, 1]])
    index = np.arange(2.0)[:, None]
    result = retrieval(
        index, index, similarity=lambda q, t: scores[np.ix_(q[:, 0].astype(int), t[:, 0].astype(int))], ks=(1,)
    )
    assert result["recall@1"] == 0.5


def test_both_directions_and_chance():
    images, genes = pairs(num_pairs=40)
    genes[3] = genes[11] = images[3]  # makes the directions differ
    result = bidirectional_retrieval(images, genes, "lorentz", 0.5, ks=(1, 10, 100))
    forth = retrieval(images, genes, similarity="lorentz", curvature=0.5, ks=(1, 10, 100))
    back = retrieval(genes, images, similarity="lorentz", curvature=0.5, ks=(1, 10, 100))
    assert forth != back
    for key in ("recall@1", "recall@10", "recall@100", "median_rank", "mean_rank", "mrr"):
        assert result[f"image_to_gene_{key}"] == forth[key] and result[f"gene_to_image_{key}"] == back[key]
    assert result["pool_size"] == 40 and result["chance_median_rank"] == 20.5
    assert [result[f"chance_recall@{k}"] for k in (1, 10, 100)] == [1 / 40, 1 / 4, 1.0]
    assert all(type(value) is float for value in result.values())


def test_ranks_are_those_behind_the_scores():
    queries, targets = pairs()
    ranks = retrieval_scores(queries, targets, similarity="lorentz", curvature=0.4)["rank"]
    result = retrieval(queries, targets, similarity="lorentz", curvature=0.4)
    assert ranks.shape == (60,) and ranks.mean() == result["mean_rank"] and (ranks <= 5).mean() == result["recall@5"]


@pytest.mark.parametrize("similarity", ["lorentz", lambda q, t: q @ t.T])
def test_a_sample_of_queries_is_ranked_against_the_whole_pool(similarity):
    queries, targets = pairs(num_pairs=80)
    everyone = retrieval_scores(queries, targets, similarity=similarity, curvature=0.4)["rank"]
    rows = np.sort(np.random.default_rng(3).choice(80, 25, replace=False))
    sample = retrieval(queries, targets, similarity=similarity, curvature=0.4, num_queries=25, seed=3, chunk_size=9)
    assert sample["mean_rank"] == pytest.approx(everyone[rows].mean()) and sample["pool_size"] == 80
    with pytest.raises(ValueError, match="num_queries is 0"):
        retrieval(queries, targets, similarity=similarity, curvature=0.4, num_queries=0)


def test_a_large_pool_needs_no_more_memory_than_its_embeddings_and_a_tile():
    """60,000 pairs: the matrix of scores would be 29 GB. What a million takes follows, as it is linear in the pool."""
    generator = np.random.default_rng(0)
    pool, dim = 60_000, 8
    queries = generator.normal(size=(pool, dim))
    targets = queries + 0.01 * generator.normal(size=(pool, dim))
    tracemalloc.start()
    found = retrieval(queries, targets, similarity="lorentz", curvature=1.0, num_queries=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tile = 1024 * 1024 * 8
    assert peak < 6 * pool * (dim + 1) * 8 + 5 * tile
    assert found["recall@1"] > 0.9 and found["pool_size"] == pool


def test_within_slide_a_model_of_slides_alone_is_at_chance():
    generator = np.random.default_rng(0)
    slides = np.repeat(["s1", "s2", "s3", "s4"], 50)
    centre = np.repeat(10 * np.eye(4), 50, axis=0)
    images, genes = centre + generator.normal(size=(200, 4)), centre + generator.normal(size=(200, 4))
    pool = bidirectional_retrieval(images, genes, "euclidean")
    within = retrieval_within(images, genes, slides, "euclidean")
    assert pool["image_to_gene_recall@10"] > 3 * pool["chance_recall@10"]
    assert within["image_to_gene_recall@10"] == pytest.approx(within["chance_recall@10"], abs=0.08)
    assert within["num_slides"] == 4 and within["pool_size"] == 50 and within["chance_recall@10"] == pytest.approx(0.2)


def test_within_slide_equals_the_mean_over_slides():
    images, genes = pairs(num_pairs=60)
    slides = np.repeat(["a", "b"], [20, 40])
    within = retrieval_within(images, genes, slides, "lorentz", 0.5)
    first = bidirectional_retrieval(images[:20], genes[:20], "lorentz", 0.5)
    second = bidirectional_retrieval(images[20:], genes[20:], "lorentz", 0.5)
    for key in ("image_to_gene_recall@5", "gene_to_image_mrr", "chance_median_rank"):
        assert within[key] == pytest.approx((first[key] + 2 * second[key]) / 3)


def test_errors_name_the_next_step():
    queries, targets = pairs()
    with pytest.raises(ValueError, match="60 queries and 59 targets"):
        retrieval(queries, targets[1:], similarity="cosine")
    with pytest.raises(ValueError, match="5 dimensions and targets 4"):
        retrieval(queries, targets[:, 1:], similarity="cosine")
    with pytest.raises(ValueError, match="'poincare'; allowed are cosine, euclidean, lorentz"):
        retrieval(queries, targets, similarity="poincare")
    for curvature in (None, 0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=f"curvature is {curvature}; 'lorentz' needs a positive"):
            retrieval(queries, targets, similarity="lorentz", curvature=curvature)
    with pytest.raises(ValueError, match="ks are"):
        retrieval(queries, targets, similarity="cosine", ks=(0, 1))
    with pytest.raises(ValueError, match="chunk_size is 0"):
        retrieval(queries, targets, similarity="cosine", chunk_size=0)
    with pytest.raises(ValueError, match="target_embeds holds NaN"):
        retrieval(queries, np.where(targets > 1, np.nan, targets), similarity="cosine")
    with pytest.raises(ValueError, match=r"scores of the shape \(60,\)"):
        retrieval(queries, targets, similarity=lambda q, t: q[:, 0])
