"""`delst evaluate` and `delst report`; training/evaluate.py runs the same under `accelerate launch`.

Nothing heavy is imported before a command runs.
"""

import argparse
import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.study import Study


@dataclass
class EvaluationArguments:
    """What to evaluate, and on which tissue."""

    model: str = field(metadata={"help": "Checkpoint folder, or a model id of the Hub."})
    dataset: str = field(metadata={"help": "Dataset folder written by `delst prepare`, or a dataset id of the Hub."})
    test_slides: str = field(
        default="",
        metadata={"help": "Slides to score, by commas. Default: all that the checkpoint was not trained on."},
    )
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
    protocols: str = field(
        default="all",
        metadata={"help": "Protocols by comma: probes, stimage1k4m, hest, retrieval, imputation, signatures, domains, "
                  "hierarchy; 'all', or 'none' for the table of arms alone."},
    )  # fmt: skip
    signatures: str | None = field(
        default=None,
        metadata={"help": 'JSON of gene signatures, {"name": {"genes": ["ERBB2"], "region": "invasive cancer"}}.'},
    )
    resamples: int = field(default=1000, metadata={"help": "Bootstrap resamples of every interval."})
    batch_size: int = field(default=64, metadata={"help": "Spots a batch when embedding."})
    allow_seen_slides: bool = field(
        default=False, metadata={"help": "Score slides although the checkpoint was trained on them. Never report that."}
    )
    output: str | None = field(default=None, metadata={"help": "Write the results to this JSON file."})


def run_evaluation(arguments: EvaluationArguments) -> dict[str, Any]:
    """Evaluate a checkpoint, print the tables, write the JSON; all processes call it, the first one scores.

    Raises:
        ValueError: if a slide is unknown, seen in training, or an option is not one of those allowed.
    """
    import transformers
    from accelerate import PartialState

    from .arguments import split_names
    from .data.study import Study
    from .evaluation.protocol import evaluate_checkpoint, format_results
    from .hub import read_training_record
    from .losses import process_rank
    from .modeling_delst import DelstModel
    from .processing_delst import DelstProcessor
    from .results import results_record, write_results

    state = PartialState()
    transformers.utils.logging.set_verbosity_error()
    study = Study.load(arguments.dataset)
    record = read_training_record(arguments.model)
    train_slides, test_slides = choose_slides(arguments, study, record)
    protocols, signatures = chosen_protocols(arguments.protocols), read_signatures(arguments.signatures)
    results = evaluate_checkpoint(
        DelstModel.from_pretrained(arguments.model).to(state.device),  # type: ignore[arg-type]
        DelstProcessor.from_pretrained(arguments.model),
        study,
        train_slides,
        test_slides,
        frozen_backbone=arguments.frozen_backbone or record.get("vision"),
        num_genes=arguments.num_genes,
        seeds=range(arguments.num_seeds),
        ignore_labels=split_names(arguments.ignore_labels),
        baselines=arguments.baselines,
        batch_size=arguments.batch_size,
        protocols=protocols,
        signatures=signatures,
        resamples=arguments.resamples,
    )
    if process_rank() > 0:
        return {}
    print(format_results(results))
    spots = study.subset([*train_slides, *test_slides])
    facts = {"model": arguments.model, "dataset": arguments.dataset, "seeds": list(range(arguments.num_seeds))}
    whole = results_record(results, spots=spots, **facts, training_log=record.get("log_history", []))
    if arguments.output:
        if protocols:
            from .pictures import collect_pictures

            whole["pictures"] = collect_pictures(arguments.dataset, study, results)
        print(f"\nResults: {write_results(arguments.output, whole)}")
    print(f"\nCheckpoint: {arguments.model}")
    return whole


def choose_slides(
    arguments: EvaluationArguments, study: "Study", record: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Slides to fit the probes on and slides to score; refuses test slides that the checkpoint has seen."""
    from .arguments import split_names

    trained = record.get("train_slides", [])
    test_slides = split_names(arguments.test_slides) or [slide for slide in study.slide_ids if slide not in trained]
    seen = [slide for slide in test_slides if slide in trained]
    if seen and not arguments.allow_seen_slides:
        raise ValueError(
            f"The checkpoint was trained on {seen}, so scores there would be worthless. Choose test slides outside "
            f"{trained}, or insist by --allow-seen-slides true."
        )
    if arguments.train_slides:
        return split_names(arguments.train_slides), test_slides
    pretrained = [slide for slide in trained if slide in study.slide_ids and slide not in test_slides]
    return pretrained or [slide for slide in study.slide_ids if slide not in test_slides], test_slides


def chosen_protocols(names: str) -> tuple[str, ...]:
    """Protocols of the suite named by commas; 'all' and 'none' are what they say.

    Raises:
        ValueError: if a name is not known.
    """
    from .arguments import split_names
    from .evaluation.suite import SUITE

    if names.strip() in ("all", "none"):
        return SUITE if names.strip() == "all" else ()
    chosen = tuple(split_names(names))
    unknown = [name for name in chosen if name not in SUITE]
    if unknown or not chosen:
        raise ValueError(f"protocols {unknown or [names]} are not known; allowed are all, none, {', '.join(SUITE)}.")
    return chosen


def read_signatures(path: str | None) -> dict[str, Any]:
    """Gene signatures of a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a mapping of name to {"genes": ...}.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"no signatures at {path}. Give the path of a JSON file.")
    signatures = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(signatures, dict) or not all(
        isinstance(value, dict) and value.get("genes") for value in signatures.values()
    ):
        raise ValueError(
            f'{path} must be JSON such as {{"HER2": {{"genes": ["ERBB2", "GRB7"], "region": "invasive cancer"}}}}: a name, '
            "its genes (a list, or a mapping to weights) and, if there is one, the label it should find."
        )
    return signatures


def add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `delst evaluate MODEL DATASET`."""
    parser = commands.add_parser(
        "evaluate",
        help="a model and a dataset folder -> tables and one JSON of results",
        description="Scores a checkpoint on slides that it has not seen, by every protocol, beside its baselines.",
        epilog="Example:\n  delst evaluate runs/toy/pretrain/model runs/toy/data --output results.json\n"
        "  delst prepare toy --output toy-dataset   makes a dataset to try it on",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option in fields(EvaluationArguments):
        text = option.metadata["help"].replace("%", "%%")
        if option.default is MISSING:
            parser.add_argument(option.name, metavar=option.name.upper(), help=text)
        elif isinstance(option.default, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(f"--{option.name.replace('_', '-')}", action=action, default=option.default, help=text)
        else:
            kind = int if isinstance(option.default, int) else str
            shown = f"{text} (default {option.default})" if option.default else text
            name = f"--{option.name.replace('_', '-')}"
            parser.add_argument(name, type=kind, default=option.default, metavar=kind.__name__.upper(), help=shown)
    parser.set_defaults(run=_run_evaluate)


def add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `delst report RESULTS`."""
    parser = commands.add_parser(
        "report",
        help="results -> one HTML file with every figure",
        description="Draws results into one HTML file that opens without a network. Several results of the same data become "
        "a table of arms with spreads over runs, and the first two are compared spot by spot.",
        epilog="Example:\n  delst report results.json --output report.html\n"
        "  delst report cosine-0.json cosine-1.json lorentz-0.json --names cosine,cosine,Lorentz --output arms.html\n"
        "  delst prepare toy --output toy-dataset   makes a dataset to try it on",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="JSON files of `delst evaluate --output`")
    parser.add_argument("--output", required=True, metavar="HTML", help="file to write")
    parser.add_argument("--names", metavar="A,B", help="name of each result; equal names are seeds of one arm")
    parser.add_argument("--model-index", metavar="YAML", help="also write the model-index of the first result here")
    parser.set_defaults(run=_run_report)


def _run_evaluate(arguments: argparse.Namespace) -> None:
    run_evaluation(
        EvaluationArguments(**{option.name: getattr(arguments, option.name) for option in fields(EvaluationArguments)})
    )


def _run_report(arguments: argparse.Namespace) -> None:
    from .report import write_report
    from .results import model_index_yaml, read_results

    records = [read_results(path) for path in arguments.results]
    names = [name.strip() for name in arguments.names.split(",")] if arguments.names else None
    if names is not None and len(names) != len(records):
        raise ValueError(f"--names gives {len(names)} names for {len(records)} results. Give one per file, by comma.")
    if arguments.model_index:
        name = names[0] if names else Path(str(records[0].get("model", "model"))).name
        Path(arguments.model_index).write_text(model_index_yaml(records[0], name), encoding="utf-8")
        print(f"model-index  {arguments.model_index}")
    print(f"report  {write_report(records, arguments.output, names)}")
