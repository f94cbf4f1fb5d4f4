"""The source formats of `delst prepare`: for each its arguments, examples, and the jobs that read its slides."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Jobs = list[Callable[[], Any]]


@dataclass(frozen=True)
class Format:
    """One format of `delst prepare`."""

    summary: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    jobs: Callable[[argparse.Namespace], Jobs]
    patch_px: int = 224
    min_tissue: float = 0.0


def split_names(names: str | None) -> list[str]:
    """Return the comma-separated names."""
    return [name.strip() for name in names.split(",") if name.strip()] if names else []


def _add_about(parser: argparse.ArgumentParser, *skip: str, technology: str = "", technology_default: str = "") -> None:
    """Return what a format cannot know by itself."""
    for name, text in (
        ("slide-id", "name of the slide; by comma for several (default: from the source)"),
        ("patient-id", "patient, by comma for several or one for all (default: the slide id)"),
        ("tissue", "for the slides table, e.g. breast"),
        ("species", "human, mouse, ... (default: from the Ensembl ids)"),
        ("technology", f"for the slides table (default {technology_default or technology or 'none'})"),
    ):
        if name not in skip:
            parser.add_argument(f"--{name}", default=technology if name == "technology" else None, help=text)


def _about(arguments: argparse.Namespace, index: int, count: int) -> dict[str, Any]:
    """Return the options of `_add_about` for one of several slides."""
    about: dict[str, Any] = {}
    for name in ("slide_id", "patient_id"):
        values = split_names(getattr(arguments, name, None))
        if values and len(values) != count and not (name == "patient_id" and len(values) == 1):
            what = {"slide_id": "slides", "patient_id": "patients"}[name]
            raise ValueError(
                f"--{name.replace('_', '-')} names {len(values)} {what} for {count} files. Give one per file, by comma."
            )
        about[name] = (values[index] if len(values) == count else values[0]) if values else None
    for name in ("tissue", "species", "technology"):
        if hasattr(arguments, name):
            about[name] = getattr(arguments, name) or ""
    return about


def _check_files(*names: str | None) -> None:
    for name in names:
        if name is not None and not Path(name).exists():
            raise FileNotFoundError(f"no file at {name}. Give the path of an existing file.")


def _one_image(image: str | None, sources: list[str]) -> None:
    if image is not None and len(sources) > 1:
        raise ValueError(f"--image is one image, but {len(sources)} files were given. Prepare them one at a time.")


def _add_space_ranger(parser: argparse.ArgumentParser, default_mpp: str, technology: str) -> None:
    """Return what the two formats of Space Ranger share."""
    parser.add_argument(
        "--image", metavar="PATH", help="full-resolution image, with a single OUTS (default: hires.png)"
    )
    _add_image_scale(parser)
    parser.add_argument("--mpp", type=float, help=f"micrometres per FULL-RESOLUTION pixel (default: {default_mpp})")
    _add_about(parser, technology=technology)


def _add_image_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-scale", type=float, metavar="F", help="pixels of --image per full-resolution pixel (default 1)"
    )


def _each(
    reader: Callable[..., Any],
    sources: list[str],
    arguments: argparse.Namespace,
    name: Callable[[str], str],
    **options: Any,
) -> Jobs:
    """One slide per file; where its name is not given, `name` makes one, so that all are known before any is read."""
    about = [_about(arguments, i, len(sources)) for i in range(len(sources))]
    return [
        partial(reader, path, **options, **{**one, "slide_id": one["slide_id"] or name(path)})
        for path, one in zip(sources, about, strict=True)
    ]


def _visium_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="OUTS", help="folders `outs` of Space Ranger, one slide each; or folders "
                        "and .tar of a public archive")  # fmt: skip
    parser.add_argument(
        "--prefix", metavar="TEXT", help="beginning of the file names of the sample, in a folder of several"
    )
    _add_space_ranger(parser, "from the spots", "Visium")


def _visium_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.visium import outs_name, read_visium

    _one_image(arguments.image, arguments.sources)
    _check_files(arguments.image, *arguments.sources)
    options = {
        "image": arguments.image, "image_scale": arguments.image_scale, "mpp": arguments.mpp, "prefix": arguments.prefix,
    }  # fmt: skip
    return _each(read_visium, arguments.sources, arguments, partial(outs_name, prefix=arguments.prefix), **options)


def _visium_hd_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="OUTS", help="folders `outs` of Space Ranger, one slide each")
    parser.add_argument(
        "--unit",
        choices=("bin", "cell"),
        default="bin",
        help="a row per bin (default) or per cell of segmented_outputs",
    )
    parser.add_argument(
        "--bin-um", type=int, metavar="UM", help="which square_...um to read with --unit bin (default 8)"
    )
    _add_space_ranger(parser, "as stated", "Visium HD")


def _visium_hd_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.visium import hd_name, read_visium_hd
    from ..data.readers.visium_cells import read_visium_cells

    _one_image(arguments.image, arguments.sources)
    _check_files(arguments.image, *arguments.sources)
    options = {"image": arguments.image, "image_scale": arguments.image_scale, "mpp": arguments.mpp}
    if arguments.unit == "bin":
        bin_um = 8 if arguments.bin_um is None else arguments.bin_um
        return _each(read_visium_hd, arguments.sources, arguments, hd_name, bin_um=bin_um, **options)
    if arguments.bin_um is not None:
        raise ValueError("--bin-um is of --unit bin. Leave it out, or take --unit bin.")
    return _each(read_visium_cells, arguments.sources, arguments, hd_name, **options)


def _her2st_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder that holds data/ST-cnts, data/ST-spotfiles, data/ST-imgs")
    parser.add_argument("--sections", metavar="C2,C3", help="by comma (default: all with counts, spots and image)")
    parser.add_argument("--labels", metavar="CSV", help="columns section,id,label instead of the pathologist's files")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel (default: from the array's pitch)")


def _her2st_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.her2st import find_her2st_sections, locate_her2st, read_her2st

    sections = split_names(arguments.sections) or find_her2st_sections(arguments.source)
    if not sections:
        raise FileNotFoundError(
            f"no section with counts, spots and image under {arguments.source}. Name one with --sections."
        )
    for section in sections:
        locate_her2st(arguments.source, section, arguments.labels)
    return [
        partial(read_her2st, arguments.source, section=name, mpp=arguments.mpp, labels=arguments.labels)
        for name in sections
    ]


def _st_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--counts", required=True, metavar="FILE", help="counts, spots 'XxY' as rows or columns")
    parser.add_argument(
        "--spots",
        required=True,
        metavar="FILE",
        help="alignment table: x, y, pixel_x, pixel_y; or nine numbers, a 3 x 3 matrix",
    )
    parser.add_argument("--image", required=True, metavar="FILE", help="image of the section")
    parser.add_argument("--labels", metavar="FILE", help="columns id ('XxY') or x and y, and label")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel (default: from the array's pitch)")
    _add_about(parser, "technology")


def _st_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.legacy_st import read_legacy_st

    _check_files(arguments.counts, arguments.spots, arguments.image, arguments.labels)
    options = {"labels": arguments.labels, "mpp": arguments.mpp, **_about(arguments, 0, 1)}
    return [partial(read_legacy_st, arguments.counts, arguments.spots, arguments.image, **options)]


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, metavar="FILE", help="image of the slide")
    parser.add_argument("--counts", required=True, metavar="FILE", help="csv, tsv (.gz), parquet, 10x h5, h5ad, mtx")
    parser.add_argument(
        "--coordinates", required=True, metavar="FILE", help="csv, tsv (.gz) or parquet, one row a spot"
    )
    for name, default in (("barcode", "barcode"), ("x", "x"), ("y", "y"), ("label", None)):
        told = f"default {default}" if default else "default: no labels"
        parser.add_argument(
            f"--{name}-column", default=default, metavar="NAME", help=f"column of the coordinates ({told})"
        )
    parser.add_argument(
        "--slide-column", metavar="NAME", help="column of the coordinates that names the sample of a spot"
    )
    parser.add_argument("--slide-value", metavar="ID", help="with --slide-column: which sample to read")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="pixels of the image per unit of the coordinates (default 1)"
    )
    parser.add_argument("--transform", metavar="CSV", help="instead of --scale: a 3 x 3 matrix from coordinates to pixels of "
                        "the image; several by comma, in their order")  # fmt: skip
    parser.add_argument("--area-column", metavar="NAME", help="column with the area of each cell in um2")
    add_pooling(parser)
    parser.add_argument(
        "--orientation", choices=("auto", "spots", "genes"), default="auto", help="the rows of the counts"
    )
    parser.add_argument("--layer", help="layer of an h5ad with raw counts")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel of the image (default: what a TIFF states)")
    parser.add_argument("--spot-um", type=float, metavar="UM", help="diameter of a spot")
    _add_about(parser)


def _table_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.generic import read_generic

    _check_files(arguments.image, arguments.counts, arguments.coordinates)
    names = (
        "barcode_column",
        "x_column",
        "y_column",
        "label_column",
        "area_column",
        "transform",
        "grid_um",
        "slide_column",
        "slide_value",
        "scale",
        "orientation",
        "layer",
        "mpp",
        "spot_um",
    )
    options = {name: getattr(arguments, name) for name in names} | _about(arguments, 0, 1)
    return [partial(read_generic, arguments.image, arguments.counts, arguments.coordinates, **options)]


def _anndata_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=".h5ad files or .zarr folders")
    parser.add_argument(
        "--slide-key", metavar="COLUMN", help="column of obs that names the slide, if a file holds several"
    )
    parser.add_argument("--slide-value", metavar="ID,ID", help="with --slide-key: only these (default: all)")
    parser.add_argument("--library-id", metavar="ID", help="entry of uns['spatial'], if a file has several")
    parser.add_argument("--image", metavar="PATH", help="full-resolution image of a single FILE (default: hires in it)")
    _add_image_scale(parser)
    parser.add_argument("--mpp", type=float, help="micrometres per FULL-RESOLUTION pixel (default: from the spots)")
    parser.add_argument(
        "--spot-um", type=float, metavar="UM", help="diameter that spot_diameter_fullres means (default: of the array)"
    )
    parser.add_argument("--layer", help="layer with raw counts, 'raw' for adata.raw (default: X)")
    parser.add_argument(
        "--label-key", default="label", metavar="COLUMN", help="column of obs with labels (default label)"
    )
    _add_about(parser, technology="", technology_default="that of the array")


def _anndata_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.anndata_visium import anndata_slide_id, find_anndata_slides, read_anndata
    from ..data.slide import make_slide_id

    _check_files(*arguments.files, arguments.image)
    _one_image(arguments.image, arguments.files)
    options = {
        "library_id": arguments.library_id, "mpp": arguments.mpp, "spot_diameter_um": arguments.spot_um,
        "image": arguments.image, "image_scale": arguments.image_scale, "layer": arguments.layer,
        "label_key": arguments.label_key,
    }  # fmt: skip
    if arguments.slide_key is None:
        if arguments.slide_value:
            raise ValueError("--slide-value needs --slide-key, the column of obs that it is a value of.")
        name = partial(anndata_slide_id, library_id=arguments.library_id)
        return _each(read_anndata, arguments.files, arguments, name, **options)
    pairs = [(path, value) for path in arguments.files for value in find_anndata_slides(path, arguments.slide_key)]
    if arguments.slide_value:
        wanted = split_names(arguments.slide_value)
        missing = sorted(set(wanted) - {value for _, value in pairs})
        if missing:
            known = list(dict.fromkeys(value for _, value in pairs))
            raise ValueError(f"no slide {missing} in obs[{arguments.slide_key!r}]. There are {known} (--slide-value).")
        pairs = [(path, value) for path, value in pairs if value in wanted]
    about = [_about(arguments, i, len(pairs)) for i in range(len(pairs))]
    return [
        partial(read_anndata, path, slide_key=arguments.slide_key, slide_value=value, **options,
                **{**one, "slide_id": one["slide_id"] or make_slide_id(value)})
        for (path, value), one in zip(pairs, about, strict=True)
    ]  # fmt: skip


def add_pooling(parser: argparse.ArgumentParser) -> None:
    """How rows are made pseudo-spots of a chosen size."""
    parser.add_argument(
        "--grid-um", type=float, metavar="UM", help="add cells up on squares of this side (default: a row per cell)"
    )


def _spatialdata_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="ZARR", help=".zarr folder")
    for name, text in (("table", "table"), ("region", "shapes that are the spots"), ("image", "image")):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"{text}, where there are several")
    parser.add_argument("--coordinate-system", metavar="NAME", help="shared by both (default: the one there is)")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel of the image (default: from the spots)")
    parser.add_argument(
        "--spot-um", type=float, metavar="UM", help="diameter of the circles, where they are on no known array"
    )
    parser.add_argument("--layer", help="layer of the table with raw counts (default: X)")
    parser.add_argument("--label-key", metavar="COLUMN", help="column of obs with labels")
    add_pooling(parser)
    _add_about(parser)


def _spatialdata_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.spatialdata_zarr import read_spatialdata

    _check_files(arguments.source)
    names = ("table", "region", "image", "coordinate_system", "mpp", "spot_um", "layer", "label_key", "grid_um")
    options = {name: getattr(arguments, name) for name in names} | _about(arguments, 0, 1)
    return [partial(read_spatialdata, arguments.source, **options)]


def _hest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="ROOT", help="folder with st/, wsis/ or patches/, metadata/ or HEST_v*.csv")
    parser.add_argument("--samples", metavar="ID,ID", help="by comma (default: all with an image or patches)")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel (default: pixel_size_um_estimated)")


def _hest_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.hest import find_hest_samples, read_hest

    known = find_hest_samples(arguments.source)
    samples = split_names(arguments.samples) or known
    _check_named(samples, known, "--samples", arguments.source)
    return [partial(read_hest, arguments.source, sample=name, mpp=arguments.mpp) for name in samples]


def _stimage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="ROOT", help="folder with ST/, Visium/, VisiumHD/, annotation/, meta/")
    parser.add_argument("--slides", metavar="ID,ID", help="by comma (default: all with coordinates, counts and image)")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel (default: from the lattice of the spots)")
    parser.add_argument("--spot-um", type=float, metavar="UM", help="diameter of a spot (default 100, 55, 8 by folder)")


def _stimage_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.stimage import find_stimage_slides, read_stimage

    known = find_stimage_slides(arguments.source)
    slides = split_names(arguments.slides) or known
    options = {"mpp": arguments.mpp, "spot_um": arguments.spot_um}
    _check_named(slides, known, "--slides", arguments.source)
    return [partial(read_stimage, arguments.source, slide=name, **options) for name in slides]


def _check_named(names: list[str], known: list[str], option: str, source: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise FileNotFoundError(f"{source} has no complete slide {unknown or ''}. Available: {known[:20]} ({option}).")


def _xenium_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="OUT", help="output folder with transcripts.parquet or cells.parquet")
    parser.add_argument("--image", required=True, metavar="FILE", help="the H&E image")
    parser.add_argument("--alignment", metavar="CSV", help="3 x 3 matrix of Xenium Explorer (default: images coincide)")
    parser.add_argument(
        "--unit", choices=("grid", "cell"), default="grid", help="a row per square of a grid (default) or per cell"
    )
    parser.add_argument("--grid-um", type=float, metavar="UM", help="side of a square with --unit grid (default 100)")
    parser.add_argument(
        "--min-qv", type=float, metavar="Q", help="least quality of a transcript with --unit grid (default 20)"
    )
    parser.add_argument("--mpp", type=float, help="micrometres per pixel of the H&E (default: from the alignment)")
    _add_about(parser, "technology")


def _xenium_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.xenium import MIN_QV, read_xenium
    from ..data.readers.xenium_cells import read_xenium_cells

    _check_files(arguments.source, arguments.image, arguments.alignment)
    options = {"alignment": arguments.alignment, "mpp": arguments.mpp} | _about(arguments, 0, 1)
    if arguments.unit == "grid":
        options |= {
            "grid_um": 100.0 if arguments.grid_um is None else arguments.grid_um,
            "min_qv": MIN_QV if arguments.min_qv is None else arguments.min_qv,
        }
        return [partial(read_xenium, arguments.source, arguments.image, **options)]
    if arguments.grid_um is not None or arguments.min_qv not in (None, MIN_QV):
        raise ValueError(
            f"--unit cell takes the counts of the cell-feature matrix, which holds transcripts of quality {MIN_QV:g} and more "
            "per cell: --grid-um and --min-qv are of --unit grid. Leave them out, or take --unit grid."
        )
    return [partial(read_xenium_cells, arguments.source, arguments.image, **options)]


def _image_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SLIDE", help="images: JPEG, PNG, TIFF or a scanner's format")
    add_grid(parser)
    _add_about(parser, "technology")


def add_grid(parser: Any) -> None:
    """How a grid of patches is laid over a slide without counts."""
    parser.add_argument("--mpp", type=float, help="micrometres per pixel (default: what the file states)")
    parser.add_argument("--stride-um", type=float, metavar="UM", help="from one patch to the next (default: its side)")
    parser.add_argument("--mask", metavar="FILE", help="where tissue is: an image, tissue not black, or GeoJSON of QuPath "
                        "(default: found by its colour)")  # fmt: skip


def _image_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data.readers.image import read_slide_image
    from ..data.slide import make_slide_id

    _check_files(arguments.mask, *arguments.sources)
    if arguments.mask is not None and len(arguments.sources) > 1:
        raise ValueError(
            f"--mask is of one slide, but {len(arguments.sources)} were given. Prepare them one at a time."
        )
    options = {name: getattr(arguments, name) for name in ("mpp", "patch_um", "stride_um", "min_tissue", "mask")}
    arguments.min_tissue = (
        0.0  # applied to the grid, where holes are filled; pixels of single patches are not asked again
    )
    return _each(
        read_slide_image,
        arguments.sources,
        arguments,
        lambda path: make_slide_id(Path(path).name.split(".")[0]),
        **options,
    )


def _toy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slides", type=int, default=5, metavar="N", help="number of slides (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal slides (default 0)")


def _toy_jobs(arguments: argparse.Namespace) -> Jobs:
    from ..data import toy

    return [partial(toy.make_toy_slide, name, seed=arguments.seed) for name in toy.toy_slide_names(arguments.slides)]


FORMATS = {
    "visium": Format(
        "10x Visium: the folder outs of Space Ranger",
        ("delst prepare visium S1/outs --image S1_he.tif --tissue breast --output visium-dataset",
         "delst prepare visium S1/outs S2/outs --patient-id P1,P2 --num-proc 2 --output visium-dataset"),
        _visium_arguments, _visium_jobs,
    ),
    "visium-hd": Format(
        "10x Visium HD: one bin size of binned_outputs, or the cells of segmented_outputs",
        ("delst prepare visium-hd HD1/outs --bin-um 16 --image HD1_he.btf --output hd-dataset",
         "delst prepare visium-hd HD1/outs --unit cell --image HD1_he.btf --output cells-dataset"),
        _visium_hd_arguments, _visium_hd_jobs,
    ),
    "her2st": Format(
        "legacy Spatial Transcriptomics in the layout of almaan/her2st",
        ("delst prepare her2st her2st --sections C2,C3 --output her2st-dataset",
         "delst prepare her2st her2st --sections C2 --labels transferred_labels.csv --output c2-dataset"),
        _her2st_arguments, _her2st_jobs,
    ),
    "st": Format(
        "legacy Spatial Transcriptomics in the style of STUtility: counts, alignment table, image",
        ("delst prepare st --counts MOB1.tsv --spots MOB1_spots.tsv --image MOB1.jpg --output mob-dataset",),
        _st_arguments, _st_jobs,
    ),
    "table": Format(
        "any image with counts and a table of coordinates",
        ("delst prepare table --image he.tif --counts counts.csv.gz --coordinates spots.csv --mpp 0.5 --output my-dataset",),
        _table_arguments, _table_jobs,
    ),
    "anndata": Format(
        "AnnData .h5ad or .zarr in the Visium convention of scanpy and squidpy",
        ("delst prepare anndata V1_breast.h5ad --species human --output visium-dataset",
         "delst prepare anndata cohort.h5ad --slide-key sample --output cohort-dataset",
         "delst prepare anndata A1.h5ad --technology 'Spatial Transcriptomics' --output a1-dataset"),
        _anndata_arguments, _anndata_jobs,
    ),
    "spatialdata": Format(
        "SpatialData .zarr (needs the extra delst-hf[spatialdata])",
        ("delst prepare spatialdata visium.zarr --image S_full_image --output visium-dataset",),
        _spatialdata_arguments, _spatialdata_jobs,
    ),
    "hest": Format(
        "HEST-1k as downloaded from the Hub",
        ("delst prepare hest hest_data --samples TENX95,NCBI785 --num-proc 2 --output hest-dataset",),
        _hest_arguments, _hest_jobs,
    ),
    "stimage": Format(
        "STimage-1K4M as downloaded from the Hub",
        ("delst prepare stimage STimage-1K4M --slides Human_Breast_Andersson_10142021_ST_A1 --output stimage-dataset",),
        _stimage_arguments, _stimage_jobs,
    ),
    "xenium": Format(
        "10x Xenium: transcripts added up on a grid of pseudo-spots, or cells",
        ("delst prepare xenium output-XETG --image he.ome.tif --alignment alignment.csv --grid-um 55 --output xenium-dataset",
         "delst prepare xenium output-XETG --image he.ome.tif --alignment alignment.csv --unit cell --output cells-dataset"),
        _xenium_arguments, _xenium_jobs,
    ),
    "image": Format(
        "slides without counts: a grid of patches over the tissue",
        ("delst prepare image slide.svs --output slide-dataset",
         "delst prepare image he.jpg --mpp 0.5 --stride-um 56 --mask tissue.geojson --output he-dataset"),
        _image_arguments, _image_jobs, min_tissue=0.25,
    ),
    "toy": Format(
        "small synthetic slides: more tissue structure, more expressed genes",
        ("delst prepare toy --output toy-dataset",), _toy_arguments, _toy_jobs, patch_px=64,
    ),
}  # fmt: skip
