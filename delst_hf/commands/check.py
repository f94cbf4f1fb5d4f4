"""`delst check`: one page per slide of what is understood of it, before anything is written."""

import argparse
import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..atomic.files import check_file_output, write_file
from ..atomic.locks import writing
from ..errors import explain
from . import formats, sheet
from .options import add_command, exported, zipped
from .prepare import add_format, slide_options


def add_check(commands: Any) -> None:
    """Add `delst check`: show how a slide or a dataset folder is understood; nothing is written.

    Print one page per slide: format, image, scale and what states it, spots and genes that are kept and left out, labels,
    tissue under the spots. Give a slide, its folder, a folder of several, a sample sheet, a table of counts or a dataset
    folder; the format is recognised from the files. Every option of delst prepare FORMAT may be given too.

    Examples:
        delst check S1/outs --preview S1.png
        delst check output-XETG --image he.ome.tif --unit cell
        delst check --format table --image he.tif --counts counts.csv --coordinates spots.csv --mpp 0.5
        delst check SHEET.csv
        delst check counts.tsv.gz
        delst check visium-dataset
    """
    usage = "delst check [FOLDER|SLIDE ...] [--format FORMAT] [--preview PNG] [options of delst prepare FORMAT]"
    parser = add_command(commands, "check", add_check, _run_check, usage=usage, allow_abbrev=False)
    parser.add_argument("--format", choices=tuple(formats.FORMATS), metavar="FORMAT",
                        help=f"format of the slides, instead of recognising it: {', '.join(formats.FORMATS)}")  # fmt: skip
    parser.add_argument("--preview", metavar="PNG", help="also write a picture: spots, labels and patches on the slide")
    # Slides and options of formats stay in `rest`, in their order: this parser does not know which options take a value.
    parser.set_defaults(rest=[])


def _run_check(arguments: argparse.Namespace) -> int:
    from ..data.part import PatchOptions
    from ..data.readers.recognise import is_dataset, is_sheet, lone_counts

    given = arguments.rest
    place = _place(given)
    if arguments.preview is not None:
        check_file_output(arguments.preview)
    if arguments.format is None and place is not None and is_dataset(place):
        if arguments.preview is not None:
            raise ValueError(
                f"{place} is a dataset folder, which holds patches and no slide to draw. Give --preview with the slide that it "
                "was made from, or make the dataset with delst prepare --preview."
            )
        return _check_dataset(place)
    named = {one.partition("=")[0] for one in given}
    counts = lone_counts(place) if arguments.format is None and place is not None else None
    if counts is not None and place is not None and not named & {"--spots", "--coordinates"}:
        return _check_counts(counts, place, given, arguments)
    if arguments.format is not None:
        name, options = arguments.format, given
    elif place is not None and is_sheet(place):
        name, options = "sheet", given
    elif counts is not None or (place is None and "--counts" in named):
        name = "st" if "--spots" in named else "table"
        own = [] if counts is None else ["--counts", str(counts)]
        options = [*own, *(one for one in given if Path(one).expanduser() != place)]
    else:
        name, options = _recognised(place, given)
    chosen_format = sheet.SHEET if name == "sheet" else formats.FORMATS[name]
    summary = chosen_format.told.summary
    parser = argparse.ArgumentParser(prog=f"delst check --format {name}", description=summary)
    add_format(parser, chosen_format, writes=False)
    chosen = parser.parse_args(options)
    print(f"format   {name}: {summary}")
    print(f"command  delst prepare {'' if name == 'sheet' else f'{name} '}{shlex.join(options)} --output DIR")
    jobs = chosen_format.jobs(chosen)
    patches = PatchOptions(**slide_options(chosen))
    patches.check()
    refused = sum(not _check_slide(job, patches, arguments, len(jobs) > 1) for job in jobs)
    print(f"\nchecked  {len(jobs)} {'slide' if len(jobs) == 1 else 'slides'}, {refused} refused; nothing was prepared")
    return 1 if refused else 0


def _place(given: list[str]) -> Path | None:
    """Return the first thing that exists and is not the value of an option."""
    words = pairwise(["", *given])
    places = (Path(one).expanduser() for before, one in words if not before.startswith("--"))
    return next((place for place in places if place.exists()), None)


def _recognised(place: Path | None, given: list[str]) -> tuple[str, list[str]]:
    """Return the one format of what lies at a path, and the arguments for `delst prepare`.

    Raises:
        ValueError: If no format or several fit, or if the format needs an option that was not given.
    """
    from ..data.files import visible
    from ..data.readers.recognise import is_of_places, recognise
    from ..data.scratch import is_archive

    if place is None:
        named = [one for one in given if not one.startswith("--")]
        raise ValueError(
            f"nothing to check: {named or 'no file or folder'} is not there. Give a slide, its folder or a dataset folder; or "
            f"give the files by their options, with --format, one of {', '.join(formats.FORMATS)}. A dataset of the Hub is "
            "downloaded first: hf download USER/NAME --repo-type dataset --local-dir DIR."
        )
    candidates = recognise(place)
    if "--prefix" in given[:-1]:  # one sample of a deposit, named by the user
        wanted = given[given.index("--prefix") + 1].rstrip("_.-")
        candidates = [one for one in candidates if wanted in one.arguments] or candidates
    if not candidates and place.is_file() and is_of_places(place):
        raise ValueError(
            f"{place} holds positions of spots alone. Give the counts and the image too: delst check --format table "
            f"--counts FILE --coordinates {shlex.quote(str(place))} --image FILE; for a spot detector's table, delst check "
            f"--format st --counts FILE --spots {shlex.quote(str(place))} --image FILE."
        )
    if not candidates:
        there = [path.name for path in visible(place)]
        packed = exported(place.name) or zipped([str(place), *there])
        if is_archive(place):
            packed = f"Unpack it (tar -xf {shlex.quote(str(place))}), and give what it holds."
        raise ValueError(
            f"the format of {place} is not recognised from its files ({', '.join(there[:10]) or 'one file'}). "
            f"{f'{packed} Or name' if packed else 'Name'} the format with "
            f"--format, one of {', '.join(formats.FORMATS)}; delst prepare FORMAT --help says what each reads."
        )
    if len(candidates) > 1:
        for one in candidates:
            print(f"could be {one.why}: delst check --format {one.format} {shlex.join(one.arguments)}")
        raise ValueError(f"{place} could be {len(candidates)} things. Choose one of the commands above.")
    found = candidates[0]
    told = [one for one in given if Path(one).expanduser() != place]
    blind = found.missing.startswith("--image") and "--without-image" in told
    if found.missing and not blind and found.missing.split()[0] not in told:
        raise ValueError(f"{place} looks like {found.format} ({found.why}), and needs {found.missing}.")
    if found.also:
        print(f"also     {found.also}")
    own = list(found.arguments)
    for option, instead in (("--prefix", "--prefix"), ("--bin-um", "--unit")):  # cells are asked for in place of bins
        if option in own and instead in told:
            del own[own.index(option) : own.index(option) + 2]
    # The user's own options come last, so that they override.
    return found.format, [*own, *told]


def _check_slide(job: Callable[[], Any], options: Any, arguments: argparse.Namespace, several: bool) -> bool:
    """Print the page of a slide and, if it is refused, the reason; return whether it would be written."""
    from ..data.part import check_slide, swapped

    slide = thumbnail = None
    refusal = ""
    try:
        slide = swapped(job(), options)
        slide, thumbnail = check_slide(slide, replace(options, swap_xy=False))
    except Exception as error:
        if arguments.debug:
            raise
        refusal = explain(error)
    print()
    if slide is not None:
        _print_page(slide, thumbnail, options)
        _draw(slide, options.patch_um, arguments.preview, several)
    if refusal:
        print(f"REFUSED  {refusal}")
    return not refusal


def _print_page(slide: Any, thumbnail: Any, options: Any) -> None:
    """Print the page of a slide; for a refused slide, as much of it as is known."""
    from ..data.part import slide_row
    from ..data.understood import measure, slide_page

    try:
        thumbnail = thumbnail or (None if slide.image is None else slide.thumbnail())
        measure(slide, thumbnail)
        print(slide_page(slide_row(slide, thumbnail, options), len(slide.spots)))
    except Exception:  # it is refused already; a page of it is a courtesy
        print(f"slide    {slide.slide_id}: no page can be written for it")


def _draw(slide: Any, patch_um: float, preview: str | None, several: bool) -> None:
    from ..data.preview import draw_preview

    if preview is None:
        return
    path = Path(preview)
    path = path.with_name(f"{path.stem}.{slide.slide_id}{path.suffix}") if several else path
    try:
        picture = draw_preview(slide, patch_um)
    except Exception as error:
        print(f"picture  cannot be drawn: {explain(error)}")
        return
    with writing(path, "picture"), write_file(path) as file:
        picture.save(file, format="PNG")
    print(f"picture  {path}")


def _check_counts(counts: Path, place: Path, given: list[str], arguments: argparse.Namespace) -> int:
    """Print the page of a table of counts without a slide, and what else a slide needs."""
    from ..data.genes import read_aliases
    from ..data.readers.matrices import read_counts
    from ..data.scale import names_positions
    from ..data.understood import counts_page

    parser = argparse.ArgumentParser(
        prog="delst check", description="Check counts without an image and without positions."
    )
    parser.add_argument("counts")
    parser.add_argument("--orientation", choices=("auto", "spots", "genes"), default="auto")
    parser.add_argument("--species", default="")
    parser.add_argument("--aliases")
    chosen = parser.parse_args([str(place), *(one for one in given if Path(one).expanduser() != place)])
    if arguments.preview is not None:
        raise ValueError(f"{place} holds counts and no slide to draw. Leave --preview out.")
    print("format   counts alone; to become a slide they need an image and the positions of the spots")
    try:
        found = read_counts(counts, chosen.orientation)
        page = counts_page(found, chosen.species, read_aliases(chosen.aliases) if chosen.aliases else None)
    except Exception as error:
        if arguments.debug:
            raise
        print(f"\nREFUSED  {explain(error)}")
        return 1
    by_place = names_positions(found.barcodes) is not None
    name, beside = ("st", "--spots FILE") if by_place else ("table", "--coordinates FILE")
    print(f"command  delst prepare {name} --counts {shlex.quote(str(counts))} {beside} --image FILE --output DIR")
    print("         or, to train only the gene side of a model, give --without-image in place of --image FILE")
    print(f"\n{page}\n\nchecked  1 table of counts; nothing was prepared")
    return 0


def _check_dataset(folder: Path) -> int:
    """Print the page of every slide of a dataset folder, with its spots recounted."""
    from ..data.understood import dataset_pages

    pages = dataset_pages(folder)
    print("format   a dataset folder of delst prepare")
    for page in pages:
        print(f"\n{page}")
    print(f"\nchecked  {len(pages)} {'slide' if len(pages) == 1 else 'slides'}")
    return 0
