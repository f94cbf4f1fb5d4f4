"""What a run is told: which tissue, which model and losses, how to train.

Each field is an option of the command line; its help is what the docstring of its class says (`options`).
"""

import dataclasses
import inspect
import logging
import math
import types
import typing
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.utils import is_torch_xpu_available

from ..data.study import LEVEL_KEYS
from ..data.vocabulary import RANKINGS
from ..model.configuration_delst import DelstConfig, DelstGeneConfig
from ..model.processing_delst import STAIN_NORMALIZATIONS
from ..record import public_record

logger = logging.getLogger(__name__)

STAIN_JITTER = ("off", "light", "strong")
VIEWS = ("single", "nested")
MASK_NEGATIVES = ("off", "slide", "patient")
LEVELS = ("spot", "niche")


@dataclass
class DataArguments:
    """Which tissue to learn from.

    Args:
        dataset: Dataset folder written by `delst prepare`, or a dataset id of the Hub.
        train_slides: Comma-separated slides to train on. Default: the split 'train' of the dataset, less what is held out.
        validation_slides: Comma-separated slides to evaluate on during training. Default: the split 'validation' of the
            dataset.
        test_slides: Comma-separated slides that this run must never read. Default: the split 'test' of the dataset.
        same_patient_slides: Comma-separated validation or test slides that may be of a patient who is trained on: such
            sections are nearly copies, and all others are refused.
        unpaired_slides: Comma-separated slides without an image whose spots train the gene side, or 'all'. Vocabulary and
            means stay those of the pairs.
        num_genes: Size of the vocabulary: the most variable genes of the training slides.
        min_spots: A gene of the vocabulary is detected in this share of the training spots.
        ranking: What makes a gene variable: the variance beyond what its mean explains, or that of log counts.
        include_genes: Genes to read however they rank: comma-separated, or a file, one per line.
        vocabulary: File of genes to read, one per line, as `delst vocabulary` writes it, instead of choosing them here. One
            that was chosen on held-out slides is refused.
        features: Folder of patch features made elsewhere, one file per slide (TRIDENT, CLAM, HEST, .npy, .parquet): gene
            encoder and heads are trained on them, and no backbone.
        features_patch_px: Side of their patches in pixels of the full resolution, where the files do not say it.
        level_key: Hierarchy key of the intra-modal loss: the number of expressed genes, or one of two controls.
        levels: 'niche': also embed each spot's niche, its whole stored patch and its neighbours' genes; the spot is the
            patch's centre.
        niche_spots: With levels: neighbours of a spot in its niche, at most.
        spot_um: With levels: side of that centre, um. Default: a third of the patch.
        streaming: Read training spots where they lie, in the folder or on the Hub.
        shuffle_buffer: With streaming: spots that each loading process shuffles at a time.

    >>> DataArguments("runs/toy/data", test_slides="toy_D1").level_key
    'n_genes'
    """

    dataset: str
    train_slides: str = ""
    validation_slides: str = ""
    test_slides: str = ""
    same_patient_slides: str = ""
    unpaired_slides: str = ""
    num_genes: int | None = 1000
    min_spots: float = 0.02
    ranking: str = field(default="pearson_residuals", metadata={"choices": RANKINGS})
    include_genes: str = ""
    vocabulary: str | None = None
    features: str | None = None
    features_patch_px: float | None = None
    level_key: str = field(default="n_genes", metadata={"choices": LEVEL_KEYS})
    levels: str = field(default="spot", metadata={"choices": LEVELS})
    niche_spots: int = 6
    spot_um: float | None = None
    streaming: bool = False
    shuffle_buffer: int = 4096


def split_names(names: str) -> list[str]:
    """``"C2, C3"`` -> ``["C2", "C3"]``.

    >>> split_names("C2, C3")
    ['C2', 'C3']
    """
    return [name.strip() for name in names.split(",") if name.strip()]


def _fields_of(config_class: type, prefix: str, skip: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """Return the own fields of a configuration as dataclass fields."""
    fields = []
    for name, hint in inspect.get_annotations(config_class).items():
        if name in skip:
            continue
        default = getattr(config_class, name)
        options = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
        kind = next(t for t in (bool, float, int, str) if t in options)
        fields.append((prefix + name, kind | None if default is None else kind, default))
    return fields


def _config_arguments(self: Any) -> dict[str, Any]:
    values = {
        name: value
        for name, value in dataclasses.asdict(self).items()
        if name not in ("vision", "init_from", "image_size", "stain_normalization")
    }
    gene = {name.removeprefix("gene_"): values.pop(name) for name in list(values) if name.startswith("gene_")}
    return {**values, "gene_config": gene}


_MODEL_ARGUMENTS = """Model and losses: the fields of `DelstConfig`, and of `DelstGeneConfig` with the prefix ``gene_``.

Args:
    vision: Pretrained vision backbone: a Hub id or a local folder. Without it, vision_config.
    init_from: Continue a DELST checkpoint (Hub id or folder): both towers and the head. Genes are joined by name, those that
        it does not know are added. Of the options below only those of the losses apply.
    vision_config: Configuration of a backbone trained from scratch, as JSON, with its model_type.
    image_size: Side of the model's input, px. Default: that of the backbone.
    stain_normalization: Colours of all patches, kept in the processor: as they are, or a reference's.

Examples:
    >>> model = ModelArguments(vision="facebook/dinov2-small", gene_encoder="set", intra_entailment_weight=0.0)
    >>> model.config_arguments()["gene_config"]["encoder"]
    'set'
"""
_NOT_OF_A_RUN = ("vision_config", "gene_config", "vision_feature_size", "vision_source", "head_inputs", "head_dropout")
ModelArguments = make_dataclass(
    "ModelArguments",
    [
        ("vision", str | None, None),
        ("init_from", str | None, None),
        ("vision_config", str | None, None),
        ("image_size", int | None, None),
        ("stain_normalization", str, field(default="none", metadata={"choices": STAIN_NORMALIZATIONS})),
        *_fields_of(DelstConfig, "", _NOT_OF_A_RUN),
        *_fields_of(DelstGeneConfig, "gene_", ("num_genes", "vocabulary_hash")),
    ],
    namespace={
        "__doc__": _MODEL_ARGUMENTS,
        "__module__": __name__,
        "described_by": {"": DelstConfig, "gene_": DelstGeneConfig},
        "config_arguments": _config_arguments,
    },
)


# What is 0 or more, and what is below 1 besides. With others a run fails late, in words of a library, or trains nothing.
_AT_LEAST_ZERO = (
    "learning_rate", "vision_learning_rate", "scalar_learning_rate", "weight_decay", "adam_epsilon", "warmup_steps",
    "max_grad_norm", "min_spot_distance_um", "unpaired_weight",
)  # fmt: skip
_BELOW_ONE = ("adam_beta1", "adam_beta2")


def check_numbers(args: TrainingArguments) -> None:
    """Refuse training arguments that are not a number, infinite, or out of their range.

    Args:
        args: Arguments whose base class has not looked at them yet.

    Raises:
        ValueError: Naming the value, and what is allowed.
    """
    for name in (*_AT_LEAST_ZERO, *_BELOW_ONE):
        value = getattr(args, name, None)
        if not 0 <= float(value or 0) < (1 if name in _BELOW_ONE else math.inf):
            allowed = "from 0 to below 1" if name in _BELOW_ONE else "0 or more, and finite"
            raise ValueError(f"{name}={value} is not possible: it must be a number, {allowed}.")
    if not math.isfinite(args.num_train_epochs):
        raise ValueError(f"num_train_epochs={args.num_train_epochs} is not possible: it must be a finite number.")


class PublicArguments(TrainingArguments):
    """Training arguments whose record may leave the machine."""

    def to_dict(self) -> dict[str, Any]:
        """As in the base class, without secrets and paths: trackers write it down, and some of them send it away."""
        return public_record(super().to_dict())


@dataclass
class DelstTrainingArguments(PublicArguments):
    """Training arguments. `learning_rate` is that of the heads (gene encoder and projections).

    Args:
        contrastive_micro_batch_size: Embed per_device_train_batch_size in micro-batches of this many spots (gradient caching):
            memory of the micro-batch, negatives and gradients of the whole batch, one more forward pass.
        vision_learning_rate: Learning rate of the vision backbone. Defaults to learning_rate.
        scalar_learning_rate: Learning rate of the curvature, the logit scale and the scale of each modality.
        augment: Turn each training patch to one of its eight orientations at random: tissue has no preferred orientation.
        stain_jitter: Dye training patches at random, H and E by 0.05 ('light') or 0.2 ('strong').
        views: 'nested': a crop and half of the genes are parts that entail their spot.
        mask_negatives: Spots of one 'slide', or 'patient', are not contrasted.
        unpaired_weight: Weight of the loss of unpaired spots.
        cache_features: With freeze_vision: embed all spots once, keep the features in OUTPUT_DIR, and train the heads on them.
            Patches are then not turned (augment has no effect).
        lora: Train LoRA beside the backbone's linear layers instead of the backbone (extra 'lora': peft). It is saved merged
            into the backbone, or by itself with --save_backbone false.
        lora_rank: Rank of LoRA.
        freeze_vision: Train the heads only; the backbone stays as it is.
        batch_sampling: Which spots meet in a batch: any ('random'), slides in proportion ('balanced'), or those of one slide,
            whose negatives are hard ('within_slide').
        min_spot_distance_um: Spots of one slide closer than this (um) are never in one batch: they are near-duplicates.
        learning_rate: Learning rate of the heads: the gene encoder and both projections.
        weight_decay: Weight decay of matrices; norms, biases and the scalars are spared.
        adam_beta2: Second beta of AdamW.
        remove_unused_columns: Must stay False: the collator reads all columns.
        dataloader_drop_last: Drop the last, smaller training batch, whose contrastive loss is easier.
        per_device_eval_batch_size: Spots per batch of a process when evaluating. Default: per_device_train_batch_size, to
            compare.
        logging_nan_inf_filter: Has no use here: a loss that is not finite ends the run.
        resume_anyway: With resume_from_checkpoint: go on although the checkpoint is of a run with other settings or data.
        label_names: The collator's spot index, passed on to the metrics.

    Examples:
        >>> training = DelstTrainingArguments("runs/mine", freeze_vision=True, max_steps=100)
        >>> training.freeze_vision, training.slide_aware
        (True, False)
    """

    contrastive_micro_batch_size: int | None = None

    vision_learning_rate: float | None = None
    scalar_learning_rate: float = 1e-2
    augment: bool = True
    stain_jitter: str = field(default="off", metadata={"choices": STAIN_JITTER})
    views: str = field(default="single", metadata={"choices": VIEWS})
    mask_negatives: str = field(default="off", metadata={"choices": MASK_NEGATIVES})
    unpaired_weight: float = 0.3
    cache_features: bool = False
    lora: bool = False
    lora_rank: int = 8
    freeze_vision: bool = False
    batch_sampling: str = "random"
    min_spot_distance_um: float = 0.0
    learning_rate: float = 5e-4
    weight_decay: float = 0.2
    adam_beta2: float = 0.98
    remove_unused_columns: bool = False
    dataloader_drop_last: bool = True
    per_device_eval_batch_size: int | None = None  # type: ignore[assignment]
    logging_nan_inf_filter: bool = False
    resume_anyway: bool = False
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    def __post_init__(self) -> None:
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = self.per_device_train_batch_size
        if self.accelerator_config is None and self.dataloader_pin_memory:
            self.accelerator_config = {
                "non_blocking": True
            }  # batches come from pinned memory: no step waits for its copy
        check_numbers(self)
        self._check_device()
        super().__post_init__()
        if super().n_gpu > 1:
            logger.warning(
                "%d GPUs are here and one is used; `accelerate launch --multi_gpu` in place of `python` uses all.",
                super().n_gpu,
            )
        self._check_values()
        # Otherwise the order of the spots hangs on the state of torch's generator, and with it resuming exactly.
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        least = 3 if self.load_best_model_at_end else 2
        if self.save_total_limit is not None and 0 < self.save_total_limit < least:
            raise ValueError(
                f"save_total_limit={self.save_total_limit} would delete the last whole checkpoint before the new one is known "
                f"to be whole. Use save_total_limit={least} or more{' (the best one counts)' if least == 3 else ''}."
            )

    def _check_device(self) -> None:
        """Refuse half precision where nothing computes it, before the base class does so in words of its own."""
        asked = [name for name in ("bf16", "fp16", "tf32") if getattr(self, name)]
        if not asked or torch.cuda.is_available() or (self.use_cpu and asked == ["bf16"]) or is_torch_xpu_available():
            return
        if asked == ["bf16"] and not torch.backends.mps.is_available():
            raise ValueError(
                "bf16=True needs a GPU, and none was found (delst doctor says what was). Leave --bf16 out, or add --use_cpu "
                "true to compute in bfloat16 on the CPU."
            )
        if "fp16" in asked and (self.use_cpu or not torch.backends.mps.is_available()):
            raise ValueError(
                "fp16=True needs a GPU, and none was found (delst doctor says what was). Leave it out; on a CPU half precision "
                "is bfloat16: --bf16 true --use_cpu true."
            )
        if "tf32" in asked:
            raise ValueError(
                "tf32=True needs an NVIDIA GPU, and none was found (delst doctor says what was). Leave it out."
            )

    def _check_values(self) -> None:
        """Refuse values that no run could have, or that contradict each other."""
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(
                f"num_train_epochs={self.num_train_epochs:g} with max_steps={self.max_steps} is a run without a step. Set one "
                "of the two above 0."
            )
        if self.contrastive_micro_batch_size is not None and self.contrastive_micro_batch_size < 1:
            raise ValueError(
                f"contrastive_micro_batch_size={self.contrastive_micro_batch_size} must be 1 or more, or left out."
            )
        if self.batch_sampling != "random":
            from ..data.sampler import BATCH_SAMPLING

            if self.batch_sampling not in BATCH_SAMPLING:
                allowed = ", ".join(map(repr, BATCH_SAMPLING))
                raise ValueError(f"batch_sampling={self.batch_sampling!r} is not known. Choose one of {allowed}.")
        if self.slide_aware and not self.dataloader_drop_last:
            raise ValueError(
                f"batch_sampling={self.batch_sampling!r} and min_spot_distance_um={self.min_spot_distance_um:g} make whole "
                "batches only. Leave dataloader_drop_last at True."
            )
        for name, choices in (
            ("stain_jitter", STAIN_JITTER),
            ("views", VIEWS),
            ("mask_negatives", MASK_NEGATIVES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known. Choose one of {', '.join(map(repr, choices))}."
                )
        if self.views == "nested" and (self.cache_features or self.contrastive_micro_batch_size is not None):
            raise ValueError(
                "views='nested' embeds a crop of each patch anew in every step, for which neither cache_features nor "
                "contrastive_micro_batch_size is made. Leave them out."
            )
        if self.cache_features and (self.lora or not self.freeze_vision):
            raise ValueError(
                "cache_features keeps what the backbone makes of each patch, so the backbone must stay as it is: add "
                "--freeze_vision true" + (" and leave --lora out." if self.lora else ", or leave cache_features out.")
            )
        if self.lora and self.freeze_vision:
            raise ValueError(
                "lora and freeze_vision exclude each other: lora trains adapters in the backbone, freeze_vision trains nothing "
                "in it. Choose one of the two."
            )
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
    def n_gpu(self) -> int:
        """GPUs of this process: one at most. With several the base class would split each batch among them, negatives too."""
        return min(super().n_gpu, 1)

    @property
    def slide_aware(self) -> bool:
        """Whether batches are put together by slide and position."""
        return self.batch_sampling != "random" or self.min_spot_distance_um != 0
