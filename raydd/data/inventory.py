"""What a data set's files hold beside its samples: counted by reason, so that nothing is left out without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3
"""Names that are kept of each reason."""


@dataclass
class Reason:
    """How many things were left out for one reason, and the names of the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class LeftOut:
    """Files, folders and samples that are no samples of a split, by reason (``hidden folder``, ``format .heic`` …).

    A reason is a short noun phrase in the singular; a name is a path below the data set's root, or ``shard: key``.
    """

    def __init__(self, reasons: Mapping[str, Reason] | None = None) -> None:
        self.reasons: dict[str, Reason] = dict(reasons or {})

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count ``count`` things left out for ``reason``, the first of them called ``name``."""
        found = self.reasons.setdefault(reason, Reason())
        found.count += count
        if len(found.examples) < EXAMPLES:
            found.examples.append(name)

    def merge(self, others: Iterable[LeftOut]) -> LeftOut:
        """Return what this and ``others`` left out together."""
        both = LeftOut()
        for part in (self, *others):
            for reason, found in part.reasons.items():
                kept = both.reasons.setdefault(reason, Reason())
                kept.count += found.count
                kept.examples = (kept.examples + found.examples)[:EXAMPLES]
        return both

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as reports and shard manifests keep them."""
        return {reason: {"count": found.count, "examples": found.examples} for reason, found in self.reasons.items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LeftOut:
        """Return what :meth:`to_dict` made plain."""
        return cls({reason: Reason(int(found["count"]), [str(name) for name in found["examples"]]) for reason, found in value.items()})

    def lines(self) -> list[str]:
        """Return a line for each reason: count, reason, names."""
        shown = []
        for reason, found in self.reasons.items():
            more = ", …" if found.count > len(found.examples) else ""
            shown.append(f"left out: {found.count} × {reason} ({', '.join(found.examples)}{more})")
        return shown
