"""Tables as text and as Markdown, and those that show a report's rows in another order: set × network, set × step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydd.artifacts.report import Report, Row


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


@dataclass(frozen=True)
class Crossed:
    """A report's rows as set × network: ``cells[set][network]``, ``None`` for what was not run."""

    sets: tuple[str, ...]
    networks: tuple[str, ...]
    cells: tuple[tuple[Row | None, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the accuracies as JSON values, ``[set][network]``."""
        means, deviations = (
            [[pick(row) for row in line] for line in self.cells] for pick in (_mean, _deviation)
        )
        return {
            "sets": list(self.sets),
            "networks": list(self.networks),
            "accuracy_mean": means,
            "accuracy_std": deviations,
        }

    def table(self) -> Table:
        """Return the table, with a line per network since these are many."""
        by_network = zip(self.networks, zip(*self.cells, strict=True), strict=True)
        lines = [
            [name, *("–" if r is None else spread(r.accuracy_mean, r.accuracy_std) for r in rows)]
            for name, rows in by_network
        ]
        return Table("Accuracy of every set on every network, %", ["network", *self.sets], lines)


def _mean(row: Row | None) -> float | None:
    return None if row is None else row.accuracy_mean


def _deviation(row: Row | None) -> float | None:
    return None if row is None else row.accuracy_std


def cross(report: Report) -> Crossed | None:
    """Return the rows as set × network, ``None`` with a single network.

    A set under another protocol than the first row's is named with it: ``whole, dm[epochs=60]``.
    """
    names = {
        (r.set, r.protocol): r.set
        if r.protocol == report.rows[0].protocol
        else f"{r.set}, {r.protocol}"
        for r in report.rows
    }
    networks = tuple(dict.fromkeys(row.network for row in report.rows))
    if len(networks) < 2:
        return None
    found = {(row.set, row.protocol, row.network): row for row in report.rows}
    cells = tuple(tuple(found.get((*key, network)) for network in networks) for key in names)
    return Crossed(tuple(names.values()), networks, cells)


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
