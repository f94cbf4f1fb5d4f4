"""One pretraining run, from a dataset to a checkpoint folder. Scripts, examples and notebooks call the same functions:

study = Study.load("runs/toy/data")
trainer = assemble(study, DataArguments("runs/toy/data"), ModelArguments(), DelstTrainingArguments("runs/mine"))
trainer.train()
folder = save_run(trainer)
"""

import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from transformers import ViTImageProcessorPil, set_seed

from ..data.collator import DelstCollator, FeatureCollator
from ..data.study import Study
from ..data.vocabulary import GeneMoments, choose_genes, gene_moments
from ..hub.checkpoint_folder import save_checkpoint_folder
from ..model.configuration_delst import DelstConfig, DelstFeaturesConfig
from ..model.feature_extraction_delst import DelstGeneFeatureExtractor
from ..model.modeling_delst import DelstModel
from ..model.processing_delst import DelstProcessor
from ..model.vision_delst import check_image_size, load_image_processor
from ..record import data_facts, feature_facts, hyperparameters
from .arguments import DataArguments, DelstTrainingArguments, ModelArguments, split_names
from .checkpoints import interruption_explained, own_output, resume_point
from .trainer import DelstTrainer

if TYPE_CHECKING:
    from ..data.patch_features import FeatureTable
    from .niche import Niches

logger = logging.getLogger(__name__)

_NO_BACKBONE = (
    "Give a folder with config.json and weights, or the Hub id of a backbone, USER/NAME or, from timm, timm/NAME "
    "(docs/models.md names some). Without a network, download it elsewhere (hf download USER/NAME --local-dir DIR) and give "
    "DIR. For a gated one, accept its license and run hf auth login."
)


def pretrain(data: DataArguments, model: Any, training: DelstTrainingArguments, card: Any = None) -> Path | None:
    """Run a pretraining from its dataset to its checkpoint folder; all processes call it.

    Args:
        data: Which tissue to learn from.
        model: `ModelArguments`: the model and its losses.
        training: How to train; with ``resume_from_checkpoint`` a killed run resumes.
        card: `CardArguments`: facts of the model card, for ``push_to_hub``.

    Returns:
        ``OUTPUT_DIR/model``, for `DelstModel.from_pretrained`; None on processes other than the first.

    Raises:
        ValueError: If the output folder holds a run that is not resumed, or arguments contradict each other or the data.
        OSError: Before any work, if that folder cannot be written, or another run is writing there.

    Examples:
        >>> from delst_hf import DataArguments, DelstTrainingArguments, ModelArguments
        >>> data = DataArguments("runs/toy/data", test_slides="toy_D1")
        >>> vision = '{"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}'
        >>> model = ModelArguments(vision_config=vision, image_size=32, gene_hidden_size=16, projection_dim=8)
        >>> training = DelstTrainingArguments("runs/mine", max_steps=1, report_to="none", disable_tqdm=True)
        >>> pretrain(data, model, training).name
        trained 1 steps in ...
        Checkpoint: runs/mine/model
        Next: delst evaluate runs/mine/model runs/toy/data
        'model'
    """
    output = training.output_dir or "."
    with interruption_explained(output), own_output(output):
        checkpoint = resume_point(output, training.resume_from_checkpoint)
        trainer = assemble(open_study(data, training), data, model, training, card)
        trainer.train(resume_from_checkpoint=checkpoint)
        features = ["--features", data.features] if data.features else []
        wide = data.levels != "spot"  # the model reads the centres of the patches
        return save_run(trainer, "DATASET" if wide else shlex.join([data.dataset, *features]))


def open_study(data: DataArguments, training: DelstTrainingArguments) -> Study:
    """Open the dataset of a run; with ``streaming`` its spots are read as they are needed.

    >>> open_study(DataArguments("runs/toy/data", streaming=True), DelstTrainingArguments("runs/mine")).slide_ids[0]
    'toy_A1'
    """
    if not data.streaming:
        return Study.load(data.dataset)
    from .streaming import check_streaming, open_streamed

    check_streaming(data, training)
    return open_streamed(data)


def assemble(
    study: Study, data: DataArguments, model: Any, training: DelstTrainingArguments, card: Any = None
) -> DelstTrainer:
    """Put a run together: slides, vocabulary, processor, model, means of missing genes, levels, collator, trainer.

    Args:
        study: The dataset, opened.
        data: Which of its slides and genes to learn from.
        model: `ModelArguments`: the model and its losses.
        training: How to train.
        card: `CardArguments`, for ``push_to_hub``.

    Returns:
        A trainer, ready for ``train()``; its ``processing_class`` is the processor of the model.

    Raises:
        ValueError: If arguments contradict each other or the data.

    Examples:
        >>> from delst_hf import DataArguments, DelstTrainingArguments, ModelArguments
        >>> study = Study.load("runs/toy/data")
        >>> vision = '{"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}'
        >>> model = ModelArguments(vision_config=vision, image_size=32, gene_hidden_size=16, projection_dim=8)
        >>> training = DelstTrainingArguments("runs/mine", max_steps=1, report_to="none", disable_tqdm=True)
        >>> trainer = assemble(study, DataArguments("runs/toy/data", test_slides="toy_D1"), model, training)
        >>> len(trainer.train_dataset), trainer.model.config.projection_dim
        (144, 8)
    """
    check_backbone_can_be_left_out(model, training)
    set_seed(training.seed)
    train_slides, validation_slides = choose_slides(study, data)
    unpaired, whole = [], study
    if data.unpaired_slides:
        from .unpaired import UnpairedSpots, choose_unpaired

        unpaired = choose_unpaired(study, data, training, train_slides, validation_slides)
    for trained in filter(None, (train_slides, unpaired)):
        check_there_are_negatives(study, trained, training.mask_negatives)
    slides = [*train_slides, *validation_slides]
    niches = None
    if data.levels != "spot":
        from .niche import Niches

        niches = Niches(study, slides, data, training)
    features = None
    if data.features is not None:
        from .given_features import with_features

        study, features = with_features(study, data, model, training, slides)
    moments = gene_moments(study.own_count_batches(training_spots(study, train_slides)), summed=study.summed)
    vocabulary = choose_vocabulary(study, data, moments, train_slides)
    sides = (study.patch_um(train_slides), study.patch_px(train_slides))
    if niches is not None:
        sides = ([niches.spot_um], [niches.spot_px])
    network, processor, before = _build_or_continue(
        data, model, training, vocabulary, features, sides, validation_slides
    )
    set_missing_values(network, processor, study, moments)
    if training.lora:
        from .lora import add_lora

        add_lora(network, training.lora_rank)
    spots = _spots(study, data, training, train_slides, validation_slides)
    if niches is not None:
        spots = {name: niches.added_to(chosen) for name, chosen in spots.items()}
    facts = facts_of_data(data, study, train_slides, spots["train_dataset"], features)
    facts |= {} if niches is None else niches.size_of_spots
    seen = {"train": train_slides, "validation": validation_slides, "unpaired": unpaired}
    collator = _collator(processor, study, features, niches, spots)
    if unpaired:
        alone = whole.with_level(training_spots(whole, unpaired), data.level_key, training.seed)
        spots["unpaired"] = UnpairedSpots(alone, collator, training)
    return trainer_class(data)(
        model=network,
        args=training,
        data_collator=collator,
        processing_class=processor,
        run_facts=_run_facts(data, model, training, facts, seen, before),
        patient_of_slide=patient_of_slide(study),
        card_facts=card.facts() if card is not None else {},
        **spots,
    )


def _build_or_continue(
    data: DataArguments,
    model: Any,
    training: DelstTrainingArguments,
    vocabulary: Sequence[str],
    features: "FeatureTable | None",
    sides: tuple[Sequence[float], Sequence[int]],
    validation_slides: Sequence[str],
) -> tuple[DelstModel, DelstProcessor, dict[str, Any]]:
    """Return the model and the processor, and the record of the checkpoint that they continue ({} for a new model).

    Args:
        data: Arguments of the data.
        model: `ModelArguments`.
        training: How to train.
        vocabulary: The genes to read.
        features: Features in place of a backbone, if any.
        sides: Sides of the patches that are trained on, in micrometres and in pixels.
        validation_slides: Slides that the checkpoint must not have been trained on.
    """
    if model.init_from is None:
        return *build(model, vocabulary, features), {}
    from .continuing import check_held_out, continue_checkpoint

    network, processor, record = continue_checkpoint(model, vocabulary, *sides)
    check_held_out(data, record, validation_slides)
    check_trained_backbone_is_saved(network.config, model.init_from, training.lora or training.freeze_vision)
    return network, processor, record


def _collator(
    processor: DelstProcessor,
    study: Study,
    features: "FeatureTable | None",
    niches: "Niches | None",
    spots: Mapping[str, Any],
) -> DelstCollator:
    if features is not None:
        return FeatureCollator.of(processor, study, features=features)
    if niches is not None:
        return niches.collator(processor, spots)
    return DelstCollator.of(processor, study, defer_pixels=True)  # patches are normalised on the device of the model


def _spots(
    study: Study,
    data: DataArguments,
    training: DelstTrainingArguments,
    train_slides: Sequence[str],
    validation_slides: Sequence[str],
) -> dict[str, Any]:
    """Return the spots to train on, with the columns that the run needs, and those to evaluate on, by the trainer's names."""
    spots = study.with_level(training_spots(study, train_slides), data.level_key, training.seed)
    spots = study.with_positions_um(spots) if training.min_spot_distance_um else spots
    return {"train_dataset": spots, "eval_dataset": validation_spots(study, validation_slides)}


def _run_facts(
    data: DataArguments,
    model: Any,
    training: DelstTrainingArguments,
    facts: Mapping[str, Any],
    slides: Mapping[str, Sequence[str]],
    before: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the facts of a run for its record; the slides include those that a continued checkpoint was trained on."""
    return {
        "dataset": os.path.basename(os.path.normpath(data.dataset)),
        "data": facts,
        "train_slides": list(dict.fromkeys([*slides["train"], *before.get("train_slides", [])])),
        "validation_slides": slides["validation"],
        "unpaired_slides": list(dict.fromkeys([*slides["unpaired"], *before.get("unpaired_slides", [])])),
        "vision": before.get("vision") if model.vision is None else model.vision,
        "level_key": data.level_key,
        "hyperparameters": hyperparameters(data, model, training),
    }


def trainer_class(data: DataArguments) -> Callable[..., DelstTrainer]:
    """Return the class of the trainer: `DelstTrainer`, or with ``streaming`` the one that reads spots as they are needed."""
    if not data.streaming:
        return DelstTrainer
    from .streaming import StreamTrainer

    return partial(StreamTrainer, shuffle_buffer=data.shuffle_buffer)


def check_backbone_can_be_left_out(model: Any, training: DelstTrainingArguments) -> None:
    """Refuse ``save_backbone=False`` where loading could not restore the backbone."""
    if not model.save_backbone and (model.vision is None or not (training.freeze_vision or training.lora)):
        raise ValueError(
            "save_backbone=False leaves out the backbone, so it must be one that can be loaded again and is not trained: give "
            "--vision, and --freeze_vision true or --lora true."
        )


def check_trained_backbone_is_saved(config: Any, name: str, backbone_stays: bool) -> None:
    """Refuse to train the backbone of a checkpoint that was saved without it: it could not be saved at the end."""
    if not (config.save_backbone or backbone_stays):
        raise ValueError(
            f"{name} was saved without its backbone, and what is trained from it is saved so too, which a trained backbone "
            "does not allow. Give --lora true or --freeze_vision true."
        )


def facts_of_data(
    data: DataArguments,
    study: Study,
    train_slides: Sequence[str],
    spots: Dataset,
    features: "FeatureTable | None" = None,
) -> dict[str, Any]:
    """Return `data_facts` of the training slides with the colours of their patches, which reveal a foreign stain later."""
    from ..data.appearance import picture_facts

    path = data.dataset if study.folder is None else study.folder.path
    facts = feature_facts(data_facts(path, study, train_slides), features)
    return facts if features is not None else {**facts, **picture_facts(spots)}


def choose_slides(study: Study, data: DataArguments) -> tuple[list[str], list[str]]:
    """Choose the slides to train on and those to validate on: the split of the dataset, unless slides are named.

    Args:
        study: The dataset.
        data: Names of slides by role.

    Returns:
        Training slides and validation slides.

    Raises:
        ValueError: If a slide is unknown or has two roles, none is left for training, or a held-out section is of a
            training patient.
    """
    named = {role: split_names(getattr(data, f"{role}_slides")) for role in ("train", "validation", "test")}
    study.check_images(slide for slides in named.values() for slide in slides)
    taken = {slide for slides in named.values() for slide in slides}
    own = study.split_of_slide
    chosen = {
        role: named[role] or [slide for slide in study.slide_ids if own[slide] == role and slide not in taken]
        for role in ("validation", "test")
    }
    held_out = {*chosen["validation"], *chosen["test"]}
    # Of a slide whose spots are split, those of the split "train" are trained on.
    trainable = [slide for slide in study.slide_ids if own[slide] in ("train", "spot")]
    train = named["train"] or [slide for slide in trainable if slide not in held_out]
    if not train or set(train) & held_out or set(chosen["validation"]) & set(chosen["test"]):
        raise ValueError(
            f"Training slides {train}, validation {chosen['validation']} and test {chosen['test']} must not overlap, and at "
            "least one slide must be left for training."
        )
    departing = [slide for slide in train if own[slide] in ("validation", "test")]
    if departing:
        logger.warning("Training on %s, which the dataset holds out: its split is overridden.", ", ".join(departing))
    _check_patients(study, train, [*chosen["validation"], *chosen["test"]], split_names(data.same_patient_slides))
    return train, chosen["validation"]


def _check_patients(study: Study, train: Sequence[str], held_out: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse held-out sections of a patient who is trained on, unless they are in `allowed`."""
    trained = study.patients(train)
    torn = [slide for slide in held_out if study.patients([slide]) & trained and slide not in allowed]
    if torn:
        raise ValueError(
            f"The held-out slides {torn} are of patients who are trained on ({sorted(study.patients(torn))}). Sections of one "
            "patient are nearly copies, so scores there would be too good. Hold out other patients, leave these slides out by "
            f"naming --train_slides, or insist with --same_patient_slides {','.join(torn)}."
        )


def patient_of_slide(study: Study) -> list[int]:
    """Return the number of the patient of each slide of a study, in the order of its slides."""
    patients = list(study.slides["patient_id"])
    return [patients.index(patient) for patient in patients]


def check_there_are_negatives(study: Study, train_slides: Sequence[str], mask_negatives: str) -> None:
    """Refuse ``mask_negatives`` where it would leave no negatives at all."""
    groups = {"off": 2, "slide": len(train_slides), "patient": len(study.patients(train_slides))}[mask_negatives]
    if groups < 2:
        raise ValueError(
            f"mask_negatives={mask_negatives!r} leaves no negatives: all training spots are of one {mask_negatives}. Train "
            "on more of them, or leave the option out."
        )


def training_spots(study: Study, slides: Sequence[str]) -> Dataset:
    """Return the spots of these slides; of a slide whose spots are split, those of the split "train"."""
    return study.subset(slides, spot_split="train")


def validation_spots(study: Study, slides: Sequence[str]) -> Dataset | None:
    """Return the spots to evaluate on: those of these slides, or without slides those of the split "validation"."""
    split_by_spot = [slide for slide, split in zip(study.slide_ids, study.slides["split"]) if split == "spot"]
    spots = study.resident(slides or split_by_spot, spot_split="validation")
    return spots if len(spots) else None


def choose_vocabulary(
    study: Study, data: DataArguments, moments: GeneMoments, train_slides: Sequence[str]
) -> list[str]:
    """Read the genes of ``--vocabulary``, or choose them on the training spots.

    Args:
        study: The dataset.
        data: ``vocabulary``, or ``num_genes`` and ``min_spots``.
        moments: Gene moments of the training spots.
        train_slides: Slides of the run; a vocabulary that was chosen on others too is refused.
    """
    if data.vocabulary is None:
        include: list[str] = []
        if data.include_genes:
            from ..data.vocabulary_file import gene_names_of

            include = gene_names_of(data.include_genes)
        return choose_genes(
            study, train_slides, ranking=data.ranking, num_genes=data.num_genes, min_spots=data.min_spots,
            include=include, moments=moments,
        )  # fmt: skip
    if data.include_genes:
        raise ValueError(
            "--vocabulary names all genes to read, --include_genes adds to those chosen here. Give one of the two."
        )
    from ..data.vocabulary_file import read_vocabulary

    return read_vocabulary(data.vocabulary, study.gene_names, list(study.genes["gene_id"]), train_slides)


def build(
    model: Any, vocabulary: Sequence[str], features: "FeatureTable | None" = None
) -> tuple[DelstModel, DelstProcessor]:
    """Build model and processor around a pretrained backbone, a new backbone, or features computed elsewhere.

    Args:
        model: `ModelArguments`.
        vocabulary: Names of the genes that the model reads.
        features: Features that stand in for a backbone.
    """
    if features is not None and model.stain_normalization != "none":
        raise ValueError(
            f"--stain_normalization {model.stain_normalization} changes patches, and --features has none: stains cannot be "
            "changed once the features are computed. Leave one of the two out."
        )
    side, config = model.image_size, model.config_arguments()
    vision_config = config.pop("vision_config")
    config["gene_config"]["num_genes"] = len(vocabulary)
    image_processor: Any = ViTImageProcessorPil(size={"height": side or 224, "width": side or 224})
    if features is not None:
        place = DelstFeaturesConfig(hidden_size=features.width, encoder=features.encoder)
        network = DelstModel(DelstConfig(vision_config=place, **config))
    elif model.vision is not None:
        from ..errors import reading

        with reading(model.vision, "vision backbone", _NO_BACKBONE):
            image_processor = load_image_processor(model.vision, side)
            network = DelstModel.from_vision_gene_pretrained(model.vision, **config)
    else:
        vision_config = yaml.safe_load(vision_config) if vision_config else {"model_type": "vit"}
        if side is not None:
            vision_config.setdefault("image_size", side)
        network = DelstModel(DelstConfig(vision_config=vision_config, **config))
    if side is not None and features is None:
        check_image_size(network.config.vision_config, side)
    extractor = DelstGeneFeatureExtractor(vocabulary=vocabulary)
    return network, DelstProcessor(image_processor, extractor, model.stain_normalization)


def set_missing_values(model: DelstModel, processor: DelstProcessor, study: Study, moments: GeneMoments) -> None:
    """Use the mean over the training spots for genes that a panel does not measure.

    Args:
        model: The model, changed in place.
        processor: Its processor.
        study: The dataset.
        moments: Gene moments of the training spots. A gene of the vocabulary that the dataset lacks keeps its value.
    """
    # The first column of a name given twice counts, as in the choice of the vocabulary.
    column = {name: i for i, name in reversed(list(enumerate(study.gene_names)))}
    vocabulary = processor.feature_extractor.vocabulary
    known = [i for i, name in enumerate(vocabulary) if name in column]
    means = model.gene_model.missing_values.clone()
    means[known] = torch.from_numpy(np.asarray([moments.mean[column[vocabulary[i]]] for i in known])).to(means)
    model.gene_model.set_missing_values(means)


def save_run(trainer: DelstTrainer, scored_on: str = "DATASET") -> Path | None:
    """Save the trained model as ``OUTPUT_DIR/model``, and push it if the arguments say so; all processes call it.

    Args:
        trainer: A trainer of `assemble` after ``train()``.
        scored_on: What comes after the model in the ``delst evaluate`` command that is printed.

    Returns:
        The checkpoint folder; None on processes other than the first.

    Examples:
        >>> from delst_hf import DataArguments, DelstTrainingArguments, ModelArguments
        >>> study = Study.load("runs/toy/data")
        >>> vision = '{"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}'
        >>> model = ModelArguments(vision_config=vision, image_size=32, gene_hidden_size=16, projection_dim=8)
        >>> training = DelstTrainingArguments("runs/mine", max_steps=1, report_to="none", disable_tqdm=True)
        >>> trainer = assemble(study, DataArguments("runs/toy/data", test_slides="toy_D1"), model, training)
        >>> folder = save_run(trainer)
        Checkpoint: runs/mine/model
        Next: delst evaluate runs/mine/model DATASET
        >>> sorted(path.name for path in folder.iterdir() if path.suffix == ".json")
        ['checksums.json', 'config.json', 'processor_config.json', 'training.json']
    """
    trained, args = trainer.trained_model(), trainer.args
    if trained is None or not trainer.is_world_process_zero():
        return None
    if args.lora and trained.config.save_backbone:
        from .lora import merge_lora

        merge_lora(trained)
    folder = Path(args.output_dir or ".") / "model"
    processor: Any = trainer.processor
    save_checkpoint_folder(folder, trained, processor, trainer.record())
    print(f"Checkpoint: {folder}\nNext: delst evaluate {shlex.quote(str(folder))} {scored_on}")
    if args.push_to_hub:
        print(f"Pushed: {trainer.push_to_hub(folder=folder)}")
    return folder


def main(argv: list[str] | None = None, description: str = "") -> None:
    """Run the command line of training/pretrain.py and ``python -m delst_hf.pretraining``.

    Args:
        argv: Command line without the program's name; that of the process by default.
        description: What ``--help`` begins with.
    """
    from ..atomic.processes import end_like_interrupted
    from ..data.places import check_dataset, check_model
    from .help_groups import PRETRAINING
    from .options import CardArguments, parse_arguments

    end_like_interrupted()
    classes = (DataArguments, ModelArguments, DelstTrainingArguments, CardArguments)
    data, model, *others = parse_arguments(classes, description, argv, PRETRAINING)
    check_dataset(data.dataset)
    for name in filter(None, (model.vision, model.init_from)):
        check_model(name)
    pretrain(data, model, *others)
