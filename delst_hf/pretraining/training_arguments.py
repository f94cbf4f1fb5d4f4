"""DelstTrainingArguments: transformers' TrainingArguments with what a contrastive run on slides needs beside."""

from dataclasses import dataclass, field

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from ..data.sampler import BATCH_SAMPLING


@dataclass
class DelstTrainingArguments(TrainingArguments):
    """Training arguments. `learning_rate` is that of the heads (gene encoder and projections)."""

    contrastive_micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Embed per_device_train_batch_size in micro-batches of this many spots (gradient caching): memory of the "
            "towers as for the micro-batch, negatives and gradients as for the whole batch of all processes, at the cost of "
            "one more forward pass. Gradient accumulation does not add negatives (each of its batches is contrasted within "
            "itself); this does."
        },
    )

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
    cache_features: bool = field(
        default=False,
        metadata={
            "help": "With freeze_vision: embed all spots once, keep the features in OUTPUT_DIR, and train the heads on them. "
            "Patches are then not turned (augment has no effect)."
        },
    )
    lora: bool = field(
        default=False,
        metadata={
            "help": "Train LoRA beside the backbone's linear layers instead of the backbone (extra 'lora': peft). It is saved "
            "merged into the backbone, or by itself with --save_backbone false."
        },
    )
    lora_rank: int = field(default=8, metadata={"help": "Rank of LoRA."})
    freeze_vision: bool = field(default=False, metadata={"help": "Train the heads only; the backbone stays as it is."})
    batch_sampling: str = field(
        default="random",
        metadata={
            "help": "Which spots meet in a batch: any (random), slides in proportion (balanced), or those of one slide, whose "
            "negatives are hard (within_slide).",
            "choices": BATCH_SAMPLING,
        },
    )
    min_spot_distance_um: float = field(
        default=0.0,
        metadata={"help": "Spots of one slide closer than this (um) are never in one batch: they are near-duplicates."},
    )
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
        least = 3 if self.load_best_model_at_end else 2
        if self.save_total_limit is not None and 0 < self.save_total_limit < least:
            raise ValueError(
                f"save_total_limit={self.save_total_limit} would delete the last whole checkpoint before the new one is known "
                f"to be whole. Use save_total_limit={least} or more{' (the best one counts)' if least == 3 else ''}."
            )
        if self.contrastive_micro_batch_size is not None and self.contrastive_micro_batch_size < 1:
            raise ValueError(
                f"contrastive_micro_batch_size={self.contrastive_micro_batch_size} must be 1 or more, or left out."
            )
        if self.slide_aware and not self.dataloader_drop_last:
            raise ValueError(
                f"batch_sampling={self.batch_sampling!r} and min_spot_distance_um={self.min_spot_distance_um:g} make whole "
                "batches only. Leave dataloader_drop_last at True."
            )
        if self.cache_features and (self.lora or not self.freeze_vision):
            raise ValueError(
                "cache_features keeps what the backbone makes of each patch, so the backbone must stay as it is: add "
                "--freeze_vision true" + (" and leave --lora out." if self.lora else ", or leave cache_features out.")
            )
        if self.lora and self.freeze_vision:
            raise ValueError("lora trains beside the backbone, freeze_vision nothing of it. Choose one of the two.")
        self._refuse_what_cannot_be_sharded()
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would take the columns that the collator reads. Leave it out.")

    def _refuse_what_cannot_be_sharded(self) -> None:
        """FSDP shards one whole model; heads alone, or weights beside frozen ones, are small and need none of it."""
        asked = [name for name in ("lora", "cache_features") if getattr(self, name)]
        if asked and (self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
            raise ValueError(
                f"{asked[0]}=True trains few weights, which FSDP would not shard. Train with DDP "
                "(training/configs/accelerate/multi_gpu.yaml), or leave the option out."
            )

    @property
    def slide_aware(self) -> bool:
        """Whether batches are put together by slide and position."""
        return self.batch_sampling != "random" or self.min_spot_distance_um != 0
