"""The tables of docs/scale.md are those that its command prints."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_page_has_the_tables_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    from scale_table import tables

    page = (ROOT / "docs" / "scale.md").read_text()
    for made in tables():
        assert made in page, f"docs/scale.md is out of date: it has not\n{made}"
