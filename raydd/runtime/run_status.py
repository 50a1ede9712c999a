"""Where a run is, from its output folder and its store alone; reads a few files, writes none. Needs no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from raydd.artifacts.run_folder import RunFolder, read_run
from raydd.artifacts.standing import StageStanding, Standing, accuracies, seconds_of
from raydd.artifacts.tables import Table, as_text, spread
from raydd.core.errors import ConfigError, StorageError
from raydd.core.json_text import parse_json
from raydd.core.retries import before_work
from raydd.core.storage import Storage
from raydd.runtime.lock import read_lock
from raydd.runtime.page_file import state_of

FAR_LOOKS, NEAR_LOOKS = 32, 2000
"""Units that a store is asked for, at most: one far away (a request each), one in a folder."""
EXIT_CODES = {"finished": 0, "failed": 1, "stopped": 3, "unfinished": 3, "running": 4}
"""What ``raydd status`` ends with; 2 is for a place that is no run's."""
SHOWN = 3
"""Accuracies of snapshots that are shown, the last ones."""


@dataclass(frozen=True)
class RunStatus:
    """A run's folder, how far it is, how it stands in a word, who holds its lock, and when that was
    seen; ``notes``: what could not be looked at.
    """

    folder: RunFolder
    standing: Standing
    state: str
    lock: Mapping[str, Any] | None
    now: float
    notes: tuple[str, ...] = ()

    @property
    def code(self) -> int:
        """The exit code that stands for the state."""
        return EXIT_CODES[self.state]

    @property
    def until(self) -> float | None:
        """Up to when rates count: now, while it runs."""
        return self.now if self.state == "running" else None


def run_status(url: str) -> RunStatus:
    """Return where the run in an output folder is; ``ConfigError`` for a place that is none."""
    folder = read_run(url)
    standing = Standing(folder.plan, folder.log)
    notes = [*folder.notes]
    lock = read_lock(folder.output, notes)
    state = state_of(folder, standing, lock)
    if folder.plan is None and state != "finished":
        notes.append("there is no plan.json: units that have not begun are not known")
    elif folder.plan is not None and state != "finished":
        notes += _look(folder.plan, standing, running=state == "running")
    return RunStatus(folder, standing, state, lock, time.time(), tuple(notes))


@dataclass(frozen=True)
class _Place:
    """A unit in a store: its key, and where it has a place of its own, that and its name."""

    key: str
    own: str
    name: str


def _open(plan: Mapping[str, Any], standing: Standing, *, running: bool) -> list[_Place]:
    """Return the units of which the log does not say all: those that have begun, and, where no process
    writes the log now, those that a killed one, or another job, may have made since.
    """
    begun: list[_Place] = []
    others: list[_Place] = []
    for stage in plan["stages"]:
        for name, key, *_ in stage["units"]:
            unit = standing.of[key][1]
            if not unit.done and not unit.needless:
                (begun if unit.begun else others).append(_Place(key, stage.get("place", ""), name))
    return begun if running else begun + others


def _look(plan: Mapping[str, Any], standing: Standing, *, running: bool) -> list[str]:
    """Ask the store how far units are; return what could not be asked."""
    url = str(plan.get("store", ""))
    places = _open(plan, standing, running=running)
    try:
        store = Storage(url)
        if store.local and not os.path.isdir(store.root):
            return [f"the store {url} is not on this machine: units are as the log has them"]
        asked = places[: NEAR_LOOKS if store.local else FAR_LOOKS]
        with before_work():
            found = list(_found(store, asked))
    except (ConfigError, StorageError, OSError) as error:
        return [f"the store cannot be read, units are as the log has them: {error}"]
    for place, names in zip(asked, found, strict=True):
        _note(standing, place, names)
    standing.settle()
    left = len(places) - len(asked)
    return [f"the store was not asked for {left} more units, which may be there"] if left else []


def _found(store: Storage, places: list[_Place]) -> Iterator[list[str]]:
    """Yield the names of the files of each unit."""

    def names(place: _Place) -> list[str]:
        found = store.files(f"units/{place.key[:2]}/{place.key}")
        return [*found, *_in_place(place)] if place.own else found

    if store.local:
        yield from map(names, places)
        return
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(names, places)


def _in_place(place: _Place) -> list[str]:
    """Return the marker of a unit that lies in the published set, if it is this unit's."""
    try:
        marker = parse_json(Storage(place.own).get(f"{place.name}.json"))
    except (FileNotFoundError, ValueError):
        return []
    mine = isinstance(marker, Mapping) and marker.get("key") == place.key
    return ["final.json"] if mine else []


def _note(standing: Standing, place: _Place, names: list[str]) -> None:
    unit = standing.of[place.key][1]
    for name in names:
        stem, _, ending = name.rpartition(".")
        if ending == "json" and (stem == "final" or stem.startswith("step-")):
            unit.outputs.add(stem)
            unit.reach(unit.steps if stem == "final" else int(stem.removeprefix("step-")))
        elif ending == "safetensors" and stem.startswith("state-"):
            unit.begun = True
            unit.reach(int(stem.removeprefix("state-")))


def as_dict(status: RunStatus) -> dict[str, Any]:
    """Return a status as JSON values; times in seconds since 1970, what is not known is ``null``."""
    folder, standing, lock = status.folder, status.standing, status.lock
    report = folder.report if status.state == "finished" else None
    return {
        "output": folder.output.url,
        "name": folder.name,
        "verb": folder.verb,
        "state": status.state,
        "now": round(status.now, 3),
        "lock": None if lock is None else {k: v for k, v in lock.items() if k != "token"},
        "stages": [_stage_values(stage, status) for stage in standing.stages.values()],
        "units": {
            "done": sum(stage.done for stage in standing.stages.values()),
            "needed": sum(stage.total for stage in standing.stages.values()),
            "planned": len(standing.units) if standing.planned else None,
        },
        "seconds_left": _rounded(_left(status)),
        "accuracies": [{"updates": step, **values} for step, values in accuracies(folder.log)],
        "result": None if report is None else [asdict(row) for row in report.rows],
        "last_event": standing.last,
        "ended": standing.ended,
        "notes": list(status.notes),
    }


def _stage_values(stage: StageStanding, status: RunStatus) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "units_done": stage.done,
        "units_needed": stage.total,
        "units_reused": stage.reused,
        "updates_made": stage.made,
        "updates": stage.steps,
        "updates_per_second": _rounded(stage.rate(status.until)),
        "seconds_left": _rounded(stage.left(status.until)),
        "loss": stage.loss,
        "device_seconds": _rounded(stage.seconds),
        "devices": stage.devices(),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _left(status: RunStatus) -> float | None:
    return status.standing.left(status.until) if status.standing.planned else None


def as_lines(status: RunStatus) -> list[str]:
    """Return a status as lines for a person."""
    folder = status.folder
    lines = [f"{folder.name} ({folder.verb}): {_how(status)}", folder.output.url, ""]
    stages = list(status.standing.stages.values())
    if stages:
        header = ["stage", "units", "reused", "updates", "per second", "left", "loss"]
        table = Table("", header, [_stage_line(stage, status) for stage in stages])
        lines += [*as_text(table), ""]
    lines += _accuracy_lines(status)
    if status.state == "running":
        left = _left(status)
        lines.append(f"time left: {'not known yet' if left is None else _time(left)}")
    lines += _last_line(status)
    return [*lines, *(f"note: {note}" for note in status.notes)]


def _how(status: RunStatus) -> str:
    lock, ended = status.lock, status.standing.ended or {}
    if status.state == "running" and lock is not None:
        since = lock.get("since") or lock.get("started")
        begun = f" since {_clock(float(since))}" if since else ""
        beat = max(0.0, status.now - float(lock.get("beat") or status.now))
        who = f"process {lock.get('pid')} on {lock.get('host')}"
        return f"running, {who} holds the lock{begun} (sign of life {_time(beat)} ago)"
    why = (
        f": {ended['text']}" if status.state in ("failed", "stopped") and ended.get("text") else ""
    )
    if status.state == "unfinished":
        return "unfinished, and no process works on it; the same command goes on from here"
    when = seconds_of(ended)
    return f"{status.state}{f' at {_clock(when)}' if when else ''}{why}"


def _stage_line(stage: StageStanding, status: RunStatus) -> list[str]:
    rate, left = stage.rate(status.until), stage.left(status.until)
    finished = stage.done == stage.total
    known = status.standing.planned or status.state == "finished"
    return [
        stage.name,
        f"{stage.done}/{stage.total if known else '?'}",
        str(stage.reused),
        f"{stage.made:,}/{stage.steps:,}",
        "–" if rate is None else f"{rate:.3g}",
        "–" if left is None or finished else _time(left),
        "–" if stage.loss is None else f"{stage.loss:.4g}",
    ]


def _accuracy_lines(status: RunStatus) -> list[str]:
    report = status.folder.report
    if status.state == "finished" and report is not None:
        return [
            f"{row.set}: {spread(row.accuracy_mean, row.accuracy_std)} % ({row.protocol}, {row.network})"
            for row in report.rows
        ]
    found = accuracies(status.folder.log)
    return [
        f"accuracy after {step} updates: {spread(values['accuracy_mean'], values['accuracy_std'])} %"
        for step, values in found[-SHOWN:]
        if {"accuracy_mean", "accuracy_std"} <= set(values)
    ]


def _last_line(status: RunStatus) -> list[str]:
    record = status.standing.last
    when = None if record is None else seconds_of(record)
    if record is None or when is None:
        return ["nothing is logged yet"]
    parts = [
        str(record[key]) for key in ("kind", "output", "status", "stage", "unit") if record.get(key)
    ]
    ago = _time(max(0.0, status.now - when))
    return [f"last event: {' '.join(parts)}, {ago} ago ({_clock(when)})"]


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _time(seconds: float) -> str:
    """Return a time for people: ``45 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    for limit, unit, form in (
        (90, 1, "{:.0f} s"),
        (5400, 60, "{:.0f} min"),
        (172800, 3600, "{:.1f} h"),
    ):
        if seconds < limit:
            return form.format(seconds / unit)
    return f"{seconds / 86400:.1f} days"
