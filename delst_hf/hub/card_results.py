"""Results as the tables of a card, and what they do not show, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
# A metric's value for an answer without any skill: another metric of the same row, or a number.
_CHANCE: dict[str, str | float] = {
    "macro_f1": "majority_macro_f1",
    "balanced_accuracy": "chance_balanced_accuracy",
    "image_to_gene_median_rank": "chance_median_rank",
    "gene_to_image_median_rank": "chance_median_rank",
    "image_to_gene_mean_rank": "chance_median_rank",  # ranks without skill are uniform: mean and median agree
    "gene_to_image_mean_rank": "chance_median_rank",
    "entailment_auc": 0.5,
    "auroc": 0.5,
    "pearson_mean": 0.0,
    "imputation_pearson": 0.0,
    "smoothness": "smoothness_shuffled",
    "ari": 0.0,
    "nmi": 0.0,
}
_OWN_ARMS = ("DELST backbone", "DELST embedding")


def results_text(results: Record, baselines: Record | None = None) -> str:
    """Tables of every score: by slide and arm, then by protocol with intervals.

    Args:
        results: Results of `delst evaluate`.
        baselines: Results that hold the baselines, where `results` has none.
    """
    arms = [*results["arms"], *baseline_rows(results, baselines)]
    lines = [
        "Mean gene-wise Pearson of a ridge from frozen features, and macro-F1 of a linear probe on labels "
        f"(from {', '.join(map(str, results.get('label_source', []))) or 'unknown source'}), on slides never seen in training.",
        "",
        "| arm | slide | spots | Pearson | probe macro-F1 | majority class |",
        "|---|---|---|---|---|---|",
        *(_arm_row(row) for row in arms),
    ]
    rows = [row for one in results.get("protocols", []) for row in _protocol_rows(one)]
    if rows:
        unit = results.get("interval_unit", "spots")
        lines += [
            "",
            f"Every protocol (docs/evaluation.md of the package), with bootstrap intervals of 95 % over {unit} where there is "
            "one and the standard deviation over folds or seeds where there is not; chance is an answer without skill. "
            "Ranks are the better the lower, everything else the higher.",
            "",
            "| protocol | arm | metric | value | interval or sd | chance |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    if "data_fingerprint" in results:
        lines += ["", f"Data fingerprint `{results['data_fingerprint']}`, {results.get('num_spots')} spots."]
    return "\n".join(lines)


def baseline_rows(results: Record, baselines: Record | None) -> list[Record]:
    """The arms of other results that are not the model's own, if they are of the same data.

    Raises:
        ValueError: If the data differ.
    """
    if baselines is None:
        return []
    pair = [record.get("data_fingerprint") for record in (results, baselines)]
    if pair[0] != pair[1] or list(results["test_slides"]) != list(baselines["test_slides"]):
        raise ValueError(
            f"The baselines are of other data: fingerprints {pair}, test slides {results['test_slides']} and "
            f"{baselines['test_slides']}. Give results on the same dataset and slides."
        )
    present = {row["arm"] for row in results["arms"]}
    shuffled = "DELST backbone, shuffled pairs"  # of the other run's model: not this one's control
    return [row for row in baselines["arms"] if row["arm"] not in (*_OWN_ARMS, *present, shuffled)]


def limitations(record: Record, data: Record, results: Record | None, baselines: Record | None = None) -> str:
    """What the checkpoint was not tried on, and where it is no better than a baseline, as a list."""
    train, patients = list(record.get("train_slides", [])), data.get("patients", {})
    lines = ["Research only: not for clinical use."]
    if train:
        kind = ", ".join(str(data.get(name) or f"{name} unknown") for name in ("tissue", "species"))
        lines.append(
            f"It has seen {len(train)} slides ({kind}); other tissue, stains, scanners and technologies are untested."
        )
    if results is not None:
        seen = {patients[slide] for slide in train if slide in patients}
        same = [slide for slide in results["test_slides"] if patients.get(slide) in seen]
        if same:
            lines.append(
                f"{', '.join(same)}: another section of a patient seen in training; scores there are not those of a new "
                "patient."
            )
        if any("transferred" in str(source) for source in results.get("label_source", [])):
            lines.append("Some labels are transferred from a neighbouring section and not a pathologist's.")
        lines += _against_baselines([*results["arms"], *baseline_rows(results, baselines)])
        lines += _protocols_without_gain(results.get("protocols", []))
    return "\n".join(f"- {line}" for line in lines)


def _against_baselines(arms: Sequence[Record]) -> list[str]:
    """Scores of the trained backbone that are not above the best baseline and its spread."""
    others = [row for row in arms if row["arm"] not in _OWN_ARMS and "shuffled" not in row["arm"]]
    if not others:
        return [
            "These results hold no baselines (colour, random-init and frozen backbone): how much is learned is not shown."
        ]
    lines = []
    for metric, title in (("pearson_mean", "Pearson"), ("probe_macro_f1_mean", "probe macro-F1")):
        for own in arms:
            rivals = [row for row in others if row["slide"] == own["slide"] and row.get(metric) is not None]
            if own["arm"] != "DELST backbone" or own.get(metric) is None or not rivals:
                continue
            best = max(rivals, key=lambda row: row[metric])
            if own[metric] <= best[metric] + best.get(f"{metric}_sd", best.get(metric.replace("_mean", "_sd"), 0.0)):
                lines.append(
                    f"On {own['slide']} the backbone's {title} ({own[metric]:.3f}) is not above that of {best['arm']} "
                    f"({best[metric]:.3f}) and its spread."
                )
    return lines


def _protocols_without_gain(protocols: Sequence[Record]) -> list[str]:
    """Scores over all slides in which the trained backbone is not above a baseline, and those that are not above chance."""
    lines = []
    for one in protocols:
        name, arm, metrics = one["protocol"], one["arm"], one["metrics"]
        for metric in _shown(one):
            value, chance = metrics[metric], _chance(metric, metrics)
            if value is None or metric.endswith("_rank") or "shuffled" in arm:
                continue
            rivals = [
                row
                for row in protocols
                if row["protocol"] == name
                and not row["arm"].startswith("DELST")
                and row["metrics"].get(metric) is not None
            ]
            if arm == "DELST backbone" and rivals:
                best = max(rivals, key=lambda row: row["metrics"][metric])
                if value <= best["metrics"][metric]:
                    lines.append(
                        f"In {name} the backbone's {metric} ({value:.3f}) is not above that of {best['arm']} "
                        f"({best['metrics'][metric]:.3f})."
                    )
            elif (arm.startswith("DELST") or name == "zero_shot") and chance and value <= float(chance):
                lines.append(f"In {name} the {metric} of {arm} ({value:.3f}) is not above chance ({chance}).")
    return lines


def _arm_row(row: Record) -> str:
    def value(name: str) -> str:
        if row.get(name) is None:
            return ""
        spread = row.get(f"{name}_sd", row.get(name.replace("_mean", "_sd")))
        return f"{row[name]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")

    majority = row.get("probe_majority_macro_f1")
    cells = [row["arm"], row["slide"], row["spots"], value("pearson_mean"), value("probe_macro_f1_mean")]
    return _row(*cells, "" if majority is None else f"{majority:.3f}")


def _protocol_rows(one: Record) -> list[str]:
    """One line a metric that is shown."""
    metrics, intervals = one["metrics"], one.get("intervals", {})
    lines = []
    for name in _shown(one):
        if metrics[name] is None:
            continue
        interval, spread = intervals.get(name), metrics.get(f"{name.removesuffix('_mean')}_sd")
        shown = f"{interval['low']:.3f} to {interval['high']:.3f}" if interval else f"± {spread:.3f}" if spread else ""
        arm = f"{one['arm']}, {one['slide']}" if one.get("slide") else one["arm"]
        lines.append(_row(one["protocol"], arm, name, f"{metrics[name]:.3f}", shown, _chance(name, metrics)))
    return lines


def _shown(one: Record) -> list[str]:
    """Metrics with an interval; where there is none, those with a standard deviation, or with a chance beside them."""
    metrics, intervals = one["metrics"], one.get("intervals", {})
    names = [name for name in metrics if name in intervals]
    names = names or [
        name for name in metrics if f"{name.removesuffix('_mean')}_sd" in metrics and name.endswith("_mean")
    ]
    return names or [name for name in metrics if _chance(name, metrics)]


def _chance(name: str, metrics: Record) -> str:
    key = _CHANCE.get(name, f"chance_{name.split('_')[-1]}") if not name.startswith("chance_") else None
    value = metrics.get(key) if isinstance(key, str) else key
    return "" if value is None else f"{value:.3f}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
