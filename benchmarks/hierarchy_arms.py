"""List the trainings of hierarchy_study.py: its arms, its splits of two datasets, and their order."""

import argparse
from dataclasses import dataclass, field
from typing import Any

from hierarchy_values import best_rates, load  # beside this file

MAIN = ("HER2ST", "MOB1", "MOB2")
LEFT_OUT = ("without A", "without B", "without C")
STRONG = {"min_radius": 0.3, "cross_entailment_weight": 1.0, "intra_entailment_weight": 0.3}
NESTED = {"views": "nested", "cross_aperture_scale": 0.7, "intra_aperture_scale": 1.2, "intra_entailment_weight": 0.2}
NONE = {"entailment": "none"}
# Trained on a dataset of wide patches; weights of HyperST.
NICHE = {"levels": "niche", "cross_aperture_scale": 0.7, "intra_aperture_scale": 1.2, "intra_entailment_weight": 0.08}

# Arm -> options of training/pretrain.py: arms without entailment, then its forms, controls, and all others.
ARMS: dict[str, dict[str, Any]] = {
    "none": NONE,
    "cone": {},
    "cosine": {"geometry": "cosine"},
    "euclidean": {"geometry": "euclidean"},
    "cone, shuffled": {"level_key": "shuffled"},
    "cone, total counts": {"level_key": "total_counts"},
    "uncha": {"entailment": "uncha"},
    "argent": {"entailment": "argent"},
    "negatives": {"entailment": "negatives"},
    "difference": {"entailment": "difference"},
    "radial": {"entailment": "radial"},
    "radial, shuffled": {"entailment": "radial", "level_key": "shuffled"},
    "cone, floor": {"radius_floor": 0.5},
    "strong cone": STRONG,
    "strong cone, floor": {**STRONG, "radius_floor": 0.8},
    "strong radial": {"entailment": "radial", "cross_entailment_weight": 1.0, "intra_entailment_weight": 1.0},
    "nested, none": {**NONE, "views": "nested"},
    "nested cone": NESTED,
    "nested uncha": {**NESTED, "entailment": "uncha"},
    "cone, stain light": {"stain_jitter": "light"},
    "cone, stain strong": {"stain_jitter": "strong"},
    "cone, crops": {"min_crop": 0.7},
    "cosine, stain light": {"geometry": "cosine", "stain_jitter": "light"},
    "cone, regression": {"regression_weight": 1.0},
    "cosine, regression": {"geometry": "cosine", "regression_weight": 1.0},
    "cone, reinhard": {"stain_normalization": "reinhard"},
    "cone, macenko": {"stain_normalization": "macenko"},
    "cone, slides masked": {"mask_negatives": "slide"},
    "cone, unpaired": {"unpaired_slides": "all"},
    "niche, none": {**NONE, "levels": "niche"},
    "niche, euclidean": {"geometry": "euclidean", "levels": "niche"},
    "niche cone": NICHE,
}
CORE = ("none", "cone", "cosine", "euclidean", "cone, shuffled", "cone, total counts", "radial")
"""The arms of the splits that leave a patient out."""

BASELINES = "baselines"
"""The unit that trains nothing: colour statistics, the backbone with random weights, and the backbone before training."""


@dataclass(frozen=True)
class Split:
    """Slides to train on and to score, of one dataset.

    Attributes:
        dataset: Name of one of the two datasets.
        train, test: Slides.
        epochs: Number of epochs, chosen so that every split takes a similar number of steps.
        same_patient: Names of the test slides of patients that are trained on.
    """

    dataset: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    epochs: float = 12.0
    same_patient: tuple[str, ...] = ()


SPLITS = {
    "HER2ST": Split("her2st", ("C2", "C3", "C4"), ("C5", "B4", "A1"), 12, ("C5",)),
    "MOB1": Split("mob", ("MOB1",), ("MOB2",), 24),
    "MOB2": Split("mob", ("MOB2",), ("MOB1",), 18),
    # One patient left out: only A, B and C have an image.
    "without A": Split("her2st", ("B4", "C2", "C3"), ("A1",), 9),
    "without B": Split("her2st", ("A1", "C2", "C3"), ("B4",), 9),
    "without C": Split("her2st", ("A1", "B4"), ("C2", "C5"), 12),
}
TUNING = {
    "HER2ST": Split("her2st", ("C2", "C3"), ("C4",), 18, ("C4",)),
}
"""Splits whose test slides are validation slides: learning rates are chosen there and nowhere else."""

RATES = [(head, vision) for head in (3e-4, 1e-3, 3e-3) for vision in (5e-5, 2e-4, 8e-4)]
TUNED_GEOMETRIES = {"cosine": {"geometry": "cosine"}, "euclidean": {"geometry": "euclidean"}, "none": NONE, "cone": {}}


@dataclass(frozen=True)
class Unit:
    """One training and its evaluation."""

    split: str
    arm: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    tuning: bool = False

    @property
    def key(self) -> str:
        return f"{self.split}|{self.arm}|{self.seed}"


def training_data(split: Split, options: dict[str, Any]) -> str:
    """Return the name of the dataset that an arm trains on; all arms are scored on that of the split."""
    kind = "wide" if options.get("levels") == "niche" else "unpaired" if "unpaired_slides" in options else ""
    return f"{split.dataset} {kind}".strip()


def split_of(unit: Unit) -> Split:
    return (TUNING if unit.tuning else SPLITS)[unit.split]


def units_of(options: argparse.Namespace, done: set[str]) -> list[Unit]:
    """Return the units to run, seeds outermost, with the heavy splits first within a seed."""
    units = []
    if options.action == "tune":
        for seed in options.seeds:
            for split in TUNING:
                for name, chosen in TUNED_GEOMETRIES.items():
                    for head, vision in RATES:
                        rates = {"learning_rate": head, "vision_learning_rate": vision}
                        units.append(Unit(split, f"{name} {head:g} {vision:g}", seed, {**chosen, **rates}, True))
    else:
        arms = {name: ARMS[name] for name in options.arms or ARMS}
        if options.tuned:
            arms |= tuned_arms(options.tuned)
        chosen_splits = options.splits or SPLITS
        for seed in options.seeds:
            for split in (name for name in (*MAIN, *LEFT_OUT) if name in chosen_splits):
                units += split_units(split, seed, arms)
    folders, waiting = folders_of(options), [unit for unit in units if unit.key not in done]
    possible = [unit for unit in waiting if folders.get(training_data(split_of(unit), unit.options))]
    if missing := sorted({unit.arm for unit in waiting} - {unit.arm for unit in possible}):
        print(f"left out, since the dataset that they train on is not given: {'; '.join(missing)}", flush=True)
    return possible


def folders_of(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the folder of each dataset, None for those not given, whose arms are not run."""
    folders = {"her2st": options.her2st, "mob": options.mob, "her2st unpaired": options.her2st_unpaired}
    return folders | {"her2st wide": options.her2st_wide, "mob wide": options.mob_wide}


def split_units(split: str, seed: int, arms: dict[str, dict[str, Any]]) -> list[Unit]:
    """Return the arms of a split: all, or the core ones where a patient is left out; masks of slides need two slides."""
    units = [Unit(split, BASELINES, seed)]
    for name, chosen in arms.items():
        alone = len(SPLITS[split].train) < 2 and "mask_negatives" in chosen
        if not alone and (split in MAIN or name in CORE):
            units.append(Unit(split, name, seed, chosen))
    return units


def tuned_arms(path: str) -> dict[str, dict[str, Any]]:
    """Return the arms at the learning rates that were best on validation slides, from the results of `tune`."""
    chosen = best_rates(load(path))
    return {f"{name}, tuned": {**TUNED_GEOMETRIES[name], **rates} for name, rates in chosen.items()}


def in_order(units: dict[str, Any]) -> dict[str, Any]:
    """Return units by split, arm and seed: the tables show sections and arms in this order."""
    names = [BASELINES, *ARMS, *(f"{name}, tuned" for name in TUNED_GEOMETRIES)]
    places = {name: place for place, name in enumerate([*SPLITS, *names])}

    def place(key: str) -> tuple[int, int, str, int]:
        split, arm, seed = key.split("|")
        return places[split], places.get(arm, len(places)), arm, int(seed)

    return {key: units[key] for key in sorted(units, key=place)}
