"""Print the tables of docs/results.md from the results files of hierarchy_study.py, in Markdown."""

import contextlib
import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hierarchy_arms import LEFT_OUT, MAIN  # beside this file, as the next one
from hierarchy_values import Values, crossed_interval, holm, paired, read

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


def show(arm: str) -> str:
    return NAMES.get(arm, arm)


def interval(table: np.ndarray, digits: int = 3) -> str:
    mean, low, high, _ = crossed_interval(table)
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" + ("" if math.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})")


def by_slide(section: dict[tuple[str, str], dict[int, float]], digits: int = 3) -> str:
    """Return the mean over seeds of each section, as text."""
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
    """Print one row per arm: each metric by section, and its difference to the reference arm."""
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
    """Return a corrected p-value as text; above .05 the difference is inside the spread."""
    if math.isnan(p):
        return ""
    return f"{p:.3f}" if p < 0.05 else f"no difference ({p:.2f})"


def baselines(values: Values, metric: str) -> None:
    """Return the arms that train nothing, which the trained ones should beat."""
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
    """Print the paper's claim: macro-F1 of the default against the best baseline."""
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
    """Print a row per confidence of the default arm, a column per kind of error, and the image radius minus each rival."""
    kinds = [kind for kind in KINDS if (arm, f"rho:{kind}|{RADIUS}") in values]
    names = confidences_of(values, arm, kinds[0])
    sections_line({key: found for key, found in values.items() if key[0] == arm}, f"rho:{kinds[0]}|{RADIUS}")
    columns = []
    for kind in kinds:
        tables = [paired(values[arm, f"{metric}:{kind}|{name}"]) for name in names]
        columns.append([interval(table, digits) for table in tables])
    print_rows(["confidence", *(KINDS[kind] for kind in kinds)], [[*row] for row in zip(names, *columns, strict=True)])


def rivals(values: Values, arm: str = "cone") -> None:
    """Print the image radius minus each rival, Spearman with accuracy, corrected over the rivals of a column."""
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
    """Print the share of tissue as a confidence, beside the radius and the predicted number of genes of the same runs.

    It was scored later than the rest, for the arm that was run last.
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
    """Print whether some form of entailment makes the image radius a better confidence."""
    compare(values, {f"rho:{kind}|{RADIUS}": f"{KINDS[kind]}" for kind in ("ridge", "retrieval")}, digits=2)


def rates(values: Values) -> None:
    """Print the validation score of each learning rate, by geometry."""
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
    """Rewrite every table of a page, between its marks ``<!-- table NAME -->`` and ``<!-- end -->``.

    Args:
        page: A Markdown file.
        results: Results of `run`.
        others: Name of a table -> its results file, for tables that have their own.
    """

    def table(mark: re.Match[str]) -> str:
        name, text = mark[1], io.StringIO()
        with contextlib.redirect_stdout(text):
            print_table(name, [others.get(name, results)])
        return f"<!-- table {name} -->\n{text.getvalue().strip()}\n<!-- end -->"

    marked = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)
    page.write_text(marked.sub(table, page.read_text(encoding="utf-8")), encoding="utf-8")
