"""Connects to a Ray cluster, or starts one in this machine for the time of a run."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from raydd.core.allocator import ALLOCATOR_ENV
from raydd.core.errors import ConfigError, RunFailed, first_line
from raydd.runtime.ray.ray_address import Cancelled, check_head, find_address, waiting_for
from raydd.runtime.ray.ray_pulse import cluster_answers

_UV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_DEFAULTS = {
    _UV: "0",  # else every worker builds an environment of its own under `uv run`
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # For placing a group. After a machine vanished, its place is asked for until Ray misses it; then the group is
    # made anew, with those that are left.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    # Larger arguments would lie in an object store, and a driver that owns such objects is ended by Ray
    # without a word when the machine that it is connected to ends.
    "RAY_max_direct_call_object_size": str(8 << 20),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables, which it prints even where nothing is to be printed
}
_MANY_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Whether Ray takes other machines into a cluster, on any system; if not, all its processes listen on the loopback
address alone.
"""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
INIT_SECONDS = 30.0
"""For ``ray.init`` on a cluster whose head has answered."""
SHUTDOWN_SECONDS = 30.0
PARTING_SECONDS = 5.0
"""For leaving a cluster whose head is gone: Ray would ask it for longer than a minute, then end
this process without a word.
"""
log = logging.getLogger(__name__)


def worker_environment() -> dict[str, str]:
    """Return the environment variables every worker process is started with."""
    return {**ALLOCATOR_ENV, **{k: v for k, v in _DEFAULTS.items() if k.startswith("RAY_TRAIN")}}


def _share_environment() -> None:
    """Have workers use this process's environment under `uv run`, also where Ray was imported, and read its settings,
    before.
    """
    from ray._private import ray_constants

    if hasattr(ray_constants, _UV):
        setattr(ray_constants, _UV, False)


@contextmanager
def _loopback() -> Iterator[None]:
    """Have the Ray that is started here, and the process groups of its workers, listen on the loopback
    address alone: by itself Ray would on all of this machine's.
    """
    from ray._private import ray_constants

    lo = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    given = {_MANY_MACHINES: "0"} | ({} if lo is None else {"GLOO_SOCKET_IFNAME": lo})
    before = {name: os.environ.get(name) for name in given}
    many = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(given)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = many
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's SIGTERM handler: ``ray.init`` puts others in its place that end the
    process with nothing saved.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _group_apart() -> Iterator[None]:
    """Start processes in a process group of their own.

    A signal for this process's whole group (``timeout``, a batch system that ends a job) is then
    for this process to answer, which saves what is there and stops the others in order.
    """
    group = os.getpgrp()
    leader = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, process_group=0
    )
    try:
        try:
            os.setpgid(0, leader.pid)
        except PermissionError:  # the first process of a session stays in its group
            group = 0
        yield
    finally:
        if group:
            with suppress(PermissionError):  # the group has ended meanwhile
                os.setpgid(0, group)
        leader.kill()
        leader.communicate()


def _check_gpus(least: int, gpus: float) -> None:
    """Refuse, as ``ConfigError``, ``least`` processes with ``gpus`` each where this machine alone
    could never place them.
    """
    if not gpus:
        return
    import torch

    found = torch.cuda.device_count()
    places = found // gpus if gpus >= 1 else found * int(1 / gpus)
    if places < least:
        raise ConfigError(
            f"compute.gpus_per_worker={gpus:g}: this machine has {found} GPUs, enough for {places:g} of at least"
            f" {least} workers and evaluators; for a cluster set RAY_ADDRESS"
        )


_own = False
"""Whether this process has started the cluster that it is connected to."""


def is_own() -> bool:
    """Whether the connected cluster is one that ``ray_session`` has started in this process: of this machine alone,
    and without another job.
    """
    return _own


def remote_address() -> str | None:
    """Return what ``RAY_ADDRESS`` says of a cluster that was there before; ``None`` where one is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def _connect(cancelled: Callable[[], bool]) -> Any:
    """Connect to the cluster of ``RAY_ADDRESS``; ``ConfigError`` for whatever is there instead."""
    import ray

    said = remote_address() or ""
    address = find_address(cancelled) if said == "auto" else said
    check_head(address, cancelled)

    # In a thread Ray leaves SIGTERM alone, and regrets it.
    logging.getLogger("ray._private.worker").addFilter(
        lambda record: not record.getMessage().startswith("SIGTERM handler is not set")
    )
    try:
        if not _machine_of_a_cluster():
            raise ConnectionError("no Ray process runs on this machine")
        with _own_sigterm():
            return waiting_for(
                lambda: ray.init(address=address, **_QUIET), INIT_SECONDS, cancelled, "ray.init"
            )
    except (
        OSError,
        RuntimeError,
        ValueError,
        ray.exceptions.RayError,
    ) as error:  # ConnectionError and TimeoutError are OSErrors
        raise ConfigError(
            f"RAY_ADDRESS={said}: a head answers there, but this process cannot join its cluster: {first_line(error)}."
            " Is this one of the cluster's machines (`ray start --address=…`)? From outside, hand the job in with `ray"
            " job submit`"
        ) from error


def _machine_of_a_cluster() -> bool:
    """Whether a raylet runs here; without one ``ray.init`` looks for it for a minute."""
    from ray._private.services import find_node_ids

    return bool(find_node_ids())


def _start(cpus: float, least: int, gpus: float) -> Any:
    """Start a cluster of this machine alone; ``RAYDD_RAY_DASHBOARD=0`` spares its dashboard's ten processes."""
    import ray

    _check_gpus(least, gpus)
    try:
        with _own_sigterm(), _group_apart():
            return ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, int(cpus + 0.999)),
                include_dashboard=os.environ.get("RAYDD_RAY_DASHBOARD") != "0",
                dashboard_host="127.0.0.1",
                object_store_memory=512 << 20,
                _temp_dir=os.environ.get("RAYDD_RAY_TMP")
                or os.path.join(tempfile.gettempdir(), "ray"),
                **_QUIET,
            )
    except Exception as error:  # Ray raises nothing more precise than Exception here
        _shutdown()
        raise RunFailed(
            f"Ray could not be started on this machine: {first_line(error)}. A busy machine may need more time "
            "than Ray gives itself: try again, or compute here with compute.workers=0"
        ) from error
    except SystemExit:  # Ray's answer to SIGTERM while it starts; ours comes now
        os.kill(os.getpid(), signal.SIGTERM)
        _shutdown()
        raise Cancelled("ray.init") from None


def _shutdown() -> None:
    """Disconnect, and stop what was started here; a cluster that is gone must not keep us."""
    import ray

    gone = remote_address() is not None and ray.is_initialized() and not cluster_answers()
    seconds = PARTING_SECONDS if gone else SHUTDOWN_SECONDS
    try:
        waiting_for(ray.shutdown, seconds, lambda: False, "ray.shutdown")
    except TimeoutError:
        log.debug("ray.shutdown took more than %g s", seconds)


@contextmanager
def ray_session(
    cpus: float, least: int = 1, gpus: float = 0.0, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[str]:
    """Yield the dashboard's address of a connected cluster; one started here is stopped again.

    ``RAY_ADDRESS`` (set by ``ray job submit``) or a session already initialised is used as it is;
    else a local cluster with token authentication (unless Ray was imported before), bound to the
    loopback address, is started with at least ``cpus`` logical CPUs. ``ConfigError`` if that would
    have no room for ``least`` processes with ``gpus`` GPUs each, or if there is no cluster at the
    address. ``Cancelled`` as soon as ``cancelled()`` is true while it connects.
    """
    asked = _UV in os.environ
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "TORCH_HOME" in os.environ:  # workers run in folders of their own
        os.environ["TORCH_HOME"] = os.path.abspath(os.path.expanduser(os.environ["TORCH_HOME"]))
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if given or (
        remote_address() is not None and os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # without it Ray sends no token
    elif (
        remote_address() is None and "ray" not in sys.modules
    ):  # Ray keeps the mode that it found when it was first used
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    if not asked:
        _share_environment()
    if ray.is_initialized():
        yield "the running Ray session"
        return
    own = remote_address() is None
    # An actor for each group that asks which machines are about to be taken away.
    unwatched = own and _WATCHER not in os.environ
    if unwatched:
        os.environ[_WATCHER] = "0"
    global _own
    with _loopback() if own else nullcontext():
        context = _start(cpus, least, gpus) if own else _connect(cancelled)
        _own = own
        try:
            if cancelled():
                raise Cancelled("ray.init")
            yield context.dashboard_url or "none"
        finally:
            _own = False
            _shutdown()
            if unwatched:
                os.environ.pop(_WATCHER, None)
