import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from delst_hf.data import vocabulary
from delst_hf.data.markers import MARKERS, absent_markers
from delst_hf.data.study import Study
from delst_hf.data.vocabulary import choose_genes, gene_moments, morans_i, residual_variance, training_slides
from delst_hf.data.vocabulary_file import gene_names_of, read_gene_list, read_vocabulary, write_vocabulary


def residuals_by_hand(counts, theta=100.0):
    """Variance of Pearson residuals, entry by entry (Lause, Berens and Kobak, 2021)."""
    spots, genes = counts.shape
    found = np.zeros(counts.shape)
    for i in range(spots):
        for j in range(genes):
            mean = counts[i].sum() * counts[:, j].sum() / counts.sum()
            found[i, j] = (counts[i, j] - mean) / (mean + mean**2 / theta) ** 0.5 if mean else 0
    return np.clip(found, -(spots**0.5), spots**0.5).var(0)


def planted(spots=300, seed=0):
    """Counts of 30 genes of Poisson noise of all means, with one rare and one strong gene that mark a third of the spots."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 2, (spots, 1))
    means = np.tile(np.geomspace(0.1, 200, 30), (spots, 1))
    means[: spots // 3, 3] *= 8  # of mean 0.2
    means[: spots // 3, 26] *= 1.5  # of mean 90
    counts = rng.poisson(depth * means)
    counts[5] = 0
    return counts


def test_residual_variance_by_hand_and_in_batches():
    counts = planted(40)
    batches = [sp.csr_matrix(part) for part in (counts[:7], counts[7:30], counts[30:])]
    moments = gene_moments(batches)
    np.testing.assert_allclose(residual_variance(batches, moments), residuals_by_hand(counts), rtol=1e-9)


def test_residual_variance_finds_markers_where_variance_finds_depth_and_middling_means():
    counts = sp.csr_matrix(planted())
    moments = gene_moments([counts])
    residual = residual_variance([counts], moments)
    assert set(np.argsort(-residual)[:2]) == {3, 26}
    noise = np.delete(residual, [3, 26])
    assert noise[:10].min() > 0.7 and noise.max() < 1.3  # about 1, and less for strong genes
    assert 26 not in np.argsort(-moments.variance)[:10]


SCANPY = """
import sys, numpy as np, anndata, json, scanpy
counts = np.load(sys.argv[1])
adata = anndata.AnnData(counts.astype(np.float32))
found = scanpy.experimental.pp.highly_variable_genes(adata, n_top_genes=5, flavor="pearson_residuals", inplace=False)
print(json.dumps(found["residual_variances"].tolist()))
"""


def test_residual_variance_is_that_of_scanpy(tmp_path):
    if importlib.util.find_spec("scanpy") is None:
        pytest.skip("scanpy is not installed")
    counts = planted()
    counts = counts[counts.sum(1) > 0]
    np.save(tmp_path / "counts.npy", counts)
    run = subprocess.run([sys.executable, "-c", SCANPY, str(tmp_path / "counts.npy")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    matrix = sp.csr_matrix(counts)
    np.testing.assert_allclose(
        residual_variance([matrix], gene_moments([matrix])), json.loads(run.stdout.splitlines()[-1]), rtol=1e-4
    )


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


@pytest.fixture(scope="module")
def study(folder):
    return Study.load(str(folder))


def test_the_choice_is_the_ranking_of_the_training_spots(study):
    counts = study.counts(study.subset(["toy_A1", "toy_B1"])).toarray()
    names, detected = study.gene_names, (counts > 0).mean(0)
    values = np.log1p(counts * 1e4 / np.maximum(counts.sum(1, keepdims=True), 1))
    for ranking, score in (("pearson_residuals", residuals_by_hand(counts)), ("variance", values.var(0))):
        order = [i for i in np.argsort(-score, kind="stable") if detected[i] >= 0.3]
        found = choose_genes(study, ranking=ranking, num_genes=15, min_spots=0.3)
        assert found == [names[i] for i in order[:15]]
        assert choose_genes(study, ["toy_A1", "toy_B1"], ranking=ranking, num_genes=15, min_spots=0.3) == found
    assert choose_genes(study, num_genes=15) == choose_genes(study, num_genes=15, ranking="pearson_residuals")
    found = [names.index(name) for name in choose_genes(study, method="detected", num_genes=10)]
    assert detected[found].tolist() == sorted(detected, reverse=True)[:10]
    assert choose_genes(study, method="all") == names


def test_included_genes_come_first_and_rare_genes_stay_out(study):
    last = choose_genes(study, num_genes=None)[-2:]
    found = choose_genes(study, num_genes=6, include=[last[1].lower(), last[0], "NOT THERE"])
    assert found == [last[1], last[0], *choose_genes(study, num_genes=4)]
    assert choose_genes(study, num_genes=1, include=last) == last
    with pytest.raises(ValueError, match="none of the 1 listed genes"):
        choose_genes(study, include=["NOT THERE"])


def test_only_some_spots_are_in_memory_at_a_time(study, monkeypatch):
    seen = []
    real = Study.count_batches
    monkeypatch.setattr(vocabulary, "_SPOTS", 100)
    monkeypatch.setattr(
        Study, "count_batches", lambda *a: (seen.append(batch.shape[0]) or batch for batch in real(*a))
    )  # fmt: skip
    choose_genes(study, num_genes=5)
    assert sum(seen) == 2 * 288 and max(seen) <= 100


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


def test_spatial_genes_are_the_smooth_ones(study, monkeypatch):
    best = choose_genes(study, method="spatial", num_genes=10)
    # Programmes and markers; the last six are everywhere.
    assert len(set(best) & {f"TOY{i:03d}" for i in range(34)}) == 10
    monkeypatch.setattr(vocabulary, "_SPATIAL_SPOTS", 50)  # a neighbourhood of a large slide
    assert len(choose_genes(study, method="spatial", num_genes=10)) == 10


def test_listed_genes_and_mistakes(study):
    assert choose_genes(study, method="list", wanted=["toy007", "NONE", "TOY001"]) == ["TOY007", "TOY001"]
    for options, match in (
        ({"method": "best"}, "method is 'best'. Allowed: 'hvg'"),
        ({"ranking": "best"}, "ranking is 'best'. Allowed: 'pearson_residuals', 'variance'"),
        ({"method": "list"}, "no gene is listed.*--genes"),
        ({"method": "list", "wanted": ["X"]}, "none of the 1 listed genes"),
        ({"slides": ["toy_Z"]}, r"No slide \['toy_Z'\]"),
        ({"min_spots": 1.1}, "min_spots is 1.1. Allowed: a share of the spots, 0 to 1"),
        ({"min_spots": float("nan")}, "min_spots is nan. Allowed"),
    ):
        with pytest.raises(ValueError, match=match):
            choose_genes(study, **options)
    assert training_slides(study) == ["toy_A1", "toy_B1"]
    with pytest.raises(ValueError, match=r"slides \['toy_C1'\] are not in the split train"):
        training_slides(study, ["toy_C1"])


def test_moments_of_batches_are_those_of_the_whole():
    counts = np.random.default_rng(0).poisson(0.7, (31, 6))
    counts[4] = 0
    values = np.log1p(counts * 1e4 / np.maximum(counts.sum(1, keepdims=True), 1))
    found = gene_moments(sp.csr_matrix(part) for part in (counts[:7], counts[7:30], counts[30:]))
    assert found.spots == 31
    np.testing.assert_array_equal(found.detected, (counts > 0).sum(0))
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.variance, values.var(0), rtol=1e-5)
    np.testing.assert_array_equal(found.total, counts.sum(0))


def test_a_spot_is_scaled_to_the_library_size_that_is_asked_for():
    counts = sp.csr_matrix([[1, 3], [2, 2]])
    np.testing.assert_allclose(gene_moments([counts], 100).mean, np.log1p([[25, 75], [50, 50]]).mean(0), rtol=1e-6)


def test_a_vocabulary_file_is_read_as_given_and_not_if_held_out_slides_chose_it(folder, tmp_path, caplog, capsys):
    from delst_hf.cli import main

    study, path = Study.load(str(folder)), tmp_path / "genes.txt"
    about = study.gene_names, study.genes["gene_id"]
    assert main(["vocabulary", str(folder), "--num-genes", "7", "--output", str(path)]) in (0, None)
    assert "genes    7: " in capsys.readouterr().out
    expected = choose_genes(study, num_genes=7)
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


def test_names_with_signs_survive_a_vocabulary_file_and_cannot_forge_its_header(tmp_path):
    names = ["#1", "A#B", "C\\D", "E\\#", "# on slides other", "x\u2028y", "two words", "n\\n", "\\"]
    path = tmp_path / "genes.txt"
    write_vocabulary(path, names, "hvg", ["s#1"])
    assert read_gene_list(path) == names
    assert read_vocabulary(path, names, [""] * len(names), ["s#1"]) == names
    with pytest.raises(ValueError, match="a gene has an empty name"):
        write_vocabulary(path, ["A", " "], "hvg", [])
    assert read_gene_list(path) == names  # the older file is whole


def test_a_half_vocabulary_is_refused(tmp_path):
    path = tmp_path / "genes.txt"
    write_vocabulary(path, [f"GENE{i}" for i in range(50)], "hvg", ["A"])
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 3, len(whole) - 8):
        path.write_bytes(whole[:size])
        if size < len(whole) - 3:
            with pytest.raises(ValueError, match=r"states 50 genes and holds \d+: it is truncated"):
                read_gene_list(path)
    path.write_text("# chosen by delst vocabulary, method hvg\n# on slides A\nGENE1\n")  # of an earlier version
    assert read_gene_list(path) == ["GENE1"]


def test_genes_of_an_option_are_names_or_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text("ERBB2  # HER2\nMKI67\n")
    assert gene_names_of(str(tmp_path / "mine.txt")) == gene_names_of("ERBB2, MKI67") == ["ERBB2", "MKI67"]


def test_absent_markers_are_told(folder, tmp_path, capsys):
    from delst_hf.cli import main

    assert absent_markers(["toy", ""], []) == {}
    full = absent_markers(["Breast cancer", "mouse brain"], [])
    assert sorted(full) == ["brain", "breast"] and full["breast"][:7] == list(MARKERS["breast"])
    assert "MKI67" not in absent_markers(["breast"], ["Mki67"])["breast"]
    assert not main(
        ["vocabulary", str(folder), "--num-genes", "3", "--include", "TOY039", "--output", str(tmp_path / "g")]
    )
    assert read_gene_list(tmp_path / "g")[0] == "TOY039"


def test_markers_of_real_tumours_are_in_the_default_vocabulary(shared_dir):
    """ERBB2, COL1A1 and KRT19 by residuals, none of them by variance; ACTA2 and MKI67 do not rank high in these sections."""
    import gzip

    tables = []
    for section in ("C2", "C3", "C4"):
        with gzip.open(shared_dir / f"data/her2st/data/ST-cnts/{section}.tsv.gz", "rt") as file:
            names = file.readline().rstrip("\n").split("\t")[1:]
            tables.append((names, np.array([line.split("\t")[1:] for line in file], dtype=np.int32)))
    genes = sorted(set(tables[0][0]) & set(tables[1][0]) & set(tables[2][0]))
    counts = sp.vstack([sp.csr_matrix(values[:, [names.index(g) for g in genes]]) for names, values in tables]).tocsr()
    moments = gene_moments([counts])
    place = {}
    for ranking, score in (("residuals", residual_variance([counts], moments)), ("variance", moments.variance)):
        order = np.argsort(-np.where(moments.detected >= 0.02 * moments.spots, score, -1))
        place[ranking] = {genes[i]: rank for rank, i in enumerate(order)}
    for name in ("ERBB2", "COL1A1", "KRT19"):
        assert place["residuals"][name] < 500 < 1000 < place["variance"][name]
    for name in ("ACTA2", "MKI67"):
        assert place["residuals"][name] > 1000
