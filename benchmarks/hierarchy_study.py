"""Run the study of docs/results.md, every arm over several seeds on two tissues, and print its tables.

    python benchmarks/hierarchy_study.py run --her2st runs/her2st/data --mob runs/mob/data --vision $MOBILENET \\
        --seeds 0,1,2,3,4 --output runs/hierarchy.json
    python benchmarks/hierarchy_study.py table prediction --results docs/results/hierarchy.json

`run` trains each arm on the training slides of a split and scores it on slides that it has never read; several processes share
one GPU. Seeds are the outer loop, so a run ended by --minutes has complete seeds; results already in the output are kept.
`tune` tries learning rates with equal budgets per geometry on validation slides. `table` prints one table of docs/results.md,
and `fill` rewrites all tables of a page.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hierarchy_arms import (
    ARMS,
    BASELINES,
    SPLITS,
    TUNING,
    Unit,
    folders_of,
    in_order,
    split_of,
    training_data,
    units_of,
)
from hierarchy_tables import TABLES, fill, print_table  # beside this file, as the others
from hierarchy_values import load, pack

GRACE = 30.0
"""Seconds to wait after the deadline for units that have started."""


@dataclass(frozen=True)
class Setting:
    """What all units share: the paths of the data, and the length of a run."""

    folders: dict[str, str | None]
    vision: str
    scratch: str
    max_steps: int
    batch_size: int
    deadline: float


_SETTING: Any = None


def _start(setting: Setting) -> None:
    """Prepare a worker process: one thread each, and quiet libraries."""
    global _SETTING
    _SETTING = setting
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()


@cache
def study_of(folder: str) -> Any:
    from delst_hf.data.study import Study

    return Study.load(folder, cache_dir=os.path.join(tempfile.gettempdir(), f"study-{os.getpid()}"))


def work(unit: Unit) -> dict[str, Any]:
    """Train and score one unit; an error is recorded as its result."""
    if time.time() > _SETTING.deadline:
        return {"key": unit.key, "skipped": "out of time"}
    start = time.time()
    try:
        subject, spots, tissue = (baseline_subject if unit.arm == BASELINES else trained_subject)(unit)
        trained = time.time()
        from hierarchy_scores import score

        scores, predictions = score(subject, spots, tissue, unit.seed)
        if predictions and not unit.tuning:
            save_predictions(unit, predictions)
        return {
            "key": unit.key,
            "scores": scores,
            "seconds": [round(trained - start, 1), round(time.time() - trained, 1)],
        }
    except Exception:
        return {"key": unit.key, "error": traceback.format_exc()[-1500:]}


def save_predictions(unit: Unit, predictions: dict[str, Any]) -> None:
    np.savez(Path(_SETTING.scratch) / f"{unit.key.replace('|', '-')}.npz", **predictions)


def _evaluation(unit: Unit) -> Any:
    from delst_hf.evaluation.evidence import Evaluation

    return Evaluation(
        seeds=(unit.seed,), baselines=unit.arm == BASELINES, batch_size=128, progress=False, split="slide"
    )


def trained_subject(unit: Unit) -> Any:
    """Pretrain as training/pretrain.py does, and embed the spots of the split."""
    from delst_hf.evaluation.run import spots_of
    from delst_hf.evaluation.subjects import checkpoint_subject

    split = split_of(unit)
    study = study_of(_SETTING.folders[split.dataset])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(unit, folder)
        trainer.train()
    dataset = study.subset([*split.train, *split.test])
    evaluation = _evaluation(unit)
    subject = checkpoint_subject(trainer.trained_model(), trainer.processor, study, dataset, evaluation)
    return subject, spots_of(study, split.train, split.test, evaluation), np.asarray(dataset["tissue_fraction"])


def make_trainer(unit: Unit, folder: str) -> Any:
    from delst_hf.pretraining.arguments import DataArguments, DelstTrainingArguments, ModelArguments
    from delst_hf.pretraining.run import assemble

    split, options = split_of(unit), dict(unit.options)
    source = _SETTING.folders[training_data(split, options)]
    study = study_of(source)
    data = DataArguments(
        source,
        train_slides=",".join(split.train),
        # A dataset that is only trained on need not have them.
        test_slides=",".join(slide for slide in split.test if slide in study.slide_ids),
        same_patient_slides=",".join(slide for slide in split.same_patient if slide in study.slide_ids),
        num_genes=800,
        level_key=options.pop("level_key", "n_genes"),
        levels=options.pop("levels", "spot"),
        unpaired_slides=options.pop("unpaired_slides", ""),
    )
    training = {
        "num_train_epochs": split.epochs,
        "max_steps": _SETTING.max_steps,
        "per_device_train_batch_size": _SETTING.batch_size,
        "learning_rate": 1e-3,
        "vision_learning_rate": 2e-4,
        "scalar_learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "save_strategy": "no",
        "logging_steps": 1000,
        "report_to": [],
        "disable_tqdm": True,
        "seed": unit.seed,
    }
    names = DelstTrainingArguments.__dataclass_fields__
    training |= {name: options.pop(name) for name in list(options) if name in names}
    model = ModelArguments(**{"vision": _SETTING.vision, "image_size": 112, "projection_dim": 256, **options})
    return assemble(study, data, model, DelstTrainingArguments(folder, **training))


def baseline_subject(unit: Unit) -> Any:
    """Return colour statistics, random weights and the plain backbone: `checkpoint_subject` of a model before training."""
    from delst_hf.evaluation.run import spots_of
    from delst_hf.evaluation.subjects import checkpoint_subject, frozen_model

    split, evaluation = split_of(unit), _evaluation(unit)
    study = study_of(_SETTING.folders[split.dataset])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(unit, folder)
    dataset = study.subset([*split.train, *split.test])
    model = trainer.trained_model()
    frozen = frozen_model(model, _SETTING.vision)
    subject = checkpoint_subject(model, trainer.processor, study, dataset, evaluation, frozen=frozen)
    arms = [arm for arm in subject.arms if not arm.own]
    spots = spots_of(study, split.train, split.test, evaluation)
    return replace(subject, arms=tuple(arms), space=None), spots, np.asarray(dataset["tissue_fraction"])


def run(options: argparse.Namespace) -> None:
    output = Path(options.output)
    results = load(output) if output.is_file() else {"units": {}}
    units = units_of(options, set(results["units"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(options.scratch or tempfile.mkdtemp(prefix="study-"))
    scratch.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + 60 * options.minutes
    setting = Setting(
        folders_of(options), options.vision, str(scratch), options.max_steps, options.batch_size, deadline
    )
    print(f"{len(units)} units, {options.processes} processes", flush=True)
    context, begun = multiprocessing.get_context("spawn"), time.time()
    with context.Pool(options.processes, _start, (setting,)) as pool:
        finished = pool.imap_unordered(work, units)
        for number in range(1, len(units) + 1):
            try:
                result = finished.next(max(deadline + GRACE - time.time(), 1.0))
            except multiprocessing.TimeoutError:  # a worker died, or its last unit takes too long
                print(f"{number - 1} of {len(units)}: the rest did not end in time", flush=True)
                pool.terminate()
                break
            key = result.pop("key")
            if "error" in result:
                print(key, result["error"], flush=True)
            elif "scores" in result:
                results["units"][key] = result
            if number % 20 == 0:
                spent = f"{time.time() - begun:.0f} s, {key} {result.get('seconds', '')}"
                print(f"{number} of {len(units)} after {spent}", flush=True)
                write(output, results)
    if options.action == "run":
        from hierarchy_scores import score_ensembles

        score_ensembles(results["units"], scratch)
    results["units"] = in_order(results["units"])
    results["about"] = about(options, time.time() - begun)
    write(output, results)
    print(f"{output}: {len(results['units'])} units, {time.time() - begun:.0f} s", flush=True)


def about(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processes": options.processes,
        "seconds": round(seconds),
        "splits": {
            name: [list(split.train), list(split.test)]
            for name, split in (TUNING if options.action == "tune" else SPLITS).items()
        },
    }


def write(path: Path, results: dict[str, Any]) -> None:
    """Write results atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(pack(results), separators=(",", ":")), encoding="utf-8")
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("run", "tune"):
        action = actions.add_parser(name)
        action.add_argument("--her2st", default="runs/her2st/data", help="dataset folder of HER2ST (docs/results.md)")
        action.add_argument("--mob", default="runs/mob/data", help="dataset folder of MOB1 and MOB2")
        for name, tissue in (("--her2st-wide", "HER2ST"), ("--mob-wide", "the mouse")):
            text = f"{tissue} prepared with --patch-um 336 --patch-px 336, for the arms of niches"
            action.add_argument(name, help=text)
        text = "HER2ST merged with sections prepared with --without-image, for the arm of unpaired sections"
        action.add_argument("--her2st-unpaired", help=text)
        action.add_argument("--vision", default="google/mobilenet_v2_1.0_224", help="backbone to start from")
        action.add_argument(
            "--output", default=f"runs/hierarchy_{name}.json", help="results file, to which units are added"
        )
        action.add_argument("--scratch", help="folder of predictions per spot, for the ensembles of seeds")
        action.add_argument(
            "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2, 3, 4]
        )
        action.add_argument("--splits", nargs="+", choices=SPLITS, metavar="SPLIT", help="only these splits")
        action.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help="only these arms")
        action.add_argument("--tuned", help="results of `tune`: adds its geometries at their best learning rates")
        action.add_argument(
            "--processes", type=int, default=1, help="processes side by side; several are faster even on one GPU"
        )
        action.add_argument(
            "--minutes", type=float, default=1e6, help="units that have not started by then are left out"
        )
        action.add_argument("--max-steps", type=int, default=-1, help="steps of each run, for a trial")
        action.add_argument("--batch-size", type=int, default=128, help="spots per step; other sizes are for a trial")
    table = actions.add_parser("table")
    table.add_argument("name", choices=TABLES)
    table.add_argument("--results", nargs="+", required=True, help="results files of run, or of tune")
    page = actions.add_parser("fill", help="rewrite the tables of a page between their marks")
    page.add_argument("page", type=Path)
    page.add_argument("--results", required=True, help="results file of run")
    page.add_argument("--rates", help="results file of tune, for a page with the table of rates")
    options = parser.parse_args()
    if options.action == "fill":
        fill(options.page, options.results, {"rates": options.rates})
    elif options.action == "table":
        print_table(options.name, options.results)
    else:
        run(options)


if __name__ == "__main__":
    main()
