"""The source formats of `delst prepare`: the arguments, examples and jobs of each; a job reads one slide."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import formats_10x
from .options import (
    WITHOUT_IMAGE,
    Jobs,
    Told,
    add_about,
    add_grid,
    add_image,
    add_image_scale,
    add_pooling,
    check_files,
    check_image,
    chosen,
    each,
    for_reader,
    one_image,
    split_names,
)


@dataclass(frozen=True)
class Format:
    """One format of `delst prepare`."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    jobs: Callable[[argparse.Namespace], Jobs]
    patch_px: int = 224
    min_tissue: float = 0.0

    @property
    def told(self) -> Told:
        """The help of the format, from the docstring of its jobs."""
        return Told.by(self.jobs)


def _her2st_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="folder that holds data/ST-cnts, data/ST-spotfiles, data/ST-imgs")
    add("--sections", metavar="C2,C3", help="sections, comma-separated (default: all with counts, spots and image)")
    add("--labels", metavar="CSV", help="table with columns section,id,label instead of the pathologist's files")
    add("--mpp", type=float, help="micrometres per pixel (default: from the array's pitch)")
    add("--without-image", action="store_true", help="also read sections without an image: their spots get the split "
        "'unpaired' and train only the gene side of a model")  # fmt: skip


def _her2st_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare her2st`: legacy Spatial Transcriptomics in the layout of almaan/her2st.

    Examples:
        delst prepare her2st her2st --sections C2,C3 --output her2st-dataset
        delst prepare her2st her2st --sections C2 --labels transferred_labels.csv --output c2-dataset
    """
    from ..data.readers.her2st import find_her2st_sections, locate_her2st, read_her2st

    blind = arguments.without_image
    sections = split_names(arguments.sections) or find_her2st_sections(arguments.source, blind)
    if not sections:
        raise FileNotFoundError(
            f"no section with counts, spots and image under {arguments.source}. Name one with --sections."
        )
    for section in sections:
        locate_her2st(arguments.source, section, arguments.labels, blind)
    options = for_reader(read_her2st, arguments)
    return [partial(read_her2st, arguments.source, section=name, **options) for name in sections]


def _st_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--counts", required=True, metavar="FILE", help="table of counts, with the spots 'XxY' as rows or columns")
    add(
        "--spots",
        required=True,
        metavar="FILE",
        help="alignment table with columns x, y, pixel_x, pixel_y; or the nine numbers of a 3 x 3 matrix",
    )
    add_image(parser, "image of the section")
    add("--labels", metavar="FILE", help="table with the columns label and id ('XxY'), or label, x and y")
    add("--mpp", type=float, help="micrometres per pixel (default: from the array's pitch)")
    add_about(parser, "technology")


def _st_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare st`: legacy Spatial Transcriptomics in the style of STUtility: counts, alignment
    table, image.

    Examples:
        delst prepare st --counts MOB1.tsv --spots MOB1_spots.tsv --image MOB1.jpg --output mob-dataset
    """
    from ..data.readers.legacy_st import read_legacy_st

    check_image(arguments)
    check_files(arguments.counts, arguments.spots, arguments.image, arguments.labels)
    options = for_reader(read_legacy_st, arguments)
    return [partial(read_legacy_st, arguments.counts, arguments.spots, arguments.image, **options)]


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    add_image(parser, "image of the slide")
    add = parser.add_argument
    add("--counts", required=True, metavar="FILE", help="csv, tsv (.gz), parquet, 10x h5, h5ad, mtx")
    add("--coordinates", required=True, metavar="FILE", help="csv, tsv (.gz) or parquet, one row per spot")
    for name, default in (("barcode", "barcode"), ("x", "x"), ("y", "y"), ("label", None)):
        told = f"default {default}" if default else "default: no labels"
        add(f"--{name}-column", default=default, metavar="NAME", help=f"column of the coordinates ({told})")
    add("--slide-column", metavar="NAME", help="column of the coordinates that names the sample of a spot")
    add("--slide-value", metavar="ID", help="with --slide-column: which sample to read")
    add("--scale", type=float, default=1.0, help="pixels of the image per unit of the coordinates (default 1)")
    add("--transform", metavar="CSV", help="instead of --scale: a 3 x 3 matrix from coordinates to pixels of "
        "the image; several, comma-separated, are applied in their order")  # fmt: skip
    add("--area-column", metavar="NAME", help="column with the area of each cell in um2")
    add_pooling(parser)
    add("--orientation", choices=("auto", "spots", "genes"), default="auto", help="what the rows of the counts are")
    add("--layer", help="layer of an h5ad with raw counts")
    add("--mpp", type=float, help="micrometres per pixel of the image (default: what a TIFF states)")
    add("--spot-um", type=float, metavar="UM", help="diameter of a spot")
    add_about(parser)


def _table_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare table`: any image with counts and a table of coordinates.

    Examples:
        delst prepare table --image he.tif --counts counts.csv.gz --coordinates spots.csv --mpp 0.5 --output my-dataset
    """
    from ..data.readers.generic import read_generic

    check_image(arguments)
    check_files(arguments.image, arguments.counts, arguments.coordinates)
    options = for_reader(read_generic, arguments)
    return [partial(read_generic, arguments.image, arguments.counts, arguments.coordinates, **options)]


def _anndata_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help=".h5ad files or .zarr folders")
    add("--slide-key", metavar="COLUMN", help="column of obs that names the slide, if a file holds several")
    add("--slide-value", metavar="ID,ID", help="with --slide-key: slides to read (default: all)")
    add("--library-id", metavar="ID", help="entry of uns['spatial'], if a file has several")
    add("--image", metavar="PATH", help="full-resolution image of a single FILE (default: the hires image in it)")
    add("--without-image", action="store_true", help=WITHOUT_IMAGE)
    add_image_scale(parser)
    add("--mpp", type=float, help="micrometres per FULL-RESOLUTION pixel (default: from the spots)")
    add("--spot-um", type=float, metavar="UM", help="spot_diameter_fullres in um (default: as on the array)")
    add("--layer", help="layer with raw counts, 'raw' for adata.raw (default: X)")
    add("--label-key", default="label", metavar="COLUMN", help="column of obs with labels, '' for none (default label)")
    add_about(parser, technology="", technology_default="that of the array")


def _anndata_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare anndata`: AnnData .h5ad or .zarr in the Visium convention of scanpy and squidpy.

    Examples:
        delst prepare anndata V1_breast.h5ad --species human --output visium-dataset
        delst prepare anndata cohort.h5ad --slide-key sample --output cohort-dataset
        delst prepare anndata A1.h5ad --technology 'Spatial Transcriptomics' --output a1-dataset
    """
    from ..data.readers.anndata_visium import anndata_slide_id, find_anndata_slides, read_anndata
    from ..data.slide import make_slide_id

    check_files(*arguments.files, arguments.image)
    one_image(arguments.image, arguments.files)
    check_image(arguments, needed=False)
    if arguments.slide_key is None:
        if arguments.slide_value:
            raise ValueError("--slide-value needs --slide-key: the column of obs that holds these values.")
        name = partial(anndata_slide_id, library_id=arguments.library_id)
        return each(read_anndata, arguments.files, arguments, name, spot_diameter_um=arguments.spot_um)
    pairs = [(path, value) for path in arguments.files for value in find_anndata_slides(path, arguments.slide_key)]
    if arguments.slide_value:
        wanted = split_names(arguments.slide_value)
        missing = sorted(set(wanted) - {value for _, value in pairs})
        if missing:
            known = list(dict.fromkeys(value for _, value in pairs))
            raise ValueError(f"no slide {missing} in obs[{arguments.slide_key!r}]. There are {known} (--slide-value).")
        pairs = [(path, value) for path, value in pairs if value in wanted]
    jobs: Jobs = []
    for index, (path, value) in enumerate(pairs):
        own = {"slide_id": make_slide_id(value)} | for_reader(read_anndata, arguments, index, len(pairs))
        own |= {"slide_value": value, "spot_diameter_um": arguments.spot_um}
        jobs.append(partial(read_anndata, path, **own))
    return jobs


def _spatialdata_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="ZARR", help=".zarr folder")
    for name, text in (("table", "table"), ("region", "shapes that are the spots"), ("image", "image")):
        add(f"--{name}", metavar="NAME", help=f"name of the {text}, where there are several")
    add("--coordinate-system", metavar="NAME", help="coordinate system that shapes and image share, where several "
        "differ")  # fmt: skip
    add("--mpp", type=float, help="micrometres per pixel of the image (default: from the spots)")
    add("--spot-um", type=float, metavar="UM", help="diameter of the circles, where they are on no known array")
    add("--layer", help="layer of the table with raw counts (default: X)")
    add("--label-key", metavar="COLUMN", help="column of obs with labels")
    add_pooling(parser)
    add_about(parser)


def _spatialdata_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare spatialdata`: SpatialData .zarr (needs the extra delst-hf[spatialdata]).

    Examples:
        delst prepare spatialdata visium.zarr --image S_full_image --output visium-dataset
    """
    from ..data.readers.spatialdata_zarr import read_spatialdata

    check_files(arguments.source)
    return [partial(read_spatialdata, arguments.source, **for_reader(read_spatialdata, arguments))]


def _hest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="ROOT", help="folder with st/, wsis/ or patches/, metadata/ or HEST_v*.csv")
    parser.add_argument("--samples", metavar="ID,ID", help="samples (default: all with an image or patches)")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel (default: pixel_size_um_estimated)")


def _hest_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare hest`: HEST-1k as downloaded from the Hub.

    Examples:
        delst prepare hest hest_data --samples TENX95,NCBI785 --num-proc 2 --output hest-dataset
    """
    from ..data.readers.hest import find_hest_samples, read_hest

    samples = chosen(arguments.samples, find_hest_samples(arguments.source), "--samples", arguments.source)
    options = for_reader(read_hest, arguments)
    return [partial(read_hest, arguments.source, sample=name, **options) for name in samples]


def _stimage_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="ROOT", help="folder with ST/, Visium/, VisiumHD/, annotation/, meta/")
    add("--slides", metavar="ID,ID", help="slides (default: all with coordinates, counts and image)")
    add("--mpp", type=float, help="micrometres per pixel (default: from the lattice of the spots)")
    add("--spot-um", type=float, metavar="UM", help="diameter of a spot (default 100, 55, 8 by folder)")


def _stimage_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare stimage`: STimage-1K4M as downloaded from the Hub.

    Examples:
        delst prepare stimage STimage-1K4M --slides Human_Breast_Andersson_10142021_ST_A1 --output stimage-dataset
    """
    from ..data.readers.stimage import find_stimage_slides, read_stimage

    slides = chosen(arguments.slides, find_stimage_slides(arguments.source), "--slides", arguments.source)
    options = for_reader(read_stimage, arguments)
    return [partial(read_stimage, arguments.source, slide=name, **options) for name in slides]


def _image_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SLIDE", help="images: JPEG, PNG, TIFF or a scanner's format")
    add_grid(parser)
    add_about(parser, "technology")


def _image_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare image`: slides without counts: a grid of patches over the tissue.

    Examples:
        delst prepare image slide.svs --output slide-dataset
        delst prepare image he.jpg --mpp 0.5 --stride-um 56 --mask tissue.geojson --output he-dataset
    """
    from ..data.readers.image import read_slide_image
    from ..data.slide import make_slide_id

    check_files(arguments.mask, *arguments.sources)
    if arguments.mask is not None and len(arguments.sources) > 1:
        raise ValueError(
            f"--mask belongs to one slide, but {len(arguments.sources)} were given. Prepare them one at a time."
        )
    jobs = each(
        read_slide_image, arguments.sources, arguments, lambda path: make_slide_id(Path(path).name.split(".")[0])
    )
    # It was applied to the grid, with holes filled; patches are not filtered again by their own pixels.
    arguments.min_tissue = 0.0
    return jobs


def _toy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slides", type=int, default=5, metavar="N", help="number of slides (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal slides (default 0)")


def _toy_jobs(arguments: argparse.Namespace) -> Jobs:
    """Return the jobs of `delst prepare toy`: small synthetic slides, where more tissue structure means more expressed genes.

    Examples:
        delst prepare toy --output toy-dataset
    """
    from ..data import toy

    return [partial(toy.make_toy_slide, name, seed=arguments.seed) for name in toy.toy_slide_names(arguments.slides)]


FORMATS = {
    "visium": Format(formats_10x.visium_arguments, formats_10x.visium_jobs),
    "visium-hd": Format(formats_10x.visium_hd_arguments, formats_10x.visium_hd_jobs),
    "her2st": Format(_her2st_arguments, _her2st_jobs),
    "st": Format(_st_arguments, _st_jobs),
    "table": Format(_table_arguments, _table_jobs),
    "anndata": Format(_anndata_arguments, _anndata_jobs),
    "spatialdata": Format(_spatialdata_arguments, _spatialdata_jobs),
    "hest": Format(_hest_arguments, _hest_jobs),
    "stimage": Format(_stimage_arguments, _stimage_jobs),
    "xenium": Format(formats_10x.xenium_arguments, formats_10x.xenium_jobs),
    "image": Format(_image_arguments, _image_jobs, min_tissue=0.25),
    "toy": Format(_toy_arguments, _toy_jobs, patch_px=64),
}
