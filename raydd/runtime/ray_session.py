"""Connects to a Ray cluster, or starts one in this machine for the time of a run."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from raydd.core.errors import ConfigError
from raydd.core.numerics import ALLOCATOR_ENV

_DEFAULTS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else every worker builds an environment of its own under `uv run`
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def worker_environment() -> dict[str, str]:
    """Return the environment variables every worker process is started with."""
    return {**ALLOCATOR_ENV, **{k: v for k, v in _DEFAULTS.items() if k.startswith("RAY_TRAIN")}}


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's SIGTERM handler: ``ray.init`` puts one in its place that ends the process with nothing saved."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _group_apart() -> Iterator[None]:
    """Start processes in a process group of their own.

    A signal for this process's whole group (``timeout``, a batch system that ends a job) is then for this process to answer,
    which saves what is there and stops the others in order.
    """
    group = os.getpgrp()
    leader = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, process_group=0)
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
    """Refuse, as ``ConfigError``, ``least`` processes with ``gpus`` each where this machine alone could never place them."""
    if not gpus:
        return
    import torch

    found = torch.cuda.device_count()
    places = found // gpus if gpus >= 1 else found * int(1 / gpus)
    if places < least:
        raise ConfigError(
            f"compute.gpus_per_worker={gpus:g}: this machine has {found} GPUs, enough for {places:g} of at least {least} "
            "workers and evaluators; for a cluster set RAY_ADDRESS"
        )


@contextmanager
def ray_session(cpus: float, least: int = 1, gpus: float = 0.0) -> Iterator[str]:
    """Yield the dashboard's address of a connected cluster; one started here is stopped again.

    ``RAY_ADDRESS`` (set by ``ray job submit``) or a session already initialised is used as it is; else a local cluster with
    token authentication, bound to the loopback address, is started with at least ``cpus`` logical CPUs. ``ConfigError`` if that
    would have no room for ``least`` processes with ``gpus`` GPUs each: a cluster started elsewhere may yet scale up.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    if ray.is_initialized():
        yield "the running Ray session"
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        try:
            with _own_sigterm():
                context = ray.init(**quiet)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: cannot connect to a Ray cluster there: {error}") from error
    else:
        _check_gpus(least, gpus)
        with _own_sigterm(), _group_apart():
            context = ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, int(cpus + 0.999)),
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=512 << 20,
                _temp_dir=os.environ.get("RAYDD_RAY_TMP") or os.path.join(tempfile.gettempdir(), "ray"),
                **quiet,
            )
    try:
        yield context.dashboard_url or "none"
    finally:
        ray.shutdown()
