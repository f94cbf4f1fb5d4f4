"""Arguments of a run: which tissue, which model and losses, how to train.

Each field is an option of the command line; its help is its entry in the docstring of its class (`options`).
"""

import dataclasses
import inspect
import logging
import math
import os
import types
import typing
from dataclasses import dataclass, field, make_dataclass
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
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
        dataset: Dataset folder written by `delst prepare`, or a dataset id of the Hub. Touch it: always.
        train_slides: Comma-separated slides to train on. Default: the split 'train' of the dataset, less held-out slides.
            Touch it: to train on some slides only, or against the dataset's split.
        validation_slides: Comma-separated slides to evaluate on during training. Default: the split 'validation' of the
            dataset. Touch it: to see eval_loss and recall while training; choose another patient.
        test_slides: Comma-separated slides that this run must never read. Default: the split 'test' of the dataset. Touch it:
            before anything else, unless delst prepare has split the dataset.
        same_patient_slides: Comma-separated validation or test slides that may be of a training patient: such sections are
            nearly copies, so all others of that kind are refused. Touch it: only to show how much easier they are.
        unpaired_slides: Comma-separated slides without an image whose spots train the gene encoder, or 'all'. Vocabulary and
            means are still those of the pairs. Touch it: for sections without an image (delst prepare --without-image).
        num_genes: Size of the vocabulary: the most variable genes of the training slides. Touch it: 300 to 500 for panels of
            Xenium; 1000 to 3000 for whole transcriptomes.
        min_spots: Least share of the training spots in which a gene of the vocabulary is detected. Touch it: lower it for rare
            cell types.
        ranking: Measure of a gene's variability: the variance beyond what its mean explains, or the variance of log counts.
            Touch it: 'variance' repeats runs of earlier versions.
        include_genes: Genes to read whatever their rank: comma-separated, or a file, one per line. Touch it: when markers that
            you need are reported absent.
        vocabulary: File of genes to read, one per line, as `delst vocabulary` writes it, instead of choosing them here. A file
            chosen on held-out slides is refused. Touch it: when several runs must read the same genes.
        features: Folder of patch features computed elsewhere, one file per slide (TRIDENT, CLAM, HEST, .npy, .parquet): gene
            encoder and heads are trained on them, without a backbone. Touch it: when patches were encoded elsewhere, or the
            encoder itself is not available.
        features_patch_px: With features: side of their patches in pixels of the full resolution, if the files do not state
            it. Touch it: when they lack it.
        level_key: Hierarchy key of the intra-modal loss: the number of expressed genes, or one of two controls. Touch it: for
            controls only: 'shuffled' shows what the order itself adds.
        levels: 'niche': also embed each spot's niche, its complete stored patch and its neighbours' genes; the spot is the
            patch's centre. Touch it: for datasets prepared with wide patches.
        niche_spots: With levels: largest number of neighbours in a niche. Touch it: 18 for two rings.
        spot_um: With levels: side of the spot in the patch, um. Default: a third of the patch's. Touch it: when it differs.
        streaming: Read training spots from the folder or the Hub as they are needed. Touch it: for studies larger than the
            disk.
        shuffle_buffer: With streaming: spots that each loading process shuffles at a time. Touch it: raise it to mix more
            slides.

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
    """Return comma-separated names: ``"C2, C3"`` -> ``["C2", "C3"]``.

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


class _ModelArguments:
    """Model and losses: the fields of `DelstConfig`, and of `DelstGeneConfig` with the prefix ``gene_``.

    Args:
        vision: Pretrained vision backbone: a Hub id or a local folder. Default: vision_config, from scratch. Touch it: always,
            except to train from scratch: a pathology model you have access to is best.
        init_from: Continue a DELST checkpoint (Hub id or folder): both towers and the head. Genes are matched by name, and new
            ones are added. Of the model's options only those of the losses, freeze_batch_norm and save_backbone apply. Touch
            it: when you have one of a similar tissue.
        vision_config: Configuration of a backbone to train from scratch, as JSON, with its model_type. Touch it: for trials
            without any weights, as in toy.yaml.
        image_size: Side of the model's input, px. Default: that of the backbone. Touch it: smaller is faster: 112 px costs a
            quarter of 224 px.
        stain_normalization: Normalise the stains of all patches to a reference; saved in the processor. Touch it: for slides
            of many laboratories.
        vision_pooling: Touch it: when docs/models.md names another for your backbone.
        save_backbone: Touch it: set to false for a gated backbone.
        freeze_batch_norm: Touch it: set to false only for large batches of a network trained from scratch.
        gene_encoder: Touch it: 'set' when panels differ between slides.
        gene_hidden_size: Touch it: lower it (128) for fewer than 1,000 spots.
        gene_num_hidden_layers: Touch it: 1 for few spots.
        gene_dropout: Touch it: raise it when eval_loss rises while loss falls.
        gene_norm: Touch it: hardly ever.
        gene_embedding_size: Touch it: with 'set', to save memory for many genes.
        gene_num_attention_heads: Touch it: with 'set', if it does not divide gene_hidden_size.
        gene_layer_norm_eps: Touch it: hardly ever.
        gene_initializer_range: Touch it: hardly ever.
        geometry: Touch it: 'cosine' and 'euclidean' to see what the hyperboloid adds.
        projection_dim: Touch it: lower it (64 to 256) for little data.
        cross_entailment_weight: Touch it: raise it to 1 when the log says that cones are empty; 0 leaves the term out.
        intra_entailment_weight: Touch it: likewise; 0 leaves the term out.
        cross_parent: Touch it: 'image' to test the other order.
        intra_parent: Touch it: 'more' to test the other order.
        intra_min_level_ratio: Touch it: raise it to order only spots that differ much.
        entailment: Touch it: to compare published forms.
        min_radius: Touch it: raise it (0.3) when the log says that cones are empty.
        regression_weight: Touch it: 1 to try.
        radius_floor: Touch it: set it (0.3) when the log says that cones have collapsed.
        cross_aperture_scale: Touch it: above 1 for wider cones.
        intra_aperture_scale: Touch it: likewise.
        curvature_init: Touch it: when the log says that the curvature is at its clamp.
        learn_curvature: Touch it: false keeps it fixed.
        logit_scale_init: Touch it: hardly ever.
        logit_scale_max: Touch it: lower it (50) when the contrastive loss of few spots falls to 0.

    Examples:
        >>> model = ModelArguments(vision="facebook/dinov2-small", gene_encoder="set", intra_entailment_weight=0.0)
        >>> model.config_arguments()["gene_config"]["encoder"]
        'set'
    """

    described_by: typing.ClassVar = {"": DelstConfig, "gene_": DelstGeneConfig}

    def config_arguments(self) -> dict[str, Any]:
        """Return the arguments of `DelstConfig`, those of the gene encoder as ``gene_config``."""
        values = {
            name: value
            for name, value in dataclasses.asdict(self).items()  # type: ignore[call-overload]
            if name not in ("vision", "init_from", "image_size", "stain_normalization")
        }
        gene = {name.removeprefix("gene_"): values.pop(name) for name in list(values) if name.startswith("gene_")}
        return {**values, "gene_config": gene}


_NOT_OF_A_RUN = (
    "vision_config", "gene_config", "vision_feature_size", "vision_source", "head_inputs", "head_standardise", "head_dropout",
)  # fmt: skip
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
    bases=(_ModelArguments,),
    namespace={"__doc__": _ModelArguments.__doc__, "__module__": __name__},
)


# Arguments that must be 0 or more, and those that must also be below 1. Otherwise a run fails late, with the message of a
# library, or trains nothing.
_AT_LEAST_ZERO = (
    "learning_rate", "vision_learning_rate", "scalar_learning_rate", "weight_decay", "adam_epsilon", "warmup_steps",
    "max_grad_norm", "min_spot_distance_um", "unpaired_weight",
)  # fmt: skip
_BELOW_ONE = ("adam_beta1", "adam_beta2")
_AT_LEAST_ONE = ("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size")


def check_numbers(args: TrainingArguments) -> None:
    """Refuse training arguments that are NaN, infinite, or out of their range.

    Args:
        args: Arguments that their base class has not checked yet.

    Raises:
        ValueError: If a value is not allowed; the message says what is.
    """
    for name in (*_AT_LEAST_ZERO, *_BELOW_ONE):
        value = getattr(args, name, None)
        if not 0 <= float(value or 0) < (1 if name in _BELOW_ONE else math.inf):
            allowed = "from 0 to below 1" if name in _BELOW_ONE else "0 or more, and finite"
            raise ValueError(f"{name}={value} is not possible: it must be a number, {allowed}.")
    for name in _AT_LEAST_ONE:
        if getattr(args, name) < 1:
            raise ValueError(f"{name}={getattr(args, name)} is not possible: it must be a whole number, 1 or more.")
    if not math.isfinite(args.num_train_epochs):
        raise ValueError(f"num_train_epochs={args.num_train_epochs} is not possible: it must be a finite number.")
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs:g} with max_steps={args.max_steps} is a run without a step. Set one of "
            "the two above 0."
        )


# Why options of transformers' Trainer are refused that a run would ignore, or whose failure only a library explains.
_OF_TEXT = "is for models of text, and changes nothing here"
_OTHER_ORDER = "would give a process other batches than a run here records and resumes"


def check_options(args: Any) -> None:
    """Refuse options that would be ignored, or would end the run late, before anything is opened.

    Args:
        args: Arguments of a run, which their base class has checked.

    Raises:
        ValueError: At the first one that is given; the message says why it cannot be used.
    """
    loader = args.accelerator_config
    refused = {
        "label_smoothing_factor": (args.label_smoothing_factor != 0, _OF_TEXT),
        "neftune_noise_alpha": (args.neftune_noise_alpha is not None, _OF_TEXT),
        "include_num_input_tokens_seen": (args.include_num_input_tokens_seen != "no", _OF_TEXT),
        f"train_sampling_strategy='{args.train_sampling_strategy}'": (
            args.train_sampling_strategy not in ("random", "sequential"),
            _OF_TEXT,
        ),
        "debug='underflow_overflow'": ("underflow_overflow" in args.debug, "cannot read masks, which are no numbers"),
        "dataloader_in_order=False": (
            not args.dataloader_in_order,
            "gives batches as workers finish them, so that no run can be repeated or resumed exactly",
        ),
        f"hub_strategy='{args.hub_strategy.value}'": (
            args.push_to_hub and "checkpoint" in args.hub_strategy,
            "would push what a run resumes from, and only models are pushed here: use 'every_save' or 'end'",
        ),
        "split_batches in accelerator_config": (loader.split_batches, _OTHER_ORDER),
        "dispatch_batches in accelerator_config": (loader.dispatch_batches, _OTHER_ORDER),
        "even_batches=False in accelerator_config": (not loader.even_batches, _OTHER_ORDER),
        "use_seedable_sampler=False in accelerator_config": (not loader.use_seedable_sampler, _OTHER_ORDER),
    }
    for name, (asked, why) in refused.items():
        if asked:
            raise ValueError(f"{name} {why}. Leave it out.")
    for name in set(args.report_to) - set(get_available_reporting_integrations()):
        raise ValueError(f"report_to={name!r} is not installed here. Install it (pip install {name}), or leave it out.")


class PublicArguments(TrainingArguments):
    """Training arguments whose record may be published.

    Args:
        output_dir: Folder of this run: checkpoints, log, learning curves, and the result, model/.
        resume_from_checkpoint: Resume from a checkpoint: true for the last complete one of output_dir, or the folder of one.
        seed: Seed of weights, batches and orientations.
        num_train_epochs: Number of times that each training spot is seen.
        max_steps: Number of optimiser steps.
        per_device_train_batch_size: Spots per batch of each process.
        dataloader_num_workers: Processes that prefetch images, per training process.
        bf16: Compute the encoders in bfloat16.
        use_cpu: Train on the CPU even if there is a GPU.
        lr_scheduler_type: Schedule of the learning rates: linear, cosine, constant, ...
        warmup_steps: Steps in which the learning rates rise from 0: a number, or below 1 a share of all steps.
        save_strategy: When checkpoints are written: no, epoch or steps.
        save_steps: Steps between checkpoints.
        save_total_limit: Number of newest checkpoints to keep.
        eval_strategy: When the validation slides are scored: no, epoch or steps.
        logging_steps: Steps between lines of the log.
        report_to: Comma-separated trackers that also receive the log.
        disable_tqdm: Show no progress bar.
        push_to_hub: Push the checkpoint folder with its card to the Hub at each save.
        hub_model_id: Repository on the Hub.
        hub_private_repo: Make a new repository private.
    """

    def __post_init__(self) -> None:
        # Otherwise accelerate takes each process of torchrun for a single one on a machine without a GPU: each would train
        # alone on all spots, and write into the same folder.
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True
        if self.deepspeed and find_spec("deepspeed") is None:
            raise ValueError("deepspeed is not installed here. Install it (pip install deepspeed), or leave it out.")
        super().__post_init__()
        # The base class turns it off with checkpointing, which needs that only if it is re-entrant. Backbones hold weights
        # that no forward pass reads, such as a mask token or a pooler, and DDP would wait for their gradients.
        how: Any = self.gradient_checkpointing_kwargs or {}
        asked = self.gradient_checkpointing and not how.get("use_reentrant", False)
        if asked and self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True
        check_options(self)

    @property
    def device(self) -> torch.device:
        """As in the base class, a CPU without an index: torch cannot restore an optimizer to transformers 5.17's "cpu:0"."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def to_dict(self) -> dict[str, Any]:
        """Do as in the base class, without secrets and paths: trackers store the record, and some upload it."""
        return public_record(super().to_dict())


@dataclass
class DelstTrainingArguments(PublicArguments):
    """Training arguments. `learning_rate` is that of the heads (gene encoder and projections).

    Args:
        contrastive_micro_batch_size: Embed per_device_train_batch_size in micro-batches of this many spots (gradient caching):
            memory of a micro-batch, negatives and gradients of the full batch, one more forward pass. Touch it: when memory
            runs out: the batch and its negatives stay as they are.
        vision_learning_rate: Learning rate of the vision backbone. Default: learning_rate. Touch it: a tenth of learning_rate
            for a pretrained backbone.
        scalar_learning_rate: Learning rate of the curvature, the logit scale and the scale of each modality. Touch it: lower
            it when the curvature runs to its clamp.
        augment: Turn each training patch to one of its eight orientations at random: tissue has no preferred orientation.
            Touch it: set to false for images whose orientation means something.
        stain_jitter: Vary the stains of training patches at random, H and E by 0.05 ('light') or 0.2 ('strong'). Touch it: for
            slides stained elsewhere.
        min_crop: Crop each training patch to a random square, its side at least this share of the patch's. 1 for none. Touch
            it: 0.8 for small studies and large backbones.
        views: 'nested': a crop and half of the genes are parts that entail their spot. Touch it: to compare orders.
        mask_negatives: Spots of the same 'slide', or 'patient', are not contrasted. Touch it: for studies of many slides.
        unpaired_weight: Weight of the loss of unpaired spots. Touch it: lower it when recall falls.
        cache_features: With freeze_vision: embed all spots once, store the features in OUTPUT_DIR, and train the heads on
            them. Patches are then not turned (augment has no effect). Touch it: with freeze_vision, whenever the features fit
            the disk: an epoch takes seconds.
        lora: Train LoRA on the backbone's linear layers instead of the backbone (extra 'lora': peft). It is saved merged into
            the backbone, or separately with --save_backbone false. Touch it: when the backbone is large and the GPU small.
        lora_rank: Rank of LoRA. Touch it: higher (16, 32) for many slides.
        freeze_vision: Train the heads only; the backbone stays as it is. Touch it: when spots are fewer than some 2,000, or
            there is no GPU.
        batch_sampling: Which spots meet in a batch: any ('random'), slides in proportion ('balanced'), or those of one slide,
            whose negatives are hard ('within_slide'). Touch it: 'within_slide' when slides differ in stain, which makes
            negatives too easy.
        min_spot_distance_um: Spots of one slide closer than this (um) are never in one batch: they are near-duplicates. Touch
            it: 200 for spots that overlap or lie close, as bins and cells do.
        learning_rate: Learning rate of the heads: the gene encoder and both projections. Touch it: lower it when the loss
            jumps.
        weight_decay: Weight decay of matrices; norms, biases and the scalars have none. Touch it: hardly ever.
        adam_beta2: Second beta of AdamW. Touch it: hardly ever.
        remove_unused_columns: Must stay False: the collator reads all columns.
        dataloader_drop_last: Drop the last, smaller training batch, whose contrastive loss is easier. Touch it: set to false
            when the study is smaller than a batch.
        per_device_eval_batch_size: Spots per batch of a process when evaluating. Default: per_device_train_batch_size, to
            compare losses. Touch it: hardly ever.
        logging_nan_inf_filter: Not needed here: a loss that is not finite ends the run.
        resume_anyway: With resume_from_checkpoint: resume although the checkpoint is of a run with other settings or data.
            Touch it: only if you know why settings or data differ.
        label_names: The collator's spot index, passed on to the metrics.
        output_dir: Touch it: always: each run needs a folder of its own.
        resume_from_checkpoint: Touch it: true after an early end.
        seed: Touch it: to repeat a run and learn its spread: three seeds show it.
        num_train_epochs: Touch it: 10 to 30; fewer for many slides.
        max_steps: Touch it: for a short trial, such as 20; overrides num_train_epochs.
        per_device_train_batch_size: Touch it: as large as fits: each spot is contrasted with all others of its batch.
        dataloader_num_workers: Touch it: 2 to 8 when the GPU waits for images.
        bf16: Touch it: set to true on a GPU of 2020 or later: half the memory; the head stays in float32.
        use_cpu: Touch it: set to true to leave a GPU alone.
        lr_scheduler_type: Touch it: 'cosine' is a good choice.
        warmup_steps: Touch it: 0.05 to 0.1 (a share of all steps) for a pretrained backbone.
        save_strategy: Touch it: 'epoch' for long runs, 'no' for short ones; without a checkpoint a killed run starts over.
        save_steps: Touch it: with save_strategy 'steps'.
        save_total_limit: Touch it: 2 to save disk space.
        eval_strategy: Touch it: 'epoch', when there are validation slides.
        logging_steps: Touch it: 10 to 50 for long runs.
        report_to: Touch it: tensorboard, trackio or wandb, installed separately (docs/training.md).
        disable_tqdm: Touch it: set to true for output to a file.
        push_to_hub: Touch it: to publish at each save; delst push does it once, afterwards.
        hub_model_id: Touch it: with push_to_hub: USER/NAME.
        hub_private_repo: Touch it: with push_to_hub, for a repository that others cannot see.

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
    min_crop: float = 1.0
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
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("rank"):
            self.greater_is_better = False  # the base class knows that of losses only
        self._check_device()
        super().__post_init__()
        if super().n_gpu > 1:
            logger.warning(
                "%d GPUs were found and one is used. Use all with `accelerate launch --multi_gpu` instead of `python`.",
                super().n_gpu,
            )
        self._check_values()
        # Otherwise the order of the spots, and so exact resuming, would depend on the state of torch's generator.
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        least = 3 if self.load_best_model_at_end else 2
        if self.save_total_limit is not None and 0 < self.save_total_limit < least:
            raise ValueError(
                f"save_total_limit={self.save_total_limit} would delete the last complete checkpoint before the new one is "
                f"known to be complete. Use save_total_limit={least} or more{' (the best one counts)' if least == 3 else ''}."
            )

    def _check_device(self) -> None:
        """Refuse half precision without a device for it, with a clearer message than that of the base class."""
        asked = [name for name in ("bf16", "fp16", "tf32") if getattr(self, name)]
        if not asked or torch.cuda.is_available() or (self.use_cpu and asked == ["bf16"]) or is_torch_xpu_available():
            return
        if asked == ["bf16"] and not torch.backends.mps.is_available():
            raise ValueError(
                "bf16=True needs a GPU, and none was found (delst doctor lists what was). Leave --bf16 out, or add --use_cpu "
                "true to compute in bfloat16 on the CPU."
            )
        if "fp16" in asked and (self.use_cpu or not torch.backends.mps.is_available()):
            raise ValueError(
                "fp16=True needs a GPU, and none was found (delst doctor lists what was). Leave it out; on a CPU half "
                "precision is bfloat16: --bf16 true --use_cpu true."
            )
        if "tf32" in asked:
            raise ValueError(
                "tf32=True needs an NVIDIA GPU, and none was found (delst doctor lists what was). Leave it out."
            )

    def _check_values(self) -> None:
        """Refuse values that are not possible, or that contradict each other."""
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
                f"batch_sampling={self.batch_sampling!r} and min_spot_distance_um={self.min_spot_distance_um:g} make full "
                "batches only. Leave dataloader_drop_last at True."
            )
        if self.slide_aware and self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy={str(self.train_sampling_strategy)!r} cannot be combined with batch_sampling="
                f"{self.batch_sampling!r} and min_spot_distance_um={self.min_spot_distance_um:g}, which choose the spots of a "
                "batch themselves. Leave it out."
            )
        for name, choices in (("stain_jitter", STAIN_JITTER), ("views", VIEWS), ("mask_negatives", MASK_NEGATIVES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known. Choose one of {', '.join(map(repr, choices))}."
                )
        if not 0 < self.min_crop <= 1:
            raise ValueError(
                f"min_crop={self.min_crop:g} is not a share of a patch's side. Give one above 0, such as 0.8, or 1 for none."
            )
        if self.views == "nested" and (self.cache_features or self.contrastive_micro_batch_size is not None):
            raise ValueError(
                "views='nested' embeds a new crop of each patch in every step, which neither cache_features nor "
                "contrastive_micro_batch_size supports. Leave them out."
            )
        if self.cache_features and (self.lora or not self.freeze_vision):
            raise ValueError(
                "cache_features stores the backbone's features of each patch, so the backbone must not change: add "
                "--freeze_vision true" + (" and leave --lora out." if self.lora else ", or leave cache_features out.")
            )
        if self.lora and self.freeze_vision:
            raise ValueError(
                "lora and freeze_vision exclude each other: lora trains adapters in the backbone, freeze_vision trains nothing "
                "in it. Choose one of the two."
            )
        self._refuse_what_cannot_be_sharded()
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would remove the columns that the collator reads. Leave it out."
            )

    def _refuse_what_cannot_be_sharded(self) -> None:
        """Refuse FSDP where few weights are trained, beside frozen ones or as heads alone: these need no sharding."""
        asked = [name for name in ("lora", "cache_features") if getattr(self, name)]
        if asked and (self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
            raise ValueError(
                f"{asked[0]}=True trains few weights, which FSDP would not shard. Train with DDP "
                "(training/configs/accelerate/multi_gpu.yaml), or leave the option out."
            )

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: one at most. With several the base class would split each batch and its negatives."""
        return min(super().n_gpu, 1)

    @property
    def slide_aware(self) -> bool:
        """Whether batches are composed by slide and position."""
        return self.batch_sampling != "random" or self.min_spot_distance_um != 0
