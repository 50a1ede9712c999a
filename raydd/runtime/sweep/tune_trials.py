"""Trials as Ray Tune's: each in an actor that is used again for the next, beside a desk that all of them ask."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher as TuneSearcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydd.core.errors import ConfigError, RunFailed, first_line
from raydd.core.storage import Storage
from raydd.runtime.sweep.schedulers import scheduler
from raydd.runtime.sweep.sweep_plan import OWN_CPUS, Sweep
from raydd.search.desk import SweepDesk
from raydd.search.searchers import searcher
from raydd.search.trials import Trial, TrialJournal

POLL_SECONDS = 0.5
RETRIES = 3
"""A trial whose process dies is run again, from its units' checkpoints, so often."""
log = logging.getLogger(__name__)


class DeskActor:
    """The desk as a Ray actor. It also hands the sweep to the trials, and changes to the driver."""

    def __init__(self, sweep: Sweep, every: int, steps: int) -> None:
        self._changes: list[Trial] = []
        self._sweep = sweep
        space = sweep.space
        self._desk = SweepDesk(
            space,
            TrialJournal(Storage(sweep.output)),
            searcher(space),
            scheduler(space, every, steps),
            self._changes.append,
        )

    def sweep(self) -> Sweep:
        """Return what the trials are of."""
        return self._sweep

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Call a method of the desk."""
        return getattr(self._desk, method)(*args)

    def poll(self) -> tuple[list[Trial], str]:
        """Return the trials that changed since the last call, and why the sweep stops by itself, if it does."""
        changes, self._changes[:] = list(self._changes), []
        return changes, self._desk.trouble


@dataclass
class RemoteDesk:
    """The desk actor as a trial sees it: the methods of :class:`raydd.runtime.sweep.trial_run.TrialDesk`."""

    handle: Any

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args: ray.get(self.handle.call.remote(method, args))


class _Numbers(TuneSearcher):  # type: ignore[misc]
    """Gives Tune the numbers of trials; what they set is the desk's business."""

    def __init__(self, desk: RemoteDesk) -> None:
        super().__init__(metric="value", mode="max")
        self.desk = desk
        self.numbers: dict[str, int] = {}

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        number = self.desk.next()
        if number is None:
            return TuneSearcher.FINISHED
        self.numbers[trial_id] = number
        return {"number": number, "desk": self.desk.handle}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        if error and trial_id in self.numbers:
            self.desk.lost(
                self.numbers[trial_id],
                f"its process died {RETRIES + 1} times, or could not be started",
            )

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the journal has it."""


def _trial(config: dict[str, Any]) -> dict[str, float]:
    """Body of a trial."""
    from raydd.core.command import setup_logging
    from raydd.runtime.sweep.trial_run import run_trial

    setup_logging()
    desk = RemoteDesk(config["desk"])
    sweep = ray.get(config["desk"].sweep.remote())
    os.environ.update(sweep.environment)
    run_trial(sweep, config["number"], desk)
    return {"value": 0.0}


class TuneTrials:
    """Runs a sweep's trials on the connected cluster, ``at_once`` of them at a time.

    ``every``: updates between snapshots of the job's own trial, ``steps``: the most that a trial makes.
    """

    def __init__(self, sweep: Sweep, at_once: int, every: int, steps: int) -> None:
        self.sweep, self.at_once = sweep, at_once
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_concurrency=1)(DeskActor)
        self.handle = actor.options(scheduling_strategy=here).remote(sweep, every, steps)
        self.desk = RemoteDesk(self.handle)
        self.error: BaseException | None = None

    def run(self, on_change: Callable[[Trial], None], stopped: threading.Event) -> str:
        """Run until no trial is left; return why the sweep stopped by itself, or nothing."""
        try:
            ray.get(self.handle.poll.remote())
        except RayError as error:
            raise RunFailed(
                f"the desk of the sweep could not be started: {first_line(error)}"
            ) from error
        thread = threading.Thread(target=self._fit, daemon=True, name="tune")
        thread.start()
        try:
            trouble = self._follow(thread, on_change, stopped)
        except RayError as error:
            raise RunFailed(
                f"the desk of the sweep is gone ({first_line(error)}); the same command goes on"
            ) from error
        if self.error is not None and not stopped.is_set():
            raise RunFailed(f"Ray Tune ended: {first_line(self.error)}") from self.error
        return trouble

    def _follow(
        self,
        thread: threading.Thread,
        on_change: Callable[[Trial], None],
        stopped: threading.Event,
    ) -> str:
        """Tell of changes until Tune's thread has ended; return why the sweep stopped by itself, or nothing."""
        told = False
        while True:
            last = not thread.is_alive()
            if stopped.is_set() and not told:
                told = True
                self.desk.stop()
            changes, trouble = ray.get(self.handle.poll.remote())
            for trial in changes:
                on_change(trial)
            if last:
                return str(trouble)
            thread.join(timeout=POLL_SECONDS)

    def end(self) -> None:
        """End the desk."""
        with contextlib.suppress(RayError):
            ray.kill(self.handle)

    def _fit(self) -> None:
        compute, file = self.sweep.job.compute, self.sweep.space.file
        own = {"cpu": OWN_CPUS if file.workers_per_trial else compute.cpus_per_worker}
        if compute.gpus_per_worker and not file.workers_per_trial:
            own["gpu"] = compute.gpus_per_worker
        # What a trial failed with is in the journal, and what Tune misses in its own files is of no use.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        name = f"sweep-{uuid.uuid4().hex[:8]}"
        files = Storage(self.sweep.output)
        try:
            tune.Tuner(
                tune.with_resources(_trial, own),
                param_space={},
                tune_config=tune.TuneConfig(
                    search_alg=_Numbers(self.desk),
                    num_samples=-1,
                    max_concurrent_trials=self.at_once,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
                ),
                run_config=tune.RunConfig(
                    name=name,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                    **_tune_storage(files),
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001 - handed to the driver's thread
            self.error = error
        finally:
            with contextlib.suppress(Exception):  # a few left-over files are no reason to fail
                files.fs.rm(f"{files.root.rstrip('/')}/tune", recursive=True)


def _tune_storage(output: Storage) -> dict[str, Any]:
    """Return where Tune keeps its own files, of which nothing is needed: beside the sweep's, for all machines."""
    if output.local:
        return {"storage_path": os.path.join(output.root, "tune")}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {
        "storage_path": f"{output.root}/tune",
        "storage_filesystem": PyFileSystem(FSSpecHandler(output.fs)),
    }


def check_room(sweep: Sweep, at_once: int) -> None:
    """Raise ``ConfigError`` where trials with Train groups of their own would wait for each other for ever."""
    each = sweep.space.file.workers_per_trial
    if not each:
        return
    compute = sweep.job.compute
    there = ray.cluster_resources()
    for kind, wanted in (("CPU", compute.cpus_per_worker), ("GPU", compute.gpus_per_worker)):
        spare = OWN_CPUS * at_once if kind == "CPU" else 0.0
        need = at_once * each * wanted + spare
        own = f" and {spare:g} for the trials themselves" if spare else ""
        if wanted and need > there.get(kind, 0.0):
            raise ConfigError(
                f"workers_per_trial={each}: {at_once} trials at once x {each} workers x {wanted:g} {kind} ="
                f" {at_once * each * wanted:g} {kind}{own}, and the cluster has {there.get(kind, 0.0):g}: groups would"
                " wait for each other. Fewer trials at once (compute.workers), fewer workers each, or 0: trials in"
                " one process"
            )
