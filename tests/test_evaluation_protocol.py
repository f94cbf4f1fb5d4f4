import numpy as np
import pytest
import torch
from conftest import make_tiny_model, make_tiny_processor

from delst_hf import DelstCollator
from delst_hf.evaluation.embed import embed
from delst_hf.evaluation.expression import expression_prediction
from delst_hf.evaluation.predicted_genes import most_variable_genes
from delst_hf.evaluation.result_tables import format_results
from delst_hf.evaluation.run import Evaluation, evaluate_checkpoint
from delst_hf.model.feature_extraction_delst import log_normalize
from delst_hf.model.lorentz import log_map0


def test_embeddings_are_the_models_in_order(tiny_model, tiny_processor, toy_study):
    spots = toy_study.subset(["toy_A2"])
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids)
    found = embed(tiny_model, spots, collator, batch_size=7, progress=False)
    tiny_model.eval()
    batch = collator([spots[i] for i in range(len(spots))])
    with torch.no_grad():
        image = tiny_model.get_image_features(batch["pixel_values"]).pooler_output
        gene = tiny_model.get_gene_features(batch["gene_values"], batch["gene_mask"]).pooler_output
    np.testing.assert_allclose(found.image_embeds, image, atol=1e-5)
    np.testing.assert_allclose(found.gene_embeds, gene, atol=1e-5)
    assert found.features.shape == (36, 16)


def evaluate_tiny(study, **options):
    processor = make_tiny_processor(study)
    model = make_tiny_model(len(processor.feature_extractor.vocabulary))
    options = {"num_genes": 20, "seeds": (0, 1), "progress": False} | options
    return evaluate_checkpoint(model, processor, study, ["toy_A1", "toy_A2"], ["toy_B1"], Evaluation(**options))


@pytest.fixture(scope="module")
def results(toy_study):
    return evaluate_tiny(toy_study)


def rows_of(results, protocol, variant=""):
    return [row for row in results["protocols"] if (row["protocol"], row["variant"]) == (protocol, variant)]


def test_every_arm_is_there(results):
    rows = rows_of(results, "arms")
    assert [(row["arm"], row["own"], row["control"]) for row in rows] == [
        ("colour statistics", False, False),
        ("random-init backbone", False, False),
        ("DELST backbone", True, False),
        ("DELST embedding", True, False),
        ("DELST backbone, shuffled pairs", False, True),
    ]
    assert all(row["slide"] == "toy_B1" and row["num_spots"] == 36 for row in rows)
    assert {"pearson_mean_sd", "probe_macro_f1_mean_sd"} <= set(rows[1]["metrics"])
    assert len(results["facts"]["arms"]["genes"]) == 20
    assert rows_of(results, "retrieval")[0]["metrics"]["pool_size"] == 36


def test_arm_equals_the_evaluators_by_hand(results, tiny_model, tiny_processor, toy_study):
    collator = DelstCollator(tiny_processor, toy_study.gene_names, toy_study.slide_ids)
    found = embed(tiny_model, toy_study.spots, collator, progress=False)
    train = np.isin(toy_study.slide_of_spot, ["toy_A1", "toy_A2"])
    expression = log_normalize(toy_study.counts(toy_study.spots)).toarray()
    targets = expression[:, most_variable_genes(expression[train], 20)]
    tangent = log_map0(torch.from_numpy(found.image_embeds).double(), tiny_model.curvature.item()).numpy()
    for arm, features in (("DELST backbone", found.features), ("DELST embedding", tangent)):
        expected = expression_prediction(
            features[train], targets[train], features[~train], targets[~train], toy_study.slide_of_spot[train]
        )
        row = next(row for row in rows_of(results, "arms") if row["arm"] == arm)
        assert row["metrics"]["pearson_mean"] == pytest.approx(expected["pearson_mean"], abs=1e-4)


def test_shuffled_pairs_come_out_at_chance(results):
    first, *_, shuffled = (row["metrics"]["pearson_mean"] for row in rows_of(results, "arms"))
    assert abs(shuffled) < 0.25 and shuffled < first - 0.2
    control = rows_of(results, "retrieval")[1]
    assert control["control"] and control["metrics"]["image_to_gene_median_rank"] == pytest.approx(18.5, abs=8)


def test_same_seeds_give_the_same_results(results, toy_study):
    torch.manual_seed(99)
    assert evaluate_tiny(toy_study) == results


def test_without_baselines_only_the_checkpoint_is_scored(results, toy_study):
    alone = evaluate_tiny(toy_study, baselines=False, protocols=["arms"])
    assert alone["protocols"] == [row for row in rows_of(results, "arms") if row["own"]]


def test_table_shows_every_row(results):
    text = format_results(results)
    for row in rows_of(results, "arms"):
        assert row["arm"] in text
        assert f"{row['metrics']['pearson_mean']:.3f}" in text
    assert "recall@10" in text and "in cone mismatched" in text and "  36" in text


def test_a_slide_on_both_sides_is_refused(tiny_model, tiny_processor, toy_study):
    with pytest.raises(ValueError, match=r"\['toy_A1'\] are used for both training and testing"):
        evaluate_checkpoint(tiny_model, tiny_processor, toy_study, ["toy_A1"], ["toy_A1"])
