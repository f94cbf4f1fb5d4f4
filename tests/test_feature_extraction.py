"""DelstGeneFeatureExtractor: counts of any form against the normalisation by hand, and what it refuses."""

import json
import logging
import math

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from transformers import AutoFeatureExtractor

from delst_hf import DelstConfig, DelstGeneFeatureExtractor

VOCABULARY = ["A", "B", "C", "D"]
NAMES = ["C", "X", "A", "B"]  # D is not measured, X not in the vocabulary
COUNTS = np.array([[2, 5, 0, 3], [0, 0, 1, 9], [0, 0, 0, 0]])


def make_extractor(**changes) -> DelstGeneFeatureExtractor:
    return DelstGeneFeatureExtractor(**{"vocabulary": VOCABULARY, "target_sum": 100, **changes})


def normalize_total_log1p(counts: np.ndarray, target_sum: float) -> np.ndarray:
    """scanpy's normalize_total and log1p."""
    totals = counts.sum(1, keepdims=True)
    return np.log1p(counts / np.where(totals == 0, 1, totals) * target_sum)


def test_normalisation_by_hand():
    features = make_extractor()(COUNTS, NAMES)
    log = math.log1p
    # Library sizes 10 and 10, over all genes given, X among them; scaled to 100 counts.
    expected = [[0, log(30), log(20), 0], [log(10), log(90), 0, 0], [0, 0, 0, 0]]
    assert set(features) == {"gene_values", "gene_mask", "level"}
    np.testing.assert_allclose(features["gene_values"], expected, rtol=1e-6)
    assert features["gene_mask"].tolist() == [[True, True, True, False]] * 3
    assert features["level"].tolist() == [3, 2, 0]
    assert features["gene_values"].dtype == features["level"].dtype == np.float32
    assert features["gene_mask"].dtype == bool


def test_normalisation_is_scanpys():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (20, 50))
    names = [f"G{i}" for i in range(50)]
    order = rng.permutation(50)[:30]
    features = DelstGeneFeatureExtractor([names[i] for i in order])(counts, names)
    expected = normalize_total_log1p(counts, 1e4)[:, order]
    np.testing.assert_allclose(features["gene_values"], expected, rtol=1e-6)
    assert features["gene_mask"].all()
    assert features["level"].tolist() == (counts > 0).sum(1).tolist()


def test_missing_is_not_zero():
    features = make_extractor()([[4, 0]], ["A", "B"])
    assert features["gene_values"][0, 1:].tolist() == [0, 0, 0]
    assert features["gene_mask"].tolist() == [[True, True, False, False]]


def test_duplicate_names_are_summed():
    features = make_extractor()([[1, 2, 3, 4]], ["A", "B", "A", "A"])
    single = make_extractor()([[8, 2]], ["A", "B"])
    assert features["gene_values"].tolist() == single["gene_values"].tolist()
    assert features["gene_mask"].tolist() == [[True, True, False, False]]


FORMS = {
    "list": (COUNTS.tolist(), NAMES),
    "array of names": (COUNTS, np.array(NAMES)),
    "index of names": (COUNTS, pd.Index(NAMES)),
    "float": (COUNTS.astype(np.float32), NAMES),
    "uint8": (COUNTS.astype(np.uint8), NAMES),
    "torch": (torch.tensor(COUNTS), NAMES),
    "csr": (sp.csr_matrix(COUNTS), NAMES),
    "csc array": (sp.csc_array(COUNTS), NAMES),
    "DataFrame": (pd.DataFrame(COUNTS, columns=NAMES), None),
    "dict": (dict(zip(NAMES, COUNTS.T, strict=True)), None),
    "list of dicts": ([dict(zip(NAMES, row, strict=True)) for row in COUNTS.tolist()], None),
    "AnnData": (anndata.AnnData(sp.csr_matrix(COUNTS.astype(np.float32)), var=pd.DataFrame(index=NAMES)), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_counts_in_every_form(form):
    expected = make_extractor()(COUNTS, NAMES)
    features = make_extractor()(*FORMS[form])
    for name in expected:
        assert features[name].dtype == expected[name].dtype
        assert features[name].tolist() == expected[name].tolist()


def test_one_spot_without_a_batch_axis():
    expected = {name: value[:1].tolist() for name, value in make_extractor()(COUNTS, NAMES).items()}
    assert {name: value.tolist() for name, value in make_extractor()(COUNTS[0], NAMES).items()} == expected
    as_dict = dict(zip(NAMES, COUNTS[0].tolist(), strict=True))
    for one in (as_dict, [as_dict], pd.Series(as_dict)):
        assert {name: value.tolist() for name, value in make_extractor()(one).items()} == expected


def test_the_names_of_a_dataframe_may_be_overruled():
    table = pd.DataFrame(COUNTS, columns=["c", "x", "a", "b"])
    assert (
        make_extractor()(table, NAMES)["gene_values"].tolist()
        == make_extractor()(COUNTS, NAMES)["gene_values"].tolist()
    )


def test_tensors_on_request():
    features = make_extractor()(COUNTS, NAMES, return_tensors="pt")
    assert {name: value.dtype for name, value in features.items()} == {
        "gene_values": torch.float32,
        "gene_mask": torch.bool,
        "level": torch.float32,
    }
    assert features["gene_values"].shape == (3, 4)


def test_the_input_is_left_alone():
    counts = COUNTS.astype(np.float64)
    make_extractor()(counts, NAMES)
    assert (counts == COUNTS).all()


# --- matching -------------------------------------------------------------------------------------------------------


def test_match_gives_positions():
    assert make_extractor().match(NAMES).tolist() == [2, -1, 0, 1]


def test_no_match_is_an_error():
    with pytest.raises(
        ValueError, match=r"Only 0 of the vocabulary's 4 genes .*'A', 'B', 'C'.*'ENSG1'.*symbol or Ensembl"
    ):
        make_extractor(error_match_rate=0.0)([[1, 2]], ["ENSG1", "ENSG2"])


def test_almost_no_match_is_an_error():
    extractor = DelstGeneFeatureExtractor([f"G{i}" for i in range(100)])
    with pytest.raises(ValueError, match="Only 4 of the vocabulary's 100 genes are among the 6 given names"):
        extractor.match(["G0", "G1", "G2", "G3", "G3", "other"])
    assert extractor.match(["G0", "G1", "G2", "G3", "G4"]).tolist() == [0, 1, 2, 3, 4]


def test_a_low_match_rate_warns(caplog):
    with caplog.at_level(logging.WARNING, logger="delst_hf"):
        make_extractor()([[1, 2, 3]], ["A", "A", "X"])
    assert "1 of the vocabulary's 4 genes (25 %)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="delst_hf"):
        make_extractor()([[1, 2]], ["A", "B"])  # just at the threshold of one half
        make_extractor(min_match_rate=0.2)([[1]], ["A"])
    assert caplog.text == ""


def test_an_extractor_without_a_vocabulary_is_no_use():
    with pytest.raises(ValueError, match="has no vocabulary. Build it with"):
        DelstGeneFeatureExtractor()([[1]], ["A"])


def test_a_vocabulary_with_duplicates_is_refused():
    with pytest.raises(ValueError, match="names 'B' 2 times"):
        DelstGeneFeatureExtractor(["A", "B", "C", "B"])


def test_a_vocabulary_is_shown_in_one_line():
    """print(processor) would otherwise fill screens with names of genes."""
    shown = repr(DelstGeneFeatureExtractor([f"G{number}" for number in range(2000)]))
    assert "2000 genes: G0, G1, G2, ..." in shown and shown.count("\n") < 12


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "names", "message"),
    [
        ([[1, math.nan]], ["A", "B"], "NaN or infinite values. Give raw counts"),
        ([[1, math.inf]], ["A", "B"], "NaN or infinite values"),
        ([[1, -2]], ["A", "B"], r"negative values \(lowest -2\)"),
        ([[1, 0.5]], ["A", "B"], r"fractions: it looks normalised.*adata.layers\['counts'\]"),
        ([[1, 2]], None, "gene_names is missing"),
        ([{"A": 1}, {"B": 1}], None, "The spots of counts name different genes, .* Give the same genes for every spot"),
        (np.ones((2, 0)), [], "There are no counts: no gene is given. A dataset of images alone"),
        ([[1, 2]], "ERBB2", "but there are 1 gene names"),
        ([[1, 2, 3]], ["A", "B"], r"shape \(1, 3\), but there are 2 gene names.$"),
        (
            [[1, 2, 3], [4, 5, 6]],
            ["A", "B"],
            r"shape \(2, 3\), but there are 2 gene names. The matrix looks transposed",
        ),
        (np.ones((2, 2, 2)), ["A", "B"], r"shape \(2, 2, 2\)"),
    ],
)
def test_what_is_refused(counts, names, message):
    with pytest.raises(ValueError, match=message):
        make_extractor()(counts, names)


# --- saving ---------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    extractor = make_extractor(min_match_rate=0.3, error_match_rate=0.01)
    extractor.save_pretrained(tmp_path)
    DelstConfig().save_pretrained(tmp_path)
    expected = extractor(COUNTS, NAMES)
    for loaded in (DelstGeneFeatureExtractor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert type(loaded) is DelstGeneFeatureExtractor
        assert loaded.vocabulary == VOCABULARY
        assert (loaded.target_sum, loaded.min_match_rate, loaded.error_match_rate) == (100, 0.3, 0.01)
        assert {k: v.tolist() for k, v in loaded(COUNTS, NAMES).items()} == {k: v.tolist() for k, v in expected.items()}
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["vocabulary"] == VOCABULARY
