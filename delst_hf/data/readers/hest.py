"""HEST-1k (mahmoodlab/HEST): a folder downloaded from the Hub.

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
from ..files import visible
from ..lattice import SpotArray, arrays_named, matching_array, measure_lattice
from ..notes import Notes
from ..patches import StoredPatches
from ..scale import Scale, given, image_states, lattice_states, settle_scale, stated, stated_length
from ..slide import Slide
from ..values import identifier, identifiers, is_missing, plain
from .anndata_file import open_anndata, raw_counts
from .anndata_libraries import image_of
from .tables import keep_array_columns, on_tissue, read_table

logger = logging.getLogger(__name__)

PATCH_UM = 112.0
# The metadata that are used.
_USED = (
    "pixel_size_um_estimated",
    "dataset_title",
    "patient",
    "st_technology",
    "organ",
    "tissue",
    "species",
    "spot_diameter",
)


def find_hest_samples(root: str | Path) -> list[str]:
    """Return the ids of samples that have counts and an image or patches.

    Raises:
        FileNotFoundError: no st folder.
    """
    root = Path(root).expanduser()
    if not (root / "st").is_dir():
        raise FileNotFoundError(f"no st/ in {root}. Give the folder of HEST-1k, with st/ and wsis/ or patches/ in it.")
    ids = [path.stem for path in visible(root / "st", "*.h5ad")]
    return [name for name in ids if (root / f"wsis/{name}.tif").exists() or (root / f"patches/{name}.h5").exists()]


@reader
def read_hest(root: str | Path, sample: str, *, mpp: float | None = None, patient_id: str | None = None) -> Slide:
    """Read one sample with its whole-slide image, or, where that was not downloaded, its stored patches.

    Args:
        root: the folder of HEST-1k.
        sample: for example "TENX95".
        mpp: micrometres per pixel; by default from the lattice of the spots if it is that of a known array, else
            pixel_size_um_estimated of the metadata.
        patient_id: by default dataset title and patient of the metadata, since many data sets have a "Patient 1"; else the id.

    Returns:
        The slide. Without the whole-slide image, x and y are pixels of the reduced image within the .h5ad.

    Raises:
        FileNotFoundError: the counts, or both image and patches, are missing.
        ValueError: a damaged file, or an unknown scale.

    Examples:
        >>> slide = read_hest("hest", "TENX1")
        >>> slide.counts.shape, slide.species, round(slide.mpp, 2)
        ((12, 6), 'Homo sapiens', 5.0)
    """
    root = Path(root).expanduser()
    path = root / "st" / f"{sample}.h5ad"
    if not path.is_file():
        raise FileNotFoundError(f"no sample {sample!r} in {root / 'st'}. Available: {find_hest_samples(root)[:20]}.")
    adata = open_anndata(path)
    meta = _metadata(root, sample)
    notes = Notes()
    adata = adata[on_tissue(adata.obs, f"{path.name}: obs['in_tissue']", notes)]
    counts, genes = raw_counts(adata, None, sample, notes)
    image, factor, stored, keep, image_name = _pixels(root, sample, adata)
    scale, array = _scale(adata, meta, mpp, image, sample, factor, image_name if stored is None else "")
    xy = np.asarray(adata.obsm["spatial"], dtype=float) * factor
    spots = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}, index=identifiers(adata.obs_names))
    keep_array_columns(spots, adata.obs)
    title, patient = str(meta.get("dataset_title") or ""), identifier(meta.get("patient"))
    technology = str(meta.get("st_technology") or "")
    return Slide(
        slide_id=sample, image=image, spots=spots[keep], counts=counts[keep], genes=genes,
        mpp=scale.mpp / factor, scale=scale, patient_id=patient_id or (f"{title} / {patient}" if patient else sample),
        technology=technology, tissue=str(meta.get("organ") or meta.get("tissue") or ""),
        species=str(meta.get("species") or ""), source=f"hest: {path.name}, {image_name}",
        spot_um=stated_length(meta.get("spot_diameter")) or (None if array is None else array.spot_um),
        stored_patches=stored, notes=notes,
    )  # fmt: skip


def _scale(
    adata: Any, meta: dict[str, Any], mpp: float | None, image: Any, sample: str, factor: float, tagged: str
) -> tuple[Scale, SpotArray | None]:
    """Return the scale per full-resolution pixel, and the likely array; `tagged` is the name of an image with tags."""
    technology = str(meta.get("st_technology") or "")
    places = [name for name in ("array_row", "array_col") if name in adata.obs]
    indices = (
        adata.obs[places].apply(pd.to_numeric, errors="coerce").fillna(-1).to_numpy(float) if len(places) == 2 else None
    )
    # HEST pools bins of Visium HD and puts Xenium on a grid: the metadata state the pitch.
    pitch_um = stated_length(meta.get("inter_spot_dist"))
    xy = np.asarray(adata.obsm["spatial"], dtype=float)
    lattice = measure_lattice(xy[:, ::-1], indices)
    candidates = arrays_named(technology, pitch_um) if technology else ()
    array = matching_array(lattice, candidates)
    likely = array or next(iter(candidates), None)
    witnesses = [
        *given(mpp),
        *lattice_states(lattice, array),
        *stated("pixel_size_um_estimated of its metadata", meta.get("pixel_size_um_estimated")),
        *(image_states(image, tagged, factor) if tagged else []),
    ]
    unknown = "no pixel_size_um_estimated in its metadata"
    return settle_scale(sample, witnesses, frame="full-resolution pixel", unknown=unknown), likely


def _metadata(root: Path, sample: str) -> dict[str, Any]:
    path = root / "metadata" / f"{sample}.json"
    if path.is_file():
        with reading(path, "metadata"):
            return {
                name: None if is_missing(value) else plain(value)
                for name, value in json.loads(path.read_text()).items()
            }
    rows: dict[str, dict[str, Any]] = {}
    for path in visible(root, "HEST*.csv"):
        table = read_table(path, "metadata", dtype=str)
        for _, row in table[table["id"] == sample].iterrows() if "id" in table else ():
            rows[path.name] = {str(name): None if is_missing(value) else value for name, value in row.items()}
    differing = [name for name in _USED if len({row.get(name) for row in rows.values()}) > 1]
    if differing:
        raise ValueError(
            f"{sample}: {', '.join(rows)} disagree about {', '.join(differing)}. Keep the table of the release that you "
            "downloaded."
        )
    if rows:
        return next(iter(rows.values()))
    logger.warning(
        "%s: no metadata/%s.json and no row in HEST*.csv: species, organ and patient are unknown", sample, sample
    )
    return {}


def _pixels(root: Path, sample: str, adata: Any) -> tuple[Any, float, StoredPatches | None, np.ndarray, str]:
    """Return the image, its scale, the stored patches, which spots are kept (spots,) bool, and the name of the file."""
    library: Any = next(iter(dict(adata.uns.get("spatial", {})).values()), {})
    wsi = root / "wsis" / f"{sample}.tif"
    if wsi.is_file():
        image, scale = image_of(library, wsi, None, sample)
        return image, scale, None, np.ones(adata.n_obs, dtype=bool), wsi.name
    path = root / "patches" / f"{sample}.h5"
    if not path.is_file():
        raise FileNotFoundError(f"neither {wsi} nor {path} is there. Download one of them.")
    import h5py

    image, scale = image_of(library, None, None, f"{sample}.h5ad")
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
