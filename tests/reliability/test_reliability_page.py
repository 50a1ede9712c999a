"""The page says what the tests declare and what was counted; every row has a test."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from fault_rows import CHECK, HERE, NIGHTLY, PAGE, PARTS, all_rows, counts, located, record_of
from write_table import page

from raydd.methods import METHODS

EVERY = list(all_rows())


def test_the_page_is_what_the_tests_declare() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run tests/reliability/write_table.py"


@pytest.mark.parametrize(
    ("file", "function"),
    sorted({(str(path), function) for path, function in (located(*both) for both in EVERY)}),
)
def test_a_row_has_a_test(file: str, function: str) -> None:
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_rows_differ_and_are_of_a_part_and_were_counted() -> None:
    names = [row.name for _, row in EVERY]
    assert sorted(set(names)) == sorted(names)
    assert {row.part for _, row in EVERY} <= set(PARTS)
    counted = {**counts(CHECK), **counts(NIGHTLY)}
    told = [(module, row) for module, row in EVERY if "::" not in row.test]
    lacking = [row.name for module, row in told if is_recorded(module) and row.name not in counted]
    assert lacking == [], "run tests/reliability/record.py"
    assert counted.keys() <= set(names), "counts of rows that are not there"


def is_recorded(module: str) -> bool:
    """Return whether a module's long series was recorded, or it has none."""
    record = record_of(Path(module).stem)
    long = "@pytest.mark.nightly" in (HERE.parent / module).read_text(encoding="utf-8")
    found = json.loads(record.read_text()) if record.exists() else {}
    return NIGHTLY in found if long or not found else True


def test_every_method_and_stage_was_killed_in_the_check() -> None:
    counted = counts(CHECK)
    rows = [row for _, row in EVERY if row.part == "methods"]
    killed = {row.what for row in rows if row.name in counted}
    assert {row.what for row in rows} == killed, "run tests/reliability/record.py"
    methods = {what.partition(",")[0] for what in killed}
    assert methods >= set(METHODS.names()), "a registered method without rows"
