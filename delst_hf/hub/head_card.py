"""What a card says of a head: how it was fitted, and how well each gene or class is predicted on slides left out of the fit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..markup import Markdown, cell, row

_GENES_SHOWN = 20


def head_text(head: Mapping[str, Any]) -> Markdown:
    """Describe a head with its held-out scores.

    Args:
        head: What `delst fit` records of it.

    Returns:
        Markdown.
    """
    folds = cell(", ".join(head["folds"]))
    slides = cell(", ".join(head["slides"]))
    frozen = not head["method"].startswith("gradient descent")
    of_what, in_turn = ("the frozen features of ", ", a group at a time") if frozen else ("", "")
    lines = [
        f"A head for {cell(head['target'])}, fitted by {cell(head['method'])} on {of_what}{slides}. Scores are "
        f"those of slides that were left out of the fit{in_turn} ({folds}); where all are of one patient, they are "
        "not those of a new patient.",
        "",
    ]
    rows = _class_rows(head) if head["target"] == "labels" else _gene_rows(head)
    return Markdown("\n".join([*lines, *rows]))


def _class_rows(head: Mapping[str, Any]) -> list[str]:
    scores = head["scores"]
    rows = zip(*(scores[name] for name in ("class", "f1", "precision", "recall", "spots")), strict=True)
    return [
        f"Macro-F1 {head['macro_f1']:.3f}.",
        "",
        "| class | F1 | precision | recall | spots |",
        "|---|---|---|---|---|",
        *(
            row(name, f"{f1:.3f}", f"{precision:.3f}", f"{recall:.3f}", spots)
            for name, f1, precision, recall, spots in rows
        ),
    ]


def _gene_rows(head: Mapping[str, Any]) -> list[str]:
    scores = head["scores"]
    pearson = np.array([np.nan if value is None else value for value in scores["pearson"]], dtype=float)
    order = np.argsort(-np.where(np.isnan(pearson), -np.inf, pearson), kind="stable")
    low, high = scores["pearson_low"], scores["pearson_high"]
    above = int((np.asarray(low, dtype=float) > 0).sum())
    return [
        f"Mean Pearson over {int((~np.isnan(pearson)).sum())} genes {head['pearson_mean']:.3f}; the interval of 95 % lies "
        f"above 0 for {above} of them. All genes with their intervals are in `training.json` under `head`; the best:",
        "",
        "| gene | Pearson | 95 % |",
        "|---|---|---|",
        *(
            row(scores["gene"][i], f"{pearson[i]:.3f}", f"{low[i]:.3f} to {high[i]:.3f}")
            for i in order[:_GENES_SHOWN]
            if not np.isnan(pearson[i])
        ),
    ]
