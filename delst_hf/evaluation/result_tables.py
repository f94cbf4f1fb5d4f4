"""Make tables of results, the same ones for a terminal, the report and a card; each protocol states what its table shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from .protocols import Protocol
from .suite import protocol, protocols_of
from .tables import Table, between, number

Record = Mapping[str, Any]


def results_tables(record: Record) -> list[Table]:
    """Return one table per protocol that ran, in the order of the suite."""
    return [protocol_table(record, which) for which in protocols_of(record["protocols"])]


def protocol_table(record: Record, which: Protocol) -> Table:
    """Make the table of one protocol: one line per row of the results.

    A protocol of one metric in several variants has a column per variant; one whose metrics have meanings has a line per
    metric, with what it means.
    """
    rows = [row for row in record["protocols"] if row["protocol"] == which.name]
    if which.meanings:
        return _by_metric(rows, which)
    if len(which.columns) == 1 and len({row["variant"] for row in rows}) > 1:
        return _by_variant(rows, which)
    return _by_row(rows, which)


def comparison_table(record: Record) -> Table | None:
    """Make the table of paired comparisons of the model's own arms with the others; None where there is none."""
    comparisons = record.get("comparisons") or []
    if not comparisons:
        return None
    rows = [
        (
            protocol(each["protocol"]).title_of(each["variant"]),
            f"{each['first']} minus {each['second']}",
            f"{each['difference']:+.3f}",
            between(each, "+"),
            f"{each['p_value']:.3f}",
        )
        for each in comparisons
    ]
    units = " or ".join(dict.fromkeys(each["unit"] for each in comparisons))
    note = f"The same {units} resampled for both. An interval that holds 0 shows no difference. p is of each comparison alone."
    header = ("protocol", "arms", "difference", "95 %", "p")
    return Table("Paired comparisons", header, tuple(rows), note, prose=(1,))


def skipped_table(record: Record) -> Table | None:
    """Make the table of protocols that the data did not allow, with the reasons; None where all ran."""
    rows = tuple((row["protocol"], row["reason"]) for row in record.get("skipped") or [])
    return Table("Not run", ("protocol", "why"), rows, prose=(1,)) if rows else None


def format_results(record: Record) -> str:
    """Write the results as text to read in a terminal: one table per protocol, and what was skipped.

    Examples:
        >>> from delst_hf.evaluation.results import read_results
        >>> print(format_results(read_results("runs/toy/results.json")).splitlines()[0])
        Retrieval
    """
    blocks = [table.as_text() for table in results_tables(record)]
    if record.get("skipped"):
        blocks.append("\n".join(f"Skipped {row['protocol']}: {row['reason']}" for row in record["skipped"]))
    return "\n\n".join(blocks)


def name_of(row: Record) -> str:
    """Name what a row scored, with the share of a signature's genes that the model reads.

    Examples:
        >>> name_of({"arm": "immune", "genes": "4 of 6 genes"})
        'immune (4 of 6 genes)'
    """
    return f"{row['arm']} ({row['genes']})" if row.get("genes") else str(row["arm"])


def value_of(row: Record, metric: str) -> str:
    """Write a metric with its interval, or with its standard deviation where there is no interval."""
    metrics, value = row["metrics"], row["metrics"].get(metric)
    if value is None:
        return "-"
    interval = between(row.get("intervals", {}).get(metric))
    spread = spread_of(metrics, metric)
    return number(value) + (f" ({interval})" if interval else f" ± {spread:.3f}" if spread is not None else "")


def spread_of(metrics: Record, metric: str) -> float | None:
    """Return the standard deviation of a metric: over random networks or, without these, over the seeds of a probe."""
    names = (f"{metric}_sd", metric.removesuffix("_mean") + "_sd")
    return next((metrics[name] for name in names if metrics.get(name) is not None), None)


def _by_row(rows: Sequence[Record], which: Protocol) -> Table:
    metrics = [name for name in which.columns if any(name in row["metrics"] for row in rows)]
    by_variant, by_slide = len(which.variants) > 1, any(row.get("slide") for row in rows)
    leading = [*(["variant"] if by_variant else []), "arm", *(["slide"] if by_slide else [])]
    body = []
    for row in rows:
        cells = [row["variant"] or which.name] if by_variant else []
        cells += [name_of(row), *([row.get("slide") or "all"] if by_slide else [])]
        body.append((*cells, *(value_of(row, name) for name in metrics)))
    header = (*leading, *(_title(which, name) for name in metrics))
    return Table(which.title, header, tuple(body), _note(rows, which))


def _by_variant(rows: Sequence[Record], which: Protocol) -> Table:
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    cells = {(name_of(row), row["variant"]): value_of(row, which.headline) for row in rows}
    body = [(arm, *(cells.get((arm, name), "-") for name in variants)) for arm in dict.fromkeys(map(name_of, rows))]
    header = (_title(which, which.headline), *(f"{which.name}[{name}]" if name else which.name for name in variants))
    return Table(which.title, header, tuple(body), _note(rows, which))


def _by_metric(rows: Sequence[Record], which: Protocol) -> Table:
    labels = [key for key in rows[-1]["metrics"] if "_radius_of_" in key]
    metrics = [key for key in (*which.meanings, *labels) if any(key in row["metrics"] for row in rows)]
    body = [
        (
            key.replace("_", " "),
            *(number(row["metrics"].get(key)) for row in rows),
            which.meanings.get(key, "Mean radius of these spots."),
        )
        for key in metrics
    ]
    header = ("", *(row.get("slide") or "all test slides" for row in rows), "what it means")
    return Table(which.title, header, tuple(body), _note(rows, which), prose=(len(header) - 1,))


def _title(which: Protocol, metric: str) -> str:
    chance = which.chance.get(metric)
    return metric.replace("_", " ") + ("" if chance is None or isinstance(chance, str) else f" (chance {chance:g})")


def _note(rows: Sequence[Record], which: Protocol) -> str:
    """Return how to read the table: the note of the protocol, those of the variants in it, and what is left out at a time."""
    parts, present = [which.note], {row["variant"] for row in rows}
    for name, text in which.variants.items():
        if name in present and text:
            parts.append(f"{name or which.name}: {text[0].lower()}{text[1:]}" if len(which.variants) > 1 else text)
    if rows[0].get("split") in ("slide", "patient", "block"):
        parts.append(f"Left out at a time: one {rows[0]['split']}.")
    return " ".join(parts)
