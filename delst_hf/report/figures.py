"""Results -> the figures of a report, each with a title and a caption that says how to read it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.pictures import decode
from ..evaluation.protocols import Protocol
from ..evaluation.reliability import risk_coverage
from ..evaluation.result_tables import name_of
from ..evaluation.suite import protocols_of
from . import plots
from .classes import class_scores
from .maps import MapChoice, Picture, slide_maps

Record = Mapping[str, Any]
_EMPTY_PATCH = np.full((8, 8, 3), 200, dtype=np.uint8)


def report_pictures(record: Record, choice: MapChoice | None = None) -> Iterator[Picture]:
    """Yield every figure that the results hold data for, in the order of reading.

    Args:
        record: Results.
        choice: Which genes are drawn on the maps, and how opaque.
    """
    choice = choice or MapChoice()
    yield from arm_pictures(record)
    if record.get("spots"):
        yield from slide_maps(record, choice)
        yield from _classes(record)
        yield from _space(record)
        yield from _reliability(record)
    if record.get("gallery"):
        yield _gallery(record)
    if record.get("per_gene"):
        yield _genes(record)
    log = record.get("training_log") or []
    if any("loss" in row for row in log):
        caption = "Each loss term, curvature (with its clamps), radii and cone fractions, by epoch."
        yield Picture("training", "Training", caption, plots.training_curves(log))


def arm_pictures(record: Record) -> Iterator[Picture]:
    """Draw the headline of every protocol that has one drawn, arm by arm with its interval."""
    unit = record.get("interval_unit", "spots")
    caption = (
        f"Lines: 95 % bootstrap over {unit}. Open squares: baselines. Overlapping lines may still differ: see the paired "
        "comparisons."
    )
    for which, variant in _drawn(record):
        rows = [
            {
                "name": name_of(row),
                "value": row["metrics"][which.headline],
                "low": row["intervals"].get(which.headline, {}).get("low"),
                "high": row["intervals"].get(which.headline, {}).get("high"),
                "baseline": not row["own"],
            }
            for row in rows_of(record, which, variant)
        ]
        if len(rows) > 1:
            figure = plots.arms_plot(rows, _axis(which))
            yield Picture(f"arms-{which.name}-{variant}".rstrip("-"), which.title_of(variant), caption, figure)


def rows_of(record: Record, which: Protocol, variant: str) -> list[Record]:
    """Return the rows of a protocol and variant over all test slides in which its headline is known."""
    return [
        row
        for row in record["protocols"]
        if (row["protocol"], row["variant"]) == (which.name, variant)
        and row["metrics"].get(which.headline) is not None
        and not row.get("slide")
    ]


def _drawn(record: Record) -> Iterator[tuple[Protocol, str]]:
    for which in protocols_of(record["protocols"]):
        for variant in which.drawn:
            yield which, variant


def _axis(which: Protocol) -> str:
    chance = which.chance.get(which.headline)
    direction = "low is good" if which.headline in which.lower_is_better else "high is good"
    at = f", {chance:g} is chance" if isinstance(chance, float) else ""
    return f"{which.headline.replace('_', ' ')} ({direction}{at})"


def _classes(record: Record) -> Iterator[Picture]:
    found = class_scores(record)
    if found is not None:
        caption = (
            "Rows: labels; columns: predictions of the linear probe. Numbers: spots; shades: shares of each row, so a dark "
            "diagonal is good."
        )
        figure = plots.confusion_matrix(found.confusion, found.classes)
        yield Picture("confusion", "Which classes are taken for which", caption, figure)


def _space(record: Record) -> Iterator[Picture]:
    spots, space = record["spots"], record.get("space") or {}
    if space.get("geometry") != "lorentz":
        return
    radii = {kind: spots[f"{kind}_radius"] for kind in ("image", "gene")}
    caption = "The parent modality should lie further in. Both at one radius: no order between modalities was learnt."
    yield Picture("radius-histograms", "Radii", caption, plots.radius_histograms(radii))
    middle = int(np.argsort(spots[f"{space['parent']}_radius"])[len(spots["slide"]) // 2])
    whole = (row for row in record["protocols"] if row["protocol"] == "hierarchy" and not row.get("slide"))
    inside = next((row["metrics"].get("in_cone_matched") for row in whole), None)
    common = {
        "image_plane": spots["image_plane"],
        "gene_plane": spots["gene_plane"],
        "curvature": space["curvature"],
        "cone_of": middle,
        # In the plane a cone covers points that it does not hold in full dimension: if it holds none, drawing it misleads.
        "shaded": inside is None or inside > 0,
        "min_radius": space["min_radius"],
        "parent": space["parent"],
    }
    caption = (
        f"Distances to the centre are true, angles are those of the two leading directions. Joined: the two points of one spot "
        f"(square: gene, circle: image; the {space['parent']} point is the parent). "
    )
    if common["shaded"]:
        caption += "Shaded: the cone of that point. In the plane cones hold more than in full dimension."
        caption += "" if inside is None else f" There {inside:.0%} of spots lie in their parent's cone."
    else:
        caption += "No cone is drawn: no spot lies in the cone of its parent."
    if any(label is not None for label in spots["label"]):
        figure = plots.poincare_disk(labels=spots["label"], **common)
        yield Picture("poincare-labels", "Poincare disk by label", caption, figure)
    figure = plots.poincare_disk(level=spots["n_genes"], **common)
    yield Picture("poincare-level", "Poincare disk by expressed genes", caption, figure)


_LEAST_COVERAGE = 0.05  # the mean error of a handful of spots is noise


def _reliability(record: Record) -> Iterator[Picture]:
    """Draw the risk-coverage curve of each confidence, the mean of the slides' own curves."""
    spots = record["spots"]
    error = next((key for key in spots if key.startswith("error:")), None)
    names = [key for key in spots if key.startswith("confidence:")]
    if error is None or not names:
        return
    errors = np.array(spots[error], dtype=float)
    confidences = {key.removeprefix("confidence:"): np.array(spots[key], dtype=float) for key in names}
    curves = {name: _curve(errors, values, spots["slide"]) for name, values in confidences.items()}
    curves["the best order"] = _curve(errors, -errors, spots["slide"])
    caption = (
        "Mean error of the spots that are trusted: one minus the Pearson correlation of a spot's predicted and measured "
        "profile. A line that falls towards the left tells good predictions from bad ones; a flat line is chance. Which "
        "confidence is best, the table tells with its intervals."
    )
    label = f"error, expression by {error.removeprefix('error:')}"
    yield Picture("risk-coverage", "When to trust a prediction", caption, plots.risk_coverage_plot(curves, label))


def _curve(errors: np.ndarray, confidence: np.ndarray, slides: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return evenly spaced coverages and the risk at each, averaged over slides weighted by their numbers of spots."""
    at, risks, weights = np.linspace(_LEAST_COVERAGE, 1.0, 39), [], []
    known = np.isfinite(errors) & np.isfinite(confidence)
    for slide in dict.fromkeys(slides):
        rows = known & (np.asarray(slides) == slide)
        if rows.any():
            risks.append(np.interp(at, *risk_coverage(errors[rows], confidence[rows])))
            weights.append(rows.sum())
    return at, np.average(risks, axis=0, weights=weights)


def _gallery(record: Record) -> Picture:
    patches = (record.get("pictures") or {}).get("patches", {})
    rows = []
    for row in record["gallery"]:
        images = [
            decode(patches[str(i)]) if str(i) in patches else _EMPTY_PATCH for i in (row["query"], *row["retrieved"])
        ]
        genes = ["\n".join(names) for names in row["top_genes"]]
        retrieved = [
            (image, names, spot == row["query"]) for image, names, spot in zip(images[1:], genes[1:], row["retrieved"])
        ]
        rows.append({"query": (images[0], f"own spot ranks {row['rank']:g}\n{genes[0]}"), "retrieved": retrieved})
    caption = (
        "Image queries whose own spot ranks best, at the first quartile, the median and the third quartile, and the spots "
        "whose genes are nearest; below each, its most raised genes, housekeeping and mitochondrial ones left out. Thick "
        "frame: the query's own spot."
    )
    return Picture("gallery", "Retrieval of spots by an image", caption, plots.retrieval_gallery(rows))


def _genes(record: Record) -> Picture:
    arms = [row["arm"] for row in record["per_gene"]]
    arm = record["own_arms"][0] if record["own_arms"][0] in arms else arms[0]
    rows = [row for row in record["per_gene"] if row["arm"] == arm]
    caption = f"{arm}, HEST protocol with cross-validated alpha; bootstrap over spots."
    return Picture("genes", "Pearson by gene", caption, plots.gene_pearson_plot(rows))


def spread_pictures(records: Sequence[Record], names: Sequence[str]) -> Iterator[Picture]:
    """Draw each headline number of several results by model, mean and spread over its runs."""
    caption = (
        "Mean over runs (their number in brackets); lines: their standard deviation. Inside the spread: no difference."
    )
    for number, (title, by_name) in enumerate(headline_values(records, names).items()):
        rows = []
        for name, values in by_name.items():
            spread = np.std(values, ddof=1) if len(values) > 1 else None
            low, high = (np.mean(values) - spread, np.mean(values) + spread) if spread is not None else (None, None)
            rows.append({"name": f"{name} ({len(values)})", "value": float(np.mean(values)), "low": low, "high": high})
        yield Picture(f"spread-{number}", title, caption, plots.arms_plot(rows, title))


def headline_values(records: Sequence[Record], names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Collect title -> name -> values over runs, of the drawn headlines of the models' own arms.

    Arms of different models are matched by position: the first own arm of one is compared with the first of the others.
    """
    result: dict[str, dict[str, list[float]]] = {}
    for record, name in zip(records, names):
        for which, variant in _drawn(record):
            for row in rows_of(record, which, variant):
                if row["own"]:
                    title = f"{which.title_of(variant)}: {which.headline.replace('_', ' ')}{_place(record, row['arm'])}"
                    result.setdefault(title, {}).setdefault(name, []).append(row["metrics"][which.headline])
    return result


def _place(record: Record, arm: str) -> str:
    """Tell which of several own arms this is, in words that fit any model."""
    places = list(record["own_arms"])
    return f", {('features', 'embedding')[min(places.index(arm), 1)]}" if arm in places else ""
