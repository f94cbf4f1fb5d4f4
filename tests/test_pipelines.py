"""The pipelines against the model and the processor called by hand."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from delst_hf import DelstForGeneExpressionPrediction, DelstModel


@pytest.fixture
def folder(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def spots(toy_study):
    rows = toy_study.spots.select(range(3))
    return rows["image"][:], toy_study.counts(rows).toarray(), list(toy_study.gene_names)


@pytest.fixture
def expected(folder, tiny_processor, spots):
    inputs = tiny_processor(*spots, return_tensors="pt")
    with torch.no_grad():
        output = DelstModel.from_pretrained(folder)(**inputs)
    return output.image_embeds.numpy(), output.gene_embeds.numpy()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_patches_and_counts_are_embedded(folder, spots, expected, batch_size, tmp_path):
    images, counts, names = spots
    embed = pipeline("spot-embedding", model=folder, device="cpu")
    image_embeds, gene_embeds = expected
    path = tmp_path / "patch.png"
    images[0].save(path)
    for given in (images, [{"image": image} for image in images], [str(path), *images[1:]]):
        answers = embed(given, batch_size=batch_size)
        assert all(list(answer) == ["image_embeds"] for answer in answers)
        np.testing.assert_allclose([answer["image_embeds"] for answer in answers], image_embeds, rtol=1e-4, atol=1e-5)
    as_rows = [{"counts": row, "gene_names": names} for row in counts]
    as_mappings = [{"counts": dict(zip(names, row.tolist(), strict=True))} for row in counts]
    for given in (as_rows, as_mappings):
        answers = embed(given, batch_size=batch_size)
        np.testing.assert_allclose([answer["gene_embeds"] for answer in answers], gene_embeds, rtol=1e-4, atol=1e-5)
    answers = embed([{"counts": row} for row in counts], gene_names=names)
    np.testing.assert_allclose([answer["gene_embeds"] for answer in answers], gene_embeds, rtol=1e-4, atol=1e-5)
    both = embed({"image": images[1], "counts": counts[1], "gene_names": names})
    np.testing.assert_allclose(both["image_embeds"], image_embeds[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both["gene_embeds"], gene_embeds[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"EPCAM": 3}, {}, {"gene_names": ["EPCAM"]}])
def test_what_is_not_a_spot_is_refused(folder, wrong):
    with pytest.raises(ValueError, match="is not known. Give a patch, or a dict with 'image', 'counts' or both"):
        pipeline("spot-embedding", model=folder, device="cpu")(wrong)


def test_counts_of_several_spots_are_not_one_input(folder, spots):
    """All but the first would be dropped without a word."""
    with pytest.raises(
        ValueError, match="An input is one spot, but its counts have 3 rows. Give a list with one dict per"
    ):
        pipeline("spot-embedding", model=folder, device="cpu")({"counts": spots[1], "gene_names": spots[2]})


def test_a_checkpoint_without_a_head_predicts_nothing(folder, spots, tiny_processor):
    with pytest.raises(ValueError, match="was saved as DelstModel, without a head for expression. Fit one: delst fit"):
        pipeline("gene-expression-prediction", model=folder, device="cpu")
    model = DelstForGeneExpressionPrediction.from_pretrained(folder).eval()
    torch.nn.init.ones_(model.regressor.bias)  # trained since it was loaded
    assert pipeline("gene-expression-prediction", model=model, processor=tiny_processor, device="cpu")(spots[0][0])


def test_expression_of_patches(folder, spots, tiny_processor, tmp_path):
    images, _, _ = spots
    model = DelstForGeneExpressionPrediction.from_pretrained(folder).eval()
    model.save_pretrained(tmp_path / "expression")
    tiny_processor.save_pretrained(tmp_path / "expression")
    vocabulary = tiny_processor.feature_extractor.vocabulary
    predict = pipeline("gene-expression-prediction", model=str(tmp_path / "expression"), device="cpu")
    with torch.no_grad():
        expected = model(tiny_processor(images=images, return_tensors="pt")["pixel_values"]).logits
    for answer, logits in zip(predict(images), expected, strict=True):
        assert list(answer) == vocabulary
        np.testing.assert_allclose(list(answer.values()), logits.numpy(), rtol=1e-4, atol=1e-5)
    chosen = [vocabulary[4], vocabulary[0]]
    assert list(predict(images[0], genes=chosen)) == chosen
    with pytest.raises(ValueError, match=r"genes \['nonsense'\] are not in this model's vocabulary"):
        predict(images[0], genes=["nonsense"])
