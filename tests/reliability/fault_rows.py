"""Rows of docs/reliability.md: each test module of this folder declares its own as data, ``ROWS``, and its tests are
parametrised from them. ``write_table.py`` makes the page of them, ``record.py`` the counts.

A module::

    TORN = Row("storage", "a checkpoint", "cut in half", "named; the one before it is used", "test_torn")
    ROWS = [TORN, ...]

    @pytest.mark.parametrize("row", ROWS, ids=str)
    def test_torn(row: Row, tally: Tally) -> None:
        ...
        tally(row, 12)  # faults injected, or inputs tried: equal to what the module's record says

A module's record is docs/results/reliability/MODULE.json; what tests that are marked nightly tell stands apart in it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RECORDS = ROOT / "docs" / "results" / "reliability"
CHECK, NIGHTLY = "check", "nightly"
"""The two series of a record: what every check counts, and the long one."""
PARTS = {
    "methods": "Every method and stage",
    "ray": "On Ray",
    "storage": "Storage",
    "numbers": "Numbers and pictures",
    "hostile": "Hostile input",
    "secrets": "Secrets",
}
"""Parts of the page and their headings, in order."""

Tally = Callable[..., None]
"""What a test tells of a row: how many faults it injected, or inputs it tried, and what it measured meanwhile."""


@dataclass(frozen=True)
class Row:
    """One promise. ``what``: to what something is done; ``fault``: what is done; ``outcome``: what raydd does;
    ``test``: the function of the same module that shows it, or ``FILE::FUNCTION`` below tests/ (which
    is not counted).

    ``group``: rows of one group and what are one line of the page, their faults its columns.
    ``data``: what the test needs beside.
    """

    part: str
    what: str
    fault: str
    outcome: str
    test: str
    group: str = ""
    data: Any = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.what}: {self.fault}"

    @property
    def name(self) -> str:
        """What the row is called among the counts."""
        return f"{self.part} / {self.what} / {self.fault}"


def modules() -> dict[str, list[Row]]:
    """Return the rows of each test module of this folder, by the module's path below tests/."""
    for folder in (HERE, HERE.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    found: dict[str, list[Row]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        rows = getattr(importlib.import_module(path.stem), "ROWS", None)
        if rows is not None:
            found[f"{HERE.name}/{path.name}"] = list(rows)
    return found


def located(module: str, row: Row) -> tuple[Path, str]:
    """Return the file and the function of a row's test."""
    file, _, function = row.test.rpartition("::")
    return HERE.parent / (file or module), function


def record_of(stem: str) -> Path:
    """Return the record of a test module."""
    return RECORDS / f"{stem}.json"


def counts(series: str) -> dict[str, int]:
    """Return the counts of a series, by row, of all records."""
    found: dict[str, int] = {}
    for path in sorted(RECORDS.glob("test_*.json")):
        found |= json.loads(path.read_text()).get(series, {}).get("counts", {})
    return found


def measured() -> dict[str, str]:
    """Return what was measured, by row, the long series' before the check's."""
    found: dict[str, str] = {}
    for path in sorted(RECORDS.glob("test_*.json")):
        record = json.loads(path.read_text())
        for series in (CHECK, NIGHTLY):
            found |= record.get(series, {}).get("measured", {})
    return found


def all_rows() -> Iterator[tuple[str, Row]]:
    """Yield every row with its module."""
    for module, rows in modules().items():
        for row in rows:
            yield module, row
