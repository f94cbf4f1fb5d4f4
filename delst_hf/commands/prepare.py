"""`delst prepare FORMAT`, `delst merge`, `delst vocabulary`: their arguments, and what they print.

`formats` lists the formats; the jobs of each are functions without arguments that read one slide. Imports of the data room stay
inside functions, so that `--help` does not wait for them.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..atomic.files import check_file_output
from ..atomic.locks import writing
from . import formats, sheet
from .options import add_command, given, split_names


def add_prepare(commands: Any) -> None:
    """Add `delst prepare FORMAT`."""
    listed = {**formats.FORMATS, "SHEET.csv": sheet.SHEET}
    lines = "\n".join(f"  {name:<12} {one.told.summary}\n      {one.told.examples[0]}" for name, one in listed.items())
    prepare = commands.add_parser(
        "prepare",
        help="slides -> a dataset folder for load_dataset",
        description="Cut one patch per spot and write a dataset folder that datasets.load_dataset opens.",
        epilog=f"formats, each with an example:\n{lines}\n\nDetails:  delst prepare FORMAT --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = prepare.add_subparsers(required=True, metavar="FORMAT")
    for name, one in {**formats.FORMATS, "sheet": sheet.SHEET}.items():
        parser = add_command(parsers, name, one.jobs, partial(_run_prepare, jobs=one.jobs))
        add_format(parser, one)


def add_format(parser: argparse.ArgumentParser, one: formats.Format, writes: bool = True) -> None:
    """Add the options of a format and those that all formats share; --output is required only where something is written."""
    one.add_arguments(parser)
    _add_output(parser, writes)
    _add_patches(parser, one.patch_px)
    _add_checks(parser, one.min_tissue)
    _add_split(parser)
    _add_speed(parser)


def add_merge(commands: Any) -> None:
    """Add `delst merge`: several dataset folders -> one, with the union of their genes.

    Join dataset folders, also those with different gene panels, or the outputs of --shard-index runs.

    Examples:
        delst merge st-dataset visium-dataset --output both-dataset --split patient
    """
    parser = add_command(commands, "merge", add_merge, _run_merge)
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", help="dataset folders made by delst prepare")
    add("--output", required=True, metavar="DIR", help="dataset folder to make")
    add("--overwrite", action="store_true", help="replace a dataset at --output once the new one is complete")
    add("--license", help="license of the data (default: that of the folders, if they agree)")
    _add_split(parser)


def add_vocabulary(commands: Any) -> None:
    """Add `delst vocabulary`: choose the genes that a model reads, on training slides only.

    Choose genes of a dataset folder and write one name per line. Counts are read one row group at a time.

    Examples:
        delst vocabulary toy-dataset --method hvg --num-genes 100 --output genes.txt
    """
    parser = add_command(commands, "vocabulary", add_vocabulary, _run_vocabulary)
    add = parser.add_argument
    add("folder", metavar="DIR", help="dataset folder")
    add("--output", required=True, metavar="FILE", help="text file to write")
    add("--method", default="hvg", choices=("hvg", "spatial", "detected", "list", "all"),
        help="highly variable (default), spatially variable, most often detected, a list, or all")  # fmt: skip
    add("--num-genes", type=int, default=1000, metavar="N", help="number of genes (default 1000)")
    add("--ranking", default="pearson_residuals", choices=("pearson_residuals", "variance"),
        help="for hvg: variance beyond what the mean explains (default), or variance of log counts")  # fmt: skip
    add("--include", metavar="GENES|FILE",
        help="genes to include first, whatever their rank: comma-separated, or a file with one per line")  # fmt: skip
    add("--min-spots", type=float, default=0.02, metavar="SHARE",
        help="a gene must be detected in this share of the spots (default 0.02)")  # fmt: skip
    add("--genes", metavar="FILE", help="with --method list: names or Ensembl ids, one per line")
    add("--slides", metavar="ID,ID", help="training slides (default: those of the split train)")


def _add_output(parser: argparse.ArgumentParser, writes: bool) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--output", required=writes, metavar="DIR", help="dataset folder to make")
    add("--overwrite", action="store_true", help="replace a dataset at DIR once the new one is complete")
    add("--license", default="unknown", help="license of the data, for the dataset card (default unknown)")
    add("--preview", action="store_true", help="also draw DIR/previews/SLIDE.png: spots, labels, patches on the slide")
    add("--quiet", action="store_true", help="no progress bars")


def _add_patches(parser: argparse.ArgumentParser, patch_px: int) -> None:
    add = parser.add_argument_group("patches").add_argument
    add("--patch-um", type=float, default=112.0, metavar="UM", help="side of a patch in micrometres (default 112)")
    add("--patch-px", type=int, default=patch_px, metavar="PX", help=f"its stored side in pixels (default {patch_px})")
    add("--image-format", choices=("jpeg", "png"), default="jpeg", help="how patches are stored (default jpeg)")
    add("--quality", type=int, default=95, metavar="Q", help="JPEG quality, 1 to 100 (default 95)")
    add("--shard-mb", type=int, default=256, metavar="MB", help="begin a new file beyond this size (default 256)")


def _add_checks(parser: argparse.ArgumentParser, min_tissue: float) -> None:
    add = parser.add_argument_group("checks and filters").add_argument
    add("--drop-outside", action="store_true", help="leave out spots outside the image instead of refusing the slide")
    add("--allow-off-tissue", action="store_true", help="accept a slide whose spots mostly lie off tissue")
    add(
        "--allow-scale",
        action="store_true",
        help="accept a slide whose sources of the scale disagree by more than 5 %%, and report it",
    )
    add("--swap-xy", action="store_true", help="swap x and y of the spots")
    add("--one-slide", action="store_true", help="accept a table that looks like several samples as one slide")
    add("--min-counts", type=int, default=0, metavar="N", help="leave out spots with fewer counts")
    add("--min-genes", type=int, default=0, metavar="N", help="leave out spots with fewer expressed genes")
    add(
        "--min-tissue",
        type=float,
        default=min_tissue,
        metavar="SHARE",
        help=f"leave out patches with a smaller share of tissue (default {min_tissue:g})",
    )
    add("--aliases", metavar="CSV", help="gene names to replace: columns alias, symbol and, optionally, gene_id")


def _add_speed(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("speed and scale").add_argument
    add("--num-proc", type=int, default=1, metavar="N", help="slides prepared at a time, one process each (default 1)")
    add("--shard-index", type=int, metavar="I", help="with --num-shards: prepare shard I (0 to N - 1) of the slides, as "
        "DIR-0000I-of-0000N; join the shards with delst merge")  # fmt: skip
    add("--num-shards", type=int, metavar="N", help="number of shards, one per run, that the slides are spread over")


def _add_split(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("splits").add_argument
    add(
        "--split",
        choices=("patient", "slide", "spot"),
        help="unit to split by (default: no split, everything is train)",
    )
    add("--test-fraction", type=float, default=0.2, metavar="F", help="share for testing (default 0.2)")
    add("--validation-fraction", type=float, default=0.0, metavar="F", help="share for validation (default 0)")
    add("--split-seed", type=int, default=0, metavar="S", help="equal seeds give equal splits (default 0)")
    add("--test-slides", metavar="ID,ID", help="slides to test on, instead of random ones")
    add("--validation-slides", metavar="ID,ID", help="slides to validate on, instead of random ones")


def _split_request(arguments: argparse.Namespace) -> Any:
    from ..data.splits import SplitRequest

    named = split_names(arguments.test_slides), split_names(arguments.validation_slides)
    if arguments.split is None and not any(named):
        return None
    return SplitRequest(
        by=arguments.split or "slide",
        test=arguments.test_fraction,
        validation=arguments.validation_fraction,
        seed=arguments.split_seed,
        test_slides=tuple(named[0]),
        validation_slides=tuple(named[1]),
    )


def slide_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options for checking slides and cutting patches, by their names in `write_dataset` and `PatchOptions`."""
    from ..data.genes import read_aliases
    from ..data.quality import QualityFilter

    return {
        **given(arguments, "patch_um", "patch_px", "image_format", "quality", "swap_xy", "one_slide", "preview"),
        "outside": "drop" if arguments.drop_outside else "error",
        "off_tissue": "allow" if arguments.allow_off_tissue else "error",
        "scale": "allow" if arguments.allow_scale else "error",
        "quality_filter": QualityFilter(arguments.min_counts, arguments.min_genes, arguments.min_tissue),
        "aliases": read_aliases(arguments.aliases) if arguments.aliases else None,
        "max_shard_bytes": arguments.shard_mb * 2**20,
    }


def _run_prepare(arguments: argparse.Namespace, jobs: Callable[[argparse.Namespace], list[Any]]) -> None:
    """Write the dataset and print a summary of it."""
    from ..data.dataset import write_dataset
    from ..data.shards import shard, shard_name
    from ..data.understood import summary_table

    split, output = _split_request(arguments), arguments.output
    if (arguments.shard_index is None) != (arguments.num_shards is None):
        raise ValueError("--shard-index and --num-shards belong together. Give both, or neither.")
    todo, shard_of = jobs(arguments), None
    if arguments.num_shards is not None:
        if split is not None:
            raise ValueError(
                "one shard of the slides cannot be split. Give --split to delst merge, which sees all of them."
            )
        shard_of = {"index": arguments.shard_index, "of": arguments.num_shards, "slides": len(todo)}
        todo = list(shard(todo, arguments.shard_index, arguments.num_shards))
        output = shard_name(Path(output), arguments.shard_index, arguments.num_shards)
        if not todo:
            print(f"dataset  none: there are fewer slides than the {arguments.num_shards} shards")
            return
    summary = write_dataset(
        todo,
        output,
        split=split,
        resume=True,
        progress=not arguments.quiet,
        shard_of=shard_of,
        **slide_options(arguments),
        **given(arguments, "num_proc", "overwrite", "license"),
    )
    _print(summary, output)
    print(f"\n{summary_table(summary.path, summary.slides)}")


def _run_merge(arguments: argparse.Namespace) -> None:
    from ..data.merge import merge_datasets

    summary = merge_datasets(
        arguments.folders, arguments.output, split=_split_request(arguments), **given(arguments, "overwrite", "license")
    )
    _print(summary, arguments.output)


def _run_vocabulary(arguments: argparse.Namespace) -> None:
    from ..data.study import Study
    from ..data.vocabulary import choose_genes, training_slides
    from ..data.vocabulary_file import gene_names_of, read_gene_list, write_vocabulary

    check_file_output(arguments.output)
    with writing(arguments.output, "vocabulary"):
        slides = split_names(arguments.slides) or None
        wanted = read_gene_list(arguments.genes) if arguments.genes else None
        include = gene_names_of(arguments.include) if arguments.include else ()
        study = Study.load(arguments.folder)
        # The methods "list" and "all" read no spots.
        chosen_on = [] if arguments.method in ("list", "all") else training_slides(study, slides)
        names = choose_genes(
            study,
            chosen_on,
            wanted=wanted,
            include=include,
            **given(arguments, "method", "ranking", "num_genes", "min_spots"),
        )
        method = f"hvg by {arguments.ranking}" if arguments.method == "hvg" else arguments.method
        write_vocabulary(arguments.output, names, method, chosen_on)
    print(f"genes    {len(names)}: {', '.join(names[:5])}, ...")
    _print_absent_markers(study, names)


def _print_absent_markers(study: Any, names: list[str]) -> None:
    """Print the well-known markers of the tissue that the vocabulary lacks, and which of them the data have."""
    from ..data.markers import absent_markers

    own = {name.casefold(): name for name in study.gene_names}
    for tissue, absent in absent_markers(study.slides["tissue"], names).items():
        measured = [own[name.casefold()] for name in absent if name.casefold() in own]
        lacking = [name for name in absent if name.casefold() not in own]
        if measured:
            print(f"absent   markers of {tissue} that the data have: add them with --include {','.join(measured)}")
        if lacking:
            print(f"absent   markers of {tissue} that the data lack: {', '.join(lacking)}")


def _print(summary: Any, output: str) -> None:
    print(f"dataset  {summary.path}")
    slides = ", ".join(f"{name} {number}" for name, number in summary.slides.items())
    print(f"slides   {len(summary.slides)}: {slides}")
    labels = ", ".join(f"{name} {number}" for name, number in summary.labels.most_common())
    print(f"spots    {sum(summary.slides.values())}: {labels}")
    if set(summary.splits) != {"train"}:
        print("splits   " + ", ".join(f"{name} {number}" for name, number in summary.splits.items()))
    print(f"genes    {summary.num_genes}")
    split = next((name for name in ("train", "validation", "test", "unpaired") if name in summary.splits), "train")
    print(f'open     datasets.load_dataset("{output}")["{split}"]')
