"""Whole numbers that are no raw counts; what raw counts may be is tested with the slides."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from delst_hf.data.counts import describe_unlikely_counts


def told(counts):
    return describe_unlikely_counts(sp.csr_matrix(np.asarray(counts).astype(np.int32)))


def forms(raw):
    """What programs make of counts, as whole numbers."""
    totals = np.maximum(raw.sum(axis=1, keepdims=True), 1)
    return {
        "log1p": np.rint(np.log1p(raw)),
        "log1p of 10,000": np.rint(np.log1p(raw / totals * 1e4)),
        "log2 of a million": np.rint(np.log2(1 + raw / totals * 1e6)),
        "10,000": np.rint(raw / totals * 1e4),
    }


def drawn(spots, genes, depth, seed=0):
    """Counts of tissue: genes of all abundances, spots of all depths, and chance."""
    rng = np.random.default_rng(seed)
    shares = rng.gamma(0.5, 1, genes)
    return rng.poisson(depth * rng.gamma(3, 1 / 3, (spots, 1)) * shares / shares.sum())


@pytest.mark.parametrize(("spots", "genes", "depth"), [(2000, 5000, 5000), (200, 5000, 5000), (60, 200, 3000)])
def test_rounded_logarithms_are_told_from_counts(spots, genes, depth):
    raw = drawn(spots, genes, depth)
    assert told(raw) == ""
    found = {name: told(counts) for name, counts in forms(raw).items()}
    assert all(found.values())
    assert "vary less from spot to spot than counts can" in found["log1p"] and "logarithms" in found["log1p"]
    assert "presence and absence" in told(raw > 0)
    assert "normalised to one total" in found["10,000"]


@pytest.mark.parametrize("depth", [30, 300])
def test_logarithms_of_cells_have_no_ones(depth):
    """Of few counts per cell one count is already many per ten thousand, and logarithms of it begin at 3 or 4."""
    raw = drawn(500, 300, depth)
    assert told(raw) == ""
    found = forms(raw)
    assert "rounded logarithms" in told(found["log1p of 10,000"])
    assert "absent from many spots and yet have a count of one in 0.0% of the others" in told(
        found["log2 of a million"]
    )


def test_few_spots_few_genes_and_few_counts_say_nothing():
    assert told(np.full((10, 40), 20)) == told(np.full((30, 5), 20)) == told(np.zeros((30, 40))) == ""
    assert told(np.eye(40)) == ""
    # A panel of few genes that are in every cell has few ones.
    assert told(np.random.default_rng(0).poisson(6.0, (60, 30))) == ""
    # Chance alone is what counts have at least.
    assert told(np.random.default_rng(0).poisson(1.0, (40, 200))) == ""


@pytest.mark.parametrize("table", ["her2st/data/ST-cnts/B4.tsv.gz", "her2st/data/ST-cnts/C2.tsv.gz", "mob/MOB1.tsv.gz"])
def test_real_counts_also_of_few_spots_or_thinned_are_not_suspected(table, shared_dir):
    rng = np.random.default_rng(0)
    raw = pd.read_csv(shared_dir / "data" / table, sep="\t", index_col=0).to_numpy()
    some = raw[rng.choice(len(raw), 20, replace=False)]
    assert told(raw) == told(some) == told(rng.binomial(raw, 0.1)) == told(rng.binomial(raw, 0.02)) == ""
    found = {name: told(counts) for name, counts in forms(raw).items()}
    # Small whole numbers of few counts are not told from counts in every form.
    assert {"log2 of a million", "10,000"} <= {name for name in found if found[name]}
    assert "C2" not in table or all(found.values())
