"""Judge a model by its results: compare each score with the best baseline, or with chance where there is no baseline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .protocols import Protocol
from .result_tables import name_of, spread_of
from .suite import protocol

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One score of the model beside the score that it has to beat.

    Attributes:
        protocol: The protocol.
        variant, slide, arm, metric: Where in the results of the protocol the score is.
        value: The score.
        rival: The best baseline, or "chance".
        rival_value: Score of the rival.
        spread: By how much the score has to be better: on one slide the standard deviation of the baseline's score, else how
            far the 95 % interval reaches below the difference (for chance: below the score); 0 where there is neither.
        chance: The chance level; None where the protocol states none.
    """

    protocol: Protocol
    variant: str
    slide: str | None
    arm: str
    metric: str
    value: float
    rival: str
    rival_value: float
    spread: float = 0.0
    chance: float | None = None

    @property
    def better(self) -> bool:
        """Whether the score is better than the rival's by more than the spread."""
        gain = self.value - self.rival_value
        return (-gain if self.metric in self.protocol.lower_is_better else gain) > self.spread

    def sentence(self) -> str:
        """State that the score is not better than the rival's, for a list of limitations."""
        where = f" on {self.slide}" if self.slide else ""
        spread = " by more than its spread" if self.value > self.rival_value else ""
        rival = "chance" if self.rival == "chance" else f"that of {self.rival}"
        return (
            f"{self.protocol.title_of(self.variant)}: the {self.metric} of {self.arm}{where} ({self.value:.3f}) is not above "
            f"{rival} ({self.rival_value:.3f}){spread}."
        )


def verdicts(rows: Sequence[Record], own_arms: Sequence[str], comparisons: Sequence[Record] = ()) -> list[Verdict]:
    """Judge every headline score of the model's own arms.

    The first own arm is compared with the best baseline of the same protocol, variant and slide. Where there is none, and for
    the other arms, it is compared with chance.

    Args:
        rows: Rows of results.
        own_arms: Names of the model's own arms; the first one represents it.
        comparisons: Paired comparisons of results, whose intervals say how sure a difference to a baseline is.
    """
    pairs = {
        tuple(pair[key] for key in ("protocol", "variant", "metric", "first", "second")): pair for pair in comparisons
    }
    result = []
    for row in rows:
        if row["own"]:
            rivals = _rivals(rows, row) if row["arm"] == own_arms[0] else []
            result += list(_of_row(row, protocol(row["protocol"]), rivals, pairs))
    return result


def _rivals(rows: Sequence[Record], row: Record) -> list[Record]:
    place = ("protocol", "variant", "slide")
    return [
        other
        for other in rows
        if not other["own"] and not other["control"] and all(other.get(key) == row.get(key) for key in place)
    ]


def _of_row(
    row: Record, which: Protocol, rivals: Sequence[Record], pairs: Mapping[tuple[str, ...], Record]
) -> Iterator[Verdict]:
    for metric in which.judged:
        value = row["metrics"].get(metric)
        if value is None:
            continue
        sign = -1 if metric in which.lower_is_better else 1
        scored = [other for other in rivals if other["metrics"].get(metric) is not None]
        facts = (which, row["variant"], row.get("slide"), name_of(row), metric, value)
        chance = which.chance_of(metric, row)
        if scored:
            best = max(scored, key=lambda other: sign * other["metrics"][metric])
            pair = pairs.get((which.name, row["variant"], metric, row["arm"], best["arm"]), {})
            # Per slide, the spread is over random networks or seeds of a probe; otherwise over folds, which is not used.
            spread = spread_of(best["metrics"], metric) if row.get("slide") else _reach(pair, pair.get("difference"))
            yield Verdict(*facts, best["arm"], best["metrics"][metric], spread or 0.0, chance)
        elif chance is not None:
            yield Verdict(*facts, "chance", chance, _reach(row["intervals"].get(metric) or {}, value), chance)


def _reach(interval: Record, value: float | None) -> float:
    """Return how far an interval reaches below its value; 0 without one."""
    low = interval.get("low")
    return 0.0 if low is None or value is None else max(value - low, 0.0)
