"""A job from its file to its published set: plan, run, record, publish, report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from raydd.artifacts.curves import Curves
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.grid import curve, png
from raydd.artifacts.poster_pictures import animation, is_poster, picture_of
from raydd.artifacts.published_folder import publish
from raydd.artifacts.rendering import format_bytes
from raydd.artifacts.run_folder import GROWTH
from raydd.artifacts.whole_png import is_whole_png
from raydd.config import Job
from raydd.core.allocator import tune_allocator
from raydd.core.errors import Missing, RayddError, refusing
from raydd.core.events import Event
from raydd.core.keeping import register_run
from raydd.core.storage import Storage, join
from raydd.core.store import Store, versions
from raydd.core.units import Ref, snapshot, unit_key
from raydd.data.datasets import Described
from raydd.evaluation.set_sources import AssembledSet
from raydd.evaluation.summary import point
from raydd.labels.published import MANIFEST as LABEL_MANIFEST
from raydd.labels.published import manifest as label_manifest
from raydd.methods.method import Problem
from raydd.runtime.auto_ipc import with_ipc
from raydd.runtime.control import Control
from raydd.runtime.devices import main_kind
from raydd.runtime.estimate import stages_of
from raydd.runtime.lock import Lock
from raydd.runtime.output import claim, fleeting
from raydd.runtime.plan_record import labelled, record_plan
from raydd.runtime.planning import Plan, make_plan
from raydd.runtime.resolved import job_params, settled
from raydd.runtime.runner import OnEvent
from raydd.runtime.session import (
    Outcome,
    Session,
    check_places,
    described,
    git_commit,
    run_tags,
)
from raydd.runtime.tracking.tracker import Tracker

log = logging.getLogger(__name__)
PLACES = ("output", "store", "compute", "tracking")
"""Keys of a job that change no byte of its set."""
ACCURACY = ("accuracy_mean", "accuracy_std", "networks", "device_seconds")
"""What a log says of a snapshot."""


def run_job(
    job: Job,
    tell: Callable[[str], None],
    control: Control | None = None,
    data: Described | None = None,
) -> Outcome:
    """Run a job to its published set, resuming whatever an earlier run of it left; ``tell`` gets lines for a person.

    ``control``: how a program that calls this hears of the run and stops it; without one progress
    is shown, and signals stop the run. ``data``: the job's data, where they are described already.

    Raises ``ConfigError`` for a job that cannot run, ``RunFailed`` for a unit that cannot be computed, ``Interrupted``
    when it was asked to stop.
    """
    tune_allocator()
    with refusing():
        check_places(Storage(job.output), Storage(job.store), job.tracking.uri)
        data = data or described(job.dataset, "job")
        job = with_ipc(job, data) if job.ipc == "auto" else job
        job.method.fetch()
        plan = make_plan(job, data.info)
        absent = job.method.missing(plan.problems[0])
    if absent:
        raise Missing(
            "method: " + "\n  ".join(["what the job needs is missing or does not fit:", *absent])
        )
    control = control or Control(show=True)
    output, store = Storage(job.output), store_of([plan], control)
    warning = fleeting(job.output, job.store, job.tracking.uri)
    if warning:
        tell(f"warning: {warning}")
    with Lock(output, tell, control.stop):
        new = claim(output, job)
        tell(
            f"{job.name}: {job.method.name} on {data.info.name}, ipc {job.ipc}"
            + ("" if new else " (resumed)")
        )
        for line in data.inventory.lines() if data.inventory is not None else ():
            tell(line)
        planned = sum(stage.facts()["bytes"] for stage in plan.labels if stage is not None)
        if planned and not control.labels:
            tell(
                f"soft labels: {format_bytes(planned)} will be written into {join(output.url, plan.folder(0))}/labels"
            )
        keys = {
            unit_key(stage, unit) for stage, units, _ in stages_of(plan.targets) for unit in units
        }
        register_run(store, output.url, keys, finished=False)
        facts = {"verb": "distill", "name": job.name, "method": job.method.name, "ipc": job.ipc}
        record_plan(output, store, plan.targets, {**facts, "dataset": data.info.name}, plan.made())
        with _Distillation(plan, data, output, store, tell, control) as session:
            if job.tracking.uri != "none":
                tell(session.tracker.beginning())
            outcome = session.finished(plan.targets, session.publish)
            control.units = {
                ref.key: session.markers.seconds(ref)
                for ref in (
                    Ref(stage, unit, "final" if "final" in outputs else max(outputs))
                    for stage, units, outputs in stages_of(plan.targets)
                    for unit in units
                )
            }
            register_run(store, output.url, keys, finished=not control.keep)
        outcome = outcome.with_page(output)
        if warning:
            tell(f"warning: copy what you want to keep now: {warning}")
        return outcome


def store_of(plans: Sequence[Plan], control: Control) -> Store:
    """Return the store of plans, with the places of their label records: the first that has them."""
    places: dict[str, str] = {}
    for plan in plans:
        places = plan.places() | places

    def below(url: str) -> dict[str, str]:
        return {digest: join(url, digest[:16]) for digest in places} if url else {}

    return Store(plans[0].job.store, below(control.labels) or places, below(control.lender))


class _Distillation(Session):
    """One run of one job: the runner's events go to progress, journal, tracker and pictures."""

    def __init__(
        self,
        plan: Plan,
        data: Described,
        output: Storage,
        store: Store,
        tell: Callable[[str], None],
        control: Control,
    ) -> None:
        job = self.job = plan.job
        tags = _tags(plan, output) | dict(control.tags)
        tracking, params = job.tracking, job_params(plan.job, plan.problems[0], plan.evaluation)
        tracker = Tracker(tracking.uri, tracking.experiment, job.name, output, params, tags)
        super().__init__(job.compute, data, output, store, tracker, tell, control)
        self.plan = plan
        made = plan.made()
        # Sets of other methods, and of single steps of continual learning, have losses of their
        # own, which say nothing of this set.
        self.curves = Curves(labelled([stage for stage, _, _ in stages_of(made)]))
        self.charted = {self.curves.label(ref.key) for ref in made}
        self.series: dict[str, dict[int, float]] = {}
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
        self.drafts = plan.job.method.drafts(plan.problems[0])
        self.drafting = {
            which: {(ref.key, ref.output) for ref in refs.values()}
            for which, refs in self.drafts.items()
        }
        self.tested: dict[int, set[tuple[str, str]]] = {}
        for entry in plan.evaluation.entries:
            if entry.step is not None:
                refs = {(ref.key, ref.output) for ref in entry.stage.refs()}
                self.tested[entry.step] = self.tested.get(entry.step, set()) | refs
        self.fresh: set[str] = set()
        self.pictured = {p for p in output.list("pictures") if p.endswith(".png")}
        self.painter = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def __enter__(self) -> _Distillation:
        return self

    def listener(self, show: OnEvent) -> OnEvent:
        """Return what shows, records and pictures every event."""
        heard = super().listener(show)

        def on_event(event: Event) -> None:
            heard(event)
            for label, t, values in self.curves.on_event(event):
                for name, value in values.items():
                    self.series.setdefault(f"{label} {name}", {})[t] = value
                    self.tracker.metrics(f"{label}/{name}", value, t)
            if event.kind == "output":
                if not event.cached:
                    self.fresh.add(event.key)
                for step, open_refs in list(self.waiting.items()):
                    open_refs.discard((event.key, event.output))
                    if not open_refs:
                        del self.waiting[step]
                        self.painter.submit(self._paint, step)
                for which, open_refs in list(self.drafting.items()):
                    open_refs.discard((event.key, event.output))
                    if not open_refs:
                        del self.drafting[which]
                        self.painter.submit(self._draft, *which)
                self._point(event)

        return on_event

    def _point(self, event: Event) -> None:
        """Note a snapshot's accuracy, and tell the caller, once the last of its students is tested."""
        for step, open_refs in list(self.tested.items()):
            open_refs.discard((event.key, event.output))
            if open_refs:
                continue
            del self.tested[step]
            entries = [entry for entry in self.plan.evaluation.entries if entry.step == step]
            try:
                tested = [
                    (entry, [self.store.load(ref) for ref in entry.stage.refs()])
                    for entry in entries
                ]
                found = point(step, tested, self.markers.seconds)
            except (RayddError, OSError) as error:
                log.warning("no accuracy of the snapshot after %d updates: %s", step, error)
                continue
            values = {name: getattr(found, name) for name in ACCURACY}
            self.journal.accuracy(step, values)
            if self.control.on_point is not None:
                self.control.on_point(found)

    def _paint(self, step: int) -> None:
        def made() -> DistilledSet:
            return self._assemble(0, snapshot(step))

        self._picture(f"step-{step:06d}", "distilled", step, made, f"step {step}")

    def _draft(self, name: str, step: int) -> None:
        """Keep a picture of what an earlier stage has made by an update."""

        def made() -> DistilledSet:
            outputs = {key: self.store.load(ref) for key, ref in self.drafts[name, step].items()}
            return self.plan.job.method.drafted(self.plan.problems[0], outputs)

        what = f"{name} after {step} updates"
        self._picture(f"{name}-{step:06d}", name, step, made, what)

    def _picture(
        self, name: str, series: str, step: int, made: Callable[[], DistilledSet], what: str
    ) -> None:
        """Keep and track a picture of what ``made`` returns; one that is there already, and whole, stays."""
        path = f"pictures/{name}.png"
        try:
            data = self.output.get(path) if path in self.pictured else b""
            if not is_whole_png(data):
                data = png(picture_of(made()))
                self.output.put(path, data)
            self.tracker.picture(series, step, data)
        except (RayddError, OSError) as error:
            log.warning("no picture of %s: %s", what, error)

    def _assemble(self, index: int, output: str = "final") -> DistilledSet:
        method, problem = self.plan.job.method, self.plan.problems[index]
        source = AssembledSet(method=method, problem=problem, output=output)
        return source.assembled(self.markers.load_each(source.inputs()))

    def publish(self) -> Outcome:
        """Write the distilled sets, the report and the pictures; return where they are."""
        self.painter.shutdown(wait=True)
        job = self.plan.job
        self.markers.ahead(
            Ref(stage, unit, output)
            for stage, units, outputs in stages_of(self.plan.targets)
            for unit in units
            for output in outputs
        )
        seconds = [self._device_seconds(problem) for problem in self.plan.problems]
        report = self.report(self.plan.evaluation, self.plan.targets)
        places: dict[str, str] = {}
        written = 0
        for index, problem in enumerate(self.plan.problems):
            distilled, data = self._assemble(index), None
            rule = None if job.images is None else job.images.rule
            if rule is not None:
                encoded = rule.encoded(distilled)
                distilled, data = encoded.distilled, encoded.data
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
                coded=data,
            )
            written += sum(facts["size"] for facts in labels.values())
            if self.control.copies:
                self.tracker.artifacts(Storage(join(job.output, folder)), folder)
            if index == 0:
                last = png(picture_of(distilled))
                self.tracker.picture("distilled", self._last_step(), last)
                if is_poster(distilled):
                    self._grown(last)
        chart = self._loss_chart()
        places |= self.write(report, {} if chart is None else {"loss.png": chart})
        if chart is not None:
            places["loss curve"] = places.pop("loss.png")
        if written:
            places["labels"] = f"{join(places['set'], 'labels')} ({format_bytes(written)})"
        places |= job.method.keep(self.plan.problems[0], self.store.load, self.output.url)
        places["picture"] = join(places["set"], "grid.png")
        places["report"] = join(job.output, "report.json")
        self.tracker.report(report, self._last_step(), picture=f"{self.plan.folder(0)}/grid.png")
        return Outcome(report, places | self.tracker.places())

    def _grown(self, last: bytes) -> None:
        """Write the animation of a poster's pictures over the updates, ``last`` being the last one."""
        steps = sorted(p for p in self.output.list("pictures") if p != GROWTH)
        moving = animation([*(self.output.get(path) for path in steps), last])
        if moving is not None:
            self.output.put(GROWTH, moving)

    def _label_files(self, index: int) -> dict[str, dict[str, Any]]:
        """Write the manifest of a set's label records, which are in place; return size and sha256
        of all these files.
        """
        stage = self.plan.labels[index]
        if stage is None or self.control.labels:
            return {}
        refs = stage.refs()
        self.markers.ahead(refs)
        # Those of an earlier run, or of another job, are read.
        records = self.store.check([ref for ref in refs if ref.key not in self.fresh])
        for ref in refs:
            records |= self.markers.files(ref)
        text = label_manifest(stage, records)
        self.output.put(f"{self.plan.folder(index)}/{stage.place}/{LABEL_MANIFEST}", text)
        own = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        return {
            f"{stage.place}/{name}": facts
            for name, facts in {**records, LABEL_MANIFEST: own}.items()
        }

    def _last_step(self) -> int:
        return self.plan.job.method.updates(self.plan.problems[0])

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

    def end(self, status: str) -> None:
        """End pictures, journal and the tracker's run."""
        self.painter.shutdown(wait=False, cancel_futures=True)
        super().end(status)


def _tags(plan: Plan, output: Storage) -> dict[str, str]:
    job = plan.job
    own = {"raydd.method": job.method.name, "raydd.ipc": str(job.ipc)}
    return own | run_tags(f"distill {job.name}", output, plan.evaluation)
