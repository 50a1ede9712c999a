"""What a data set's files hold: splits, classes, samples, and what was left out and why, so that
nothing is without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3
"""Names that are kept of each reason."""
LISTED = 12
"""Classes up to which the images of each are told, not only the fewest and the most."""
NAMED = 20
"""Samples that could not be decoded whose names a report keeps."""


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
        return {
            reason: {"count": found.count, "examples": found.examples}
            for reason, found in self.reasons.items()
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LeftOut:
        """Return what :meth:`to_dict` made plain."""
        return cls(
            {
                reason: Reason(int(found["count"]), [str(name) for name in found["examples"]])
                for reason, found in value.items()
            }
        )

    def lines(self) -> list[str]:
        """Return a line for each reason: count, reason, names."""
        shown = []
        for reason, found in self.reasons.items():
            more = ", …" if found.count > len(found.examples) else ""
            shown.append(f"left out: {found.count} × {reason} ({', '.join(found.examples)}{more})")
        return shown


@dataclass(frozen=True, kw_only=True)
class SplitInventory:
    """One split: where it is below the data set's place, its samples, and those of each class
    (empty where only their sum is known).
    """

    split: str
    place: str
    count: int
    per_class: tuple[int, ...] = ()

    def line(self, names: tuple[str, ...]) -> str:
        """Return ``train: 1438 images in …, 140 (class '8') to 147 (class '3') per class``."""
        where = f" in {self.place}" if self.place else ""
        return f"{self.split}: {self.count} images{where}{self._spread(names)}"

    def _spread(self, names: tuple[str, ...]) -> str:
        counts = self.per_class
        if not counts:
            return ""
        if min(counts) == max(counts):
            return f", {counts[0]} per class"
        called = [
            names[label] if label < len(names) else str(label) for label in range(len(counts))
        ]
        if len(counts) <= LISTED:
            return ": " + ", ".join(f"{name} {count}" for name, count in zip(called, counts))
        few, many = counts.index(min(counts)), counts.index(max(counts))
        return f", {counts[few]} (class '{called[few]}') to {counts[many]} (class '{called[many]}') per class"


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a job reads as its data set, at ``where``. ``notes``: how it was understood where it
    could have been otherwise.
    """

    name: str
    where: str
    classes: int
    class_names: tuple[str, ...]
    splits: tuple[SplitInventory, ...]
    left_out: LeftOut
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return it as lines for a person: the splits, then what was left out, then notes; short
        for any number of classes.
        """
        first, *rest = self.class_names[:LISTED] or ("",)
        named = (
            f" ({', '.join((first, *rest))}{', …' if self.classes > LISTED else ''})"
            if first
            else ""
        )
        place = f" in {self.where}" if self.where else ""
        shown = [f"{self.name}{place}: {self.classes} classes{named}"]
        shown += [split.line(self.class_names) for split in self.splits]
        return [*shown, *self.left_out.lines(), *(f"note: {note}" for note in self.notes)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as reports keep them: every class's images, every reason; not where
        it lies, which is nobody's business.
        """
        splits = [
            {"split": s.split, "place": s.place, "images": s.count, "per_class": list(s.per_class)}
            for s in self.splits
        ]
        facts = {
            "dataset": self.name,
            "classes": self.classes,
            "class_names": list(self.class_names),
            "splits": splits,
        }
        return facts | {"left_out": self.left_out.to_dict(), "notes": list(self.notes)}


def skipped_lines(skipped: Mapping[str, str]) -> list[str]:
    """Return what a report says of samples that could not be decoded (by name, the reason): their
    number, and the first names.
    """
    if not skipped:
        return []
    names = sorted(skipped)
    more = f", … ({len(names) - NAMED} more)" if len(names) > NAMED else ""
    count = (
        f"{len(names)} sample{'s' * (len(names) != 1)} could not be decoded and {'were' if len(names) != 1 else 'was'}"
        " replaced"
    )
    return [f"{count} by the next of the same class: {', '.join(names[:NAMED])}{more}"]
