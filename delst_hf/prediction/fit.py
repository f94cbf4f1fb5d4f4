"""A head fitted on the frozen features of a checkpoint: expression by ridge, classes by logistic regression."""

import logging
import os
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from ..atomic.files import check_folder_output
from ..atomic.locks import clear_finished
from ..data.appearance import PatchEncoding, colour_record, some_images
from ..data.collator import DelstCollator
from ..data.patch_features import join_features
from ..data.study import SpotRows, Study
from ..evaluation.embed import check_features
from ..evaluation.evidence import Evaluation
from ..evaluation.predicted_genes import most_variable_of_blocks
from ..evaluation.preparation import MAX_INNER_FOLDS, joined_groups, missing_rows
from ..hub.card import model_card
from ..hub.checkpoint_folder import save_checkpoint_folder
from ..model.modeling_delst_heads import DelstForGeneExpressionPrediction, DelstForSpotClassification
from ..record import check_patch_size, data_facts, feature_facts, training_record
from .held_out import PearsonSums, class_scores, strips
from .logistic import fit_logistic
from .outputs import full_disk_explained
from .predictor import Predictor, load_predictor
from .ridge import Moments, Ridge, choose_ridge, fit_ridge
from .shards import Shards, run, workspace
from .source import dataset_source

logger = logging.getLogger(__name__)

TARGETS = ("expression", "labels")
# Number of patches from which the encoding of the dataset's patches is read.
_IMAGES = 32
_ROWS = 512


def fit_head(
    model: str,
    dataset: str,
    output: str | os.PathLike,
    *,
    target: str = "expression",
    train_slides: Sequence[str] = (),
    ignore_labels: Sequence[str] = ("undetermined",),
    features: str | None = None,
    features_patch_px: float | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit a head and save it with its held-out scores as a checkpoint of its own.

    The backbone does not change. Features are computed once and stored beside the output until the head is saved, so that a
    killed run resumes. Slides are held out by patient where there are several, else one by one, in five groups at most; the
    penalty is chosen on them, and every gene and class is scored on them.

    Args:
        model: Folder or Hub id of a checkpoint.
        dataset: Dataset folder written by ``delst prepare``, or a dataset id of the Hub.
        output: Checkpoint folder to make.
        target: "expression" or "labels".
        train_slides: Slides to fit on; by default those of the pretraining that are in the dataset, else its split "train".
            Slides whose spots are split give their training spots.
        ignore_labels: Labels that are not a class of tissue.
        features: Folder of the features, for a model that was trained on features made elsewhere.
        features_patch_px: As in `data.feature_files.read_patch_features`.
        batch_size: As in `shards.run`.
        num_workers: As in `shards.run`.
        progress: As in `shards.run`.

    Returns:
        The entry ``head`` of the checkpoint's record.

    Raises:
        ValueError: If an option has a value that is not allowed, slides are unknown or too few, or genes or patches do not
            fit the model.
        FileExistsError: If `output` exists.
        OSError: If it cannot be made; raised before the work.

    Examples:
        >>> head = fit_head("runs/toy/pretrain/model", "runs/toy/data", "heads/expression", num_workers=0, progress=False)
        >>> head["target"], head["slides"]
        ('expression', ['toy_A1', 'toy_A2', 'toy_B1'])
    """
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}. Allowed: {', '.join(TARGETS)} (--target).")
    if not os.path.isfile(output):
        check_folder_output(output)
    if Path(output).exists():
        clear_finished(output)
    _check_free(output)
    predictor, study = load_predictor(model), Study.load(dataset)
    slides = _slides(predictor, study, train_slides)
    table = None
    if features is not None:
        study, table = join_features(features, study, slides, features_patch_px)
    source = dataset_source(dataset, study, slides, table, spot_split="train")
    check_features(predictor.model.config.vision_config, source.width, source.encoder)
    pixels = study.patch_px(slides) if table is None else ()
    check_patch_size(predictor.record, [source.patch_um or 0], model, pixels, table is not None)
    collator = None
    if target == "expression":  # before patches are embedded: genes that are not the model's are refused
        collator = DelstCollator.of(predictor.processor, study)
    facts = feature_facts(data_facts(dataset, study, slides), table)
    told = {"model": model, "dataset": facts, "slides": slides, "px": predictor.patch_px, "rows": len(source)}
    with full_disk_explained(Path(output)), workspace(output, told, partial(_check_free, output)) as folder:
        shards = run(source, predictor, folder, ("features",), batch_size, num_workers, progress, what="features")
        head = {"target": target, "slides": slides, "date": date.today().isoformat()}
        fitted: Any
        if collator is not None:
            fitted, found = _expression(
                predictor, study.subset(slides, spot_split="train"), source.rows, collator, shards
            )
        else:
            fitted, found = _labels(predictor, source.rows, ignore_labels, shards)
        if table is None:
            facts["colours"] = colour_record(shards.column("colours"))
            facts["patch_encoding"] = str(PatchEncoding.of(some_images(study.subset(slides), _IMAGES)) or "unknown")
        record = {**predictor.record, **training_record(head=head | found)}
        # Predictions are compared with the data of the head's fit; the slides of the pretraining stay listed.
        record["data"] = {**facts, "patch_um": predictor.data.get("patch_um", facts["patch_um"])}
        card = partial(model_card, repo_id=Path(output).name)
        save_checkpoint_folder(output, fitted, predictor.processor, record, replace=False, card=card)
    return record["head"]


def _check_free(output: str | os.PathLike) -> None:
    if Path(output).exists():
        raise FileExistsError(f"{output} exists. Choose another --output, or delete it.")


def _slides(predictor: Predictor, study: Study, named: Sequence[str]) -> list[str]:
    """Choose slides to fit on: the named ones, else those of the pretraining, else the split "train" of a split dataset."""
    study.check_images(named)
    own = study.split_of_slide
    trained = [slide for slide in predictor.record.get("train_slides", []) if slide in own]
    training = [slide for slide in study.slide_ids if own[slide] in ("train", "spot")] if study.is_split else []
    slides = list(dict.fromkeys(named)) or trained or training
    if not slides:
        raise ValueError(
            f"the model {predictor.name} was pretrained on no slide of this dataset, which holds {study.slide_ids}. Name "
            "slides to fit on, without those to be scored later (--train-slides)."
        )
    departing = [slide for slide in slides if own[slide] in ("validation", "test")]
    if departing:
        logger.warning("Fits on %s, which the dataset's own split holds out.", ", ".join(departing))
    return slides


def _folds(rows: pd.DataFrame) -> np.ndarray:
    """Return the fold of each row: its patient where there are several, else its slide; many are joined into a few folds."""
    groups = rows["patient_id"] if rows["patient_id"].nunique() > 1 else rows["slide_id"]
    return joined_groups(groups.to_numpy(dtype=str), MAX_INNER_FOLDS)


def _expression(
    predictor: Predictor, spots: Dataset, rows: pd.DataFrame, collator: DelstCollator, shards: Shards
) -> tuple[DelstForGeneExpressionPrediction, dict[str, Any]]:
    """Return the expression head with its scores: one pass over features and counts to fit, one to score."""
    folds, slides = _folds(rows), joined_groups(rows["slide_id"].to_numpy(dtype=str), MAX_INNER_FOLDS)
    # The evaluation chooses its penalty by these genes too.
    deciding = most_variable_of_blocks(measured_values(spots, collator), Evaluation.num_genes)
    origin = next(iter(shards))["features"][0].astype(np.float64)
    by_fold: dict[tuple[str, bytes], Moments] = {}
    by_slide: dict[tuple[str, bytes], Moments] = {}
    for places, features, targets, mask in _pairs(shards, spots, collator, origin):
        _add(by_fold, folds[places], features, targets, mask)
        _add(by_slide, slides[places], features, targets[:, deciding], mask[:, deciding])
    choice = choose_ridge(by_slide)
    ridge = fit_ridge(by_fold, choice.alpha, choice.floor)
    scores = _scores(ridge, rows, folds, _pairs(shards, spots, collator, origin))
    model = DelstForGeneExpressionPrediction.from_pretrained(predictor.name, head_standardise=False)
    with torch.no_grad():
        means = model.delst.gene_model.missing_values.float()
        model.regressor.weight.copy_(torch.from_numpy(ridge.weight.T.copy()))
        model.regressor.bias.copy_(torch.from_numpy(ridge.bias - origin @ ridge.weight) - means)
    # JSON has no NaN: a gene that could not be scored gets None.
    known = {name: [None if np.isnan(value) else round(value, 4) for value in scores[name]] for name in scores}
    if choice.alpha in (choice.alphas[0], choice.alphas[-1]):
        logger.warning("the chosen penalty %g is the smallest or largest of those tried", choice.alpha)
    return model, {
        "method": "ridge",
        "alpha": choice.alpha,
        "floor": choice.floor,
        "folds": sorted(set(folds.tolist())),
        "pearson_mean": round(float(np.nanmean(scores["pearson"])), 4),
        "scores": {"gene": list(predictor.processor.feature_extractor.vocabulary), **known},
    }


def measured_values(spots: Dataset, collator: DelstCollator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of log-normalised expression (rows, genes) and where it was measured."""
    for table in spots.remove_columns("image").with_format("arrow").iter(_ROWS):
        batch = collator.all_but_pixels(table)
        yield batch["gene_values"].numpy(), batch["gene_mask"].numpy()


def _add(
    moments: dict[tuple[str, bytes], Moments],
    groups: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    mask: np.ndarray,
) -> None:
    """Add rows to the sums of their group and their panel of measured genes."""
    rows = pd.DataFrame({"group": groups, "panel": [row.tobytes() for row in mask]})
    parts: Any = rows.groupby(["group", "panel"]).indices
    for key, here in parts.items():
        one = moments.setdefault(key, Moments(features.shape[1], targets.shape[1]))
        one.add(features[here], targets[here])


def _pairs(shards: Shards, spots: Dataset, collator: DelstCollator, origin: np.ndarray) -> Any:
    """Yield positions, features minus `origin` (rows, width), targets and mask (rows, genes) of the spots of each shard."""
    table, start = SpotRows(spots.remove_columns("image")), 0
    for shard in shards:
        places = np.arange(start, start + len(shard["features"]))
        start += len(places)
        batch = collator.all_but_pixels(table.__getitems__(places.tolist()))
        yield places, shard["features"] - origin, batch["gene_values"].numpy(), batch["gene_mask"].numpy()


def _scores(ridge: Ridge, rows: pd.DataFrame, folds: np.ndarray, pairs: Any) -> pd.DataFrame:
    """Return the held-out Pearson of every gene with its interval, each spot predicted by the fit that left its fold out."""
    slides = rows["slide_id"].to_numpy(dtype=str)
    units = strips(slides, rows["y"].to_numpy(float))
    sums = PearsonSums([slides[units == unit][0] for unit in range(units.max() + 1)], ridge.weight.shape[1])
    for places, features, targets, mask in pairs:
        for fold in np.unique(folds[places]):
            here = folds[places] == fold
            weight, bias = ridge.folds[fold]
            sums.add(units[places][here], features[here] @ weight + bias, targets[here], mask[here])
    return sums.scores()


def _labels(
    predictor: Predictor, rows: pd.DataFrame, ignore_labels: Sequence[str], shards: Shards
) -> tuple[DelstForSpotClassification, dict[str, Any]]:
    labels = rows["label"].to_numpy(dtype=object)
    labelled = ~missing_rows(labels) & ~np.isin(labels.astype(str), list(ignore_labels))
    if not labelled.any():
        raise ValueError(
            f"none of the {len(rows)} spots of these slides has a label. Train on annotated slides (--train-slides), or fit "
            "--target expression."
        )
    values = torch.from_numpy(shards.column("features")[labelled])
    features = torch.nn.functional.layer_norm(values, values.shape[-1:]).numpy()
    truth, groups = labels[labelled].astype(str), _folds(rows[labelled])
    fitted = fit_logistic(features, truth, groups)
    names = dict(enumerate(fitted.classes))
    model = DelstForSpotClassification.from_pretrained(
        predictor.name,
        id2label=names,
        label2id={name: i for i, name in names.items()},
        head_inputs="image",
        head_standardise=True,
    )
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(fitted.weight.T.copy()))
        model.classifier.bias.copy_(torch.from_numpy(fitted.bias))
    held = fitted.held_out != ""
    scores = class_scores(truth[held], fitted.held_out[held].astype(str), fitted.classes)
    return model, {
        "method": "logistic regression, balanced classes",
        "strength": fitted.strength,
        "folds": sorted(set(groups.tolist())),
        "macro_f1": round(float(scores["f1"].mean()), 4),
        "scores": scores.round(4).to_dict("list"),
    }
