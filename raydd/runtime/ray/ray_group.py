"""The Ray Train group: workers that live and die together, and are more or fewer as machines come and go."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.runtime.capacity import Need, room
from raydd.runtime.ray.ray_session import worker_environment
from raydd.runtime.ray.ray_supply import machines

log = logging.getLogger(__name__)
MAX_GROUP_RESTARTS = 200
ABORT_SECONDS = 3.0
Work = Callable[[dict[str, Any], str, int, int, Any], None]


class GlooLanes:
    """The Train group's process group: lanes travel as CPU tensors, in lane order."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def gather(self, mine: dict[int, Tensors]) -> dict[int, Tensors]:
        """Return every lane's tensors, on every worker."""
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(
            boxes, {lane: {k: v.detach().cpu() for k, v in t.items()} for lane, t in mine.items()}
        )
        return {lane: tensors for box in boxes for lane, tensors in box.items()}

    def agree(self, value: int) -> int:
        """Return rank 0's ``value``, on every worker."""
        box = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(box, src=0)
        return int(box.item())

    def same(self, text: str) -> bool:
        """Return whether every worker passed the same text."""
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, text)
        return len(set(boxes)) == 1


class FreePolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Counts what nobody else uses, where Ray counts what machines have: a group sized for that
    would wait for other jobs' ends.
    """

    def __init__(self, scaling_config: Any) -> None:
        super().__init__(scaling_config)
        self._held = 0

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        each = self.scaling_config.resources_per_worker
        need = Need(self.scaling_config.min_workers, cpus=each["CPU"], gpus=each.get("GPU", 0.0))
        return min(
            super()._count_possible_workers(reserved_resources),
            self._held + room(machines(), need, free=True),
        )

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Note what the group is about to hold."""
        self._held = resize_decision.num_workers

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """A group that could not be started holds nothing; one that failed does, until its successor is started."""
        if isinstance(current_state, ReschedulingState):
            self._held = 0


class _Tell(ControllerCallback):  # type: ignore[misc]
    """Tells the ledger what the group's controller does, and who it is."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger

    def after_controller_start(self, train_run_context: Any) -> None:
        self._tell("InitializingState")

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        self._tell(type(current_state).__name__)

    def _tell(self, state: str) -> None:
        self.ledger.attend.remote(state, ray.get_runtime_context().current_actor)


class _Carried:
    """What every worker runs, sent with the calls.

    Ray Train puts it into its object store. A driver that owns an object there is ended by Ray without
    a word (exit code 1) as soon as the machine that it is connected to ends.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def get(self) -> Callable[[], None]:
        """Return it; Ray Train's name for this."""
        return self._work


class _Trainer(TorchTrainer):  # type: ignore[misc]
    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        put = settings["train_fn_ref"]
        settings["train_fn_ref"] = _Carried(put.get())
        put._ref = None  # that was the only reference
        # The actor that hands out shards of Ray's own data sets, of which there are none.
        settings["callbacks"] = [
            callback
            for callback in settings["callbacks"]
            if not isinstance(callback, DatasetsCallback)
        ]
        if self.scaling_config.elasticity_enabled:
            settings["scaling_policy"] = FreePolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)


def train_loop(config: dict[str, Any]) -> None:
    """Body of every worker of the group; reports once, at the end (a report is a barrier)."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    box = [time.time_ns()]
    if world > 1:
        dist.broadcast_object_list(box, src=0)
    config["work"](config, f"rank-{rank}", box[0], world, GlooLanes(rank, world))
    ray.train.report({"rank": rank})


class TrainGroup:
    """One Train group of ``workers`` (a number, or ``(min, max)``) that runs ``config["work"]``
    until that returns on each of them.
    """

    def __init__(
        self,
        config: dict[str, Any],
        store: Store,
        workers: int | tuple[int, int],
        bundle: dict[str, float],
    ) -> None:
        self.name, self.store = f"train-{uuid.uuid4().hex[:8]}", store
        self.error: BaseException | None = None
        self._trainer = _Trainer(
            train_loop,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu="GPU" in bundle, resources_per_worker=bundle
            ),
            torch_config=TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(
                name=self.name,
                failure_config=ray.train.FailureConfig(max_failures=MAX_GROUP_RESTARTS),
                worker_runtime_env={"env_vars": worker_environment()},
                callbacks=[_Tell(config["ledger"])],
                **_train_storage(store),
            ),
        )

    def fit(self) -> None:
        """Run the group to its end; what it failed with is in ``error``."""
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 - handed to the driver's thread
            self.error = error
        finally:
            _remove_train_files(self.store, self.name)

    def abort(self, controller: Any) -> None:
        """End the group at once, also while it waits for machines; what it asked the autoscaler for is taken back."""
        if controller is not None:
            with contextlib.suppress(RayError):  # that is how it ends, or its cluster does
                try:
                    ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
                except GetTimeoutError:  # it waits for a placement group, which is removed with it
                    ray.kill(controller)
        with contextlib.suppress(RayError, ValueError):
            coordinator = ray.get_actor(
                "AutoscalingCoordinator", namespace="AutoscalingCoordinator"
            )
            requester = f"train-{self._trainer.train_run_context.run_id}"
            ray.get(
                coordinator.cancel_request.remote(requester_id=requester), timeout=ABORT_SECONDS
            )


def tidy() -> None:
    """End the actor that Ray Train leaves on the cluster, unless other jobs may use it."""
    from ray._private.worker import global_worker

    with contextlib.suppress(
        Exception
    ):  # a small actor left behind is no reason to fail a finished run
        jobs = global_worker.gcs_client.get_all_job_info().values()
        if (
            sum(
                not job.is_dead and not job.config.ray_namespace.startswith("_ray_internal")
                for job in jobs
            )
            == 1
        ):
            ray.kill(ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator"))


def _train_storage(store: Store) -> dict[str, Any]:
    """Return where Ray Train keeps its own few files: beside the units, through the same retries."""
    if store.storage.local:
        return {"storage_path": f"{store.url}/ray"}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {
        "storage_path": f"{store.storage.root}/ray",
        "storage_filesystem": PyFileSystem(FSSpecHandler(store.storage.fs)),
    }


def _remove_train_files(store: Store, name: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            store.storage.fs.rm(f"{store.storage.root.rstrip('/')}/ray/{name}", recursive=True)
    except Exception as error:  # noqa: BLE001 - a few left-over files are no reason to fail a finished run
        log.warning("left behind %s/ray/%s: %s", store.url, name, error)
