"""Pipelines: ``pipeline("spot-embedding", model=folder)`` and ``pipeline("gene-expression-prediction", model=folder)``.

They are for single spots and small sets. For a whole slide, batches are faster (`delst_hf.evaluation.embed`).
"""

# mypy: disable-error-code="override, assignment"
# transformers intends its steps to be overridden with parameters of the subclass, and its flags by bools.

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Pipeline
from transformers.image_utils import load_image

_KEYS = {"image", "counts", "gene_names"}


class _ProcessorPipeline(Pipeline):
    """Base of both pipelines: the `DelstProcessor` of the model prepares the inputs, and no other processor is loaded."""

    model: Any
    processor: Any

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False


class SpotEmbeddingPipeline(_ProcessorPipeline):
    """Patches, counts or both -> embeddings in the joint space, numpy arrays (projection_dim,).

    An input is a patch (a PIL image, a path or a URL), or a dict with ``image``, ``counts`` or both: ``counts`` is a mapping
    from gene to count, or a row of counts with ``gene_names`` beside it.

    Examples:
        >>> from transformers import pipeline
        >>> embed = pipeline("spot-embedding", model="runs/toy/pretrain/model")
        >>> embed("he.png").keys()
        dict_keys(['image_embeds'])
    """

    def _sanitize_parameters(
        self, gene_names: Sequence[str] | None = None, timeout: float | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"gene_names": gene_names, "timeout": timeout}
        return {name: value for name, value in given.items() if value is not None}, {}, {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Embed patches, counts or both.

        Args:
            inputs: One input or a list of them, all of the same kind.
            **kwargs: ``gene_names`` for rows of counts without their own, ``batch_size``, ``timeout`` of a download in s.

        Returns:
            For each input a dict with ``image_embeds``, ``gene_embeds`` or both.
        """
        return super().__call__(inputs, **kwargs)

    def preprocess(
        self, inputs: Any, gene_names: Sequence[str] | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        spot = dict(inputs) if isinstance(inputs, Mapping) else {"image": inputs}
        if not spot or not set(spot) <= _KEYS or set(spot) == {"gene_names"}:
            raise ValueError(
                f"An input with the keys {sorted(map(str, spot))[:5]} is not known. Give a patch, or a dict with 'image', "
                "'counts' or both; give counts by gene as {'counts': {'EPCAM': 3, ...}}."
            )
        image, counts = spot.get("image"), spot.get("counts")
        prepared = self.processor(
            images=None if image is None else load_image(image, timeout=timeout),
            counts=counts,
            gene_names=spot.get("gene_names", None if isinstance(counts, Mapping) else gene_names),
            return_tensors="pt",
        )
        if (rows := len(prepared.get("gene_values", ()))) > 1:
            raise ValueError(
                f"An input is one spot, but its counts have {rows} rows. Give a list with one dict per spot, such as "
                "[{'counts': row} for row in counts] with gene_names=."
            )
        return prepared

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = {}
        if "pixel_values" in model_inputs:
            outputs["image_embeds"] = self.model.get_image_features(model_inputs["pixel_values"]).pooler_output
        if "gene_values" in model_inputs:
            genes = {name: model_inputs[name] for name in ("gene_values", "gene_mask")}
            outputs["gene_embeds"] = self.model.get_gene_features(**genes).pooler_output
        return outputs

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        return {name: embeds[0].float().numpy() for name, embeds in model_outputs.items()}


class GeneExpressionPipeline(_ProcessorPipeline):
    """Patches -> normalised expression by gene, from a `DelstForGeneExpressionPrediction`.

    Examples:
        >>> from transformers import pipeline
        >>> predict = pipeline("gene-expression-prediction", model="runs/toy/expression")
        >>> len(predict("he.png"))
        20
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        saved_as = self.model.config.architectures or []
        # A checkpoint without a head gets a random one, with a bias of zero; training since then would have moved the bias.
        if saved_as and type(self.model).__name__ not in saved_as and not self.model.regressor.bias.any():
            raise ValueError(
                f"{self.model.name_or_path} was saved as {', '.join(saved_as)}, without a head for expression. Fit one: "
                "delst fit MODEL DATASET --target expression --output DIR, and give DIR."
            )

    def _sanitize_parameters(
        self, genes: Sequence[str] | None = None, timeout: float | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if genes is not None and (unknown := sorted(set(genes) - set(self.processor.feature_extractor.vocabulary))):
            raise ValueError(
                f"The genes {unknown[:5]} are not in this model's vocabulary, which has names such as "
                f"{self.processor.feature_extractor.vocabulary[:3]}. Leave them out."
            )
        return {} if timeout is None else {"timeout": timeout}, {}, {} if genes is None else {"genes": genes}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Predict the expression of each gene.

        Args:
            inputs: One patch or a list of them: PIL images, paths or URLs.
            **kwargs: ``genes`` to return (all by default), ``batch_size``, ``timeout`` of a download in s.

        Returns:
            For each patch a dict from gene to expression, on the scale of ``gene_values``.
        """
        return super().__call__(inputs, **kwargs)

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        return self.processor(images=load_image(image, timeout=timeout), return_tensors="pt")

    def _forward(self, model_inputs: dict[str, Any]) -> Any:
        return self.model(**model_inputs)

    def postprocess(self, model_outputs: Any, genes: Sequence[str] | None = None) -> dict[str, float]:
        vocabulary = self.processor.feature_extractor.vocabulary
        predicted = dict(zip(vocabulary, model_outputs["logits"][0].float().tolist(), strict=True))
        return predicted if genes is None else {gene: predicted[gene] for gene in genes}


__all__ = ["GeneExpressionPipeline", "SpotEmbeddingPipeline"]
