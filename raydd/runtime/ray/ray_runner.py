"""Runs a plan on Ray: one elastic Train group leases segments from a ledger actor, evaluators work beside it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydd.core.checkpoint import Rows
from raydd.core.errors import ConfigError, RunFailed
from raydd.core.events import Event
from raydd.core.store import Store, device_kind
from raydd.core.units import Ref
from raydd.runtime.capacity import Need
from raydd.runtime.leases import Lease
from raydd.runtime.ledger import Ledger
from raydd.runtime.ray.ray_address import Cancelled, waiting_for
from raydd.runtime.ray.ray_ledger import LedgerActor
from raydd.runtime.ray.ray_metrics import WorkerMetrics
from raydd.runtime.ray.ray_pulse import cluster_answers, failed, is_outage, told_if_gone
from raydd.runtime.ray.ray_session import ray_session, worker_environment
from raydd.runtime.ray.ray_supply import wait_for_room
from raydd.runtime.ray.ray_watch import Idle, Post
from raydd.runtime.runner import DataSource, OnEvent

log = logging.getLogger(__name__)
PROCESS_SECONDS = 600.0
"""For the first process on a machine to start, which may have to fetch an environment first."""
END_SECONDS = 10.0
"""For ending what is left on a cluster: a head that ends meanwhile answers no more, and after 60 s
of that Ray ends this process.
"""


class _Forward(logging.Handler):
    """Sends a worker's warnings to the driver."""

    def __init__(self, ledger: Any) -> None:
        super().__init__(logging.WARNING)
        self.ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a lost warning must not end a unit
            self.ledger.note.remote(record.getMessage())


@dataclass
class RayDesk:
    """The ledger actor as a worker sees it."""

    handle: Any
    worker: str
    generation: int
    world: int
    device: str

    def _ask(self, method: str, *args: Any) -> Any:
        import ray

        for attempt in range(30):  # an actor that is being restarted answers again soon
            try:
                return ray.get(self.handle.call.remote(method, args), timeout=60)
            except Exception as error:
                if attempt == 29 or not is_outage(error):
                    raise
                log.warning("the ledger does not answer (%s); trying again", type(error).__name__)
                time.sleep(min(5.0, 0.5 * (attempt + 1)))

    def lease(self, held: list[str]) -> Lease:
        return self._ask("lease", self.worker, held, self.generation, self.world, self.device)

    def progress(self, key: str, t: int, rows: Rows) -> bool:
        return self._ask("progress", self.worker, key, t, rows, self.generation)

    def wrote(self, key: str, output: str, seconds: float, rows: Rows) -> None:
        self._ask("wrote", self.worker, key, output, seconds, rows)

    def torn(self, key: str, bad: Ref, text: str) -> None:
        self._ask("torn", self.worker, key, bad, text)

    def fail(self, key: str, text: str) -> None:
        self._ask("fail", key, text)

    def stumbled(self, key: str, text: str) -> None:
        self._ask("stumbled", self.worker, key, text)


def _work(config: dict[str, Any], worker: str, generation: int, world: int, lanes: Any) -> None:
    from raydd.core.allocator import tune_allocator
    from raydd.core.numerics import pick_device
    from raydd.runtime.worker import Worker

    tune_allocator()
    handle = config["ledger"]
    logging.getLogger("raydd").addHandler(_Forward(handle))
    device = pick_device()
    desk = RayDesk(handle, worker, generation, world, device_kind(device))
    options = {name: config[name] for name in ("checkpoint_every", "same_device")}
    metrics = WorkerMetrics(device)

    def idle() -> None:
        metrics.idle()
        time.sleep(0.1)

    Worker(
        config["store"],
        config["open_data"],
        desk,
        device=device,
        lanes=lanes,
        watch=metrics,
        **options,
    ).work(idle=idle)


def _evaluator(config: dict[str, Any], index: int) -> None:
    """Body of an evaluator task: units of the phase ``evaluate``, beside the group."""
    _work(config, f"evaluator-{index}", time.time_ns(), 1, None)


def _own_kind() -> str:
    from raydd.core.numerics import pick_device

    return device_kind(pick_device())


def _sees(store: Store, path: str) -> bool:
    return store.storage.exists(path)


class RayRunner:
    """One Train group of ``workers`` (a number, or ``(min, max)``) and ``evaluators`` tasks on a Ray cluster.

    ``wait``: seconds that a cluster which is busy, or may grow, is given to have room for the least
    of it. ``same_device``: what another kind of device than the workers' made is made anew.
    """

    def __init__(
        self,
        open_data: DataSource,
        *,
        workers: int | tuple[int, int],
        evaluators: int = 0,
        gpus_per_worker: float = 0.0,
        cpus_per_worker: float = 1.0,
        checkpoint_every: float = 60.0,
        wait: float = 600.0,
        same_device: bool = False,
    ) -> None:
        self.open_data, self.workers, self.evaluators = open_data, workers, evaluators
        self.gpus, self.cpus, self.checkpoint_every, self.wait = (
            gpus_per_worker,
            cpus_per_worker,
            checkpoint_every,
            wait,
        )
        low, self.most = (workers, workers) if isinstance(workers, int) else workers
        self.need = Need(low, evaluators, cpus_per_worker, gpus_per_worker, elastic=self.most > low)
        self.same_device = same_device
        self._stopping = False

    def stop(self) -> None:
        """Ask all workers to save their states and stop; end what has not begun, and do not begin."""
        self._stopping = True

    def _cancelled(self) -> bool:
        return self._stopping

    def run(self, targets: Sequence[Ref], store: Store, on_event: OnEvent) -> None:
        """Compute what is missing; see :class:`raydd.runtime.runner.Runner`. No cluster is started if nothing is,
        unless only workers know whether what is there is of their kind of device.
        """
        if not self.same_device:
            local = Ledger(targets, store)
            if local.finished:
                for event in local.events:
                    on_event(event)
                return

        def tell(text: str) -> None:
            on_event(Event(kind="message", text=text))

        # A cluster of this machine alone has no use for more elastic workers than cores.
        count = max(self.need.workers, min(self.most, os.cpu_count() or 1)) + self.evaluators
        with (
            contextlib.suppress(Cancelled),
            ray_session(
                count * self.cpus, self.need.count, self.gpus, self._cancelled
            ) as dashboard,
        ):
            tell(f"Ray is ready; dashboard: {dashboard}")
            with told_if_gone(self._cancelled):
                if not wait_for_room(self.need, self.wait, tell, self._cancelled):
                    return
                self._check_store(store)
                device = self._workers_kind() if self.same_device else ""
            self._run(targets, store, on_event, device)

    def _get(self, refs: Any, what: str) -> Any:
        """Return what Ray has for ``refs``, which need a process of their own; ``TimeoutError`` after
        ``PROCESS_SECONDS`` or ``wait``, ``Cancelled`` where the run is stopped.
        """
        import ray

        seconds = max(PROCESS_SECONDS, self.wait)
        return waiting_for(lambda: ray.get(refs), seconds, self._cancelled, what)

    def _workers_kind(self) -> str:
        """Return the kind of device that a worker of this cluster gets."""
        import ray

        kind = ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, runtime_env={"env_vars": worker_environment()}
        )(_own_kind)
        return str(self._get(kind.remote(), "asking a worker for its device"))

    def _check_store(self, store: Store) -> None:
        """Raise ``ConfigError`` for a local store that some of the cluster's machines do not see."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        if len(nodes) < 2 or not store.storage.local:
            return
        probe = f".raydd-probe-{uuid.uuid4().hex[:8]}"
        store.storage.put(probe, b"")
        sees = ray.remote(num_cpus=0)(_sees)
        try:
            answers = [
                sees.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=True)
                ).remote(store, probe)
                for n in nodes
            ]
            blind = [
                node
                for node, ok in zip(nodes, self._get(answers, "looking for the store"), strict=True)
                if not ok
            ]
        finally:
            store.storage.delete(probe)
        if blind:
            raise ConfigError(
                f"store: {store.url} is a folder of one machine; {len(blind)} of {len(nodes)} cluster nodes do not see"
                " it. Use an object store (store=s3://bucket/prefix) or a shared file system"
            )

    def _run(self, targets: Sequence[Ref], store: Store, on_event: OnEvent, device: str) -> None:
        import ray

        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(LedgerActor)
        ledger = actor.remote(targets, store, self.evaluators, device)
        tasks: list[Any] = []
        try:
            with told_if_gone(self._cancelled):
                self._compute(ledger, tasks, store, on_event)
        finally:
            if cluster_answers():
                with contextlib.suppress(TimeoutError):
                    waiting_for(
                        lambda: _end(tasks, ledger), END_SECONDS, lambda: False, "ending the group"
                    )

    def _compute(self, ledger: Any, tasks: list[Any], store: Store, on_event: OnEvent) -> None:
        """Have everything computed; the evaluators' tasks are added to ``tasks``."""
        import ray
        from ray.exceptions import RayError

        from raydd.runtime.ray.ray_group import TrainGroup

        try:
            self._get(ledger.poll.options(max_task_retries=0).remote(0, ""), "starting the ledger")
        except (RayError, TimeoutError) as error:
            raise failed(
                f"the ledger could not be started on the cluster: {_short(error)}. All of its machines have to be"
                " started in an environment that has this raydd, or the job be handed in with its code: `ray job"
                " submit --working-dir .`",
                self._cancelled,
            ) from error
        options = {"checkpoint_every": self.checkpoint_every, "same_device": self.same_device}
        config = {"ledger": ledger, "store": store, "open_data": self.open_data, **options}
        evaluate = ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=-1,
            runtime_env={"env_vars": worker_environment()},
        )
        tasks += [evaluate(_evaluator).remote(config, index) for index in range(self.evaluators)]
        group = TrainGroup(config | {"work": _work}, store, self.workers, self.need.bundle)
        failure = self._watch(ledger, group, on_event)
        if failure:
            raise RunFailed(failure)
        if group.error is not None and not self._stopping:
            raise failed(
                f"the Ray Train group ended: {_short(group.error)}", self._cancelled
            ) from group.error

    def _watch(self, ledger: Any, group: Any, on_event: OnEvent) -> str | None:
        """Pass events on until the group has ended; return why the run failed, if it did."""
        trainer = threading.Thread(target=group.fit, daemon=True, name="train")
        trainer.start()
        post = Post(ledger)
        idle = Idle(self.need, self.wait, lambda text: on_event(Event(kind="message", text=text)))
        told = False
        try:
            while True:
                last = not trainer.is_alive()
                if self._stopping and not told:
                    told = True
                    ledger.call.remote("stop", ())
                for event in post.fetch():
                    on_event(event)
                if last:
                    return post.failure
                if self._stopping and not post.working:  # there is no state to save
                    group.abort(post.controller)
                    return None
                idle.look(post)
                trainer.join(timeout=0.25)
        except BaseException:
            if cluster_answers():
                group.abort(post.controller)
            raise


def _end(tasks: Sequence[Any], ledger: Any) -> None:
    """End the evaluators and the ledger; a cluster that ends meanwhile ends them, too."""
    import ray
    from ray.exceptions import RayError

    from raydd.runtime.ray.ray_group import tidy

    with contextlib.suppress(RayError):
        for task in tasks:
            ray.cancel(task, force=True)
        ray.kill(ledger)
        tidy()


def _short(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
