"""Task heads on a pretrained `DelstModel`: the class of a spot, and the expression of its genes.

Any trainer that reads ``loss`` and ``logits`` can train them, such as transformers' own. A head reads the pooled features of
the towers, standardised (``config.head_standardise``), and not the embedding: features predict expression better
(docs/results.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_delst import DelstConfig
from .modeling_delst import DelstModel, DelstPreTrainedModel, Float32Linear
from .vision_delst import encode_images


class DelstForSpotClassification(DelstPreTrainedModel):
    """Class of a spot from its patch, its genes or both (``config.head_inputs``).

    ``config.num_labels``, ``id2label`` and ``problem_type`` are those of transformers: single-label, multi-label or
    regression.

    Examples:
        >>> vision = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> vision["image_size"] = 32
        >>> config = DelstConfig(vision_config=vision, gene_config={"num_genes": 10}, projection_dim=8, num_labels=3)
        >>> model = DelstForSpotClassification(config).eval()
        >>> model(pixel_values=torch.zeros(2, 3, 32, 32)).logits.shape
        torch.Size([2, 3])
    """

    # The loss is a mean over the batch: the Trainer divides it by the number of accumulated batches.
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["classifier"]

    def __init__(self, config: DelstConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.loss_type = "ForSequenceClassification"
        self.delst = DelstModel(config)
        towers = self.delst.visual_projection.in_features, self.delst.gene_projection.in_features
        widths = {"image": towers[0], "gene": towers[1], "both": sum(towers)}
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = Float32Linear(widths[config.head_inputs], self.config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        gene_values: Tensor | None = None,
        gene_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify spots.

        Args:
            pixel_values: Patches (batch, 3, height, width); read when ``config.head_inputs`` is ``"image"`` or ``"both"``.
            gene_values: Normalised expression (batch, genes); read when it is ``"gene"`` or ``"both"``.
            gene_mask: (batch, genes) bool, True where measured; None when all are.
            labels: Classes (batch,) int; 0/1 (batch, labels) float for multi-label; numbers for regression.
            **kwargs: Passed to the vision backbone.

        Returns:
            ``logits`` (batch, num_labels) float32 and, with labels, the ``loss``.

        Raises:
            ValueError: If an input that the head reads is missing.
        """
        given: dict[str, Any] = {"pixel_values": pixel_values, "gene_values": gene_values}
        wanted = {"image": ["pixel_values"], "gene": ["gene_values"]}.get(self.config.head_inputs, list(given))
        if missing := [name for name in wanted if given[name] is None]:
            raise ValueError(
                f"head_inputs={self.config.head_inputs!r} needs {' and '.join(missing)}, which DelstProcessor returns. Pass "
                "what is missing, or build the model with another head_inputs: 'image', 'gene' or 'both'."
            )
        features, hidden_states, attentions = [], None, None
        if "pixel_values" in wanted:
            image = encode_images(self.delst.vision_model, given["pixel_values"], self.config.vision_pooling, **kwargs)
            features.append(head_features(image.pooler_output, self.config))
            hidden_states, attentions = image.hidden_states, image.attentions
        if "gene_values" in wanted:
            genes = self.delst.gene_model(gene_values, gene_mask, return_dict=True).pooler_output
            features.append(head_features(genes, self.config))
        logits = self.classifier(self.dropout(torch.cat(features, dim=-1)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)


class DelstForGeneExpressionPrediction(DelstPreTrainedModel):
    """Normalised expression of every gene of the vocabulary, from the patch alone.

    The head learns the deviation from the mean expression that a pretrained gene encoder holds (``missing_values``).

    Examples:
        >>> vision = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> vision["image_size"] = 32
        >>> config = DelstConfig(vision_config=vision, gene_config={"num_genes": 10}, projection_dim=8)
        >>> model = DelstForGeneExpressionPrediction(config).eval()
        >>> model(torch.zeros(2, 3, 32, 32)).logits.shape
        torch.Size([2, 10])
    """

    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["regressor"]

    def __init__(self, config: DelstConfig):
        super().__init__(config)
        self.delst = DelstModel(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.regressor = Float32Linear(
            self.delst.visual_projection.in_features, self.delst.config.gene_config.num_genes
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        gene_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Predict expression.

        Args:
            pixel_values: Patches (batch, 3, height, width).
            labels: Targets (batch, genes): ``gene_values`` as DelstProcessor returns them.
            gene_mask: (batch, genes) bool, True where measured; the loss reads only these. None when all are.
            **kwargs: Passed to the vision backbone.

        Returns:
            ``logits`` (batch, genes) float32, on the scale of ``gene_values``, and with labels the ``loss``: the mean of the
            squared error over the measured values.

        Raises:
            ValueError: If the labels are not of this model's genes.
        """
        image = encode_images(self.delst.vision_model, pixel_values, self.config.vision_pooling, **kwargs)
        deviation = self.regressor(self.dropout(head_features(image.pooler_output, self.config)))
        logits = deviation + self.delst.gene_model.missing_values.to(deviation)
        loss = None
        if labels is not None:
            if labels.shape != logits.shape:
                raise ValueError(
                    f"labels has shape {tuple(labels.shape)}, but there are {len(logits)} patches, and {logits.shape[1]} genes "
                    "in this model's vocabulary. Pass gene_values of the model's own processor as labels."
                )
            mask = torch.ones_like(logits, dtype=torch.bool) if gene_mask is None else gene_mask
            # Where nothing was measured the label may be NaN: it is replaced before the difference, not after.
            error = torch.where(mask, labels, logits.detach()).float() - logits
            loss = error.square().sum() / mask.sum().clamp_min(1)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=image.hidden_states, attentions=image.attentions
        )

    @torch.no_grad()
    def resize_gene_embeddings(self, num_genes: int) -> None:
        """Make room for genes as `DelstModel` does; new genes are predicted as 0 until they are trained."""
        self.delst.resize_gene_embeddings(num_genes)
        old, added = self.regressor, num_genes - self.regressor.out_features
        self.regressor = Float32Linear(old.in_features, num_genes, device=old.weight.device)
        self.regressor.weight.copy_(F.pad(old.weight, (0, 0, 0, added)))
        self.regressor.bias.copy_(F.pad(old.bias, (0, added)))


def head_features(features: Tensor, config: DelstConfig) -> Tensor:
    """Return features (batch, width) as a head reads them: float32, with mean 0 and variance 1 if it standardises."""
    return F.layer_norm(features.float(), features.shape[-1:]) if config.head_standardise else features.float()


__all__ = ["DelstForGeneExpressionPrediction", "DelstForSpotClassification"]
