"""DelstProcessor: both modalities through one object, saved and loaded as one folder."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, ViTConfig, ViTImageProcessorPil, pipeline

from delst_hf import DelstConfig, DelstGeneFeatureExtractor, DelstModel, DelstProcessor

NAMES = ["A", "B", "X"]
COUNTS = np.array([[1, 2, 3], [0, 5, 0]])


def make_processor() -> DelstProcessor:
    image_processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    return DelstProcessor(image_processor, DelstGeneFeatureExtractor(["B", "A", "C"], target_sum=50))


def make_images(n: int = 2) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


def test_images_and_counts():
    batch = make_processor()(images=make_images(), counts=COUNTS, gene_names=NAMES, return_tensors="pt")
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values": (2, 3, 32, 32),
        "gene_values": (2, 3),
        "gene_mask": (2, 3),
        "level": (2,),
    }
    expected = (np.stack([np.asarray(image) for image in make_images()]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(batch["pixel_values"].numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    np.testing.assert_allclose(batch["gene_values"][0].numpy(), np.log1p([50 * 2 / 6, 50 / 6, 0]), rtol=1e-6)
    assert batch["gene_mask"].tolist() == [[True, True, False]] * 2
    assert batch["level"].tolist() == [3, 1]
    assert all(isinstance(value, torch.Tensor) for value in batch.values())


def test_one_modality_alone():
    processor = make_processor()
    assert set(processor(images=make_images(1)[0], return_tensors="pt")) == {"pixel_values"}
    genes = processor(counts=COUNTS, gene_names=NAMES, return_tensors="np")
    assert set(genes) == {"gene_values", "gene_mask", "level"}
    assert isinstance(genes["gene_values"], np.ndarray)


def test_arguments_of_the_image_processor_are_passed_on():
    raw = make_processor()(images=make_images(), return_tensors="pt", do_normalize=False, do_rescale=False)
    assert raw["pixel_values"].max() > 200


def test_images_of_every_form_are_the_same_pixels():
    images = make_images()
    processor = make_processor()
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    arrays = np.stack([np.asarray(image) for image in images])
    first = torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy())
    forms = {
        "floats from 0 to 1": arrays.astype(np.float32) / 255, "one by one": list(arrays / 255),
        "tensors from 0 to 1": first.float() / 255, "channels first": first.numpy(), "floats to 255": arrays.astype(np.float32),
        "opaque": [image.convert("RGBA") for image in images],
        "four channels": [np.asarray(image.convert("RGBA")) for image in images],
    }  # fmt: skip
    for form, given in forms.items():
        found = processor(images=given, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found, expected, msg=form)
    grey = [image.convert("L") for image in images]
    by_mode = processor(images=grey, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        processor(images=[np.asarray(one) for one in grey], return_tensors="pt")["pixel_values"], by_mode
    )
    assert by_mode.shape == expected.shape
    # What is transparent is white; what the image processor is told not to rescale stays as it is.
    clear = images[0].convert("RGBA")
    clear.putalpha(0)
    white = Image.new("RGB", clear.size, "white")
    two = processor(images=[clear, white], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(two[0], two[1])
    kept = processor(images=arrays / 255, return_tensors="pt", do_rescale=False)["pixel_values"]
    torch.testing.assert_close(kept.float(), expected, atol=0.02, rtol=0)


def test_nothing_to_process():
    with pytest.raises(ValueError, match="Nothing to process: pass images=, counts= with gene_names=, or both"):
        make_processor()()


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="3 images but 2 rows of counts: row i of both must be the same spot"):
        make_processor()(images=make_images(3), counts=COUNTS, gene_names=NAMES, return_tensors="pt")


def test_counts_are_checked():
    with pytest.raises(ValueError, match="gene_names is missing"):
        make_processor()(counts=COUNTS)


def test_model_input_names():
    names = make_processor().model_input_names
    assert names == ["pixel_values", "gene_values", "gene_mask", "level"]


def test_save_and_load_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    processor = make_processor()
    tiny = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "image_size": 32,
    }
    model = DelstModel(DelstConfig(vision_config={"model_type": "vit", **tiny}, gene_config={"num_genes": 3})).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = processor(images=make_images(), counts=COUNTS, gene_names=NAMES, return_tensors="pt")
    for loaded in (DelstProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is DelstProcessor
        assert type(loaded.image_processor) is ViTImageProcessorPil
        assert type(loaded.feature_extractor) is DelstGeneFeatureExtractor
        assert loaded.feature_extractor.vocabulary == ["B", "A", "C"]
        assert loaded.feature_extractor.target_sum == 50
        batch = loaded(images=make_images(), counts=COUNTS, gene_names=NAMES, return_tensors="pt")
        assert list(batch) == list(expected)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert isinstance(model.config.vision_config, ViTConfig)
    with torch.no_grad():
        output = DelstModel.from_pretrained(tmp_path)(**batch, return_loss=True)
        assert torch.equal(output.loss, model(**batch, return_loss=True).loss)
    assert torch.isfinite(output.loss)


def test_pixels_do_not_depend_on_whether_torchvision_is_installed(tmp_path, monkeypatch):
    """Where it is, transformers prefers its image processors, whose resizing differs, unless the other kind is asked for."""
    from transformers.models.auto import image_processing_auto as auto

    make_processor().save_pretrained(tmp_path)
    DelstModel(DelstConfig(vision_config=ViTConfig(image_size=32), gene_config={"num_genes": 3})).save_pretrained(
        tmp_path
    )
    expected = make_processor()(images=make_images(), return_tensors="np")["pixel_values"]
    asked = []
    load = auto._load_backend_class

    def load_and_note(name, backend, *args, **kwargs):
        asked.append(backend)
        return load(name, backend, *args, **kwargs)

    monkeypatch.setattr(auto, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(auto, "_load_backend_class", load_and_note)
    for processor in (
        DelstProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
        pipeline("spot-embedding", model=str(tmp_path)).processor,
    ):
        assert type(processor.image_processor) is ViTImageProcessorPil
        np.testing.assert_array_equal(processor(images=make_images(), return_tensors="np")["pixel_values"], expected)
    assert len(asked) == 3
    assert set(asked) == {"pil"}
