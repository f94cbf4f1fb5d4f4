"""Results as the tables of a card, and what they do not show, in words."""

from collections.abc import Mapping
from typing import Any

from ..evaluation.result_tables import results_tables
from ..evaluation.verdicts import verdicts
from ..markup import Markdown, cell

Record = Mapping[str, Any]


def results_text(results: Record, baselines: Record | None = None) -> Markdown:
    """Write the table of every protocol, with its intervals.

    Args:
        results: Results of `delst evaluate`.
        baselines: Results that hold the baselines, where `results` has none.
    """
    unit = cell(results.get("interval_unit", "spots"))
    labels = cell(", ".join(map(str, results.get("label_source", []))) or "unknown source")
    parts = [
        f"All scores are of slides never seen in training; labels are from {labels}. In brackets: bootstrap intervals of 95 % "
        f"over {unit}; ±: standard deviation; chance: what an answer without skill gets. docs/evaluation.md of the package "
        "explains every protocol.",
        *(table.as_markdown() for table in results_tables(with_baselines(results, baselines))),
    ]
    if "data_fingerprint" in results:
        content = cell(results["data_fingerprint"])
        parts.append(f"Data fingerprint <code>{content}</code>, {cell(results.get('num_spots'))} spots.")
    return Markdown("\n\n".join(parts))


def with_baselines(results: Record, baselines: Record | None) -> Record:
    """Add the baselines of other results to these, if they are of the same data.

    Raises:
        ValueError: If the data differ.
    """
    if baselines is None:
        return results
    pair = [record.get("data_fingerprint") for record in (results, baselines)]
    if pair[0] != pair[1] or list(results["test_slides"]) != list(baselines["test_slides"]):
        raise ValueError(
            f"The baselines are of other data: fingerprints {pair}, test slides {results['test_slides']} and "
            f"{baselines['test_slides']}. Give results on the same dataset and slides."
        )
    present = {(row["protocol"], row["arm"]) for row in results["protocols"]}
    # The controls of the other run belong to its model, not to this one.
    added = [
        row
        for row in baselines["protocols"]
        if not row["own"] and not row["control"] and (row["protocol"], row["arm"]) not in present
    ]
    return {**results, "protocols": [*results["protocols"], *added]}


def limitations(record: Record, data: Record, results: Record | None, baselines: Record | None = None) -> Markdown:
    """List what the checkpoint was not tested on, and where it is no better than a baseline."""
    train, patients = list(record.get("train_slides", [])), data.get("patients", {})
    lines = ["Research only: not for clinical use."]
    if train:
        kind = ", ".join(str(data.get(name) or f"{name} unknown") for name in ("tissue", "species"))
        lines.append(
            f"It has seen {len(train)} slides ({kind}); other tissue, stains, scanners and technologies are untested."
        )
    if results is not None:
        if results.get("weights") is None:
            lines.append(
                "The results carry no fingerprint of the weights that were scored: it was not checked that they are of this "
                "checkpoint."
            )
        seen = {patients[slide] for slide in [*train, *record.get("unpaired_slides", [])] if slide in patients}
        same = [slide for slide in results["test_slides"] if patients.get(slide) in seen]
        if same:
            lines.append(
                f"{', '.join(same)}: another section of a patient seen in training; scores there are not those of a new "
                "patient."
            )
        if any("transferred" in str(source) for source in results.get("label_source", [])):
            lines.append("Some labels are transferred from a neighbouring section and not a pathologist's.")
        rows = with_baselines(results, baselines)["protocols"]
        if all(row["own"] or row["control"] for row in rows):
            lines.append(
                "These results hold no baselines (colour, random-init and frozen backbone): how much is learned is not shown."
            )
        judged = verdicts(rows, results["own_arms"], results.get("comparisons") or ())
        lines += [verdict.sentence() for verdict in judged if not verdict.better]
    return Markdown("\n".join(f"- {cell(line)}" for line in lines))
