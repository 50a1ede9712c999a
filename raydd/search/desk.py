"""The desk of a sweep: hands out trials, decides which go on, keeps the journal, and says who computes what."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raydd.search.searchers import Searcher
from raydd.search.space import Space, signature
from raydd.search.trials import Judged, Trial, TrialJournal

MOST_TWINS = 100
"""A searcher that proposes what was tried so often in a row has nothing new to try."""


class Scheduler(Protocol):
    """Decides, on accuracies of snapshots, whether a trial goes on."""

    def stops(self, number: int, step: int, value: float) -> bool:
        """Note what a trial reached, and return whether it is to stop."""
        ...

    def ended(self, number: int, step: int, value: float) -> None:
        """Note what a trial reached in the end."""
        ...


@dataclass(frozen=True)
class Task:
    """What a trial is to do. ``attempt``: how often it was begun, this time included."""

    number: int
    values: Mapping[str, Any]
    attempt: int


@dataclass(frozen=True)
class Result:
    """What a finished trial reports; as of :class:`raydd.search.trials.Trial`."""

    value: float
    error: float | None
    steps: int
    work: Mapping[str, float]
    facts: Mapping[str, Any]


class SweepDesk:
    """What all trials of a sweep ask; its truth is the journal, from which it starts.

    ``on_change`` hears of a trial whenever it was written down. ``clock`` gives seconds that never go
    back or jump.
    """

    def __init__(
        self,
        space: Space,
        journal: TrialJournal,
        searcher: Searcher,
        scheduler: Scheduler | None = None,
        on_change: Callable[[Trial], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.space, self.journal, self.searcher = space, journal, searcher
        self.scheduler, self.clock = scheduler, clock
        self.on_change = on_change or (lambda trial: None)
        self.trials = journal.read()
        self.begun = clock()
        self.stopping = False
        self.trouble = trouble_of(space, self.trials)
        self.held: dict[str, tuple[int, int]] = {}
        self.handed: set[int] = set()
        self.running: dict[int, float] = {}
        self._earlier = journal.elapsed()
        self._replay()

    def _replay(self) -> None:
        """Tell the scheduler what it had been told, in that order."""
        if self.scheduler is None:
            return
        reports = [(one.order, trial, one) for trial in self.trials for one in trial.judged]
        for _, trial, one in sorted(reports, key=lambda report: report[0]):
            self.scheduler.stops(trial.number, one.step, one.value)
        for trial in self.trials:
            if trial.state == "finished" and trial.value is not None:
                self.scheduler.ended(trial.number, int(trial.facts.get("steps", 0)), trial.value)

    # -- handing out -------------------------------------------------------------------------------------------------

    def next(self) -> int | None:
        """Return the number of a trial to run: first those that were cut, then a new one; ``None``:
        none is to begin.
        """
        if self.stopping or self.trouble:
            return None
        for trial in self.trials:
            if not trial.ended and trial.number not in self.handed:
                self.handed.add(trial.number)
                return trial.number
        for _ in range(MOST_TWINS):
            proposed = self._propose()
            if proposed is None:
                return None
            twin = self._twin(proposed)
            if twin is None:
                self._write(proposed)
                self.handed.add(proposed.number)
                return proposed.number
            proposed.state, proposed.same = "same", twin.number
            self._write(proposed)
            self._settle(twin)
        return None

    def _propose(self) -> Trial | None:
        number = len(self.trials)
        if self.spent(number):
            return None
        points = [self.space.own, *map(self.space.without_idle, self.space.file.points)]
        if number < len(points):
            values, origin = dict(points[number]), "job" if number == 0 else "point"
        else:
            proposed = self.searcher.propose(number, self.trials)
            if proposed is None:
                return None
            values, origin = proposed, self.space.file.search
        trial = Trial(number, values, origin, started=time.time())
        self.trials.append(trial)
        return trial

    def spent(self, number: int) -> bool:
        """Return whether the budget allows no trial of this number any more."""
        budget = self.space.file.budget
        computed = sum(trial.seconds_computed for trial in self.trials)
        return (
            (budget.trials is not None and number >= budget.trials)
            or (budget.device_seconds is not None and computed >= budget.device_seconds)
            or (budget.seconds is not None and self.elapsed() >= budget.seconds)
        )

    def elapsed(self) -> float:
        """Return the seconds by the clock that this sweep has run, in all its runs."""
        return self._earlier + self.clock() - self.begun

    def _twin(self, trial: Trial) -> Trial | None:
        mine = signature(trial.values)
        for other in self.trials[: trial.number]:
            if other.same is None and signature(other.values) == mine:
                return other
        return None

    # -- what trials say ---------------------------------------------------------------------------------------------

    def begin(self, number: int) -> Task | None:
        """Note that a trial begins, for the first time or again; ``None``: it is not to."""
        trial = self.trials[number]
        if self.stopping or self.trouble or trial.ended:
            return None
        trial.attempts += 1
        self._release(number)
        self.running[number] = self.clock()
        self._write(trial)
        return Task(number, dict(trial.values), trial.attempts)

    def judged(self, number: int, step: int, value: float) -> bool:
        """Note a snapshot's accuracy; return whether the trial is to stop. What was decided once stays."""
        trial = self.trials[number]
        for one in trial.judged:
            if one.step == step:
                return one.stopped
        if self.scheduler is not None:
            stopped = self.scheduler.stops(number, step, value)
        else:
            stopped = False
        order = sum(len(other.judged) for other in self.trials)
        trial.judged.append(Judged(order, step, value, stopped))
        self._write(trial)
        return stopped

    def finished(self, number: int, result: Result) -> None:
        """Note a trial's result; one that is not finite is a failure."""
        trial = self.trials[number]
        if not math.isfinite(result.value):
            self.failed(number, f"the metric is {result.value}", result.work)
            return
        trial.state, trial.value, trial.error = "finished", result.value, result.error
        trial.facts = {"steps": result.steps, **result.facts}
        if self.scheduler is not None:
            self.scheduler.ended(number, result.steps, result.value)
        self._end(trial, result.work)

    def pruned(self, number: int, work: Mapping[str, float]) -> None:
        """Note that a trial was stopped as the scheduler wanted."""
        trial = self.trials[number]
        last = max(trial.judged, key=lambda one: one.step)
        trial.state, trial.value = "pruned", last.value
        trial.reason = f"stopped at step {last.step}"
        self._end(trial, work)

    def failed(self, number: int, reason: str, work: Mapping[str, float] | None = None) -> None:
        """Note that a trial cannot be finished, and why; where the first ones all fail, the sweep stops."""
        trial = self.trials[number]
        trial.state, trial.reason, trial.value = "failed", reason, None
        self._end(trial, work or {})
        self.trouble = trouble_of(self.space, self.trials)

    def lost(self, number: int, reason: str) -> None:
        """Note that a trial's processes died; nothing if it has ended."""
        if not self.trials[number].ended and not self.stopping:
            self.failed(number, reason)

    def cut(self, number: int, work: Mapping[str, float]) -> None:
        """Note that a trial was interrupted: it goes on when the sweep does."""
        trial = self.trials[number]
        self._count(trial, work)
        self._release(number)
        self._write(trial)

    def beat(self, number: int, attempt: int) -> bool:
        """Return whether a trial is to save its state and stop."""
        trial = self.trials[number]
        return self.stopping or bool(self.trouble) or trial.ended or trial.attempts != attempt

    def stop(self) -> None:
        """Have every trial save its state and stop, and hand out none."""
        self.stopping = True

    def _end(self, trial: Trial, work: Mapping[str, float]) -> None:
        self._count(trial, work)
        self._release(trial.number)
        self._write(trial)
        self._settle(trial)

    def _settle(self, trial: Trial) -> None:
        """Give those that set the same what the trial reached."""
        if not trial.ended:
            return
        for other in self.trials:
            if other.same == trial.number and other.value != trial.value:
                other.value, other.error = trial.value, trial.error
                self._write(other)

    def _count(self, trial: Trial, work: Mapping[str, float]) -> None:
        begun = self.running.pop(trial.number, None)
        if begun is not None:
            trial.clock += self.clock() - begun
        trial.computed += int(work.get("computed", 0))
        trial.seconds_computed += work.get("seconds_computed", 0.0)
        # What an earlier attempt of the trial made is no find of this one.
        needed = int(work.get("computed", 0)) + int(work.get("reused", 0))
        seconds = work.get("seconds_computed", 0.0) + work.get("seconds_reused", 0.0)
        trial.reused = max(0, needed - trial.computed)
        trial.seconds_reused = max(0.0, seconds - trial.seconds_computed)

    def _write(self, trial: Trial) -> None:
        self.journal.write(trial)
        if self.space.file.budget.seconds is not None:
            self.journal.note_elapsed(self.elapsed())
        self.on_change(dataclasses.replace(trial))

    # -- units that several trials need ------------------------------------------------------------------------------

    def take(self, number: int, attempt: int, key: str) -> bool:
        """Return whether a trial may compute a unit: no other one does."""
        if attempt != self.trials[number].attempts:
            return False
        holder = self.held.setdefault(key, (number, attempt))
        return holder == (number, attempt)

    def free(self, number: int, key: str) -> None:
        """Give a unit back."""
        if self.held.get(key, (None,))[0] == number:
            del self.held[key]

    def _release(self, number: int) -> None:
        for key in [key for key, holder in self.held.items() if holder[0] == number]:
            del self.held[key]


def trouble_of(space: Space, trials: Sequence[Trial]) -> str:
    """Return why a sweep with these trials gives up, empty if it does not: its first ``give_up`` ones all failed."""
    ended = [trial for trial in trials if trial.ended and trial.same is None]
    if len(ended) < space.file.give_up or any(trial.state != "failed" for trial in ended):
        return ""
    what = f"the first {len(ended)} trials all failed; trial {ended[-1].number}: {ended[-1].reason}"
    return f"{what} (sweep.give_up={len(ended) + 1} tries another)"
