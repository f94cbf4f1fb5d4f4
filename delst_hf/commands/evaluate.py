"""`delst evaluate`; training/evaluate.py runs the same under `accelerate launch`.

Nothing heavy is imported before a command runs.
"""

import argparse
import logging
import shlex
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..atomic.files import check_file_output
from ..atomic.locks import writing
from ..atomic.processes import give_back_freed_memory, keep_freed_memory
from ..errors import reading, reading_model
from ..pretraining.help_layout import documented, explained
from .options import add_command, given, split_names

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ..data.study import Study
    from ..evaluation.run import Evaluation
    from ..evaluation.subjects import Subject


@dataclass
class EvaluationArguments:
    """What to evaluate, and on which tissue.

    Args:
        model: What to evaluate: a DELST checkpoint or any vision backbone (folder or Hub id), or embeddings from elsewhere
            (.npy, .npz or .parquet, the folder of `delst embed`, or a folder of patch features with one file per slide).
        dataset: Dataset folder written by `delst prepare`, or a dataset id of the Hub.
        test_slides: Comma-separated slides to score. Default: the split 'test' of the dataset; without one, all slides of
            patients that are neither in the training of the checkpoint nor in --train-slides. Touch it: to score some slides
            only.
        train_slides: Comma-separated slides to fit the probes on. Default: the slides of the pretraining, or the split
            'train'; without any, each group of test slides is predicted from the others. Touch it: for a backbone, to name
            what the probes may see.
        split: Unit that is held out: patient, slide, block (strips of a slide), or auto, the strictest of them that leaves
            something to fit on. Touch it: 'slide' or 'block' when there are too few patients; say so beside the numbers.
        frozen_backbone: Backbone before pretraining, for the frozen arm. Default: the one in the training record. Touch it:
            when the backbone has moved since the pretraining.
        num_genes: Predict this many of the most variable genes. Touch it: never, to compare with earlier results.
        num_seeds: Number of random-init backbones and shuffled controls to average over. Touch it: 5 or more for numbers that
            are published.
        ignore_labels: Comma-separated labels that are not a tissue class. Touch it: when other labels are not a class of
            tissue, such as 'artefact'.
        baselines: Score the baselines too: colour, random-init and frozen backbone, shuffled pairs. Touch it: --no-baselines
            for a quick look.
        protocols: Comma-separated protocols: arms, probes, stimage1k4m, hest, retrieval, imputation, signatures, domains,
            hierarchy, reliability, robustness; or 'all'. Touch it: to save time: hest,retrieval,hierarchy answers most
            questions.
        signatures: JSON of gene signatures, {"name": {"genes": ["ERBB2"], "region": "invasive cancer"}}. Touch it: for maps of
            your own signatures.
        domain_method: Clustering of domains: kmeans or leiden. Touch it: 'leiden' where it is installed (pip install
            'delst-hf[leiden]').
        geometry: Geometry of embeddings from elsewhere that hold images and genes: cosine, euclidean or lorentz. Touch it:
            for embeddings of a hyperbolic or Euclidean model.
        curvature: The positive curvature parameter c of --geometry lorentz. Touch it: with --geometry lorentz.
        image_size: Side in pixels to which patches are resized for a plain backbone. Default: its own size. Touch it: for a
            backbone that takes other sizes than its own.
        resamples: Bootstrap resamples per interval. Touch it: lower it (100) for a quick look.
        batch_size: Spots per batch when embedding. Touch it: lower it when memory runs out.
        allow_seen_slides: Score slides although the checkpoint was trained on them. Never report such scores. Touch it: to
            look for mistakes only.
        features: Folder of patch features for a checkpoint that was trained on features made elsewhere. Touch it: for such a
            checkpoint, which reads features in place of patches.
        features_patch_px: Side of the patches of --features in pixels of the full resolution, where the files do not state it.
            Touch it: for features of CLAM, whose files do not state it.
        output: Write the results to this JSON file. Default: results.json in the folder of the checkpoint, else
            NAME-results.json in the current folder. Touch it: when several evaluations of one checkpoint are to be kept.
    """

    model: str
    dataset: str
    test_slides: str = ""
    train_slides: str = ""
    split: str = "auto"
    frozen_backbone: str | None = None
    num_genes: int = 100
    num_seeds: int = 3
    ignore_labels: str = "undetermined"
    baselines: bool = True
    protocols: str = "all"
    signatures: str | None = None
    domain_method: str = "kmeans"
    geometry: str = "cosine"
    curvature: float | None = None
    image_size: int | None = None
    resamples: int = 1000
    batch_size: int = 64
    allow_seen_slides: bool = False
    features: str | None = None
    features_patch_px: float | None = None
    output: str | None = None


def run_evaluation(arguments: EvaluationArguments) -> dict[str, Any]:
    """Evaluate, print the tables and their conclusions, and write the JSON. All processes call this; the first one scores.

    Raises:
        ValueError: If a slide is unknown or was seen in training, or the value of an option is not allowed.
        OSError: If the output cannot be written, or another run is writing it; raised before the work.
    """
    from accelerate import PartialState

    from ..model.distributed import process_rank

    PartialState()
    evaluation, output = evaluation_of(arguments), arguments.output or default_output(arguments.model)
    if process_rank() > 0:
        return _evaluate(arguments, evaluation, output)
    check_file_output(output)
    with writing(output, "file of results"):
        return _evaluate(arguments, evaluation, output)


def default_output(model: str) -> str:
    """Return the default path of the results: in the folder of a DELST checkpoint, else NAME-results.json in the current one.

    A checkpoint is recognised by its files alone, so that the output is checked before anything is loaded.

    Examples:
        >>> default_output("runs/embeddings.npz")
        'embeddings-results.json'
    """
    from ..evaluation.results import RESULTS

    if (Path(model) / "processor_config.json").is_file():
        return str(Path(model) / RESULTS)
    return f"{Path(model).stem}-{RESULTS}"


def _evaluate(arguments: EvaluationArguments, evaluation: "Evaluation", output: str) -> dict[str, Any]:
    import transformers

    from ..data.study import Study
    from ..evaluation.conclusions import conclusions
    from ..evaluation.pictures import collect_pictures
    from ..evaluation.result_tables import format_results
    from ..evaluation.results import results_record, write_results
    from ..evaluation.run import evaluate_subject, spots_of
    from ..hub.checksums import check_checksums, weights_fingerprint
    from ..model.distributed import process_rank
    from ..record import TRAINING_RECORD, check_patch_size, find_training_record, public_text, read_training_record

    transformers.utils.logging.set_verbosity_error()
    kind = kind_of(arguments.model)
    study = Study.load(arguments.dataset)
    give_back_freed_memory()  # which the first opening of a dataset leaves behind
    keep_freed_memory()
    # The record of a checkpoint on the Hub is read too, or its training slides would pass for unseen ones.
    if kind == "checkpoint":
        check_checksums(arguments.model)
    record = find_training_record(arguments.model) if kind == "checkpoint" else read_training_record(arguments.model)
    if kind == "checkpoint" and not record:
        logger.warning(
            "%s has no %s: its training slides are not known, so scores may be of slides that it has seen.",
            arguments.model, TRAINING_RECORD,
        )  # fmt: skip
    train_slides, test_slides = choose_slides(arguments, study, record)
    slides = [*train_slides, *test_slides]
    study, features = _joined_features(arguments, kind, study, slides, record)
    if features is None:
        check_patch_size(record, study.patch_um(slides), arguments.model, study.patch_px(slides))
    spots = spots_of(study, train_slides, test_slides, evaluation)
    dataset = study.subset([*train_slides, *test_slides])
    subject = _SUBJECTS[kind](arguments, study, dataset, evaluation, record, features)
    results = evaluate_subject(subject, spots, study, evaluation)
    if process_rank() > 0:
        return {}
    print(format_results(results))
    names = {"model": public_text(arguments.model), "dataset": public_text(arguments.dataset)}
    facts = {**names, "kind": kind, "seeds": list(evaluation.seeds)}
    weights = weights_fingerprint(arguments.model) if kind == "checkpoint" else None
    whole = results_record(results, dataset, **facts, weights=weights, training_log=record.get("log_history", []))
    whole["pictures"] = collect_pictures(arguments.dataset, study, results)
    write_results(output, whole)
    print(f"\nEvaluated: {arguments.model} ({kind})\nResults: {output}\n")
    report = shlex.quote(str(Path(output).with_suffix(".html")))
    following = (
        f"What to open: draw the report with `delst report {shlex.quote(output)} --output {report}` and open that file."
    )
    print("\n".join([*conclusions(whole), following]))
    return whole


def evaluation_of(arguments: EvaluationArguments) -> "Evaluation":
    """Return the options of the evaluation, each checked before anything is loaded.

    Raises:
        ValueError: If the value of an option is not allowed.
    """
    from ..evaluation.evidence import SPLITS
    from ..evaluation.protocols.domains import METHODS
    from ..evaluation.protocols.signatures import read_signatures
    from ..evaluation.retrieval import GEOMETRIES
    from ..evaluation.run import Evaluation
    from ..evaluation.suite import SUITE, chosen_protocols

    for name, allowed in (("split", SPLITS), ("domain_method", METHODS), ("geometry", GEOMETRIES)):
        if getattr(arguments, name) not in allowed:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {getattr(arguments, name)!r}; allowed are {', '.join(allowed)}.")
    for name in ("num_seeds", "num_genes", "resamples", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; allowed is 1 or more.")
    return Evaluation(
        seeds=range(arguments.num_seeds),
        ignore_labels=split_names(arguments.ignore_labels),
        protocols=SUITE if arguments.protocols.strip() == "all" else chosen_protocols(split_names(arguments.protocols)),
        signatures=read_signatures(arguments.signatures),
        **given(arguments, "num_genes", "baselines", "resamples", "split", "domain_method", "batch_size"),
    )


def kind_of(model: str) -> str:
    """Return what a name stands for: "embeddings" by its files, else "checkpoint" or "backbone" by its configuration.

    Raises:
        FileNotFoundError: If it looks like a path and nothing is there.
    """
    from transformers import AutoConfig

    from ..data.feature_files import is_features
    from ..data.places import EMBEDDING_SUFFIXES, check_model, is_model, near
    from ..evaluation.embedding_files import embedding_files
    from ..model.configuration_delst import DelstConfig

    if Path(model).suffix in EMBEDDING_SUFFIXES or embedding_files(model) or is_features(model):
        return "embeddings"
    check_model(model)
    here = Path(model)
    missing = f"{model} is a file. " if here.is_file() else f"There is no folder {model}{near(here, is_model)}. "
    advice = ("" if here.is_dir() else missing) + (
        "Give the folder of a DELST checkpoint (OUTPUT_DIR/model) or of a vision backbone with its config.json, or an id of "
        "the Hub. Without a network, download it elsewhere (hf download USER/NAME --local-dir DIR) and give DIR."
    )
    with reading(model, "model", advice):
        return "checkpoint" if isinstance(AutoConfig.from_pretrained(model), DelstConfig) else "backbone"


def _checkpoint(arguments, study, dataset, evaluation, record, features) -> "Subject":
    from ..evaluation.subjects import checkpoint_subject, frozen_model
    from ..model.modeling_delst import DelstModel
    from ..model.processing_delst import DelstProcessor

    with reading_model(arguments.model):
        model = DelstModel.from_pretrained(arguments.model)
        processor = DelstProcessor.from_pretrained(arguments.model)
    backbone, frozen = arguments.frozen_backbone or record.get("vision"), None
    if backbone and evaluation.baselines and features is None:
        try:
            frozen = frozen_model(model, backbone)
        except OSError as error:
            if arguments.frozen_backbone:
                raise
            # The record names the backbone as the training run found it, perhaps on another machine.
            logger.warning("The arm of the frozen backbone is left out: %s", error)
    return checkpoint_subject(model, processor, study, dataset, evaluation, frozen=frozen, features=features)


def _backbone(arguments, study, dataset, evaluation, record, features) -> "Subject":
    from ..evaluation.subjects import backbone_subject

    name = Path(arguments.model).name
    return backbone_subject(arguments.model, study, dataset, evaluation, name=name, image_size=arguments.image_size)


def _embeddings(arguments, study, dataset, evaluation, record, features) -> "Subject":
    from ..evaluation.arrays import read_embeddings
    from ..evaluation.embedding_files import embedding_files, space_of_files
    from ..evaluation.preparation import finite_matrix
    from ..evaluation.subjects import array_subject

    if features is None:
        arrays = read_embeddings(arguments.model, dataset, len(study.spots))
    else:
        arrays = {"image": finite_matrix(features[dataset["spot_index"]], Path(arguments.model).name)}
    options = {"geometry": arguments.geometry, "curvature": arguments.curvature}
    if embedding_files(arguments.model):
        options = space_of_files(arguments.model)
    return array_subject(arrays, dataset, evaluation, name=Path(arguments.model).stem, **options)


_SUBJECTS = {"checkpoint": _checkpoint, "backbone": _backbone, "embeddings": _embeddings}


def _joined_features(
    arguments: EvaluationArguments, kind: str, study: "Study", slides: list[str], record: dict[str, Any]
) -> tuple["Study", Any]:
    """Return the study, without spots that have no features, and the features; the study and None if none are given."""
    from ..data.feature_files import is_features
    from ..data.patch_features import join_features
    from ..evaluation.embedding_files import embedding_files
    from ..record import check_patch_size

    path, model = arguments.features, Path(arguments.model)
    if kind == "embeddings" and not embedding_files(model) and (model.is_dir() or model.suffix in (".h5", ".hdf5")):
        path = arguments.model
    elif path is not None and kind != "checkpoint":
        raise ValueError(
            f"--features is for a checkpoint that was trained on features made elsewhere, and {arguments.model} is not "
            "one. Give the folder of the features in place of the model: delst evaluate FEATURES DATASET."
        )
    if path is None:
        return study, None
    if not is_features(path):
        raise ValueError(f"{path} holds no files of features. Give the folder that does, one file per slide.")
    study, features = join_features(path, study, slides, arguments.features_patch_px)
    check_patch_size(record, features.patch_um, arguments.model, of_features=True)
    return study, features


def choose_slides(
    arguments: EvaluationArguments, study: "Study", record: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Choose slides to fit the probes on and slides to score; refuse test slides that the checkpoint has seen."""
    from ..evaluation import slides

    # The gene side has seen the counts of unpaired slides.
    trained = [*record.get("train_slides", []), *record.get("unpaired_slides", [])]
    named = split_names(arguments.train_slides), split_names(arguments.test_slides)
    seen = [slide for slide in named[1] if slide in trained]
    if seen and not arguments.allow_seen_slides:
        raise ValueError(
            f"The checkpoint was trained on {seen}, so scores on them would be worthless. Choose test slides outside "
            f"{trained}, or insist with --allow-seen-slides."
        )
    return slides.choose_slides(study, trained, *named)


# What the help shows, in the order of reading: heading -> options.
EVALUATION: dict[str, tuple[str, ...]] = {
    "what is evaluated": ("model", "dataset", "output"),
    "slides": ("test_slides", "train_slides", "split", "allow_seen_slides", "ignore_labels"),
    "what is scored": ("protocols", "num_genes", "signatures", "domain_method"),
    "baselines and intervals": ("baselines", "frozen_backbone", "num_seeds", "resamples"),
    "the model": ("batch_size", "image_size", "geometry", "curvature", "features", "features_patch_px"),
}  # fmt: skip


def add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `delst evaluate MODEL DATASET`: a model and a dataset folder -> tables and one JSON of results.

    Score a checkpoint, a vision backbone or embeddings from elsewhere, beside baselines, by every protocol on slides that were
    not used for training.

    Examples:
        delst evaluate runs/toy/pretrain/model runs/toy/data --output results.json
        delst evaluate facebook/dinov2-small runs/toy/data --output dinov2.json
        delst evaluate embeddings.npz runs/toy/data --output embeddings.json
        delst prepare toy --output toy-dataset   makes a dataset to try it on
    """
    parser = add_command(commands, "evaluate", add_evaluate, _run_evaluate)
    about, known = documented(EvaluationArguments), {one.name: one for one in fields(EvaluationArguments)}
    for heading, options in EVALUATION.items():
        section = parser.add_argument_group(heading)
        for name in options:
            _add_option(section, known[name], *about[name])


def _add_option(section: Any, option: Any, text: str, when: str) -> None:
    name = f"--{option.name.replace('_', '-')}"
    if option.default is MISSING:
        section.add_argument(option.name, metavar=option.name.upper(), help=text)
        return
    text = explained(text, option.default, when).replace("%", "%%")
    if isinstance(option.default, bool):
        section.add_argument(name, action=argparse.BooleanOptionalAction, default=option.default, help=text)
    else:
        kind = next(one for one in (*get_args(option.type), option.type) if one is not None)
        value = {int: "N", float: "F"}.get(kind, "TEXT")
        section.add_argument(name, type=kind, default=option.default, metavar=value, help=text)


def _run_evaluate(arguments: argparse.Namespace) -> None:
    run_evaluation(EvaluationArguments(**given(arguments, *EvaluationArguments.__annotations__)))
