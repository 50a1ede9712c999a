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

from raydd.core.errors import ConfigError, RunFailed
from raydd.core.events import Event
from raydd.core.store import Rows, Store
from raydd.core.tensors import Tensors
from raydd.core.units import Ref
from raydd.runtime.ledger import Lease, Ledger
from raydd.runtime.ray_session import ray_session, worker_environment
from raydd.runtime.runner import DataSource, OnEvent

log = logging.getLogger(__name__)
MAX_GROUP_RESTARTS = 200


class LedgerActor:
    """The ledger as a Ray actor; when it is restarted it lists the store again."""

    def __init__(self, targets: Sequence[Ref], store: Store, evaluators: int) -> None:
        self.ledger = Ledger(targets, store, evaluators)
        self.identity = uuid.uuid4().hex

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Call a method of the ledger."""
        return getattr(self.ledger, method)(*args)

    def note(self, text: str) -> None:
        """Pass a line for a person on to the driver."""
        self.ledger.events.append(Event(kind="message", text=text))

    def poll(self, since: int, identity: str) -> tuple[list[Event], int, bool, str | None, str]:
        """Return events after ``since`` (all of them to a driver that knew another incarnation), and the run's state."""
        events, finished, failure = self.ledger.poll(since if identity == self.identity else 0)
        return events, len(self.ledger.events), finished, failure, self.identity


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

    def _ask(self, method: str, *args: Any) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        for attempt in range(30):  # an actor that is being restarted answers again soon
            try:
                return ray.get(self.handle.call.remote(method, args), timeout=60)
            except (RayActorError, GetTimeoutError) as error:
                if attempt == 29:
                    raise
                log.warning("the ledger does not answer (%s); trying again", type(error).__name__)
                time.sleep(min(5.0, 0.5 * (attempt + 1)))

    def lease(self, held: list[str]) -> Lease:
        return self._ask("lease", self.worker, held, self.generation, self.world)

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


class GlooLanes:
    """The Train group's process group: lanes travel as CPU tensors, in lane order."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def gather(self, mine: dict[int, Tensors]) -> dict[int, Tensors]:
        """Return every lane's tensors, on every worker."""
        import torch.distributed as dist

        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, {lane: {k: v.detach().cpu() for k, v in t.items()} for lane, t in mine.items()})
        return {lane: tensors for box in boxes for lane, tensors in box.items()}

    def agree(self, value: int) -> int:
        """Return rank 0's ``value``, on every worker."""
        import torch
        import torch.distributed as dist

        box = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(box, src=0)
        return int(box.item())

    def same(self, text: str) -> bool:
        """Return whether every worker passed the same text."""
        import torch.distributed as dist

        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, text)
        return len(set(boxes)) == 1


def _work(config: dict[str, Any], worker: str, generation: int, world: int, lanes: Any) -> None:
    from raydd.core.numerics import pick_device, tune_allocator
    from raydd.runtime.worker import Worker

    tune_allocator()
    handle = config["ledger"]
    logging.getLogger("raydd").addHandler(_Forward(handle))
    desk = RayDesk(handle, worker, generation, world)
    Worker(
        config["store"], config["open_data"], desk, device=pick_device(), checkpoint_every=config["checkpoint_every"], lanes=lanes
    ).work(idle=lambda: time.sleep(0.1))


def _train_loop(config: dict[str, Any]) -> None:
    """Body of every worker of the Train group; reports once, at the end (a report is a barrier)."""
    import ray.train
    import torch.distributed as dist

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    box = [time.time_ns()]
    if world > 1:
        dist.broadcast_object_list(box, src=0)
    _work(config, f"rank-{rank}", box[0], world, GlooLanes(rank, world))
    ray.train.report({"rank": rank})


def _evaluator(config: dict[str, Any], index: int) -> None:
    """Body of an evaluator task: units of the phase ``evaluate``, beside the group."""
    _work(config, f"evaluator-{index}", time.time_ns(), 1, None)


def _sees(store: Store, path: str) -> bool:
    return store.storage.exists(path)


class RayRunner:
    """One Train group of ``workers`` (a number, or ``(min, max)``) and ``evaluators`` tasks on a Ray cluster."""

    def __init__(
        self,
        open_data: DataSource,
        *,
        workers: int | tuple[int, int],
        evaluators: int = 0,
        gpus_per_worker: float = 0.0,
        cpus_per_worker: float = 1.0,
        checkpoint_every: float = 60.0,
    ) -> None:
        self.open_data, self.workers, self.evaluators = open_data, workers, evaluators
        self.gpus, self.cpus, self.checkpoint_every = gpus_per_worker, cpus_per_worker, checkpoint_every
        self._ledger: Any = None
        self._stopping = False

    def stop(self) -> None:
        """Ask all workers to save their states and stop."""
        self._stopping = True

    def run(self, targets: Sequence[Ref], store: Store, on_event: OnEvent) -> None:
        """Compute what is missing; see :class:`raydd.runtime.runner.Runner`. No cluster is started if nothing is."""
        self._stopping = False
        local = Ledger(targets, store)
        if local.finished:
            for event in local.events:
                on_event(event)
            return
        # A cluster of this machine alone has no use for more elastic workers than cores.
        low, high = (self.workers, self.workers) if isinstance(self.workers, int) else self.workers
        count = max(low, min(high, os.cpu_count() or 1)) + self.evaluators
        with ray_session(cpus=count * self.cpus, least=low + self.evaluators, gpus=self.gpus) as dashboard:
            on_event(Event(kind="message", text=f"Ray is ready; dashboard: {dashboard}"))
            self._check_resources(store)
            self._run(targets, store, on_event)

    def _check_resources(self, store: Store) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        gpus = ray.cluster_resources().get("GPU", 0)
        if not os.environ.get("RAY_ADDRESS") and gpus < self.gpus:  # in a session that was there before
            raise ConfigError(f"compute.gpus_per_worker={self.gpus:g}, but this machine has {gpus:g} GPUs")
        if len(nodes) < 2 or not store.storage.local:
            return
        probe = f".raydd-probe-{uuid.uuid4().hex[:8]}"
        store.storage.put(probe, b"")
        sees = ray.remote(num_cpus=0)(_sees)
        try:
            answers = [sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote(store, probe) for n in nodes]
            blind = [node for node, ok in zip(nodes, ray.get(answers, timeout=120), strict=True) if not ok]
        finally:
            store.storage.delete(probe)
        if blind:
            raise ConfigError(
                f"store: {store.url} is a folder of one machine; {len(blind)} of {len(nodes)} cluster nodes do not see it. "
                "Use an object store (store=s3://bucket/prefix) or a shared file system"
            )

    def _run(self, targets: Sequence[Ref], store: Store, on_event: OnEvent) -> None:
        import ray
        from ray.exceptions import RayError

        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(LedgerActor)
        ledger = actor.remote(targets, store, self.evaluators)
        try:
            ray.get(ledger.poll.remote(0, ""), timeout=300)
        except RayError as error:
            raise RunFailed(f"the ledger could not be started on the cluster: {_short(error)}") from error
        config = {"ledger": ledger, "store": store, "open_data": self.open_data, "checkpoint_every": self.checkpoint_every}
        evaluate = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=-1, runtime_env={"env_vars": worker_environment()})
        tasks = [evaluate(_evaluator).remote(config, index) for index in range(self.evaluators)]
        errors: list[BaseException] = []
        trainer = threading.Thread(target=self._fit, args=(config, store, errors), daemon=True, name="train")
        trainer.start()
        try:
            failure = self._watch(ledger, trainer, on_event)
        finally:
            for task in tasks:
                ray.cancel(task, force=True)
            ray.kill(ledger)
        if failure:
            raise RunFailed(failure)
        if errors and not self._stopping:
            raise RunFailed(f"the Ray Train group ended: {_short(errors[0])}") from errors[0]

    def _watch(self, ledger: Any, trainer: threading.Thread, on_event: OnEvent) -> str | None:
        """Pass events on until the group has ended; return why the run failed, if it did."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        seen, identity, failure, told, last = 0, "", None, False, False
        while True:
            last = not trainer.is_alive()
            if self._stopping and not told:
                told = True
                ledger.call.remote("stop", ())
            try:
                events, seen, _, failure, identity = ray.get(ledger.poll.remote(seen, identity), timeout=60)
            except (RayActorError, GetTimeoutError) as error:
                log.warning("the ledger does not answer (%s)", type(error).__name__)
                time.sleep(1.0)
                events = []
            for event in events:
                on_event(event)
            if last:
                return failure
            trainer.join(timeout=0.25)

    def _fit(self, config: dict[str, Any], store: Store, errors: list[BaseException]) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        name = f"train-{uuid.uuid4().hex[:8]}"
        resources = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        try:
            TorchTrainer(
                _train_loop,
                train_loop_config=config,
                scaling_config=ScalingConfig(num_workers=self.workers, use_gpu=self.gpus > 0, resources_per_worker=resources),
                torch_config=TorchConfig(backend="gloo"),
                run_config=RunConfig(
                    name=name,
                    failure_config=FailureConfig(max_failures=MAX_GROUP_RESTARTS),
                    worker_runtime_env={"env_vars": worker_environment()},
                    **_train_storage(store),
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001 - handed to the driver's thread
            errors.append(error)
        finally:
            _remove_train_files(store, name)


def _train_storage(store: Store) -> dict[str, Any]:
    """Return where Ray Train keeps its own few files: beside the units, through the same retries."""
    if store.storage.local:
        return {"storage_path": f"{store.url}/ray"}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": f"{store.storage.root}/ray", "storage_filesystem": PyFileSystem(FSSpecHandler(store.storage.fs))}


def _remove_train_files(store: Store, name: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            store.storage.fs.rm(f"{store.storage.root.rstrip('/')}/ray/{name}", recursive=True)
    except Exception as error:  # noqa: BLE001 - a few left-over files are no reason to fail a finished run
        log.warning("left behind %s/ray/%s: %s", store.url, name, error)


def _short(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


