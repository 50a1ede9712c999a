"""Clusters that cannot give what a job asks, others' work on them, an autoscaler, a head that dies,
signals while nothing runs yet.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Cluster, head
from driving import Driver, distill, end, finish, overrides, refusal
from ray.util import get_node_ip_address

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
SHORT = ("method.iterations=8", "evaluation.every=null", "evaluation.baselines=[]")
BUSY = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
group = ray.util.placement_group([{"CPU": float(sys.argv[2])}])
ray.get(group.ready())
print("busy", flush=True)
time.sleep(600)
"""
NODE = "f" * 51 + "00000"
"""The id that Ray's fake machines want of their head."""


def at(cluster: Cluster) -> dict[str, str]:
    return cluster.environment | {"RAY_ADDRESS": cluster.address}


def left_by(driver: Driver, cluster: Cluster) -> list[Any]:
    """Return how many jobs a driver was on the cluster, what of them runs, which actors there are,
    and its placement groups.
    """
    jobs = [job for job in cluster.ask("/api/jobs/") if job["driver_info"]]
    own = [job for job in jobs if job["driver_info"]["pid"] == str(driver.process.pid)]
    actors = [a["class_name"] for a in cluster.states("actors") if a["state"] != "DEAD"]
    groups = [
        group["state"]
        for group in cluster.states("placement_groups")
        if group["creator_job_id"] in [job["job_id"] for job in own] and group["state"] != "REMOVED"
    ]
    alive = [job["status"] for job in own if job["status"] in ("PENDING", "RUNNING")]
    return [len(own), alive, [name for name in actors if name != "JobSupervisor"], groups]


@pytest.fixture
def busy(cluster: Cluster) -> Iterator[None]:
    """Another job, which holds 3 of the cluster's 4 CPUs."""
    command = [sys.executable, "-c", BUSY, cluster.address, "3"]
    other = subprocess.Popen(
        command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"busy\n"
        yield
    finally:
        end(other, signal.SIGKILL)


def test_what_never_can_be_given_is_refused_at_once(cluster: Cluster, tmp_path: Path) -> None:
    wrong = at(cluster) | {"RAY_AUTH_TOKEN": "0" * 64}
    asked = {
        "many": (at(cluster), ["compute.workers=5"]),
        "gpu": (at(cluster), ["compute.workers=1", "compute.gpus_per_worker=2"]),
        "token": (wrong, []),
        "dashboard": (at(cluster) | {"RAY_ADDRESS": cluster.dashboard.removeprefix("http://")}, []),
    }
    drivers = {}
    for name, (env, more) in asked.items():
        drivers[name] = distill(
            tmp_path / f"{name}.log", *overrides(tmp_path / name, 2, *SHORT, *more), env=env
        )
    said = {name: refusal(driver) for name, driver in drivers.items()}
    assert "compute.workers: 5 workers cannot be placed; the cluster has 4 CPUs" in said["many"]
    assert "Ask for at most 4 workers (compute.workers=4)" in said["many"]
    assert (
        "compute.gpus_per_worker: 1 worker of 2 GPUs cannot be placed; the cluster has 4 CPUs and 1 GPU"
        in said["gpu"]
    )
    assert (
        f"RAY_ADDRESS={cluster.address}: the cluster wants a token, and the one given here is not its token"
        in said["token"]
    )
    assert "a web server answers there, no head" in said["dashboard"]
    for driver in drivers.values():
        assert "] gcs_client" not in driver.text, "Ray's own words say less"
    assert left_by(drivers["many"], cluster) == [1, [], [], []]


@pytest.mark.usefixtures("busy")
def test_a_busy_cluster_is_waited_for_until_a_signal(cluster: Cluster, tmp_path: Path) -> None:
    driver = distill(tmp_path / "log", *overrides(tmp_path, 2, *SHORT), env=at(cluster))
    line = "waiting for 2 workers; the cluster has 4 CPUs (1 CPU free) (for at most"
    driver.until("it waits", lambda: line in driver.text)
    asked = time.monotonic()
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 130, driver.text
    assert time.monotonic() - asked < 20, "10 s on a machine that does nothing else"
    assert "Traceback" not in driver.text
    assert left_by(driver, cluster) == [1, [], [], []]


@pytest.mark.usefixtures("busy")
def test_an_elastic_group_takes_what_others_leave(cluster: Cluster, tmp_path: Path) -> None:
    limited = distill(
        tmp_path / "limited.log",
        *overrides(tmp_path / "limited", 2, *SHORT, "compute.wait=1"),
        env=at(cluster),
    )
    driver = distill(
        tmp_path / "log", *overrides(tmp_path, 0, *SHORT, "compute.workers=[1,4]"), env=at(cluster)
    )
    assert "not there after 1 s. The same command goes on once it is" in refusal(limited, code=1)
    assert "waiting for" not in finish(driver)
    jobs, alive, actors, groups = left_by(driver, cluster)
    assert (jobs, alive, groups) == (1, [], [])
    assert set(actors) <= {"_AutoscalingCoordinatorActor"}, (
        "Ray Train's, which the other job might use"
    )


def one_more(address: str) -> dict[str, Any]:
    """Return the configuration of an autoscaler whose machines are processes here: at most one of 1
    CPU beside the head.
    """
    machine = {"resources": {"CPU": 1}, "node_config": {}}
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": NODE,
        "gcs_address": address,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    commands = (
        "initialization",
        "setup",
        "head_setup",
        "worker_setup",
        "head_start_ray",
        "worker_start_ray",
    )
    kinds = {
        "ray.head.default": machine | {"max_workers": 0},
        "small": machine | {"min_workers": 0, "max_workers": 1},
    }
    files = {
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    facts = {
        "cluster_name": "fake",
        "max_workers": 1,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "auth": {},
        "docker": {},
    }
    return (
        facts
        | files
        | {
            "provider": provider,
            "head_node_type": "ray.head.default",
            "available_node_types": kinds,
            **{f"{name}_commands": [] for name in commands},
        }
    )


@pytest.mark.timeout(
    1200
)  # heads, machines and workers start in turn, each slowly where much else runs
def test_an_autoscaler_is_waited_for_as_far_as_it_goes_and_a_head_that_dies_is_told(
    tmp_path: Path,
) -> None:
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
    }
    ids = {"RAY_CLOUD_INSTANCE_ID": NODE, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": NODE}
    with head("--num-cpus=1", autoscaler=one_more, **variables, **ids) as growing:
        cluster = replace(
            growing, address=growing.address.replace("127.0.0.1", get_node_ip_address())
        )
        text = refusal(
            distill(
                tmp_path / "many.log", *overrides(tmp_path / "many", 3, *SHORT), env=at(cluster)
            )
        )
        assert (
            "3 workers cannot be placed; the cluster has 1 CPU, and its autoscaler can start no more machines for them"
            in text
        )
        driver = distill(
            tmp_path / "log",
            *overrides(tmp_path, 2, "method.iterations=100000", "evaluation.baselines=[]"),
            env=at(cluster),
        )
        driver.until(
            "it waits", lambda: "waiting for 2 workers; the cluster has 1 CPU" in driver.text
        )
        driver.until("it works", lambda: "distill/MatchDistributions" in driver.text, timeout=480)
    assert driver.wait(100) == 1, driver.text
    assert f"error: the cluster at {cluster.address} is gone" in driver.text, driver.text
    assert "Traceback" not in driver.text, driver.text


def test_a_driver_outlives_the_machine_that_it_is_connected_to(tmp_path: Path) -> None:
    """And says so, though the head still answers."""
    with head("--node-ip-address=127.0.0.1", "--num-cpus=2") as cluster:
        updates = ("method.iterations=100000", "evaluation.baselines=[]")
        driver = distill(tmp_path / "log", *overrides(tmp_path, 1, *updates), env=at(cluster))
        driver.until("it works", lambda: "distill/MatchDistributions" in driver.text, timeout=480)
        folder = Path(cluster.folder).name
        ours = [
            p for p in psutil.process_iter(["name", "cmdline"]) if folder in str(p.info["cmdline"])
        ]
        starter = next(p for p in ours if "--head" in p.info["cmdline"])
        starter.suspend()  # else it ends the head as well
        next(p for p in ours if p.info["name"] == "raylet").terminate()
        try:
            assert driver.wait(120) == 1, driver.text
        finally:
            starter.resume()
    port = cluster.address.rpartition(":")[2]
    told = f"error: the machine through which this job was on the cluster at .*:{port} has ended"
    assert re.search(told, driver.text), driver.text
    assert "Traceback" not in driver.text, driver.text
