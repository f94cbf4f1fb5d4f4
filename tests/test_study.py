import numpy as np
import pytest

from delst_hf.data.study import hierarchy_level


def test_tables_belong_together(toy_study):
    assert toy_study.slide_ids == ["toy_A1", "toy_A2", "toy_B1"]
    assert toy_study.patients(["toy_A1", "toy_B1"]) == set(toy_study.slides["patient_id"])
    assert toy_study.spots["spot_index"][:] == list(range(108))
    assert len(toy_study.gene_names) == len(toy_study.genes) == len(toy_study.measured_genes["toy_A1"])


def test_subset_takes_whole_slides_in_folder_order(toy_study):
    spots = toy_study.subset(["toy_B1", "toy_A1"])
    assert list(dict.fromkeys(spots["slide_id"])) == ["toy_A1", "toy_B1"]
    assert len(spots) == 72


def test_unknown_slide_is_named(toy_study):
    with pytest.raises(ValueError, match=r"No slide \['nope'\].*toy_A1"):
        toy_study.subset(["nope"])


def test_counts_equal_the_rows(toy_study):
    spots = toy_study.subset(["toy_A2", "toy_B1"])
    counts = toy_study.counts(spots)
    expected = np.zeros((len(spots), len(toy_study.genes)))
    for i, row in enumerate(spots.remove_columns("image")):
        expected[i, row["gene_indices"]] = row["gene_counts"]
    np.testing.assert_array_equal(counts.toarray(), expected)
    np.testing.assert_array_equal(expected.sum(1), spots["total_counts"][:])
    assert counts.indices.dtype == np.int32 and counts.data.dtype == np.float32
    empty = toy_study.counts(spots.select([]))
    assert empty.shape == (0, len(toy_study.genes))


def test_counts_of_uneven_batches_are_the_counts(toy_study, monkeypatch):
    """Room for all is guessed by the first batches: here it is too little, and then too much."""
    whole = toy_study.counts(toy_study.spots)
    order = np.argsort(np.diff(whole.indptr), kind="stable")
    for rows in (order, order[::-1]):
        batches = [whole[rows[start : start + 7]] for start in range(0, len(rows), 7)]
        monkeypatch.setattr(type(toy_study), "count_batches", lambda self, spots, batches=batches: iter(batches))
        np.testing.assert_array_equal(toy_study.counts(toy_study.spots).toarray(), whole[rows].toarray())


def test_gene_without_symbol_goes_by_its_id(toy_study):
    genes = toy_study.genes.assign(gene_id=[f"ENSG{i}" for i in range(len(toy_study.genes))])
    genes.loc[3, "symbol"] = ""
    names = type(toy_study)(toy_study.spots, genes, toy_study.slides).gene_names
    assert names[3] == "ENSG3" and names[4] == genes["symbol"][4]


@pytest.mark.parametrize("key", ["n_genes", "total_counts"])
def test_level_is_the_column(toy_study, key):
    np.testing.assert_array_equal(hierarchy_level(toy_study.spots, key), toy_study.spots[key][:])


def test_shuffled_level_stays_within_its_slide(toy_study):
    true = hierarchy_level(toy_study.spots)
    shuffled = hierarchy_level(toy_study.spots, "shuffled", seed=1)
    for slide in toy_study.slide_ids:
        rows = toy_study.slide_of_spot == slide
        assert sorted(true[rows]) == sorted(shuffled[rows])
        assert not np.array_equal(true[rows], shuffled[rows])
    np.testing.assert_array_equal(shuffled, hierarchy_level(toy_study.spots, "shuffled", seed=1))
    assert not np.array_equal(shuffled, hierarchy_level(toy_study.spots, "shuffled", seed=2))


def test_unknown_level_key(toy_study):
    with pytest.raises(ValueError, match="level_key='depth' is not known"):
        hierarchy_level(toy_study.spots, "depth")


def test_counts_in_batches_are_the_counts(toy_study):
    spots = toy_study.subset(["toy_A1", "toy_B1"])
    batches = list(toy_study.count_batches(spots, batch_size=50))
    assert [len(batch.indptr) - 1 for batch in batches] == [50, 22]
    expected = np.zeros((72, len(toy_study.genes)))
    for row, spot in enumerate(spots):
        expected[row, spot["gene_indices"]] = spot["gene_counts"]
    np.testing.assert_array_equal(np.concatenate([batch.toarray() for batch in batches]), expected)
    np.testing.assert_array_equal(toy_study.counts(spots).toarray(), expected)
    assert toy_study.counts(spots.select([])).shape == (0, len(toy_study.genes))
