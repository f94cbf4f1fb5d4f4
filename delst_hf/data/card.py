"""The README of a dataset folder: YAML that names the configs for `load_dataset`, then what a reader needs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .schema import CONFIGS

_TEXT = """
# Spatial transcriptomics: {num_slides} slides, {num_spots} spots, {num_genes} genes

One row per spot: an image patch of {patch_um:g} um, stored as {patch_px} x {patch_px} px ({stored}), with the raw
counts of the expressed genes. Written by `delst prepare`. Licence of the data: {licence}.

```python
from datasets import load_dataset

path = "PATH OF THIS FOLDER"
spots = load_dataset(path)["train"]             # image, gene_indices, gene_counts, slide_id, x, y, label, ...
genes = load_dataset(path, "genes")["train"]    # row i is the gene that gene_indices calls i
slides = load_dataset(path, "slides")["train"]  # mpp, measured_genes, thumbnail, ...
```

The one split, `train`, holds all slides: split by `slide_id` or `patient_id`, never by spot. A gene outside a slide's
`measured_genes` is missing there, not zero.

| slide | patient | spots | genes measured | technology | tissue | species | um per px | labels from |
|---|---|---|---|---|---|---|---|---|
{slide_rows}

| label | spots |
|---|---|
{label_rows}
"""


def dataset_card(
    slides: Sequence[Mapping[str, Any]],
    spots_per_slide: Mapping[str, int],
    labels: Counter[str],
    num_genes: int,
    stored: str,
    licence: str,
    fingerprint: str,
) -> str:
    """Returns the text of README.md.

    Args:
        slides: the rows of the `slides` config, without thumbnails; at least one.
        spots_per_slide: by slide id.
        labels: spots per label.
        num_genes: rows of the `genes` config.
        stored: how patches are encoded, in words.
        licence: an identifier of the Hub.
        fingerprint: of the content.
    """
    # `datasets` names its cache after the folder's last part and this YAML, not after its path or content: without the
    # fingerprint, a dataset that was replaced, or another folder of the same name, would be answered from the cache.
    header = {
        "license": licence,
        "tags": ["spatial-transcriptomics", "histology", "delst"],
        "configs": [
            {
                "config_name": name,
                "default": name == "spots",
                "description": f"content {fingerprint}",
                "data_files": [{"split": "train", "path": f"{name}/*.parquet"}],
            }
            for name in CONFIGS
        ],
    }
    text = _TEXT.format(
        num_slides=len(slides),
        num_spots=sum(spots_per_slide.values()),
        num_genes=num_genes,
        patch_um=slides[0]["patch_um"],
        patch_px=slides[0]["patch_px"],
        stored=stored,
        licence=licence,
        slide_rows="\n".join(_slide_row(slide, spots_per_slide[slide["slide_id"]]) for slide in slides),
        label_rows="\n".join(_row(label, number) for label, number in labels.most_common()),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{text}"


def _slide_row(slide: Mapping[str, Any], num_spots: int) -> str:
    known = [slide[name] or "unknown" for name in ("technology", "tissue", "species")]
    scale, source = f"{slide['mpp']:.4f}", slide["label_source"] or "none"
    return _row(slide["slide_id"], slide["patient_id"], num_spots, len(slide["measured_genes"]), *known, scale, source)


def _row(*cells: object) -> str:
    # A "|" in a label would open another column.
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
