"""Coded sets that fit a number of bytes (docs/per_byte.md, "A budget")."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from raydd.artifacts.coded_facts import ImageCodec
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.image_codecs import encode
from raydd.core.errors import ConfigError

UNITS = {"": 1, "B": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
RUNGS = (8, 4, 3, 2, 1)
"""Bits that are tried, the most first."""


def bytes_of(text: str | int, key: str = "budget") -> int:
    """Return the bytes that ``8kB``, ``1.5 MB`` or ``78400`` are, a kB being 1,000; ``ConfigError`` for no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", str(text).strip())
    unit = (
        {name.lower(): size for name, size in UNITS.items()}.get(found[2].lower())
        if found
        else None
    )
    size = 0 if found is None or unit is None else round(float(found[1]) * unit)
    if size < 1:
        raise ConfigError(
            f"{key}: '{text}' is no number of bytes; say 8000, 8kB (of 1,000 bytes), 1.5MB or 1GB"
        )
    return size


def rungs(codec: ImageCodec) -> Iterator[ImageCodec]:
    """Yield a codec at 8, 4, 3, 2 and 1 bits, then, unless it is of that already, at half the size.

    ``ConfigError`` for a lossy picture, which has no bits.
    """
    if codec.codec != "levels":
        raise ConfigError(
            f"a budget chooses the bits of the codec 'levels'; '{codec.codec}' has a quality: state that"
        )
    for size in range(codec.size, 3):
        for bits in RUNGS:
            table = codec.table if bits != 8 else None
            yield replace(codec, bits=bits, size=size, table=table)  # type: ignore[arg-type]


def within(distilled: DistilledSet, budget: int, codec: ImageCodec) -> tuple[ImageCodec, bytes]:
    """Return the first of :func:`rungs` whose file has at most ``budget`` bytes, and the file.

    ``ConfigError`` naming the smallest file if none does.
    """
    tried: list[tuple[int, str]] = []
    for one in rungs(codec):
        data = encode(distilled, one)
        if len(data) <= budget:
            return one, data
        tried.append((len(data), one.text))
    size, text = min(tried)
    raise ConfigError(
        f"budget: no file of {len(distilled)} images fits {budget:,} bytes; the smallest has {size:,} ({text})"
    )
