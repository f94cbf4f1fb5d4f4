"""Features made elsewhere: the files of TRIDENT, CLAM and HEST, joined to spots, trained on, evaluated and predicted from."""

import json
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from ranks import in_ranks
from safetensors.torch import load_file

from delst_hf import DelstConfig, DelstForGeneExpressionPrediction, DelstModel
from delst_hf.cli import main
from delst_hf.data.patch_features import find_feature_files, join_features, read_patch_features
from delst_hf.hub.card import model_card
from delst_hf.prediction import PatchChoice, fit_head, load_predictor, predict_slide
from delst_hf.pretraining.run import main as pretrain_main

pytestmark = pytest.mark.usefixtures("without_curves")

GENERATOR = np.random.default_rng(0)


def write_h5(path, arrays, **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        if "coords" in arrays:
            file["coords"].attrs.update(attributes)
    return path


def spots_of(study, slide):
    return study.subset([slide]).remove_columns("image").to_pandas()


@pytest.fixture(scope="module")
def trident(toy_study, toy_checkpoint, tmp_path_factory):
    """A folder as TRIDENT writes it: one patch of 112 um at each spot, features of the backbone of the toy checkpoint."""
    folder = tmp_path_factory.mktemp("trident") / "20x_224px_0px_overlap" / "features_toy"
    predictor = load_predictor(str(toy_checkpoint))
    mpp = dict(zip(toy_study.slide_ids, toy_study.slides["mpp"], strict=True))
    for slide in toy_study.slide_ids:
        table, side = spots_of(toy_study, slide), 112 / mpp[slide]
        images = [np.asarray(image) for image in toy_study.subset([slide])["image"]]
        arrays = {"features": predictor(images)["features"], "coords": table[["x", "y"]].to_numpy() - side / 2}
        order = GENERATOR.permutation(len(table))  # rows are found by where they lie
        attributes = {"patch_size": 224, "patch_size_level0": side, "overlap": 0, "name": slide}
        write_h5(folder / f"{slide}.h5", {name: values[order] for name, values in arrays.items()}, **attributes)
    return folder


@pytest.fixture(scope="module")
def features_model(trident, toy_folder, toy_checkpoint, tmp_path_factory):
    """A model pretrained for two steps on those features, by the command line, of the genes of the toy checkpoint."""
    output = tmp_path_factory.mktemp("features") / "run"
    genes = load_predictor(str(toy_checkpoint)).processor.feature_extractor.vocabulary
    (output.parent / "genes.txt").write_text("\n".join(genes))
    pretrain_main(
        ["--dataset", str(toy_folder), "--train_slides", "toy_A1,toy_A2", "--validation_slides", "toy_B1"]
        + ["--features", str(trident), "--output_dir", str(output), "--max_steps", "2", "--projection_dim", "8"]
        + [
            "--per_device_train_batch_size",
            "16",
            "--vocabulary",
            str(output.parent / "genes.txt"),
            "--gene_hidden_size",
            "16",
            "--report_to",
            "none",
        ]
        + ["--eval_strategy", "steps", "--eval_steps", "2", "--disable_tqdm", "true", "--use_cpu", "true"]
    )
    return output / "model"


def test_trident_clam_and_hest_are_read_alike(tmp_path):
    values, corners = GENERATOR.normal(size=(5, 3)).astype(np.float32), GENERATOR.integers(0, 999, (5, 2))
    trident = {"patch_size": 256, "level0_magnification": 40, "target_magnification": 20}
    one = read_patch_features(write_h5(tmp_path / "a/S.h5", {"features": values, "coords": corners}, **trident))
    stated = {**trident, "patch_size_level0": 512}
    two = read_patch_features(write_h5(tmp_path / "b/S.h5", {"features": values, "coords": corners}, **stated))
    # CLAM keeps the size of its patches with the coordinates alone.
    clam = write_h5(tmp_path / "clam/h5_files/S.h5", {"features": values[None], "coords": corners[None]})
    with pytest.raises(ValueError, match="--features-patch-px"):
        read_patch_features(clam)
    about = {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0)}
    write_h5(tmp_path / "clam/patches/S.h5", {"coords": corners}, **about)
    three = read_patch_features(clam)
    # HEST's benchmark: embeddings with barcodes.
    names = np.array([[f"spot{i}".encode()] for i in range(5)])
    hest = write_h5(tmp_path / "hest/S.h5", {"embeddings": values, "coords": corners, "barcodes": names})
    four = read_patch_features(hest, patch_px=512)
    for found in (one, two, three, four):
        assert found.slide_id == "S" and found.side_px == 512
        np.testing.assert_array_equal(found.values, values)
        np.testing.assert_array_equal(found.centres, corners + 256)
    assert four.barcodes.tolist() == [f"spot{i}" for i in range(5)]
    assert read_patch_features(hest).centres is None  # found by name
    assert one.patch_um(0.25) == 128
    one.check_scale(0.25)
    with pytest.raises(
        ValueError, match="magnification of 40, which is about 0.25 um per pixel, but the slide has 1 um"
    ):
        one.check_scale(1.0)


def pretrain_in_one_rank(rank: int, options: list[str]) -> None:
    pretrain_main(options)


def test_two_processes_train_as_one_with_the_joined_batch(trident, toy_folder, tmp_path):
    """The same weights but for rounding: in every process features are found by spot, and negatives are those of both."""
    (tmp_path / "genes.txt").write_text("\n".join(f"TOY{number:03d}" for number in range(12)))
    options = ["--dataset", str(toy_folder), "--train_slides", "toy_A1,toy_A2", "--validation_slides", "toy_B1"]
    options += ["--features", str(trident), "--max_steps", "2", "--projection_dim", "8", "--gene_dropout", "0"]
    options += ["--vocabulary", str(tmp_path / "genes.txt"), "--gene_hidden_size", "16", "--report_to", "none"]
    options += ["--disable_tqdm", "true", "--use_cpu", "true"]
    pretrain_main([*options, "--per_device_train_batch_size", "16", "--output_dir", str(tmp_path / "one")])
    options += ["--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "8"]
    in_ranks(pretrain_in_one_rank, options)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_files_are_read_as_the_two_programs_write_them(tmp_path):
    """Resizable data that grew batch by batch, whole numbers, and every attribute of trident/IO.py and CLAM's save_hdf5."""
    values, corners = GENERATOR.normal(size=(7, 3)).astype(np.float32), GENERATOR.integers(0, 4000, (7, 2))

    def write(path, arrays, attributes):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                size = array.shape[1:]
                data = file.create_dataset(
                    name, (4, *size), maxshape=(None, *size), chunks=(1, *size), dtype=array.dtype
                )
                data[:] = array[:4]
                data.resize(len(array), axis=0)
                data[4:] = array[4:]
                data.attrs.update(attributes.get(name, {}))
        return path

    about = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    about |= {"overlap": 0, "name": "S", "savetodir": "job/20x_256px_0px_overlap", "level0_width": 9000}
    about |= {"level0_height": 8000}
    both = {"features": values, "coords": corners.astype(np.int64)}
    named = {"coords": about, "features": {"name": "S", "savetodir": "None"}}
    one = read_patch_features(write(tmp_path / "trident/features_uni_v1/S.h5", both, named))
    about = {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0), "downsampled_level_dim": (4500, 4000)}
    about |= {"level_dim": (4500, 4000), "name": "S", "save_path": "patches"}
    write(tmp_path / "clam/patches/S.h5", {"coords": corners.astype(np.int32)}, {"coords": about})
    two = read_patch_features(write(tmp_path / "clam/h5_files/S.h5", {**both, "coords": corners.astype(np.int32)}, {}))
    for found in (one, two):
        assert found.slide_id == "S" and found.side_px == 512
        np.testing.assert_array_equal(found.values, values)
        np.testing.assert_array_equal(found.centres, corners + 256)


@pytest.mark.parametrize(("custom", "patch_px"), [(1, None), (2, None), (1, 1024)])
def test_coords_of_a_bag_of_patches_of_clam_are_in_pixels_of_their_level(custom, patch_px, tmp_path):
    """As CLAM's WholeSlideImage._getPatchGenerator and initialize_hdf5_bag write them: x // (downsample * custom)."""
    values, full = GENERATOR.normal(size=(5, 3)).astype(np.float32), 8 * GENERATOR.integers(0, 999, (5, 2))
    coords, side = full // (4 * custom), 256 // custom
    (tmp_path / "patches").mkdir()
    with h5py.File(tmp_path / "patches/S.h5", "w") as file:
        bag = file.create_dataset("imgs", data=np.zeros((5, side, side, 3), np.uint8))
        bag.attrs.update({"patch_level": 1, "wsi_name": "S", "downsample": (4.0, 4.0), "level_dim": (9000, 7000)})
        bag.attrs["downsampled_level_dim"] = (9000 // custom, 7000 // custom)
        file.create_dataset("coords", data=coords.astype(np.int32))
    path = write_h5(tmp_path / "h5_files/S.h5", {"features": values, "coords": coords})
    found = read_patch_features(path, patch_px)
    assert found.side_px == 1024
    np.testing.assert_array_equal(found.centres, full + 512)
    with h5py.File(tmp_path / "patches/S.h5", "a") as file:
        del file["imgs"].attrs["downsample"]
    with pytest.raises(ValueError, match="pixels of level 1 .* Make coordinates and features again"):
        read_patch_features(path, patch_px)


def test_spots_are_joined_by_the_patch_they_lie_in(toy_study, tmp_path, caplog):
    """Beside a comparison of every spot with every patch; spots outside of all patches are left out."""
    table = spots_of(toy_study, "toy_A1")
    side, mpp = 60.0, float(toy_study.slides["mpp"].iloc[0])
    grid = np.stack(np.meshgrid(np.arange(0, 400, side), np.arange(0, 300, side)), -1).reshape(-1, 2)
    values = GENERATOR.normal(size=(len(grid), 4)).astype(np.float16)
    write_h5(tmp_path / "toy_A1_patches.h5", {"features": values, "coords": grid}, patch_size_level0=side)
    study, features = join_features(tmp_path, toy_study, ["toy_A1"])
    inside = [
        [row for row, (left, top) in enumerate(grid) if left <= x <= left + side and top <= y <= top + side]
        for x, y in zip(table["x"], table["y"], strict=True)
    ]
    covered = [index for index, rows in zip(table["spot_index"], inside, strict=True) if rows]
    assert 0 < len(covered) < len(table) and f"{len(table) - len(covered)} of {len(table)} spots have no" in caplog.text
    assert list(study.subset(["toy_A1"])["spot_index"]) == covered
    assert len(study.subset(["toy_B1"])) == len(toy_study.subset(["toy_B1"]))
    for index, rows in zip(table["spot_index"], inside, strict=True):
        if rows:
            assert any((features[[index]][0] == values[row]).all() for row in rows)
    assert features.patch_um == (pytest.approx(side * mpp),) and features.width == 4


@pytest.mark.parametrize("kind", ["npy", "parquet", "npz", "positions"])
def test_arrays_are_joined_by_order_name_or_place(kind, toy_study, tmp_path):
    table = spots_of(toy_study, "toy_A2")
    values = GENERATOR.normal(size=(len(table), 3)).astype(np.float32)
    order = GENERATOR.permutation(len(table))
    if kind == "npy":
        np.save(tmp_path / "toy_A2.npy", values)
    elif kind == "npz":
        np.savez(tmp_path / "toy_A2.npz", features=values[order], barcode=table["barcode"].to_numpy(str)[order])
    else:
        frame = pd.DataFrame(values[order], columns=["f0", "f1", "f2"])
        names = ["barcode"] if kind == "parquet" else ["x", "y"]
        frame[names] = table[names].to_numpy()[order]
        frame.to_parquet(tmp_path / "toy_A2.parquet")
    study, features = join_features(tmp_path, toy_study, ["toy_A2"])
    np.testing.assert_array_equal(features[table["spot_index"]], values)
    assert len(study.spots) == len(toy_study.spots)


def test_what_does_not_fit_is_refused(toy_study, trident, tmp_path):
    table = spots_of(toy_study, "toy_A1")
    with pytest.raises(FileNotFoundError, match="Give the folder of the files"):
        join_features(tmp_path / "none", toy_study, ["toy_A1"])
    with pytest.raises(FileNotFoundError, match="no features of toy_A1.*Rename them, or leave the slide out"):
        find_feature_files(tmp_path, ["toy_A1"])
    for name in ("toy_A1.h5", "toy_A1_features.h5"):
        shutil.copy(trident / "toy_A1.h5", tmp_path / name)
    with pytest.raises(ValueError, match="several files"):
        find_feature_files(tmp_path, ["toy_A1"])
    one, values = tmp_path / "one", np.zeros((len(table), 3), np.float32)
    far = {"features": values, "coords": table[["x", "y"]].to_numpy() * 9}
    write_h5(one / "toy_A1.h5", far, patch_size_level0=20)
    with pytest.raises(
        ValueError, match="only .* spots of toy_A1 have features; patches lie at x .* pixels of one image"
    ):
        join_features(one, toy_study, ["toy_A1"])
    write_h5(one / "toy_A1.h5", {**far, "coords": table[["x", "y"]]}, patch_size_level0=20, mpp=9.0)
    with pytest.raises(ValueError, match="made at 9 um per pixel, but the slide has"):
        join_features(one, toy_study, ["toy_A1"])
    write_h5(one / "toy_A1.h5", {"img": np.zeros((2, 4, 4, 3), np.uint8), "coords": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="holds patches.*delst prepare hest"):
        join_features(one, toy_study, ["toy_A1"])
    (one / "toy_A1.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"cannot read .*toy_A1.h5"):
        join_features(one, toy_study, ["toy_A1"])
    (one / "toy_A1.h5").unlink()
    values[3, 1] = np.nan
    np.save(one / "toy_A1.npy", values)
    with pytest.raises(ValueError, match="1 features are not finite"):
        join_features(one, toy_study, ["toy_A1"])
    np.save(one / "toy_A1.npy", values[:-1])
    with pytest.raises(ValueError, match="one row per spot, in the order of the dataset"):
        join_features(one, toy_study, ["toy_A1"])


def test_a_model_trained_on_features_says_so(features_model, trident, toy_folder, tmp_path):
    config = DelstConfig.from_pretrained(features_model)
    assert config.vision_config.model_type == "delst_features" and config.vision_config.encoder == "features_toy"
    record = json.loads((features_model / "training.json").read_text())
    assert record["data"]["patch_um"] == "112" and record["data"]["features"] == "features_toy"
    model = DelstModel.from_pretrained(features_model)
    assert not [name for name in model.state_dict() if name.startswith("vision_model")]
    assert "reads features of 16 numbers made elsewhere (features_toy)" in model_card(features_model, "me/x")
    with pytest.raises(ValueError, match="reads features of width 16 that were computed elsewhere"):
        model.get_image_features(torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def features_head(features_model, trident, toy_folder, tmp_path_factory):
    """An expression head on the features, fitted by the command line, with a reference."""
    head = tmp_path_factory.mktemp("features_head") / "head"
    options = ["--features", str(trident), "--quiet"]
    assert main(["fit", str(features_model), str(toy_folder), *options, "--output", str(head)]) == 0
    assert main(["reference", str(head), str(toy_folder), *options, "--size", "30"]) == 0
    return head


def test_the_head_is_that_of_the_backbone(features_head, toy_heads):
    """Features of a backbone, kept in files, and its patches give one and the same head, with the same scores."""
    folders = features_head, toy_heads / "expression"
    found, expected = (DelstForGeneExpressionPrediction.from_pretrained(folder).regressor for folder in folders)
    np.testing.assert_allclose(found.weight.detach(), expected.weight.detach(), atol=2e-4)
    one, other = (json.loads((folder / "training.json").read_text())["head"] for folder in folders)
    assert one["scores"]["gene"] == other["scores"]["gene"] and one["alpha"] == other["alpha"]
    scores = [np.array(head["scores"]["pearson"], dtype=float) for head in (one, other)]
    np.testing.assert_allclose(*scores, atol=2e-4)


def test_a_file_of_features_is_predicted(features_head, trident, toy_study, tmp_path):
    """Also a slide that is no dataset: each patch where it lies, with the head's own prediction of its feature."""
    mpp = dict(zip(toy_study.slide_ids, toy_study.slides["mpp"], strict=True))["toy_B1"]
    command = [
        "predict",
        str(features_head),
        str(trident / "toy_B1.h5"),
        "--quiet",
        "--output",
        str(tmp_path / "b.h5ad"),
    ]
    assert main(command) == 2  # the scale is not known
    assert main([*command, "--mpp", str(mpp)]) == 0
    adata = anndata.read_h5ad(tmp_path / "b.h5ad")
    given = read_patch_features(trident / "toy_B1.h5")
    np.testing.assert_allclose(adata.obsm["spatial"], given.centres)
    model = DelstForGeneExpressionPrediction.from_pretrained(features_head).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(given.values)).logits
    np.testing.assert_allclose(adata.X, expected, atol=1e-5)
    assert adata.uns["delst"]["patch_um"] == pytest.approx(112) and (adata.obs["delst_reference_distance"] > 0).all()


def test_spots_of_a_dataset_are_predicted(features_head, trident, toy_folder, toy_study, tmp_path):
    command = [
        "predict",
        str(features_head),
        str(toy_folder),
        "--features",
        str(trident),
        "--slides",
        "toy_B1",
        "--quiet",
    ]
    assert main([*command, "--output", str(tmp_path / "spots.parquet")]) == 0
    table, spots = pd.read_parquet(tmp_path / "spots.parquet"), spots_of(toy_study, "toy_B1")
    assert table.index.tolist() == spots["barcode"].tolist()
    np.testing.assert_allclose(table[["x", "y"]], spots[["x", "y"]])


def test_features_are_evaluated_alone_and_through_a_model(features_model, trident, toy_folder, tmp_path, capsys):
    options = ["--protocols", "arms", "--resamples", "5", "--train-slides", "toy_A1,toy_A2", "--test-slides", "toy_B1"]
    names = {}
    for name, model in (("alone", trident), ("model", features_model)):
        command = ["evaluate", str(model), str(toy_folder), *options, "--output", str(tmp_path / f"{name}.json")]
        assert main([*command, *(["--features", str(trident)] if name == "model" else [])]) == 0
        results = json.loads((tmp_path / f"{name}.json").read_text())
        names[name] = {row["arm"]: row for row in results["protocols"] if row["protocol"] == "arms"}
    assert {"colour statistics", "features_toy"} <= set(names["alone"])
    assert {"colour statistics", "DELST features"} <= set(names["model"])
    assert not [arm for arm in names["model"] if "random" in arm or "frozen" in arm]


def test_features_and_patches_are_not_taken_for_each_other(
    features_model, features_head, toy_heads, trident, toy_folder, tmp_path
):
    dataset, output = str(toy_folder), tmp_path / "x"
    with pytest.raises(ValueError, match="reads features of 16 numbers that features_toy made.*--features DIR"):
        fit_head(str(features_model), dataset, output, progress=False)
    with pytest.raises(ValueError, match="has a vit backbone and reads patches, not features"):
        fit_head(str(toy_heads / "expression"), dataset, output, features=str(trident), progress=False)
    with pytest.raises(ValueError, match="their file in place of a slide"):
        predict_slide(str(features_head), tmp_path / "he.png", tmp_path / "x.h5ad")
    narrow = write_h5(
        tmp_path / "f" / "S.h5", {"features": np.zeros((2, 3)), "coords": np.zeros((2, 2))}, patch_size_level0=112
    )
    with pytest.raises(ValueError, match="features of 16 numbers .* and these have 3"):
        predict_slide(str(features_head), narrow, tmp_path / "x.h5ad", choice=PatchChoice(mpp=1.0))
    with pytest.raises(
        ValueError,
        match="trained on patches of 112 um, but the features are of patches of 56 um.*Compute the features again",
    ):
        predict_slide(str(features_head), trident / "toy_B1.h5", tmp_path / "x.h5ad", choice=PatchChoice(mpp=1.0))
    with pytest.raises(ValueError, match="--vision would have no effect"):
        pretrain_main(
            ["--dataset", dataset, "--features", str(trident), "--vision", "vit", "--output_dir", str(output)]
        )
    assert main(["evaluate", str(toy_heads / "expression"), dataset, "--features", str(trident)]) == 2
    assert not output.exists() or not any(output.iterdir())


@pytest.mark.parametrize("kind", ["lists", "columns"])
def test_features_of_a_table_keep_the_precision_of_the_file(kind, tmp_path):
    values = GENERATOR.normal(size=(5, 3)).astype(np.float32)
    table = pd.DataFrame({"features": list(values)}) if kind == "lists" else pd.DataFrame(values, columns=list("abc"))
    table.assign(barcode=list("vwxyz")).to_parquet(tmp_path / "slide.parquet")
    found = read_patch_features(tmp_path / "slide.parquet").values
    assert found.dtype == np.float32 and np.array_equal(found, values)
