"""Results -> one HTML file that opens without a network: figures as inline SVG in the reader's own colours, and tables."""

import base64
import html
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from ..atomic import check_file_output, write_text
from ..evaluation.pictures import encode
from ..evaluation.protocols.hierarchy import MEANINGS
from ..evaluation.results import compare_results
from .drawing import INK
from .figures import Picture, Record, report_pictures, shown_slides, spread_pictures

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1b1f;--soft:#5c5c66;--line:#d9d9e0;--card:#f6f6f8}
@media (prefers-color-scheme:dark){:root{--page:#16161a;--ink:#ececf1;--soft:#a8a8b3;--line:#3a3a44;--card:#1f1f25}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1060px;margin:0 auto;padding:2rem 1.2rem 4rem}h1{font-size:1.6rem;margin:0}h2{margin:2.6rem 0 .6rem;
font-size:1.2rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}h3{font-size:1rem;margin:1.6rem 0 .2rem}
p,.soft{max-width:75ch}.soft,figcaption,small{color:var(--soft)}figure{margin:1.2rem 0;overflow-x:auto}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:0 1.6rem}
figure svg{max-width:100%;height:auto;color:var(--ink);display:block}figcaption{font-size:.87rem;max-width:80ch}
.table{overflow-x:auto}table{border-collapse:collapse;font-size:.87rem;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}td.text,th.text{text-align:left;max-width:52ch}th{font-weight:600}
nav{margin:1rem 0;display:flex;gap:.3rem 1rem;flex-wrap:wrap}a{color:inherit}pre{background:var(--card);padding:.8rem;
overflow-x:auto;font-size:.8rem;border-radius:6px;white-space:pre-wrap;overflow-wrap:anywhere}
"""
_PROTOCOL_NOTES = {
    "linear_probe": "Linear classifier of STimage-1K4M on standardised features; each group is predicted from others.",
    "knn_probe": "Majority of the 20 nearest spots of other groups.",
    "prototype_probe": "Nearest of one hyperbolic prototype a class, learnt at fixed curvature.",
    "stimage1k4m": "STimage-1K4M's own protocol: random spots, so neighbours leak. For comparison with published numbers only.",
    "hest": "HEST-Benchmark: PCA-256, its ridge without intercept, Pearson over the pooled test spots, log(1 + counts). In "
    "brackets what a variant changes: alpha chosen on training groups, Pearson within slides, no PCA (nor scaler).",
    "retrieval": "Whole pool of test spots; recall depends on the pool's size, so chance stands beside it.",
    "retrieval_within": "Each query against its own slide only: knowing the slide does not help.",
    "imputation": "Expression of an image as the mean of the 20 nearest training spots' genes. Nothing is fitted.",
    "zero_shot": "AUROC of a signature's map for the region it should find: 0.5 is chance.",
    "domains": "k-means. ARI and NMI: 1 is the labels' partition, 0 chance. Smoothness counts only above its shuffled value.",
}
_COLUMNS = {
    "linear_probe": ("macro_f1", "balanced_accuracy", "majority_macro_f1", "num_folds"),
    "knn_probe": ("macro_f1", "balanced_accuracy", "majority_macro_f1", "num_folds"),
    "prototype_probe": ("macro_f1", "balanced_accuracy", "majority_macro_f1", "num_folds"),
    "stimage1k4m": ("macro_f1_mean", "macro_f1_sd", "alpha", "num_spots"),
    "hest": ("pearson_mean",),
    "retrieval": ("image_to_gene_recall@10", "gene_to_image_recall@10", "chance_recall@10", "image_to_gene_mean_rank",
                  "image_to_gene_median_rank", "image_to_gene_mrr", "pool_size"),
    "retrieval_within": ("image_to_gene_recall@10", "gene_to_image_recall@10", "chance_recall@10",
                         "image_to_gene_mean_rank", "image_to_gene_mrr"),
    "imputation": ("imputation_pearson", "imputation_pearson_within"),
    "zero_shot": ("auroc",),
    "domains": ("ari", "nmi", "silhouette", "smoothness", "smoothness_shuffled"),
}  # fmt: skip


def write_report(records: Sequence[Record], path: str | os.PathLike, names: Sequence[str] | None = None) -> Path:
    """Write one self-contained HTML file.

    Args:
        records: Results (see `results.read_results`). The first is shown in full; with several, their headline numbers are
            compared, runs of one name as seeds of one arm.
        path: The file.
        names: One a record; by default its model's folder.

    Returns:
        The file.

    Raises:
        ValueError: if there is no record.
    """
    if not records:
        raise ValueError("there are no results to report; pass at least one.")
    names = list(names or [Path(str(record.get("model", "model"))).parent.name or "model" for record in records])
    check_file_output(path)
    write_text(path, _page(records, names))
    return Path(path)


def _page(records: Sequence[Record], names: Sequence[str]) -> str:
    record = records[0]
    pictures = list(report_pictures(record))
    spread = list(spread_pictures(records, names)) if len(records) > 1 else []
    parts = [_head(record, names[0]), "<nav>" + "".join(_link(picture) for picture in [*spread, *pictures]) + "</nav>"]
    if len(records) > 1:
        parts += ["<h2 id='runs'>Arms over runs</h2>", *(_figure(picture) for picture in spread)]
        parts.append(_paired_models(records, names))
    parts.append("<h2>Arms and their baselines</h2><div class='side'>")
    parts += [_figure(picture) for picture in pictures if picture.name.startswith("arms-")]
    parts += ["</div>", _arms_table(record) if record["arms"] else "", _comparisons(record)]
    parts.append("<h2>Pictures</h2>")
    parts += [_figure(picture) for picture in pictures if not picture.name.startswith("arms-")]
    left_out = len(record["test_slides"]) - len(shown_slides(record))
    if record.get("spots") and left_out > 0:
        parts.append(
            f"<p class='soft'>Maps of the first {len(shown_slides(record))} slides; {left_out} more were scored.</p>"
        )
    parts += [_protocol_tables(record), _hierarchy(record), _traversals(record), _skipped(record), _foot(record)]
    title = html.escape(f"DELST: {names[0]} on {', '.join(record['test_slides'])}")
    # An icon of no bytes, so that a browser does not ask a server for one.
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(record: Record, name: str) -> str:
    labels = ", ".join(record.get("label_source") or []) or "none"
    unit = record.get("interval_unit", "spots")
    fitted = f"other groups (one {record.get('split', 'group')} left out at a time)"
    if record["train_slides"]:
        fitted = f"{', '.join(record['train_slides'])} or on {fitted}"
    caveat = " They hold for these slides, not for other patients." if unit == "spots" else ""
    return (
        f"<h1>{html.escape(name)}</h1><p class='soft'>Scored on {html.escape(', '.join(record['test_slides']))}, which the "
        f"model has not seen. Probes are fitted on {html.escape(fitted)}. "
        f"Labels: {html.escape(labels)}. Intervals are 95 % bootstrap over {unit}.{caveat}</p>"
    )


def _skipped(record: Record) -> str:
    rows = [[row["protocol"], row["reason"]] for row in record.get("skipped") or []]
    return f"<h3>Not run</h3>{_table(['protocol', 'why'], rows, text=(1,))}" if rows else ""


def _foot(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    facts = {
        "command": " ".join(map(str, record.get("command", []))),
        "data fingerprint": record.get("data_fingerprint", "not recorded"),
        "seeds": ", ".join(map(str, record.get("seeds", []))),
        "versions": versions,
        "genes of the table of arms": ", ".join(record.get("genes", [])),
        "genes of HEST": ", ".join(next((row["genes"] for row in record.get("protocols", []) if "genes" in row), [])),
    }
    lines = "\n".join(f"{name}: {value}" for name, value in facts.items())
    return f"<h2>How to get these numbers again</h2><pre>{html.escape(lines)}</pre>"


def _link(picture: Picture) -> str:
    return f'<a href="#{_id(picture)}">{html.escape(picture.title)}</a>'


def _id(picture: Picture) -> str:
    return "figure-" + re.sub(r"[^A-Za-z0-9-]+", "-", picture.name)


def _figure(picture: Picture) -> str:
    svg = figure_svg(picture)
    return (
        f'<figure id="{_id(picture)}"><h3>{html.escape(picture.title)}</h3>{svg}'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )


def figure_svg(picture: Picture) -> str:
    """The figure as SVG for inlining: no background, its ink the text colour of the page, ids of its own."""
    buffer = io.StringIO()
    # The salt keeps ids of different figures apart, and equal figures equal to the byte.
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
        # An image that a figure shows twice comes with the same id twice; the first is the one referred to.
        repeated = match[1] in seen
        seen.add(match[1])
        return "" if repeated else f' id="{prefix}-{match[1]}"'

    svg = re.sub(r'\sid="([^"]*)"', own, svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    svg = svg.replace(INK, "currentColor")
    label = html.escape(picture.title, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _lighter_image(match: re.Match[str]) -> str:
    """Tissue and patches as JPEG, a tenth of the bytes; what is transparent or small stays PNG."""
    image = Image.open(io.BytesIO(base64.b64decode(match[1])))
    see_through = image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255
    if image.width * image.height < 100 * 100 or see_through:
        return match[0]
    return f"data:image/jpeg;base64,{encode(image, max(image.size))}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> str:
    """A table; columns numbered in `text` are set as text."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marks = (' class="text"' if i in text else "" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{html.escape(c)}</{tag}>" for m, c in zip(marks, cells)) + "</tr>"

    return f"<div class='table'><table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table></div>"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 or (value == int(value) and abs(value) >= 2) else f"{value:.3f}"


def _with_interval(row: Mapping[str, Any], metric: str) -> str:
    interval, value = row["intervals"].get(metric), row["metrics"].get(metric)
    shown = f"{value:.0f}" if value is not None and metric.startswith(("num_", "pool_")) else _number(value)
    return shown if not interval else f"{shown} ({_number(interval['low'])} to {_number(interval['high'])})"


def _arms_table(record: Record) -> str:
    slides, arms = record["test_slides"], list(dict.fromkeys(row["arm"] for row in record["arms"]))
    cells = {(row["arm"], row["slide"]): row for row in record["arms"]}

    def shown(arm: str, slide: str, key: str, spread: str) -> str:
        row = cells.get((arm, slide), {})
        return _number(row.get(key)) + (f" ± {row[spread]:.3f}" if row.get(spread) is not None else "")

    header = ["fitted on training slides", *(f"{s} {m}" for s in slides for m in ("Pearson", "macro-F1"))]
    metrics = (("pearson_mean", "pearson_mean_sd"), ("probe_macro_f1_mean", "probe_macro_f1_sd"))
    rows = [[arm, *(shown(arm, slide, *pair) for slide in slides for pair in metrics)] for arm in arms]
    note = f"Pearson: ridge, mean over {len(record.get('genes', []))} genes. ± is the standard deviation over seeds."
    return _table(header, rows) + f"<p class='soft'>{note}</p>"


def _comparisons(record: Record) -> str:
    found = record.get("comparisons") or []
    rows = [
        [
            f"{c['protocol']}: {c['first']} minus {c['second']}",
            f"{c['difference']:+.3f}",
            f"{c['low']:+.3f} to {c['high']:+.3f}",
            f"{c['p_value']:.3f}",
        ]
        for c in found
    ]
    if not rows:
        return ""
    note = f"The same {found[0]['unit']} resampled for both. An interval that holds 0 is no difference."
    return f"<h3>Paired comparisons</h3>{_table(['', 'difference', '95 %', 'p'], rows)}<p class='soft'>{note}</p>"


def _paired_models(records: Sequence[Record], names: Sequence[str]) -> str:
    # The first result of another name: those of one name are seeds of one arm.
    other = next((i for i, name in enumerate(names) if name != names[0]), 1)
    try:
        found = compare_results(records[0], records[other])
    except ValueError as error:
        return f"<p class='soft'>The first two arms are not compared spot by spot: {html.escape(str(error))}</p>"
    rows = [
        [
            c["quantity"].removeprefix("predicted:"),
            c["metric"],
            f"{c['difference']:+.3f}",
            f"{c['low']:+.3f} to {c['high']:+.3f}",
        ]
        for c in found
    ]
    title = html.escape(f"{names[0]} minus {names[other]}, the same spots")
    return f"<h3>{title}</h3>" + _table(["", "metric", "difference", "95 %"], rows, text=(1,))


def _protocol_tables(record: Record) -> str:
    parts = ["<h2>Protocols</h2>"] if record.get("protocols") else []
    for protocol in dict.fromkeys(row["protocol"] for row in record.get("protocols", [])):
        kind = protocol.split("[")[0]
        if kind not in _COLUMNS or protocol.startswith("hest["):
            continue
        rows = [row for row in record["protocols"] if row["protocol"] == protocol]
        columns = [key for key in _COLUMNS[kind] if any(key in row["metrics"] for row in rows)]
        header = ["arm", *(column.replace("_", " ") for column in columns)]
        cells = [[row["arm"], *(_with_interval(row, column) for column in columns)] for row in rows]
        split = f" Left out at a time: one {rows[0]['split']}." if rows[0].get("split") in ("slide", "patient") else ""
        parts.append(
            f"<h3>{html.escape(protocol)}</h3><p class='soft'>{html.escape(_PROTOCOL_NOTES[kind] + split)}</p>"
        )
        parts.append(_hest_table(record) if kind == "hest" else _table(header, cells))
    return "".join(parts)


def _hest_table(record: Record) -> str:
    """The variants of HEST side by side."""
    rows = [row for row in record["protocols"] if row["protocol"].split("[")[0] == "hest"]
    variants = list(dict.fromkeys(row["protocol"] for row in rows))
    cells = {(row["arm"], row["protocol"]): _with_interval(row, "pearson_mean") for row in rows}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    return _table(
        ["pearson mean", *variants], [[arm, *(cells.get((arm, name), "-") for name in variants)] for arm in arms]
    )


def _hierarchy(record: Record) -> str:
    rows = [row for row in record.get("protocols", []) if row["protocol"] == "hierarchy"]
    if not rows:
        return ""
    labels = [key for key in rows[-1]["metrics"] if "_radius_of_" in key]
    keys = [key for key in (*MEANINGS, *labels) if any(key in row["metrics"] for row in rows)]
    cells = [
        [
            key.replace("_", " "),
            *(_number(row["metrics"].get(key)) for row in rows),
            MEANINGS.get(key, "Mean radius of the label."),
        ]
        for key in keys
    ]
    header = ["", *(row["slide"] for row in rows), "what it means"]
    return "<h2>Hierarchy</h2>" + _table(header, cells, text=(len(header) - 1,))


def _traversals(record: Record) -> str:
    parts = []
    for way in record.get("traversals") or []:
        rows = [
            [
                f"{step['radius']:.2f}",
                "the origin" if step["origin_nearer"] else step["nearest"],
                f"{step['distance']:.2f}",
            ]
            for step in way["steps"]
        ]
        title = html.escape(f"From an image of {way['from']} ({way['slide']}) to the origin")
        parts.append(f"<h3>{title}</h3>" + _table(["radius", "nearest", "distance"], rows, text=(1,)))
    note = "A hierarchy would name the specific first and the general last; the origin throughout: nothing lies on the way."
    return f"<h2>Traversals</h2><p class='soft'>{note}</p>" + "".join(parts) if parts else ""
