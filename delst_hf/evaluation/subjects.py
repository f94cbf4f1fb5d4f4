"""What can be evaluated, each as features and, where there is one, a space: a checkpoint, a plain backbone, any array."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoImageProcessor

from ..data.collator import DelstCollator
from ..data.study import Study
from ..model.configuration_delst import DelstGeneConfig
from ..model.feature_extraction_delst import DelstGeneFeatureExtractor
from ..model.modeling_delst import DelstModel
from ..model.processing_delst import DelstProcessor
from .baselines import colour_statistics
from .embed import Embeddings, embed
from .evidence import Space, Spots
from .protocols.signatures import reference_profiles

logger = logging.getLogger(__name__)

# name -> {"genes": {name: weight} or [names], or "profile": {name: counts}; "region": label}
Signatures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        features: Arm -> one array (spots, columns) a repeat; baselines first.
        own: The arms that are the model's own, the first standing for it.
        space: Its space of images and genes, if it has one.
        aperture_scale: eta of the cones across modalities.
        encode: Names and normalised profiles (profiles, genes of the vocabulary) -> gene embeddings; None where there is no
            gene encoder.
        vocabulary: The genes that `encode` reads.
    """

    features: dict[str, list[np.ndarray]]
    own: tuple[str, ...]
    space: Space | None = None
    aperture_scale: float = 1.0
    encode: Callable[[np.ndarray], np.ndarray] | None = None
    vocabulary: Sequence[str] = ()

    def with_signatures(self, spots: Spots, signatures: Signatures) -> "Subject":
        """The same, its space with the embeddings of signatures and of the labels' mean profiles.

        Raises:
            ValueError: if there are signatures and no gene encoder, or no gene of a signature is in the vocabulary.
        """
        if self.encode is None or self.space is None:
            if signatures:
                raise ValueError(
                    f"the signatures {', '.join(signatures)} need a gene encoder, which only a DELST checkpoint has. Leave "
                    "--signatures out."
                )
            return self
        profiles, regions = reference_profiles(self.vocabulary, spots, signatures)
        named = dict(zip(profiles, self.encode(np.stack(list(profiles.values()))), strict=True))
        mean = named.pop("mean profile")[None]
        return replace(self, space=replace(self.space, signatures=named, regions=regions, mean_profile=mean))


def checkpoint_subject(
    model: DelstModel,
    processor: DelstProcessor,
    study: Study,
    spots: Dataset,
    *,
    frozen_backbone: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    baselines: bool = True,
    batch_size: int = 64,
    progress: bool = True,
) -> Subject:
    """A DELST checkpoint: its backbone's features, its embeddings and its space.

    Args:
        model, processor: The checkpoint.
        study, spots: The dataset and its spots to embed.
        frozen_backbone: Hub id or folder of the backbone before training; None leaves that arm out.
        seeds: Of the backbones with random weights.
        baselines: False leaves the baseline arms out.
        batch_size, progress: As in `embed`.
    """
    run = _embedder(processor, study, spots, batch_size, progress)
    embeddings = run(model)
    space = checkpoint_space(model, embeddings)
    features = {"DELST backbone": [embeddings.features], "DELST embedding": [space.tangent(space.image)]}
    if baselines:
        features = {**_baselines(model, frozen_backbone, seeds, run, spots), **features}
    return Subject(
        features,
        ("DELST backbone", "DELST embedding"),
        space,
        model.config.cross_aperture_scale,
        lambda profiles: _encode(model, profiles),
        processor.feature_extractor.vocabulary,
    )


def backbone_subject(
    vision: str,
    study: Study,
    spots: Dataset,
    *,
    name: str,
    image_size: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    baselines: bool = True,
    batch_size: int = 64,
    progress: bool = True,
) -> Subject:
    """A plain vision backbone as it is, without a gene encoder.

    Args:
        vision: Hub id or folder of any backbone of transformers.
        study, spots: The dataset and its spots to embed.
        name: What to call its arm.
        image_size: Patches are resized to this; None for the size of its own image processor.
        seeds, baselines, batch_size, progress: As in `checkpoint_subject`.
    """
    size: dict[str, Any] = {}
    if image_size is not None:
        size = {"size": {"height": image_size, "width": image_size}, "do_center_crop": False}
    image_processor = AutoImageProcessor.from_pretrained(vision, backend="pil", **size)
    # A gene encoder that nobody asks anything, so that one way of embedding serves all.
    genes = study.gene_names[:1]
    model = DelstModel.from_vision_gene_pretrained(
        vision, DelstGeneConfig(num_genes=1, hidden_size=8, encoder="linear")
    )
    processor = DelstProcessor(image_processor, DelstGeneFeatureExtractor(vocabulary=genes))
    run = _embedder(processor, study, spots, batch_size, progress)
    features = {name: [run(model).features]}
    if baselines:
        features = {**_baselines(model, None, seeds, run, spots), **features}
    return Subject(features, (name,))


def array_subject(
    arrays: Mapping[str, np.ndarray],
    spots: Dataset,
    *,
    name: str,
    geometry: str = "cosine",
    curvature: float | None = None,
    baselines: bool = True,
) -> Subject:
    """Embeddings from elsewhere.

    Args:
        arrays: "image" (spots, dim), and "gene" (spots, dim) where both live in one space.
        spots: The spots of the dataset, in the order of the arrays.
        name: What to call them.
        geometry: Of the space that both share: "cosine", "euclidean", or "lorentz" (then the arrays are space parts).
        curvature: The positive c of "lorentz".
        baselines: False leaves the baseline arm, colour statistics, out.

    Raises:
        ValueError: if the two do not share their dimension, or a curvature is missing.
    """
    image, gene = arrays["image"], arrays.get("gene")
    space = None
    if gene is not None:
        if image.shape[1] != gene.shape[1]:
            raise ValueError(
                f"image has {image.shape[1]} columns and gene {gene.shape[1]}; both must be of one space. Give the projected "
                "embeddings, or 'image' alone."
            )
        if geometry == "lorentz" and not (curvature is not None and curvature > 0):
            raise ValueError(f"curvature is {curvature}; --geometry lorentz needs --curvature, a positive c.")
        space = Space(
            image,
            gene,
            geometry,
            curvature if geometry == "lorentz" else None,
            name=f"{name}, image and gene",
            arm=name,
        )
    features = {name: [image if space is None else space.tangent(image)]}
    if baselines:
        features = {"colour statistics": [_colours(spots)], **features}
    return Subject(features, (name,), space)


def checkpoint_space(model: DelstModel, embeddings: Embeddings) -> Space:
    """The space of a checkpoint, as arrays."""
    lorentz = model.config.geometry == "lorentz"
    return Space(
        image=embeddings.image_embeds,
        gene=embeddings.gene_embeds,
        geometry=model.config.geometry,
        curvature=model.curvature.item() if lorentz else None,
        curvature_bounds=model.curvature_bounds if lorentz else None,
        parent=model.config.cross_parent,
        min_radius=model.config.min_radius,
    )


def _embedder(
    processor: DelstProcessor, study: Study, spots: Dataset, batch_size: int, progress: bool
) -> Callable[[DelstModel], Embeddings]:
    collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(model: DelstModel) -> Embeddings:
        if model.device.type == "cpu":
            model.to(device=device)  # type: ignore[call-arg]
        return embed(model, spots, collator, batch_size, progress=progress)

    return run


def _baselines(
    model: DelstModel,
    frozen_backbone: str | None,
    seeds: Sequence[int],
    run: Callable[[DelstModel], Embeddings],
    spots: Dataset,
) -> dict[str, list[np.ndarray]]:
    """Colour statistics; the backbone with random weights, one array a seed; the backbone as it was before training."""
    random = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.append(run(DelstModel(model.config)).features)
    baselines = {"colour statistics": [_colours(spots)], "random-init backbone": random}
    if frozen_backbone is not None:
        try:
            frozen = DelstModel.from_vision_gene_pretrained(
                frozen_backbone, model.gene_model.config, vision_pooling=model.config.vision_pooling
            )
        except OSError as error:
            logger.warning("The frozen arm is left out: the backbone %s does not load (%s).", frozen_backbone, error)
            return baselines
        baselines["frozen backbone"] = [run(frozen).features]
    return baselines


def _colours(spots: Dataset) -> np.ndarray:
    return colour_statistics(row["image"] for row in spots.select_columns("image"))


@torch.no_grad()
def _encode(model: DelstModel, profiles: np.ndarray) -> np.ndarray:
    values = torch.from_numpy(profiles).float().to(model.device)
    return model.get_gene_features(values).pooler_output.cpu().numpy()  # type: ignore[union-attr]
