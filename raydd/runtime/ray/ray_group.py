"""The Ray Train group: workers that live and die together, and are more or fewer as machines come and go."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from raydd.core.store import Store
from raydd.runtime.ray.ray_controller import (
    Carried,
    FreePolicy,
    GlooConfig,
    LocalFreePolicy,
    LocalPolicy,
    Tell,
    TrainLoop,
)
from raydd.runtime.ray.ray_session import is_own, worker_environment

log = logging.getLogger(__name__)
MAX_GROUP_RESTARTS = 200
ABORT_SECONDS = 3.0
Work = Callable[[dict[str, Any], str, int, int, Any], None]


class _Trainer(TorchTrainer):  # type: ignore[misc]
    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        put = settings["train_fn_ref"]
        settings["train_fn_ref"] = Carried(put.get())
        put._ref = None  # that was the only reference
        settings["callbacks"] = [
            callback for callback in settings["callbacks"] if not isinstance(callback, _needless())
        ]
        if is_own():
            elastic = self.scaling_config.elasticity_enabled
            settings["scaling_policy"] = (LocalFreePolicy if elastic else LocalPolicy)(
                self.scaling_config
            )
        elif self.scaling_config.elasticity_enabled:
            settings["scaling_policy"] = FreePolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)


def _needless() -> tuple[type, ...]:
    """Return what Ray Train would start an actor for that has nothing to do here.

    One hands out shards of Ray's own data sets, of which there are none. The other removes the group's placement
    group where the controller ends before it: where a driver runs the group Ray does so itself, as that ends, too.
    """
    from ray._private.worker import SCRIPT_MODE, global_worker

    drives = global_worker.mode == SCRIPT_MODE
    return (DatasetsCallback, PlacementGroupCleanerCallback) if drives else (DatasetsCallback,)


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
            TrainLoop(config),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu="GPU" in bundle, resources_per_worker=bundle
            ),
            torch_config=GlooConfig(),
            run_config=ray.train.RunConfig(
                name=self.name,
                failure_config=ray.train.FailureConfig(max_failures=MAX_GROUP_RESTARTS),
                worker_runtime_env={"env_vars": worker_environment()},
                callbacks=[Tell(config["ledger"])],
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

    def abort(self, pickled: bytes) -> None:
        """End the group at once, also while it waits for machines; what it asked the autoscaler for is taken back."""
        if pickled:
            controller = cloudpickle.loads(pickled)
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
