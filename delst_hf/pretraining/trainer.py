"""DelstTrainer: transformers' Trainer with the dual entailment losses, their diagnostics, and scalars that stay in range.

What only some runs need (slide-aware batches, gradient caching, FSDP, cached features, the Hub) is imported by these only.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, TrainerCallback, TrainerState

from ..data.collator import DelstCollator, orientation_choices, random_orientation
from ..data.study import SpotRows
from ..model.distributed import world_size
from ..model.entailment import cone_statistics
from ..model.modeling_delst import DelstModel, DelstOutput
from ..model.processing_delst import DelstProcessor
from ..record import hardware, hyperparameters, public_record, training_record
from .arguments import DelstTrainingArguments
from .checked_trainer import SCALARS, TERMS, CheckedTrainer


class ClampScalars(TrainerCallback):
    """After each optimiser step, brings curvature, logit scale and scales back into their ranges."""

    def on_optimizer_step(self, args, state, control, model: DelstModel | None = None, **kwargs):
        if model is not None:
            model.clamp_scalars()


class DelstTrainer(CheckedTrainer):
    """Trainer for `DelstModel`.

    It logs every loss term, the curvature and whether it is at its clamp, the logit scale, and for the Lorentz geometry radius,
    half-aperture and the fraction of pairs inside the cone with its mismatched control. On an evaluation set it adds retrieval
    over the complete set. Negatives come from all processes. Complete checkpoints have a marker file; resume with
    ``train(resume_from_checkpoint=True)``. A loss, gradient or weight that is not finite ends the run.

    Args:
        *args: As in the base class.
        processing_class: Processor of the model, saved and pushed with it.
        run_facts: Facts of the record besides arguments and log: slides, dataset, ``data`` (`record.data_facts`).
        patient_of_slide: Number of the patient of each slide of the dataset, for ``mask_negatives="patient"``.
        unpaired: Spots without an image that train the gene encoder (`unpaired.UnpairedSpots`).
        card_facts: Given facts of the model card (`hub.facts.FACTS`), such as ``{"license": "apache-2.0"}``.
        **kwargs: As in the base class.

    Examples:
        >>> from delst_hf import DelstCollator, DelstModel, DelstProcessor, DelstTrainingArguments, Study
        >>> model = DelstModel.from_pretrained("runs/toy/pretrain/model")
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> study = Study.load("runs/toy/data")
        >>> collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
        >>> args = DelstTrainingArguments("runs/more", max_steps=1, report_to="none", disable_tqdm=True)
        >>> spots = study.subset(["toy_A1", "toy_A2"])
        >>> parts = {"data_collator": collator, "processing_class": processor}
        >>> trainer = DelstTrainer(model=model, args=args, train_dataset=spots, **parts)
        >>> _ = trainer.train()
        trained 1 steps in ...
        >>> trainer.state.global_step
        1
    """

    args: DelstTrainingArguments
    model: DelstModel
    hub_model_id: Any

    def __init__(
        self,
        *args: Any,
        processing_class: DelstProcessor | None = None,
        run_facts: dict[str, Any] | None = None,
        card_facts: dict[str, str] | None = None,
        patient_of_slide: Sequence[int] | None = None,
        unpaired: Any = None,
        **kwargs: Any,
    ):
        self.unpaired = unpaired
        # The base class would look for a tokenizer in a processor; this one has none, and is saved in `_save`.
        self.card_facts = card_facts or {}
        super().__init__(*args, processor=processing_class, run_facts=run_facts, **kwargs)
        if processing_class is not None:
            self.model.config.gene_config.vocabulary_hash = processing_class.feature_extractor.vocabulary_hash()
        # `forward` takes keyword arguments for the backbone, not `num_items_in_batch`. Left True, the base class would not
        # divide the loss by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False
        if self.args.contrastive_micro_batch_size is not None:
            from .gradient_cache import check_gradient_caching

            check_gradient_caching(self.model, self.is_deepspeed_enabled)
        if self.is_fsdp_enabled:
            from .sharding import prepare_for_sharding

            prepare_for_sharding(self.model, self.accelerator.state.fsdp_plugin)
        if self.compute_metrics is None:
            if self.args.batch_eval_metrics or not self.args.eval_do_concat_batches:
                raise ValueError(
                    "Retrieval is scored over all validation spots at once, which batch_eval_metrics=True and "
                    "eval_do_concat_batches=False prevent. Leave them out, or give DelstTrainer compute_metrics of your own."
                )
            self.compute_metrics = self.retrieval_metrics
        self._last_embeds: dict[str, tuple[Tensor, Tensor]] = {}
        self._copies: torch.cuda.Stream | None = None
        self._operations_of_size: dict[int, int] = {}
        self._group_of_slide = None
        if self.args.mask_negatives == "patient":
            if patient_of_slide is None:
                raise ValueError(
                    "mask_negatives='patient' needs the patient of each slide. Give DelstTrainer patient_of_slide, as "
                    "pretraining.run.assemble does, or mask by 'slide'."
                )
            self._group_of_slide = torch.tensor(patient_of_slide)
        if self.args.freeze_vision:
            self.model.vision_model.requires_grad_(False)
        self.add_callback(ClampScalars)
        from ..report.run_log import make_readable

        make_readable(self)

    def record(self) -> dict[str, Any]:
        """Return the record of the run so far, `training.json` of a checkpoint folder."""
        facts = {"hyperparameters": hyperparameters(self.args), "seed": self.args.seed, **self.run_facts}
        return training_record(**public_record(facts), hardware=hardware(), log_history=self.known_state().log_history)

    def known_state(self) -> TrainerState:
        """Return the state of the run, a new one if there is none yet: the base class asks for the repository first."""
        return getattr(self, "state", None) or TrainerState()

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

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """As in the base class; a CUDA device copies a batch while it still computes the previous step."""
        if device.type != "cuda":
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        self._copies = self._copies or torch.cuda.Stream(device)
        with torch.cuda.stream(self._copies):
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self._copies)
        for value in (value for batch in batches for value in batch.values()):
            if isinstance(value, Tensor) and value.is_cuda:
                # No later copy gets its memory before this stream is done with it.
                value.record_stream(computing)
        return batches, num_items

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As in the base class, but counted once per batch size and not in each step."""
        size = inputs["pixel_values"].numel()
        if size not in self._operations_of_size:
            self._operations_of_size[size] = super().floating_point_ops(inputs)
        return self._operations_of_size[size]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As in the base class; on the device, training patches are turned, and patches that are still uint8 normalised."""
        inputs = super()._prepare_inputs(inputs)
        pixels: Any = inputs.get("pixel_values")
        # Cached features cannot be turned.
        turning = self.model.training and self.args.augment and pixels is not None and pixels.dim() == 4
        choices = orientation_choices(pixels) if turning else None
        if isinstance(self.data_collator, DelstCollator):
            return self.data_collator.finish(inputs, choices)
        return inputs | ({"pixel_values": random_orientation(pixels, choices)} if turning else {})

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if not self.args.slide_aware:
            return super()._get_train_sampler(train_dataset)
        from .sampling import EpochOfSampler, slide_sampler

        spots = self.train_dataset if train_dataset is None else train_dataset
        sampler = slide_sampler(spots.spots if isinstance(spots, SpotRows) else spots, self.args)
        self.remove_callback(EpochOfSampler)
        self.add_callback(EpochOfSampler(sampler))
        return sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create AdamW over five groups: backbone and heads, each with and without decay, and the scalars."""
        if self.optimizer is None:
            model = self.model if model is None else model
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(self.parameter_groups(model), **kwargs)
        return self.optimizer

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the trained parameters, grouped by role, with their learning rate and weight decay."""
        decayed = set(self.get_decay_parameter_names(model))
        args = self.args
        vision = args.learning_rate if args.vision_learning_rate is None else args.vision_learning_rate
        rates = {"vision": vision, "head": args.learning_rate, "scalar": args.scalar_learning_rate}
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
        """Return losses over the joined batch of all processes; their terms are kept for the next log."""
        inputs = {key: value for key, value in inputs.items() if key not in ("labels", "return_loss")}
        if model.training:
            inputs = self._augmented(inputs)
        outputs: Any
        if model.training and self.args.contrastive_micro_batch_size is not None:
            outputs = self._cached_loss(model, inputs)
        else:
            outputs = model(**inputs, return_loss=True, across_ranks=world_size() > 1)
        mode = "train" if model.training else "eval"
        sums = self._sums[mode]
        for term in TERMS:
            value = getattr(outputs, term)
            if value is not None:
                sums[term] = sums[term] + value.detach()
        sums["batches"] = sums["batches"] + 1
        # At chance, each spot of the joined batch is the partner with equal probability.
        sums["chance"] = sums["chance"] + math.log(len(outputs.image_embeds) * world_size())
        loss = outputs.loss
        if model.training:
            if self.unpaired is not None:
                loss = loss + self._unpaired_loss()
            self.watch_loss(loss, inputs)
        self._last_embeds[mode] = (outputs.image_embeds.detach(), outputs.gene_embeds.detach())
        return (loss, outputs) if return_outputs else loss

    def _unpaired_loss(self) -> Tensor:
        """Return the weighted loss of the next unpaired batch; its terms are kept for the next log."""
        from .unpaired import unpaired_terms

        terms = unpaired_terms(self)
        loss = terms.pop("loss")
        for name, value in terms.items():
            self._sums["train"][name] = self._sums["train"][name] + value.detach()
        return self.args.unpaired_weight * loss

    def loss_again(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """As in the base class; the losses of this process alone, unpaired spots included."""
        with self.compute_loss_context_manager():
            loss = model(**inputs, return_loss=True).loss
        if self.unpaired is None:
            return loss
        from .unpaired import last_unpaired_loss

        return loss + self.args.unpaired_weight * last_unpaired_loss(self, len(inputs["gene_values"]))

    def _augmented(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Jitter the stains of a training batch, crop its patches, and add its parts and the groups of its negatives."""
        args = self.args
        if args.stain_jitter != "off" or args.views != "single" or args.min_crop < 1:
            from .augmentation import augmented

            inputs = augmented(inputs, args, self.processor)
        if args.mask_negatives != "off":
            inputs["negative_groups"] = self.negative_groups(inputs["slide_ids"])
        return inputs

    def negative_groups(self, slides: Tensor) -> Tensor | None:
        """Return the group of each spot (batch,), within which spots are not negatives, by its slide; None if all are."""
        if self.args.mask_negatives == "off":
            return None
        return slides if self._group_of_slide is None else self._group_of_slide.to(slides.device)[slides]

    def _cached_loss(self, model: nn.Module, inputs: dict[str, Any]) -> DelstOutput:
        from .gradient_cache import cached_loss

        return cached_loss(
            model,
            self.accelerator.unwrap_model(self.model),
            inputs,
            self.args.contrastive_micro_batch_size or 1,
            # The base class divides the returned loss by the number of accumulated batches, but does not see these losses.
            backward=lambda loss: self.accelerator.backward(loss / self.current_gradient_accumulation_steps),
            across_ranks=world_size() > 1,
            no_sync=lambda: self.accelerator.no_sync(model),
        )

    def trained_model(self) -> DelstModel | None:
        """Return the model in one piece on the first process, None on others where FSDP shards it; all must call it."""
        if self.is_fsdp_enabled:
            from .sharding import whole_model

            return whole_model(self.model, self.accelerator)
        return self.accelerator.unwrap_model(self.model)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Return the loss, the embeddings of both modalities as predictions, and the spot index as labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, (outputs.image_embeds, outputs.gene_embeds), inputs.get("labels")

    def retrieval_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score retrieval in both directions over the whole evaluation set."""
        from ..evaluation.retrieval import bidirectional_retrieval

        predictions: Any = prediction.predictions
        image_embeds, gene_embeds = predictions
        model = self.accelerator.unwrap_model(self.model)
        return bidirectional_retrieval(
            image_embeds, gene_embeds, model.config.geometry, curvature=model.curvature.item()
        )

    def evaluation_names(self) -> set[str] | None:
        """As in the base class, with retrieval, the loss terms and the state of the hyperboloid."""
        if self.compute_metrics != self.retrieval_metrics or isinstance(self.eval_dataset, dict):
            return super().evaluation_names()
        config, two = self.model.config, torch.eye(2)
        pair: Any = (two.numpy(), two.numpy())
        names = {"loss", TERMS[0], "contrastive_chance"} | {
            term for term in TERMS[1:] if getattr(config, term.replace("_loss", "_weight")) > 0
        }
        names |= cone_statistics(two, two, 1.0).keys() if config.geometry == "lorentz" else set()
        return names | self.retrieval_metrics(EvalPrediction(pair, two.numpy())).keys()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss terms since the last log, the scalars and the state of the hyperboloid."""
        prefix, mode = ("eval_", "eval") if "eval_loss" in logs else ("", "train")
        if "loss" in logs or "eval_loss" in logs:
            logs.update({f"{prefix}{key}": value for key, value in self._collect(mode).items()})
        super().log(logs, start_time)

    @torch.no_grad()
    def _collect(self, mode: str) -> dict[str, float]:
        """Return averages of the terms over batches and processes, and the diagnostics of the last batch."""
        sums, self._sums[mode] = self._sums[mode], defaultdict(float)
        batches, chance = sums.pop("batches", 0), sums.pop("chance", 0.0)
        terms = {key: self.accelerator.gather(value / batches).mean().item() for key, value in sums.items()}
        if batches:
            terms["contrastive_chance"] = chance / batches
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

    def _get_learning_rate(self) -> float:
        """Return the rate of the heads, which is what ``learning_rate`` sets; the first group may be another one."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        roles = [group.get("role") for group in groups]
        if self.is_deepspeed_enabled or "head" not in roles:
            return super()._get_learning_rate()
        return groups[roles.index("head")]["lr"]

    def _training(self) -> AbstractContextManager[Any]:
        if not (self.args.cache_features and isinstance(self.data_collator, DelstCollator)):
            return super()._training()
        from .cached_features import features_in_place_of_patches

        return features_in_place_of_patches(self)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository of ``push_to_hub``: see `pushing.make_repository`."""
        from .pushing import make_repository

        make_repository(self, token, private)

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str = "End of training", blocking: bool = True, **kwargs: Any
    ) -> str | None:
        """Push model, processor, record and card in one commit, and wait for it: see `pushing.push`."""
        from .pushing import push

        known = ("token", "revision", "folder")
        return push(self, commit_message, **{name: kwargs[name] for name in known if name in kwargs})

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        from .pushing import push_checkpoint

        push_checkpoint(self)
