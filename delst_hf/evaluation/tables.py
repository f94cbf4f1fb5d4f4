"""Render a table in three ways: as text for a terminal, as HTML for the report, as Markdown for a card."""

from dataclasses import dataclass
from typing import Any

from ..markup import Html, cell, element, joined, row


@dataclass(frozen=True)
class Table:
    """A table of cells that are text already.

    Attributes:
        title: Heading; empty for none.
        header: Names of the columns.
        rows: One tuple of cells per row, each as long as the header.
        note: How to read it.
        prose: Indices of the columns that hold sentences, which a terminal leaves out.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    prose: tuple[int, ...] = ()

    def as_text(self) -> str:
        """Render for a terminal: columns of equal width, the first one flush left.

        Examples:
            >>> print(Table("Scores", ("arm", "F1"), (("ours", "0.5"), ("colour", "0.25"))).as_text())
            Scores
            arm       F1
            ------  ----
            ours     0.5
            colour  0.25
        """
        columns = [i for i in range(len(self.header)) if i not in self.prose]
        lines = [[line[i] for i in columns] for line in (self.header, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        lines.insert(1, ["-" * width for width in widths])
        body = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths))
            )
            for line in lines
        ]
        return "\n".join(line.rstrip() for line in (self.title, *body, self.note) if line)

    def as_markdown(self) -> str:
        """Render for a card.

        Examples:
            >>> print(Table("", ("arm", "F1"), (("a|b", "0.5"),)).as_markdown())
            | arm | F1 |
            |---|---|
            | a&#124;b | 0.5 |
        """
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        body = [str(row(*line)) for line in lines]
        body[1] = "|---" * len(self.header) + "|"
        parts = [f"### {cell(self.title)}" if self.title else "", cell(self.note), "\n".join(body)]
        return "\n\n".join(part for part in parts if part)

    def as_html(self) -> Html:
        """Render for the report.

        Examples:
            >>> Table("", ("arm", "F1"), (("a<b", "0.5"),)).as_html()[:66]
            '<div class="table"><table><tr><th>arm</th><th>F1</th></tr><tr><td>'
        """

        def line(tag: str, cells: tuple[str, ...]) -> Html:
            prose = [{"class_": "text"} if i in self.prose else {} for i in range(len(cells))]
            return element("tr", *(element(tag, text, **marks) for text, marks in zip(cells, prose)))

        body = element("table", line("th", self.header), *(line("td", cells) for cells in self.rows))
        title = element("h3", self.title) if self.title else ""
        note = element("p", self.note, class_="soft") if self.note else ""
        return joined([title, note, element("div", body, class_="table")])


def number(value: Any) -> str:
    """Write a number as tables show it: with three decimals; whole and large numbers without.

    Examples:
        >>> [number(value) for value in (0.25, 36, 512.3, None)]
        ['0.250', '36', '512', '-']
    """
    if value is None or value != value:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 or (value == int(value) and abs(value) >= 2) else f"{value:.3f}"


def between(interval: dict[str, Any] | None, sign: str = "") -> str:
    """Write the two ends of an interval; empty without one.

    Examples:
        >>> between({"low": 0.2, "high": 0.4})
        '0.200 to 0.400'
    """
    if not interval or interval.get("low") is None:
        return ""
    return f"{interval['low']:{sign}.3f} to {interval['high']:{sign}.3f}"
