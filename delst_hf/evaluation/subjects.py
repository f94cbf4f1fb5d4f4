"""Turn a checkpoint, a plain backbone or an array into what is evaluated: features and, if there is one, a space."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..data.collator import DelstCollator
from ..data.patch_features import FeatureTable
from ..data.study import SpotRows, Study
from ..model.configuration_delst import DelstConfig, DelstGeneConfig
from ..model.feature_extraction_delst import DelstGeneFeatureExtractor
from ..model.modeling_delst import DelstModel
from ..model.processing_delst import DelstProcessor
from .baselines import colour_statistics
from .embed import Embeddings, embed, model_collator
from .evidence import Arm, Evaluation, Signatures, Space, Spots
from .protocols.signatures import known_genes, reference_profiles

CALIBRATION_SPOTS = 64  # patches on which the batch norms of random backbones are measured


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        arms: The arms to score, baselines first; the first own one represents the model.
        space: Its space of images and genes, None without one.
        encode: Function of normalised profiles (profiles, genes of the vocabulary) that returns gene embeddings; None where
            there is no gene encoder.
        vocabulary: The genes that `encode` reads.
        target_sum: Library size of the normalisation that `encode` expects.
    """

    arms: tuple[Arm, ...]
    space: Space | None = None
    encode: Callable[[np.ndarray], np.ndarray] | None = None
    vocabulary: Sequence[str] = ()
    target_sum: float = 1e4

    def with_signatures(self, spots: Spots, signatures: Signatures) -> "Subject":
        """Return the subject with the embeddings of signatures and of the labels' mean profiles added to its space.

        Raises:
            ValueError: If there are signatures and no gene encoder, or fewer than half of the genes of one are known.
        """
        if self.encode is None or self.space is None:
            _refuse(signatures)
            return self
        profiles, regions = reference_profiles(self.vocabulary, spots, signatures)
        named = dict(zip(profiles, self.encode(np.stack(list(profiles.values()))), strict=True))
        mean = named.pop("mean profile")[None]
        shares = check_signatures(signatures, self.vocabulary, spots.genes)
        space = replace(self.space, signatures=named, regions=regions, gene_shares=shares, mean_profile=mean)
        return replace(self, space=space)


def check_signatures(signatures: Signatures, vocabulary: Sequence[str], genes: Sequence[str]) -> dict[str, str]:
    """Count the genes of each signature that the model reads and the dataset has: name -> text such as "3 of 5 genes".

    Raises:
        ValueError: If these are fewer than half of the genes of a signature, before anything is embedded.
    """
    present = set(genes)
    readable = [name for name in vocabulary if name in present]
    return {name: known_genes(f"signature {name!r}", signature, readable) for name, signature in signatures.items()}


def _refuse(signatures: Signatures) -> None:
    if signatures:
        raise ValueError(
            f"the signatures {', '.join(signatures)} need a gene encoder, which only a DELST checkpoint has. Leave "
            "--signatures out."
        )


def checkpoint_subject(
    model: DelstModel,
    processor: DelstProcessor,
    study: Study,
    dataset: Dataset,
    evaluation: Evaluation,
    *,
    frozen: DelstModel | None = None,
    features: FeatureTable | None = None,
) -> Subject:
    """Make a subject of a DELST checkpoint: its backbone's features, its embeddings and its space.

    Args:
        model, processor: The checkpoint.
        study, dataset: The study and its spots to embed.
        evaluation: Options: seeds of the backbones with random weights, whether there are baselines, batch size.
        frozen: The backbone before training (`frozen_model`); None leaves that arm out.
        features: Features made elsewhere, for a checkpoint that was trained on such features.

    Raises:
        ValueError: If the model reads features and there are none, or the reverse, or it does not read half of the
            genes of a signature.
    """
    check_signatures(evaluation.signatures, processor.feature_extractor.vocabulary, study.gene_names)
    collator = model_collator(model, processor, study, features)
    run = _Embedder(processor, study, dataset, evaluation, collator)
    embeddings = run(model)
    space = checkpoint_space(model, embeddings)
    backbone = "features" if features is not None else "backbone"
    arms = [Arm(f"{space.name} {backbone}", [embeddings.features], own=True)]
    arms.append(Arm(space.arm, [space.tangent(space.image)], own=True))
    if evaluation.baselines and features is not None:  # there is no backbone that could be random or frozen
        arms = [_colours(dataset), *arms]
    elif evaluation.baselines:
        arms = [*_baselines(model, frozen, run), *arms]
    return Subject(
        tuple(arms),
        space,
        lambda profiles: _encode(model, profiles),
        processor.feature_extractor.vocabulary,
        processor.feature_extractor.target_sum,
    )


def frozen_model(model: DelstModel, backbone: str) -> DelstModel:
    """Load the backbone that training started from, with the model's pooling, for the arm "frozen backbone".

    Args:
        model: The checkpoint's model.
        backbone: Hub id or folder.

    Raises:
        OSError: If it does not load.
    """
    try:
        return DelstModel.from_vision_gene_pretrained(
            backbone, model.gene_model.config, vision_pooling=model.config.vision_pooling
        )
    except OSError as error:
        raise OSError(
            f"the frozen backbone {backbone} does not load ({str(error).splitlines()[0]}). Say where it is now with "
            "--frozen-backbone, or leave the baselines out (--no-baselines)."
        ) from error


def backbone_subject(
    vision: str, study: Study, dataset: Dataset, evaluation: Evaluation, *, name: str, image_size: int | None = None
) -> Subject:
    """Make a subject of a plain vision backbone, without a gene encoder.

    Args:
        vision: Hub id or folder of any backbone of transformers.
        study, dataset, evaluation: As in `checkpoint_subject`.
        name: What to call its arm.
        image_size: Size in pixels to resize patches to; None for that of its own image processor.
    """
    _refuse(evaluation.signatures)
    size: dict[str, Any] = {}
    if image_size is not None:
        size = {"size": {"height": image_size, "width": image_size}, "do_center_crop": False}
    image_processor = AutoImageProcessor.from_pretrained(vision, backend="pil", **size)
    # Dummy gene encoder: embed() needs a DelstModel, only image features are used.
    genes = study.gene_names[:1]
    model = DelstModel.from_vision_gene_pretrained(
        vision, DelstGeneConfig(num_genes=1, hidden_size=8, encoder="linear")
    )
    processor = DelstProcessor(image_processor, DelstGeneFeatureExtractor(vocabulary=genes))
    run = _Embedder(processor, study, dataset, evaluation)
    arms = [Arm(name, [run(model).features], own=True)]
    if evaluation.baselines:
        arms = [*_baselines(model, None, run), *arms]
    return Subject(tuple(arms))


def array_subject(
    arrays: Mapping[str, np.ndarray],
    dataset: Dataset,
    evaluation: Evaluation,
    *,
    name: str,
    geometry: str = "cosine",
    curvature: float | None = None,
) -> Subject:
    """Make a subject of embeddings made elsewhere.

    Args:
        arrays: "image" (spots, dim) and, if both share a space, "gene" (spots, dim).
        dataset: The spots, in the order of the arrays.
        evaluation: Options: without `baselines` the arm of colour statistics is left out.
        name: What to call their arm.
        geometry: Geometry of the shared space: "cosine", "euclidean", or "lorentz" (then the arrays are space parts).
        curvature: The positive c of "lorentz".

    Raises:
        ValueError: If the two differ in dimension, or a curvature is missing.
    """
    _refuse(evaluation.signatures)
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
    arms = [Arm(name, [image if space is None else space.tangent(image)], own=True)]
    if evaluation.baselines:
        arms = [_colours(dataset), *arms]
    return Subject(tuple(arms), space)


def checkpoint_space(model: DelstModel, embeddings: Embeddings) -> Space:
    """Return the space of a checkpoint, as arrays."""
    lorentz = model.config.geometry == "lorentz"
    return Space(
        image=embeddings.image_embeds,
        gene=embeddings.gene_embeds,
        geometry=model.config.geometry,
        curvature=model.curvature.item() if lorentz else None,
        curvature_bounds=model.curvature_bounds if lorentz else None,
        parent=model.config.cross_parent,
        min_radius=model.config.min_radius,
        aperture_scale=model.config.cross_aperture_scale,
    )


class _Embedder:
    """Embeds the spots of an evaluation with any model."""

    def __init__(
        self,
        processor: DelstProcessor,
        study: Study,
        dataset: Dataset,
        evaluation: Evaluation,
        collator: DelstCollator | None = None,
    ):
        self.dataset, self.evaluation = dataset, evaluation
        self.collator = collator or DelstCollator.of(processor, study)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, model: DelstModel) -> Embeddings:
        if model.device.type == "cpu":
            model.to(device=self.device)  # type: ignore[call-arg]
        options = self.evaluation
        return embed(model, self.dataset, self.collator, options.batch_size, progress=options.progress)

    @torch.no_grad()
    def random_features(self, config: DelstConfig, seed: int) -> np.ndarray:
        """Return features (spots, columns) of a backbone with random weights.

        The running statistics of its batch norms are measured on some patches first. Otherwise they are 0 and 1, the signal
        shrinks from layer to layer, and features of a scale of 1e-21 are no baseline.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = DelstModel(config).to(device=self.device)  # type: ignore[call-arg]
        norms = [
            each for each in model.vision_model.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)
        ]
        if norms:
            some = np.unique(np.linspace(0, len(self.dataset) - 1, CALIBRATION_SPOTS).astype(int))
            pixels = self.collator(SpotRows(self.dataset).__getitems__(some.tolist()))["pixel_values"]
            model.eval()
            for each in norms:
                each.reset_running_stats()
                each.momentum = None  # the plain mean over batches, of which there is one
                each.train()
            model.vision_model(pixels.to(self.device))
        return self(model).features


def _baselines(model: DelstModel, frozen: DelstModel | None, run: _Embedder) -> list[Arm]:
    """Make the baselines: colour statistics; the backbone with random weights, one array per seed; and before training."""
    random = [run.random_features(model.config, seed) for seed in run.evaluation.seeds]
    baselines = [_colours(run.dataset), Arm("random-init backbone", random)]
    if frozen is not None:
        baselines.append(Arm("frozen backbone", [run(frozen).features]))
    return baselines


def _colours(dataset: Dataset) -> Arm:
    patches = (row["image"] for row in dataset.select_columns("image"))
    return Arm("colour statistics", [colour_statistics(patches)])


@torch.no_grad()
def _encode(model: DelstModel, profiles: np.ndarray) -> np.ndarray:
    values = torch.from_numpy(profiles).float().to(model.device)
    return model.get_gene_features(values).pooler_output.cpu().numpy()  # type: ignore[union-attr]
