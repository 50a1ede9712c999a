"""Whole settings at the ends of a space, which are checked and planned before a sweep begins.

A value of one key may go with other values of another than the job's own: a window of 100 steps
with unrolls of 120, where the job has 20. So an end is tried with the job's own values, then with
one other key moved, then with two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raydd.core.errors import ConfigError, nearest
from raydd.search.domains import label
from raydd.search.metrics import check_metric
from raydd.search.space import Key, Space, Values, signature

Refusal = Callable[[Values], str | None]
"""Says why some values cannot be, ``None`` where they can."""


def whole_settings(
    space: Space, refusal: Refusal, *, named: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the job's own values, and for each end of the space a setting that holds it and can
    be; and a line for each end that none has.

    ``named``: a line begins with the values, which the refusals themselves do not tell.
    """
    found: dict[str, dict[str, Any]] = {}
    mistakes: dict[str, None] = {}
    for end in [{}, *space.ends()]:
        values, lines = _setting(space, end, refusal)
        begins = f"{space.where}: with {_said(end or space.own)}: " if named and lines else ""
        mistakes.update(dict.fromkeys(begins + line for line in lines))
        if values is not None:
            found.setdefault(signature(values), values)
    return list(found.values()), list(mistakes)


def _setting(
    space: Space, end: Values, refusal: Refusal
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return a setting that holds some values, or why there is none."""
    base = {**space.own, **end}
    why = refusal(base)
    if why is None:
        return base, []
    moved: list[str] = []  # keys that the refusal hangs on
    for key, changes in _moves(space, end, 1) if end else ():
        said = refusal({**base, **changes})
        if said is None:
            return {**base, **changes}, []
        if said != why:
            moved.append(key.name)
    for key, changes in _moves(space, end, 2) if moved else ():
        if key.name in moved and refusal({**base, **changes}) is None:
            return {**base, **changes}, []
    if not moved:
        return None, why.splitlines()
    shown = {name: value for name, value in base.items() if name in end or name in moved}
    others = ", ".join(dict.fromkeys(moved))
    return None, [
        f"{_said(end)} goes with no value of {others} that is tried; {_said(shown)}: {why}"
    ]


def _said(values: Values) -> str:
    return ", ".join(f"{name}={label(value)}" for name, value in values.items())


def _moves(space: Space, end: Values, count: int) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the first key and the values of ``count`` keys that are moved to where they are tried."""
    tried = [
        (key, value) for key in space.keys if key.name not in end for value in space.tried(key)
    ]
    for chosen in itertools.permutations(tried, count):
        changes = {key.name: value for key, value in chosen}
        whole = {**space.own, **end, **changes}
        if len(changes) == count and space.without_idle(whole).keys() == whole.keys():
            yield chosen[0][0], changes


def check_jobs(space: Space) -> None:
    """Try every end and choice on the job, the points too; ``ConfigError`` with all that is refused."""
    where, points = space.where, list(space.file.points)
    mistakes = _outside(space, points)
    settings, refused = whole_settings(space, space.refusal)
    mistakes += refused
    if not mistakes:
        mistakes = [line for point in points for line in (space.refusal(point) or "").splitlines()]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    jobs = [space.trial_job(values) for values in [*settings, *points]]
    for job in jobs:
        check_metric(space.file.metric, job.evaluation, where)
    if space.file.scheduler == "none":
        return
    name = space.file.scheduler
    if space.file.metric.partition("/")[0] != "accuracy":
        raise ConfigError(
            f"{where}: scheduler: {name} compares accuracies of snapshots; metric is {space.file.metric}"
        )
    if any(job.evaluation.every is None for job in jobs):
        raise ConfigError(
            f"{where}: scheduler: {name} needs accuracies while a trial runs: set evaluation.every under trial, or in"
            " the job"
        )


def _outside(space: Space, points: Sequence[Values]) -> list[str]:
    """Return a line for each value of a point that is not searched."""
    names, found = {key.name for key in space.keys}, []
    for place, point in enumerate(points):
        at = f"{space.where}: points.{place}"
        found += [
            f"{at}.{name}: is not searched{nearest(name, names)}"
            for name in point
            if name not in names
        ]
        found += [
            f"{at}.{key.name}: {label(point[key.name])} is outside {key.domain.text()}"
            for key in space.keys
            if key.name in point and not key.domain.holds(point[key.name])
        ]
    return found
