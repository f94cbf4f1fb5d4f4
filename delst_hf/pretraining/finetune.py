"""Fine-tune a head, and as much of the backbone as you like, on the expression or the labels of spots.

    accelerate launch -q -m delst_hf.pretraining.finetune --model DIR --dataset DIR --target labels --lora true --output_dir RUN
    torchrun --nproc_per_node 2 -m delst_hf.pretraining.finetune config.yaml --learning_rate 1e-4

Options are those of transformers' TrainingArguments and the ones below; options on the command line override a YAML file.
Validation is on patients who are not trained on: the slides that you name, else the split of the dataset, else the last
patient by name. A killed run resumes from its last complete checkpoint with --resume_from_checkpoint true. The result is
OUTPUT_DIR/model, with the score on the validation slides in its card: predict with it (delst predict).
"""

import logging
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import set_seed

from ..atomic.files import write_text
from ..atomic.processes import end_like_interrupted
from ..data.appearance import picture_facts
from ..data.collator import DelstCollator, random_orientation
from ..data.study import SpotRows, Study
from ..errors import reading, run_script
from ..evaluation.embed import check_features
from ..hub.card import model_card
from ..hub.checkpoint_folder import save_checkpoint_folder
from ..hub.checksums import check_checksums
from ..model.configuration_delst import DelstConfig
from ..model.distributed import mean_over_ranks, world_size
from ..model.modeling_delst_heads import DelstForGeneExpressionPrediction, DelstForSpotClassification
from ..model.processing_delst import DelstProcessor
from ..prediction.fit import TARGETS, measured_values
from ..prediction.held_out import PearsonSums, class_scores, strips
from ..record import (
    check_patch_size,
    data_facts,
    find_training_record,
    hardware,
    hyperparameters,
    public_record,
    training_record,
)
from .arguments import split_names
from .checked_trainer import CheckedTrainer
from .checkpoints import interruption_explained, own_output, resume_point
from .head_arguments import GROUPS, HeadArguments, HeadTrainingArguments
from .lora import add_lora, merge_lora
from .run import check_trained_backbone_is_saved, choose_slides, training_spots, validation_spots

logger = logging.getLogger(__name__)


class HeadCollator:
    """Rows of a dataset -> patches and their targets.

    Args:
        collator: Collator of the model.
        classes: Names of the classes, in the order of the logits; None for expression.
    """

    def __init__(self, collator: DelstCollator, classes: Sequence[str] | None = None):
        self.collator, self.classes = collator, classes

    def __call__(self, rows: Any) -> dict[str, Tensor]:
        """Return ``pixel_values``, ``labels`` and, for expression, ``gene_mask``."""
        batch = self.collator(rows)
        if self.classes is None:
            return {
                "pixel_values": batch["pixel_values"],
                "labels": batch["gene_values"],
                "gene_mask": batch["gene_mask"],
            }
        names = rows["label"].to_pylist() if hasattr(rows, "column_names") else [row["label"] for row in rows]
        labels = torch.tensor([self.classes.index(name) for name in names])
        return {"pixel_values": batch["pixel_values"], "labels": labels}


class BalancedLoss:
    """Cross-entropy with a weight per class, as transformers' Trainer calls it.

    Args:
        weight: Weight of each class (classes,).
    """

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the weighted mean over the spots."""
        return F.cross_entropy(outputs.logits, labels, self.weight.to(outputs.logits))


class HeadTrainer(CheckedTrainer):
    """Trainer of a head, on patches that are turned at random.

    Args:
        augment: Turn training patches at random.
        **kwargs: As in `CheckedTrainer`.
    """

    def __init__(self, *args: Any, augment: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.augment = augment

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do as in the base class; in training, on patches that are turned at random."""
        if model.training and self.augment:
            inputs = {**inputs, "pixel_values": random_orientation(inputs["pixel_values"])}
        given = dict(inputs)  # the base class removes the labels
        found: Any = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            if world_size() > 1:  # the mean over the processes is then the loss of the joined batch
                weight = self._weight(given)
                found = found * (weight / mean_over_ranks(weight).clamp_min(torch.finfo(torch.float32).tiny))
            self.watch_loss(found[0] if isinstance(found, tuple) else found, given)
        return found

    def _weight(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the weight of the mean that is the loss of a batch: measured values, or spots by the weight of their class."""
        if "gene_mask" in batch:
            return batch["gene_mask"].sum().float()
        labels = batch["labels"]
        if isinstance(self.compute_loss_func, BalancedLoss):
            return self.compute_loss_func.weight.to(labels.device)[labels].sum()
        return torch.tensor(float(len(labels)), device=labels.device)


def finetune(head: HeadArguments, training: HeadTrainingArguments) -> Path | None:
    """Run a fine-tuning from its dataset to its checkpoint folder; all processes call it.

    Args:
        head: What to fine-tune, and on which tissue.
        training: How to train; with ``resume_from_checkpoint`` a killed run resumes.

    Returns:
        ``OUTPUT_DIR/model``; None on processes other than the first.

    Raises:
        ValueError: If arguments contradict each other or the data, the output folder holds a run that is not resumed, the
            checkpoint does not match its checksums, or a loss, gradient or weight is not finite.
        OSError: Before any work, if that folder cannot be written, or another run is writing there.
    """
    output = training.output_dir or "."
    with interruption_explained(output), own_output(output):
        checkpoint = resume_point(output, training.resume_from_checkpoint)
        with reading(
            head.model, "checkpoint", "Give the folder model/ of a run, or the id of a checkpoint on the Hub."
        ):
            check_checksums(head.model)
            DelstConfig.from_pretrained(head.model)
        trainer = assemble_head(Study.load(head.dataset), head, training)
        trainer.train(resume_from_checkpoint=checkpoint)
        return _save_head(trainer, head, training)


def _save_head(trainer: "HeadTrainer", head: HeadArguments, training: HeadTrainingArguments) -> Path | None:
    """Score the trained model, and save it as ``OUTPUT_DIR/model``; all processes call it."""
    scores = held_out_scores(trainer, head)
    if not trainer.is_world_process_zero():
        return None
    model = trainer.accelerator.unwrap_model(trainer.model)
    if head.lora and model.config.save_backbone:
        merge_lora(model.delst)
    facts = {**trainer.run_facts, "log_history": trainer.state.log_history}
    record = {**find_training_record(head.model), **training_record(**public_record(facts), hardware=hardware())}
    record["head"] = {**scores, "target": head.target, "date": date.today().isoformat()}
    folder = Path(training.output_dir or ".") / "model"
    save_checkpoint_folder(folder, model, trainer.processor, record)
    write_text(folder / "README.md", model_card(folder, Path(training.output_dir or "head").name))
    print(f"Checkpoint: {folder}")
    mean = (
        f"macro-F1 {scores['macro_f1']:.3f}" if "macro_f1" in scores else f"mean Pearson {scores['pearson_mean']:.3f}"
    )
    print(f"Held out:   {', '.join(scores['folds'])}: {mean}")
    return folder


def assemble_head(study: Study, head: HeadArguments, training: HeadTrainingArguments) -> HeadTrainer:
    """Put a fine-tuning together: slides, model, collator, trainer.

    Raises:
        ValueError: If arguments contradict each other or the data.
    """
    if head.target not in TARGETS:
        raise ValueError(f"target is {head.target!r}. Allowed: {', '.join(TARGETS)} (--target).")
    if head.lora and head.freeze_vision:
        raise ValueError(
            "lora and freeze_vision exclude each other: lora trains adapters in the backbone, freeze_vision trains nothing in "
            "it. Choose one of the two."
        )
    set_seed(training.seed)
    train_slides, validation_slides = patient_split(study, head)
    spots = training_spots(study, train_slides), validation_spots(study, validation_slides)
    if spots[1] is None:
        raise ValueError(
            "no slide is left to validate on. Name some with --validation_slides, of a patient who is not trained on."
        )
    check_patch_size(find_training_record(head.model), study.patch_um([*train_slides, *validation_slides]), head.model)
    processor = DelstProcessor.from_pretrained(head.model)
    collator = DelstCollator.of(processor, study)
    if head.target == "labels":
        spots, classes, loss = _labelled(spots, head)
        names = dict(enumerate(classes))
        model: Any = DelstForSpotClassification.from_pretrained(
            head.model, id2label=names, label2id={name: i for i, name in names.items()}, head_inputs="image",
            head_standardise=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
        made = HeadCollator(collator, classes)
    else:
        model, loss, made = DelstForGeneExpressionPrediction.from_pretrained(head.model), None, HeadCollator(collator)
    check_features(model.config.vision_config, None)
    check_trained_backbone_is_saved(model.config, head.model, head.lora or head.freeze_vision)
    _freeze(model, head)
    facts = {
        "train_slides": train_slides,
        "validation_slides": validation_slides,
        "data": {**data_facts(head.dataset, study, train_slides), **picture_facts(spots[0])},
        "hyperparameters": hyperparameters(head, training),
        "seed": training.seed,
    }
    return HeadTrainer(
        model=model,
        args=training,
        data_collator=made,
        processor=processor,
        train_dataset=SpotRows(spots[0]),
        eval_dataset=SpotRows(spots[1]),
        compute_loss_func=loss,
        augment=head.augment,
        run_facts=facts,
    )


def patient_split(study: Study, head: HeadArguments) -> tuple[list[str], list[str]]:
    """Choose slides to train on and slides to validate on, of other patients.

    Raises:
        ValueError: As `run.choose_slides`, or if there is one patient only and no slide is named.
    """
    train, validation = choose_slides(study, head)  # type: ignore[arg-type]
    if validation or validation_spots(study, validation) is not None:
        return train, validation
    patients = dict(zip(study.slide_ids, study.slides["patient_id"], strict=True))
    last = max(patients[slide] for slide in train)
    rest = [slide for slide in train if patients[slide] != last]
    if not rest:
        raise ValueError(
            f"all slides to train on ({', '.join(train)}) are of the patient {last}, so none is left to validate on. "
            "Add slides of "
            f"another patient, or insist on one of this patient: --validation_slides {train[-1]} --same_patient_slides "
            f"{train[-1]}."
        )
    held = [slide for slide in train if patients[slide] == last]
    logger.warning("the patient %s is held out for validation: %s", last, ", ".join(held))
    return rest, held


def _labelled(spots: tuple[Dataset, Dataset | None], head: HeadArguments) -> tuple[Any, list[str], Any]:
    """Return the spots with a label, the classes of the training spots, and the loss that weights them."""
    ignored = {*split_names(head.ignore_labels), ""}
    train = _with_label(spots[0], lambda name: name is not None and name not in ignored)
    classes = sorted(set(train["label"][:]))
    if len(classes) < 2:
        raise ValueError(
            f"the training slides have the labels {classes}. A classifier needs two classes or more: train on annotated slides "
            "(--train_slides), or choose --target expression."
        )
    validation = _with_label(spots[1], lambda name: name in classes)
    if not len(validation):
        raise ValueError(
            f"no spot of the validation slides has one of the labels {classes}. Validate on annotated slides "
            "(--validation_slides)."
        )
    loss = None
    if head.balanced:
        names = np.asarray(train["label"][:])
        share = np.array([(names == name).mean() for name in classes])
        loss = BalancedLoss(torch.from_numpy(1 / (len(classes) * share)).float())

    return (train, validation), classes, loss


def _with_label(spots: Dataset | None, wanted: Any) -> Any:
    assert spots is not None
    return spots.select(np.flatnonzero([wanted(name) for name in spots["label"][:]]))


def _freeze(model: Any, head: HeadArguments) -> None:
    """Train the head, and of the towers the backbone, its LoRA, or nothing; a head does not read the gene tower."""
    model.delst.requires_grad_(False)
    if head.lora:
        add_lora(model.delst, head.lora_rank)
    elif not head.freeze_vision:
        model.delst.vision_model.requires_grad_(True)


def held_out_scores(trainer: HeadTrainer, head: HeadArguments) -> dict[str, Any]:
    """Score the validation slides gene by gene or class by class; all processes call it."""
    rows: Any = trainer.eval_dataset
    spots = rows.spots.with_format(None)  # type: ignore[union-attr]
    found = trainer.predict(trainer.eval_dataset)  # type: ignore[arg-type]
    logits: Any = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    slides = np.asarray(spots["slide_id"][:])
    way = (
        "LoRA on the backbone"
        if head.lora
        else "training the head alone"
        if head.freeze_vision
        else "training the backbone too"
    )
    about = {
        "method": f"gradient descent, {way}",
        "slides": trainer.run_facts["train_slides"],
        "folds": sorted(set(slides)),
    }
    if head.target == "labels":
        model: Any = trainer.model
        classes = list(model.config.id2label.values())
        truth, predicted = np.asarray(spots["label"][:]), np.asarray(classes)[logits.argmax(axis=1)]
        table = class_scores(truth, predicted, classes)
        seen = table["spots"] > 0  # a class that no validation slide has cannot be scored
        return {
            **about,
            "macro_f1": round(float(table["f1"][seen].mean()), 4),
            "scores": table.round(4).to_dict("list"),
        }
    collator: Any = trainer.data_collator
    targets, mask = map(np.concatenate, zip(*measured_values(spots, collator.collator), strict=True))
    units = strips(slides, np.asarray(spots["y"][:], dtype=float))
    sums = PearsonSums([slides[units == unit][0] for unit in range(units.max() + 1)], logits.shape[1])
    sums.add(units, logits.astype(float), targets.astype(float), mask)
    table = sums.scores()
    known = {name: [None if np.isnan(value) else round(value, 4) for value in table[name]] for name in table}
    names = list(trainer.processor.feature_extractor.vocabulary)
    return {**about, "pearson_mean": round(float(np.nanmean(table["pearson"])), 4), "scores": {"gene": names, **known}}


def main(argv: list[str] | None = None, description: str = "") -> None:
    """Run the command line of training/finetune.py and ``python -m delst_hf.pretraining.finetune``."""
    from ..data.places import check_dataset, check_model
    from .options import parse_arguments

    end_like_interrupted()
    classes = HeadArguments, HeadTrainingArguments
    head, training = parse_arguments(classes, description or __doc__ or "", argv, GROUPS)
    check_model(head.model)
    check_dataset(head.dataset)
    finetune(head, training)


if __name__ == "__main__":
    sys.exit(run_script(main, "finetune"))
