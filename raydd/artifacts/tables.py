"""Tables as text and as Markdown, and those that show a report's rows in another order: set × network, set × step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydd.artifacts.report import Crossed, Report


@dataclass(frozen=True)
class Table:
    """A header and lines of cells; the first ``left`` columns are set left, the others right."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    left: int = 1


def as_text(table: Table) -> list[str]:
    """Return the table's lines for a terminal: header, rule, rows."""
    widths = [
        max(len(line[i]) for line in [table.header, *table.lines]) for i in range(len(table.header))
    ]

    def text(line: Sequence[str]) -> str:
        sides = enumerate(zip(line, widths, strict=True))
        return "  ".join(
            cell.ljust(width) if i < table.left else cell.rjust(width) for i, (cell, width) in sides
        ).rstrip()

    return [text(table.header), "─" * len(text(table.header)), *map(text, table.lines)]


def inline(text: str) -> str:
    """Return a text for one line of Markdown: names in it make no HTML, link, picture or further line."""
    return " ".join(text.splitlines()).replace("<", "&lt;").replace("](", "]\\(")


def as_markdown(table: Table) -> list[str]:
    """Return the table's lines in Markdown."""

    def text(line: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"

    rule = (
        "|" + "|".join("---" if i < table.left else "--:" for i in range(len(table.header))) + "|"
    )
    return [text(table.header), rule, *map(text, table.lines)]


def spread(mean: float, deviation: float) -> str:
    """Return ``48.93 ± 0.61``."""
    return f"{mean:.2f} ± {deviation:.2f}"


def crossed_table(crossed: Crossed) -> Table:
    """Return the table of set × network, with a line per network since these are many."""
    by_network = zip(crossed.networks, zip(*crossed.cells, strict=True), strict=True)
    lines = [
        [name, *("–" if r is None else spread(r.accuracy_mean, r.accuracy_std) for r in rows)]
        for name, rows in by_network
    ]
    return Table("Accuracy of every set on every network, %", ["network", *crossed.sets], lines)


def _count(number: int, word: str) -> str:
    """Return a number of things: ``1 class``, ``2 classes``."""
    return f"{number} {word}{'' if number == 1 else 'es' if word.endswith('s') else 's'}"


def continual_context(report: Report) -> tuple[str, str]:
    """Return what the continual experiment's numbers are of: steps and repetitions; protocol and network."""
    first, last = report.continual[0], report.continual[-1]
    repeated = f"{_count(first.orders, 'class order')} × {_count(first.networks, 'network')}"
    return (
        f"{last.step} steps of {_count(first.classes, 'class')}, {repeated}",
        f"protocol {first.protocol}, {first.network}",
    )


def continual_table(report: Report) -> Table:
    """Return the accuracies after each step, a line per set."""
    sets = dict.fromkeys(row.set for row in report.continual)
    of_set = {name: [row for row in report.continual if row.set == name] for name in sets}
    header = ["set", *(_count(row.classes, "class") for row in next(iter(of_set.values())))]
    lines = [
        [name, *(spread(row.accuracy_mean, row.accuracy_std) for row in rows)]
        for name, rows in of_set.items()
    ]
    title = (
        f"Continual learning, {', '.join(continual_context(report))}: accuracy on the images of the classes seen so"
        " far, %"
    )
    return Table(title, header, lines)
