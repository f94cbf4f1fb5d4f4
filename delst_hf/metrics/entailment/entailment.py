"""Entailment of pairs, from how far each child lies outside its parent's cone, as a module for `evaluate`."""

# `evaluate` copies this file away from the package and reads its imports line by line: one per line, absolute.
import datasets
import evaluate
import numpy as np
from sklearn.metrics import roc_auc_score


class Entailment(evaluate.Metric):
    """Cone statistics of pairs with their control; batches may be added with `add_batch` and are scored as one.

    Args:
        predictions: (pairs,) exterior angle minus half-aperture of each pair, in radians; 0 or less is inside the cone.
        references: (pairs,) 1 for a matched pair, 0 for a mismatched one, the control.

    Returns:
        in_cone_matched, in_cone_mismatched: shares inside; in_cone_excess: their difference, 0 for cones that are only wide;
        entailment_auc: chance that a matched pair lies deeper than a mismatched one, 0.5 is chance; entailment_loss: mean of
        max(0, .) over matched pairs.

    Examples:
        >>> scores = Entailment().compute(predictions=[-0.2, 0.1, 0.5], references=[1, 1, 0])
        >>> scores["in_cone_matched"], scores["in_cone_mismatched"], scores["entailment_auc"]
        (0.5, 0.0, 1.0)
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How well cones tell matched pairs from mismatched ones, with the control beside the fraction inside.",
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        excess, matched = np.asarray(predictions, dtype=float), np.asarray(references) == 1
        if matched.all() or not matched.any():
            raise ValueError(
                f"{int(matched.sum())} of {len(matched)} pairs are matched; both kinds are needed. Add pairs of each parent "
                "with the child of another spot, with reference 0."
            )
        inside = excess <= 0
        return {
            "in_cone_matched": float(inside[matched].mean()),
            "in_cone_mismatched": float(inside[~matched].mean()),
            "in_cone_excess": float(inside[matched].mean() - inside[~matched].mean()),
            "entailment_auc": float(roc_auc_score(matched, -excess)),
            "entailment_loss": float(np.maximum(excess[matched], 0).mean()),
        }
