"""A checkpoint as models of LazySlide, run by the real package on a slide; skipped where it is not installed."""

import numpy as np
import pytest
import tifffile
import torch
from conftest import as_stored

from delst_hf.data.toy import make_toy_slide
from delst_hf.prediction import load_predictor
from delst_hf.prediction.lazyslide import LazySlideFeatures, LazySlideTiles


def test_columns_are_what_the_predictor_says(toy_heads):
    predictor = load_predictor(str(toy_heads / "expression"), [str(toy_heads / "labels")])
    generator = np.random.default_rng(0)
    patches = [generator.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    expected = predictor([as_stored(patch) for patch in patches])
    model = LazySlideTiles(predictor)
    batch = torch.stack([model.get_transform()(patch) for patch in patches])
    found = model.predict(batch)
    assert tuple(found) == model.columns and model.columns[-1] == "delst_radius"
    genes = list(predictor.genes.index)
    np.testing.assert_allclose(found[genes[4]], expected["expression"][:, 4], atol=1e-5)
    np.testing.assert_allclose(found[f"p_{predictor.classes[1]}"], expected["probabilities"][:, 1], atol=1e-5)
    np.testing.assert_allclose(found["delst_radius"], expected["radius"], atol=1e-5)
    features = model.encode_image(batch).numpy()
    again = LazySlideFeatures(predictor).predict(features)
    assert all(np.allclose(again[name], found[name], atol=1e-5) for name in found)
    with pytest.raises(ValueError, match=r"reads \(tiles, 16\)"):
        LazySlideFeatures(predictor).predict(features[:, :3])


def test_lazyslide_runs_it_on_a_whole_slide(toy_heads, tmp_path):
    zs = pytest.importorskip("lazyslide", reason="the optional extra lazyslide is not installed")
    from wsidata import open_wsi

    slide = make_toy_slide("toy_C1", spots_per_side=6, image_px=400)
    pixels = np.asarray(slide.image).repeat(2, 0).repeat(2, 1)
    resolution = (1e4 / (slide.mpp / 2),) * 2
    tifffile.imwrite(
        tmp_path / "he.tif",
        pixels,
        tile=(256, 256),
        photometric="rgb",
        resolution=resolution,
        resolutionunit="CENTIMETER",
    )
    wsi = open_wsi(str(tmp_path / "he.tif"))
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, tile_px=112, mpp=slide.mpp / 2)
    tiles = LazySlideTiles(str(toy_heads / "expression"))
    zs.tl.tile_prediction(wsi, tiles, batch_size=8, pbar=False, device="cpu")
    table = wsi.shapes["tiles"]
    assert set(tiles.columns) <= set(table.columns) and len(table) > 4
    box = table.geometry.iloc[0].bounds
    left, top, right, bottom = map(round, box)
    own = tiles.predict(tiles.get_transform()(pixels[top:bottom, left:right])[None])
    gene = tiles.columns[3]
    assert table[gene].iloc[0] == pytest.approx(own[gene][0], abs=0.05)
    zs.tl.feature_extraction(wsi, tiles, batch_size=8, pbar=False, device="cpu")
    zs.tl.feature_prediction(wsi, LazySlideFeatures(tiles.predictor), pbar=False, device="cpu")
    predicted = next(one for name, one in wsi.tables.items() if gene in one.var_names)
    np.testing.assert_allclose(np.asarray(predicted[:, gene].X).ravel(), table[gene], atol=1e-4)
