"""What commands share: parsers with examples, options common to several source formats, one job per file."""

import argparse
import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Jobs = list[Callable[[], Any]]


@dataclass(frozen=True)
class Told:
    """The help of a command, read from the docstring of its function."""

    summary: str
    description: str
    examples: tuple[str, ...]

    @classmethod
    def by(cls, function: Callable[..., Any]) -> "Told":
        """Read a docstring: in its first sentence, the summary follows "`: "; then come description and examples.

        >>> def add_fit():
        ...     \"\"\"Add `delst fit MODEL`: a head on frozen features.
        ...
        ...     Fits a head.
        ...
        ...     Examples:
        ...         delst fit MODEL
        ...     \"\"\"
        >>> Told.by(add_fit)
        Told(summary='a head on frozen features', description='Fits a head.', examples=('delst fit MODEL',))
        """
        text, _, examples = (inspect.getdoc(function) or "").partition("Examples:\n")
        first, _, description = text.partition("\n\n")
        summary = " ".join(first.split()).partition("`: ")[2].removesuffix(".")
        return cls(summary, description.strip() or summary, tuple(line.strip() for line in examples.splitlines()))


def add_command(
    commands: Any, name: str, function: Callable[..., Any], run: Callable[..., Any], **options: Any
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: What ``add_subparsers`` returned.
        name: Name of the command.
        function: Its docstring is the help of the command (see `Told`).
        run: Called with the parsed arguments.
        **options: Passed to ``add_parser``.
    """
    told = Told.by(function)
    shown = "\n".join(f"  {example}" for example in told.examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=told.summary,
        description=told.description,
        epilog=f"Example{'s' if len(told.examples) > 1 else ''}:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    parser.set_defaults(run=run)
    return parser


def split_names(names: str | None) -> list[str]:
    """Return the comma-separated names."""
    return [name.strip() for name in names.split(",") if name.strip()] if names else []


def given(arguments: object, *names: str) -> dict[str, Any]:
    """Return the named arguments as keywords for a function whose parameters have the same names."""
    return {name: getattr(arguments, name) for name in names}


def add_about(parser: argparse.ArgumentParser, *skip: str, technology: str = "", technology_default: str = "") -> None:
    """Add options for facts of a slide that its files may not state."""
    for name, text in (
        ("slide-id", "name of the slide; comma-separated for several (default: from the source)"),
        ("patient-id", "patient; comma-separated for several, or one for all (default: the slide id)"),
        ("tissue", "tissue of the slide, e.g. breast, for the slides table"),
        ("species", "human, mouse, ... (default: from the Ensembl ids)"),
        ("technology", f"technology, for the slides table (default {technology_default or technology or 'none'})"),
    ):
        if name not in skip:
            parser.add_argument(f"--{name}", default=technology if name == "technology" else None, help=text)


def for_reader(
    reader: Callable[..., Any], arguments: argparse.Namespace, index: int = 0, count: int = 1
) -> dict[str, Any]:
    """Return the given options that a reader takes as keywords of the same names, for one of several slides.

    Options that were not given are left to the reader's own defaults.
    """
    keywords = [name for name, one in inspect.signature(reader).parameters.items() if one.kind is one.KEYWORD_ONLY]
    options = {name: value for name in keywords if (value := getattr(arguments, name, None)) is not None}
    for name, what in (("slide_id", "slides"), ("patient_id", "patients")):
        if values := split_names(options.pop(name, None)):
            if len(values) != count and not (name == "patient_id" and len(values) == 1):
                raise ValueError(
                    f"--{name.replace('_', '-')} names {len(values)} {what} for {count} files. Give one per file, "
                    "comma-separated."
                )
            options[name] = values[index] if len(values) == count else values[0]
    return options


def check_files(*names: str | None) -> None:
    for name in names:
        if name is not None and not Path(name).exists():
            raise FileNotFoundError(f"no file at {name}. Give the path of an existing file.")
        if name is not None and (packed := zipped([name])):
            raise ValueError(f"{name} is packed. {packed}")


def zipped(names: Sequence[str]) -> str:
    """Return what to do with a .zip, .7z or .rar, which no reader opens (tar and gzip are read); "" where there is none."""
    packed = next((name for name in names if name.lower().endswith((".zip", ".7z", ".rar"))), None)
    return "" if packed is None else f"Unpack it (unzip {shlex.quote(packed)}), and give what it holds."


# What other programs export, by the suffixes of their files.
_EXPORTS = {
    ".rds .rdata .rda .h5seurat": "R reads it: write the counts there (DropletUtils::write10xCounts, type='HDF5') and the "
    "positions (write.csv of GetTissueCoordinates), and give these to delst prepare table.",
    ".cloupe": "Only Loupe Browser reads it: give the folder outs of Space Ranger that it came with.",
    ".gef .gem .gem.gz": "stereopy reads it: write its bins as an .h5ad (stereo.io.stereo_to_anndata), and give that.",
    ".loom": "anndata reads it: anndata.io.read_loom(FILE).write_h5ad('slide.h5ad'), and give that.",
    ".h5mu": "mudata reads it: mudata.read_h5mu(FILE)['rna'].write_h5ad('slide.h5ad'), and give that.",
    ".xlsx .xls .ods": "A spreadsheet reads it: save each sheet as CSV, and give these; look for genes that became dates.",
}


def exported(name: str) -> str:
    """Return how to export a file that only other programs read; "" for any other.

    >>> exported("slide.CLOUPE")[:30], exported("slide.csv")
    ('Only Loupe Browser reads it: g', '')
    """
    return next((told for ends, told in _EXPORTS.items() if name.lower().endswith(tuple(ends.split()))), "")


WITHOUT_IMAGE = "use the counts alone: the spots get the split 'unpaired' and train only the gene side of a model"


def add_image(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--image`, which must be given, or `--without-image` in its place."""
    parser.add_argument("--image", metavar="FILE", help=text)
    parser.add_argument("--without-image", action="store_true", help=WITHOUT_IMAGE)


def check_image(arguments: argparse.Namespace, needed: bool = True) -> None:
    """Refuse `--image` together with `--without-image`, and neither of the two where one is needed."""
    if arguments.image is not None and arguments.without_image:
        raise ValueError(
            f"--without-image is for slides that have no image, but --image {arguments.image} was given. Give one of the two."
        )
    if needed and arguments.image is None and not arguments.without_image:
        raise ValueError(
            "the following arguments are required: --image, or --without-image to prepare the counts alone, for the gene side."
        )


def one_image(image: str | None, sources: list[str]) -> None:
    if image is not None and len(sources) > 1:
        raise ValueError(f"--image is one image, but {len(sources)} files were given. Prepare them one at a time.")


def add_image_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-scale", type=float, metavar="F", help="pixels of --image per full-resolution pixel (default 1)"
    )


def each(
    reader: Callable[..., Any],
    sources: list[str],
    arguments: argparse.Namespace,
    name: Callable[[str], str],
    **options: Any,
) -> Jobs:
    """Return one job per file; `name` makes slide ids that were not given, so that all are known before any file is read."""
    jobs: Jobs = []
    for index, path in enumerate(sources):
        own = for_reader(reader, arguments, index, len(sources)) | options
        jobs.append(partial(reader, path, **{**own, "slide_id": own.get("slide_id") or name(path)}))
    return jobs


def add_pooling(parser: argparse.ArgumentParser) -> None:
    """Add the option that sums cells into pseudo-spots of a chosen size."""
    parser.add_argument(
        "--grid-um", type=float, metavar="UM", help="sum the cells in squares of this side (default: one row per cell)"
    )


def chosen(given: str | None, known: list[str], option: str, source: str) -> list[str]:
    """Return the comma-separated names that were given, or all known names; refuse unknown ones."""
    names = split_names(given) or known
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise FileNotFoundError(f"{source} has no complete slide {unknown or ''}. Available: {known[:20]} ({option}).")
    return names


def add_grid(parser: Any) -> None:
    """Add options for the grid of patches over a slide without counts."""
    add = parser.add_argument
    add("--mpp", type=float, help="micrometres per pixel (default: what the file states)")
    add("--stride-um", type=float, metavar="UM", help="distance from one patch to the next (default: side of a patch)")
    add("--mask", metavar="FILE", help="tissue mask: an image that is black outside tissue, or GeoJSON of QuPath "
        "(default: tissue is found by its colour)")  # fmt: skip
