"""Mean gene-wise Pearson correlation of predicted and measured expression, as a module for `evaluate`."""

# `evaluate` copies this file away from the package and reads its imports line by line: one per line, absolute.
import datasets
import evaluate
import numpy as np

from delst_hf.evaluation.expression import gene_pearson


class GenePearson(evaluate.Metric):
    """Mean Pearson over genes; batches may be added with `add_batch` and are scored as one.

    Args:
        predictions: (spots, genes) predicted expression.
        references: (spots, genes) measured expression, same unit and genes.

    Returns:
        gene_pearson and gene_pearson_median: mean and median over the genes whose measurement varies; num_genes: their number.

    Examples:
        >>> scores = GenePearson().compute(predictions=[[1.0], [2.0], [4.0]], references=[[1.0], [2.0], [3.0]])
        >>> round(scores["gene_pearson"], 3)
        0.982
    """

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Pearson correlation over spots, gene by gene, and its mean. 1 is perfect, 0 is chance.",
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        scores = gene_pearson(np.asarray(predictions), np.asarray(references))
        scored = scores[~np.isnan(scores)]
        if scored.size == 0:
            raise ValueError(
                f"none of the {len(scores)} genes varies over the {len(references)} spots, so nothing can be correlated. "
                "Score more spots, or genes that are expressed."
            )
        return {
            "gene_pearson": float(scored.mean()),
            "gene_pearson_median": float(np.median(scored)),
            "num_genes": float(scored.size),
        }
