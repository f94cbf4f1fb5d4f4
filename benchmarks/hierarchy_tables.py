"""The tables of docs/results.md out of the results files of hierarchy_study.py, in Markdown.

Differences are paired by seed and section. Their intervals are over seeds and sections, both taken as random: the variance of
the mean of a table (sections, seeds) is estimated by the mean squares of its two margins less that of the rest, and the
interval is Student's with Satterthwaite's degrees of freedom. P-values are corrected over a table's arms by Holm.
"""

import contextlib
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

# (arm, metric) -> {(split, slide): {seed: value}}
Values = dict[tuple[str, str], dict[tuple[str, str], dict[int, float]]]

MAIN = ("HER2ST", "MOB1", "MOB2")
LEFT_OUT = ("without A", "without B", "without C")
REFERENCE = "none"
RADIUS, GENES, TISSUE = "image radius", "predicted number of genes", "tissue fraction"
NAMES = {
    "none": "Lorentz, no entailment",
    "cosine": "cosine",
    "euclidean": "Euclidean",
    "cone": "cone (the default)",
    "none, tuned": "Lorentz, no entailment, tuned",
    "euclidean, tuned": "Euclidean, tuned",
}


def unpack(packed: dict[str, Any]) -> dict[str, Any]:
    """Units with their scores by name, out of a results file: there, names stand once and values in their order."""
    names = packed["metrics"]
    units = {
        key: {
            **unit,
            "scores": {
                slide: {name: value for name, value in zip(names, values, strict=False) if value is not None}
                for slide, values in unit["scores"].items()
            },
        }
        for key, unit in packed["units"].items()
    }
    return {**packed, "units": units}


def pack(results: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `unpack`; what is not finite is left out."""
    every = (scores for unit in results["units"].values() for scores in unit["scores"].values())
    names = list(dict.fromkeys(name for scores in every for name in scores))
    units = {
        key: {
            **unit,
            "scores": {
                slide: [scores[name] if math.isfinite(scores.get(name, math.nan)) else None for name in names]
                for slide, scores in unit["scores"].items()
            },
        }
        for key, unit in results["units"].items()
    }
    return {**results, "metrics": names, "units": units}


def load(path: str | Path) -> dict[str, Any]:
    """Read a results file."""
    return unpack(json.loads(Path(path).read_text(encoding="utf-8")))


def read(paths: Sequence[str], splits: Sequence[str]) -> Values:
    """Values of the units of these splits."""
    values: Values = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        for key, unit in load(path)["units"].items():
            split, arm, seed = key.split("|")
            if split not in splits:
                continue
            for slide, scores in unit["scores"].items():
                for metric, value in scores.items():
                    if math.isfinite(value):
                        values[arm, metric][split, slide][int(seed)] = value
    return values


def paired(first: dict, second: dict | None = None) -> np.ndarray:
    """Table (sections, seeds) of values, or of differences, of the sections and seeds that are complete."""
    sections = [section for section in first if second is None or section in second]
    seeds = [
        set(first[section]) & (set(second[section]) if second is not None else set(first[section]))
        for section in sections
    ]
    common = sorted(set.intersection(*seeds)) if seeds else []
    return np.array(
        [[first[s][seed] - (second[s][seed] if second is not None else 0.0) for seed in common] for s in sections]
    ).reshape(len(sections), len(common))


def crossed_interval(table: np.ndarray, level: float = 0.95) -> tuple[float, float, float, float]:
    """Mean of a table (sections, seeds), its interval, and the p-value of a mean of 0.

    With sections and seeds both random, ``var(mean) = (MS_sections + MS_seeds - MS_rest) / (sections * seeds)``; where that
    is below either share alone, the larger of the two; degrees of freedom are Satterthwaite's. With one section or one seed
    only the other margin varies, and the interval says nothing of the one that does not. NaN where neither does.
    """
    rows, columns = table.shape
    mean = float(table.mean()) if table.size else math.nan
    if table.size < 2:
        return mean, math.nan, math.nan, math.nan
    by_section, by_seed = table.mean(axis=1), table.mean(axis=0)
    shares, freedom = [], []
    if rows > 1:
        shares.append(columns * ((by_section - mean) ** 2).sum() / (rows - 1))
        freedom.append(rows - 1)
    if columns > 1:
        shares.append(rows * ((by_seed - mean) ** 2).sum() / (columns - 1))
        freedom.append(columns - 1)
    variance, spread = sum(shares), sum(share**2 / df for share, df in zip(shares, freedom, strict=True))
    if len(shares) == 2:
        rest = ((table - by_section[:, None] - by_seed + mean) ** 2).sum() / ((rows - 1) * (columns - 1))
        variance, spread = max(variance - rest, *shares), spread + rest**2 / ((rows - 1) * (columns - 1))
    error = math.sqrt(variance / table.size)
    if error == 0:
        return mean, mean, mean, 1.0 if mean == 0 else 0.0
    degrees = max(variance**2 / spread, min(freedom))
    reach = float(student.ppf(0.5 + level / 2, degrees)) * error
    return mean, mean - reach, mean + reach, float(2 * student.sf(abs(mean) / error, degrees))


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down; NaN stays out.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    corrected, highest = [math.nan] * len(values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * values[index]))
        corrected[index] = highest
    return corrected


def best_rates(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Learning rates of the highest mean Pearson on validation slides, by geometry."""
    found: dict[str, dict[tuple[float, float], list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, unit in results["units"].items():
        geometry, head, vision = key.split("|")[1].split(" ")
        for scores in unit["scores"].values():
            found[geometry][float(head), float(vision)].append(scores["pearson:embedding"])
    best = {name: max(rates, key=lambda pair: float(np.mean(rates[pair]))) for name, rates in found.items()}
    return {name: {"learning_rate": pair[0], "vision_learning_rate": pair[1]} for name, pair in best.items()}


def show(arm: str) -> str:
    return NAMES.get(arm, arm)


def interval(table: np.ndarray, digits: int = 3) -> str:
    mean, low, high, _ = crossed_interval(table)
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" + ("" if math.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})")


def by_slide(section: dict[tuple[str, str], dict[int, float]], digits: int = 3) -> str:
    """Mean over seeds of each section, one after the other."""
    return " / ".join(f"{np.mean(list(seeds.values())):.{digits}f}" for seeds in section.values())


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def arms_with(values: Values, metric: str) -> list[str]:
    return list(dict.fromkeys(arm for arm, name in values if name == metric))


def sections_line(values: Values, metric: str) -> None:
    sections = list(dict.fromkeys(s for (_, name), found in values.items() if name == metric for s in found))
    seeds = {seed for (_, name), found in values.items() if name == metric for each in found.values() for seed in each}
    print(f"Sections: {' / '.join(f'{slide} ({split})' for split, slide in sections)}; {len(seeds)} seeds.\n")


def compare(
    values: Values, metrics: dict[str, str], reference: str = REFERENCE, digits: int = 3, detail: bool = True
) -> None:
    """One row per arm: each metric by section, and its difference to the reference arm."""
    main = next(iter(metrics))
    arms = [arm for arm in arms_with(values, main) if arm != "baselines"]
    sections_line(values, main)
    header, columns = ["arm"], []
    for metric, title in metrics.items():
        tables = [paired(values[arm, metric], values[reference, metric]) for arm in arms]
        results = [crossed_interval(table) if table.size else (math.nan,) * 4 for table in tables]
        corrected = holm([math.nan if arm == reference else p for arm, (_, _, _, p) in zip(arms, results, strict=True)])
        header += ([title] if detail else []) + [f"{title}: less {show(reference)}", "p (Holm)"]
        if detail:
            columns.append([by_slide(values[arm, metric], digits) for arm in arms])
        columns.append(
            ["" if arm == reference else interval(table, digits) for arm, table in zip(arms, tables, strict=True)]
        )
        columns.append([verdict(p) for p in corrected])
    print_rows(header, [[show(arm), *cells] for arm, *cells in zip(arms, *columns, strict=True)])


def verdict(p: float) -> str:
    """A corrected p-value; above .05 the difference is inside the spread."""
    if math.isnan(p):
        return ""
    return f"{p:.3f}" if p < 0.05 else f"no difference ({p:.2f})"


def baselines(values: Values, metric: str) -> None:
    """The arms that train nothing, and that the trained ones are to beat."""
    names = ("colour statistics", "random-init backbone", "frozen backbone")
    rows = [
        [name, by_slide(values["baselines", f"{metric}:{name}"])]
        for name in names
        if ("baselines", f"{metric}:{name}") in values
    ]
    print()
    print_rows(["baseline", "by section"], rows)


def prediction(values: Values) -> None:
    compare(values, {"pearson:embedding": "ridge on the embedding", "pearson:retrieval": "retrieval"})
    baselines(values, "pearson")


def backbone(values: Values) -> None:
    compare(values, {"pearson:backbone": "ridge on the backbone", "recall@10:image_to_gene": "R@10 image to gene"})


def labels(values: Values) -> None:
    compare(values, {"f1:backbone": "macro-F1, backbone", "f1:embedding": "macro-F1, embedding"})
    baselines(values, "f1")
    best_baseline(values)


def best_baseline(values: Values) -> None:
    """The paper's claim: macro-F1 of the default over the best baseline."""
    ours = values["cone", "f1:backbone"]
    rivals = {name[3:]: found for (arm, name), found in values.items() if arm == "baselines" and name.startswith("f1:")}
    if not rivals or not ours:
        return
    best = max(rivals, key=lambda name: paired(rivals[name]).mean())
    print(f"\nThe default's backbone less the best baseline ({best}): {interval(paired(ours, rivals[best]))}")


def order(values: Values) -> None:
    titles = {
        "rho:image radius, genes": "rho(image radius, genes)",
        "rho:image radius, genes given counts": "given total counts",
        "rho:gene radius, genes": "rho(gene radius, genes)",
    }
    compare(values, titles, digits=2)
    print("\nAgainst the shuffled order:\n")
    shuffled = {
        key: found for key, found in values.items() if key[0] in ("cone", "cone, shuffled", "cone, total counts")
    }
    compare(shuffled, dict(list(titles.items())[:2]), "cone, shuffled", digits=2, detail=False)


def entailment(values: Values) -> None:
    titles = {
        "entailment_auc": "AUC",
        "entailment_ap": "average precision",
        "entailment_asymmetry": "asymmetry",
        "entailment_auc_decile": "AUC in the decile",
        "in_cone_matched": "in cone",
        "in_cone_mismatched": "in cone, mismatched",
        "radius:gene": "gene radius",
        "radius:image": "image radius",
    }
    arms = arms_with(values, "entailment_auc")
    sections_line(values, "entailment_auc")
    rows = [[show(arm), *(interval(paired(values[arm, metric]), 2) for metric in titles)] for arm in arms]
    print_rows(["arm", *titles.values()], rows)


KINDS = {
    "ridge": "ridge",
    "ridge, centred": "ridge, centred",
    "retrieval": "retrieval",
    "retrieval, centred": "retrieval, centred",
    "labels": "labels",
}


def confidences_of(values: Values, arm: str, kind: str) -> list[str]:
    found = [name.split("|")[1] for (one, name) in values if one == arm and name.startswith(f"rho:{kind}|")]
    return list(dict.fromkeys(found))


def reliability(values: Values, arm: str = "cone", metric: str = "rho", digits: int = 2) -> None:
    """One row per confidence of the default arm, one column per kind of error, and the image radius less each rival."""
    kinds = [kind for kind in KINDS if (arm, f"rho:{kind}|{RADIUS}") in values]
    names = confidences_of(values, arm, kinds[0])
    sections_line({key: found for key, found in values.items() if key[0] == arm}, f"rho:{kinds[0]}|{RADIUS}")
    columns = []
    for kind in kinds:
        tables = [paired(values[arm, f"{metric}:{kind}|{name}"]) for name in names]
        columns.append([interval(table, digits) for table in tables])
    print_rows(["confidence", *(KINDS[kind] for kind in kinds)], [[*row] for row in zip(names, *columns, strict=True)])


def rivals(values: Values, arm: str = "cone") -> None:
    """The image radius less each rival, Spearman with accuracy, corrected over the rivals of a column."""
    kinds = [kind for kind in KINDS if (arm, f"rho:{kind}|{RADIUS}") in values]
    names = [name for name in confidences_of(values, arm, kinds[0]) if name != RADIUS]
    header, columns = [f"{RADIUS} less"], []
    for kind in kinds:
        own = values[arm, f"rho:{kind}|{RADIUS}"]
        tables = [paired(own, values[arm, f"rho:{kind}|{name}"]) for name in names]
        corrected = holm([crossed_interval(table)[3] for table in tables])
        header += [KINDS[kind], "p (Holm)"]
        columns += [[interval(table, 2) for table in tables], [verdict(p) for p in corrected]]
    print_rows(header, [[*row] for row in zip(names, *columns, strict=True)])


def excess(values: Values) -> None:
    reliability(values, metric="aurc")


def gain(values: Values) -> None:
    reliability(values, metric="gain", digits=3)


def tissue(values: Values, arm: str = "cone, crops") -> None:
    """What a share of tissue tells, beside the radius and the predicted number of genes of the same runs.

    It was scored later than the rest: of the arm that was run last.
    """
    kinds = [kind for kind in KINDS if (arm, f"rho:{kind}|{TISSUE}") in values]
    scored = values[arm, f"rho:{kinds[0]}|{TISSUE}"]
    sections_line({key: found for key, found in values.items() if key[0] == arm}, f"rho:{kinds[0]}|{TISSUE}")

    def of_the_same_runs(metric: str) -> dict[tuple[str, str], dict[int, float]]:
        found = values[arm, metric]
        return {section: {seed: found[section][seed] for seed in scored[section]} for section in found}

    own = {name: [of_the_same_runs(f"rho:{kind}|{name}") for kind in kinds] for name in (RADIUS, GENES, TISSUE)}
    rows = [[name, *(interval(paired(one), 2) for one in found)] for name, found in own.items()]
    for rival in (RADIUS, GENES):
        less = zip(own[rival], own[TISSUE], strict=True)
        rows.append([f"{rival} less {TISSUE}", *(interval(paired(*pair), 2) for pair in less)])
    print_rows(["confidence", *(KINDS[kind] for kind in kinds)], rows)


def radius_by_arm(values: Values) -> None:
    """Whether some form of entailment makes the image radius a better confidence."""
    compare(values, {f"rho:{kind}|{RADIUS}": f"{KINDS[kind]}" for kind in ("ridge", "retrieval")}, digits=2)


def rates(values: Values) -> None:
    """Validation score of each learning rate, by geometry."""
    geometries: dict[str, dict[str, str]] = defaultdict(dict)
    for arm in arms_with(values, "pearson:embedding"):
        geometry, head, vision = arm.split(" ")
        geometries[geometry][f"{head} / {vision}"] = f"{paired(values[arm, 'pearson:embedding']).mean():.3f}"
    columns = list(next(iter(geometries.values())))
    print_rows(
        ["geometry", *columns],
        [[show(name), *(found.get(c, "") for c in columns)] for name, found in geometries.items()],
    )


TABLES: dict[str, tuple[Callable[[Values], None], tuple[str, ...]]] = {
    "prediction": (prediction, MAIN),
    "backbone": (backbone, MAIN),
    "labels": (labels, ("HER2ST",)),
    "order": (order, MAIN),
    "entailment": (entailment, MAIN),
    "reliability": (reliability, MAIN),
    "rivals": (rivals, MAIN),
    "excess": (excess, MAIN),
    "gain": (gain, MAIN),
    "radius": (radius_by_arm, MAIN),
    "tissue": (tissue, MAIN),
    "prediction-left-out": (prediction, LEFT_OUT),
    "labels-left-out": (labels, LEFT_OUT),
    "reliability-left-out": (reliability, LEFT_OUT),
    "rivals-left-out": (rivals, LEFT_OUT),
    "order-left-out": (order, LEFT_OUT),
    "rates": (rates, ("HER2ST",)),
}


def print_table(name: str, paths: Sequence[str]) -> None:
    """Print one table in Markdown."""
    function, splits = TABLES[name]
    function(read(paths, splits))


def fill(page: Path, results: str, others: dict[str, str]) -> None:
    """Print every table of a page anew, between its marks ``<!-- table NAME -->`` and ``<!-- end -->``.

    Args:
        page: A Markdown file.
        results: Results of `run`.
        others: Results files of tables that have one of their own, by the name of the table.
    """

    def table(mark: re.Match[str]) -> str:
        name, text = mark[1], io.StringIO()
        with contextlib.redirect_stdout(text):
            print_table(name, [others.get(name, results)])
        return f"<!-- table {name} -->\n{text.getvalue().strip()}\n<!-- end -->"

    marked = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)
    page.write_text(marked.sub(table, page.read_text(encoding="utf-8")), encoding="utf-8")
