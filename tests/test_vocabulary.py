import numpy as np
import pytest
import scipy.sparse as sp

from delst_hf.data import vocabulary
from delst_hf.data.vocabulary import (
    choose_genes,
    gene_moments,
    morans_i,
    read_gene_list,
    read_vocabulary,
    select_vocabulary,
)


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


# --- on a dataset folder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from delst_hf.data.dataset import write_dataset
    from delst_hf.data.splits import SplitRequest
    from delst_hf.data.toy import make_toy_slide

    slides = (
        make_toy_slide(name, spots_per_side=12, num_genes=40, image_px=400) for name in ("toy_A1", "toy_B1", "toy_C1")
    )
    path = tmp_path_factory.mktemp("vocabulary") / "d"
    write_dataset(slides, path, patch_um=112, patch_px=8, split=SplitRequest("slide", test_slides=("toy_C1",)))
    return path


def test_streamed_choice_equals_the_one_in_memory(folder):
    from delst_hf.data.study import Study

    study = Study.load(str(folder))
    counts = study.counts(study.subset(["toy_A1", "toy_B1"]))
    expected = select_vocabulary(counts, study.gene_names, 15, 0.3)
    assert choose_genes(folder, "hvg", 15, 0.3) == expected
    assert choose_genes(folder, "hvg", 15, 0.3, slides=["toy_A1", "toy_B1"]) == expected
    detected = np.asarray((counts > 0).sum(0)).ravel()
    chosen = [study.gene_names.index(name) for name in choose_genes(folder, "detected", 10)]
    assert detected[chosen].tolist() == sorted(detected, reverse=True)[:10]
    assert choose_genes(folder, "all") == study.gene_names


def test_only_a_row_group_is_read_at_a_time(folder, monkeypatch):
    seen = []
    real = vocabulary._batches
    monkeypatch.setattr(vocabulary, "_batches", lambda *a: (seen.append(batch.shape[0]) or batch for batch in real(*a)))
    choose_genes(folder, "hvg", 5)
    assert sum(seen) == 288 and max(seen) <= 100


def test_morans_i_against_its_definition():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1, (60, 2))
    dense = np.column_stack([xy[:, 0] * (xy[:, 0] > 0.5), rng.poisson(1, 60), np.ones(60)])
    near = np.argsort(((xy[:, None] - xy[None]) ** 2).sum(-1), axis=1)[:, 1:5]
    expected = []
    for x in dense.T[:2]:
        z = x - x.mean()
        expected.append(60 / 240 * sum(z[i] * z[j] for i in range(60) for j in near[i]) / (z**2).sum())
    found = morans_i(sp.csr_matrix(dense), xy, neighbours=4)
    np.testing.assert_allclose(found, [*expected, 0.0], atol=1e-12)
    assert found[0] > 0.5 > abs(found[1])


def test_spatial_genes_are_the_smooth_ones(folder, monkeypatch):
    best = choose_genes(folder, "spatial", 10)
    assert (
        len(set(best) & {f"TOY{i:03d}" for i in range(34)}) == 10
    )  # programmes and markers; the last six are everywhere
    monkeypatch.setattr(vocabulary, "_SPATIAL_SPOTS", 50)  # a neighbourhood of a large slide
    assert len(choose_genes(folder, "spatial", 10)) == 10


def test_listed_genes_and_mistakes(folder):
    assert choose_genes(folder, "list", wanted=["toy007", "NONE", "TOY001"]) == ["TOY007", "TOY001"]
    for options, match in (
        ({"method": "best"}, "method is 'best'. Allowed: 'hvg'"),
        ({"method": "list"}, "needs genes.*--genes"),
        ({"method": "list", "wanted": ["X"]}, "none of the 1 listed genes"),
        ({"slides": ["toy_Z"]}, r"No slide \['toy_Z'\]"),
        ({"slides": ["toy_C1"]}, r"slides \['toy_C1'\] are not in the split train"),
        ({"min_spots": 1.1}, "No gene is detected in 110%"),
    ):
        with pytest.raises(ValueError, match=match):
            choose_genes(folder, **options)
    with pytest.raises(FileNotFoundError, match="no complete dataset folder"):
        choose_genes(folder / "spots")


def test_moments_of_batches_are_those_of_the_whole():
    counts = np.random.default_rng(0).poisson(0.7, (31, 6))
    counts[4] = 0
    values = np.log1p(counts * 1e4 / np.maximum(counts.sum(1, keepdims=True), 1))
    found = gene_moments(sp.csr_matrix(part) for part in (counts[:7], counts[7:30], counts[30:]))
    assert found.spots == 31
    np.testing.assert_array_equal(found.detected, (counts > 0).sum(0))
    np.testing.assert_allclose(found.mean, values.mean(0))
    np.testing.assert_allclose(found.variance, values.var(0))
    names = list("abcdef")
    assert select_vocabulary(found, names, 3, 0.1) == select_vocabulary(sp.csr_matrix(counts), names, 3, 0.1)


def test_a_vocabulary_file_is_read_as_given_and_not_if_held_out_slides_chose_it(folder, tmp_path, caplog, capsys):
    from delst_hf.cli import main
    from delst_hf.data.study import Study

    study, path = Study.load(str(folder)), tmp_path / "genes.txt"
    about = study.gene_names, study.genes["gene_id"]
    assert main(["vocabulary", str(folder), "--num-genes", "7", "--output", str(path)]) in (0, None)
    assert "genes    7: " in capsys.readouterr().out
    expected = choose_genes(folder, "hvg", 7)
    assert read_vocabulary(path, *about, ["toy_A1", "toy_B1"]) == expected == read_gene_list(path)
    with pytest.raises(ValueError, match=r"was chosen on slides \['toy_B1'\].*delst vocabulary DIR --slides toy_A1"):
        read_vocabulary(path, *about, ["toy_A1"])
    path.write_text("TOY005  # mine\nNONE\nNOT\n\ntoy001\nNEITHER\n")
    caplog.clear()
    assert read_vocabulary(path, *about, ["toy_A1"]) == ["TOY005", "TOY001"]
    assert "2 of 5 listed genes (40 %) are in the dataset" in caplog.text
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="names no gene"):
        read_vocabulary(path, *about, ["toy_A1"])
    with pytest.raises(FileNotFoundError, match="no gene list file at"):
        read_vocabulary(tmp_path / "absent.txt", *about, [])
