"""The part of a card on a head: how it was fitted, and how well it predicts each gene or class on held-out slides."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..evaluation.tables import Table
from ..markup import Markdown, cell

_GENES_SHOWN = 20


def head_text(head: Mapping[str, Any]) -> Markdown:
    """Describe a head with its held-out scores.

    Args:
        head: Its record, as `delst fit` writes it.

    Returns:
        Markdown.
    """
    folds = cell(", ".join(head["folds"]))
    slides = cell(", ".join(head["slides"]))
    frozen = not head["method"].startswith("gradient descent")
    of_what, in_turn = ("the frozen features of ", ", a group at a time") if frozen else ("", "")
    told = (
        f"A head for {cell(head['target'])}, fitted by {cell(head['method'])} on {of_what}{slides}. Scores are "
        f"on slides that were held out of the fit{in_turn} ({folds}); where all slides are of one patient, they do "
        "not hold for a new patient."
    )
    table = _classes(head) if head["target"] == "labels" else _genes(head)
    return Markdown(f"{told}\n\n{table.as_markdown()}")


def _classes(head: Mapping[str, Any]) -> Table:
    scores = head["scores"]
    numbers = [[f"{value:.3f}" for value in scores[name]] for name in ("f1", "precision", "recall")]
    rows = zip(scores["class"], *numbers, map(str, scores["spots"]), strict=True)
    header = ("class", "F1", "precision", "recall", "spots")
    return Table("", header, tuple(rows), Markdown(f"Macro-F1 {head['macro_f1']:.3f}."))


def _genes(head: Mapping[str, Any]) -> Table:
    scores = head["scores"]
    pearson = np.array([np.nan if value is None else value for value in scores["pearson"]], dtype=float)
    order = np.argsort(-np.where(np.isnan(pearson), -np.inf, pearson), kind="stable")
    low, high = scores["pearson_low"], scores["pearson_high"]
    above = int((np.asarray(low, dtype=float) > 0).sum())
    note = Markdown(
        f"Mean Pearson over {int((~np.isnan(pearson)).sum())} genes {head['pearson_mean']:.3f}; the interval of 95 % lies "
        f"above 0 for {above} of them. All genes with their intervals are in `training.json` under `head`; the best:"
    )
    best = [i for i in order[:_GENES_SHOWN] if not np.isnan(pearson[i])]
    rows = [(scores["gene"][i], f"{pearson[i]:.3f}", f"{low[i]:.3f} to {high[i]:.3f}") for i in best]
    return Table("", ("gene", "Pearson", "95 %"), tuple(rows), note)
