"""Evaluate a checkpoint on slides that it has not seen, with its baselines in the same table.

    accelerate launch training/evaluate.py --model runs/toy/pretrain/model --dataset runs/toy/data --test-slides toy_D1
    accelerate launch training/evaluate.py --model DIR --dataset DIR --test-slides C5,B4 --output results.json

Image embeddings are scored by expression prediction (ridge, alpha chosen on training slides, mean gene-wise Pearson over the
most variable genes), a linear probe on the slides' labels (macro-F1), and retrieval in both directions over the whole pool.
The probes are fitted on the slides that the checkpoint was trained on unless --train-slides says otherwise.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from accelerate import PartialState

from delst_hf import DelstModel, DelstProcessor
from delst_hf.arguments import parse_arguments, split_names
from delst_hf.data.study import Study
from delst_hf.evaluation.protocol import evaluate_checkpoint, format_results
from delst_hf.hub import read_training_record, training_record


@dataclass
class EvaluationArguments:
    """What to evaluate, and on which tissue."""

    model: str = field(metadata={"help": "Checkpoint folder, or a model id of the Hub."})
    dataset: str = field(metadata={"help": "Dataset folder written by `delst prepare`, or a dataset id of the Hub."})
    test_slides: str = field(metadata={"help": "Slides to score, by commas."})
    train_slides: str = field(
        default="", metadata={"help": "Slides to fit the probes on, by commas. Default: those of the pretraining."}
    )
    frozen_backbone: str | None = field(
        default=None,
        metadata={
            "help": "Backbone before pretraining, for the frozen arm. Default: the one the training record names."
        },
    )
    num_genes: int = field(default=100, metadata={"help": "Predict this many of the most variable genes."})
    num_seeds: int = field(default=3, metadata={"help": "Random backbones and shuffles to average over."})
    ignore_labels: str = field(default="undetermined", metadata={"help": "Labels that are no tissue class, by commas."})
    baselines: bool = field(
        default=True,
        metadata={"help": "Score the baselines too: colour, random-init and frozen backbone, shuffled pairs."},
    )
    batch_size: int = field(default=64, metadata={"help": "Spots a batch when embedding."})
    allow_seen_slides: bool = field(
        default=False, metadata={"help": "Score slides although the checkpoint was trained on them. Never report that."}
    )
    output: str | None = field(default=None, metadata={"help": "Write the results to this JSON file."})


def choose_train_slides(arguments: EvaluationArguments, study: Study, record: dict) -> list[str]:
    """Slides to fit the probes on; refuses test slides that the checkpoint has seen."""
    test_slides = split_names(arguments.test_slides)
    seen = [slide for slide in test_slides if slide in record.get("train_slides", [])]
    if seen and not arguments.allow_seen_slides:
        raise ValueError(
            f"The checkpoint was trained on {seen}, so scores there would be worthless. Choose test slides outside "
            f"{record['train_slides']}, or insist by --allow-seen-slides true."
        )
    if arguments.train_slides:
        return split_names(arguments.train_slides)
    pretrained = [slide for slide in record.get("train_slides", []) if slide in study.slide_ids]
    return pretrained or [slide for slide in study.slide_ids if slide not in test_slides]


def main() -> None:
    (arguments,) = parse_arguments((EvaluationArguments,), description=__doc__ or "")
    state = PartialState()
    transformers.utils.logging.set_verbosity_error()
    study = Study.load(arguments.dataset)
    record = read_training_record(arguments.model)
    train_slides = choose_train_slides(arguments, study, record)
    results = evaluate_checkpoint(
        DelstModel.from_pretrained(arguments.model).to(state.device),
        DelstProcessor.from_pretrained(arguments.model),
        study,
        train_slides,
        split_names(arguments.test_slides),
        frozen_backbone=arguments.frozen_backbone or record.get("vision"),
        num_genes=arguments.num_genes,
        seeds=range(arguments.num_seeds),
        ignore_labels=split_names(arguments.ignore_labels),
        baselines=arguments.baselines,
        batch_size=arguments.batch_size,
    )
    if not state.is_main_process:
        return
    print(format_results(results))
    if arguments.output:
        output = Path(arguments.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(
            json.dumps(training_record(model=arguments.model, **results), indent=2) + "\n", encoding="utf-8"
        )
        print(f"\nResults: {output}")
    print(f"\nCheckpoint: {arguments.model}")


if __name__ == "__main__":
    main()
