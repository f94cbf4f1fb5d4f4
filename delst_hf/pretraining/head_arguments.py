"""Arguments of a fine-tuning: what to fine-tune, on which tissue, and how to train; and the options that `--help` shows."""

from dataclasses import dataclass, field

from ..prediction.fit import TARGETS
from .arguments import PublicArguments, check_numbers


@dataclass
class HeadArguments:
    """What to fine-tune, and on which tissue.

    Args:
        model: DELST checkpoint (folder or Hub id); a head fitted by `delst fit` is trained further. Touch it: always; a head
            of delst fit is a better start than a new one.
        dataset: Dataset folder written by `delst prepare`, or a dataset id of the Hub. Touch it: always.
        target: What to predict. Touch it: 'labels' for classes of tissue.
        train_slides: Comma-separated slides to train on. Default: all that are not held out. Touch it: to train on some slides
            only.
        validation_slides: Comma-separated slides to score on. Default: the split 'validation' of the dataset, else the last
            patient by name. Touch it: to choose who is validated on; another patient.
        test_slides: Comma-separated slides that this run must never read. Touch it: before anything else, unless delst prepare
            has split the dataset.
        same_patient_slides: Comma-separated validation slides that may be of a training patient. All others of that kind are
            refused. Touch it: only if there is one patient.
        ignore_labels: Comma-separated labels that are not a tissue class. Touch it: when other labels are not a class of
            tissue.
        balanced: Give rare classes a higher weight. Touch it: set to false when frequent classes matter most.
        lora: Train LoRA on the backbone's linear layers instead of the backbone (extra 'lora'). Touch it: when the backbone is
            large, or spots are few.
        lora_rank: Rank of LoRA. Touch it: higher (16, 32) for many slides.
        freeze_vision: Train the head only. Touch it: for the head alone; delst fit does that in closed form.
        augment: Turn each training patch to one of its eight orientations at random. Touch it: set to false for images whose
            orientation means something.

    >>> HeadArguments("model", "data").target
    'expression'
    """

    model: str
    dataset: str
    target: str = field(default="expression", metadata={"choices": TARGETS})
    train_slides: str = ""
    validation_slides: str = ""
    test_slides: str = ""
    same_patient_slides: str = ""
    ignore_labels: str = "undetermined"
    balanced: bool = True
    lora: bool = False
    lora_rank: int = 8
    freeze_vision: bool = False
    augment: bool = True


@dataclass
class HeadTrainingArguments(PublicArguments):
    """Training arguments of transformers, with defaults for fine-tuning.

    Args:
        learning_rate: Initial learning rate of AdamW. Touch it: lower it (1e-5) for a large backbone without LoRA, raise it
            (1e-3) for LoRA.
        weight_decay: Weight decay of matrices. Touch it: hardly ever.
        per_device_train_batch_size: Patches per step of a process. Touch it: lower it when memory runs out.
        remove_unused_columns: Must stay False: the collator reads all columns.
        resume_anyway: Resume although the checkpoint is of a run with other settings or data. Touch it: only if you know why
            settings or data differ.
        logging_nan_inf_filter: Not needed here: a loss that is not finite ends the run.
        output_dir: Touch it: always: each run needs a folder of its own.
        num_train_epochs: Touch it: 5 to 30.
        max_steps: Touch it: for a short trial; overrides num_train_epochs.
        seed: Touch it: to repeat a run and learn its spread.
        save_steps: Touch it: lower it where runs are killed.
        resume_from_checkpoint: Touch it: set to true to resume a run that ended early; give the same options again.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    per_device_train_batch_size: int = 32
    remove_unused_columns: bool = False
    resume_anyway: bool = False
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        super().__post_init__()
        if self.push_to_hub:
            raise ValueError(
                "push_to_hub=True is for pretraining. Push a head once it is trained: delst push "
                f"{self.output_dir or 'OUTPUT_DIR'}/model USER/NAME."
            )


# What --help shows: heading -> options.
GROUPS = {
    "what is fine-tuned": ("model", "dataset", "output_dir", "target", "lora", "lora_rank", "freeze_vision"),
    "slides and labels": (
        "train_slides", "validation_slides", "test_slides", "same_patient_slides", "ignore_labels", "balanced",
    ),
    "steps": (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "weight_decay",
        "augment", "seed", "save_steps", "resume_from_checkpoint", "resume_anyway",
    ),
}  # fmt: skip
