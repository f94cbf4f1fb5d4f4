"""Results -> one HTML file that opens without a network: figures as inline SVG in the reader's own colours, and tables."""

import base64
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from ..atomic.files import check_file_output, write_text
from ..evaluation.comparison import compare_results
from ..evaluation.conclusions import conclusions
from ..evaluation.pictures import encode
from ..evaluation.result_tables import comparison_table, results_tables, skipped_table
from ..evaluation.tables import Table, between
from ..markup import Html, as_html, element, joined, shown
from .classes import class_scores
from .drawing import INK
from .figures import Record, report_pictures, spread_pictures
from .maps import MapChoice, Picture, shown_slides

# If untrusted text became markup after all, the page still could not run it, fetch anything or send anything away.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-src 'none'"
_STYLE = Path(__file__).with_name("page.css")
_WHERE_TO_LOOK = (
    "What to look at: the maps show tissue, labels and genes of each slide side by side; the confusion matrix shows which "
    "classes are taken for which; every number with its interval is under Protocols."
)


def write_report(
    records: Sequence[Record],
    path: str | os.PathLike,
    names: Sequence[str] | None = None,
    choice: MapChoice | None = None,
) -> Path:
    """Write one self-contained HTML file.

    Args:
        records: Results (see `results.read_results`). The first is shown in full; with several, their headline numbers are
            compared, and records of one name count as runs of one model.
        path: The file.
        names: Name of each record; by default that of its model.
        choice: Which genes are drawn on the maps, and how opaque the spots are.

    Returns:
        The file.

    Raises:
        ValueError: If there is no record, or a gene is asked for that was not predicted.

    Examples:
        >>> from delst_hf.evaluation.results import read_results
        >>> write_report([read_results("runs/toy/results.json")], "report.html").name
        'report.html'
    """
    if not records:
        raise ValueError("there are no results to report; pass at least one.")
    names = list(names or [Path(str(record.get("model") or "model")).name for record in records])
    check_file_output(path)
    # Untrusted names may hold "$", which must not start a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        page = _page([_printable(record) for record in records], [shown(name) for name in names], choice or MapChoice())
        write_text(path, page)
    return Path(path)


def _printable(value: Any) -> Any:
    """Return results whose texts hold no control characters or surrogates, which no font can draw."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {shown(str(key)): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _page(records: Sequence[Record], names: Sequence[str], choice: MapChoice) -> str:
    record = records[0]
    pictures = list(report_pictures(record, choice))
    spread = list(spread_pictures(records, names)) if len(records) > 1 else []
    title = f"{names[0]}: an image-gene model scored on {_listed(record['test_slides'])}"
    sentences = (element("li", sentence) for sentence in [*conclusions(record), _WHERE_TO_LOOK])
    parts: list[object] = [
        element("h1", title),
        element("ul", *sentences, id="conclusions"),
        _head(record),
        element("nav", *(_link(picture) for picture in [*spread, *pictures])),
    ]
    if len(records) > 1:
        parts += [element("h2", "Models over runs", id="runs"), *(_figure(picture) for picture in spread)]
        parts.append(_paired_models(records, names))
    parts.append(element("h2", "Arms and their baselines"))
    beside = (_figure(picture) for picture in pictures if picture.name.startswith("arms-"))
    parts.append(element("div", *beside, class_="side"))
    parts.append(element("h2", "Pictures"))
    parts += [_figure(picture) for picture in pictures if not picture.name.startswith("arms-")]
    left_out = len(record["test_slides"]) - len(shown_slides(record))
    if record.get("spots") and left_out > 0:
        told = f"Maps of the first {len(shown_slides(record))} slides; {left_out} more were scored."
        parts.append(element("p", told, class_="soft"))
    classes, paired = class_scores(record), comparison_table(record)
    parts += [element("h2", "Protocols"), _html(classes.table() if classes else None)]
    parts += [table.as_html() for table in results_tables(record)]
    if paired is not None:
        parts.append(
            element("details", element("summary", f"Paired comparisons: {len(paired.rows)}"), paired.as_html())
        )
    parts += [_traversals(record), _html(skipped_table(record)), _foot(record)]
    # An empty icon, so that a browser does not ask a server for one.
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{as_html(_POLICY)}">{element("title", title)}'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style></head><body>{element('main', *parts)}</body></html>\n"
    )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _head(record: Record) -> Html:
    labels = _listed(record.get("label_source") or []) or "none"
    unit = str(record.get("interval_unit", "spots"))
    fitted = f"other groups (one {record.get('split', 'group')} left out at a time)"
    if record["train_slides"]:
        fitted = f"{_listed(record['train_slides'])} or on {fitted}"
    caveat = " They hold for these slides, not for other patients." if unit == "spots" else ""
    told = (
        f"Evaluation of a model of H&E patches and gene counts (DELST). Scored on {_listed(record['test_slides'])}, which the "
        f"model has not seen. Probes are fitted on {fitted}. "
        f"Labels: {labels}. Intervals are 95 % bootstrap over {unit}.{caveat}"
    )
    return element("p", told, class_="soft")


def _html(table: Table | None) -> Html:
    return Html() if table is None else table.as_html()


def _foot(record: Record) -> Html:
    versions = _listed(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    facts = {
        "command": " ".join(map(str, record.get("command", []))),
        "data fingerprint": record.get("data_fingerprint", "not recorded"),
        "weights": record.get("weights") or "not recorded",
        "seeds": _listed(record.get("seeds", [])),
        "versions": versions,
    }
    for name, known in (record.get("facts") or {}).items():
        if known.get("genes"):
            facts[f"genes of {name}"] = _listed(known["genes"])
    lines = "\n".join(f"{name}: {value}" for name, value in facts.items())
    return joined([element("h2", "How to reproduce these numbers"), element("pre", lines)])


def _link(picture: Picture) -> Html:
    return element("a", picture.title, href=f"#{_id(picture)}")


def _id(picture: Picture) -> str:
    return "figure-" + re.sub(r"[^A-Za-z0-9-]+", "-", picture.name)


def _figure(picture: Picture) -> Html:
    parts = element("h3", picture.title), figure_svg(picture), element("figcaption", picture.caption)
    return element("figure", *parts, id=_id(picture))


def figure_svg(picture: Picture) -> Html:
    """Return the figure as SVG to inline: without background, drawn in the text colour of the page, with ids of its own."""
    buffer = io.StringIO()
    # The salt makes ids of different figures differ, and keeps equal figures identical to the byte.
    with matplotlib.rc_context({"svg.hashsalt": picture.name, "svg.fonttype": "path", "figure.dpi": 100}):
        picture.figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", _lighter_image, svg)
    # Ids such as "figure_1" are the same in every figure.
    prefix = _id(picture)
    seen: set[str] = set()

    def own(match: re.Match[str]) -> str:
        # An image that a figure shows twice comes with the same id twice; references mean the first.
        repeated = match[1] in seen
        seen.add(match[1])
        return "" if repeated else f' id="{prefix}-{match[1]}"'

    svg = re.sub(r'\sid="([^"]*)"', own, svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)  # comments repeat each text, which is drawn as outlines
    return Html(svg.replace("<svg ", f'<svg role="img" aria-label="{as_html(picture.title)}" ', 1))


def _lighter_image(match: re.Match[str]) -> str:
    """Return tissue and patches as JPEG, a tenth of the bytes; what is transparent or small stays PNG."""
    image = Image.open(io.BytesIO(base64.b64decode(match[1])))
    see_through = image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255
    if image.width * image.height < 100 * 100 or see_through:
        return match[0]
    return f"data:image/jpeg;base64,{encode(image, max(image.size))}"


def _paired_models(records: Sequence[Record], names: Sequence[str]) -> Html:
    # The first result of another name: those of one name are runs of one model.
    other = next((i for i, name in enumerate(names) if name != names[0]), 1)
    try:
        comparisons = compare_results(records[0], records[other])
    except ValueError as error:
        return element("p", f"The first two models are not compared spot by spot: {error}", class_="soft")
    rows = [
        (each["quantity"].removeprefix("predicted:"), each["metric"], f"{each['difference']:+.3f}", between(each, "+"))
        for each in comparisons
    ]
    title = f"{names[0]} minus {names[other]}, the same spots"
    return Table(title, ("", "metric", "difference", "95 %"), tuple(rows), prose=(1,)).as_html()


def _traversals(record: Record) -> Html:
    parts: list[object] = []
    for way in record.get("traversals") or []:
        rows = [
            (
                f"{step['radius']:.2f}",
                "the origin" if step["origin_nearer"] else step["nearest"],
                f"{step['distance']:.2f}",
            )
            for step in way["steps"]
        ]
        title = f"From an image of {way['from']} ({way['slide']}) to the origin"
        parts.append(Table(title, ("radius", "nearest", "distance"), tuple(rows), prose=(1,)).as_html())
    note = (
        "A hierarchy would name the specific first and the general last; if the origin is nearest at every step, nothing lies "
        "between."
    )
    return joined([element("h2", "Traversals"), element("p", note, class_="soft"), *parts] if parts else [])
