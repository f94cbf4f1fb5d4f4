"""Training on spots that are read as they are needed: `--streaming true`, for studies that outgrow the machine."""

from typing import Any

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..data.spot_files import SpotFiles
from ..data.spot_stream import SpotStream
from ..data.streamed import StreamedStudy
from .arguments import DataArguments, DelstTrainingArguments
from .checked_trainer import seeds_of_workers
from .trainer import DelstTrainer


def check_streaming(data: DataArguments, training: DelstTrainingArguments) -> None:
    """Refuse options that need all spots at once, before anything is opened.

    Raises:
        ValueError: If any is given; the message says what it needs.
    """
    needs = {
        f"batch_sampling={training.batch_sampling!r}": (training.batch_sampling != "random", "the slide of every spot"),
        f"min_spot_distance_um={training.min_spot_distance_um:g}": (
            bool(training.min_spot_distance_um),
            "the position of every spot",
        ),
        "cache_features": (training.cache_features, "a place on the disk for the features of every spot"),
        "features": (data.features is not None, "the features of every spot"),
        "unpaired_slides": (bool(data.unpaired_slides), "all unpaired spots beside the stream"),
        "level_key='shuffled'": (data.level_key == "shuffled", "the numbers of genes of all spots of a slide"),
        "train_sampling_strategy='sequential'": (
            training.train_sampling_strategy != "random",
            "the order of the dataset, where a stream is shuffled",
        ),
        "auto_find_batch_size": (training.auto_find_batch_size, "another order of the spots for each size"),
    }
    given = [f"{name} needs {what}" for name, (asked, what) in needs.items() if asked]
    if given:
        raise ValueError(
            f"--streaming true stores no spots, and {'; '.join(given)}. Leave one of the two out: without --streaming the "
            "study is stored on the disk of this machine."
        )


def open_streamed(data: DataArguments) -> StreamedStudy:
    """Open a dataset whose spots are read as they are needed."""
    return StreamedStudy.load(data.dataset)


class StreamTrainer(DelstTrainer):
    """`DelstTrainer` whose training spots are a `SpotStream`.

    transformers' Trainer would divide a stream among processes by reading all of it in each, or by distributing the batches of
    the first one, and would resume by reading again all spots seen before. Here each process reads its own part, and resumes
    where it was.

    Args:
        *args: As in the base class.
        train_dataset: `SpotFiles`, or a `SpotStream` made for this process.
        shuffle_buffer: See `SpotStream`.
        **kwargs: As in the base class.

    Raises:
        TypeError: If the spots are not streamed.

    Examples:
        >>> from delst_hf import DelstCollator, DelstModel, DelstProcessor
        >>> study = StreamedStudy.load("runs/toy/data")
        >>> model = DelstModel.from_pretrained("runs/toy/pretrain/model")
        >>> processor = DelstProcessor.from_pretrained("runs/toy/pretrain/model")
        >>> collator = DelstCollator(processor, study.gene_names, study.slide_ids, study.measured_genes)
        >>> args = DelstTrainingArguments("runs/streamed", max_steps=1, report_to="none", disable_tqdm=True)
        >>> spots = study.subset(["toy_A1", "toy_A2"])
        >>> trainer = StreamTrainer(model=model, args=args, train_dataset=spots, data_collator=collator)
        >>> _ = trainer.train()
        trained 1 steps in ...
    """

    def __init__(self, *args: Any, train_dataset: Any = None, shuffle_buffer: int = 4096, **kwargs: Any):
        training: DelstTrainingArguments = kwargs["args"]
        if isinstance(train_dataset, SpotFiles):
            train_dataset = SpotStream(
                train_dataset,
                training.train_batch_size,
                shuffle_buffer,
                training.seed if training.data_seed is None else training.data_seed,
                training.process_index,
                training.world_size,
                training.dataloader_drop_last,
            )
        if not isinstance(train_dataset, SpotStream):
            raise TypeError(
                f"train_dataset is a {type(train_dataset).__name__}, and streaming reads SpotFiles: open the dataset by "
                "StreamedStudy.load, and give spots of its subset()."
            )
        super().__init__(*args, train_dataset=train_dataset, **kwargs)
        self.add_callback(BeginWhereItWas)

    def get_train_dataloader(self) -> DataLoader:
        """Make a loader whose batches are those of the stream, for this process alone."""
        args = self.args
        loader: DataLoader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=_Collate(self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            generator=seeds_of_workers(args),
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
        )
        return prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
            non_blocking=bool(getattr(self.accelerator, "non_blocking", False)),
        )

    def num_examples(self, dataloader: DataLoader) -> int:
        """Return the number of spots; the length of a stream is that of one process, in batches."""
        if isinstance(dataloader.dataset, SpotStream):
            return dataloader.dataset.num_rows
        return super().num_examples(dataloader)

    def identity(self) -> dict[str, Any]:
        """Do as in the base class, and add the number of workers, which the order of a stream depends on."""
        return {**super().identity(), "dataloader_num_workers": self.args.dataloader_num_workers}


class BeginWhereItWas(TrainerCallback):
    """Before the first step, moves the stream of a resumed run past the batches that were seen in its epoch."""

    def on_train_begin(self, args, state, control, train_dataloader: Any = None, **kwargs):
        """Count epochs and batches from steps."""
        stream, accumulated = train_dataloader.dataset, args.gradient_accumulation_steps
        epoch, update = divmod(state.global_step, -(-len(stream) // accumulated))
        stream.load_state_dict({"epoch": epoch, "batches": 0 if args.ignore_data_skip else update * accumulated})


class _Collate:
    """Makes a batch of an arrow table, and an empty one of what a resumed stream skips."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, table: Any) -> dict[str, Any]:
        return {} if table is None else self.collator(table)
