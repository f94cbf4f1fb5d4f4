"""Learning rates chosen per geometry, with equal budgets, on validation slides: transformers' search by optuna.

A rate that suits one geometry may starve another, so geometries are compared fairly only when each has had the same number of
trials. Test slides are never read: a search requires validation slides.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import SaveStrategy

from ..atomic.files import write_text
from ..atomic.processes import end_like_interrupted
from ..data.study import Study
from ..errors import optional_library, reading
from ..model.modeling_delst import DelstModel
from ..record import hyperparameters
from .arguments import DataArguments, DelstTrainingArguments, ModelArguments, split_names
from .checked_trainer import NotFiniteError
from .checkpoints import own_output
from .run import assemble, open_study

RANGES = {"learning_rate": (1e-4, 1e-2), "vision_learning_rate": (1e-5, 1e-3), "scalar_learning_rate": (1e-3, 5e-2)}
"""Ranges of the rates, drawn on a logarithmic scale."""

GOALS = ("eval_image_to_gene_recall@10", "eval_gene_to_image_recall@10")
"""Metrics of the validation slides whose mean is maximised: unlike a loss, they mean the same in every geometry."""


@dataclass
class SearchArguments:
    """Arguments of a search.

    Args:
        geometries: Comma-separated geometries to search, each with the same number of trials. Touch it: to leave some out.
        trials: Runs per geometry. Touch it: 10 to 30; all geometries get as many.
        search_seed: Seed of the draws, the same for every geometry. Touch it: to see how much the choice depends on the draws.

    >>> SearchArguments().trials
    20
    """

    geometries: str = "lorentz,euclidean,cosine"
    trials: int = 20
    search_seed: int = 0


def search(data: DataArguments, model: Any, training: DelstTrainingArguments, options: SearchArguments) -> Path:
    """Search the learning rates of each geometry, and write the results.

    Args:
        data: Slides to train on and to validate on.
        model: `ModelArguments`; its geometry is set by the search, and its entailment weights apply to the Lorentz geometry.
        training: Arguments of each run. Every run begins from the same seed, and none saves its weights.
        options: Geometries and budget.

    Returns:
        ``OUTPUT_DIR/search.json``: per geometry the best rates and their value, and the number of trials. A geometry that
        the file holds already is not searched again.

    Raises:
        ValueError: If there are no validation slides, a number or geometry is not possible, no trial of a geometry ends with
            finite numbers, or the file is of a search with other settings.
        OSError: Before any work, if the output cannot be written, or another run is writing there.
        ImportError: If optuna is not installed.
    """
    names = _checked(data, model, training, options)
    # No trial is resumed: its rates and its value are the result, and the weights of sixty runs would fill the disk.
    training.save_strategy = SaveStrategy.NO
    with own_output(training.output_dir):
        path = Path(training.output_dir or ".") / "search.json"
        found = _found_before(path)
        settings = {"search_seed": options.search_seed, **hyperparameters(data, model, training)}
        settings = {name: value for name, value in settings.items() if name not in ("geometry", *RANGES)}
        _check_settings(path, {name: found[name] for name in names if name in found}, settings)
        study = open_study(data, training)
        for name in names:
            if found.get(name, {}).get("trials_asked") == options.trials:
                continue
            best = _search_one(study, data, _of_geometry(model, name), training, options)
            found[name] = {**best, "settings": settings}
            write_text(path, json.dumps(found, indent=1) + "\n")
    return path


def _found_before(path: Path) -> dict[str, Any]:
    """Return the results of an earlier search in this folder, which this one continues."""
    if not path.is_file():
        return {}
    with reading(path, "search", "Delete it, or choose another --output_dir, and search again."):
        return {str(name): dict(found) for name, found in json.loads(path.read_text(encoding="utf-8")).items()}


def _check_settings(path: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to take results of other settings for those of this search; results of earlier versions name none."""
    for name, one in found.items():
        before = one.get("settings", settings)
        other = sorted(key for key in before | settings if before.get(key) != settings.get(key))
        if other:
            raise ValueError(
                f"{path} holds a search of the geometry {name} with other settings: {', '.join(other)}. Choose another "
                "--output_dir, or give the settings of that search."
            )


def main(argv: list[str] | None = None, description: str = "") -> None:
    """Run the command line of training/search.py, and print the best rates of each geometry.

    Args:
        argv: Command line without the program's name; that of the process by default.
        description: What ``--help`` begins with.
    """
    from .help_groups import PRETRAINING
    from .options import parse_arguments

    end_like_interrupted()
    classes = (DataArguments, ModelArguments, DelstTrainingArguments, SearchArguments)
    kept = {heading: options for heading, options in PRETRAINING.items() if not heading.startswith("the Hub")}
    path = search(
        *parse_arguments(classes, description, argv, {"the search": tuple(SearchArguments.__annotations__), **kept})
    )
    for name, found in json.loads(path.read_text(encoding="utf-8")).items():
        best = dict(found["best"])
        value = best.pop("value")
        rates = " ".join(f"--{rate} {number:.2g}" for rate, number in best.items())
        print(f"{name}: mean recall at 10 {value:.3f} by --geometry {name} {rates}")
    print(f"Trials: {path}")


def _checked(data: DataArguments, model: Any, training: DelstTrainingArguments, options: SearchArguments) -> list[str]:
    names = split_names(options.geometries)
    unknown = [name for name in names if name not in ("lorentz", "euclidean", "cosine")]
    if unknown or not names:
        raise ValueError(
            f"--geometries {options.geometries!r}: choose from lorentz, euclidean and cosine, comma-separated."
        )
    if options.trials < 1:
        raise ValueError(f"--trials {options.trials}: give 1 or more runs per geometry. 20 are usual.")
    if training.world_size > 1:
        raise ValueError(
            f"{training.world_size} processes were started, and a search runs in one. Start it without torchrun or "
            "accelerate's --multi_gpu; to use several devices, start one search per geometry (--geometries lorentz), with an "
            "--output_dir of its own."
        )
    if training.push_to_hub:
        raise ValueError(
            "--push_to_hub would push every trial of the search. Leave it out, and push the run with the best rates."
        )
    if model.init_from is not None:
        raise ValueError("--init_from continues one geometry; a search trains each from the start. Leave it out.")
    optional_library("optuna", "the search needs optuna, which is not installed: pip install 'delst-hf[search]'")
    return names


def _of_geometry(model: Any, name: str) -> Any:
    """Return the model's arguments in one geometry; entailment weights apply to the Lorentz geometry only."""
    if name == "lorentz":
        return dataclasses.replace(model, geometry=name)
    return dataclasses.replace(model, geometry=name, cross_entailment_weight=None, intra_entailment_weight=None)


def _search_one(
    study: Study, data: DataArguments, model: Any, training: DelstTrainingArguments, options: SearchArguments
) -> dict[str, Any]:
    """Search one geometry."""
    import optuna

    trainer = assemble(study, data, model, training)
    if trainer.eval_dataset is None:
        raise ValueError(
            "A search needs validation slides, on which the rates are compared: give --validation_slides, of a patient who is "
            "not trained on. Test slides must not be used for it."
        )
    first = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    blank, trainer.model_init = trainer.model, lambda: _again(blank, first)

    def space(trial: Any) -> dict[str, float]:
        return {name: trial.suggest_float(name, *span, log=True) for name, span in RANGES.items()}

    diverged, train = [], trainer.train

    def counted(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except NotFiniteError as error:
            diverged.append(str(error))
            raise

    trainer.train = counted  # type: ignore[method-assign]
    logging.getLogger("optuna.study._optimize").addFilter(_without_traceback)
    try:
        best: Any = trainer.hyperparameter_search(
            space,
            compute_objective=lambda metrics: sum(metrics[goal] for goal in GOALS) / len(GOALS),
            n_trials=options.trials,
            direction="maximize",
            backend="optuna",
            sampler=optuna.samplers.TPESampler(seed=options.search_seed),
            catch=(NotFiniteError,),  # rates that diverge are a result of the search, not its end
        )
    except ValueError as error:
        if len(diverged) < options.trials:
            raise
        raise ValueError(
            f"None of the {options.trials} trials of the geometry {model.geometry} ended with finite numbers. Give more "
            "--trials, or check the weights of the losses and --weight_decay."
        ) from error
    return {
        "trials_asked": options.trials,
        "trials_not_finite": len(diverged),
        "best": {"value": best.objective, **best.hyperparameters},
        "goal": list(GOALS),
    }


def _without_traceback(record: logging.LogRecord) -> bool:
    """Reduce optuna's log of a failed or interrupted trial to one line."""
    record.exc_info = record.exc_text = None
    return True


def _again(model: DelstModel, weights: dict[str, Any]) -> DelstModel:
    """Return the model as it was before its first step."""
    model.load_state_dict(weights)
    return model
