"""The page says what the tests declare and what was counted; every row has a test."""

from __future__ import annotations

import ast

import pytest
from fault_rows import CHECK, NIGHTLY, PAGE, PARTS, all_rows, counts, located
from write_table import page

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
    assert [name for name in names if not counted.get(name)] == [], (
        "run tests/reliability/record.py"
    )
    assert counted.keys() <= set(names), "counts of rows that are not there"
