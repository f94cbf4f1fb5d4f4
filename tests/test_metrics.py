from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score
from transformers import EvalPrediction

from delst_hf.evaluation.retrieval import retrieval
from delst_hf.metrics import Entailment, GenePearson, RetrievalRecall
from delst_hf.metrics.retrieval_recall.retrieval_recall import ranks_of_scores, ties_of_scores

METRICS = Path(__file__).resolve().parents[1] / "delst_hf" / "metrics"
GENERATOR = np.random.default_rng(0)
MEASURED = GENERATOR.normal(size=(40, 3))
PREDICTED = MEASURED + GENERATOR.normal(size=(40, 3))


def test_gene_pearson_equals_scipy():
    found = GenePearson().compute(predictions=PREDICTED, references=MEASURED)
    expected = [pearsonr(PREDICTED[:, g], MEASURED[:, g])[0] for g in range(3)]
    assert found["gene_pearson"] == pytest.approx(np.mean(expected)) and found["num_genes"] == 3
    assert found["gene_pearson_median"] == pytest.approx(np.median(expected))


def test_batches_are_scored_as_one():
    metric = GenePearson()
    for start in (0, 15, 30):
        metric.add_batch(predictions=PREDICTED[start : start + 15], references=MEASURED[start : start + 15])
    whole = GenePearson().compute(predictions=PREDICTED, references=MEASURED)
    assert metric.compute()["gene_pearson"] == pytest.approx(whole["gene_pearson"])


def test_recall_by_hand_and_from_scores():
    found = RetrievalRecall().compute(predictions=[1, 3, 8, 2], references=[10] * 4, ks=(1, 5))
    assert found["recall@1"] == 0.25 and found["recall@5"] == 0.75 and found["chance_recall@5"] == 0.5
    assert found["median_rank"] == 2.5 and found["mean_rank"] == 3.5
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 8 + 1 / 2) / 4)
    scores = np.array([[3.0, 1, 2], [5, 4, 4], [1, 1, 1]])
    np.testing.assert_allclose(ranks_of_scores(scores), [1, 2.5, 2])


def test_ties_are_scored_as_retrieval_scores_them():
    """Every order of tied targets is equally likely: a model that scores all targets alike is at chance."""
    alike = np.ones((100, 100))
    facts = {"predictions": ranks_of_scores(alike), "ties": ties_of_scores(alike), "references": [100] * 100}
    found = RetrievalRecall().compute(**facts)
    assert found["recall@10"] == pytest.approx(0.10) and found["recall@1"] == pytest.approx(0.01)
    scores = GENERATOR.integers(0, 4, (30, 30)).astype(float)
    expected = retrieval(np.eye(30), np.eye(30), similarity=lambda *_: scores)
    facts = {"predictions": ranks_of_scores(scores), "ties": ties_of_scores(scores), "references": [30] * 30}
    found = RetrievalRecall().compute(**facts)
    for name in ("recall@1", "recall@5", "recall@10", "median_rank", "mean_rank", "mrr"):
        assert found[name] == pytest.approx(expected[name]), name
    with pytest.raises(ValueError, match="a rank lies between whole numbers only where targets tie"):
        RetrievalRecall().compute(predictions=[50.5], references=[100])


def test_entailment_equals_sklearns_auc_and_permuted_pairs_are_at_chance():
    matched = np.repeat([1, 0], 200)
    excess = GENERATOR.normal(size=400) - 0.7 * matched
    found = Entailment().compute(predictions=excess, references=matched)
    assert found["entailment_auc"] == pytest.approx(roc_auc_score(matched, -excess)) and found["entailment_auc"] > 0.6
    assert found["in_cone_matched"] == pytest.approx((excess[:200] <= 0).mean()) and found["in_cone_excess"] > 0.1
    assert found["entailment_loss"] == pytest.approx(np.maximum(excess[:200], 0).mean())
    control = Entailment().compute(predictions=excess, references=GENERATOR.permutation(matched))
    assert control["entailment_auc"] == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(("name", "owner"), [("gene_pearson", GenePearson), ("retrieval_recall", RetrievalRecall)])
def test_folders_load_as_evaluate_loads_them(name, owner, tmp_path):
    loaded = evaluate.load(str(METRICS / name), cache_dir=str(tmp_path))
    values = (PREDICTED, MEASURED) if owner is GenePearson else ([1, 2], [9, 9])
    found = loaded.compute(predictions=values[0], references=values[1])
    assert found == owner().compute(predictions=values[0], references=values[1])


def test_combine_scores_with_both_at_once(tmp_path):
    loaded = evaluate.load(str(METRICS / "retrieval_recall"), cache_dir=str(tmp_path))
    both = evaluate.combine({"class": RetrievalRecall(), "folder": loaded})
    found = both.compute(predictions=[1.0, 2.0], references=[9.0, 9.0])
    assert found["class_recall@1"] == found["folder_recall@1"] == 0.5


def test_as_compute_metrics_of_a_trainer():
    """What DelstTrainer hands over: logits of images against genes; the labels are positions."""
    metric = RetrievalRecall()

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        ranks = ranks_of_scores(prediction.predictions)
        return metric.compute(predictions=ranks, references=np.full(len(ranks), prediction.predictions.shape[1]))

    scores = np.eye(12) + 0.1 * GENERATOR.normal(size=(12, 12))
    for _ in range(2):
        found = compute_metrics(EvalPrediction(predictions=scores, label_ids=np.arange(12)))
        assert found["recall@1"] == 1.0 and found["chance_recall@1"] == pytest.approx(1 / 12)


def test_errors_name_the_next_step():
    with pytest.raises(ValueError, match="none of the 2 genes varies over the 3 spots"):
        GenePearson().compute(predictions=np.eye(3)[:, :2], references=np.ones((3, 2)))
    with pytest.raises(ValueError, match="ranks run from 0 to 1 in pools of 5"):
        RetrievalRecall().compute(predictions=[0, 1], references=[5, 5])
    with pytest.raises(ValueError, match="2 of 2 pairs are matched; both kinds are needed"):
        Entailment().compute(predictions=[0.1, 0.2], references=[1, 1])
