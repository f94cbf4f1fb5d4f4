"""Gene encoders of DELST: normalised expression of a vocabulary's genes -> one feature vector per spot."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_delst import DelstGeneConfig

NORMS: dict[str, Any] = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm, "none": nn.Identity}


class DelstGenePreTrainedModel(PreTrainedModel):
    """Base of the gene encoders: configuration and initialisation."""

    config_class = DelstGeneConfig
    config: DelstGeneConfig
    base_model_prefix = "gene_model"
    main_input_name = "gene_values"
    input_modalities = []
    # transformers sets the attention implementation of the backbone on every part; one that lacks it would refuse.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # 1/sqrt(fan_in) keeps unit variance through the layers, so that embeddings start at a radius near 1.
            init.normal_(module.weight, std=self.config.initializer_range or module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range or 1.0)
        elif isinstance(module, DelstGeneSetPooling):
            # All genes start with equal weight: the encoder starts as a linear one, and learns what to attend to.
            init.zeros_(module.score_weight)
        elif isinstance(module, DelstGeneModel):
            init.zeros_(module.missing_values)
        else:
            super()._init_weights(module)


class DelstGeneSetPooling(GradientCheckpointingLayer):
    """Attention pooling over the genes of a spot, a set of any size.

    A gene's token is its embedding times its expression. Keys and values are linear in the token, so each is the expression
    times a matrix that all spots share: a tensor (batch, genes, width) is never formed. Gradient checkpointing recomputes the
    weights (batch, heads, genes) in the backward pass.
    """

    def __init__(self, config: DelstGeneConfig):
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.num_heads = config.num_attention_heads
        self.gene_embeddings = nn.Embedding(config.num_genes, width)
        self.value_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.score_weight = nn.Parameter(torch.zeros(2 * config.num_attention_heads, width))

    def forward(self, embeddings: Tensor, expression: Tensor, gene_mask: Tensor | None = None) -> Tensor:
        """Pool the genes of each spot.

        Args:
            embeddings: Gene embeddings (genes, width). They are an input, because re-entrant checkpointing gives a layer no
                gradient unless one of its inputs needs one.
            expression: Expression (batch, genes), 0 where it was not measured.
            gene_mask: (batch, genes) bool, True where measured; None when all are.

        Returns:
            (batch, hidden_size), 0 for a spot without measured genes.
        """
        slope, offset = F.linear(self.score_weight, embeddings).reshape(2, self.num_heads, 1, -1)
        scores = torch.addcmul(offset, slope, expression)
        if gene_mask is not None:
            # The lowest number instead of -inf: where all genes are masked, the weights stay finite, and expression is 0.
            scores = scores.masked_fill(~gene_mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * expression
        values = self.value_proj(embeddings).unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        pooled = (weights.to(values.dtype) @ values).transpose(0, 1).flatten(1)
        # A mean of n terms of random sign shrinks by sqrt(n); this keeps the scale equal for panels of any size.
        measured = expression.shape[-1] if gene_mask is None else gene_mask.sum(-1, keepdim=True).to(pooled.dtype)
        return pooled * measured**0.5


class DelstGeneModel(DelstGenePreTrainedModel):
    """Gene encoder: normalised expression of the vocabulary's genes -> one feature vector per spot.

    Examples:
        >>> model = DelstGeneModel(DelstGeneConfig(encoder="mlp", num_genes=40, hidden_size=16))
        >>> model(torch.zeros(2, 40)).pooler_output.shape
        torch.Size([2, 16])
    """

    def __init__(self, config: DelstGeneConfig):
        super().__init__(config)
        self.missing_values = nn.Buffer(torch.zeros(config.num_genes))
        self.pooling = DelstGeneSetPooling(config) if config.encoder == "set" else None
        # The matrices of the other encoders are small: recomputing them saves nothing.
        self.supports_gradient_checkpointing = config.encoder == "set"
        if config.encoder == "linear":
            # trf-ignore: TRF036 one layer, named as the blocks below are
            self.layers = nn.Sequential(nn.Linear(config.num_genes, config.hidden_size))
        else:
            first = config.hidden_size if config.encoder == "set" else config.num_genes
            widths = [first] + [config.hidden_size] * config.num_hidden_layers
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
            NORMS[config.norm](width_out, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )

    # trf-ignore: TRF033 it fills a buffer that is saved with the weights, not a hyper-parameter
    @torch.no_grad()
    def set_missing_values(self, values: Tensor) -> None:
        """Set the values (genes,) for genes that a panel does not measure, usually their means over the training spots."""
        self.missing_values.copy_(values)

    @can_return_tuple
    def forward(
        self, gene_values: Tensor, gene_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode expression.

        Args:
            gene_values: Normalised expression (batch, num_genes).
            gene_mask: (batch, num_genes) bool, True where the gene was measured. Elsewhere `missing_values` are used: a
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
        if self.pooling is not None:
            # The layer is called, not its weight read: if its weights are offloaded to another device, the call fetches them.
            genes = torch.arange(self.config.num_genes, device=gene_values.device)
            gene_values = self.pooling(
                self.pooling.gene_embeddings(genes), gene_values - self.missing_values, gene_mask
            )
        features = self.layers(gene_values)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)

    @torch.no_grad()
    def resize_gene_embeddings(self, num_genes: int) -> None:
        """Make room for genes that were added at the end of the vocabulary; outputs for the existing genes do not change.

        A new gene starts as the average gene in the ``"set"`` encoder, and without influence in the others.

        Args:
            num_genes: Size of the vocabulary, at least the present one.

        Raises:
            ValueError: If the vocabulary would shrink.
        """
        added = num_genes - self.config.num_genes
        if added < 0:
            raise ValueError(
                f"num_genes={num_genes} is less than the {self.config.num_genes} genes of this model. Genes are never removed: "
                "leave them out of the input, and they are masked."
            )
        if self.pooling is not None:
            weight = self.pooling.gene_embeddings.weight
            grown = torch.cat([weight, weight.mean(0, keepdim=True).expand(added, -1)])
            self.pooling.gene_embeddings = nn.Embedding.from_pretrained(grown, freeze=not weight.requires_grad)
        else:
            layer: Any = self.get_submodule("layers.0" if self.config.encoder == "linear" else "layers.0.0")
            layer.weight = nn.Parameter(F.pad(layer.weight, (0, added)), requires_grad=layer.weight.requires_grad)
            layer.in_features = num_genes
        self.missing_values = nn.Buffer(F.pad(self.missing_values, (0, added)))
        self.config.num_genes = num_genes

    @torch.no_grad()
    def load_gene_embeddings(self, embeddings: Any, names: Sequence[str], vocabulary: Sequence[str]) -> dict[str, Any]:
        """Initialise the gene embeddings of the ``"set"`` encoder from given ones, such as those of a language model.

        They are centred, and scaled like newly initialised ones. Genes that are not among the given names keep theirs.

        Args:
            embeddings: One row per name (names, embedding_size).
            names: Gene names of the rows.
            vocabulary: Gene names of this model, as its feature extractor has them.

        Returns:
            ``matched`` and ``vocabulary`` (numbers of genes), ``match_rate``, and ``unmatched``, names that kept theirs.

        Raises:
            ValueError: If the encoder has no gene embeddings, shapes disagree, or no name matches.
        """
        if self.pooling is None:
            raise ValueError(
                f"encoder={self.config.encoder!r} has no gene embeddings. Build the model with encoder='set'."
            )
        weight = self.pooling.gene_embeddings.weight
        given = torch.as_tensor(embeddings, dtype=torch.float32)
        if given.dim() != 2 or given.shape != (len(names), weight.shape[1]) or len(vocabulary) != len(weight):
            raise ValueError(
                f"embeddings has shape {tuple(given.shape)}, for {len(names)} names and embedding_size={weight.shape[1]}; the "
                f"vocabulary has {len(vocabulary)} names for num_genes={len(weight)}. Build the model with gene_config="
                "{'encoder': 'set', 'embedding_size': <width of the embeddings>, ...}, and give its own vocabulary."
            )
        row = {str(name): i for i, name in enumerate(names)}
        found = [i for i, name in enumerate(vocabulary) if name in row]
        if not found:
            raise ValueError(
                f"None of the vocabulary's {len(vocabulary)} genes, such as {list(vocabulary[:3])}, is among the given names, "
                f"such as {list(names[:3])}. Give names of the same kind (symbol or Ensembl id), species and case."
            )
        matched = given[[row[vocabulary[i]] for i in found]]
        matched = matched - given.mean(0)
        scale = (self.config.initializer_range or 1.0) / matched.square().mean().sqrt().clamp_min(1e-12)
        weight[found] = (matched * scale).to(weight)
        known = set(found)
        return {
            "matched": len(found),
            "vocabulary": len(vocabulary),
            "match_rate": len(found) / len(vocabulary),
            "unmatched": [name for i, name in enumerate(vocabulary) if i not in known],
        }


__all__ = ["DelstGeneModel", "DelstGenePreTrainedModel"]
