"""What pictures of a sweep show, whoever draws them: values by what came of trials, keys as axes, the running best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydd.search.domains import label
from raydd.search.results import SweepReport
from raydd.search.trials import Trial

_ONE_OF = "one of "
_GOLDEN = 0.618034
"""Multiples of it, without their whole parts, lie evenly."""
_UNITS = {"accuracy": "%", "best_accuracy": "%", "device_seconds": "s", "hlr": "points"}
_UNITS |= {"image_bytes": "bytes", "label_bytes": "bytes"}


@dataclass(frozen=True)
class Column:
    """A searched key as an axis: ``categories``: its values as texts, where they are no range of
    numbers; ``logarithmic``: it is searched by factors.
    """

    key: str
    categories: tuple[str, ...] = ()
    logarithmic: bool = False

    def place(self, trial: Trial) -> float | None:
        """Return where a trial lies: its number, or its category's index; ``None`` if it does not set
        the key, or to nothing that the axis can show.
        """
        if self.key not in trial.values:
            return None
        value = trial.values[self.key]
        if self.categories:
            return float(self.categories.index(label(value)))
        if not is_number(value) or (self.logarithmic and value <= 0):
            return None
        return float(value)

    def spot(self, trial: Trial) -> float | None:
        """Return :meth:`place`, moved a little to the side within a category, for every trial alike,
        so that equal values do not cover each other.
        """
        at = self.place(trial)
        if at is None or not self.categories:
            return at
        return at + 0.5 * (_GOLDEN * trial.number % 1 - 0.5)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def columns(report: SweepReport) -> list[Column]:
    """Return the searched keys that some trial sets, as axes."""
    found = []
    for key, text in report.keys.items():
        values = [trial.values[key] for trial in report.trials if key in trial.values]
        if values and (text.startswith(_ONE_OF) or not any(map(is_number, values))):
            found.append(Column(key, _categories(text, values)))
        elif values:
            found.append(Column(key, logarithmic=key in report.logarithmic))
    return found


def _categories(text: str, values: Sequence[Any]) -> tuple[str, ...]:
    """Return different values as texts: numbers by size, others as the space has them."""
    by_label = {label(value): value for value in values}
    if all(map(is_number, by_label.values())):
        return tuple(sorted(by_label, key=lambda name: float(by_label[name])))
    listed = f", {text.removeprefix(_ONE_OF)}, "
    places = {name: listed.find(f", {name}, ") for name in by_label}
    return tuple(sorted(by_label, key=lambda name: (places[name] < 0, places[name], name)))


def metric_label(report: SweepReport) -> str:
    """Return the metric with its unit, and the split that it is of."""
    unit = _UNITS.get(report.metric.partition("/")[0])
    words = report.metric.replace("_", " ")
    return f"{words}, {unit} ({report.split})" if unit else f"{words} ({report.split})"


def with_value(report: SweepReport, state: str) -> list[Trial]:
    """Return the trials of a state that have a value, by number."""
    return [trial for trial in report.trials if trial.state == state and is_number(trial.value)]


def value(trial: Trial) -> float:
    """Return a trial's value as a number; not a number where it has none."""
    return math.nan if trial.value is None else trial.value


def by_state(report: SweepReport) -> dict[str, list[Trial]]:
    """Return the trials that have a value: finished, stopped early, and those that set what another one did."""
    names = {"finished": "finished", "pruned": "stopped early", "same": "same as another"}
    return {name: with_value(report, state) for state, name in names.items()}


def own_value(report: SweepReport) -> float | None:
    """Return the value of the job as it was given, if that trial finished."""
    for trial in report.trials:
        if trial.origin == "job" and trial.state == "finished":
            return trial.value
    return None


def best_steps(report: SweepReport) -> list[tuple[float, float]]:
    """Return the corners of the running best as a line of steps, to the last trial's number."""
    corners: list[tuple[float, float]] = []
    for number, best in report.best_so_far():
        if corners and best != corners[-1][1]:
            corners.append((float(number), corners[-1][1]))
        if not corners or best != corners[-1][1]:
            corners.append((float(number), best))
    if corners and report.trials:
        corners.append((float(report.trials[-1].number), corners[-1][1]))
    return corners


def timed(trials: Sequence[Trial]) -> list[tuple[float, Trial]]:
    """Return trials with the device-seconds of making their sets, where these are known."""
    name = "device_seconds"
    return [(float(t.facts[name]), t) for t in trials if is_number(t.facts.get(name))]


def far_apart(values: Sequence[float]) -> bool:
    """Return whether numbers are seen better on a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def courses(report: SweepReport) -> dict[str, list[Trial]]:
    """Return the trials that were judged on the way, by what came of them; none where each was judged
    at one step only, which is no course.
    """
    if all(len(trial.judged) < 2 for trial in report.trials):
        return {}
    named: Mapping[str, Sequence[str]] = {
        "finished": ("finished",),
        "stopped early": ("pruned",),
        "failed or unfinished": ("failed", "running"),
    }
    found = {
        name: [trial for trial in report.trials if trial.state in states and trial.judged]
        for name, states in named.items()
    }
    return {name: trials for name, trials in found.items() if trials}


def course(trial: Trial) -> list[tuple[float, float]]:
    """Return a trial's accuracies over the updates."""
    return [(float(one.step), one.value) for one in sorted(trial.judged, key=lambda j: j.step)]


def counted(count: int, what: str) -> str:
    """Return a number and what it counts, ``1 trial`` or ``3 trials``."""
    return f"{count} {what}{'s' * (count != 1)}"
