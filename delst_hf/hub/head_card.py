"""The part of a card on a head: how it was fitted, and how well it predicts each gene or class on held-out slides."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..evaluation.tables import Table
from ..markup import Markdown, cell
from ..model.configuration_delst import DelstConfig

_GENES_SHOWN = 20
# What a model with a head returns, by its class.
_OUTPUTS = {
    "DelstForGeneExpressionPrediction": "expression = model(**inputs).logits  # (patches, genes of processor.feature_extractor."
    "vocabulary)",
    "DelstForSpotClassification": "shares = model(**inputs).logits.softmax(-1)  # (spots, classes of model.config.id2label)",
}
_INSTALLED = "the package delst_hf is installed (`pip install .` in a clone of\nit) and imported"
_EMBEDS = """
image_embeds = model.get_image_features(inputs["pixel_values"]).pooler_output
gene_embeds = model.get_gene_features(inputs["gene_values"], inputs["gene_mask"]).pooler_output"""


def use_with_package(config: DelstConfig) -> Markdown:
    """Return, as the end of a sentence, how the checkpoint is loaded where this package is imported."""
    name = (config.architectures or [""])[0]
    if name not in _OUTPUTS:
        return Markdown(f"it is not needed if {_INSTALLED}.")
    return Markdown(f"if {_INSTALLED}, AutoModel takes the towers alone: use `delst_hf.{name}` in its place.")


def lines_of_use(config: DelstConfig) -> Markdown:
    """Return the lines of code that follow the loading of model and processor: to the output of the head, or embeddings.

    Examples:
        >>> print(lines_of_use(DelstConfig(architectures=["DelstForSpotClassification"], gene_config={"num_genes": 3})))
        inputs = processor(images=patches, return_tensors="pt")
        shares = model(**inputs).logits.softmax(-1)  # (spots, classes of model.config.id2label)
    """
    output = _OUTPUTS.get((config.architectures or [""])[0])
    read = "both" if output is None else config.head_inputs
    given = {"image": "images=patches", "gene": "counts=counts, gene_names=gene_names"}
    inputs = ", ".join(given[name] for name in given if read in (name, "both"))
    return Markdown(f'inputs = processor({inputs}, return_tensors="pt")\n{output or _EMBEDS.strip()}')


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
