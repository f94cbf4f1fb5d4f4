"""Embeddings written into an AnnData that exists: never into X, the rest byte for byte."""

import gzip
import hashlib

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import as_stored
from scipy import sparse

from delst_hf import DelstModel, DelstProcessor
from delst_hf.atomic.locks import BusyError, locked
from delst_hf.cli import main
from delst_hf.data.toy import make_toy_slide
from delst_hf.prediction import annotate, embed_anndata, embed_file, load_predictor


@pytest.fixture
def file(tmp_path):
    """A toy slide as scanpy keeps Visium, its X scaled, its counts in a layer."""
    slide = make_toy_slide("toy_C1", spots_per_side=5, image_px=400)
    counts = sparse.csr_matrix(slide.counts)
    adata = anndata.AnnData(
        np.log1p(counts.toarray()).astype(np.float32) - 1,
        obs=pd.DataFrame({"mine": np.arange(counts.shape[0])}, index=slide.spots.index.astype(str)),
        var=pd.DataFrame(index=slide.genes["symbol"].to_numpy()),
        layers={"counts": counts},
        obsm={"spatial": slide.spots[["x", "y"]].to_numpy(float)},
    )
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55 / slide.mpp}
    adata.uns["spatial"] = {"toy_C1": {"images": {"hires": np.asarray(slide.image)}, "scalefactors": factors}}
    path = tmp_path / "mine.h5ad"
    adata.write_h5ad(path)
    return path, slide


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_patches_of_the_spots_are_embedded_into_a_copy(file, toy_heads, tmp_path, capsys):
    path, slide = file
    before = digest(path)
    assert main(["embed", str(toy_heads / "expression"), str(path), "--mpp", str(slide.mpp), "--quiet"]) == 0
    assert "mine_delst.h5ad" in capsys.readouterr().out and digest(path) == before
    old, new = anndata.read_h5ad(path), anndata.read_h5ad(path.with_name("mine_delst.h5ad"))
    predictor = load_predictor(str(toy_heads / "expression"))
    expected = predictor([as_stored(patch) for patch in slide.patches(112, 32)])
    np.testing.assert_allclose(new.obsm["X_delst"], expected["tangent"], atol=1e-4)
    np.testing.assert_allclose(new.obs["delst_radius"], expected["radius"], atol=1e-4)
    table = new.obsm["delst_expression"]
    assert list(table.columns) == predictor.processor.feature_extractor.vocabulary
    np.testing.assert_allclose(table, expected["expression"], atol=1e-3)
    np.testing.assert_array_equal(old.X, new.X)
    np.testing.assert_array_equal(old.layers["counts"].toarray(), new.layers["counts"].toarray())
    assert list(new.obs.columns) == ["mine", "delst_radius"] and (new.obs["mine"] == old.obs["mine"]).all()
    told = new.uns["delst"]
    assert told["modality"] == "image" and told["patch_um"] == 112 and "date" in told and "torch" in told["versions"]
    with h5py.File(path) as one, h5py.File(path.with_name("mine_delst.h5ad")) as other:
        assert one["X"].id.get_offset() == other["X"].id.get_offset(), "X was not even moved"


def test_counts_are_embedded_where_asked(file, toy_checkpoint, tmp_path):
    path, slide = file
    command = ["embed", str(toy_checkpoint), str(path), "--modality", "genes", "--layer", "counts", "--key", "X_genes"]
    assert main([*command, "--in-place", "--quiet"]) == 0
    adata = anndata.read_h5ad(path)
    model = DelstModel.from_pretrained(toy_checkpoint).eval()
    processor = DelstProcessor.from_pretrained(toy_checkpoint)
    inputs = processor(counts=slide.counts.toarray(), gene_names=slide.genes["symbol"].tolist(), return_tensors="pt")
    with torch.no_grad():
        embeds = model.get_gene_features(inputs["gene_values"], inputs["gene_mask"]).pooler_output.numpy()
    np.testing.assert_allclose(
        adata.obsm["X_genes"] / np.linalg.norm(adata.obsm["X_genes"], axis=1, keepdims=True),
        embeds / np.linalg.norm(embeds, axis=1, keepdims=True), atol=1e-4,
    )  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(adata.obsm["X_genes"], axis=1), adata.obs["delst_radius"], rtol=1e-4)


def test_from_python_in_three_lines(file, toy_heads):
    adata = anndata.read_h5ad(file[0])
    x = adata.X.copy()
    same = embed_anndata(str(toy_heads / "labels"), adata)
    assert same is adata and "X_delst" in adata.obsm and (x == adata.X).all()
    probabilities = adata.obsm["delst_probabilities"]
    assert (probabilities.idxmax(axis=1) == adata.obs["delst_class"].astype(str)).all()


def test_nothing_is_overwritten_unasked(file, toy_checkpoint, capsys):
    path, _ = file
    command = ["embed", str(toy_checkpoint), str(path), "--quiet"]
    assert main([*command, "--in-place"]) == 0
    after = digest(path)
    assert main([*command, "--in-place"]) == 2
    assert "already has obsm['X_delst'] and uns['delst'] of" in capsys.readouterr().err and digest(path) == after
    assert main([*command, "--in-place", "--overwrite"]) == 0
    copy = path.with_name("copy.h5ad")
    copy.write_text("mine")
    assert main([*command, "--output", str(copy)]) == 2
    assert "--overwrite" in capsys.readouterr().err and copy.read_text() == "mine"


def test_a_failure_leaves_the_file_untouched(file, toy_checkpoint, monkeypatch):
    import delst_hf.prediction.annotate as annotate

    def broken(*_):
        raise OSError(28, "No space left on device")

    path, _ = file
    before = digest(path)
    monkeypatch.setattr(annotate, "_add", broken)
    with pytest.raises(OSError, match="the disk is full"):
        annotate.embed_file(str(toy_checkpoint), path, path)
    assert digest(path) == before and [one.name for one in path.parent.glob("*.h5ad")] == ["mine.h5ad"]


def test_whole_numbers_that_are_probably_no_counts_are_warned_of(file, toy_checkpoint, caplog):
    adata = anndata.read_h5ad(file[0])
    counts = adata.layers["counts"].toarray()
    adata.layers["rounded"] = np.rint(1e4 * counts / counts.sum(1, keepdims=True))
    embed_anndata(str(toy_checkpoint), adata, modality="genes", layer="counts", key="right")
    assert "give raw counts" not in caplog.text
    embed_anndata(str(toy_checkpoint), adata, modality="genes", layer="rounded", key="wrong")
    told = "look normalised to one total and rounded; give raw counts; other layers with whole numbers in this file: ['counts"
    assert caplog.text.count(told) == 1


def test_a_packed_file_is_predicted_and_not_embedded(file, toy_checkpoint, tmp_path, capsys):
    packed = tmp_path / "mine.h5ad.gz"
    packed.write_bytes(gzip.compress(file[0].read_bytes()))
    command = [str(toy_checkpoint), str(packed), "--output", str(tmp_path / "out.h5ad"), "--quiet"]
    assert main(["predict", *command]) == 0
    assert anndata.read_h5ad(tmp_path / "out.h5ad").n_obs == len(file[1].spots)
    assert main(["embed", *command, "--overwrite"]) == 2
    assert "mine.h5ad.gz is not an .h5ad file. Unpack it first." in capsys.readouterr().err


def test_what_cannot_be_embedded_is_told(file, toy_checkpoint, tmp_path, caplog):
    adata = anndata.read_h5ad(file[0])
    with pytest.raises(ValueError, match="Allowed: auto, image, genes"):
        embed_anndata(str(toy_checkpoint), adata, modality="both")
    with pytest.raises(ValueError, match="these are not counts"):
        embed_anndata(str(toy_checkpoint), adata, modality="genes")
    adata.var_names = [f"Gene{i}" for i in range(adata.n_vars)]
    with pytest.raises(ValueError, match="Only 0 of the vocabulary's"):
        embed_anndata(str(toy_checkpoint), adata, modality="genes", layer="counts")
    for wrong in (str(file[0]), adata.X):
        with pytest.raises(
            TypeError, match=r"Give the AnnData itself, after the model: .* there is embed_file\(model, path\)"
        ):
            embed_anndata(str(toy_checkpoint), wrong)
    joined = anndata.concat({"S1": adata, "S2": adata}, label="sample", index_unique="-", uns_merge="first")
    with pytest.raises(
        ValueError, match="adata is several samples on one image: 25 of 50 positions occur more than once"
    ):
        embed_anndata(str(toy_checkpoint), joined, modality="image", mpp=file[1].mpp)
    del adata.uns["spatial"]
    with pytest.raises(ValueError, match="Only 0 of the vocabulary's"):
        embed_anndata(str(toy_checkpoint), adata, layer="counts")
    assert "adata: there is no image, so the counts are embedded" in caplog.text
    with pytest.raises(KeyError, match=r"uns\['spatial'\] is missing"):
        embed_anndata(str(toy_checkpoint), adata, modality="image")
    from delst_hf.prediction import embed_file

    with pytest.raises(ValueError, match=r"not an \.h5ad file"):
        embed_file(str(toy_checkpoint), tmp_path / "mine.csv")


@pytest.mark.fault("two runs into one output")
@pytest.mark.parametrize("output", [None, "same"])
def test_a_second_run_into_the_same_file_is_refused(file, toy_checkpoint, monkeypatch, output):
    path, slide = file
    target = path if output else path.with_name("mine_delst.h5ad")
    with locked(target), pytest.raises(BusyError, match="another run is writing to this output"):
        embed_file(str(toy_checkpoint), path, target, mpp=slide.mpp, num_workers=0)


@pytest.mark.fault("two runs into one output")
def test_what_comes_during_the_work_is_not_replaced(file, toy_checkpoint, monkeypatch):
    path, slide = file
    target, begun = path.with_name("mine_delst.h5ad"), annotate._annotations

    def meanwhile(*args, **options):
        target.write_text("years")
        return begun(*args, **options)

    monkeypatch.setattr(annotate, "_annotations", meanwhile)
    with pytest.raises(FileExistsError, match="was made by another program while this run was working"):
        embed_file(str(toy_checkpoint), path, target, mpp=slide.mpp, num_workers=0)
    assert target.read_text() == "years"
    target.unlink()

    def changed(*args, **options):
        found = begun(*args, **options)
        path.write_bytes(path.read_bytes() + b" ")
        return found

    monkeypatch.setattr(annotate, "_annotations", changed)
    with pytest.raises(OSError, match="was changed while it was read. Nothing was written"):
        embed_file(str(toy_checkpoint), path, target, mpp=slide.mpp, num_workers=0)
    assert not target.exists() and not [one.name for one in path.parent.iterdir() if one.name.startswith(".")]
