"""What the controller of a Ray Train group is handed. That process computes nothing: it imports no torch."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray import cloudpickle
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
)

from raydd.runtime.capacity import Need, room
from raydd.runtime.ray.ray_supply import machines

JOIN_SECONDS = 1800.0
"""For the workers of a group to meet, and for one to wait for another."""
LEAVE_SECONDS = 30.0


class FreePolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Counts what nobody else uses, where Ray counts what machines have: a group sized for that
    would wait for other jobs' ends.
    """

    def __init__(self, scaling_config: Any) -> None:
        super().__init__(scaling_config)
        self._held = 0

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return min(super()._count_possible_workers(reserved_resources), self._placed())

    def _placed(self) -> int:
        """Return how many workers the group has, or would find a place for."""
        each = self.scaling_config.resources_per_worker
        need = Need(self.scaling_config.min_workers, cpus=each["CPU"], gpus=each.get("GPU", 0.0))
        return self._held + room(machines(), need, free=True)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Note what the group is about to hold."""
        self._held = resize_decision.num_workers

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """A group that could not be started holds nothing; one that failed does, until its successor is started."""
        if isinstance(current_state, ReschedulingState):
            self._held = 0


class _NoRequests:
    """Of a group on a cluster that cannot grow and has no other job: Ray Train's actor that speaks for groups to the
    autoscaler is not started.
    """

    def _send_resource_request(self) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Ask for nothing."""

    def _cancel_resource_request(self) -> None:
        """Take nothing back."""


class LocalPolicy(_NoRequests, FixedScalingPolicy):  # type: ignore[misc]
    """Of a group of fixed size on a cluster of its own."""


class LocalFreePolicy(_NoRequests, FreePolicy):
    """Of an elastic group on a cluster of its own."""

    def _get_reserved_resources(self) -> dict[str, Any]:
        return {}

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return min(self._placed(), self.scaling_config.max_workers)


class Tell(ControllerCallback):  # type: ignore[misc]
    """Tells the ledger what the group's controller does, and who it is."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger

    def after_controller_start(self, train_run_context: Any) -> None:
        self._tell("InitializingState")

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        self._tell(type(current_state).__name__)

    def _tell(self, state: str) -> None:
        # Pickled: a handle brings all of Ray Train along, which the ledger passes on unread.
        own = cloudpickle.dumps(ray.get_runtime_context().current_actor)
        self.ledger.attend.remote(state, own)


class Carried:
    """What every worker runs, sent with the calls.

    Ray Train puts it into its object store. A driver that owns an object there is ended by Ray without
    a word (exit code 1) as soon as the machine that it is connected to ends.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def get(self) -> Callable[[], None]:
        """Return it; Ray Train's name for this."""
        return self._work


class TrainLoop:
    """Body of every worker of the group; reports once, at the end (a report is a barrier).

    ``config`` travels pickled, so that workers alone import what it is made of.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = cloudpickle.dumps(config)

    def __call__(self) -> None:
        import torch

        from raydd.runtime.ray.ray_lanes import GlooLanes, same_moment

        if torch.cuda.is_available():
            from ray.train.torch import get_device

            torch.cuda.set_device(get_device())
        config = cloudpickle.loads(self._config)
        context = ray.train.get_context()
        rank, world = context.get_world_rank(), context.get_world_size()
        moment = same_moment(time.time_ns(), world)
        config["work"](config, f"rank-{rank}", moment, world, GlooLanes(rank, world))
        ray.train.report({"rank": rank})


class GlooConfig(BackendConfig):  # type: ignore[misc]
    """Workers of a group share a process group of torch's, on CPUs; Ray's own configuration of one imports torch."""

    backend = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets it up."""
        return _Gloo


class _Gloo(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Have the workers meet at the first one's machine."""
        place, world = worker_group.execute_single(0, _meeting_place), len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, place, rank, world)
                for rank in range(world)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Have them part, if they still answer."""
        try:
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            return


_listening: list[socket.socket] = []
"""Where this process, the first of its group, waits for the others; taken over by the one that joins."""


def _meeting_place() -> tuple[str, int]:
    """Listen at a port of this machine's own address, and of no other; return both."""
    host = ray.util.get_node_ip_address()
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    listener.listen()
    _listening[:] = [listener]
    return host, listener.getsockname()[1]


def _join(place: tuple[str, int], rank: int, world: int) -> None:
    import torch.distributed as dist

    host, port = place
    timeout = timedelta(seconds=JOIN_SECONDS)
    listener = _listening.pop().detach() if rank == 0 else None
    store = dist.TCPStore(  # type: ignore[attr-defined] # torch exports it without a word
        host, port, world, rank == 0, timeout, wait_for_workers=False, master_listen_fd=listener
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)


def _leave() -> None:
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
