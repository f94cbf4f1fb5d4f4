"""Sum up an evaluation in a few sentences, for a reader who does not know the protocols."""

from collections.abc import Mapping
from typing import Any

from .suite import protocol
from .verdicts import Verdict, verdicts

Record = Mapping[str, Any]
# (protocol, variant) whose headline represents a model: the first one that was scored.
_SPOKESMEN = (
    ("hest", "alpha=cv"),
    ("hest", ""),
    ("arms", ""),
    ("probes", "linear"),
    ("retrieval", ""),
    ("domains", ""),
)


def conclusions(record: Record) -> list[str]:
    """Say how well the model does, against which baseline, how certain that is, and what the hierarchy shows.

    Examples:
        >>> from delst_hf.evaluation.conclusions import conclusions
        >>> conclusions({"protocols": [], "own_arms": ["ours"], "test_slides": ["B4"], "skipped": []})[0]
        'Nothing was scored on B4; the table "Not run" says why.'
    """
    slides = ", ".join(record["test_slides"])
    verdict = _spokesman(record)
    if verdict is None:
        return [
            f'Nothing was scored on {slides}; the table "Not run" says why.',
            f"The hierarchy: {_hierarchy(record)}",
        ]
    where = f" on {verdict.slide}" if verdict.slide else f" on {slides}"
    chance = "" if verdict.chance is None else f" and {verdict.chance:.3g} is chance"
    what = f"{verdict.protocol.title_of(verdict.variant)} ({verdict.metric.replace('_', ' ')})"
    return [
        f"How well: {verdict.arm} scores {verdict.value:.3f} in {what}{where}; 1 is perfect{chance}.",
        f"Against what: {_against(verdict)}",
        f"How sure: {_how_sure(record, verdict)}",
        f"The hierarchy: {_hierarchy(record)}",
    ]


def _spokesman(record: Record) -> Verdict | None:
    """Return the verdict on the score that represents the model; of several slides the first."""
    judged = verdicts(record["protocols"], record["own_arms"])
    for place in _SPOKESMEN:
        for verdict in judged:
            which = verdict.protocol
            if (which.name, verdict.variant) == place and verdict.metric == which.headline:
                return verdict
    return judged[0] if judged else None


def _against(verdict: Verdict) -> str:
    gain = verdict.value - verdict.rival_value
    rival = "chance" if verdict.rival == "chance" else f"the best baseline, {verdict.rival},"
    lies = f"{abs(gain):.3f} {'above' if gain > 0 else 'below'}" if round(gain, 3) else "level with"
    return f"{rival} gets {verdict.rival_value:.3f}; the model lies {lies} it."


def _how_sure(record: Record, verdict: Verdict) -> str:
    key = (verdict.protocol.name, verdict.variant, verdict.metric, verdict.arm, verdict.rival)
    for each in record.get("comparisons") or []:
        if (each["protocol"], each["variant"], each["metric"], each["first"], each["second"]) == key:
            unit = each["unit"]
            sure = "beyond chance" if each["low"] > 0 or each["high"] < 0 else "no difference, as this interval holds 0"
            scope = "for these slides, not for other patients" if unit == "spots" else f"over {unit}"
            ends = f"{each['low']:+.3f} and {each['high']:+.3f}"
            return f"the difference lies between {ends} in 95 % of resamples, {scope}: {sure}."
    if verdict.rival == "chance":
        left_out = next((name for name in ("--no-baselines", "--protocols") if name in record.get("command", ())), None)
        advice = f" Evaluate without {left_out}." if left_out else ""
        return f"no baseline was scored, so the results do not show what was learned.{advice}"
    if not verdict.spread:
        return "there is neither an interval of the difference nor a spread of the baseline, so nothing says how sure it is."
    beyond = "above it" if verdict.better else "not above it"
    return f"there is no interval of the difference; judged by the spread of the baseline, the model is {beyond}."


def _hierarchy(record: Record) -> str:
    row = next((row for row in record["protocols"] if row["protocol"] == "hierarchy" and not row.get("slide")), None)
    if row is None and "--protocols" in record.get("command", ()):
        return "it is not among the --protocols that were chosen."
    if row is None:
        return "none was scored; only a checkpoint with a Lorentz space has one."
    metrics, which = row["metrics"], protocol("hierarchy")
    inside, control, auc = metrics["in_cone_matched"], metrics["in_cone_mismatched"], metrics[which.headline]
    between = _ends(row, which.headline)
    shuffled = which.chance_of(which.headline, row)
    chance = "50% is chance" if shuffled is None else f"{shuffled:.0%} with children shuffled within slides"
    pairs = "" if between is None else f"{between[0]:.0%} to {between[1]:.0%} in 95 % of resamples; "
    return (
        f"{inside:.0%} of children lie in their own parent's cone and {control:.0%} in another's, {_cones(row)}; a parent's "
        f"own child fits its cone better than another child in {auc:.0%} of pairs ({pairs}{chance}).{_depth(row)}"
    )


def _cones(row: Record) -> str:
    metrics, own, other = row["metrics"], _ends(row, "in_cone_matched"), _ends(row, "in_cone_mismatched")
    if metrics["in_cone_matched"] <= metrics["in_cone_mismatched"] + 0.05:
        return "so the cones do not tell the two apart"
    if own is None or other is None or own[0] <= other[1]:
        return "but without intervals apart from each other, so it is not shown that the cones tell the two apart"
    return "so the cones tell the two apart"


def _depth(row: Record) -> str:
    name = "image_radius_genes_given_counts"
    depth, ends = row["metrics"].get(name), _ends(row, name)
    if depth is None:
        return ""
    sure = "0: not at all"
    if ends is not None:
        none = ", which holds 0: no correlation is shown" if ends[0] <= 0 <= ends[1] else ""
        sure = f"{ends[0]:+.2f} to {ends[1]:+.2f} in 95 % of resamples{none}"
    beyond = "Beyond sequencing depth, the radius of images correlates with the number of expressed genes by"
    return f" {beyond} {depth:+.2f} ({sure})."


def _ends(row: Record, metric: str) -> tuple[float, float] | None:
    interval = row["intervals"].get(metric)
    return None if not interval or interval["low"] is None else (interval["low"], interval["high"])
