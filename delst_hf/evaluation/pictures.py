"""Images of a report, stored in the results as text: the tissue under the maps and the patches of galleries."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..data.folder import DatasetFolder, read_columns
from ..data.study import Study, find_folder

THUMBNAIL_PX = 700
PATCH_PX = 96


def collect_pictures(dataset: str, study: Study, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return thumbnails of the test slides and the patches that the gallery names, as JPEG in base64.

    Args:
        dataset: The dataset folder or Hub id; its `slides` config holds the thumbnails.
        study: The same dataset, opened.
        results: What `evaluate_checkpoint` returned, with `spots` and `gallery`.

    Returns:
        ``slides``: slide -> {"jpeg", "width", "height", "mpp"}, in pixels of the slide image and, where known,
        micrometres per pixel; ``patches``: index of a test spot -> JPEG.
    """
    slides = {}
    thumbnails = _read_thumbnails(study.folder or find_folder(dataset))
    for row in study.slides.to_dict("records"):
        if row["slide_id"] in results["test_slides"] and row["slide_id"] in thumbnails:
            size: dict[str, float] = {"width": int(row["image_width"]), "height": int(row["image_height"])}
            size |= {"mpp": float(row["mpp"])} if row["mpp"] and row["mpp"] > 0 else {}
            thumbnail = Image.open(io.BytesIO(thumbnails[row["slide_id"]]))
            slides[row["slide_id"]] = {"jpeg": encode(thumbnail, THUMBNAIL_PX), **size}
    test = np.flatnonzero(np.isin(study.slide_of_spot, results["test_slides"]))
    shown = sorted({spot for row in results.get("gallery", []) for spot in [row["query"], *row["retrieved"]]})
    patches = {str(spot): encode(study.spots[int(test[spot])]["image"], PATCH_PX) for spot in shown}
    return {"slides": slides, "patches": patches}


def _read_thumbnails(folder: DatasetFolder) -> dict[str, bytes]:
    """Return the encoded thumbnail of each slide that has one."""
    table = read_columns(folder.slides_file, ["slide_id", "thumbnail"])
    images = dict(zip(*(table[name].to_pylist() for name in table.column_names)))
    return {slide_id: image["bytes"] for slide_id, image in images.items() if image and image.get("bytes")}


def encode(image: Image.Image, longest: int, quality: int = 80) -> str:
    """Return an image, reduced to at most `longest` pixels per side, as JPEG in base64."""
    image = image.convert("RGB")
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode(jpeg: str) -> np.ndarray:
    """Return the pixels (height, width, 3) uint8 of a result of `encode`."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))).convert("RGB"))
