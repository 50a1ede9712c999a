"""A sweep from its job and space to the winner's test: checks, shared units, trials, tables."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raydd.artifacts.report import Report
from raydd.config import Job, JobFile
from raydd.core.allocator import tune_allocator
from raydd.core.dotted_keys import flatten
from raydd.core.errors import ConfigError, Missing, RunFailed, refusing
from raydd.core.keeping import register_run
from raydd.core.storage import Storage, join
from raydd.core.store import Store
from raydd.core.typed_tree import plain
from raydd.core.units import Ref
from raydd.data.datasets import Described
from raydd.runtime.control import Control
from raydd.runtime.estimate import unit_table
from raydd.runtime.lock import Lock
from raydd.runtime.pipeline import run_job, store_of
from raydd.runtime.planning import make_plan, most_workers
from raydd.runtime.progress import Progress, clock
from raydd.runtime.runner import OpenData
from raydd.runtime.session import (
    Interrupted,
    check_places,
    described,
    git_commit,
    make_runner,
    stop_on_signals,
)
from raydd.runtime.sweep.final_jobs import final_jobs, refit_job, tested, unlike
from raydd.runtime.sweep.schedulers import scheduler
from raydd.runtime.sweep.sweep_claim import about, claim_sweep
from raydd.runtime.sweep.sweep_files import keep_report, kept, report_of, write_files
from raydd.runtime.sweep.sweep_plan import OWN_CPUS, Corners, Sweep, corners, steps_of
from raydd.runtime.sweep.sweep_status import is_sweep
from raydd.runtime.sweep.trial_run import labels_place, run_trial
from raydd.runtime.sweep.trial_tracking import tracked_here, tracked_on
from raydd.runtime.tracking.tracker import Tracker
from raydd.search.desk import SweepDesk, trouble_of
from raydd.search.results import (
    SweepReport,
    Tested,
    outcome,
    shared_line,
    short,
    table,
)
from raydd.search.searchers import searcher
from raydd.search.space import Space
from raydd.search.space_reading import load_space
from raydd.search.trials import Trial, TrialJournal, number, ranked

LINE_SECONDS = 15.0
KEEP_SECONDS = 5.0
"""Between two notes of what is found so far, at least; while trials are many and short."""


@dataclass(frozen=True)
class SweepOutcome:
    """What a finished sweep leaves: its report and where things are."""

    report: SweepReport
    places: Mapping[str, str]

    def render(self) -> str:
        """Return the tables, and a line for each place, as text."""
        width = max(map(len, self.places))
        lines = [f"{name.ljust(width)}  {place}" for name, place in self.places.items()]
        shared = shared_line(self.report.shared)
        return "\n".join(["", table(self.report), "", *self.report.notes, shared, "", *lines])


def make_sweep(of: JobFile, space: str, overrides: tuple[str, ...] = ()) -> Sweep:
    """Return a job with a space file's keys; ``ConfigError`` for all that is wrong with it."""
    job = of.job()
    found = load_space(space, of, overrides)
    sweep = Sweep(job, found, job.output)
    if found.file.workers_per_trial and job.compute.workers == 0:
        raise ConfigError(
            f"{space}: workers_per_trial={found.file.workers_per_trial}: without Ray (compute.workers=0) trials have no"
            " workers; give compute.workers, the number of trials at once"
        )
    if found.file.search != "grid" and found.file.budget == type(found.file.budget)():
        raise ConfigError(
            f"{space}: budget: {found.file.search} proposes for ever; give budget.trials, budget.device_seconds or"
            " budget.seconds"
        )
    return sweep


@dataclass(frozen=True)
class Checked:
    """A sweep whose data are there and whose ends can be planned."""

    sweep: Sweep
    data: Described
    corners: Corners


def check(sweep: Sweep) -> Checked:
    """Describe the data as trials have them, and plan the ends of the space; ``ConfigError`` or
    ``DataError`` for what cannot be.
    """
    with refusing():
        check_places(Storage(sweep.output), Storage(sweep.job.store), sweep.job.tracking.uri)
        first = sweep.trial(0, sweep.space.own)
        data = described(first.dataset, "sweep")
        first.method.fetch()
        planned = corners(sweep, data.info)
        absent = first.method.missing(planned.plans[0][1].problems[0])
    if absent:
        raise Missing(
            "method: " + "\n  ".join(["what the job needs is missing or does not fit:", *absent])
        )
    return Checked(sweep, data, planned)


def run_sweep(sweep: Sweep, tell: Callable[[str], None], refit: bool = False) -> SweepOutcome:
    """Run a sweep, or go on with it, to the test of its winner. ``refit``: also distil the winner
    anew, of all data and as long as the job says.

    Raises ``ConfigError`` for one that cannot run, ``RunFailed`` where its first trials all fail,
    ``Interrupted`` when it was asked to stop.
    """
    tune_allocator()
    checked = check(sweep)
    output = Storage(sweep.output)
    runs: list[_Run] = []

    def lost() -> None:
        for run in runs:
            run.stop()

    with Lock(output, tell, lost):
        new = claim_sweep(output, sweep)
        tell(f"{sweep.job.name}: {about(sweep)}" + ("" if new else " (resumed)"))
        with _tracked(sweep, output, tell) as (tracker, tagged):
            runs.append(_Run(replace(checked, sweep=tagged), output, tracker, tell))
            return runs[0].run(refit)


@contextlib.contextmanager
def _tracked(
    sweep: Sweep, output: Storage, tell: Callable[[str], None]
) -> Iterator[tuple[Tracker, Sweep]]:
    """Yield the tracker of the sweep's run, and the sweep whose trials' runs lie below it."""
    tracking, space = sweep.job.tracking, sweep.space
    params = {**flatten(sweep.job.stated()), **flatten({"sweep": plain(space.file)})}
    commit = git_commit()
    tags = {
        "raydd.output": output.url,
        "raydd.method": sweep.job.method.name,
        "raydd.sweep": space.name,
        "mlflow.source.name": f"raydd sweep {sweep.job.name}",
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }
    name = f"{sweep.job.name} sweep"
    tracker = Tracker(tracking.uri, tracking.experiment, name, output, params, tags)
    if tracking.uri != "none":
        tell(tracker.beginning())
    status = "FAILED"
    try:
        parent = tracker.run_id()
        child = {"raydd.sweep": space.name} | ({"mlflow.parentRunId": parent} if parent else {})
        yield tracker, replace(tracked_here(sweep), tags=child)
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        left = tracker.finish(status)
        if left:
            tell(left)


class _Run:
    """One run of a sweep on its output."""

    def __init__(
        self, checked: Checked, output: Storage, tracker: Tracker, tell: Callable[[str], None]
    ) -> None:
        self.sweep, self.data, self.corners = checked.sweep, checked.data, checked.corners
        self.space: Space = checked.sweep.space
        self.output, self.tracker, self.tell = output, tracker, tell
        self.stopped = threading.Event()
        self.runner: Any = None
        self.begun = time.monotonic()
        self.told_at = self.kept_at = self.begun
        self.known: dict[int, Trial] = {}
        self.first_units, self.first_seconds = 0, 0.0

    def stop(self) -> None:
        """Have what runs save its state and stop."""
        self.stopped.set()
        if self.runner is not None:
            self.runner.stop()

    def run(self, refit: bool) -> SweepOutcome:
        """Compute what is shared, run the trials, test the winner, write everything."""
        keep = {ref.key for ref in self.corners.shared}
        store = store_of([self.corners.plans[0][1]], Control(labels=labels_place(self.sweep)))
        register_run(store, self.output.url, keep, finished=False)
        before = TrialJournal(self.output).read()
        trouble = trouble_of(self.space, before)
        with contextlib.ExitStack() as around:
            around.enter_context(stop_on_signals(self, self.tell))
            if not is_sweep(self.output) or (kept(self.output, "trouble") and not trouble):
                keep_report(self.output, self._report(before))
            if not trouble:
                if self.sweep.job.compute.workers != 0:
                    around.enter_context(self._cluster())
                self._shared(store)
                trouble = self._trials()
            trials = TrialJournal(self.output).read()
            report = self._report(trials, ended=not (self.stopped.is_set() or trouble))
            if not (self.stopped.is_set() or trouble or ranked(report.trials, self.space.mode)):
                trouble = "no trial finished; see the table in trials.csv"
            report = replace(report, trouble=trouble)
            write_files(self.sweep, self.output, report, self.tracker)
            if self.stopped.is_set():
                raise Interrupted(f"the same command goes on from here ({self.output.url})")
            if trouble:
                raise RunFailed(trouble)
            report = replace(report, tested=self._tests(report, refit))
        places = write_files(self.sweep, self.output, report, self.tracker)
        register_run(store, self.output.url, keep, finished=True)
        for trial in report.trials:
            register_run(
                store, join(self.output.url, self.sweep.place(trial.number)), (), finished=True
            )
        return SweepOutcome(report, places | self.tracker.places())

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        """Be connected to a cluster for the whole sweep: trials and groups use it in turn."""
        from raydd.runtime.ray.ray_session import ray_session

        compute = self.sweep.job.compute
        each = max(1, self.space.file.workers_per_trial)
        own = OWN_CPUS if self.space.file.workers_per_trial else 0.0
        cpus = most_workers(compute) * (each * compute.cpus_per_worker + own)
        with ray_session(cpus, each, compute.gpus_per_worker, self.stopped.is_set) as dashboard:
            self.tell(f"Ray is ready; dashboard: {dashboard}")
            yield

    def _shared(self, store: Store) -> None:
        """Compute the units that all trials need, on all workers."""
        refs = self.corners.shared
        self.first_units = len({ref.key for ref in refs})
        self._compute(
            refs, store, f"{self.first_units} units are needed by all trials; they come first"
        )
        there = store.has(refs)
        done = [ref for ref, found in zip(refs, there, strict=True) if found]
        last: dict[str, float] = {}
        for ref in done:
            last[ref.key] = max(last.get(ref.key, 0.0), float(store.marker(ref)["seconds"]))
        self.first_seconds = sum(last.values())

    def _compute(self, refs: list[Ref], store: Store, why: str) -> None:
        """Compute what a store lacks of outputs, on all workers, until the sweep is stopped."""
        if self.stopped.is_set() or all(store.has(refs)):
            return
        self.tell(why)
        data = OpenData(self.data.config, self.data.splits)
        self.runner = make_runner(self.sweep.job.compute, data)
        if self.stopped.is_set():
            self.runner.stop()
        with Progress(unit_table(refs)) as progress:
            self.runner.run(refs, store, progress.on_event)
        self.runner = None

    def _trials(self) -> str:
        """Run the trials; return why the sweep stopped by itself, if it did."""
        plan = self.corners.plans[0][1]
        every = plan.job.evaluation.every or 1
        steps = max(steps_of(of) for _, of in self.corners.plans)
        for trial in TrialJournal(self.output).read():
            self.known[trial.number] = trial
        if self.sweep.job.compute.workers == 0:
            return self._here(every, steps)
        from raydd.runtime.ray.ray_supply import machines
        from raydd.runtime.sweep.tune_trials import TuneTrials, check_room

        at_once = most_workers(self.sweep.job.compute)
        check_room(self.sweep, at_once)
        sweep, line = tracked_on(self.sweep, len(machines()))
        if line:
            self.tell(line)
        trials = TuneTrials(sweep, at_once, every, steps)
        try:
            return trials.run(self._changed, self.stopped)
        finally:
            trials.end()

    def _here(self, every: int, steps: int) -> str:
        """Run the trials in this process, one after another."""
        rule, journal = scheduler(self.space, every, steps), TrialJournal(self.output)
        desk = SweepDesk(self.space, journal, searcher(self.space), rule, self._changed)
        self.runner = desk
        while not self.stopped.is_set() and (number := desk.next()) is not None:
            run_trial(self.sweep, number, desk)
        self.runner = None
        return desk.trouble

    def _changed(self, trial: Trial) -> None:
        """Show and track what a trial came to."""
        before = self.known.get(trial.number)
        self.known[trial.number] = trial
        if trial.ended and (before is None or not before.ended):
            values = "  ".join(f"{key} {short(value)}" for key, value in trial.values.items())
            took = f"  {trial.clock:.1f} s" if trial.clock else ""
            self._say(
                f"trial {trial.number}  {values}  {outcome(trial, self.space.file.metric)}{took}"
            )
            if trial.state == "finished" and trial.value is not None:
                best = ranked(list(self.known.values()), self.space.mode)[0]
                self.tracker.batch(
                    {self.space.file.metric: trial.value, "best": best.value or 0.0}, trial.number
                )
            if time.monotonic() - self.kept_at > KEEP_SECONDS:
                known = [self.known[number_] for number_ in sorted(self.known)]
                keep_report(self.output, self._report(known))
                self.kept_at = time.monotonic()
        elif trial.attempts > 1 and (before is None or trial.attempts > before.attempts):
            self._say(f"trial {trial.number}  goes on where it was (attempt {trial.attempts})")
        elif time.monotonic() - self.told_at > LINE_SECONDS:
            self._say(self._standing())

    def _standing(self) -> str:
        running = sum(not trial.ended for trial in self.known.values())
        done = sum(trial.ended for trial in self.known.values())
        best = ranked(list(self.known.values()), self.space.mode)
        found = f", best trial {best[0].number}: {number(best[0])}" if best else ""
        return f"{done} trials ended, {running} running{found}"

    def _say(self, text: str) -> None:
        self.told_at = time.monotonic()
        self.tell(f"{clock(self.told_at - self.begun)}  {text}")

    # -- the end -----------------------------------------------------------------------------------------------------

    def _report(self, trials: Sequence[Trial], *, ended: bool = False) -> SweepReport:
        first, seconds = (self.first_units, self.first_seconds), time.monotonic() - self.begun
        return report_of(self.sweep, self.output, trials, first, seconds, ended)

    def _tests(self, report: SweepReport, refit: bool) -> list[Tested]:
        """Evaluate the winner, the job's own values and random images on the test set, with fresh students."""
        if not self.space.file.winner or report.winner is None:
            return []
        jobs = final_jobs(self.sweep, report)
        plans = [make_plan(job, self.data.info) for job in jobs.values()]
        refs = [ref for plan in plans for ref in plan.targets]
        names = " and ".join(f"trial {number_} ({name})" for name, number_ in jobs)
        self._compute(
            list(dict.fromkeys(refs)),
            store_of(plans, Control(labels=labels_place(self.sweep))),
            f"test of {names}, with fresh students",
        )
        found: list[Tested] = []
        for (name, number_), job in jobs.items():
            found += tested(name, number_, self._run_job(job, labels=True), job.method.name)
        found = unlike(found)
        if refit:
            job = refit_job(self.sweep, report.trials[report.winner])
            self.tell(f"refit: trial {report.winner} anew, of all training images ({job.output})")
            found += tested("refit", report.winner, self._run_job(job), job.method.name)
        return found

    def _run_job(self, job: Job, labels: bool = False) -> Report:
        control = Control(
            show=True,
            tags=self.sweep.tags,
            lender=labels_place(self.sweep) if labels else "",
        )
        self.runner = control
        try:
            if self.stopped.is_set():
                control.stop()
            return run_job(job, lambda line: None, control).report
        except Interrupted:
            raise Interrupted(f"the same command goes on from here ({self.output.url})") from None
        finally:
            self.runner = None
