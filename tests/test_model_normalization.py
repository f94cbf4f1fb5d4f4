"""The one normalisation, against arithmetic by hand."""

import numpy as np
import pytest
from scipy import sparse

from delst_hf import DelstGeneFeatureExtractor
from delst_hf.model.feature_extraction_delst import log_normalize


class TestLogNormalize:
    counts = np.array([[1, 3, 0], [0, 0, 0], [10, 10, 20]])

    def test_by_hand(self):
        expected = np.log1p([[25, 75, 0], [0, 0, 0], [25, 25, 50]])
        result = log_normalize(self.counts, target_sum=100)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=1e-6)

    @pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
    def test_sparse_equals_dense_and_leaves_the_counts(self, kind):
        counts = kind(self.counts)
        result = log_normalize(counts)
        assert sparse.issparse(result) and result.format == "csr" and result.dtype == np.float32
        np.testing.assert_array_equal(result.toarray(), log_normalize(self.counts))
        np.testing.assert_array_equal(counts.toarray(), self.counts)

    def test_duplicate_sparse_entries_are_added_before_the_logarithm(self):
        counts = sparse.csr_matrix((np.array([1, 2, 3]), np.array([0, 0, 1]), np.array([0, 3])), shape=(1, 2))
        np.testing.assert_allclose(log_normalize(counts, 6).toarray(), np.log1p([[3, 3]]), rtol=1e-6)
        assert counts.nnz == 3

    @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
    @pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
    def test_what_is_no_count_is_refused(self, bad, kind):
        with pytest.raises(ValueError, match="raw counts"):
            log_normalize(kind([[1.0, bad]]))

    @pytest.mark.parametrize("target_sum", [0, -1, np.nan])
    def test_target_sum_must_be_positive(self, target_sum):
        with pytest.raises(ValueError, match="target_sum is"):
            log_normalize(self.counts, target_sum)

    def test_one_row_is_not_a_matrix(self):
        with pytest.raises(ValueError, match=r"shape \(3,\)"):
            log_normalize([1, 2, 3])

    def test_totals_of_genes_that_are_not_there(self):
        """A part of the genes is scaled by the counts of all."""
        whole = log_normalize(self.counts, 6)
        for kind in (np.asarray, sparse.csr_matrix):
            part = log_normalize(kind(self.counts[:, 1:]), 6, total_counts=self.counts.sum(1))
            np.testing.assert_array_equal(part.toarray() if sparse.issparse(part) else part, whole[:, 1:])

    def test_the_feature_extractor_takes_it_with_its_own_target_sum(self):
        extractor = DelstGeneFeatureExtractor(["A", "C"], target_sum=50)
        found = extractor(self.counts, ["A", "B", "C"])["gene_values"]
        np.testing.assert_array_equal(found, log_normalize(self.counts, 50)[:, [0, 2]])
