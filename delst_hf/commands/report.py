"""`delst report`: results of `delst evaluate` as one HTML file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..atomic.files import check_file_output, write_text
from ..atomic.locks import writing
from ..errors import reading
from .options import add_command, split_names


def add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `delst report RESULTS`: results -> one HTML file with every figure.

    Draw results into one HTML file that opens without a network. Several results on the same data are compared over runs, and
    the first runs of the first two models are compared spot by spot.

    Examples:
        delst report results.json --output report.html
        delst report results.json --genes ERBB2,COL1A1 --opacity 0.6 --output report.html
        delst report cosine-0.json cosine-1.json lorentz-0.json --names cosine,cosine,Lorentz --output arms.html
        delst prepare toy --output toy-dataset   makes a dataset to try it on
    """
    parser = add_command(commands, "report", add_report, _run_report)
    add = parser.add_argument
    add(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="JSON files of `delst evaluate`, or folders of checkpoints that hold one",
    )
    add("--output", required=True, metavar="HTML", help="file to write")
    add("--names", metavar="A,B", help="name of each result; equal names are runs of one model")
    add("--model-index", metavar="YAML", help="also write the model-index of the first result here")
    maps = parser.add_argument_group("maps").add_argument
    maps(
        "--genes",
        metavar="A,B",
        help="genes to draw, measured and predicted (default: well measured, well predicted ones)",
    )
    maps("--opacity", type=float, default=0.85, metavar="F", help="opacity of the spots, 0 to 1 (default 0.85)")


def default_names(paths: Sequence[str]) -> list[str]:
    """Return names for results without --names: the part that tells their paths apart; none for one file, named by its model.

    Example:
        >>> default_names(["runs/a/results.json", "runs/b/results.json"]), default_names(["runs/a/results.json"])
        (['a', 'b'], [])
    """
    parts = [Path(path).resolve().with_suffix("").parts[::-1] for path in paths]
    if len(parts) == 1:
        return []
    return next(
        (list(names) for names in zip(*parts) if len(set(names)) == len(names)), [Path(path).stem for path in paths]
    )


def _run_report(arguments: argparse.Namespace) -> None:
    from ..evaluation.results import model_index_yaml, read_results
    from ..report.maps import MapChoice
    from ..report.page import write_report

    choice = MapChoice(split_names(arguments.genes), arguments.opacity)
    for output in (arguments.output, arguments.model_index):
        if output:
            check_file_output(output)
    records = [read_results(path) for path in arguments.results]
    names = (
        [name.strip() for name in arguments.names.split(",")] if arguments.names else default_names(arguments.results)
    )
    if names and len(names) != len(records):
        raise ValueError(
            f"--names gives {len(names)} names for {len(records)} results. Give one per file, comma-separated."
        )
    advice = "They were not written by `delst evaluate`, or were changed since: evaluate again."
    with writing(arguments.output, "report"), reading(", ".join(arguments.results), "results", advice):
        if arguments.model_index:
            name = names[0] if names else Path(str(records[0].get("model", "model"))).name
            with writing(arguments.model_index, "model-index"):
                write_text(arguments.model_index, model_index_yaml(records[0], name))
            print(f"model-index  {arguments.model_index}")
        print(f"report  {write_report(records, arguments.output, names, choice)}")
