"""Spots without an image that train the gene encoder: their slides, options they exclude, and their batch in each step.

Nothing here depends on a clock or on the state of a generator: the batch of a step and the halves of its spots follow from the
seed and the number of the step. A resumed run therefore continues exactly, processes share one joined batch, and the paired
spots are drawn and turned as they are without unpaired ones.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..data.collator import DelstCollator
from ..data.study import SpotRows, Study
from ..model.distributed import process_rank, world_size
from ..model.losses import unpaired_objective
from .arguments import DataArguments, DelstTrainingArguments, split_names

logger = logging.getLogger(__name__)

ALL = "all"


def check_unpaired(data: DataArguments, training: DelstTrainingArguments) -> None:
    """Refuse options that cannot be combined with unpaired spots, before any work.

    Raises:
        ValueError: If any is given; the message names it.
    """
    asked = {
        "streaming": data.streaming,
        "contrastive_micro_batch_size": training.contrastive_micro_batch_size is not None,
        "views='nested'": training.views == "nested",
        "levels='niche'": data.levels != "spot",
        "fsdp": bool(training.fsdp),
    }
    if given := [name for name, value in asked.items() if value]:
        raise ValueError(
            f"unpaired_slides={data.unpaired_slides!r} cannot be combined with {' and '.join(given)}: spots without an image "
            "are trained in full batches beside the paired ones, ordered by level. Leave one of the two out."
        )


def choose_unpaired(
    study: Study,
    data: DataArguments,
    training: DelstTrainingArguments,
    train_slides: Sequence[str],
    validation_slides: Sequence[str],
) -> list[str]:
    """Choose the slides without an image that train the gene encoder.

    Args:
        study: The dataset.
        training: Training arguments, for `check_unpaired`.
        data: ``unpaired_slides``: names, or "all" for all that are not of a held-out patient.
        train_slides: Slides whose pairs are trained on.
        validation_slides: Slides to validate on.

    Raises:
        ValueError: If a slide is unknown, has an image, or is of a patient with held-out slides, unless these are named in
            ``same_patient_slides``; or if none is left.
    """
    check_unpaired(data, training)
    known, own = study.unpaired_slides, study.split_of_slide
    named = [] if data.unpaired_slides.strip() == ALL else split_names(data.unpaired_slides)
    study.check_slides(named)
    if paired := [slide for slide in named if slide not in known]:
        raise ValueError(
            f"The slides {paired} of --unpaired_slides have an image: train on their pairs with --train_slides. Slides "
            f"without an image here: {known or 'none'}; delst prepare makes them with --without-image."
        )
    test = split_names(data.test_slides) or [slide for slide in study.slide_ids if own[slide] == "test"]
    allowed = split_names(data.same_patient_slides)
    held_out = [slide for slide in [*validation_slides, *test] if slide not in [*train_slides, *allowed]]
    patients = study.patients(held_out)
    near = [slide for slide in named or known if study.patients([slide]) & patients]
    if named and near:
        raise ValueError(
            f"The unpaired slides {near} are of patients with held-out slides ({', '.join(held_out)}), so scores there "
            "would be too good. Leave them out, or insist by naming the held-out slides in --same_patient_slides."
        )
    chosen = [slide for slide in known if slide in (named or known) and slide not in near]
    if not chosen:
        raise ValueError(
            f"No slide is left for --unpaired_slides {data.unpaired_slides}. Slides without an image: {known or 'none'}; of "
            f"held-out patients: {near or 'none'}. Prepare some with delst prepare --without-image, or leave the option out."
        )
    if near:
        logger.warning("Unpaired slides of held-out patients are left out: %s.", ", ".join(near))
    return chosen


class UnpairedSpots:
    """Spots without an image, and the batch of each step.

    Args:
        spots: Spots with the column ``level``.
        collator: Collator of the study.
        training: Arguments of the run: size of a batch, seed.

    Raises:
        ValueError: If they are fewer than a joined batch.

    Examples:
        >>> from delst_hf import DelstProcessor, DelstTrainingArguments, Study
        >>> study = Study.load("runs/toy/data")
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
        >>> training = DelstTrainingArguments("runs/mine", per_device_train_batch_size=4)
        >>> unpaired = UnpairedSpots(study.with_level(study.subset(["toy_A1"])), collator, training)
        >>> batch = unpaired.batch(position=0)
        >>> batch["gene_values"].shape, bool((batch["half_masks"][0] & batch["half_masks"][1]).any())
        (torch.Size([4, 20]), False)
    """

    def __init__(self, spots: Dataset, collator: DelstCollator, training: DelstTrainingArguments):
        self.rows = SpotRows(spots.remove_columns("image"))
        self.collator = collator
        self.seed = training.seed if training.data_seed is None else training.data_seed
        self.size, self.accumulated = training.train_batch_size, training.gradient_accumulation_steps
        self.step, self.micro = -1, 0
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        joined = self.size * world_size()
        if len(spots) < joined:
            raise ValueError(
                f"--unpaired_slides give {len(spots)} spots, fewer than a joined batch of {joined}. Name more slides, or lower "
                "--per_device_train_batch_size."
            )

    def next_batch(self, global_step: int) -> dict[str, Tensor]:
        """Return this process's share of the batch that comes next in this optimiser step."""
        self.step, self.micro = global_step, self.micro + 1 if global_step == self.step else 0
        return self.last_batch()

    def last_batch(self) -> dict[str, Tensor]:
        """Return what `next_batch` returned last."""
        return self.batch(self.step * self.accumulated + self.micro)

    def batch(self, position: int) -> dict[str, Tensor]:
        """Return this process's share of the joined batch at a position of the run: a step, or a part of an accumulated one.

        Returns:
            ``gene_values``, ``gene_mask``, ``level``, ``slide_ids``, and ``half_masks`` (2, batch, genes) bool: each measured
            gene of a spot is in one of its two halves.
        """
        joined, start = self.size * world_size(), self.size * process_rank()
        epoch, place = divmod(position, len(self.rows) // joined)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        own = self._order[1][place * joined + start : place * joined + start + self.size]
        found = self.collator.all_but_pixels(self.rows.__getitems__(own.tolist()))
        mask = found["gene_mask"]
        # A generator per row, so that it does not matter which process has which row.
        draws = [
            np.random.default_rng([self.seed, position, start + row]).random(mask.shape[1]) for row in range(len(mask))
        ]
        first = torch.from_numpy(np.stack(draws) < 0.5)
        names = ("gene_values", "gene_mask", "level", "slide_ids")
        return {**{name: found[name] for name in names}, "half_masks": torch.stack([mask & first, mask & ~first])}


def unpaired_terms(trainer: Any) -> dict[str, Tensor]:
    """Embed the next unpaired batch by the gene encoder alone, and return the terms of `unpaired_objective`.

    The gene encoder is called beside the forward pass of the pairs and shares its backward pass, so that DDP reduces the
    gradient of each weight once.

    Args:
        trainer: A `DelstTrainer` with `UnpairedSpots`.
    """
    return _terms(trainer, trainer.unpaired.next_batch(trainer.state.global_step), world_size() > 1)


def last_unpaired_loss(trainer: Any, few: int) -> Tensor:
    """Return the loss of the first `few` spots of this process's last unpaired batch with the weights as they are now, 0-d."""
    batch = {
        name: value[:, :few] if name == "half_masks" else value[:few]
        for name, value in trainer.unpaired.last_batch().items()
    }
    return _terms(trainer, batch, across_ranks=False)["loss"]


def _terms(trainer: Any, batch: dict[str, Tensor], across_ranks: bool) -> dict[str, Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = {name: trainer._prepare_input(value) for name, value in batch.items()}
    ordered = model.config.intra_entailment_weight > 0
    masks = [*batch["half_masks"], *([batch["gene_mask"]] if ordered else [])]
    with trainer.accelerator.autocast():
        values = batch["gene_values"].repeat(len(masks), 1)
        embeds = model.get_gene_features(values, torch.cat(masks), return_dict=True).pooler_output.chunk(len(masks))
    with torch.autocast(device_type=values.device.type, enabled=False):
        return unpaired_objective(
            model.config,
            (embeds[0], embeds[1]),
            # The temperature is that of the pairs: halves of one spot are easier to find, and would raise it.
            model.logit_scale.detach().float().exp(),
            model.curvature,
            wholes=embeds[2] if ordered else None,
            level=batch["level"],
            slide_ids=batch["slide_ids"],
            negative_groups=trainer.negative_groups(batch["slide_ids"]),
            across_ranks=across_ranks,
        )
