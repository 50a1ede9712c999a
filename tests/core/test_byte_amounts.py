"""Amounts of bytes: kB is 1,000 bytes, what is none is refused with what is allowed."""

from __future__ import annotations

import pytest

from raydd.core.byte_amounts import parse_amounts, parse_bytes
from raydd.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8kB", 8000),
        ("6200", 6200),
        (6200, 6200),
        ("1.5 MB", 1_500_000),
        ("78.4kb", 78_400),
        ("2 B", 2),
    ],
)
def test_amounts_are_decimal(text: str | int, amount: int) -> None:
    assert parse_bytes(text, "budget") == amount


@pytest.mark.parametrize("text", ["", "kB", "-1kB", "8 apples", "0", "0.4", "1e3", True])
def test_what_is_no_amount_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^images.budget: .*allowed are whole bytes \(6200\)"):
        parse_bytes(text, "images.budget")


def test_units_of_1024_bytes_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 8kB"):
        parse_bytes("8KiB", "budget")


def test_lists_are_ascending_and_hold_nothing_twice() -> None:
    assert parse_amounts("20kB, 2kB,600", "--budgets") == (600, 2000, 20_000)
    with pytest.raises(ConfigError, match="2,000 bytes stand there more than once"):
        parse_amounts("2kB,2000", "--budgets")
