"""JSON of files that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any

DEPTH = 64
"""Lists and mappings within each other: what goes through them calls itself that often."""
_DEEP = f"it is nested deeper than {DEPTH}"


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds; ``ValueError`` for anything that is none, and for one that is
    nested deeper than :data:`DEPTH`.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    if _deeper(value, DEPTH):
        raise ValueError(_DEEP)
    return value


def _deeper(value: Any, depth: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)
