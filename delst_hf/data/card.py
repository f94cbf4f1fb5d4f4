"""Write the README of a dataset folder: YAML that names the configs for `load_dataset`, then text for readers."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..markup import Markdown, fenced, fill, lines, row, yaml_header
from .schema import CONFIGS
from .understood import slide_page

# License identifiers of the Hub; any other license is named under "other".
_DATA_LICENSE = re.compile(
    r"unknown|other|mit|apache-2\.0|openrail|(cc-by[a-z-]*|gpl|lgpl|bsd|odbl|pddl|cc0)[a-z0-9.-]*", re.I
)

# The most slides whose pages are on the card.
_PAGES = 20

_TEMPLATE = Path(__file__).with_name("card_template.md")


def dataset_card(
    slides: Sequence[Mapping[str, Any]],
    spots_per_slide: Mapping[str, int],
    labels: Counter[str],
    num_genes: int,
    stored: str,
    license: str,
    fingerprint: str,
    splits: Sequence[str] = (),
    split_text: str = "",
) -> str:
    """Return the text of README.md.

    Args:
        slides: the rows of the `slides` config, without thumbnails; at least one.
        spots_per_slide: by slide id.
        labels: spots per label.
        num_genes: rows of the `genes` config.
        stored: encoding of the patches, in words; "" where no slide has an image.
        license: an identifier of the Hub, or a license in words.
        fingerprint: fingerprint of the content.
        splits: the splits of `spots`; empty without a split.
        split_text: description of the splits, as `Markdown`.
    """
    # `datasets` names its cache after the name of the folder and this YAML, not after its path or content: without the
    # fingerprint, a replaced dataset, or another folder of the same name, would be loaded from the cache.
    header: dict[str, Any] = {
        "license": license,
        "tags": ["spatial-transcriptomics", "histology", "delst"],
        "configs": [
            {
                "config_name": name,
                "default": name == "spots",
                "description": f"content {fingerprint}",
                "data_files": [{"split": split, "path": path} for split, path in _files(name, splits)],
            }
            for name in CONFIGS
            # Slides without counts have no genes, and `datasets` cannot open a table without rows.
            if name != "genes" or num_genes
        ],
    }
    if _DATA_LICENSE.fullmatch(license):
        header["license"] = license.lower()
    else:
        header |= {"license": "other", "license_name": license}
    side = _several(f"{slide['patch_um']:g}" for slide in slides)
    pixels = _several(f"{slide['patch_px']} x {slide['patch_px']}" for slide in slides)
    suffix = "png" if stored == "PNG" else "jpg"
    facts = {
        "num_slides": len(slides),
        "num_spots": sum(spots_per_slide.values()),
        "num_genes": num_genes,
        "patch": f"an image patch of {side} um, stored as {pixels} px ({stored}), " if stored else "",
        "size": f"{side} um = {pixels} px" if stored else "none",
        "split": splits[0] if splits else "train",
        "license": license,
        "examples": Markdown(" ".join(f"![a patch](examples/{number}.{suffix})" for number in (1, 2, 3) if stored)),
        "split_text": split_text,
        "technologies": _several(slide["technology"] for slide in slides),
        "tissues": _several(slide["tissue"] for slide in slides),
        "species": _several(slide["species"] for slide in slides),
        "num_patients": len({slide["patient_id"] for slide in slides}),
        "slide_rows": lines([_slide_row(slide, spots_per_slide[slide["slide_id"]]) for slide in slides]),
        "label_rows": lines([row(label, number) for label, number in labels.most_common()]),
        "pages": _pages(slides, spots_per_slide),
    }
    return f"{yaml_header(header)}\n{fill(_TEMPLATE.read_text(encoding='utf-8'), facts)}"


def _files(name: str, splits: Sequence[str]) -> list[tuple[str, str]]:
    if name != "spots" or not splits:
        return [("train", f"{name}/*.parquet")]
    return [(split, f"{name}/{split}/*.parquet") for split in splits]


def _pages(slides: Sequence[Mapping[str, Any]], spots_per_slide: Mapping[str, int]) -> Markdown:
    """Return the pages of `delst check` for the first slides, as text in a fence."""
    pages = [slide_page(slide, spots_per_slide[slide["slide_id"]]) for slide in slides[:_PAGES]]
    more = (
        f"\n\nFor the other {len(slides) - _PAGES}, run `delst check` on this folder." if len(slides) > _PAGES else ""
    )
    return Markdown(fenced("\n\n".join(pages), "text") + more)


def _several(values: Iterable[str]) -> str:
    """Return the distinct values in order, comma-separated; "unknown" for empty ones."""
    return ", ".join(dict.fromkeys(value or "unknown" for value in values))


def _slide_row(slide: Mapping[str, Any], num_spots: int) -> Markdown:
    known = [slide[name] or "unknown" for name in ("technology", "tissue", "species")]
    scale, source = f"{slide['mpp']:.4f}", slide["label_source"] or "none"
    names = slide["slide_id"], slide["patient_id"], slide["split"]
    return row(*names, num_spots, len(slide["measured_genes"]), *known, scale, source, slide["source"] or "unknown")
