"""DelstTrainer: transformers' Trainer with the dual entailment losses, their diagnostics, and scalars that stay in range."""

import functools
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from .evaluation.hierarchy import cone_statistics
from .evaluation.retrieval import bidirectional_retrieval
from .losses import world_size
from .modeling_delst import DelstModel, DelstOutput
from .processing_delst import DelstProcessor

SCALARS = ("logit_scale", "log_curvature", "log_image_scale", "log_gene_scale")
COMPLETE = "complete"
LOSS_TERMS = ("contrastive_loss", "cross_entailment_loss", "intra_entailment_loss")


@dataclass
class DelstTrainingArguments(TrainingArguments):
    """Training arguments. `learning_rate` is that of the heads (gene encoder and projections).

    Gradient accumulation does not add negatives: each micro-batch is contrasted within itself.
    """

    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision backbone. Defaults to learning_rate."}
    )
    scalar_learning_rate: float = field(
        default=1e-2,
        metadata={"help": "Learning rate of the curvature, the logit scale and the scale of each modality."},
    )
    augment: bool = field(
        default=True,
        metadata={
            "help": "Turn each training patch to one of its eight orientations at random: tissue has no upright."
        },
    )
    freeze_vision: bool = field(default=False, metadata={"help": "Train the heads only; the backbone stays as it is."})
    learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate of the heads: the gene encoder and both projections."}
    )
    weight_decay: float = field(
        default=0.2, metadata={"help": "Weight decay of matrices; norms, biases and the scalars are spared."}
    )
    adam_beta2: float = field(default=0.98, metadata={"help": "Second beta of AdamW."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the collator reads all columns."}
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last, smaller training batch, whose contrastive loss is easier."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "The collator's spot index, passed on to the metrics."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Otherwise the order of the spots hangs on the state of torch's generator, and with it resuming exactly.
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        if self.save_total_limit == 1:
            raise ValueError(
                "save_total_limit=1 would delete the last whole checkpoint before the new one is known to be whole. "
                "Use save_total_limit=2 or more."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would take the columns that the collator reads. Leave it out.")


class ClampScalars(TrainerCallback):
    """After each optimiser step, brings curvature, logit scale and scales back into their ranges."""

    def on_optimizer_step(self, args, state, control, model: DelstModel | None = None, **kwargs):
        if model is not None:
            model.clamp_scalars()


class DelstTrainer(Trainer):
    """Trainer for `DelstModel`.

    It logs every loss term, the curvature and whether it sits at a clamp, the logit scale, and for the Lorentz geometry radius,
    half-aperture and the fraction of pairs inside the cone beside its mismatched control. On an evaluation set it adds
    retrieval over the whole set. Negatives come from all processes. Checkpoints carry a marker once they are whole; resume
    with ``train(resume_from_checkpoint=last_complete_checkpoint(output_dir))``.
    """

    args: DelstTrainingArguments
    model: DelstModel

    def __init__(self, *args: Any, processing_class: DelstProcessor | None = None, **kwargs: Any):
        # The base class would look for a tokenizer in a processor; this one has none, and is saved in `_save`.
        super().__init__(*args, **kwargs)
        self.processor = processing_class
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
        if model.training and self.args.augment:
            inputs["pixel_values"] = random_orientation(inputs["pixel_values"])
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
        image_embeds, gene_embeds = prediction.predictions[:2]
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
        model.save_pretrained = functools.partial(type(model).save_pretrained, model, save_original_format=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained
        if self.processor is not None and self.args.should_save:
            self.processor.save_pretrained(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (checkpoint / COMPLETE).touch()


def random_orientation(pixel_values: Tensor) -> Tensor:
    """Turn each patch (batch, channels, side, side) to one of its eight orientations, drawn from torch's CPU generator."""
    choice = torch.randint(8, (len(pixel_values),))
    turned = pixel_values.clone()
    for k in range(1, 8):
        rows = choice == k
        patches = pixel_values[rows].flip(-1) if k >= 4 else pixel_values[rows]
        turned[rows] = torch.rot90(patches, k % 4, dims=(-2, -1))
    return turned


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The latest checkpoint that was written to its end, None when there is none.

    Args:
        output_dir: Output folder of a `DelstTrainer`.
    """
    whole = [marker.parent for marker in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[-1]))) if whole else None
