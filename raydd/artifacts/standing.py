"""How far a run is, from its plan and its log: units of each stage, who made them, rates, what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass
class Unit:
    """A unit: how many updates it makes and has made, which of its outputs are there, and who made the last one.

    ``earlier``: updates that were made before the last run began. ``reused``: it was in the store,
    made by another job. ``needless``: nobody needs it any more, as what is made of it is there.
    """

    key: str
    steps: int
    wanted: frozenset[str]
    inputs: tuple[int, ...] = ()
    asked: bool = True
    made: int = 0
    earlier: int = 0
    outputs: set[str] = field(default_factory=set)
    seconds: float = 0.0
    worker: str = ""
    device: str = ""
    reused: bool = False
    begun: bool = False
    needless: bool = False

    @property
    def done(self) -> bool:
        """Whether what is wanted of it is there."""
        return "final" in self.outputs or (bool(self.wanted) and self.wanted <= self.outputs)

    def reach(self, step: int) -> None:
        """Note that so many updates are made."""
        self.made = max(self.made, min(step, self.steps))


@dataclass
class StageStanding:
    """The units of the stages of one name, and the last loss that they logged; ``begun``: when the
    last run began with them; ``told``: the last line of its log on them.
    """

    name: str
    units: list[Unit] = field(default_factory=list)
    loss: float | None = None
    begun: float | None = None
    told: Mapping[str, Any] | None = None

    @property
    def last(self) -> float | None:
        """When the last run last told of its units."""
        return None if self.told is None else seconds_of(self.told)

    @property
    def total(self) -> int:
        """Units that are needed."""
        return sum(not unit.needless for unit in self.units)

    @property
    def done(self) -> int:
        """Units that are needed and there."""
        return sum(unit.done and not unit.needless for unit in self.units)

    @property
    def reused(self) -> int:
        """Units that were in the store, made by another job."""
        return sum(unit.reused for unit in self.units)

    @property
    def seconds(self) -> float:
        """Device-seconds that its units took, as far as they are there, by whomever."""
        return sum(unit.seconds for unit in self.units)

    @property
    def made(self) -> int:
        """Updates made."""
        return sum(unit.made for unit in self.units if not unit.needless)

    @property
    def steps(self) -> int:
        """Updates to make."""
        return sum(unit.steps for unit in self.units if not unit.needless)

    def rate(self, now: float | None = None) -> float | None:
        """Return updates per second of the last run, up to ``now`` or to what was last told; ``None``
        before there is one.
        """
        fresh = sum(unit.made - unit.earlier for unit in self.units if not unit.reused)
        end = self.last if now is None else now
        if self.begun is None or end is None or fresh <= 0 or end <= self.begun:
            return None
        return fresh / (end - self.begun)

    def left(self, now: float | None = None) -> float | None:
        """Return the seconds that are left at that rate, ``None`` without one; units without updates take none."""
        rate = self.rate(now)
        if self.done == self.total or self.steps == self.made:
            return 0.0
        return None if rate is None else (self.steps - self.made) / rate

    def devices(self) -> dict[str, int]:
        """Return how many units were made on each kind of device, most first."""
        counts: dict[str, int] = {}
        for unit in self.units:
            if unit.device:
                counts[unit.device] = counts.get(unit.device, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def workers(self) -> list[str]:
        """Return who computed units for this job."""
        return sorted({unit.worker for unit in self.units if unit.worker})


def seconds_of(record: Mapping[str, Any]) -> float | None:
    """Return when a line of a log was written, in seconds since 1970."""
    try:
        return datetime.fromisoformat(str(record.get("time"))).timestamp()
    except ValueError:
        return None


class Standing:
    """How far a run is: its stages in the order of the plan, those of one name as one.

    Without a plan the units are those that the log tells of.
    """

    def __init__(
        self, plan: Mapping[str, Any] | None, log: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self.stages: dict[str, StageStanding] = {}
        self.units: list[Unit] = []
        self.of: dict[str, tuple[StageStanding, Unit]] = {}
        self.planned = plan is not None
        self.begun: float | None = None
        self.ended: Mapping[str, Any] | None = None
        self.last: Mapping[str, Any] | None = None
        for stage in (plan or {}).get("stages", ()):
            for _, key, steps, inputs in stage["units"]:
                unit = self._add(stage["name"], key, steps, frozenset(stage["outputs"]))
                unit.inputs = tuple(inputs)
        if plan is not None:
            asked = set(plan.get("asked", range(len(self.units))))
            for index, unit in enumerate(self.units):
                unit.asked = index in asked
        for record in log:
            self._take(record)
        self.settle()

    def _add(self, name: str, key: str, steps: int, wanted: frozenset[str]) -> Unit:
        stage = self.stages.setdefault(name, StageStanding(name))
        unit = Unit(key, steps, wanted)
        stage.units.append(unit)
        self.units.append(unit)
        self.of[key] = (stage, unit)
        return unit

    def _take(self, record: Mapping[str, Any]) -> None:
        kind, key = record["kind"], str(record.get("key", ""))
        self.last = record
        if kind == "run":
            self._begin(seconds_of(record))
        elif kind == "end":
            self.ended = record
        if key and key not in self.of and not self.planned:
            self._add(str(record.get("stage", "")), key, int(record.get("t") or 0), frozenset())
        if key in self.of:
            self._told(*self.of[key], record)

    def _begin(self, when: float | None) -> None:
        self.begun, self.ended = when, None
        for stage in self.stages.values():
            stage.begun = stage.told = None
            for unit in stage.units:
                unit.earlier = unit.made

    def _told(self, stage: StageStanding, unit: Unit, record: Mapping[str, Any]) -> None:
        kind, t = record["kind"], int(record.get("t") or 0)
        cached = bool(record.get("cached"))
        if not self.planned:
            unit.steps = max(unit.steps, t)
        if kind == "start":
            unit.begun = True
            unit.reach(t)
            if stage.begun is None:
                stage.begun = seconds_of(record)
        elif kind == "log":
            unit.reach(t + 1)
            loss = record.get("values", {}).get("loss")
            stage.loss = loss if loss is not None else stage.loss
        elif kind == "output":
            self._wrote(unit, record, cached)
        if not cached:
            stage.told = record

    @staticmethod
    def _wrote(unit: Unit, record: Mapping[str, Any], cached: bool) -> None:
        output = str(record.get("output", ""))
        unit.outputs.add(output)
        unit.begun = True
        unit.reach(unit.steps if output == "final" else _step(output))
        unit.seconds = max(unit.seconds, float(record.get("seconds") or 0.0))
        unit.device = str(record.get("device", "")) or unit.device
        unit.worker = str(record.get("worker", "")) or unit.worker
        unit.reused = cached and (unit.reused or len(unit.outputs) == 1)
        if cached:
            unit.earlier = unit.made

    def settle(self) -> None:
        """Find the units that nobody needs any more: not asked for, and all that read them are there or needless."""
        readers: dict[int, list[int]] = {}
        for index, unit in enumerate(self.units):
            for needed in unit.inputs:
                readers.setdefault(needed, []).append(index)
        finished = self.ended is not None and self.ended.get("status") == "FINISHED"
        waiting = list(range(len(self.units)))
        while waiting:
            changed: set[int] = set()
            for index in waiting:
                unit = self.units[index]
                free = finished or not unit.asked
                if unit.done or unit.needless or not free:
                    continue
                by = [self.units[i] for i in readers.get(index, ())]
                if finished or all(other.done or other.needless for other in by):
                    unit.needless = True
                    changed |= set(unit.inputs)
            waiting = sorted(changed)

    @property
    def done(self) -> bool:
        """Whether every planned unit is there, or needless."""
        return bool(self.units) and all(unit.done or unit.needless for unit in self.units)

    def left(self, now: float | None = None) -> float | None:
        """Return the seconds that are left at the last run's pace; ``None`` while some stage has none."""
        lefts = [stage.left(now) for stage in self.stages.values()]
        return None if any(left is None for left in lefts) else sum(left or 0.0 for left in lefts)


def _step(output: str) -> int:
    digits = output.removeprefix("step-")
    return int(digits) if digits.isdigit() else 0


def accuracies(log: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, float]]]:
    """Return the accuracies of snapshots that a log tells of: ``(updates, values)``, in order."""
    found = {int(r.get("t") or 0): r.get("values", {}) for r in log if r["kind"] == "accuracy"}
    return sorted(found.items())
