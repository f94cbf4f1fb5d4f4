"""The reference asked for the spots that a slide looks like, beside a plain comparison of all pairs."""

import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from delst_hf.cli import main
from delst_hf.model.lorentz import distance, exp_map0
from delst_hf.prediction import (
    PatchChoice,
    build_reference,
    load_predictor,
    load_reference,
    retrieve_slide,
    shards,
    spots_like,
)
from delst_hf.prediction.reference import FaissSearch, Reference


@pytest.fixture(scope="module")
def model(toy_checkpoint, toy_folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("with_reference") / "model"
    shutil.copytree(toy_checkpoint, copy)
    build_reference(str(copy), str(toy_folder), progress=False)
    return str(copy)


@pytest.fixture(scope="module")
def retrieved(model, slide_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("retrieved") / "slide.h5ad"
    command = ["retrieve", model, str(slide_file[0]), "--mpp", str(slide_file[1]), "--neighbours", "4", "--quiet"]
    assert main([*command, "--output", str(output)]) == 0
    return anndata.read_h5ad(output), command


def test_profiles_and_labels_are_those_of_the_nearest(retrieved, model):
    adata, _ = retrieved
    known, predictor = load_reference(model), load_predictor(model)
    curvature = predictor.model.curvature
    points = exp_map0(torch.from_numpy(np.asarray(adata.obsm["X_delst"])), curvature)
    for row in range(0, len(adata), 3):
        pairs = (
            distance(points[row].expand(len(known.image), -1), torch.from_numpy(known.image), curvature)
            .detach()
            .numpy()
        )
        order = np.argsort(pairs, kind="stable")[:4]
        np.testing.assert_allclose(adata.obsm["delst_neighbour_distances"][row], pairs[order], atol=1e-4)
        mine = adata.obsm["delst_neighbours"][row]
        np.testing.assert_allclose(pairs[mine], pairs[order], atol=1e-4)
        profiles = known.profiles[mine].toarray()
        np.testing.assert_allclose(adata.X[row], profiles.mean(axis=0), atol=1e-5)
        labels = [name for name in known.spots["label"].iloc[mine] if isinstance(name, str)]
        shares = adata.obsm["delst_probabilities"].iloc[row]
        for name in shares.index:
            assert shares[name] == pytest.approx(labels.count(name) / max(len(labels), 1))
        if labels:
            assert labels.count(adata.obs["delst_class"].iloc[row]) == max(map(labels.count, labels))
        else:
            assert pd.isna(adata.obs["delst_class"].iloc[row])
    assert list(adata.var_names) == known.genes
    assert adata.uns["delst_reference"]["barcode"].tolist() == known.spots["barcode"].tolist()
    assert adata.uns["delst"]["compared_with"] == "image embeddings"


def test_an_output_that_was_made_while_this_run_waited_stays_and_nothing_is_left(
    model, slide_file, tmp_path, monkeypatch
):
    """The run that had the lock until now has made it."""

    @contextmanager
    def late(output):
        with locked(output) as path:
            path.write_bytes(b"theirs")
            yield path

    locked = shards.writing
    monkeypatch.setattr(shards, "writing", late)
    with pytest.raises(FileExistsError, match=r"near\.h5ad exists"):
        retrieve_slide(
            model, slide_file[0], tmp_path / "near.h5ad", choice=PatchChoice(mpp=slide_file[1]), progress=False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["near.h5ad"]
    assert (tmp_path / "near.h5ad").read_bytes() == b"theirs"


def test_spots_that_look_like_a_place_are_named(retrieved, model, slide_file, capsys):
    adata, command = retrieved
    x, y = adata.obsm["spatial"][5]
    assert main([*command, "--at", f"{x},{y}"]) == 0
    text = capsys.readouterr().out
    known = load_reference(model)
    for row in adata.obsm["delst_neighbours"][5]:
        assert known.spots["barcode"].iloc[row] in text
    table = next(spots_like(model, slide_file[0], [(x, y)], neighbours=4, choice=PatchChoice(mpp=slide_file[1])))
    np.testing.assert_allclose(table["distance"], adata.obsm["delst_neighbour_distances"][5], atol=1e-4)
    mean = np.asarray(known.profiles.mean(axis=0)).ravel()
    profile = known.profiles[adata.obsm["delst_neighbours"][5][0]].toarray()[0]
    assert table["top_genes"][0].split(", ")[0] == known.genes[int(np.argmax(profile - mean))]


def test_a_parquet_names_the_neighbours(model, slide_file, tmp_path):
    output, choice = tmp_path / "x.parquet", PatchChoice(mpp=slide_file[1])
    retrieve_slide(model, slide_file[0], output, neighbours=2, modality="gene", choice=choice, progress=False)
    table, known = pd.read_parquet(output), load_reference(model)
    names = set(known.spots["slide_id"] + " " + known.spots["barcode"])
    assert set(table["neighbour_1"]) <= names and set(table["neighbour_2"]) <= names


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
def test_a_graph_finds_what_the_comparison_finds(geometry):
    pytest.importorskip("faiss", reason="the optional extra faiss is not installed")
    generator = torch.Generator().manual_seed(0)
    space = SimpleNamespace(config=SimpleNamespace(geometry=geometry), curvature=torch.tensor(1.3))
    predictor = SimpleNamespace(model=SimpleNamespace(**vars(space), device=torch.device("cpu")))
    # Radii differ fourfold, as those of a trained model do: inner products then say little of who is near.
    points = torch.nn.functional.normalize(torch.randn(3050, 16, generator=generator), dim=-1)
    tangent = points if geometry == "cosine" else points * (1 + 3 * torch.rand(3050, 1, generator=generator))
    embeds = exp_map0(tangent, space.curvature) if geometry == "lorentz" else tangent
    known = embeds[50:].numpy()
    reference = Reference(known, known, pd.DataFrame(), None, [])
    exact = reference.nearest(predictor, tangent[:50].numpy(), 10, "image")
    found = reference.nearest(predictor, tangent[:50].numpy(), 10, "image", FaissSearch(predictor, known))
    shared = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(exact[0], found[0], strict=True)])
    assert shared >= 0.99
    assert all(len(set(row)) == 10 for row in found[0])
    same = exact[0] == found[0]
    np.testing.assert_allclose(exact[1][same], found[1][same], rtol=1e-5)


def test_a_slide_is_retrieved_alike_by_both(retrieved, tmp_path):
    pytest.importorskip("faiss", reason="the optional extra faiss is not installed")
    adata, command = retrieved
    assert main([*command, "--search", "faiss", "--output", str(tmp_path / "faiss.h5ad")]) == 0
    other = anndata.read_h5ad(tmp_path / "faiss.h5ad")
    np.testing.assert_array_equal(adata.obsm["delst_neighbours"], other.obsm["delst_neighbours"])
    np.testing.assert_array_equal(adata.X, other.X)


def test_bad_requests_are_refused(model, toy_heads, slide_file, tmp_path):
    path = slide_file[0]
    with pytest.raises(ValueError, match="--neighbours is 0. Allowed: 1 to 72"):
        retrieve_slide(model, path, tmp_path / "x.h5ad", neighbours=0)
    with pytest.raises(ValueError, match="--by is 'age'. Allowed: gene, image"):
        retrieve_slide(model, path, tmp_path / "x.h5ad", modality="age")
    with pytest.raises(FileNotFoundError, match="Make one: delst reference"):
        retrieve_slide(str(toy_heads / "labels"), path, tmp_path / "x.h5ad")
    assert main(["retrieve", model, str(path)]) == 2 and main(["retrieve", model, str(path), "--at", "here"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("damaged references")
@pytest.mark.parametrize("name", ["reference.safetensors", "spots.parquet", "genes.parquet", "reference.json"])
@pytest.mark.parametrize("fault", ["flipped", "removed"])
def test_a_reference_that_is_not_as_it_was_written_is_refused(model, tmp_path, name, fault):
    folder = shutil.copytree(Path(model) / "reference", tmp_path / "reference")
    path = folder / name
    if fault == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    if (name, fault) == ("reference.json", "removed"):  # as references of earlier versions are
        assert load_reference(tmp_path) is not None
        return
    with pytest.raises(
        ValueError, match="does not match its checksums|cannot read the reference|made by other weights"
    ):
        load_reference(tmp_path, predictor=load_predictor(model))


@pytest.mark.fault("damaged references")
def test_a_reference_of_another_model_is_refused(model, toy_heads, slide_file, tmp_path):
    """Of the same width, so that distances to it can be computed, and mean nothing."""
    predictor = load_predictor(model)
    load_reference(model, predictor=load_predictor(str(toy_heads / "labels")))  # a head has the weights of its model
    with torch.no_grad():
        predictor.model.visual_projection.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="was made by other weights than those of .*Make one with this model"):
        load_reference(model, predictor=predictor)
