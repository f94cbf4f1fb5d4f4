"""A model and a slide, a dataset folder or an AnnData -> predictions in a file that scanpy, squidpy or pandas opens."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.appearance import describe_foreign_colour
from ..data.feature_files import SUFFIXES as SUFFIXES_OF_FEATURES
from ..data.genes import canonical_species
from ..data.patch_features import join_features
from ..data.places import IMAGES, check_prediction, is_only_id
from ..data.readers.anndata_file import open_anndata
from ..data.readers.anndata_visium import places_of_anndata
from ..data.readers.image import read_slide_image
from ..data.scratch import PACKED
from ..data.study import Study
from ..errors import did_you_mean
from ..evaluation.embed import check_features
from ..record import check_patch_size, public_text
from .outputs import Prediction, full_disk_explained, write_prediction
from .positions import check_positions, in_pixels, read_positions
from .predictor import Predictor, load_predictor
from .reference import load_reference
from .shards import run, workspace
from .source import PatchSource, dataset_source, features_source, in_full_resolution, slide_source

logger = logging.getLogger(__name__)

_ANNDATA = (".h5ad", *(f".h5ad{packed}" for packed in PACKED))


@dataclass(frozen=True)
class PatchChoice:
    """Which patches of a slide, and how they are read.

    Attributes:
        mpp: Micrometres per pixel; None for what the file states.
        patch_um: Side of a patch; None for that of the model's training.
        stride_um: Distance from one patch of the grid to the next; None for the side of a patch.
        min_tissue: Least share of tissue in a patch.
        mask: Where tissue is: a mask image or GeoJSON; None to find it by its colour.
        positions: Positions of patches, in place of a grid: CSV or parquet with x and y in pixels or as Space Ranger writes
            it, an .h5ad with obsm["spatial"], or such a table. Positions that are not in_tissue are left out.
        image: Full-resolution image of an .h5ad, in place of the reduced one in the file.
        slides: Slides of a dataset folder; all by default.
        species: Species of the slide, to compare with the model's.
        features: Folder of features of a dataset folder, for a model that was trained on features made elsewhere.
        features_patch_px: Side of the patches of `features` in pixels of the full resolution, where no file states it.

    Examples:
        >>> PatchChoice(mpp=0.5, stride_um=56.0).min_tissue
        0.25
    """

    mpp: float | None = None
    patch_um: float | None = None
    stride_um: float | None = None
    min_tissue: float = 0.25
    mask: str | None = None
    positions: str | pd.DataFrame | None = None
    image: str | None = None
    slides: Sequence[str] = ()
    species: str = ""
    features: str | None = None
    features_patch_px: float | None = None


def predict_slide(
    model: str,
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    heads: Sequence[str] = (),
    genes: Sequence[str] | None = None,
    signatures: Mapping[str, Mapping[str, Any]] | None = None,
    min_pearson: float | None = None,
    reference: str | None = None,
    choice: PatchChoice | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Prediction:
    """Predict what a model knows of a slide, and write it to a file.

    Args:
        model: Folder or Hub id of a checkpoint: a head that was fitted by `fit_head`, or a pretrained `DelstModel`, which gives
            embeddings alone.
        source: An image of a slide, a dataset folder or dataset id, an .h5ad with positions, or, for a model that reads
            features made elsewhere, the file of a slide's features.
        output: .h5ad, .zarr (SpatialData) or .parquet to write.
        heads: Further heads on the same backbone, such as one for labels.
        genes: Genes to predict; by default all that the head knows.
        signatures: name -> {"genes": [names] or {name: weight}}: the weighted mean of their predicted expression.
        min_pearson: Leave out genes whose held-out Pearson is lower.
        reference: Folder with the reference of `delst reference`; by default that of the model, if it has one.
        choice: Which patches to predict.
        batch_size: As in `shards.run`.
        num_workers: As in `shards.run`.
        progress: As in `shards.run`.
        overwrite: Replace a file at `output`.

    Returns:
        The prediction that was written.

    Raises:
        ValueError: If an option, the slide, its scale or the genes do not allow a prediction.
        FileExistsError: If `output` exists.

    Examples:
        >>> choice = PatchChoice(mpp=2.0, patch_um=112)
        >>> found = predict_slide("runs/toy/expression", "he.png", "he.h5ad", choice=choice, num_workers=0, progress=False)
        >>> Path("he.h5ad").exists()
        True
    """
    output, choice = Path(output), choice or PatchChoice()
    check_prediction(output, overwrite)
    predictor = load_predictor(model, heads)
    weights = signature_weights(signatures or {}, predictor)
    # Genes of signatures are predicted too, and left out of the output unless they are asked for.
    shown = list(predictor.genes.index[predictor.places_of(genes, min_pearson)])
    needed = list(dict.fromkeys([*shown, *(gene for one in weights.values() for gene in one)]))
    if needed:
        predictor.keep_genes(needed, None)
    nearest = load_reference(reference or model, required=reference is not None, predictor=predictor)
    patches = open_source(source, predictor, choice)
    told = {
        "model": state_of(model),
        "heads": [state_of(head) for head in heads],
        "source": [state_of(one) for one in (source, choice.features) if one is not None],
        "genes": needed,
        "choice": asdict(choice),
        "version": 2,
    }
    with full_disk_explained(output), workspace(output, told, partial(check_prediction, output, overwrite)) as folder:
        keep = ("tangent", "radius", "expression", "probabilities")
        shards = run(patches, predictor, folder, keep, batch_size, num_workers, progress)
        if found := describe_foreign_colour(shards.column("colours"), predictor.data.get("colours")):
            logger.warning("%s: %s", Path(source).name, found)
        distance = None
        if nearest is not None:
            distance = np.concatenate([nearest.distance(predictor, shard["tangent"]) for shard in shards])
        prediction = Prediction(
            source=patches,
            shards=shards,
            predicted=list(predictor.genes.index),
            genes=predictor.genes.loc[shown] if shown else pd.DataFrame(),
            classes=predictor.classes,
            signatures=weights,
            distance=distance,
            provenance=provenance(predictor, patches) | _parts_of_signatures(signatures or {}, weights),
        )
        write_prediction(output, prediction, overwrite)
    return prediction


def open_source(source: str | os.PathLike, predictor: Predictor, choice: PatchChoice) -> PatchSource:
    """Open any source of patches: an .h5ad, a file of features, a dataset folder or Hub id, else an image.

    Raises:
        FileNotFoundError: If it looks like a path and nothing is there.
        TypeError: If it is no path, but an image or an AnnData in memory.
        ValueError: If the model does not read such patches or features, or was trained on another species.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"the slide is of type {type(source).__name__}. Give the path of an image, an .h5ad or a dataset folder; save an "
            "image that is in memory first (image.save('he.png')). For an AnnData there is embed_anndata(model, adata)."
        )
    patches = _opened(source, predictor, choice)
    check_features(predictor.model.config.vision_config, patches.width, patches.encoder)
    check_species(predictor, patches.species or choice.species)
    return patches


def _opened(source: str | os.PathLike, predictor: Predictor, choice: PatchChoice) -> PatchSource:
    path = Path(source)
    of_hub = not path.suffix or (is_only_id(str(source)) and path.suffix.lower() not in IMAGES)
    is_dataset = path.is_dir() or (of_hub and not path.exists() and not os.path.isabs(path))
    if choice.positions is not None and (is_dataset or path.suffix in (".h5ad", *SUFFIXES_OF_FEATURES)):
        raise ValueError(
            f"positions (--positions, --at) are on the image of a slide, and {source} is none. Give the image."
        )
    if path.suffix in SUFFIXES_OF_FEATURES and not path.name.endswith(_ANNDATA):
        given = features_source(path, choice.mpp, choice.image, choice.features_patch_px)
        check_patch_size(predictor.record, [given.patch_um or 0], predictor.name, of_features=True)
        return given
    if choice.features is None:
        check_features(predictor.model.config.vision_config, None)
    if path.name.endswith(_ANNDATA):
        patch_um = predictor.patch_um(choice.patch_um)
        slide, scale = places_of_anndata(open_anndata(path), path.name, image=choice.image, mpp=choice.mpp)
        return in_full_resolution(slide_source(slide, patch_um, predictor.cut_px, predictor.encoding), scale)
    if is_dataset:
        study = Study.load(str(source))
        slides, features = list(choice.slides) or study.paired_slides, None
        pixels = study.patch_px(slides)
        if choice.features is not None:
            study, features = join_features(choice.features, study, slides, choice.features_patch_px)
            pixels = []
        found = dataset_source(str(source), study, slides, features)
        check_patch_size(predictor.record, [found.patch_um or 0], predictor.name, pixels, features is not None)
        return found
    patch_um = predictor.patch_um(choice.patch_um)
    places: Any = choice.positions
    if isinstance(places, pd.DataFrame):
        places = in_pixels(places, "the table of positions")
    elif places is not None:
        check_positions(places)
        places = partial(read_positions, places)
    options = {name: getattr(choice, name) for name in ("mpp", "stride_um", "min_tissue", "mask", "species")}
    slide = read_slide_image(path, patch_um=patch_um, positions=places, **options)
    return slide_source(slide, patch_um, predictor.cut_px, predictor.encoding, on_grid=places is None)


def check_species(predictor: Predictor, species: str) -> None:
    """Refuse a slide of another species than the model's genes, where both are known.

    Raises:
        ValueError: Naming both.
    """
    trained = {canonical_species(one) for one in str(predictor.data.get("species", "")).split(",")}
    trained -= {"", "unknown"}
    if species and trained and canonical_species(species) not in trained:
        raise ValueError(
            f"the slide is of {canonical_species(species)}, but the model {predictor.name} was trained on "
            f"{', '.join(sorted(trained))}. Use a model of the slide's species, or translate its genes to orthologues first."
        )


def signature_weights(signatures: Mapping[str, Mapping[str, Any]], predictor: Predictor) -> dict[str, dict[str, float]]:
    """Return the weights of the genes of each signature that the head predicts; warn of genes that it does not.

    Raises:
        ValueError: If the head predicts no gene of a signature, or fewer than half of them: the score would not be that of the
            signature.
    """
    known = set(predictor.genes.index)
    found = {}
    for name, signature in signatures.items():
        given = signature.get("genes") or signature.get("profile") or {}
        weights = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, 1.0)
        there = {gene: float(weight) for gene, weight in weights.items() if gene in known}
        if not there:
            raise ValueError(
                f"the head predicts no gene of the signature {name!r}, which has {', '.join(list(weights)[:5])}. It predicts "
                f"{len(known)} genes{', such as ' + ', '.join(sorted(known)[:3]) if known else ''}. Leave the signature out."
            )
        missing = [gene for gene in weights if gene not in known]
        if signature.get("genes") and 2 * len(there) < len(weights):
            raise ValueError(
                f"the head predicts {len(there)} of the {len(weights)} genes of the signature {name!r}; the least is half of "
                f"them. Absent: {', '.join(missing[:8])}.{did_you_mean(missing[:8], known)} Leave the signature out, or fit a "
                "head on a vocabulary that holds its genes."
            )
        if missing:
            logger.warning(
                "signature %s: %d of %d genes; %s %s not predicted by the head",
                name, len(there), len(weights), ", ".join(missing[:8]), "is" if len(missing) == 1 else "are",
            )  # fmt: skip
        found[name] = there
    return found


def _parts_of_signatures(
    signatures: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, str]]:
    """Return how many genes of each signature are in its score, in words for uns["delst"]."""
    asked = {name: len(one.get("genes") or one.get("profile") or ()) for name, one in signatures.items()}
    parts = {name: f"{len(found)} of {asked[name]} genes" for name, found in weights.items()}
    return {"signatures": parts} if parts else {}


def provenance(predictor: Predictor, source: PatchSource | None) -> dict[str, Any]:
    """Return the content of uns["delst"]: model, revision, patches, date and versions, as strings and numbers."""
    facts: dict[str, Any] = {
        "model": public_text(str(predictor.name)),
        "revision": str(getattr(predictor.model.config, "_commit_hash", None) or ""),
        "patch_px": predictor.patch_px,
        "geometry": predictor.model.config.geometry,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("delst-hf", "torch", "transformers", "anndata")},
        "trained_on": ", ".join(predictor.record.get("train_slides", [])),
        "head_fitted_on": ", ".join((predictor.record.get("head") or {}).get("slides", [])),
    }
    if source is not None:
        facts |= {"patch_um": float(source.patch_um or 0), "source": source.about}
    return facts


def state_of(path: str | os.PathLike) -> list[Any]:
    """Return path, sizes and times of a file or of the files in a folder, which change when the content does."""
    root = Path(path)
    files = sorted(one for one in root.rglob("*") if one.is_file()) if root.is_dir() else [root] * root.is_file()
    return [str(path), [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in files[:5000]]]
