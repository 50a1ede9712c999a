"""Amounts of bytes as people write them: ``8kB``, ``1.5 MB``, ``6200``; kB is 1,000 bytes."""

from __future__ import annotations

import re
from fractions import Fraction

from raydd.core.errors import ConfigError

UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3}


def parse_bytes(text: str | int, key: str) -> int:
    """Return an amount of at least one byte, rounded down; ``ConfigError``, which begins with ``key``, for none."""
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text)
    allowed = "allowed are whole bytes (6200) and B, kB, MB, GB (8kB, 1.5 MB); kB is 1,000 bytes"
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if found is None or found[2].lower() not in UNITS:
        hint = ""
        if found is not None and re.fullmatch(r"[kmg]i?b?", found[2].lower()):
            hint = f"; did you mean {found[1]}{found[2][0].replace('K', 'k')}B?"
        raise ConfigError(f"{key}: '{text}' is no amount of bytes; {allowed}{hint}")
    amount = int(Fraction(found[1]) * UNITS[found[2].lower()])
    if amount < 1:
        raise ConfigError(f"{key}: '{text}' is less than one byte; {allowed}")
    return amount


def parse_amounts(text: str, key: str) -> tuple[int, ...]:
    """Return amounts between commas, ``2kB,6kB``, ascending; ``ConfigError`` for one that stands there twice."""
    found = [parse_bytes(part, key) for part in text.split(",")]
    twice = [amount for amount in found if found.count(amount) > 1]
    if twice:
        raise ConfigError(f"{key}: {twice[0]:,} bytes stand there more than once")
    return tuple(sorted(found))
