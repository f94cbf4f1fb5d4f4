"""From a slide without counts to files that scanpy, squidpy, spatialdata and pandas open."""

import json
import os
import signal
from importlib.metadata import version

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import as_stored
from faults import run_in_child
from PIL import Image

import delst_hf.prediction.shards as shards_module
from delst_hf import DelstForGeneExpressionPrediction, DelstModel
from delst_hf.atomic.locks import kept_folder, kept_folders
from delst_hf.cli import main
from delst_hf.data.appearance import colour_record, describe_foreign_colour, patch_colours
from delst_hf.data.readers.image import read_slide_image
from delst_hf.prediction import PatchChoice, build_reference, load_predictor, load_reference, predict_slide
from delst_hf.prediction.shards import workspace
from delst_hf.prediction.source import slide_source

QUIET = {"progress": False, "num_workers": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def predicted(toy_heads, slide_file, toy_folder, tmp_path_factory):
    """An .h5ad of both toy_heads, two signatures and the reference, and the command that made it."""
    folder = tmp_path_factory.mktemp("predicted")
    build_reference(str(toy_heads / "expression"), str(toy_folder), progress=False)
    genes = list(load_predictor(str(toy_heads / "expression")).genes.index)
    signatures = folder / "signatures.json"
    signatures.write_text(
        json.dumps({"first two": {"genes": {genes[0]: 3, genes[1]: 1}}, "one": {"genes": [genes[5]]}})
    )
    output = folder / "slide.h5ad"
    command = ["predict", str(toy_heads / "expression"), str(slide_file[0]), "--mpp", str(slide_file[1])]
    command += ["--head", str(toy_heads / "labels"), "--signatures", str(signatures), "--quiet"]
    assert main([*command, "--output", str(output)]) == 0
    return output, command


def test_a_slide_is_predicted_as_its_patches_are(predicted, toy_heads, slide_file):
    adata = anndata.read_h5ad(predicted[0])
    path, mpp = slide_file
    slide = read_slide_image(path, mpp=mpp, patch_um=112)
    model = DelstForGeneExpressionPrediction.from_pretrained(toy_heads / "expression").eval()
    predictor = load_predictor(str(toy_heads / "expression"))
    images = [as_stored(patch) for patch in slide.patches(112, 32)]
    inputs = predictor.processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        np.testing.assert_allclose(adata.X, model(inputs).logits, atol=1e-4)
        embeds = model.delst.get_image_features(inputs).pooler_output
    assert list(adata.var_names) == predictor.processor.feature_extractor.vocabulary
    np.testing.assert_allclose(
        np.linalg.norm(adata.obsm["X_delst"], axis=1), adata.obs["delst_radius"], rtol=1e-4
    )  # a tangent vector is as long as its point is far
    direction = embeds / embeds.norm(dim=1, keepdim=True)
    expected = direction.numpy() * adata.obs["delst_radius"].to_numpy()[:, None]
    np.testing.assert_allclose(adata.obsm["X_delst"], expected, atol=1e-4)
    np.testing.assert_allclose(adata.obsm["spatial"], slide.spots[["x", "y"]])
    probabilities = adata.obsm["delst_probabilities"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.idxmax(axis=1) == adata.obs["delst_class"].astype(str)).all()
    names = adata.var_names
    expected = (3 * adata[:, names[0]].X + adata[:, names[1]].X)[:, 0] / 4
    np.testing.assert_allclose(adata.obs["first two"], expected, atol=1e-5)
    np.testing.assert_allclose(adata.obs["one"], adata[:, names[5]].X[:, 0], atol=1e-6)
    assert {"pearson", "pearson_low", "pearson_high"} <= set(adata.var) and adata.obs["tissue_fraction"].min() > 0.2
    assert dict(adata.uns["delst"]["signatures"]) == {"first two": "2 of 2 genes", "one": "1 of 1 genes"}
    assert adata.uns["delst"]["patch_um"] == 112 and adata.uns["delst"]["versions"]["torch"] == version("torch")
    assert adata.uns["delst"]["model"] == "expression" and "toy_A1" in adata.uns["delst"]["head_fitted_on"]


def test_pictures_and_scale_factors_are_those_of_the_slide(predicted, slide_file):
    adata = anndata.read_h5ad(predicted[0])
    library = adata.uns["spatial"]["toy_C1"]
    image = np.asarray(Image.open(slide_file[0]))
    assert library["images"]["hires"].shape == image.shape and library["scalefactors"]["tissue_hires_scalef"] == 1
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(112 / slide_file[1])
    assert (library["images"]["hires"] == image).all()


def test_distance_to_the_reference_is_the_mean_of_five(predicted, toy_heads):
    adata = anndata.read_h5ad(predicted[0])
    reference, predictor = load_reference(toy_heads / "expression"), load_predictor(str(toy_heads / "expression"))
    curvature = predictor.model.curvature.item()
    tangent = adata.obsm["X_delst"].astype(float)
    radius = np.linalg.norm(tangent, axis=1, keepdims=True)
    points = tangent / radius * np.sinh(curvature**0.5 * radius) / curvature**0.5
    time = [np.sqrt(1 / curvature + (one**2).sum(1)) for one in (points, reference.image.astype(float))]
    inner = points @ reference.image.astype(float).T - np.outer(*time)
    distance = np.arccosh(np.maximum(-curvature * inner, 1)) / curvature**0.5
    expected = np.sort(distance, axis=1)[:, :5].mean(1)
    np.testing.assert_allclose(adata.obs["delst_reference_distance"], expected, atol=1e-3)
    ranks = adata.obs["delst_radius"].rank().to_numpy() - 0.5
    np.testing.assert_allclose(adata.obs["delst_reliability"], ranks / adata.n_obs, atol=1e-6)
    assert adata.uns["delst"]["reliability"] == "image radius, as a rank within the slide"
    positions, found = reference.nearest(predictor, adata.obsm["X_delst"], 3, "image")
    np.testing.assert_allclose(found, np.sort(distance, axis=1)[:, :3], atol=1e-3)
    profile = reference.profiles[positions[0]].toarray().mean(0)
    np.testing.assert_allclose(reference.impute(positions)[0], profile, atol=1e-6)
    names = reference.spots["label"].iloc[positions[0]].tolist()
    classes = sorted(set(names))
    shares = [names.count(name) / len(names) for name in classes]
    np.testing.assert_allclose(reference.shares(positions, classes)[0], shares, atol=1e-6)
    with pytest.raises(ValueError, match="Allowed: 1 to 72"):
        reference.nearest(predictor, tangent, 100)


def test_a_table_holds_the_same(predicted, tmp_path):
    output, command = predicted
    assert main([*command, "--output", str(tmp_path / "slide.parquet")]) == 0
    adata, table = anndata.read_h5ad(output), pd.read_parquet(tmp_path / "slide.parquet")
    assert table.index.tolist() == adata.obs_names.tolist() and table.index.name == "barcode"
    np.testing.assert_allclose(table[list(adata.var_names)], adata.X, atol=1e-6)
    np.testing.assert_allclose(table[["x", "y"]], adata.obsm["spatial"])
    assert (table["delst_class"].astype(str) == adata.obs["delst_class"].astype(str)).all()
    np.testing.assert_allclose(table["delst_reliability"], adata.obs["delst_reliability"])


def test_spatialdata_opens_image_shapes_and_table(predicted, tmp_path):
    spatialdata = pytest.importorskip("spatialdata", reason="the extra spatialdata is not installed")
    output, command = predicted
    assert main([*command, "--output", str(tmp_path / "slide.zarr")]) == 0
    data, adata = spatialdata.read_zarr(tmp_path / "slide.zarr"), anndata.read_h5ad(output)
    np.testing.assert_allclose(np.asarray(data["table"].X), adata.X, atol=1e-6)
    shapes = data["toy_C1_spots"]
    np.testing.assert_allclose(np.column_stack([shapes.geometry.x, shapes.geometry.y]), adata.obsm["spatial"])
    assert data["toy_C1_image"].shape == (3, 400, 400)
    spots, table = spatialdata.match_element_to_table(data, "toy_C1_spots", "table")
    assert len(table) == adata.n_obs and len(spots["toy_C1_spots"]) == adata.n_obs


def test_spatialdata_is_asked_for_before_the_work(predicted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("delst_hf.data.places.find_spec", lambda name: None)
    assert main([*predicted[1], "--output", str(tmp_path / "slide.zarr")]) == 2
    assert "pip install 'delst-hf[spatialdata]', or write .h5ad" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_scanpy_and_squidpy_draw_it_with_no_further_line(predicted):
    scanpy = pytest.importorskip("scanpy", reason="scanpy is not installed")
    squidpy = pytest.importorskip("squidpy", reason="squidpy is not installed")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    adata = anndata.read_h5ad(predicted[0])
    for draw in (scanpy.pl.spatial, squidpy.pl.spatial_scatter):
        for color in (adata.var_names[0], "delst_class", "first two"):
            pyplot.close("all")
            draw(adata, color=color, **({"show": False} if draw is scanpy.pl.spatial else {}))
            pyplot.gcf().canvas.draw()
            axes = pyplot.gcf().axes[0]
            assert axes.images and axes.collections, "image and spots"
    scanpy.pp.neighbors(adata, use_rep="X_delst", n_neighbors=5)
    assert adata.obsp["distances"].shape == (adata.n_obs, adata.n_obs)


def test_a_killed_run_goes_on(toy_heads, slide_file, tmp_path, monkeypatch):
    path, mpp = slide_file
    monkeypatch.setattr(shards_module, "_ROWS", 10)
    calls = []
    original = shards_module._one_shard

    def counting(predicted, order, *rest):
        if len(calls) == 2 and order.min() == 20:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append(int(order.min()))
        return original(predicted, order, *rest)

    monkeypatch.setattr(shards_module, "_one_shard", counting)
    arguments = (str(toy_heads / "expression"), path, tmp_path / "out.h5ad")
    with pytest.raises(KeyboardInterrupt):
        predict_slide(*arguments, choice=PatchChoice(mpp=mpp), **QUIET)
    assert calls == [0, 10, "killed"] and not (tmp_path / "out.h5ad").exists()
    predict_slide(*arguments, choice=PatchChoice(mpp=mpp), **QUIET)
    assert calls[3] == 20 and 0 not in calls[3:]
    assert [path.name for path in tmp_path.iterdir() if "shards" in path.name or "incomplete" in path.name] == []
    predict_slide(*arguments[:2], tmp_path / "whole.h5ad", choice=PatchChoice(mpp=mpp), **QUIET)
    one, other = (anndata.read_h5ad(tmp_path / name) for name in ("out.h5ad", "whole.h5ad"))
    np.testing.assert_array_equal(one.X, other.X)


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(toy_heads, slide_file, tmp_path, monkeypatch):
    """SIGKILL, so that nothing can tidy up: in the first shard, in a later one, and while the output is written."""
    path, mpp = slide_file
    monkeypatch.setattr(shards_module, "_ROWS", 10)
    output, choice = tmp_path / "out.h5ad", PatchChoice(mpp=mpp)

    def work(target=output):
        torch.set_num_threads(1)  # a fork has no threads of its parent to wait for
        predict_slide(str(toy_heads / "expression"), path, target, choice=choice, **QUIET)

    def kept():
        return len(list(tmp_path.rglob("*.safetensors")))

    def puts(name, shards):
        return lambda event, values: (
            event in ("os.rename", "os.link") and str(values[1]).endswith(name) and kept() == shards
        )

    for name, shards in ((".safetensors", 0), (".safetensors", 3), (output.name, 5), (output.name, 5)):
        status = run_in_child(work, kill_before=puts(name, shards))
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert not output.exists() and kept() == shards
    work()
    work(tmp_path / "whole.h5ad")
    one, other = (anndata.read_h5ad(tmp_path / name) for name in ("out.h5ad", "whole.h5ad"))
    np.testing.assert_array_equal(one.X, other.X)
    np.testing.assert_array_equal(one.obsm["X_delst"], other.obsm["X_delst"])
    pd.testing.assert_frame_equal(one.obs, other.obs)
    assert not list(tmp_path.glob(".out*shards*"))


def test_given_places_and_stored_patches(toy_heads, slide_file, toy_folder, toy_study, tmp_path):
    path, mpp = slide_file
    places = pd.DataFrame({"barcode": ["b", "a"], "x": [150.5, 200.0], "y": [120.0, 90.25]})
    places.to_csv(tmp_path / "places.csv", index=False)
    choice = PatchChoice(mpp=mpp, positions=str(tmp_path / "places.csv"))
    found = predict_slide(str(toy_heads / "expression"), path, tmp_path / "places.parquet", choice=choice, **QUIET)
    table = pd.read_parquet(tmp_path / "places.parquet")
    assert table.index.tolist() == ["b", "a"] and table["x"].tolist() == [150.5, 200.0] and len(found.source) == 2
    choice = PatchChoice(slides=["toy_B1"])
    predict_slide(str(toy_heads / "expression"), toy_folder, tmp_path / "stored.h5ad", choice=choice, **QUIET)
    stored = anndata.read_h5ad(tmp_path / "stored.h5ad")
    predictor = load_predictor(str(toy_heads / "expression"))
    patches = [np.asarray(image) for image in toy_study.subset(["toy_B1"])["image"]]
    np.testing.assert_allclose(stored.X, predictor(patches)["expression"], atol=1e-5)
    with pytest.raises(TypeError, match="the slide is of type Image. Give the path of an image"):
        predict_slide(str(toy_heads / "expression"), Image.new("RGB", (9, 9)), tmp_path / "x.h5ad", **QUIET)
    assert stored.obs["label"].notna().any() and list(stored.uns["spatial"]) == ["toy_B1"]


def test_a_model_without_a_head_gives_its_embedding(toy_checkpoint, slide_file, tmp_path, capsys):
    path, mpp = slide_file
    assert (
        main(["predict", str(toy_checkpoint), str(path), "--mpp", str(mpp), "--output", str(tmp_path / "out.h5ad")])
        == 0
    )
    assert "genes    0: the model has no head, so the file holds embeddings" in capsys.readouterr().out
    adata = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert adata.n_vars == 0 and adata.obsm["X_delst"].shape == (adata.n_obs, 8) and "delst_radius" in adata.obs
    with pytest.raises(ValueError, match="has no expression head. Fit one: delst fit"):
        predict_slide(str(toy_checkpoint), path, tmp_path / "other.h5ad", genes=["A"], choice=PatchChoice(mpp=mpp))


def test_genes_are_chosen_by_name_and_by_held_out_score(toy_heads, slide_file, tmp_path):
    path, mpp = slide_file
    whole = load_predictor(str(toy_heads / "expression")).genes
    wanted, least = [whole.index[3], whole.index[1]], float(whole["pearson"].median())
    options = {"choice": PatchChoice(mpp=mpp), **QUIET}
    predict_slide(str(toy_heads / "expression"), path, tmp_path / "two.h5ad", genes=wanted, **options)
    assert anndata.read_h5ad(tmp_path / "two.h5ad").var_names.tolist() == wanted
    predict_slide(str(toy_heads / "expression"), path, tmp_path / "best.h5ad", min_pearson=least, **options)
    assert anndata.read_h5ad(tmp_path / "best.h5ad").var["pearson"].min() >= least
    with pytest.raises(ValueError, match=r"does not predict NOTAGENE.*--genes"):
        predict_slide(str(toy_heads / "expression"), path, tmp_path / "x.h5ad", genes=["NOTAGENE"], **options)
    with pytest.raises(ValueError, match=r"no gene has a held-out Pearson of 1.*Lower --min-pearson"):
        predict_slide(str(toy_heads / "expression"), path, tmp_path / "x.h5ad", min_pearson=1.0, **options)
    with pytest.raises(ValueError, match="no gene of the signature 'odd'"):
        predict_slide(
            str(toy_heads / "expression"), path, tmp_path / "x.h5ad", signatures={"odd": {"genes": ["Z"]}}, **options
        )
    half = {"half": {"genes": [wanted[0], "Y", wanted[0].lower() + "x"]}}
    with pytest.raises(
        ValueError, match=rf"predicts 1 of the 3 genes of .*'half'; the least is half .*Y, .*mean '{wanted[0]}'\?"
    ):
        predict_slide(str(toy_heads / "expression"), path, tmp_path / "x.h5ad", signatures=half, **options)
    assert not (tmp_path / "x.h5ad").exists()


def test_what_cannot_be_is_refused_before_the_work(toy_heads, slide_file, tmp_path, capsys):
    path, mpp = slide_file
    model, options = str(toy_heads / "expression"), {"choice": PatchChoice(mpp=mpp), **QUIET}
    (tmp_path / "there.h5ad").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        predict_slide(model, path, tmp_path / "there.h5ad", **options)
    with pytest.raises(ValueError, match=r"\.h5ad, \.zarr, \.parquet"):
        predict_slide(model, path, tmp_path / "out.csv", **options)
    with pytest.raises(ValueError, match="slide is of mouse, but the model .* was trained on synthetic"):
        predict_slide(model, path, tmp_path / "x.h5ad", choice=PatchChoice(mpp=mpp, species="Mus musculus"), **QUIET)
    with pytest.raises(ValueError, match="mpp is unknown"):
        predict_slide(model, path, tmp_path / "x.h5ad", **QUIET)
    with pytest.raises(FileNotFoundError, match="no image file"):
        predict_slide(model, tmp_path / "no.svs", tmp_path / "x.h5ad", **options)
    with pytest.raises(FileNotFoundError, match="Make one: delst reference"):
        predict_slide(model, path, tmp_path / "x.h5ad", reference=str(tmp_path), **options)
    assert main(["predict", model, str(path), "--output", str(tmp_path / "x.h5ad"), "--batch-size", "0"]) == 2
    assert "--batch-size is 0" in capsys.readouterr().err
    assert {one.name for one in tmp_path.iterdir()} <= {"there.h5ad", ".there.h5ad.lock", ".x.h5ad.lock"}
    assert (tmp_path / "there.h5ad").read_text() == "mine"


def test_a_full_disk_leaves_nothing_half_written(toy_heads, slide_file, tmp_path, monkeypatch):
    import errno

    import delst_hf.prediction.outputs as outputs

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "_stream", full)
    with pytest.raises(OSError, match="the disk is full.*run the same command again"):
        predict_slide(str(toy_heads / "expression"), slide_file[0], tmp_path / "x.h5ad",
                      choice=PatchChoice(mpp=slide_file[1]), **QUIET)  # fmt: skip
    assert not (tmp_path / "x.h5ad").exists()
    assert any("shards" in one.name for one in tmp_path.iterdir()), "what is predicted is kept for the next try"


def test_a_head_of_another_backbone_is_refused(toy_heads, toy_checkpoint, tmp_path):
    other = DelstModel.from_pretrained(toy_checkpoint)
    with torch.no_grad():
        next(iter(other.vision_model.parameters())).add_(1)
    other.save_pretrained(tmp_path / "other")
    load_predictor(str(toy_checkpoint)).processor.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="fitted on another backbone"):
        load_predictor(str(tmp_path / "other"), [str(toy_heads / "labels")])


def test_colours_far_from_the_training_are_told():
    generator = np.random.default_rng(0)

    def patches(colour, number=50):
        return [np.clip(generator.normal(colour, 8, (8, 8, 3)), 0, 255).astype(np.uint8) for _ in range(number)]

    trained = colour_record(patch_colours(patches((190, 120, 170))))
    assert describe_foreign_colour(patch_colours(patches((185, 125, 172))), trained) is None
    for colour in ((180, 150, 110), (20, 25, 60)):  # DAB, fluorescence
        assert "far from those" in describe_foreign_colour(patch_colours(patches(colour)), trained)
    assert describe_foreign_colour(patch_colours(patches((20, 25, 60))), None) is None


def test_a_foreign_stain_is_warned_of(toy_heads, slide_file, tmp_path, caplog):
    path, mpp = slide_file
    pixels = np.asarray(Image.open(path))
    Image.fromarray(np.ascontiguousarray(pixels[:, :, [1, 0, 2]])).save(tmp_path / "green.png")
    predict_slide(
        str(toy_heads / "expression"), tmp_path / "green.png", tmp_path / "x.h5ad", choice=PatchChoice(mpp=mpp), **QUIET
    )
    assert "far from those of the slides that the model was trained on" in caplog.text


@pytest.mark.parametrize("swapped", [True, False])
def test_positions_beside_the_tissue_are_warned_of(toy_heads, tmp_path, caplog, swapped):
    """Glass gets predictions that look like any others."""
    pixels = np.full((300, 300, 3), 244, np.uint8)
    pixels[:, :100] = np.random.default_rng(0).integers((150, 60, 120), (220, 150, 190), (300, 100, 3))
    Image.fromarray(pixels).save(tmp_path / "he.png")
    x, y = np.meshgrid([30.0, 50.0, 70.0], [60.0, 130.0, 180.0, 250.0])
    places = pd.DataFrame({"x": y.ravel(), "y": x.ravel()} if swapped else {"x": x.ravel(), "y": y.ravel()})
    choice = PatchChoice(mpp=2.0, positions=places)
    predict_slide(str(toy_heads / "expression"), tmp_path / "he.png", tmp_path / "x.h5ad", choice=choice, **QUIET)
    told = "lie on tissue. With x and y swapped, 100% would: exchange the two columns."
    assert (told in caplog.text) is swapped


def test_of_a_pyramid_the_best_level_is_read(tmp_path):
    import tifffile

    generator = np.random.default_rng(0)
    small = generator.integers(60, 255, (100, 120, 3), dtype=np.uint8)
    large = small.repeat(4, 0).repeat(4, 1)
    with tifffile.TiffWriter(tmp_path / "he.tif") as file:
        options = {"photometric": "rgb", "tile": (64, 64)}
        file.write(large, subifds=2, **options)
        file.write(large[::2, ::2], subfiletype=1, **options)
        file.write(small, subfiletype=1, **options)
    places = pd.DataFrame({"x": [200.0, 240.0], "y": [160.0, 200.0]}, index=["a", "b"])
    slide = read_slide_image(tmp_path / "he.tif", mpp=0.25, positions=places)
    quarter = slide_source(slide, patch_um=32, patch_px=32)  # 128 px of the full resolution
    half = slide_source(slide, patch_um=32, patch_px=40)
    assert quarter.read.slide.image.level == 2 and half.read.slide.image.level == 1
    np.testing.assert_array_equal(quarter.read([0])[0], small[24:56, 34:66])
    assert quarter.rows["x"].tolist() == [200.0, 240.0] and quarter.shapes == {"he": (400, 480)}


def test_what_a_run_keeps_is_of_its_output_alone(tmp_path):
    outputs = [tmp_path / name for name in ("é" * 110 + "x.h5ad", "é" * 110 + "y.h5ad", "s[1].h5ad", "s1.h5ad")]
    kept = [kept_folder(output, "1a2b") for output in outputs]
    for folder in kept:
        folder.mkdir()
    assert [kept_folders(output) for output in outputs] == [[folder] for folder in kept]
    with workspace(outputs[0], "another prediction", lambda: None):
        assert [folder.exists() for folder in kept] == [False, True, True, True]
