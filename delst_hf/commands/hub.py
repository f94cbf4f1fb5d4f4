"""`delst card`, `delst push`, `delst doctor`: their arguments, and what they print.

Nothing heavy is imported before a command runs.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..atomic.files import check_file_output, write_text
from ..atomic.locks import writing
from ..errors import reading
from ..hub.facts import FACTS, FILES
from ..markup import fenced
from .options import add_command


def add_card(commands: Any) -> None:
    """Add `delst card`: the model card of a checkpoint, from the records of its run.

    Write the card of a checkpoint from its training record, results and dataset. Facts that no record holds stay placeholders;
    each is named at the end with the option that gives it.

    Examples:
        delst card runs/toy/pretrain/model me/toy --results runs/toy/results.json --output README.md
        delst prepare toy --output toy-dataset   makes a dataset to try it on
    """
    parser = add_command(commands, "card", add_card, _run_card)
    parser.add_argument("folder", metavar="MODEL_DIR", help="checkpoint folder")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository that the card is for")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: print it)")
    _add_facts(parser)


def add_push(commands: Any) -> None:
    """Add `delst push`: a checkpoint, a dataset folder or a metric -> the Hugging Face Hub.

    Upload a checkpoint with its processor, code and card; with --dataset, a dataset folder with all its configs. All goes in
    one commit, so that the repository is never half-written. Needs a token with the role write (hf auth login).

    Examples:
        delst push runs/toy/pretrain/model me/toy --results runs/toy/results.json --license apache-2.0
        delst push --dataset toy-dataset me/toy-dataset --private
        delst push --metric gene_pearson me/gene_pearson
        delst prepare toy --output toy-dataset   makes a dataset to try it on
    """
    parser = add_command(commands, "push", add_push, _run_push)
    add = parser.add_argument
    add("folder", metavar="DIR", help="checkpoint folder (--dataset: dataset folder; --metric: name of the metric)")
    add("repo_id", metavar="USER/NAME", help="repository, created if it does not exist")
    kind = parser.add_mutually_exclusive_group().add_argument
    kind("--dataset", action="store_true", help="DIR is a dataset folder")
    kind("--metric", action="store_true", help="DIR names a metric: gene_pearson, retrieval_recall, entailment")
    add("--private", action="store_true", help="create the repository private; an existing public one is refused")
    add("--with-reference", action="store_true", help="push reference/ of delst reference too: data of training spots")
    add("--overwrite-card", action="store_true", help="replace a README.md in the repository that somebody else wrote")
    add("--revision", metavar="BRANCH", help="branch (default main)")
    _add_facts(parser)


def add_doctor(commands: Any) -> None:
    """Add `delst doctor`: what is installed, what is reachable, and what to fix.

    Print versions, device, optional libraries, the Hub, the token, access to a backbone, cache and disk space. The exit status
    is 1 if something needs fixing.

    Examples:
        delst doctor --backbone MahmoodLab/UNI
        delst doctor --model runs/toy/pretrain/model
        delst prepare toy --output toy-dataset   makes a dataset to try things on
    """
    parser = add_command(commands, "doctor", add_doctor, _run_doctor)
    add = parser.add_argument
    add("--backbone", metavar="ID", help="check access to this backbone, gated or not")
    add("--model", metavar="DIR", help="check this checkpoint folder: checksums, weights, whether it loads")


def _add_facts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the card")
    for name, (option, text) in FACTS.items():
        group.add_argument(option, dest=f"fact_{name}", metavar="FILE" if name in FILES else "TEXT", help=text)
    group.add_argument("--baselines", metavar="JSON", help="other results on the same data, which hold the baselines")
    group.add_argument("--data", metavar="DIR", help="dataset that it was trained on, for the facts of the data")


def _card_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `model_card` from those of the command."""
    from ..evaluation.results import read_results

    given = {name: value for name in FACTS if (value := getattr(arguments, f"fact_{name}")) is not None}
    results = given.pop("results", None)
    if "hyperparameters" in given:
        with reading(given["hyperparameters"], "hyper-parameters", "Give a text file in UTF-8."):
            given["hyperparameters"] = fenced(Path(given["hyperparameters"]).read_text(encoding="utf-8"), "yaml")
    data = None
    if arguments.data is not None:
        from ..data.study import Study
        from ..record import data_facts, read_training_record

        study, record = Study.load(arguments.data), read_training_record(arguments.folder)
        data = data_facts(arguments.data, study, record.get("train_slides") or study.slide_ids)
    return {
        "results": read_results(results) if results else None,
        "baselines": read_results(arguments.baselines) if arguments.baselines else None,
        "data": data,
        "given": given,
    }


def _run_card(arguments: argparse.Namespace) -> None:
    from ..hub.card import how_to_give, model_card, unfilled
    from ..hub.checksums import check_checksums
    from ..hub.publish import check_checkpoint

    if arguments.output:
        check_file_output(arguments.output)
    with writing(arguments.output, "card") if arguments.output else nullcontext():
        folder = check_checkpoint(arguments.folder)
        check_checksums(folder)
        text = model_card(folder, arguments.repo_id, **_card_arguments(arguments))
        if arguments.output:
            write_text(arguments.output, text)
    print(f"card     {arguments.output}" if arguments.output else text)
    for name in unfilled(text):
        print(f"missing  {how_to_give(name)}", file=sys.stderr)


def _run_push(arguments: argparse.Namespace) -> None:
    from ..hub.publish import push_dataset, push_metric, push_model

    options = {"private": arguments.private, "overwrite_card": arguments.overwrite_card}
    if arguments.metric:
        print(f"pushed   {push_metric(arguments.folder, arguments.repo_id, **options)}")
        print(f'open     evaluate.load("{arguments.repo_id}")')
        return
    options["revision"] = arguments.revision
    if arguments.dataset:
        print(f"pushed   {push_dataset(arguments.folder, arguments.repo_id, **options)}")
        print(f'open     datasets.load_dataset("{arguments.repo_id}")["train"]')
        return
    if (Path(arguments.folder) / "spots").is_dir():
        raise ValueError(
            f"{arguments.folder} is a dataset folder. Push it with `delst push --dataset {arguments.folder} ...`."
        )
    options["with_reference"] = arguments.with_reference
    print(f"pushed   {push_model(arguments.folder, arguments.repo_id, **options, **_card_arguments(arguments))}")
    print(f'open     transformers.AutoModel.from_pretrained("{arguments.repo_id}", trust_remote_code=True)')


def _run_doctor(arguments: argparse.Namespace) -> int:
    from .doctor import examine

    findings = examine(arguments.backbone, arguments.model)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{'ok  ' if finding.fix is None else 'FIX '} {finding.name:<{width}}  {finding.found}")
    fixes = [finding for finding in findings if finding.fix is not None]
    print("\nNothing to fix." if not fixes else "\nTo fix:")
    for finding in fixes:
        print(f"- {finding.name}: {finding.fix}")
    return 1 if fixes else 0
