import numpy as np
import pytest
import scipy.sparse as sp

from delst_hf.data.vocabulary import select_vocabulary


def test_ranks_by_variance_of_normalised_expression():
    # Every spot has 100 counts, so normalisation is a constant factor: B swings most, then C, A is constant.
    counts = sp.csr_matrix(np.array([[40, 0, 25, 35], [40, 50, 10, 0], [40, 0, 25, 35], [40, 50, 10, 0]]))
    assert select_vocabulary(counts, ["A", "B", "C", "rest"], num_genes=3, min_spots=0) == ["B", "rest", "C"]


def test_depth_alone_makes_no_gene_variable():
    counts = sp.csr_matrix(np.array([[50, 30, 20], [500, 300, 200], [5, 3, 2], [50, 20, 30]]))
    assert counts.toarray()[:, 0].var() == counts.toarray().var(0).max()
    assert sorted(select_vocabulary(counts, ["a", "b", "c"], num_genes=2)) == ["b", "c"]


def test_rare_genes_are_left_out_and_names_are_unique():
    counts = sp.csr_matrix(np.array([[9, 1, 5, 0], [2, 0, 3, 7], [8, 0, 1, 2], [1, 0, 9, 0]]))
    chosen = select_vocabulary(counts, ["A", "rare", "A", "B"], num_genes=None, min_spots=0.5)
    assert sorted(chosen) == ["A", "B"]


def test_nothing_detected():
    with pytest.raises(ValueError, match="No gene is detected in 50%"):
        select_vocabulary(sp.csr_matrix(np.eye(4)), list("abcd"), min_spots=0.5)
