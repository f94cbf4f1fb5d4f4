"""Maps of a slide as a pathologist reads them: bare tissue first, then what was measured and predicted, on one scale."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..data.markers import is_housekeeping
from ..errors import did_you_mean
from ..evaluation.pictures import decode
from . import plots

Record = Mapping[str, Any]
MAX_SLIDES = 6
GENES_SHOWN = 3
# Share of test spots that must express a gene: below it, the gene is measured too poorly to judge a map by it.
WELL_MEASURED = 0.3


@dataclass(frozen=True)
class MapChoice:
    """What a reader wants to see on the maps.

    Attributes:
        genes: Genes to draw; by default well measured ones that are predicted well.
        opacity: Opacity of the spots over the tissue, above 0 to 1.
    """

    genes: Sequence[str] = ()
    opacity: float = 0.85

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise ValueError(f"opacity is {self.opacity:g}; allowed is above 0 to 1, such as 0.5 (--opacity).")


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


@dataclass(frozen=True)
class MapPanels:
    """One row of maps: name, title, caption, panel -> values of all spots, and how to draw them."""

    name: str
    title: str
    caption: str
    panels: dict[str, Sequence[Any]]
    unit: str = ""
    limits: Mapping[str, tuple[float, float]] | None = None
    categories: Sequence[str] | None = None


def shown_slides(record: Record) -> list[str]:
    """Return the slides whose maps are drawn: a report of a hundred slides would not open."""
    return list(dict.fromkeys((record.get("spots") or {}).get("slide", [])))[:MAX_SLIDES]


def slide_maps(record: Record, choice: MapChoice) -> Iterator[Picture]:
    """Draw the maps of each slide, one figure per question.

    Args:
        record: Results (see `results.read_results`).
        choice: Which genes, and how opaque.

    Raises:
        ValueError: If a gene is asked for that the evaluation did not predict.
    """
    slides = np.array(record["spots"]["slide"])
    tissue = (record.get("pictures") or {}).get("slides", {})
    rows_of = list(_map_rows(record, choice))
    for slide in shown_slides(record):
        rows = np.flatnonzero(slides == slide).tolist()
        place = {axis: [record["spots"][axis][i] for i in rows] for axis in ("x", "y")} | _under(tissue.get(slide))
        for one in rows_of:
            panels = {name: [values[i] for i in rows] for name, values in one.panels.items()}
            if any(value is not None for values in panels.values() for value in values):
                figure = plots.spatial_maps(
                    panels=panels, unit=one.unit, limits=one.limits, categories=one.categories, bare=True,
                    opacity=choice.opacity, **place,
                )  # fmt: skip
                yield Picture(f"{one.name}-{slide}", f"{slide}: {one.title}", one.caption, figure)


def _map_rows(record: Record, choice: MapChoice) -> Iterator[MapPanels]:
    spots, main = record["spots"], record["own_arms"][0]
    shown = {"label": spots["label"]}
    if f"predicted:linear:{main}" in spots:
        shown["predicted (linear probe)"] = spots[f"predicted:linear:{main}"]
    # One colour per label on all slides.
    names = sorted({value for values in shown.values() for value in values if value is not None})
    yield MapPanels("labels", "labels", "Spots without a label are not drawn.", shown, categories=names)
    for number, (gene, measured, predicted, pearson) in enumerate(chosen_genes(record, choice.genes)):
        name = "gene" if number == 0 else f"gene-{gene}"
        yield _gene_panels(name, gene, measured, predicted, pearson)
    signatures = {key.removeprefix("signature:"): spots[key] for key in spots if key.startswith("signature:")}
    if signatures:
        caption = (
            "How much nearer each image lies to the gene embedding of the signature than to that of the mean profile. No label "
            "of these slides was used; a mean profile of a label comes from training slides. Each panel has its own scale."
        )
        yield MapPanels("signature", "zero-shot maps of signatures", caption, signatures, "similarity")
    if "domain" in spots:
        caption = f"Clusters of the embeddings of {record['own_arms'][-1]}."
        yield MapPanels("domains", "domains", caption, {"domain": spots["domain"]})
    error = next((key for key in spots if key.startswith("error:")), None)
    confidences = [key for key in ("confidence:image radius", "confidence:predicted number of genes") if key in spots]
    if error is not None and confidences:
        caption = (
            "Yellow: to be trusted, as far as the patch alone shows; beside it, the error that was made. Each panel has its "
            "own scale. docs/reliability.md says how much of the error each confidence explains."
        )
        panels = {key.removeprefix("confidence:"): spots[key] for key in confidences} | {"error": spots[error]}
        yield MapPanels("reliability", "when to trust it", caption, panels, "confidence, or error")
    if (record.get("space") or {}).get("geometry") == "lorentz":
        caption = "Distance to the origin: low is general, high is specific. Each panel has its own scale."
        panels = {f"{kind} radius": spots[f"{kind}_radius"] for kind in ("image", "gene")}
        yield MapPanels("radius", "radius", caption, panels, "distance to the origin")


def _gene_panels(name: str, gene: str, measured: np.ndarray, predicted: np.ndarray, pearson: float | None) -> MapPanels:
    """Lay out a gene, measured and predicted on one scale, and the prediction again on its own scale, to show its pattern."""
    score = "" if pearson is None else f" Pearson {pearson:.2f} over all test spots."
    top = max(float(np.quantile(measured, 0.98)), 1.0)
    low, high = (float(end) for end in np.quantile(predicted, [0.02, 0.98]))
    panels: dict[str, Sequence[Any]] = {f"{gene} measured": measured.tolist(), f"{gene} predicted": predicted.tolist()}
    limits = dict.fromkeys(panels, (0.0, top))
    caption = (
        f"{gene} in counts per spot, measured and predicted from the image on one scale, 0 to {top:.3g}. A prediction is a "
        f"mean, so it varies less: it lies between {low:.3g} and {high:.3g} (2 to 98 % of the spots)."
    )
    if high > low:
        own = f"{gene} predicted, on a scale of its own"
        panels[own], limits[own] = predicted.tolist(), (low, high)
        caption += " The last map is the same prediction on that scale: it shows where it is higher, not how high."
    return MapPanels(name, f"gene {gene}", caption + score, panels, "counts per spot", limits)


def chosen_genes(
    record: Record, wanted: Sequence[str] = ()
) -> Iterator[tuple[str, np.ndarray, np.ndarray, float | None]]:
    """Yield genes to draw, with measured and predicted counts per test spot and their Pearson.

    Args:
        record: Results.
        wanted: Genes to draw; by default the best predicted of those that are measured well and are no housekeeping genes.

    Raises:
        ValueError: If a gene was not predicted, naming those that were.
    """
    table = _predictions(record)
    unknown = [gene for gene in wanted if gene not in table]
    if unknown:
        raise ValueError(
            f"the genes {', '.join(unknown)} were not predicted by this evaluation (--genes)."
            f"{did_you_mean(unknown, table)} Known: {', '.join(sorted(table)) or 'none'}."
        )
    scores = {
        row["gene"]: row["pearson"] for row in record.get("per_gene") or [] if row["arm"] == record["own_arms"][0]
    }
    for gene in wanted or _best(table, scores):
        measured, predicted = (np.expm1(np.maximum(values, 0.0)) for values in table[gene])
        yield gene, measured, predicted, scores.get(gene)


def _predictions(record: Record) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return log(1 + counts) of test spots by gene, measured and predicted; old or large results hold one gene only."""
    expression, spots = record.get("expression") or {}, record["spots"]
    if expression.get("genes"):
        both = (np.asarray(expression[key], dtype=float).T for key in ("measured", "predicted"))
        return {gene: (one, other) for gene, one, other in zip(expression["genes"], *both, strict=True)}
    kept = [key.removeprefix("gene:measured:") for key in spots if key.startswith("gene:measured:")]
    return {
        gene: tuple(np.asarray(spots[f"gene:{kind}:{gene}"], dtype=float) for kind in ("measured", "predicted"))  # type: ignore[misc]
        for gene in kept
    }


def _best(table: Mapping[str, tuple[np.ndarray, np.ndarray]], scores: Mapping[str, float]) -> list[str]:
    def merit(gene: str) -> tuple[bool, float]:
        well = (table[gene][0] > 0).mean() >= WELL_MEASURED and not is_housekeeping(gene)
        return not well, -scores.get(gene, -1.0)

    return sorted(table, key=merit)[:GENES_SHOWN]


def _under(slide: Mapping[str, Any] | None) -> dict[str, Any]:
    if slide is None:
        return {}
    return {"image": decode(slide["jpeg"]), "extent": (slide["width"], slide["height"]), "mpp": slide.get("mpp")}
