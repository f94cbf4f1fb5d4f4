"""DelstTrainer: transformers' Trainer with the dual entailment losses, their diagnostics, and scalars that stay in range."""

import functools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, TrainerCallback
from transformers.trainer_utils import TrainOutput

from ..data.collator import DelstCollator
from ..data.sampler import SlideSampler
from ..data.study import SpotRows
from ..evaluation.cones import cone_statistics
from ..evaluation.retrieval import bidirectional_retrieval
from ..model.distributed import world_size
from ..model.modeling_delst import DelstModel, DelstOutput
from ..model.processing_delst import DelstProcessor
from .augmentation import random_orientation
from .checkpoints import mark_complete, prepare_for_checkpoint, whole_checkpoint
from .gradient_cache import cached_loss
from .hub_trainer import HubTrainer
from .sharding import SCALARS, prepare_for_sharding, whole_model
from .training_arguments import DelstTrainingArguments

LOSS_TERMS = ("contrastive_loss", "cross_entailment_loss", "intra_entailment_loss")


class ClampScalars(TrainerCallback):
    """After each optimiser step, brings curvature, logit scale and scales back into their ranges."""

    def on_optimizer_step(self, args, state, control, model: DelstModel | None = None, **kwargs):
        if model is not None:
            model.clamp_scalars()


class DelstTrainer(HubTrainer):
    """Trainer for `DelstModel`.

    It logs every loss term, the curvature and whether it sits at a clamp, the logit scale, and for the Lorentz geometry radius,
    half-aperture and the fraction of pairs inside the cone beside its mismatched control. On an evaluation set it adds
    retrieval over the whole set. Negatives come from all processes. Checkpoints carry a marker once they are whole; resume
    with ``train(resume_from_checkpoint=True)``.
    """

    args: DelstTrainingArguments
    model: DelstModel

    def __init__(
        self,
        *args: Any,
        processing_class: DelstProcessor | None = None,
        run_facts: dict[str, Any] | None = None,
        card_facts: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        # The base class would look for a tokenizer in a processor; this one has none, and is saved in `_save`.
        self.processor, self.run_facts, self.card_facts = processing_class, run_facts or {}, card_facts or {}
        super().__init__(*args, **kwargs)
        # `forward` takes keyword arguments for the backbone, not `num_items_in_batch`. Left True, the base class would not
        # divide the loss by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False
        self._check_gradient_caching()
        if self.is_fsdp_enabled:
            prepare_for_sharding(self.model, self.accelerator.state.fsdp_plugin)
        if self.compute_metrics is None:
            self.compute_metrics = self.retrieval_metrics
        self._sums: dict[str, dict[str, Any]] = {"train": defaultdict(float), "eval": defaultdict(float)}
        self._last_embeds: dict[str, tuple[Tensor, Tensor]] = {}
        if self.args.freeze_vision:
            self.model.vision_model.requires_grad_(False)
        self.add_callback(ClampScalars)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in the base class, but no spot is dropped: `dataloader_drop_last` is meant for training batches."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader:
        if isinstance(dataset, Dataset) and isinstance(self.data_collator, DelstCollator):
            dataset = SpotRows(dataset)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As in the base class, and patches that the loader left as uint8 are normalised on the device."""
        inputs = super()._prepare_inputs(inputs)
        return self.data_collator.finish(inputs) if isinstance(self.data_collator, DelstCollator) else inputs

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if not self.args.slide_aware:
            return super()._get_train_sampler(train_dataset)
        spots = self.train_dataset if train_dataset is None else train_dataset
        return slide_sampler(spots.spots if isinstance(spots, SpotRows) else spots, self.args)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over five groups: backbone and heads, each with and without decay, and the scalars."""
        if self.optimizer is None:
            model = self.model if model is None else model
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(self.parameter_groups(model), **kwargs)
        return self.optimizer

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters that are trained, grouped by role, with their learning rate and weight decay."""
        decayed = set(self.get_decay_parameter_names(model))
        rates = {
            "vision": self.args.learning_rate
            if self.args.vision_learning_rate is None
            else self.args.vision_learning_rate,
            "head": self.args.learning_rate,
            "scalar": self.args.scalar_learning_rate,
        }
        groups: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            name = name.removeprefix("module.")
            role = "scalar" if name in SCALARS else "vision" if name.startswith("vision_model.") else "head"
            decay = self.args.weight_decay if name in decayed and role != "scalar" else 0.0
            groups[role, decay].append(parameter)
        return [
            {"params": parameters, "lr": rates[role], "weight_decay": decay, "role": role}
            for (role, decay), parameters in groups.items()
        ]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, DelstOutput]:
        """Losses over the joined batch of all processes; their terms are kept for the next log."""
        inputs = {key: value for key, value in inputs.items() if key not in ("labels", "return_loss")}
        if (
            model.training and self.args.augment and inputs["pixel_values"].dim() == 4
        ):  # cached features have no upright
            inputs["pixel_values"] = random_orientation(inputs["pixel_values"])
        outputs: Any
        if model.training and self.args.contrastive_micro_batch_size is not None:
            outputs = self._cached_loss(model, inputs)
        else:
            outputs = model(**inputs, return_loss=True, across_ranks=world_size() > 1)
        mode = "train" if model.training else "eval"
        sums = self._sums[mode]
        for term in LOSS_TERMS:
            value = getattr(outputs, term)
            if value is not None:
                sums[term] = sums[term] + value.detach()
        sums["batches"] = sums["batches"] + 1
        self._last_embeds[mode] = (outputs.image_embeds.detach(), outputs.gene_embeds.detach())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _cached_loss(self, model: nn.Module, inputs: dict[str, Any]) -> DelstOutput:
        return cached_loss(
            model,
            self.accelerator.unwrap_model(self.model),
            inputs,
            self.args.contrastive_micro_batch_size or 1,
            # The base class divides the returned loss by the number of accumulated batches; these it does not see.
            backward=lambda loss: self.accelerator.backward(loss / self.current_gradient_accumulation_steps),
            across_ranks=world_size() > 1,
            no_sync=lambda: self.accelerator.no_sync(model),
        )

    def _check_gradient_caching(self) -> None:
        """Refuse what gradient caching cannot do exactly."""
        if self.args.contrastive_micro_batch_size is None:
            return
        if self.is_deepspeed_enabled:
            raise ValueError(
                "contrastive_micro_batch_size sends several backward passes into one step, which DeepSpeed does not take. "
                "Train with DDP (multi_gpu.yaml) or FSDP, or leave the option out."
            )
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms and not self.model.config.freeze_batch_norm:
            raise ValueError(
                "contrastive_micro_batch_size with freeze_batch_norm=False would normalise each micro-batch by itself and "
                "count its statistics twice. Leave freeze_batch_norm at True."
            )

    def trained_model(self) -> DelstModel | None:
        """The model in one piece on the first process, None on others where FSDP shards it; all processes must call it."""
        if self.is_fsdp_enabled:
            return whole_model(self.model, self.accelerator)
        return self.accelerator.unwrap_model(self.model)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Loss, the embeddings of both modalities as predictions, and the spot index as labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, (outputs.image_embeds, outputs.gene_embeds), inputs.get("labels")

    def retrieval_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Retrieval in both directions over the whole evaluation set."""
        predictions: Any = prediction.predictions
        image_embeds, gene_embeds = predictions
        model = self.accelerator.unwrap_model(self.model)
        return bidirectional_retrieval(
            image_embeds, gene_embeds, model.config.geometry, curvature=model.curvature.item()
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss terms since the last log, the scalars and the state of the hyperboloid."""
        prefix, mode = ("eval_", "eval") if "eval_loss" in logs else ("", "train")
        if "loss" in logs or "eval_loss" in logs:
            logs.update({f"{prefix}{key}": value for key, value in self._collect(mode).items()})
        super().log(logs, start_time)

    @torch.no_grad()
    def _collect(self, mode: str) -> dict[str, float]:
        """Averages of the terms over batches and processes, and the diagnostics of the last batch."""
        sums, self._sums[mode] = self._sums[mode], defaultdict(float)
        batches = sums.pop("batches", 0)
        terms = {key: self.accelerator.gather(value / batches).mean().item() for key, value in sums.items()}
        model = self.accelerator.unwrap_model(self.model)
        if mode == "train":
            terms["logit_scale"] = model.logit_scale.exp().item()
        if model.config.geometry != "lorentz" or mode not in self._last_embeds:
            return terms
        config, curvature = model.config, model.curvature.item()
        if mode == "train":
            low, high = model.curvature_bounds
            terms["curvature"] = curvature
            terms["curvature_at_clamp"] = float(curvature <= low * 1.001 or curvature >= high / 1.001)
        image, gene = self._last_embeds[mode]
        return terms | cone_statistics(
            image, gene, curvature, config.cross_parent, config.min_radius, config.cross_aperture_scale
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The default format renames the weights of some backbones (vit, dinov2, swin, ...), and resuming loads the file
        # without renaming them back: they would be lost with no more than a warning.
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled:  # a class made by FSDP, whose own source would be saved beside the weights
            type(model)._auto_class = None
        model.save_pretrained = functools.partial(
            type(model).save_pretrained, model, save_original_format=False, save_backbone=True
        )
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained
        if self.processor is not None and self.args.should_save:
            self.processor.save_pretrained(output_dir or self.args.output_dir)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in the base class, but only a checkpoint that was written to its end is gone on from.

        Args:
            resume_from_checkpoint: True for the last whole checkpoint of the output folder, or the folder of one.
            *args: Passed to the base class.
            **kwargs: Passed to the base class.

        Raises:
            ValueError: If there is no whole checkpoint, or the one given is not whole.
        """
        if resume_from_checkpoint:
            resume_from_checkpoint = whole_checkpoint(resume_from_checkpoint, self.args.output_dir or ".")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial=trial))
        if self.args.should_save:
            prepare_for_checkpoint(run, self.state.global_step)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(run / f"checkpoint-{self.state.global_step}")


def slide_sampler(spots: Any, args: DelstTrainingArguments) -> SlideSampler:
    """The sampler of slide-aware batches over the joined batch of all processes.

    Args:
        spots: Spots with ``slide_id``, and with ``x_um`` and ``y_um`` where a distance is to be kept.
        args: Training arguments.

    Raises:
        ValueError: If a column is missing, or no batch can be made (see `SlideSampler`).
    """
    wanted = ["slide_id", "x_um", "y_um"] if args.min_spot_distance_um else ["slide_id"]
    missing = [name for name in wanted if name not in spots.column_names]
    if missing:
        raise ValueError(
            f"batch_sampling={args.batch_sampling!r} with min_spot_distance_um={args.min_spot_distance_um:g} needs the columns "
            f"{missing}. Give spots of a Study; Study.with_positions_um adds x_um and y_um."
        )
    columns = spots.with_format("numpy")
    positions = np.stack([columns["x_um"][:], columns["y_um"][:]], axis=1) if args.min_spot_distance_um else None
    return SlideSampler(
        np.asarray(columns["slide_id"][:]),
        args.train_batch_size * args.world_size,
        args.batch_sampling,
        positions,
        args.min_spot_distance_um,
        args.seed if args.data_seed is None else args.data_seed,
    )
