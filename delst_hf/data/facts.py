"""What a model card says of a dataset folder."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .study import Study


def data_facts(path: str | os.PathLike, study: Study, slides: Sequence[str]) -> dict[str, Any]:
    """Facts of a dataset and of the slides that a model was trained on.

    Args:
        path: The folder, or the id of a dataset of the Hub.
        study: The same, opened.
        slides: The slides that were trained on.

    Returns:
        ``technology``, ``tissue``, ``species``, ``patch_um`` and ``patch_px`` of those slides in words; ``patients`` of all
        slides; ``licence`` and ``fingerprint`` of a local folder.
    """
    chosen = study.slides[study.slides["slide_id"].isin(list(slides))]

    def words(column: str) -> str:
        return ", ".join(dict.fromkeys(str(value) or "unknown" for value in chosen[column]))

    readme = Path(path) / "README.md"
    header = readme.read_text(encoding="utf-8").split("\n---", 1)[0] if readme.is_file() else ""
    licence = re.search(r"^license_name: (.+)$", header, re.MULTILINE) or re.search(
        r"^license: (.+)$", header, re.MULTILINE
    )
    content = re.search(r"content ([0-9a-f]{16})", header)
    return {
        **{name: words(name) for name in ("technology", "tissue", "species")},
        "patch_um": ", ".join(dict.fromkeys(f"{value:g}" for value in chosen["patch_um"])),
        "patch_px": ", ".join(dict.fromkeys(f"{value:d}" for value in chosen["patch_px"])),
        "patients": dict(zip(study.slides["slide_id"], study.slides["patient_id"], strict=True)),
        "licence": licence[1].strip("'\"") if licence else None,
        "fingerprint": content[1] if content else None,
    }
