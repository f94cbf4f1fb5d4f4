"""Define what a protocol is. Each protocol has a file in this folder, the only place that states its facts.

To add one, write a file that ends in `PROTOCOL = Protocol(...)` and add its name to `suite.SUITE`: the table, the report, the
card and the model-index read everything else from `PROTOCOL`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..findings import Findings

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Protocol:
    """A way to score embeddings, and everything that a table, a figure or a card has to know about it.

    Attributes:
        name: Its name in `--protocols` and in the rows of the results; also the name of its file.
        run: Function that adds rows to the findings. If it raises ValueError, the protocol is skipped and the message reported.
        title: Heading of its table.
        headline: Its main metric.
        note: How to read its table, in a few sentences.
        also: Further metrics that are compared with baselines and listed in the model-index.
        shown: Further metrics that its table shows.
        chance: Metric -> its chance level: a number, or the name of another metric of the same row.
        lower_is_better: Metrics for which lower is better.
        task: Name of the task on the Hub, for the model-index; empty to leave the protocol out of it.
        variants: Name of a variant -> what it changes; "" is the protocol unchanged.
        drawn: The variants whose headline the report draws beside the baselines.
        meanings: Metric -> what high and low values mean. If given, the table has one line per metric.
        cost: Relative run time, for the progress bar.
    """

    name: str
    run: Callable[[Findings], None]
    title: str
    headline: str
    note: str
    also: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    chance: Mapping[str, str | float] = field(default_factory=dict)
    lower_is_better: tuple[str, ...] = ()
    task: str = ""
    variants: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    drawn: tuple[str, ...] = ()
    meanings: Mapping[str, str] = field(default_factory=dict)
    cost: float = 1.0

    @property
    def judged(self) -> tuple[str, ...]:
        """The metrics that are compared with baselines."""
        return (self.headline, *self.also)

    @property
    def columns(self) -> tuple[str, ...]:
        """The metrics of its table."""
        return (*self.judged, *self.shown)

    def title_of(self, variant: str) -> str:
        """Return its title with the variant in brackets.

        Examples:
            >>> Protocol("hest", print, "Expression", "pearson_mean", "").title_of("alpha=cv")
            'Expression [alpha=cv]'
        """
        return f"{self.title} [{variant}]" if variant else self.title

    def chance_of(self, metric: str, row: Row) -> float | None:
        """Return the chance level of a metric in a row; None where the protocol states none."""
        chance = self.chance.get(metric)
        return row["metrics"].get(chance) if isinstance(chance, str) else chance
