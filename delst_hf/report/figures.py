"""Results -> the figures of a report, each with a title and a caption that says how to read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.pictures import decode
from ..evaluation.protocols import Protocol
from ..evaluation.reliability import risk_coverage
from ..evaluation.result_tables import name_of
from ..evaluation.suite import protocols_of
from . import plots

Record = Mapping[str, Any]
MAX_SLIDES = 6
_EMPTY_PATCH = np.full((8, 8, 3), 200, dtype=np.uint8)


@dataclass(frozen=True)
class Picture:
    """One figure of a report.

    Attributes:
        name: Its id in the HTML.
        title: Heading.
        caption: How to read it.
        figure: The figure.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def report_pictures(record: Record) -> Iterator[Picture]:
    """Every figure that the results hold data for, in the order of reading."""
    yield from arm_pictures(record)
    if record.get("spots"):
        yield from _maps(record)
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


def shown_slides(record: Record) -> list[str]:
    """Return the slides whose maps are drawn: a report of a hundred slides would not open."""
    return list(dict.fromkeys((record.get("spots") or {}).get("slide", [])))[:MAX_SLIDES]


def _maps(record: Record) -> Iterator[Picture]:
    """Return the maps of each slide, one figure a question."""
    spots = record["spots"]
    slides = np.array(spots["slide"])
    tissue = (record.get("pictures") or {}).get("slides", {})
    # One colour a label on all slides.
    labels = [spots[key] for key in spots if key == "label" or key.startswith("predicted:")]
    categories = {"labels": sorted({value for values in labels for value in values if value is not None})}
    for slide in shown_slides(record):
        rows = np.flatnonzero(slides == slide)
        place = {"x": [spots["x"][i] for i in rows], "y": [spots["y"][i] for i in rows], **_under(tissue.get(slide))}
        for name, title, caption, columns, unit in _map_panels(record):
            panels = {shown: [spots[key][i] for i in rows] for shown, key in columns.items()}
            if any(value is not None for value in next(iter(panels.values()))):
                figure = plots.spatial_maps(panels=panels, unit=unit, categories=categories.get(name), **place)
                yield Picture(f"{name}-{slide}", f"{slide}: {title}", caption, figure)


def _map_panels(record: Record) -> Iterator[tuple[str, str, str, dict[str, str], str]]:
    """(name, title, caption, panel -> per-spot values, unit) of each map that the results hold values for."""
    spots, main = record["spots"], record["own_arms"][0]
    shown = {"label": "label"}
    if f"predicted:linear:{main}" in spots:
        shown["predicted (linear probe)"] = f"predicted:linear:{main}"
    yield "labels", "labels", "Spots without a label are not drawn.", shown, ""
    gene = next((key.removeprefix("gene:measured:") for key in spots if key.startswith("gene:measured:")), None)
    if gene:
        caption = f"{gene}: the gene that is predicted best, from slides of other groups. Each panel has its own scale."
        shown = {f"{gene} measured": f"gene:measured:{gene}", f"{gene} predicted": f"gene:predicted:{gene}"}
        yield "gene", "a gene", caption, shown, "log(1 + counts)"
    signatures = [key for key in spots if key.startswith("signature:")]
    if signatures:
        caption = (
            "How much nearer each image lies to the gene embedding of the signature than to that of the mean profile. No label "
            "was used to draw it; a mean profile of a label is taken from training slides."
        )
        shown = {key.removeprefix("signature:"): key for key in signatures[:3]}
        yield "signature", "zero-shot maps", caption, shown, "similarity"
    if "domain" in spots:
        yield "domains", "domains", f"Clusters of the embeddings of {record['own_arms'][-1]}.", {"domain": "domain"}, ""
    error = next((key for key in spots if key.startswith("error:")), None)
    confidences = [key for key in ("confidence:nearness to the reference", "confidence:image radius") if key in spots]
    if error is not None and confidences:
        caption = (
            "Yellow: to be believed, as far as the patch alone tells; beside it, the error that was made. Each panel has its "
            "own scale. docs/reliability.md says how much of the error each confidence explains."
        )
        shown = {key.removeprefix("confidence:"): key for key in confidences}
        yield "reliability", "when to trust it", caption, {**shown, "error": error}, "confidence, or error"
    if (record.get("space") or {}).get("geometry") == "lorentz":
        caption = "Distance to the origin: low is general, high is specific. Each panel has its own scale."
        shown = {f"{kind} radius": f"{kind}_radius" for kind in ("image", "gene")}
        yield "radius", "radius", caption, shown, "distance to the origin"


def _space(record: Record) -> Iterator[Picture]:
    spots, space = record["spots"], record.get("space") or {}
    if space.get("geometry") != "lorentz":
        return
    radii = {kind: spots[f"{kind}_radius"] for kind in ("image", "gene")}
    caption = "The parent modality should lie further in. Both at one radius: no order between modalities was learnt."
    yield Picture("radius-histograms", "Radii", caption, plots.radius_histograms(radii))
    middle = int(np.argsort(spots[f"{space['parent']}_radius"])[len(spots["slide"]) // 2])
    common = {
        "image_plane": spots["image_plane"],
        "gene_plane": spots["gene_plane"],
        "curvature": space["curvature"],
        "cone_of": middle,
        "min_radius": space["min_radius"],
        "parent": space["parent"],
    }
    caption = (
        f"Distances to the centre are true, angles are those of the two leading directions. Shaded: the cone of one spot's "
        f"{space['parent']} point (square), the spot's two points joined. In the plane cones hold more than in full dimension."
    )
    if any(label is not None for label in spots["label"]):
        figure = plots.poincare_disk(labels=spots["label"], **common)
        yield Picture("poincare-labels", "Poincare disk by label", caption, figure)
    figure = plots.poincare_disk(level=spots["n_genes"], **common)
    yield Picture("poincare-level", "Poincare disk by expressed genes", caption, figure)


_LEAST_COVERAGE = 0.05  # the mean error of a handful of spots is noise


def _reliability(record: Record) -> Iterator[Picture]:
    """Draw what is believed by each confidence against its errors: the mean over slides of each slide's own curve."""
    spots = record["spots"]
    error = next((key for key in spots if key.startswith("error:")), None)
    names = [key for key in spots if key.startswith("confidence:")]
    if error is None or not names:
        return
    errors = _numbers(spots[error])
    curves = {key.removeprefix("confidence:"): _curve(errors, _numbers(spots[key]), spots["slide"]) for key in names}
    curves["the best order"] = _curve(errors, -errors, spots["slide"])
    caption = (
        "Mean error of the spots that are believed: one minus the Pearson correlation of a spot's predicted and measured "
        "profile. A line that falls towards the left tells good predictions from bad ones; a level one is chance. Which "
        "confidence is the best is a matter of the table, with its intervals."
    )
    label = f"error, expression by {error.removeprefix('error:')}"
    yield Picture("risk-coverage", "When to trust a prediction", caption, plots.risk_coverage_plot(curves, label))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _curve(errors: np.ndarray, confidence: np.ndarray, slides: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Risk at even coverages, the mean over slides weighted by their spots."""
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
        "whose genes are nearest; below each, its most raised genes. Thick frame: the query's own spot."
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
        "Mean over runs (how many in brackets); lines: their standard deviation. Inside the spread: no difference."
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

    Arms of different models are the same by their place: the first own arm of one is compared with the first of the others.
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
    """Which of several own arms this is, in words that fit any model."""
    places = list(record["own_arms"])
    return f", {('features', 'embedding')[min(places.index(arm), 1)]}" if arm in places else ""


def _under(slide: Mapping[str, Any] | None) -> dict[str, Any]:
    if slide is None:
        return {}
    return {"image": decode(slide["jpeg"]), "extent": (slide["width"], slide["height"])}
