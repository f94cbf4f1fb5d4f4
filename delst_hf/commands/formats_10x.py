"""The source formats of 10x Genomics: Visium, Visium HD and Xenium, each with its arguments and its jobs."""

import argparse
from functools import partial

from .options import Jobs, add_about, add_image_scale, check_files, each, for_reader, one_image


def _add_space_ranger(parser: argparse.ArgumentParser, default_mpp: str, technology: str) -> None:
    """Add the options that both formats of Space Ranger share."""
    add = parser.add_argument
    add("--image", metavar="PATH", help="full-resolution image of a single OUTS (default: hires.png)")
    add_image_scale(parser)
    add("--mpp", type=float, help=f"micrometres per FULL-RESOLUTION pixel (default: {default_mpp})")
    add_about(parser, technology=technology)


def visium_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", metavar="OUTS", help="folders `outs` of Space Ranger, one slide each; or folders "
        "and .tar files of a public archive")  # fmt: skip
    add("--prefix", metavar="TEXT", help="how the file names of the sample begin, in a folder of several samples")
    _add_space_ranger(parser, "from the spots", "Visium")


def visium_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare visium`: 10x Visium: the folder outs of Space Ranger.

    Examples:
        delst prepare visium S1/outs --image S1_he.tif --tissue breast --output visium-dataset
        delst prepare visium S1/outs S2/outs --patient-id P1,P2 --num-proc 2 --output visium-dataset
    """
    from ..data.readers.visium import outs_name, read_visium

    one_image(arguments.image, arguments.sources)
    check_files(arguments.image, *arguments.sources)
    return each(read_visium, arguments.sources, arguments, partial(outs_name, prefix=arguments.prefix))


def visium_hd_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", metavar="OUTS", help="folders `outs` of Space Ranger, one slide each")
    add(
        "--unit",
        choices=("bin", "cell"),
        default="bin",
        help="a row per bin (default) or per cell of segmented_outputs",
    )
    add("--bin-um", type=int, metavar="UM", help="which square_...um to read with --unit bin (default 8)")
    _add_space_ranger(parser, "as the files state", "Visium HD")


def visium_hd_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare visium-hd`: 10x Visium HD: one bin size of binned_outputs, or the cells of
    segmented_outputs.

    Examples:
        delst prepare visium-hd HD1/outs --bin-um 16 --image HD1_he.btf --output hd-dataset
        delst prepare visium-hd HD1/outs --unit cell --image HD1_he.btf --output cells-dataset
    """
    from ..data.readers.visium import hd_name, read_visium_hd
    from ..data.readers.visium_cells import read_visium_cells

    one_image(arguments.image, arguments.sources)
    check_files(arguments.image, *arguments.sources)
    if arguments.unit == "bin":
        return each(read_visium_hd, arguments.sources, arguments, hd_name)
    if arguments.bin_um is not None:
        raise ValueError("--bin-um applies to --unit bin only. Leave it out, or use --unit bin.")
    return each(read_visium_cells, arguments.sources, arguments, hd_name)


def xenium_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="OUT", help="output folder with transcripts.parquet or cells.parquet")
    add("--image", required=True, metavar="FILE", help="the H&E image")
    add("--alignment", metavar="CSV", help="3 x 3 matrix of Xenium Explorer (default: the images coincide)")
    add("--unit", choices=("grid", "cell"), default="grid", help="a row per square of a grid (default) or per cell")
    add("--grid-um", type=float, metavar="UM", help="side of a square with --unit grid (default 100)")
    add("--min-qv", type=float, metavar="Q", help="lowest quality (QV) of a transcript, with --unit grid (default 20)")
    add("--mpp", type=float, help="micrometres per pixel of the H&E (default: from the alignment)")
    add_about(parser, "technology")


def xenium_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare xenium`: 10x Xenium: transcripts added up on a grid of pseudo-spots, or cells.

    Examples:
        delst prepare xenium output-XETG --image he.ome.tif --alignment alignment.csv --grid-um 55 --output xenium-dataset
        delst prepare xenium output-XETG --image he.ome.tif --alignment alignment.csv --unit cell --output cells-dataset
    """
    from ..data.readers.xenium import MIN_QV, read_xenium
    from ..data.readers.xenium_cells import read_xenium_cells

    check_files(arguments.source, arguments.image, arguments.alignment)
    if arguments.unit == "grid":
        options = for_reader(read_xenium, arguments)
        return [partial(read_xenium, arguments.source, arguments.image, **options)]
    if arguments.grid_um is not None or arguments.min_qv not in (None, MIN_QV):
        raise ValueError(
            f"--unit cell takes the counts of the cell-feature matrix, which holds transcripts of quality {MIN_QV:g} and more "
            "per cell: --grid-um and --min-qv apply to --unit grid only. Leave them out, or use --unit grid."
        )
    options = for_reader(read_xenium_cells, arguments)
    return [partial(read_xenium_cells, arguments.source, arguments.image, **options)]
