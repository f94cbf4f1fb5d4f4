"""A checkpoint as a function of patches: embedding, radius and, where it has heads, expression and classes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from ..data.appearance import PatchEncoding
from ..data.collator import PixelTransform
from ..errors import did_you_mean, reading_model, said
from ..evaluation.backbone import InferenceBackbone, on_cpu
from ..hub.checkpoint_folder import checkpoint_class
from ..hub.checksums import check_checksums
from ..model.configuration_delst import DelstConfig
from ..model.lorentz import log_map0, radius
from ..model.modeling_delst import DelstModel
from ..model.modeling_delst_heads import DelstForGeneExpressionPrediction, DelstForSpotClassification, head_features
from ..model.processing_delst import DelstProcessor
from ..record import find_training_record

logger = logging.getLogger(__name__)

SCORES = ("pearson", "pearson_low", "pearson_high")


@dataclass
class Predictor:
    """A loaded checkpoint with its heads; `load_predictor` returns one.

    Attributes:
        name: Folder or Hub id of the checkpoint.
        model: Its towers and projections, in eval mode.
        processor: Its processor.
        record: The record of its training, with that of its head under ``head``.
        data: Facts of the training data, from the record; empty where it has none.
        genes: One row per gene that the expression head predicts, in its order, with `SCORES` where they are known.
        expression: The expression head as a layer from features to all of `genes`; None without one.
        classes: Names of the classes, in the order of the logits.
        classifier: The head for classes as a layer; None without one.
        configs: Configuration of each head, by "expression" and "classifier": it says how the head reads features.
        backbone: The model's backbone, run without gradients on the device that `to` chose.

    Examples:
        >>> predictor = load_predictor("runs/toy/expression")
        >>> predictor.patch_px, len(predictor.genes)
        (32, 20)
    """

    name: str
    model: DelstModel
    processor: DelstProcessor
    record: dict[str, Any]
    genes: pd.DataFrame = field(default_factory=pd.DataFrame)
    expression: torch.nn.Linear | None = None
    classes: list[str] = field(default_factory=list)
    classifier: torch.nn.Linear | None = None
    configs: dict[str, DelstConfig] = field(default_factory=dict)
    backbone: InferenceBackbone = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.transform = PixelTransform.from_processor(self.processor)
        self.data: dict[str, Any] = self.record.get("data") or {}

    @property
    def patch_px(self) -> int:
        """Side of the model's input in pixels."""
        if self.transform is not None:
            return max(self.transform.size)
        size = self.processor.image_processor.size
        return int(size.get("shortest_edge") or size.get("height") or 224)

    @property
    def cut_px(self) -> int:
        """Side in pixels at which patches of a slide are cut: the stored side of the training patches, else `patch_px`."""
        stored = str(self.data.get("patch_px") or "")
        return int(stored) if stored.isdecimal() and self.encoding is not None else self.patch_px

    @property
    def encoding(self) -> PatchEncoding | None:
        """Encoding of the training patches, which patches of a slide are to share; None where it is not known."""
        return PatchEncoding.named(str(self.data.get("patch_encoding") or ""))

    def patch_um(self, given: float | None = None) -> float:
        """Return the side of a patch in micrometres: that of the training, unless another is given.

        Raises:
            ValueError: If neither the record nor the caller states one side.
        """
        stated = str(self.data.get("patch_um") or "")
        sizes = [float(size) for size in stated.split(",") if size.strip()]
        if given is None and len(sizes) != 1:
            found = f"trained on patches of {stated} um" if sizes else "saved without the size of its patches"
            raise ValueError(f"the model {self.name} was {found}. Give the side to cut, in micrometres (--patch-um).")
        if given is not None and sizes and all(abs(given / size - 1) > 0.05 for size in sizes):
            logger.warning("patches of %g um are cut, but the model was trained on %s um", given, stated)
        return sizes[0] if given is None else float(given)

    def keep_genes(self, names: Sequence[str] | None, min_pearson: float | None) -> None:
        """Predict only these genes, in this order, and only those with at least this held-out Pearson.

        Raises:
            ValueError: As `places_of`.
        """
        places = self.places_of(names, min_pearson)
        if self.expression is not None:
            self.genes = self.genes.iloc[places]
            self.expression = _layer(self.expression.weight[places], self.expression.bias[places])

    def places_of(self, names: Sequence[str] | None, min_pearson: float | None) -> np.ndarray:
        """Return the positions in `genes` of these genes that have at least this held-out Pearson; without both, of all.

        Raises:
            ValueError: If a gene is not predicted by the head, there is no head or no score, or nothing is left.
        """
        if names is None and min_pearson is None:
            return np.arange(len(self.genes))
        if self.expression is None:
            raise ValueError(
                f"the model {self.name} has no expression head. Fit one: delst fit {self.name} DATASET --target expression "
                "--output DIR, and predict with DIR."
            )
        known = {name: place for place, name in reversed(list(enumerate(self.genes.index)))}
        wanted = list(self.genes.index) if names is None else list(dict.fromkeys(names))
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(
                f"the head does not predict {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}."
                f"{did_you_mean(unknown[:5], known)} It predicts {len(known)} genes, such as {', '.join(list(known)[:5])}. "
                "Leave the others out (--genes)."
            )
        places = np.array([known[name] for name in wanted], dtype=int)
        if min_pearson is not None:
            if "pearson" not in self.genes:
                raise ValueError(
                    f"the model {self.name} has no held-out scores of its genes. Leave --min-pearson out, or fit the head "
                    "with delst fit, which scores it."
                )
            score = self.genes["pearson"].to_numpy(float)[places]
            keep = score >= min_pearson  # a gene that could not be scored is NaN and is left out
            if not keep.any():
                best = f"the best has {np.nanmax(score):.3f}" if np.isfinite(score).any() else "none could be scored"
                raise ValueError(f"no gene has a held-out Pearson of {min_pearson:g}; {best}. Lower --min-pearson.")
            places = places[keep]
        return places

    def __call__(self, patches: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Predict patches.

        Args:
            patches: uint8 RGB (height, width, 3) each; features (width,) each, for a model that was trained on features.

        Returns:
            ``features`` (patches, width), pooled; ``tangent`` (patches, projection_dim), the image embeddings in the tangent
            space at the origin; ``radius`` (patches,), NaN where the geometry has none; ``expression`` (patches,
            genes) and ``probabilities`` (patches, classes) where there are heads. All float32.
        """
        return self.begin(patches)()

    @torch.no_grad()
    def begin(self, patches: Sequence[np.ndarray]) -> Callable[[], dict[str, np.ndarray]]:
        """Start a prediction and return a function that waits for its end: meanwhile a GPU may be given the next patches.

        Args:
            patches: As in `__call__`.

        Returns:
            A function without arguments that returns the arrays of `__call__`.
        """
        found = self.from_features(self.features(self.pixel_values(patches)))
        wait = on_cpu({name: value.float() for name, value in found.items()})
        return lambda: {name: value.numpy() for name, value in wait().items()}

    def features(self, pixel_values: Tensor) -> Tensor:
        """Return the pooled features (patches, width) of the backbone."""
        return self.backbone(pixel_values)

    def from_features(self, features: Tensor) -> dict[str, Tensor]:
        """Return the arrays of `__call__`, as tensors, from pooled features (patches, width) of the backbone."""
        found = {"features": features, **self.in_space(self.model.embed_features(features, "image"))}
        if self.expression is not None:
            found["expression"] = self.expression(head_features(features, self.configs["expression"]))
        if self.classifier is not None:
            logits = self.classifier(head_features(features, self.configs["classifier"]))
            found["probabilities"] = logits.softmax(-1)
        return found

    def in_space(self, embeds: Tensor) -> dict[str, Tensor]:
        """Return ``tangent`` and ``radius`` of embeddings (rows, projection_dim); on a sphere the radius is NaN."""
        geometry = self.model.config.geometry
        if geometry == "lorentz":
            curvature = self.model.curvature
            return {"tangent": log_map0(embeds, curvature), "radius": radius(embeds, curvature)}
        norm = torch.linalg.vector_norm(embeds, dim=-1)
        return {"tangent": embeds, "radius": norm if geometry == "euclidean" else torch.full_like(norm, torch.nan)}

    def pixel_values(self, patches: Sequence[np.ndarray]) -> Tensor:
        """Return patches (patches, 3, height, width) on the model's device, normalised by the processor; features unchanged."""
        device = self.model.device
        if patches[0].ndim == 1:
            return torch.from_numpy(np.stack(patches).astype(np.float32, copy=False)).to(device)
        if self.transform is not None and all(patch.shape[1::-1] == self.transform.size for patch in patches):
            # From page-locked memory, the copy does not wait for pending work of the GPU.
            batch = torch.empty((len(patches), *patches[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
            np.stack(patches, out=batch.numpy())
            return self.transform(batch.to(device, non_blocking=True).permute(0, 3, 1, 2))
        images = [Image.fromarray(patch) for patch in patches]
        return self.processor.prepare_images(images, return_tensors="pt")["pixel_values"].to(device)

    def to(self, device: torch.device | str) -> "Predictor":
        """Move everything to a device."""
        self.model.to(device)  # type: ignore[arg-type]
        self.backbone = InferenceBackbone(self.model)  # it depends on the device: on a GPU the weights keep their order
        for layer in (self.expression, self.classifier):
            if layer is not None:
                layer.to(device)
        return self


def load_predictor(name: str, heads: Sequence[str] = ()) -> Predictor:
    """Load a checkpoint and heads that were fitted on its backbone, onto a GPU where there is one.

    Args:
        name: Folder or Hub id of a `DelstModel` or of one of its heads.
        heads: Further checkpoints, of which only the heads are used.

    Raises:
        ValueError: If it is not a checkpoint of this package, or a head was fitted on another backbone.

    Examples:
        >>> predictor = load_predictor("runs/toy/pretrain/model", heads=["runs/toy/expression"])
        >>> predictor.name, predictor.expression is not None
        ('runs/toy/pretrain/model', True)
    """
    model, processor = _load(name)
    predictor = Predictor(name, _towers(model), processor, find_training_record(name))
    _add_head(predictor, model, predictor.record)
    for head in heads:
        other, _ = _load(head)
        if isinstance(other, DelstModel):
            raise ValueError(f"{head} is a model without a head: give --head a folder that `delst fit` wrote.")
        if not _same_backbone(predictor.model, _towers(other)):
            raise ValueError(
                f"the head {head} was fitted on another backbone than {name}. Fit it on this one (delst fit)."
            )
        _add_head(predictor, other, find_training_record(head))
    return predictor.to("cuda" if torch.cuda.is_available() else "cpu")


def _load(name: str) -> tuple[Any, DelstProcessor]:
    try:
        config = DelstConfig.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"no checkpoint at {name}. Give the folder of a DELST checkpoint, or its id on the Hub ({said(error)})."
        ) from error
    check_checksums(name)
    with reading_model(name):
        model = checkpoint_class(config).from_pretrained(name).eval()
        return model, DelstProcessor.from_pretrained(name)


def _towers(model: Any) -> DelstModel:
    return model if isinstance(model, DelstModel) else model.delst


def _same_backbone(first: DelstModel, second: DelstModel) -> bool:
    one, other = first.vision_model.state_dict(), second.vision_model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key].cpu(), other[key].cpu()) for key in one)


def _add_head(predictor: Predictor, model: Any, record: Mapping[str, Any]) -> None:
    if isinstance(model, DelstForGeneExpressionPrediction):
        means = model.delst.gene_model.missing_values.float().to(model.regressor.weight.device)
        predictor.configs["expression"] = model.config
        predictor.expression = _layer(model.regressor.weight, model.regressor.bias + means)
        predictor.genes = _scored_genes(predictor.processor.feature_extractor.vocabulary, record)
    elif isinstance(model, DelstForSpotClassification):
        if model.config.head_inputs != "image":
            raise ValueError(
                f"the head of {predictor.name} reads {model.config.head_inputs!r}. Allowed: 'image', since a slide without "
                "counts has patches only. Fit one: delst fit MODEL DATASET --target labels --output DIR."
            )
        predictor.configs["classifier"] = model.config
        predictor.classifier = _layer(model.classifier.weight, model.classifier.bias)
        predictor.classes = [model.config.id2label[i] for i in range(model.config.num_labels)]


def _layer(weight: Tensor, bias: Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer.requires_grad_(False)


def _scored_genes(vocabulary: Sequence[str], record: Mapping[str, Any]) -> pd.DataFrame:
    genes = pd.DataFrame(index=pd.Index(list(vocabulary), name="gene"))
    scores = (record.get("head") or {}).get("scores")
    if scores and len(scores.get("gene", [])):
        table = pd.DataFrame(scores).set_index("gene").astype(float)
        genes = genes.join(table[[name for name in SCORES if name in table]])
    return genes
