"""Curves of a run: means of logged scalars over the units of a stage, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raydd.core.events import Event


@dataclass
class _Rows:
    """A stage's rows: for each step, which units reported it (a bit each), and the sums and counts of the scalars."""

    label: str
    everyone: int = 0
    reported: dict[int, int] = field(default_factory=dict)
    sums: dict[int, dict[str, tuple[float, int]]] = field(default_factory=dict)


class Curves:
    """Means of logged scalars over the units of each stage, step by step.

    ``stages``: the keys of a stage's units, by what the stage is called.
    """

    def __init__(self, stages: Mapping[str, Sequence[str]]) -> None:
        self._units: dict[str, tuple[_Rows, int]] = {}
        for label, keys in stages.items():
            rows = _Rows(label)
            for index, key in enumerate(keys):
                rows.everyone |= 1 << index
                self._units[key] = (rows, 1 << index)

    def label(self, key: str) -> str:
        """Return what the stage of a unit's key is called."""
        return self._units[key][0].label

    def on_event(self, event: Event) -> list[tuple[str, int, dict[str, float]]]:
        """Return ``(stage, t, {name: mean})`` for every step that the event completes; rows sent again count once."""
        return self.add(event.key, event.rows)

    def add(
        self, key: str, new: Sequence[tuple[int, Mapping[str, float]]]
    ) -> list[tuple[str, int, dict[str, float]]]:
        """As :meth:`on_event`, for rows ``(t, {name: value})`` of a unit."""
        if key not in self._units or not new:
            return []
        rows, bit = self._units[key]
        complete = []
        for t, values in new:
            reported = rows.reported.get(t, 0)
            if reported & bit:
                continue
            rows.reported[t] = reported | bit
            sums = rows.sums.setdefault(t, {})
            for name, value in values.items():
                total, count = sums.get(name, (0.0, 0))
                sums[name] = (total + value, count + 1)
            if rows.reported[t] == rows.everyone:
                complete.append(
                    (
                        rows.label,
                        t,
                        {name: total / count for name, (total, count) in rows.sums.pop(t).items()},
                    )
                )
        return sorted(complete, key=lambda row: row[1])
