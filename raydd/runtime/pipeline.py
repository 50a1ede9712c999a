"""A job from its file to its published set: plan, run, record, publish, report."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from raydd.artifacts.charts import report_files
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.grid import curve, grid, png
from raydd.artifacts.published_folder import publish
from raydd.artifacts.report import Report, format_bytes, render_table
from raydd.config import ComputeConfig, Job
from raydd.core.errors import Missing, RayddError, refusing
from raydd.core.events import Event
from raydd.core.keeping import register_run
from raydd.core.numerics import tune_allocator
from raydd.core.storage import Storage, join
from raydd.core.store import Store, versions
from raydd.core.units import Ref, snapshot, unit_key
from raydd.data.catalog import DatasetInfo
from raydd.data.datasets import Found, with_digests
from raydd.data.inventory import Inventory, skipped_lines
from raydd.evaluation.summary import summarise
from raydd.labels.published import MANIFEST as LABEL_MANIFEST
from raydd.labels.published import manifest as label_manifest
from raydd.methods.method import Problem
from raydd.runtime.devices import Markers, main_kind, mixed_line
from raydd.runtime.estimate import skipped_of, stages_of, unit_table
from raydd.runtime.journal import Curves, Journal
from raydd.runtime.output import Lock, claim, flatten, fleeting
from raydd.runtime.planning import Plan, make_plan
from raydd.runtime.progress import Progress
from raydd.runtime.resolved import protocol_params, settled
from raydd.runtime.runner import LocalRunner, OnEvent, OpenData, Runner
from raydd.runtime.tracking.tracker import Tracker
from raydd.runtime.tracking.tracking_uri import resolve_uri, sqlite_path

log = logging.getLogger(__name__)
PLACES = ("output", "store", "compute", "tracking")
"""Keys of a job that change no byte of its set."""


class Interrupted(RayddError):
    """The run was asked to stop; what it had is saved."""


def make_runner(compute: ComputeConfig, data: OpenData) -> Runner:
    """Return the runner that ``compute`` asks for: in this process, or on Ray."""
    if compute.workers == 0:
        return LocalRunner(
            data, checkpoint_every=compute.checkpoint_every, same_device=compute.same_device
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
def stop_on_signals(runner: Runner, tell: Callable[[str], None]) -> Iterator[threading.Event]:
    """Make SIGINT and SIGTERM save the state and stop the runner; a second SIGINT ends at once."""
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
            runner.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def check(job: Job) -> tuple[DatasetInfo, Inventory]:
    """Refuse, before anything starts, a job whose data is missing or whose places cannot be
    written; return what the data is and holds.
    """
    Storage(job.output).check_writable("output")
    Storage(job.store).check_writable("store")
    if job.tracking.uri != "none":
        resolve_uri(job.tracking.uri)
    if job.dataset.download:
        from raydd.data.datasets import download

        download(job.dataset)
    found = Found(job.dataset)
    absent = found.missing()
    if absent:
        raise Missing("dataset: " + "\n  ".join(["what the job needs is missing:", *absent]))
    info, splits = found.describe(), found.open()
    return with_digests(info, splits), found.inventory(info, splits)


@dataclass(frozen=True)
class Outcome:
    """What a finished job leaves: its report and where things are."""

    report: Report
    places: dict[str, str]

    def render(self) -> str:
        """Return the report's tables, and a line for each place, as text."""
        width = max(map(len, self.places))
        lines = [f"{name.ljust(width)}  {place}" for name, place in self.places.items()]
        return "\n".join(["", render_table(self.report), "", *lines])


def run_job(job: Job, tell: Callable[[str], None]) -> Outcome:
    """Run a job to its published set, resuming whatever an earlier run of it left; ``tell`` gets lines for a person.

    Raises ``ConfigError`` for a job that cannot run, ``RunFailed`` for a unit that cannot be computed, ``Interrupted``
    when it was asked to stop.
    """
    tune_allocator()
    with refusing():
        info, held = check(job)
        job.method.fetch()
        plan = make_plan(job, info)
        absent = job.method.missing(plan.problems[0])
    if absent:
        raise Missing(
            "method: " + "\n  ".join(["what the job needs is missing or does not fit:", *absent])
        )
    output, store = Storage(job.output), Store(job.store, plan.places())
    warning = fleeting(_local_places(job))
    if warning:
        tell(f"warning: {warning}")
    with Lock(output, tell):
        new = claim(output, job)
        tell(
            f"{job.name}: {job.method.name} on {info.name}, ipc {job.ipc}"
            + ("" if new else " (resumed)")
        )
        for line in held.lines():
            tell(line)
        planned = sum(stage.facts()["bytes"] for stage in plan.labels if stage is not None)
        if planned:
            tell(
                f"soft labels: {format_bytes(planned)} will be written into {join(output.url, plan.folder(0))}/labels"
            )
        keys = {
            unit_key(stage, unit) for stage, units, _ in stages_of(plan.targets) for unit in units
        }
        register_run(store, output.url, keys, finished=False)
        session = _Session(plan, output, store, tell, held)
        if job.tracking.uri != "none":
            tell(session.tracker.beginning())
        try:
            session.run()
            outcome = session.publish()
        except Interrupted:
            session.close("KILLED")
            raise
        except BaseException:
            session.close("FAILED")
            raise
        register_run(store, output.url, keys, finished=True)
        session.close("FINISHED")
        if warning:
            tell(f"warning: copy what you want to keep now: {warning}")
        return outcome


def _local_places(job: Job) -> dict[str, str]:
    places = {"output": job.output, "store": job.store}
    database = None if job.tracking.uri == "none" else sqlite_path(resolve_uri(job.tracking.uri))
    return places if database is None else places | {"tracking.uri": str(database)}


class _Session:
    """One run of one job: the runner's events go to progress, journal, tracker and pictures."""

    def __init__(
        self,
        plan: Plan,
        output: Storage,
        store: Store,
        tell: Callable[[str], None],
        held: Inventory,
    ) -> None:
        self.plan, self.output, self.store, self.tell, self.held = plan, output, store, tell, held
        job = plan.job
        self.journal, self.markers = Journal(output), Markers(store)
        made = [ref for problem in plan.problems for ref in job.method.targets(problem).values()]
        # Sets of other methods, and of single steps of continual learning, have losses of their
        # own, which say nothing of this set.
        self.curves = Curves([stage for stage, _, _ in stages_of(made)])
        self.charted = {self.curves.label(ref.key) for ref in made}
        self.series: dict[str, dict[int, float]] = {}
        self.tracker = Tracker(
            job.tracking.uri,
            job.tracking.experiment,
            job.name,
            output,
            params=_params(plan),
            tags=_tags(plan),
        )
        for split, value in plan.problems[0].dataset.digests:
            source = job.dataset.shards or job.dataset.root or job.dataset.name
            self.tracker.input_dataset(
                f"{plan.problems[0].dataset.name}-{split}", value[:36], source, split, {}
            )
        self.waiting = {
            step: {
                (r.key, r.output)
                for r in job.method.targets(plan.problems[0], snapshot(step)).values()
            }
            for step in plan.picture_steps
        }
        self.pictured = {p for p in output.list("pictures") if p.endswith(".png")}
        self.painter = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def run(self) -> None:
        """Compute all targets."""
        job = self.plan.job
        runner = make_runner(job.compute, OpenData(job.dataset))
        with (
            Progress(unit_table(self.plan.targets)) as progress,
            stop_on_signals(runner, progress.say) as stopped,
        ):
            runner.run(self.plan.targets, self.store, self._listener(progress.on_event))
        if stopped.is_set() and not all(self.store.has(self.plan.targets)):
            raise Interrupted(f"the same command goes on from here ({self.output.url})")

    def _listener(self, show: OnEvent) -> OnEvent:
        def on_event(event: Event) -> None:
            show(event)
            self.journal.on_event(event)
            for label, t, values in self.curves.on_event(event):
                for name, value in values.items():
                    self.series.setdefault(f"{label} {name}", {})[t] = value
                    self.tracker.metrics(f"{label}/{name}", value, t)
            if event.kind == "output":
                for step, open_refs in list(self.waiting.items()):
                    open_refs.discard((event.key, event.output))
                    if not open_refs:
                        del self.waiting[step]
                        self.painter.submit(self._paint, step)

        return on_event

    def _paint(self, step: int) -> None:
        path = f"pictures/step-{step:06d}.png"
        try:
            if path not in self.pictured:
                self.output.put(path, png(_grid(self._assemble(0, snapshot(step)))))
            self.tracker.picture("distilled", step, self.output.get(path))
        except (RayddError, OSError) as error:
            log.warning("no picture of step %d: %s", step, error)

    def _assemble(self, index: int, output: str = "final") -> DistilledSet:
        method, problem = self.plan.job.method, self.plan.problems[index]
        return method.assemble(
            problem,
            {name: self.store.load(ref) for name, ref in method.targets(problem, output).items()},
        )

    def publish(self) -> Outcome:
        """Write the distilled sets, the report and the pictures; return where they are."""
        self.painter.shutdown(wait=True)
        job = self.plan.job
        seconds = [self._device_seconds(problem) for problem in self.plan.problems]
        skipped = (
            skipped_lines(skipped_of(self.store, self.plan.targets, self.held.where))
            if job.dataset.on_error == "skip"
            else []
        )
        kinds = self.markers.kinds(self.plan.targets)
        notes = [*skipped, *mixed_line(kinds)]
        report = summarise(
            self.plan.evaluation,
            self.store.load,
            self.markers.seconds,
            device=main_kind(kinds),
            notes=notes,
        )
        report = replace(report, inventory=self.held.to_dict())
        places: dict[str, str] = {}
        written = 0
        for index, problem in enumerate(self.plan.problems):
            distilled = self._assemble(index)
            recipe = {
                "method": job.stated()["method"],
                "ipc": job.ipc,
                "versions": versions(),
                # Where a job runs and what it writes to are no facts about the set, and nobody's business.
                "job": {key: value for key, value in job.stated().items() if key not in PLACES},
                "settled": settled(job.method, problem),
                "seed": problem.seed,
                "source": dict(problem.dataset.digests),
                "git_commit": git_commit(),
                "device": main_kind(self.markers.kinds(list(job.method.targets(problem).values()))),
                "device_seconds": round(seconds[index], 1),
            }
            folder = self.plan.folder(index)
            places.setdefault("set", join(job.output, folder))
            url, labels = join(job.output, folder), self._label_files(index)
            publish(
                replace(distilled, recipe={**distilled.recipe, **recipe}),
                url,
                report,
                written=labels,
            )
            written += sum(facts["size"] for facts in labels.values())
            self.tracker.artifacts(Storage(join(job.output, folder)), folder)
            if index == 0:
                self.tracker.picture("distilled", self._last_step(), png(_grid(distilled)))
        self.output.put("report.json", to_json(report.to_dict()))
        for name, data in report_files(report).items():
            self.output.put(name, data)
            places[name] = join(job.output, name)
        if written:
            places["labels"] = f"{join(places['set'], 'labels')} ({format_bytes(written)})"
        places |= job.method.keep(self.plan.problems[0], self.store.load, self.output.url)
        places["picture"] = join(places["set"], "grid.png")
        places["report"] = join(job.output, "report.json")
        chart = self._loss_chart()
        if chart is not None:
            self.output.put("loss.png", chart)
            places["loss curve"] = join(job.output, "loss.png")
        self.tracker.report(report, self._last_step(), picture=f"{self.plan.folder(0)}/grid.png")
        return Outcome(report, places | self.tracker.places())

    def _label_files(self, index: int) -> dict[str, dict[str, Any]]:
        """Write the manifest of a set's label records, which are in place; return size and sha256
        of all these files.
        """
        stage = self.plan.labels[index]
        if stage is None:
            return {}
        records: dict[str, dict[str, Any]] = {}
        for ref in stage.refs():
            records |= self.store.marker(ref)["files"]
        text = label_manifest(stage, records)
        self.output.put(f"{self.plan.folder(index)}/{stage.place}/{LABEL_MANIFEST}", text)
        own = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        return {
            f"{stage.place}/{name}": facts
            for name, facts in {**records, LABEL_MANIFEST: own}.items()
        }

    def _last_step(self) -> int:
        refs = self.plan.job.method.targets(self.plan.problems[0]).values()
        return max(ref.stage.steps(ref.unit) for ref in refs)

    def _device_seconds(self, problem: Problem) -> float:
        behind = stages_of(list(self.plan.job.method.targets(problem).values()))
        return sum(
            self.markers.seconds(Ref(stage, unit)) for stage, units, _ in behind for unit in units
        )

    def _loss_chart(self) -> bytes | None:
        wanted = {f"{label} loss" for label in self.charted}
        series = {
            name: sorted(points.items())
            for name, points in self.series.items()
            if len(points) > 1 and name in wanted
        }
        if not series:
            return None
        title = f"{self.plan.job.name}: {self.plan.job.method.name}"
        return curve(series, x_label="updates", y_label="loss (mean over units)", title=title)

    def close(self, status: str) -> None:
        """End journal and tracking run."""
        self.painter.shutdown(wait=False, cancel_futures=True)
        self.journal.close()
        left = self.tracker.finish(status)
        if left:
            self.tell(left)


def _grid(distilled: DistilledSet) -> Any:
    return grid(distilled.to_rgb(), distilled.labels, distilled.info.class_names)


def to_json(value: Any) -> bytes:
    """Return a value as indented JSON, ending in a newline."""
    return (json.dumps(value, indent=2, sort_keys=False) + "\n").encode()


def _params(plan: Plan) -> dict[str, Any]:
    """Return what the run is told by: the job, its protocol, and what the job leaves open."""
    left_open = {"settled": settled(plan.job.method, plan.problems[0])}
    return {**flatten(plan.job.stated()), **protocol_params(plan.evaluation), **flatten(left_open)}


def _tags(plan: Plan) -> dict[str, str]:
    job = plan.job
    tags = {"raydd.method": job.method.name, "raydd.ipc": str(job.ipc), "raydd.output": job.output}
    tags["mlflow.source.name"] = f"raydd distill {job.name}"
    tags["raydd.protocol"] = plan.evaluation.config.resolve().label
    commit = git_commit()
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


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
