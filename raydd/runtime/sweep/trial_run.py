"""Runs one trial of a sweep, in whatever process it was given to, and tells the desk what came of it."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from raydd.artifacts.report import Point
from raydd.core.errors import RayddError, first_line
from raydd.core.events import Event
from raydd.core.storage import join
from raydd.data.config import DatasetConfig
from raydd.data.datasets import Described
from raydd.runtime.control import Control
from raydd.runtime.pipeline import run_job
from raydd.runtime.session import Interrupted, described
from raydd.runtime.sweep.sweep_plan import Sweep
from raydd.search.desk import Result, Task
from raydd.search.metrics import row_of, value_of

BEAT_SECONDS = 1.0
"""How often a trial asks whether it is to stop."""


class TrialDesk(Protocol):
    """The desk as a trial sees it: directly, or through a Ray actor handle."""

    def begin(self, number: int) -> Task | None: ...
    def judged(self, number: int, step: int, value: float) -> bool: ...
    def beat(self, number: int, attempt: int) -> bool: ...
    def take(self, number: int, attempt: int, key: str) -> bool: ...
    def free(self, number: int, key: str) -> None: ...
    def finished(self, number: int, result: Result) -> None: ...
    def pruned(self, number: int, work: dict[str, float]) -> None: ...
    def failed(self, number: int, reason: str, work: dict[str, float]) -> None: ...
    def cut(self, number: int, work: dict[str, float]) -> None: ...


@dataclass
class Work:
    """What a trial computed: units, and their seconds, by key; what else is behind it was there."""

    computed: dict[str, float] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Count an output."""
        if event.kind == "output" and not event.cached:
            self.computed[event.key] = max(self.computed.get(event.key, 0.0), event.seconds)

    def totals(self, behind: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the counts and the sums; ``behind``: the seconds of all units that the trial needed."""
        found = {key: s for key, s in (behind or {}).items() if key not in self.computed}
        return {
            "computed": len(self.computed),
            "reused": len(found),
            "seconds_computed": sum(self.computed.values()),
            "seconds_reused": sum(found.values()),
        }


@dataclass
class _Claims:
    """A trial's claims on units, as the desk keeps them."""

    desk: TrialDesk
    number: int
    attempt: int

    def take(self, key: str) -> bool:
        return self.desk.take(self.number, self.attempt, key)

    def free(self, key: str) -> None:
        self.desk.free(self.number, key)


@functools.lru_cache(maxsize=2)
def data_of(config: DatasetConfig) -> Described:
    """Return a data set, described once in each process that runs trials."""
    return described(config, "trial")


def run_trial(sweep: Sweep, number: int, desk: TrialDesk) -> None:
    """Run a trial to its end, or until the desk stops it. What goes wrong with it is told to the desk, not raised."""
    task = desk.begin(number)
    if task is None:
        return
    work, pruned = Work(), threading.Event()
    claims = None if sweep.space.file.workers_per_trial else _Claims(desk, number, task.attempt)

    def on_point(point: Point) -> None:
        if desk.judged(number, point.step, point.accuracy_mean):
            pruned.set()
            control.stop()

    control = Control(
        on_event=work.note,
        on_point=on_point,
        tags={**sweep.tags, "raydd.trial": str(number)},
        claims=claims,
        labels=labels_place(sweep),
        copies=False,
        keep=True,
    )
    try:
        job = sweep.trial(number, task.values)
        with _beating(desk, task, control):
            outcome = run_job(job, lambda line: None, control, data_of(job.dataset))
        if pruned.is_set():
            desk.pruned(number, work.totals())
            return
        name = job.method.name
        value, error = value_of(sweep.space.file.metric, outcome.report, name)
        row = row_of(sweep.space.file.metric, outcome.report, name)
        facts: dict[str, Any] = {
            "protocol": row.protocol,
            "network": row.network,
            "students": row.seeds * row.networks,
            "device": outcome.report.device,
            "image_bytes": row.image_bytes,
            "label_bytes": row.label_bytes,
            "device_seconds": row.device_seconds,
        }
        steps = max((point.step for point in outcome.report.curve), default=0)
        desk.finished(number, Result(value, error, steps, work.totals(control.units), facts))
    except Interrupted:
        (desk.pruned if pruned.is_set() else desk.cut)(number, work.totals())
    except KeyboardInterrupt:
        desk.cut(number, work.totals())
        raise
    except RayddError as error:
        desk.failed(number, str(error), work.totals())
    except Exception as error:  # noqa: BLE001 - a trial that cannot be is a row of the table
        desk.failed(number, f"{type(error).__name__}: {first_line(error)}", work.totals())


def labels_place(sweep: Sweep) -> str:
    """Return where the label records of all trials go."""
    return join(sweep.output, "labels")


@contextlib.contextmanager
def _beating(desk: TrialDesk, task: Task, control: Control) -> Iterator[None]:
    """Ask the desk now and then whether the trial is to stop."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # a desk that is gone takes this process with it
                if desk.beat(task.number, task.attempt):
                    control.stop()
                    return

    thread = threading.Thread(target=beat, daemon=True, name="beat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
