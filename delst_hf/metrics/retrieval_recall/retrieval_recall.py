"""Recall@k of a matrix of scores or of ranks, as a module for `evaluate`."""

# `evaluate` copies this file away from the package and reads its imports line by line: one per line, absolute.
from typing import Any

import datasets
import evaluate
import numpy as np

from delst_hf.evaluation.retrieval import expected_scores


class RetrievalRecall(evaluate.Metric):
    """Recall@k of ranks; batches may be added with `add_batch` and are scored as one.

    Args:
        predictions: (queries,) rank of the true target of each query, 1 for the best. Ranks, not embeddings, which would take
            seconds to pass. `delst_hf.evaluation.retrieval.retrieval_scores` returns them ("rank"); for a matrix of scores,
            `ranks_of_scores` does.
        references: (queries,) size of the pool that each query was ranked against.
        ties: (queries,) how many targets score the same as the true one, itself included; `ties_of_scores` counts them. Every
            order of tied targets counts as equally likely, as in `delst_hf.evaluation.retrieval`, so that a model that scores
            all targets alike comes out at chance. By default no target is tied. After `add_batch`, pass the ties of all batches
            to `compute`.
        ks: depths, (1, 5, 10) by default.

    Returns:
        recall@k and chance_recall@k for each k, median_rank, mean_rank, mrr.

    Examples:
        >>> RetrievalRecall().compute(predictions=[1, 3, 12], references=[100, 100, 100])["recall@10"]
        0.6666666666666666
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of queries whose true target is among the first k. High is good; chance is k / pool size.",
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(
        self, predictions: list, references: list, ties: Any = None, ks: tuple[int, ...] = (1, 5, 10)
    ) -> dict[str, float]:
        ranks, pools = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        tied = np.ones(len(ranks)) if ties is None else np.asarray(ties, dtype=float)
        above = ranks - 1 - (tied - 1) / 2
        if (np.abs(above - np.round(above)) > 1e-6).any() or (tied < 1).any():
            raise ValueError(
                "a rank lies between whole numbers only where targets tie with the true one, and ties are 1 or more. Pass "
                "ties=ties_of_scores(scores) beside predictions=ranks_of_scores(scores)."
            )
        if (ranks < 1).any() or (ranks > pools).any():
            raise ValueError(
                f"ranks run from {ranks.min():g} to {ranks.max():g} in pools of {pools.min():g}; allowed is 1 to the pool's "
                "size. Pass ranks that begin at 1, and the size of the pool as references."
            )
        scores = expected_scores(above, tied, ks)
        result = {key: float(values.mean()) for key, values in scores.items() if key != "rank"}
        result |= {f"chance_recall@{k}": float(np.minimum(1.0, k / pools).mean()) for k in ks}
        return result | {"median_rank": float(np.median(ranks)), "mean_rank": float(ranks.mean())}


def ranks_of_scores(scores: np.ndarray) -> np.ndarray:
    """Return the rank (queries,) of each query's target, the diagonal of scores (queries, targets); ties get their mean rank.

    Examples:
        >>> ranks_of_scores(np.array([[3.0, 1.0], [2.0, 2.0]])).tolist()
        [1.0, 1.5]
    """
    scores = np.asarray(scores, dtype=float)
    true = np.diagonal(scores)[:, None]
    return 1 + (scores > true).sum(axis=1) + ((scores == true).sum(axis=1) - 1) / 2


def ties_of_scores(scores: np.ndarray) -> np.ndarray:
    """Return how many targets (queries,) score the same as each query's own, on the diagonal, which is included.

    Examples:
        >>> ties_of_scores(np.array([[3.0, 1.0], [2.0, 2.0]])).tolist()
        [1, 2]
    """
    scores = np.asarray(scores, dtype=float)
    return (scores == np.diagonal(scores)[:, None]).sum(axis=1)
