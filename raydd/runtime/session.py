"""What a distillation and an evaluation of a stored set share: the data described once, an output of
their own, targets computed under signals, a report written and told.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

from raydd.artifacts.charts import report_files
from raydd.artifacts.rendering import render_table
from raydd.artifacts.report import Report
from raydd.config import ComputeConfig
from raydd.core.errors import DataError, Missing, RayddError, TornOutput, first_line
from raydd.core.events import Event
from raydd.core.sealed import seal
from raydd.core.storage import Storage, join
from raydd.core.store import Store, versions
from raydd.core.units import Ref
from raydd.data.config import DatasetConfig
from raydd.data.datasets import Described, FoundData
from raydd.data.inventory import skipped_lines
from raydd.evaluation.plan import EvaluationPlan
from raydd.evaluation.summary import summarise
from raydd.runtime.control import Control, Stoppable
from raydd.runtime.devices import Markers, main_kind, mixed_line
from raydd.runtime.estimate import skipped_of, unit_table
from raydd.runtime.journal import Journal
from raydd.runtime.leases import Claims
from raydd.runtime.page_file import write_page
from raydd.runtime.progress import Progress
from raydd.runtime.runner import LocalRunner, OnEvent, OpenData, Runner
from raydd.runtime.tracking.tracker import Tracker
from raydd.runtime.tracking.tracking_uri import resolve_uri

T = TypeVar("T")
log = logging.getLogger(__name__)


class Interrupted(RayddError):
    """The run was asked to stop; what it had is saved."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves: its report and where things are."""

    report: Report
    places: dict[str, str]

    def with_page(self, output: Storage) -> Outcome:
        """Return the same with the run's page, which is written to the output now, among the places
        if it could be drawn.
        """
        page = write_page(output)
        return replace(self, places=self.places | {"page": page}) if page else self

    def render(self) -> str:
        """Return the report's tables, and a line for each place, as text."""
        width = max(map(len, self.places))
        lines = [f"{name.ljust(width)}  {place}" for name, place in self.places.items()]
        return "\n".join(["", render_table(self.report), "", *lines])


def described(config: DatasetConfig, who: str, *, anyway: bool = False) -> Described:
    """Return a data set's facts, downloaded first where the job says so; ``Missing`` without the data.

    ``who``: what needs it, for the error. ``anyway``: nothing is downloaded, and what the catalog
    knows is enough.
    """
    found = FoundData(config)
    if not anyway:
        found = found.fetched()
    try:
        if anyway or not found.absent:
            return found.look()
    except DataError:
        if not found.absent:
            raise
    raise Missing("dataset: " + "\n  ".join([f"what the {who} needs is missing:", *found.absent]))


def check_places(output: Storage, store: Storage, uri: str | None) -> None:
    """Refuse, before anything starts, places that cannot be written, and a tracking URI that is none."""
    output.check_writable("output")
    store.check_writable("store")
    if uri != "none":
        resolve_uri(uri)


def make_runner(compute: ComputeConfig, data: OpenData, claims: Claims | None = None) -> Runner:
    """Return the runner that ``compute`` asks for: in this process, or on Ray.

    ``claims``: see :class:`raydd.runtime.ledger.Ledger`; of runs in this process only.
    """
    if compute.workers == 0:
        return LocalRunner(
            data,
            checkpoint_every=compute.checkpoint_every,
            same_device=compute.same_device,
            claims=claims,
        )
    from raydd.runtime.ray.ray_runner import RayRunner

    return RayRunner(
        data,
        workers=compute.workers,
        evaluators=compute.evaluators,
        gpus_per_worker=compute.gpus_per_worker,
        cpus_per_worker=compute.cpus_per_worker,
        checkpoint_every=compute.checkpoint_every,
        wait=compute.wait,
        same_device=compute.same_device,
    )


@contextlib.contextmanager
def stop_on_signals(run: Stoppable, tell: Callable[[str], None]) -> Iterator[threading.Event]:
    """Make SIGINT and SIGTERM stop a run, which saves its state; a second SIGINT ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked.is_set():
            asked.set()
            hint = " (once more to stop at once)" if number == signal.SIGINT else ""
            line = f"{signal.Signals(number).name}: saving the state, then stopping{hint}"
            # In a thread: this may have interrupted a line that is being printed.
            threading.Thread(target=tell, args=(line,)).start()
            run.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Session:
    """One run on an output: computes targets, reports on them, and tells a tracker.

    A context, which ends the tracker's run: ``FINISHED``, ``KILLED`` (it was asked to stop) or
    ``FAILED``.
    """

    def __init__(
        self,
        compute: ComputeConfig,
        data: Described,
        output: Storage,
        store: Store,
        tracker: Tracker,
        tell: Callable[[str], None],
        control: Control | None = None,
    ) -> None:
        self.compute, self.data, self.control = compute, data, control or Control(show=True)
        self.output, self.store, self.tracker, self.tell = output, store, tracker, tell
        self.markers = Markers(store)
        self.journal = Journal(output)
        self.journal.note("run", versions=versions(), git_commit=git_commit())

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        killed = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        status = "FINISHED" if error is None else killed
        said = {"text": first_line(error)} if isinstance(error, Exception) else {}
        asked = isinstance(error, KeyboardInterrupt)  # for the second time: at once
        self.journal.note("end", status="KILLED" if asked else status, **said)
        self.end(status)

    def end(self, status: str) -> None:
        """End the log and the tracker's run, and say what that could not send."""
        self.journal.close()
        left = self.tracker.finish(status)
        if left:
            self.tell(left)

    def listener(self, show: OnEvent) -> OnEvent:
        """Return what hears of every event, and writes it down; ``show`` shows it to a person."""
        return _each([show, self.journal.on_event])

    def run(self, targets: Sequence[Ref]) -> None:
        """Compute targets; ``Interrupted`` if the run was asked to stop before all are there."""
        control, data = self.control, OpenData(self.data.config, self.data.splits)
        runner = make_runner(self.compute, data, control.claims)
        with contextlib.ExitStack() as around:
            listeners = [control.on_event] if control.on_event is not None else []
            if control.show:
                progress = around.enter_context(Progress(unit_table(targets)))
                around.enter_context(stop_on_signals(control, progress.say))
                listeners.append(progress.on_event)
            control.attach(runner)
            cleared = _Cleared(self.store, self.journal)
            runner.run(targets, self.store, self.listener(_each([*listeners, cleared.on_event])))
        cleared.clear()
        if control.stopped and not all(self.store.has(list(targets))):
            raise Interrupted(f"the same command goes on from here ({self.output.url})")

    def finished(self, targets: Sequence[Ref], finish: Callable[[], T]) -> T:
        """Compute targets, and return what ``finish`` makes of them; outputs of which it finds that they
        are torn are computed again, each once.
        """
        again: set[tuple[str, str]] = set()
        while True:
            self.run(targets)
            try:
                return finish()
            except TornOutput as torn:
                ref: Ref | None = torn.ref
                if ref is None or (ref.key, ref.output) in again:
                    raise
                again.add((ref.key, ref.output))
                log.warning("%s; it will be computed again", torn)
                self.store.discard(ref)
                self.markers.forget(ref)

    def report(self, plan: EvaluationPlan, targets: Sequence[Ref]) -> Report:
        """Return the report of an evaluation, with what is to be known of all ``targets`` behind it."""
        held, notes = self.data.inventory, list(plan.notes)
        if held is not None and self.data.config.on_error == "skip":
            notes += skipped_lines(skipped_of(self.store, targets, held.where))
        kinds = self.markers.kinds(targets)
        notes += mixed_line(kinds)
        seconds, device = self.markers.seconds, main_kind(kinds)
        report = summarise(plan, self.markers.load, seconds, device=device, notes=notes)
        return replace(report, inventory=None if held is None else held.to_dict())

    def write(self, report: Report, more: Mapping[str, bytes]) -> dict[str, str]:
        """Write ``report.json``, its pictures and ``more`` files to the output; return where they are."""
        files = {**more, **report_files(report)}
        for name, data in {"report.json": seal(to_json(report.to_dict())), **files}.items():
            self.output.put(name, data)
        return {name: join(self.output.url, name) for name in files}


class _Cleared:
    """Removes the checkpoints of units that a run was killed at between their marker and that removal: the log has
    their beginning alone.
    """

    def __init__(self, store: Store, journal: Journal) -> None:
        self.store, self.journal = store, journal
        self.finished: set[str] = set()

    def on_event(self, event: Event) -> None:
        """Hear of an output that was there before, ahead of the log, which then knows it."""
        if event.kind == "output" and event.cached and event.output == "final":
            self.finished.add(event.key)
            self.clear()

    def clear(self) -> None:
        """Remove what is known by now to be left."""
        for key in self.finished & self.journal.left_by_others():
            self.store.drop_checkpoints(key)
            self.finished.discard(key)


def _each(listeners: Sequence[OnEvent]) -> OnEvent:
    def on_event(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return on_event


def to_json(value: Any) -> bytes:
    """Return a value as indented JSON, ending in a newline."""
    return (json.dumps(value, indent=2, sort_keys=False) + "\n").encode()


@functools.lru_cache
def git_commit() -> str:
    """Return the commit of the code that runs, empty outside a checkout."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def run_tags(name: str, output: Storage, plan: EvaluationPlan) -> dict[str, str]:
    """Return the tags of a run called ``name`` (verb and subject) that every kind of run has."""
    tags = {"raydd.output": output.url, "mlflow.source.name": f"raydd {name}"}
    tags["raydd.protocol"] = plan.config.resolve().label
    commit = git_commit()
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})
