"""Colour normalisation against arithmetic in float64 by the papers, and the same pixels by every way to the model."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from delst_hf.data.collator import DelstCollator, PixelTransform
from delst_hf.model.feature_extraction_delst import DelstGeneFeatureExtractor
from delst_hf.model.processing_delst import DelstProcessor
from delst_hf.model.stain_normalization import normalize_stains
from delst_hf.pretraining.arguments import ModelArguments
from delst_hf.pretraining.run import build

SIDE = 32
ZERO, ONE = torch.zeros(3), torch.ones(3)
HE = np.array([[0.65, 0.70, 0.29], [0.27, 0.87, 0.41]])  # haematoxylin and eosin of one laboratory
OTHER = np.array([[0.50, 0.75, 0.43], [0.15, 0.82, 0.55]])  # and of another
HE, OTHER = (stains / np.linalg.norm(stains, axis=1, keepdims=True) for stains in (HE, OTHER))


def tissue(stains, strength=1.0, glass=False, seed=0):
    """A patch (SIDE, SIDE, 3) of 0 to 255, of pixels of either stain and of mixtures; glass in its first rows if asked."""
    rng = np.random.default_rng(seed)
    concentration = rng.gamma(2.0, 0.5, (SIDE * SIDE, 2)) * np.where(rng.random((SIDE * SIDE, 2)) < 0.3, 0.03, 1) + 0.25
    light = 240 * np.exp(-strength * concentration @ stains)
    light = light.reshape(SIDE, SIDE, 3)
    if glass:
        light[: SIDE // 4] = 238
    return light.clip(0, 255)


def batch(*patches):
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / 255


def to_lab(rgb):
    """Ruderman's colour space of pixels (pixels, 3) of 0 to 255."""
    lms = np.log(
        np.maximum(rgb, 1) @ np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]).T
    )
    return np.stack(
        [lms.sum(1) / 3**0.5, (lms[:, 0] + lms[:, 1] - 2 * lms[:, 2]) / 6**0.5, (lms[:, 0] - lms[:, 1]) / 2**0.5],
        axis=1,
    )


def macenko_by_hand(patch):
    """(pixels, 3) of 0 to 255, patch by patch in float64 as the paper says."""
    density = -np.log((patch.reshape(-1, 3) + 1) / 240)
    kept = density[(density > 0.15).all(axis=1)]
    vectors = np.linalg.eigh(np.cov(kept.T))[1][:, [2, 1]]
    vectors *= np.where(vectors.sum(axis=0) < 0, -1, 1)
    angle = np.arctan2(kept @ vectors[:, 1], kept @ vectors[:, 0])
    ends = [vectors @ (np.cos(a), np.sin(a)) for a in np.percentile(angle, [1, 99])]
    stains = np.stack(sorted(ends, key=lambda stain: -stain[0]), axis=1)
    concentration = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    concentration *= (np.array([1.9705, 1.0308]) / np.percentile(concentration, 99, axis=1))[:, None]
    reference = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
    return (240 * np.exp(-reference @ concentration)).T.clip(0, 255)


def test_reinhard_gives_the_tissue_the_mean_and_the_spread_of_the_reference():
    patch = tissue(HE, strength=0.6, glass=True)
    result = normalize_stains(batch(patch), "reinhard", ZERO, ONE)[0].permute(1, 2, 0).double().numpy() * 255
    bare = SIDE // 4
    np.testing.assert_allclose(result[:bare], patch[:bare], atol=1e-3)
    rgb = result[bare:].reshape(-1, 3)
    inside = ((rgb > 0.5) & (rgb < 254.5)).all(axis=1)
    assert inside.mean() > 0.8
    before = to_lab(patch[bare:].reshape(-1, 3))
    kept = (-np.log((patch[bare:].reshape(-1, 3) + 1) / 240) > 0.15).all(axis=1)
    expected = (before - before[kept].mean(0)) / before[kept].std(0, ddof=1) * (0.6135447, 0.10989545, 0.0286032)
    expected += (8.74108109, -0.12440419, 0.0444982)
    np.testing.assert_allclose(to_lab(rgb)[inside & kept], expected[inside & kept], atol=2e-3)


def test_macenko_is_that_of_the_paper():
    patches = [tissue(HE, glass=True), tissue(OTHER, 1.4, seed=1)]
    result = normalize_stains(batch(*patches), "macenko", ZERO, ONE).permute(0, 2, 3, 1).numpy() * 255
    for ours, patch in zip(result, patches, strict=True):
        np.testing.assert_allclose(ours.reshape(-1, 3), macenko_by_hand(patch), atol=0.05)


@pytest.mark.parametrize(("method", "least"), [("reinhard", 2), ("macenko", 4)])
def test_tissue_dyed_by_two_laboratories_comes_out_alike(method, least):
    first, second = batch(tissue(HE, 0.7)), batch(tissue(OTHER, 1.2))
    before = (first - second).abs().mean()
    after = (normalize_stains(first, method, ZERO, ONE) - normalize_stains(second, method, ZERO, ONE)).abs().mean()
    assert after < before / least


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_a_patch_without_stains_is_left_and_none_turns_into_noise(method):
    glass, black = torch.full((3, SIDE, SIDE), 0.95), torch.zeros(3, SIDE, SIDE)
    one_stain = batch(tissue(HE[[0, 0]]))[0]
    result = normalize_stains(torch.stack([glass, black, one_stain]), method, ZERO, ONE)
    assert torch.equal(result[0], glass)
    assert torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


def test_a_patch_does_not_hang_on_its_neighbours_in_the_batch():
    patches = batch(tissue(HE), tissue(OTHER, glass=True), tissue(HE, 0.5, seed=3))
    for method in ("reinhard", "macenko"):
        together = normalize_stains(patches, method, ZERO, ONE)
        alone = torch.cat([normalize_stains(patch[None], method, ZERO, ONE) for patch in patches])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def processor_of(method, **image_options):
    image_processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, **image_options)
    return DelstProcessor(image_processor, DelstGeneFeatureExtractor(vocabulary=["A", "B"]), method)


@pytest.mark.parametrize("method", ["none", "reinhard", "macenko"])
@pytest.mark.parametrize("options", [{}, {"do_normalize": False}])
def test_every_way_to_the_model_gives_the_same_pixels(method, options):
    pictures = [Image.fromarray(tissue(stains).round().astype(np.uint8)) for stains in (HE, OTHER)]
    processor = processor_of(method, **options)
    by_processor = processor(images=pictures, return_tensors="pt")["pixel_values"]
    plain = processor_of("none", **options)(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(by_processor, plain) == (method == "none")
    assert by_processor.shape == plain.shape and by_processor.dtype == plain.dtype
    tolerance = {"atol": 1e-4 * float(plain.abs().max()), "rtol": 0}

    files = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        files.append({"bytes": file.getvalue()})
    collator = DelstCollator(processor, ["A", "B"], ["S"])
    torch.testing.assert_close(collator.pixel_values(files), by_processor, **tolerance)
    deferring = DelstCollator(processor, ["A", "B"], ["S"], defer_pixels=True)
    left = {"pixel_values": deferring.pixel_values(files)}
    torch.testing.assert_close(deferring.finish(left)["pixel_values"], by_processor, **tolerance)
    transform = PixelTransform.from_processor(processor)
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    torch.testing.assert_close(transform(pixels), by_processor, **tolerance)
    as_arrays = processor(images=pictures, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(as_arrays, by_processor.numpy(), rtol=1e-6)


def test_patches_that_are_resized_are_normalised_afterwards():
    large = Image.fromarray(tissue(HE).round().astype(np.uint8)).resize((80, 80))
    processor = processor_of("reinhard")
    file = io.BytesIO()
    large.save(file, "PNG")
    collator = DelstCollator(processor, ["A", "B"], ["S"])
    expected = processor(images=large, return_tensors="pt")["pixel_values"]
    assert torch.equal(collator.pixel_values([{"bytes": file.getvalue()}]), expected)
    assert not torch.equal(expected, processor_of("none")(images=large, return_tensors="pt")["pixel_values"])


def test_a_folder_keeps_the_normalisation_and_an_older_one_has_none(tmp_path):
    processor_of("macenko").save_pretrained(tmp_path)
    assert DelstProcessor.from_pretrained(tmp_path).stain_normalization == "macenko"
    text = (tmp_path / "processor_config.json").read_text()
    (tmp_path / "processor_config.json").write_text(text.replace('"stain_normalization": "macenko"', '"nothing": 0'))
    assert DelstProcessor.from_pretrained(tmp_path).stain_normalization == "none"


def test_a_normalisation_that_is_not_known_is_refused():
    with pytest.raises(
        ValueError, match="stain_normalization='vahadane' is not known. Choose one of 'none', 'reinhard'"
    ):
        processor_of("vahadane")


def test_the_option_of_a_run_reaches_its_processor_and_no_features():
    arguments = ModelArguments(image_size=SIDE, stain_normalization="reinhard", vision_config=VIT)
    assert build(arguments, ["A", "B"])[1].stain_normalization == "reinhard"
    features = SimpleNamespace(width=8, encoder="uni")
    with pytest.raises(ValueError, match="--stain_normalization reinhard changes patches, and --features has none"):
        build(arguments, ["A", "B"], features)


VIT = (
    '{"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, '
    '"patch_size": 16}'
)
