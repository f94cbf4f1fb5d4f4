"""What a protocol is. One file per protocol lies beside this one; it alone knows the protocol's facts.

To add one, write a file that ends in `PROTOCOL = Protocol(...)` and add its name to `suite.SUITE`: the table, the report, the
card and the model-index read everything else from there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..findings import Findings

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Protocol:
    """A way to score embeddings, and everything that a table, a figure or a card has to know of it.

    Attributes:
        name: Its name in `--protocols` and in the rows of the results; the name of its file.
        run: Adds rows to the findings. A ValueError says that the data do not allow it: the protocol is skipped and says why.
        title: Heading of its table.
        headline: The metric that stands for it.
        note: How to read it, in one or two sentences.
        also: Further metrics that are compared with baselines and stand in the model-index.
        shown: Further metrics of its table.
        chance: Metric -> what an answer without skill gets: another metric of the same row, or a number.
        lower_is_better: Metrics of which the lower value is the better one.
        task: The Hub's name of the task, for the model-index; empty for a protocol that does not belong there.
        variants: Variant of a row -> what it changes; "" is the protocol as it is.
        drawn: The variants whose headline the report draws beside the baselines.
        meanings: Metric -> what a high and a low value say. With them the table has one line per metric.
        cost: Its share of the time of a whole evaluation, for the progress bar.
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
        """Return what an answer without skill gets in a metric of a row; None where the protocol does not know."""
        chance = self.chance.get(metric)
        return row["metrics"].get(chance) if isinstance(chance, str) else chance
