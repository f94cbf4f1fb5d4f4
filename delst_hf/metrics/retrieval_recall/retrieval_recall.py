"""Recall@k of a matrix of scores or of ranks, as a module for `evaluate`."""

# `evaluate` copies this file away from the package and reads its imports line by line: one a line, absolute.
import datasets
import evaluate
import numpy as np

_DESCRIPTION = "Share of queries whose true target is among the first k. High is good; chance is k / pool size."
_CITATION = ""
_INPUTS = """
Args:
    predictions: (queries,) rank of the true target of each query, 1 for the best. Ranks, not embeddings: these would cost
        seconds to pass. `delst_hf.evaluation.retrieval.retrieval_scores` makes them ("rank"); of a matrix of scores,
        `ranks_of_scores`.
    references: (queries,) size of the pool that each query was ranked against.
    ks: depths, (1, 5, 10) by default.
Returns:
    recall@k and chance_recall@k for each k, median_rank, mean_rank, mrr.
"""


class RetrievalRecall(evaluate.Metric):
    """Recall@k of ranks; batches may be added with `add_batch` and are scored as one."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list, references: list, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
        ranks, pools = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        if (ranks < 1).any() or (ranks > pools).any():
            raise ValueError(
                f"ranks run from {ranks.min():g} to {ranks.max():g} in pools of {pools.min():g}; allowed is 1 to the pool's "
                "size. Pass ranks that begin at 1, and the size of the pool as references."
            )
        result = {f"recall@{k}": float((ranks <= k).mean()) for k in ks}
        result |= {f"chance_recall@{k}": float(np.minimum(1.0, k / pools).mean()) for k in ks}
        return result | {
            "median_rank": float(np.median(ranks)),
            "mean_rank": float(ranks.mean()),
            "mrr": float((1 / ranks).mean()),
        }


def ranks_of_scores(scores: np.ndarray) -> np.ndarray:
    """Rank (queries,) of the target of the same number in each row of scores (queries, targets), ties at their mean."""
    scores = np.asarray(scores, dtype=float)
    true = np.diagonal(scores)[:, None]
    return 1 + (scores > true).sum(axis=1) + ((scores == true).sum(axis=1) - 1) / 2
