"""HEST-1k (mahmoodlab/HEST): a folder as it is downloaded from the Hub.

ROOT/st/{id}.h5ad        raw counts, obsm["spatial"] in pixels of the full-resolution image
ROOT/wsis/{id}.tif       pyramidal TIFF
ROOT/patches/{id}.h5     img (patches, 224, 224, 3) at 0.5 um per pixel, barcode, coords (top left, full resolution)
ROOT/metadata/{id}.json  and ROOT/HEST_v*.csv: pixel_size_um_estimated, species, organ, patient, st_technology, ...
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import reader, reading
from ..images import open_image, to_rgb
from ..lattice import stated_length
from ..patches import StoredPatches
from ..slide import Slide
from ..values import identifier, identifiers, is_missing, plain, positive, whole_or
from .anndata_file import on_tissue, open_anndata, raw_counts
from .matrices import read_table
from .xenium import CONTROLS

logger = logging.getLogger(__name__)

PATCH_UM = 112.0
_SPOT_UM = {"visium": 55.0, "spatial transcriptomics": 100.0}


def find_hest_samples(root: str | Path) -> list[str]:
    """Ids that have counts and an image or patches.

    Raises:
        FileNotFoundError: no st folder.
    """
    root = Path(root).expanduser()
    if not (root / "st").is_dir():
        raise FileNotFoundError(f"no st/ in {root}. Give the folder of HEST-1k, with st/ and wsis/ or patches/ in it.")
    ids = sorted(path.stem for path in (root / "st").glob("*.h5ad"))
    return [name for name in ids if (root / f"wsis/{name}.tif").exists() or (root / f"patches/{name}.h5").exists()]


@reader
def read_hest(root: str | Path, sample: str, *, mpp: float | None = None, patient_id: str | None = None) -> Slide:
    """Reads one sample: patches from its whole-slide image, or, where that was not downloaded, its stored patches.

    Args:
        root: the folder of HEST-1k.
        sample: for example "TENX95".
        mpp: micrometres per pixel; by default pixel_size_um_estimated of the metadata.
        patient_id: by default dataset title and patient of the metadata, since "Patient 1" is in many data sets, else the id.

    Returns:
        The slide. Without the whole-slide image, x and y are those of the reduced image within the .h5ad.

    Raises:
        FileNotFoundError: the counts, or both image and patches, are missing.
        KeyError: the metadata do not state the scale.
        ValueError: a damaged file.
    """
    root = Path(root).expanduser()
    path = root / "st" / f"{sample}.h5ad"
    if not path.is_file():
        raise FileNotFoundError(f"no sample {sample!r} in {root / 'st'}. Available: {find_hest_samples(root)[:20]}.")
    adata = open_anndata(path)
    meta = _metadata(root, sample)
    adata = adata[on_tissue(adata.obs, path.name)]
    counts, genes = raw_counts(adata, None, sample)
    mpp = mpp if mpp is not None else stated_length(meta.get("pixel_size_um_estimated"))
    if mpp is None:
        raise KeyError(f"{sample}: no pixel_size_um_estimated in its metadata. Give the scale (--mpp).")
    image, scale, stored, keep, image_name = _pixels(root, sample, adata)
    xy = np.asarray(adata.obsm["spatial"], dtype=float) * scale
    spots = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}, index=identifiers(adata.obs_names))
    for column in ("array_row", "array_col"):
        if column in adata.obs:
            spots[column] = whole_or(adata.obs[column], -1)
    title, patient = str(meta.get("dataset_title") or ""), identifier(meta.get("patient"))
    technology = str(meta.get("st_technology") or "")
    slide = Slide(
        slide_id=sample, image=image, spots=spots[keep], counts=counts[keep], genes=genes,
        mpp=mpp / scale, patient_id=patient_id or (f"{title} / {patient}" if patient else sample),
        technology=technology, tissue=str(meta.get("organ") or meta.get("tissue") or ""),
        species=str(meta.get("species") or ""), source=f"hest: {path.name}, {image_name}",
        spot_um=stated_length(meta.get("spot_diameter")) or _SPOT_UM.get(technology.lower()), stored_patches=stored,
    )  # fmt: skip
    return _without_controls(slide)


def _metadata(root: Path, sample: str) -> dict[str, Any]:
    path = root / "metadata" / f"{sample}.json"
    if path.is_file():
        with reading(path, "metadata"):
            return {
                name: None if is_missing(value) else plain(value)
                for name, value in json.loads(path.read_text()).items()
            }
    for table in sorted(root.glob("HEST*.csv"), reverse=True):
        rows = read_table(table, "metadata", dtype=str)
        if "id" in rows and (rows["id"] == sample).any():
            row = rows[rows["id"] == sample].iloc[0]
            return {str(name): None if is_missing(value) else value for name, value in row.items()}
    logger.warning(
        "%s: no metadata/%s.json and no row in HEST*.csv: species, organ and patient are unknown", sample, sample
    )
    return {}


def _pixels(root: Path, sample: str, adata: Any) -> tuple[Any, float, StoredPatches | None, np.ndarray, str]:
    """Image, its scale, stored patches, which spots are kept (spots,) bool, and the name of the file."""
    everything = np.ones(adata.n_obs, dtype=bool)
    wsi = root / "wsis" / f"{sample}.tif"
    if wsi.is_file():
        return open_image(wsi), 1.0, None, everything, wsi.name
    path = root / "patches" / f"{sample}.h5"
    if not path.is_file():
        raise FileNotFoundError(f"neither {wsi} nor {path} is there. Download one of them.")
    import h5py

    library = next(iter(adata.uns["spatial"].values()))
    image = to_rgb(np.asarray(library["images"]["downscaled_fullres"]))
    scale = positive(
        library["scalefactors"].get("tissue_downscaled_fullres_scalef"),
        f"{sample}.h5ad: tissue_downscaled_fullres_scalef",
        "Download the file again, or download the image to wsis/.",
    )
    with reading(path, "patches", "It has no img and barcode, or is truncated: download it again."):
        file = h5py.File(path, "r")
        barcodes = identifiers(file["barcode"][:].ravel())
        pixels = file["img"]
    row_of = {barcode: row for row, barcode in enumerate(barcodes)}
    rows = np.array([row_of.get(barcode, -1) for barcode in identifiers(adata.obs_names)])
    if (rows < 0).any():
        logger.warning("%s: left out %d spots without a stored patch", sample, (rows < 0).sum())
    keep = rows >= 0
    return image, scale, StoredPatches(pixels, rows[keep], PATCH_UM), keep, path.name


def _without_controls(slide: Slide) -> Slide:
    """Leaves out the control probes of Xenium."""
    names = slide.genes["symbol"].str
    control = names.startswith(CONTROLS)
    if control.any():
        logger.info("%s: left out %d control probes", slide.slide_id, control.sum())
        slide.counts = slide.counts.tocsr()[:, (~control).to_numpy()]
        slide.genes = slide.genes[~control].reset_index(drop=True)
    return slide
