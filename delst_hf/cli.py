"""The `delst` command. Each subcommand is one `add_*` function for its arguments and one `_run_*` that does the work.

Imports of datasets, pandas and anndata stay inside the functions that need them, so that `--help` does not wait for them.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data.slide import Slide

_USER_ERRORS = (ValueError, KeyError, TypeError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        The exit status: 0 when done, 2 for a mistake of the user, 130 when interrupted.
    """
    arguments = build_parser().parse_args(argv)
    try:
        with _log_on_stderr():
            arguments.run(arguments)
    except KeyboardInterrupt:
        print("delst: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if arguments.debug:
            raise
        # str() of a KeyError is the repr of its message.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"delst: error: {message}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of `delst` with all its subcommands."""
    from .commands_evaluate import add_evaluate, add_report

    parser = argparse.ArgumentParser(
        prog="delst",
        description="Hyperbolic image-gene pretraining on spatial transcriptomics.",
        epilog="Begin with:  delst prepare toy --output toy-dataset",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_prepare(commands)
    add_evaluate(commands)
    add_report(commands)
    return parser


def add_prepare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `delst prepare FORMAT`."""
    prepare = commands.add_parser(
        "prepare",
        help="slides -> a dataset folder for load_dataset",
        description="Cuts one patch per spot and writes a dataset folder that datasets.load_dataset opens.",
        epilog="Example:  delst prepare her2st her2st --sections C2,C3 --output her2st-dataset\n"
        "Details:  delst prepare FORMAT --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    formats = prepare.add_subparsers(required=True, metavar="FORMAT")
    _add_her2st(formats)
    _add_anndata(formats)
    _add_toy(formats)


def _add_format(
    formats: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    example: str,
    patch_px: int = 224,
) -> argparse.ArgumentParser:
    """Adds one format with the options that all formats share."""
    parser = formats.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"Example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="dataset folder to make")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset at DIR once the new one is complete"
    )
    parser.add_argument(
        "--patch-um", type=float, default=112.0, metavar="UM", help="side of a patch in micrometres (default 112)"
    )
    parser.add_argument(
        "--patch-px",
        type=int,
        default=patch_px,
        metavar="PX",
        help=f"side of a stored patch in pixels (default {patch_px})",
    )
    parser.add_argument(
        "--image-format", choices=("jpeg", "png"), default="jpeg", help="how patches are stored (default jpeg)"
    )
    parser.add_argument("--quality", type=int, default=95, metavar="Q", help="JPEG quality, 1 to 100 (default 95)")
    parser.add_argument(
        "--drop-outside", action="store_true", help="leave out spots outside the image instead of refusing the slide"
    )
    parser.add_argument(
        "--licence", default="unknown", help="licence of the data, for the dataset card (default unknown)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)
    return parser


def _add_her2st(formats: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_format(
        formats, "her2st", _run_her2st, "legacy Spatial Transcriptomics in the layout of almaan/her2st",
        "delst prepare her2st her2st --sections C2,C3 --output her2st-dataset\n"
        "  delst prepare her2st her2st --sections C2 --labels transferred_labels.csv --output c2-dataset",
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="folder that holds data/ST-cnts, data/ST-spotfiles, data/ST-imgs")
    parser.add_argument(
        "--sections", metavar="C2,C3", help="sections, by comma (default: all with counts, spots and image)"
    )
    parser.add_argument("--labels", metavar="CSV", help="columns section,id,label instead of the pathologist's files")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel (default: from the array's pitch of 200 um)")


def _add_anndata(formats: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_format(
        formats, "anndata", _run_anndata, "AnnData .h5ad in the Visium convention of scanpy and squidpy",
        "delst prepare anndata V1_breast.h5ad --species human --output visium-dataset\n"
        "  delst prepare anndata A1.h5ad --spot-um 100 --technology 'Spatial Transcriptomics' --output a1-dataset",
    )  # fmt: skip
    parser.add_argument("files", nargs="+", metavar="FILE", help=".h5ad files, one slide each")
    parser.add_argument("--slide-id", metavar="ID,ID", help="one per file (default: the library id in the file)")
    parser.add_argument("--patient-id", metavar="ID,ID", help="one per file, or one for all (default: the slide id)")
    parser.add_argument("--library-id", metavar="ID", help="entry of uns['spatial'], if a file has several")
    parser.add_argument(
        "--image", metavar="PATH", help="full-resolution image, with a single FILE (default: hires in the file)"
    )
    parser.add_argument(
        "--mpp", type=float, help="micrometres per FULL-RESOLUTION pixel (default: from the spot diameter)"
    )
    parser.add_argument(
        "--spot-um", type=float, default=55.0, metavar="UM", help="spot diameter (default 55; legacy ST 100)"
    )
    parser.add_argument("--layer", help="layer with raw counts, 'raw' for adata.raw (default: X)")
    parser.add_argument(
        "--label-key", default="label", metavar="COLUMN", help="column of obs with labels (default label)"
    )
    parser.add_argument("--technology", default="Visium", help="for the slides table (default Visium)")
    parser.add_argument("--tissue", default="", help="for the slides table, e.g. breast")
    parser.add_argument("--species", default="", help="for the genes and slides tables, e.g. human")


def _add_toy(formats: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_format(
        formats, "toy", _run_toy, "small synthetic slides: more tissue structure, more expressed genes",
        "delst prepare toy --output toy-dataset", patch_px=64,
    )  # fmt: skip
    parser.add_argument("--slides", type=int, default=5, metavar="N", help="number of slides (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal slides (default 0)")


def _run_her2st(arguments: argparse.Namespace) -> None:
    from .data.readers.her2st import find_her2st_sections, locate_her2st, read_her2st

    sections = _split(arguments.sections) or find_her2st_sections(arguments.source)
    if not sections:
        raise FileNotFoundError(
            f"no section with counts, spots and image under {arguments.source}. Name one with --sections."
        )
    for section in sections:
        locate_her2st(arguments.source, section, arguments.labels)
    slides = (read_her2st(arguments.source, name, mpp=arguments.mpp, labels=arguments.labels) for name in sections)
    _write(slides, arguments)


def _run_anndata(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from .data.readers.anndata_visium import read_anndata

    files, slide_ids, patients = arguments.files, _split(arguments.slide_id), _split(arguments.patient_id)
    for name in [*files, *([arguments.image] if arguments.image else [])]:
        if not Path(name).is_file():
            raise FileNotFoundError(f"no file at {name}. Give the path of an existing file.")
    if arguments.image and len(files) > 1:
        raise ValueError(f"--image is one image, but {len(files)} files were given. Prepare them one at a time.")
    if slide_ids and len(slide_ids) != len(files):
        raise ValueError(
            f"--slide-id names {len(slide_ids)} slides for {len(files)} files. Give one per file, by comma."
        )
    if len(patients) > 1 and len(patients) != len(files):
        raise ValueError(
            f"--patient-id names {len(patients)} patients for {len(files)} files. Give one, or one per file."
        )
    slides = (
        read_anndata(
            path,
            slide_id=slide_ids[index] if slide_ids else None,
            library_id=arguments.library_id,
            mpp=arguments.mpp,
            spot_diameter_um=arguments.spot_um,
            image=arguments.image,
            layer=arguments.layer,
            label_key=arguments.label_key,
            patient_id=patients[index if len(patients) > 1 else 0] if patients else None,
            technology=arguments.technology,
            tissue=arguments.tissue,
            species=arguments.species,
        )
        for index, path in enumerate(files)
    )
    _write(slides, arguments)


def _run_toy(arguments: argparse.Namespace) -> None:
    from .data.toy import make_toy_slides

    _write(make_toy_slides(arguments.slides, seed=arguments.seed), arguments)


def _write(slides: "Iterator[Slide]", arguments: argparse.Namespace) -> None:
    """Writes the dataset and says what came out."""
    from .data.dataset import write_dataset

    summary = write_dataset(
        slides,
        arguments.output,
        patch_um=arguments.patch_um,
        patch_px=arguments.patch_px,
        image_format=arguments.image_format,
        quality=arguments.quality,
        outside="drop" if arguments.drop_outside else "error",
        overwrite=arguments.overwrite,
        licence=arguments.licence,
        progress=not arguments.quiet,
    )
    print(f"dataset  {summary.path}")
    print(
        f"slides   {len(summary.slides)}: " + ", ".join(f"{name} {number}" for name, number in summary.slides.items())
    )
    print(
        f"spots    {sum(summary.slides.values())}: "
        + ", ".join(f"{name} {n}" for name, n in summary.labels.most_common())
    )
    print(f"genes    {summary.num_genes}")
    print(f'open     datasets.load_dataset("{arguments.output}")["train"]')


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()] if names else []


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Shows the package's own messages on stderr; other libraries keep their own settings."""
    logger, handler = logging.getLogger("delst_hf"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
