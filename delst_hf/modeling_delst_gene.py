"""Gene encoders of DELST: normalised expression of a vocabulary's genes -> one feature vector a spot."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_delst import DelstGeneConfig


class DelstGenePreTrainedModel(PreTrainedModel):
    """What gene encoders share: configuration and initialisation."""

    config_class = DelstGeneConfig
    config: DelstGeneConfig
    base_model_prefix = "gene_model"
    main_input_name = "gene_values"
    input_modalities = []
    # An implementation that is chosen for the backbone is set on every part, and refused by one that does not know it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # 1/sqrt(fan_in) keeps unit variance through the layers, so that embeddings start at a radius near 1.
            init.normal_(module.weight, std=self.config.initializer_range or module.in_features**-0.5)
            init.zeros_(module.bias)
        elif isinstance(module, DelstGeneModel):
            init.zeros_(module.missing_values)
        else:
            super()._init_weights(module)


class DelstGeneModel(DelstGenePreTrainedModel):
    """Gene encoder: normalised expression of the vocabulary's genes -> one feature vector a spot."""

    def __init__(self, config: DelstGeneConfig):
        super().__init__(config)
        self.missing_values = nn.Buffer(torch.zeros(config.num_genes))
        if config.encoder == "linear":
            # trf-ignore: TRF036 one layer, named as the blocks below are
            self.layers = nn.Sequential(nn.Linear(config.num_genes, config.hidden_size))
        else:
            widths = [config.num_genes] + [config.hidden_size] * config.num_hidden_layers
            # trf-ignore: TRF036 the indices are in the parameter names of every checkpoint
            self.layers = nn.Sequential(
                *(self._block(config, width_in, width_out) for width_in, width_out in pairwise(widths))
            )
        self.post_init()

    @staticmethod
    def _block(config: DelstGeneConfig, width_in: int, width_out: int) -> nn.Sequential:
        # trf-ignore: TRF036 a plain chain without branches or casts
        return nn.Sequential(
            nn.Linear(width_in, width_out),
            nn.LayerNorm(width_out, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )

    # trf-ignore: TRF033 it fills a buffer that is saved with the weights, not a hyper-parameter
    @torch.no_grad()
    def set_missing_values(self, values: Tensor) -> None:
        """Set what stands in for a gene that a panel does not measure, usually its mean over the training spots (genes,)."""
        self.missing_values.copy_(values)

    @can_return_tuple
    def forward(
        self, gene_values: Tensor, gene_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode expression.

        Args:
            gene_values: Normalised expression (batch, num_genes).
            gene_mask: (batch, num_genes) bool, True where the gene was measured. Elsewhere `missing_values` stand in: a
                gene that the panel lacks is not a gene that the tissue lacks.

        Returns:
            ``pooler_output`` of shape (batch, hidden_size).

        Raises:
            ValueError: If the number of genes is not that of the vocabulary.
        """
        if gene_values.shape[-1] != self.config.num_genes:
            raise ValueError(
                f"gene_values has {gene_values.shape[-1]} genes, this model's vocabulary {self.config.num_genes}. Pass "
                "counts through the model's own processor: DelstProcessor.from_pretrained(folder)(counts=, gene_names=)."
            )
        gene_values = gene_values.to(self.missing_values.dtype)
        if gene_mask is not None:
            gene_values = torch.where(gene_mask, gene_values, self.missing_values)
        features = self.layers(gene_values)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)


__all__ = ["DelstGeneModel", "DelstGenePreTrainedModel"]
