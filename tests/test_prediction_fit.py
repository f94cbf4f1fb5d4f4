"""Ridge from sums, held-out scores, logistic regression, and the checkpoints that hold them."""

import json
import re
from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from PIL import Image
from scipy.special import softmax
from transformers import ViTImageProcessorPil

import delst_hf
import delst_hf.prediction.fit as fit_module
from delst_hf import (
    DelstCollator,
    DelstForGeneExpressionPrediction,
    DelstForSpotClassification,
    DelstGeneFeatureExtractor,
    DelstProcessor,
)
from delst_hf.data.dataset import write_dataset
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide, make_toy_slides
from delst_hf.evaluation import gene_pearson, log_normalize, most_variable_genes
from delst_hf.evaluation.evidence import Evaluation
from delst_hf.evaluation.expression import ridge_prediction
from delst_hf.evaluation.run import evaluate_checkpoint
from delst_hf.hub.checkpoint_folder import save_checkpoint_folder
from delst_hf.prediction.fit import fit_head
from delst_hf.prediction.held_out import PearsonSums, class_scores, strips
from delst_hf.prediction.logistic import fit_logistic
from delst_hf.prediction.predict import PatchChoice, predict_slide
from delst_hf.prediction.predictor import load_predictor
from delst_hf.prediction.ridge import Moments, choose_ridge, fit_ridge

ALPHAS = (0.1, 1.0, 10.0, 100.0)


def rows(seed, number, width=6, genes=4):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(number, width)) * np.array([1, 2, 0.5, 1, 1, 0.01]) + 3
    targets = features @ generator.normal(size=(width, genes)) + generator.normal(size=(number, genes))
    return features, targets


def moments_of(features, targets, folds, panel=None):
    panel = np.ones(targets.shape[1], bool) if panel is None else panel
    found = {}
    for fold in np.unique(folds):
        one = found[(fold, panel.tobytes())] = Moments(features.shape[1], targets.shape[1])
        for part in np.array_split(np.flatnonzero(folds == fold), 3):  # in pieces, as shards come
            one.add(features[part], targets[part])
    return found


def test_ridge_from_sums_is_ridge():
    features, targets = rows(0, 90)
    folds, unseen = np.repeat(["a", "b", "c"], 30), rows(1, 10)[0]
    expected = ridge_prediction(features, targets, unseen, folds, ALPHAS)
    choice = choose_ridge(moments_of(features, targets, folds), ALPHAS)
    assert (choice.alpha, choice.floor) == (expected.alpha, expected.floor)
    np.testing.assert_allclose(choice.validation_pearson, expected.validation_pearson, atol=1e-8)
    found = fit_ridge(moments_of(features, targets, folds), choice.alpha, choice.floor)
    np.testing.assert_allclose(unseen @ found.weight + found.bias, expected.predicted, atol=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_nearly_dead_and_constant_features_are_scaled_as_the_evaluation_scales_them(floor):
    features, targets = rows(0, 90)
    features[:, 5] = np.where(np.arange(90) == 40, 1e-3, 0.0)  # alive in one spot of one slide
    features[:, 4] = 1e4  # constant and large, where squares lose the most digits
    folds, unseen = np.repeat(["a", "b", "c"], 30), rows(1, 10)[0]
    expected = ridge_prediction(features, targets, unseen, folds, ALPHAS, [floor])
    choice = choose_ridge(moments_of(features - features[0], targets, folds), ALPHAS, [floor])
    np.testing.assert_allclose(choice.validation_pearson, expected.validation_pearson, atol=1e-8)
    found = fit_ridge(moments_of(features - features[0], targets, folds), choice.alpha, floor)
    np.testing.assert_allclose((unseen - features[0]) @ found.weight + found.bias, expected.predicted, atol=1e-6)


def test_where_no_gene_varies_no_penalty_can_be_chosen():
    features, targets = rows(0, 60)
    with pytest.raises(ValueError, match="no alpha can be chosen. Give more training spots"):
        choose_ridge(moments_of(features, np.ones_like(targets), np.repeat(["a", "b"], 30)))


def test_a_gene_is_learned_from_the_slides_that_measure_it():
    features, targets = rows(0, 120)
    folds = np.repeat(["a", "b", "c", "d"], 30)
    panel, some = np.array([True, False, True, True]), folds > "b"
    wrong = np.where(panel, targets, 1e3)  # what stands where nothing was measured must not matter
    moments = moments_of(features[some], wrong[some], folds[some], panel) | moments_of(
        features[~some], targets[~some], folds[~some]
    )
    assert choose_ridge(moments, (1.0,)).alpha == 1.0
    found = fit_ridge(moments, 1.0, 0.1)
    whole = fit_ridge(moments_of(features, targets, folds), 1.0, 0.1)
    part = fit_ridge(moments_of(features[~some], targets[~some], folds[~some]), 1.0, 0.1)
    np.testing.assert_allclose(found.weight[:, panel], whole.weight[:, panel], atol=1e-9)
    np.testing.assert_allclose(found.weight[:, 1], part.weight[:, 1], atol=1e-9)


def test_one_slide_is_too_few():
    features, targets = rows(0, 30)
    with pytest.raises(ValueError, match="only a. Train on two slides"):
        choose_ridge(moments_of(features, targets, np.repeat("a", 30)))
    moments = moments_of(features, targets, np.repeat(["a", "b", "c"], 10))
    lonely = Moments(features.shape[1], 4)
    lonely.add(features, targets)
    only = np.array([True, True, True, False])
    moments = {(fold, only.tobytes()): one for (fold, _), one in moments.items()} | {("d", b"\1" * 4): lonely}
    with pytest.raises(ValueError, match="1 genes are measured in d only"):
        fit_ridge(moments, 1.0, 0.1)


def test_held_out_scores_are_means_over_slides_of_pearson():
    generator = np.random.default_rng(0)
    slides, y = np.repeat(["a", "b"], [40, 60]), generator.random(100)
    predicted, measured = generator.normal(size=(2, 100, 3))
    measured[:, 0] += 2 * predicted[:, 0]
    measured[slides == "b", 2] = 1.0  # constant there: only a says something
    mask = np.ones((100, 3), bool)
    mask[slides == "a", 1] = False
    units = strips(slides, y)
    assert np.bincount(units).tolist() == [5] * 8 + [8, 7, 8, 7, 8, 7, 8, 7]
    assert y[units == 0].max() < y[units == 7].min()
    sums = PearsonSums([slides[units == unit][0] for unit in range(16)], 3)
    for part in np.array_split(np.arange(100), 4):
        sums.add(units[part], predicted[part], measured[part], mask[part])
    scores = sums.scores(resamples=200)

    def pearson(gene, slide):
        here = slides == slide
        return np.corrcoef(predicted[here, gene], measured[here, gene])[0, 1]

    expected = [(pearson(0, "a") + pearson(0, "b")) / 2, pearson(1, "b"), pearson(2, "a")]
    np.testing.assert_allclose(scores["pearson"], expected, atol=1e-9)
    assert (scores["pearson_low"] < scores["pearson"]).all() and (scores["pearson_high"] > scores["pearson"]).all()
    assert scores["pearson_low"][0] > 0.5 and scores["pearson_low"][1] < 0 < scores["pearson_high"][1]


def test_intervals_are_over_slides_where_there_are_enough():
    generator = np.random.default_rng(0)
    slides = np.repeat(list("abcde"), 20)
    predicted = generator.normal(size=(100, 1))
    sign = np.where(slides < "c", 1.0, -1.0)[:, None]  # two slides agree, three contradict
    units = strips(slides, np.arange(100.0))
    sums = PearsonSums([slides[units == unit][0] for unit in range(40)], 1)
    sums.add(units, predicted, sign * predicted, np.ones((100, 1), bool))
    scores = sums.scores()
    assert scores["pearson"][0] == pytest.approx(-0.2)
    assert scores["pearson_low"][0] == pytest.approx(-1) and scores["pearson_high"][0] > 0.5


def test_logistic_regression_holds_groups_out():
    generator = np.random.default_rng(0)
    truth = generator.choice(["a", "b", "c"], 300)
    features = generator.normal(size=(300, 5)) + 4 * (truth[:, None] == np.array(["a", "b", "c", "x", "y"]))
    groups = np.repeat(["one", "two", "three"], 100)
    found = fit_logistic(features, truth, groups)
    assert found.classes == ["a", "b", "c"] and (found.held_out == truth).mean() > 0.9
    held = groups == "one"
    table = class_scores(truth[held], found.held_out[held].astype(str), found.classes)
    hits = (truth[held] == "b") & (found.held_out[held] == "b")
    assert table["recall"][1] == pytest.approx(hits.sum() / (truth[held] == "b").sum())
    with pytest.raises(ValueError, match="needs two"):
        fit_logistic(features, np.repeat("a", 300), groups)


def test_two_classes_keep_their_probabilities():
    from sklearn.linear_model import LogisticRegression

    from delst_hf.evaluation.preparation import FlooredScaler

    features = np.random.default_rng(0).normal(size=(60, 3)) + 2
    truth = np.where(features[:, 0] + 0.3 * features[:, 1] > 2.5, "yes", "no")
    found = fit_logistic(features, truth, np.repeat(["a", "b"], 30), [10.0])
    scaled = FlooredScaler.fit(features).transform(features)
    model = LogisticRegression(C=10 / 60, class_weight="balanced", max_iter=2000).fit(scaled, truth)
    expected = model.predict_proba(scaled)
    np.testing.assert_allclose(softmax(features @ found.weight + found.bias, axis=1), expected, atol=1e-9)


def test_the_expression_head_is_the_ridge(toy_heads, toy_checkpoint, toy_study):
    model = DelstForGeneExpressionPrediction.from_pretrained(toy_heads / "expression").eval()
    predictor = load_predictor(str(toy_checkpoint))
    train, unseen = toy_study.subset(["toy_A1", "toy_A2"]), toy_study.subset(["toy_B1"])
    collator = DelstCollator(predictor.processor, toy_study.gene_names, toy_study.slide_ids, toy_study.measured_genes)

    def features_of(spots):
        return predictor([np.asarray(image) for image in spots["image"]])["features"]

    expected = ridge_prediction(
        features_of(train), collator.gene_values(list(train)), features_of(unseen), train["slide_id"]
    )
    with torch.no_grad():
        found = model(collator(list(unseen))["pixel_values"]).logits.numpy()
    np.testing.assert_allclose(found, expected.predicted, atol=1e-3)
    assert not model.config.head_standardise
    record = json.loads((toy_heads / "expression" / "training.json").read_text())
    head = record["head"]
    assert head["alpha"] == pytest.approx(expected.alpha) and head["floor"] == expected.floor
    assert head["slides"] == ["toy_A1", "toy_A2"] and record["data"]["patch_encoding"] == "jpeg 95"
    assert head["scores"]["gene"] == predictor.processor.feature_extractor.vocabulary
    assert record["data"]["colours"]["mean"][0] > 0 and record["train_slides"] == ["toy_A1", "toy_A2"]
    assert "| gene | Pearson | 95 % |" in (toy_heads / "expression" / "README.md").read_text()
    assert {path.name for path in toy_heads.iterdir() if "shards" in path.name} == set()


def test_the_penalty_is_chosen_by_the_most_variable_genes(toy_checkpoint, toy_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Evaluation, "num_genes", 3)
    monkeypatch.setattr(fit_module, "choose_ridge", lambda moments: asked.append(moments) or choose_ridge(moments))
    fit_head(str(toy_checkpoint), str(toy_folder), tmp_path / "head", progress=False, num_workers=0)
    study = Study.load(str(toy_folder))
    spots = study.subset(["toy_A1", "toy_A2"])
    names = load_predictor(str(toy_checkpoint)).processor.feature_extractor.vocabulary
    values = log_normalize(study.counts(spots))[:, [list(study.gene_names).index(name) for name in names]]
    expected = values[:, most_variable_genes(values, 3)].toarray().astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(sum(one.y for one in asked[0].values()), expected, rtol=1e-5)


@pytest.mark.parametrize(("patch_px", "image_format"), [(32, "jpeg"), (48, "jpeg"), (32, "png")])
def test_a_slide_is_predicted_as_well_as_the_evaluation_says(patch_px, image_format, tmp_path):
    """Patches cut from the image give at the spots what `delst evaluate` prints for the stored ones."""
    names = ("toy_A1", "toy_A2", "toy_B1")
    slides = [make_toy_slide(name, spots_per_side=6, image_px=400) for name in names]
    write_dataset(slides, tmp_path / "data", patch_px=patch_px, image_format=image_format)
    folder, study = tmp_path / "data", Study.load(str(tmp_path / "data"))
    image_processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor = DelstProcessor(image_processor, DelstGeneFeatureExtractor(vocabulary=study.gene_names))
    model = make_tiny_model(len(study.gene_names)).eval()
    train = ["toy_A1", "toy_A2"]
    save_checkpoint_folder(tmp_path / "model", model, processor, {"train_slides": train})
    fit_head(str(tmp_path / "model"), str(folder), tmp_path / "head", progress=False, num_workers=0)

    slide = slides[2]
    Image.fromarray(np.asarray(slide.image)).save(tmp_path / "he.png")
    spots = study.subset(["toy_B1"])
    table = spots.select_columns(["barcode", "x", "y"]).to_pandas().set_index("barcode")
    choice = PatchChoice(mpp=slide.mpp, positions=table)
    predict_slide(str(tmp_path / "head"), tmp_path / "he.png", tmp_path / "he.h5ad", choice=choice, progress=False)
    found = anndata.read_h5ad(tmp_path / "he.h5ad")[list(spots["barcode"])]

    how = Evaluation(protocols=["arms"], baselines=False, resamples=2, seeds=[0], progress=False)
    results = evaluate_checkpoint(model, processor, study, train, ["toy_B1"], how)
    (row,) = [row for row in results["protocols"] if row["arm"] == "DELST backbone"]
    genes = results["facts"]["arms"]["genes"]
    measured = log_normalize(study.counts(spots))[:, [list(study.gene_names).index(gene) for gene in genes]]
    pearson = gene_pearson(np.asarray(found[:, genes].X), measured.toarray())
    assert np.nanmean(pearson) == pytest.approx(row["metrics"]["pearson_mean"], abs=1e-5)


def test_the_classifier_knows_its_classes(toy_heads, toy_study):
    model = DelstForSpotClassification.from_pretrained(toy_heads / "labels")
    known = {label for label in toy_study.subset(["toy_A1", "toy_A2"])["label"] if label}
    assert set(model.config.id2label.values()) == known and model.config.head_inputs == "image"
    text = (toy_heads / "labels" / "README.md").read_text()
    assert "Macro-F1" in text and all(f"| {label} |" in text for label in known)


@pytest.mark.parametrize(("head", "name"), [("expression", "expression"), ("labels", "shares")])
def test_the_code_of_the_card_reads_the_head(toy_heads, toy_study, monkeypatch, head, name):
    """A head has no embedding of its own to ask for: the card shows how its output is read."""
    monkeypatch.chdir(toy_heads)
    text = (toy_heads / head / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    name_of_class = re.search(r"imported, AutoModel takes the towers alone: use `delst_hf.(\w+)` in its place", text)[1]
    code = code.replace("AutoModel.from", f"delst_hf.{name_of_class}.from")
    found = {"delst_hf": delst_hf, "patches": toy_study.spots["image"][:2]}
    exec(compile(code, "README.md", "exec"), found)
    genes, classes = found["processor"].feature_extractor.vocabulary, found["model"].config.id2label
    assert found[name].shape == (2, len(genes if head == "expression" else classes))


def test_bad_requests_are_refused_before_the_work(toy_heads, toy_checkpoint, toy_folder, tmp_path):
    fit = {"model": str(toy_checkpoint), "dataset": str(toy_folder)}
    with pytest.raises(FileExistsError, match="Choose another --output"):
        fit_head(**fit, output=toy_heads / "labels")
    with pytest.raises(ValueError, match="Allowed: expression, labels"):
        fit_head(**fit, output=tmp_path / "x", target="age")
    with pytest.raises(ValueError, match="toy_Z9"):
        fit_head(**fit, output=tmp_path / "x", train_slides=["toy_Z9"])
    with pytest.raises(ValueError, match="two slides or more"):
        fit_head(**fit, output=tmp_path / "x", train_slides=["toy_B1"], progress=False)
    assert not (tmp_path / "x").exists()


def test_genes_of_another_species_are_refused_before_patches_are_embedded(toy_checkpoint, tmp_path, monkeypatch):
    slides = make_toy_slides(2, spots_per_side=4, image_px=300)
    mouse = [replace(slide, genes=slide.genes.assign(gene_id="", symbol=[f"Gm{i}" for i in range(len(slide.genes))]),
                     species="mouse") for slide in slides]  # fmt: skip
    write_dataset(mouse, tmp_path / "mouse", patch_px=32)
    monkeypatch.setattr(fit_module, "run", lambda *args, **kwargs: pytest.fail("patches were embedded"))
    with pytest.raises(ValueError, match="Only 0 of the vocabulary's .* species and case"):
        fit_head(str(toy_checkpoint), str(tmp_path / "mouse"), tmp_path / "x", progress=False)
