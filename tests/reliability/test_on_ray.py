"""Processes of jobs on Ray killed at random moments: workers, the ledger's, the driver, a node, servers; and signals.

One method without lanes, one with, one whose labels are written in place. The long series only: each row starts
clusters.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from dying import outputs, published, small_job
from fault_rows import HERE, Row, Tally

from raydd.config import load_job
from raydd.runtime.control import Control
from raydd.runtime.pipeline import run_job

sys.path.append(str(HERE.parent / "integration"))
from driving import Driver, _title, end, environment, finish, free_ports, left, records

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(1500)]
METHODS = {"dm": "no lanes", "dsa": "lanes", "edc": "labels in place"}
SEED = 19
KILLS = 10
SECONDS = 16.0
"""Seconds of a processor that a job's updates take."""
GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL of `ray job stop`."""
SAME = (
    "the same bytes as in one process undisturbed; no output is written twice; no process is left"
)


def rows_of(fault: str, test: str, outcome: str = SAME, methods: Any = METHODS) -> list[Row]:
    """Return a row for each method."""
    return [
        Row("ray", f"{name} ({METHODS[name]})", fault, outcome, test, data=name) for name in methods
    ]


WORKERS = rows_of(f"SIGKILL of a worker, at {KILLS} random moments", "test_workers_are_killed")
LEDGERS = rows_of("SIGKILL of the ledger's process", "test_the_ledger_is_killed")
DRIVERS = rows_of("SIGKILL of the driver, at three random moments", "test_drivers_are_killed")
SIGNALS = [
    row
    for name in ("SIGTERM", "SIGINT")
    for row in rows_of(
        f"{name}, and SIGKILL {GRACE:.0f} s later",
        "test_a_signal_saves_the_state_in_time",
        f"every unit under work has a checkpoint by then; {SAME}",
    )
]
STORES = rows_of("SIGKILL of the S3 server, back after 5 s", "test_the_s3_server_is_killed")
NODES = rows_of("SIGKILL of a node", "test_a_node_is_killed")
TRACKERS = rows_of(
    "SIGKILL of the MLflow server", "test_the_mlflow_server_is_killed", methods=["dm"]
)
ROWS = [*WORKERS, *LEDGERS, *DRIVERS, *SIGNALS, *STORES, *NODES, *TRACKERS]


@cache
def servers() -> Any:
    """Return the module that starts S3 servers and clusters."""
    place = importlib.util.spec_from_file_location(
        "integration_servers", HERE.parent / "integration" / "conftest.py"
    )
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module
    place.loader.exec_module(module)
    return module


STARTED: list[Driver] = []
"""Drivers that a test has started."""


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    """End, after a test that failed, what it has started."""
    yield
    for driver in STARTED:
        if driver.process.poll() is None:
            driver.kill()
    STARTED.clear()


@dataclass(frozen=True)
class Paced:
    """A method's job whose updates take some seconds, and what an undisturbed run in this process left."""

    name: str
    updates: int
    folder: Path

    def overrides(self, folder: Path, workers: str, *more: str) -> list[str]:
        """Return the overrides of the job."""
        pace = [f"method.iterations={self.updates}", f"evaluation.every={self.updates // 2}"]
        own = [f"compute.workers={workers}", "compute.checkpoint_every=0.5", *pace, *more]
        return [*small_job(self.name, folder), *own]

    def start(
        self, folder: Path, log: Path, *more: str, workers: str = "2", env: Any = None
    ) -> Driver:
        """Start the job on Ray."""
        file = log.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(load_job(None, self.overrides(folder, workers, *more)).to_yaml())
        driver = Driver(["raydd.distill", "--config", str(file)], log, env)
        STARTED.append(driver)
        return driver

    def check(self, folder: Path, *, local: bool = True) -> None:
        """Compare what a run left with the undisturbed one."""
        assert published(folder) == published(self.folder)
        if local:
            assert outputs(folder) == outputs(self.folder)
        lines = [line for line in records(folder / "out") if line["kind"] == "output"]
        done = [(line["key"], line["output"]) for line in lines]
        assert len(done) == len(set(done))
        assert not (folder / "out" / "lock.json").exists()


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Paced]:
    """A method's name → its job."""

    @cache
    def get(name: str) -> Paced:
        folder = tmp_path_factory.mktemp(f"whole-{name}")
        few = Paced(name, 40, folder / "few")
        few.folder.mkdir()
        begun = time.process_time()
        run_job(load_job(None, few.overrides(few.folder, "0")), lambda line: None, Control())
        each = (time.process_time() - begun) / few.updates
        made = Paced(name, 2 * max(40, int(SECONDS / each / 2)), folder / "whole")
        run_job(load_job(None, made.overrides(made.folder, "0")), lambda line: None, Control())
        return made

    return get


def told(folder: Path, *kinds: str) -> int:
    """Return how many lines of some kinds the log has."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return sum(line["kind"] in kinds for line in records(folder / "out"))
    return 0


def works(driver: Driver, folder: Path, before: int = 0) -> bool:
    """Wait until workers have made updates since so many lines were there; return whether the driver still runs."""
    until = time.monotonic() + 400
    while driver.process.poll() is None and time.monotonic() < until:
        if told(folder, "start", "log") > before and driver.workers():
            return True
        time.sleep(0.1)
    assert driver.process.poll() is not None, f"no work in 400 s:\n{driver.text}"
    return False


def ended(driver: Driver, below: list[psutil.Process]) -> None:
    """Wait for a driver to succeed, and for all processes below it to end."""
    finish(driver, 600)
    assert not left(below)


@pytest.mark.parametrize("row", WORKERS, ids=str)
def test_workers_are_killed(
    row: Row, paced: Callable[[str], Paced], tmp_path: Path, tally: Tally
) -> None:
    job, moments, kills = paced(row.data), random.Random(SEED), 0
    for run in range(8):
        if kills == KILLS:
            break
        folder = tmp_path / str(run)
        driver, lines = job.start(folder, tmp_path / f"{run}.log"), 0
        while kills < KILLS and works(driver, folder, lines):
            time.sleep(moments.uniform(0.2, 4.0))
            workers = driver.workers()
            lines = told(folder, "start", "log")
            if driver.process.poll() is None and workers:
                moments.choice(workers).kill()
                kills += 1
                assert not left(workers), "a group ends with one of its workers"
        finish(driver, 600)
        job.check(folder)
    assert kills == KILLS
    tally(row, kills, f"{run} jobs")


@pytest.mark.parametrize("row", LEDGERS, ids=str)
def test_the_ledger_is_killed(
    row: Row, paced: Callable[[str], Paced], tmp_path: Path, tally: Tally
) -> None:
    job = paced(row.data)
    driver = job.start(tmp_path, tmp_path / "log")
    assert works(driver, tmp_path)
    ledgers = [process for process in driver.cluster() if "LedgerActor" in _title(process)]
    assert len(ledgers) == 1
    time.sleep(random.Random(SEED).uniform(0.2, 3.0))
    ledgers[0].kill()
    ended(driver, driver.cluster())
    job.check(tmp_path)
    tally(row, 1)


@pytest.mark.parametrize("row", DRIVERS, ids=str)
def test_drivers_are_killed(
    row: Row, paced: Callable[[str], Paced], tmp_path: Path, tally: Tally
) -> None:
    job, moments, kills = paced(row.data), random.Random(SEED), 0
    for number in range(3):
        lines = told(tmp_path, "start", "log")
        driver = job.start(tmp_path, tmp_path / f"{number}.log")
        if not works(driver, tmp_path, lines):
            break
        time.sleep(moments.uniform(0.2, 4.0))
        below = driver.cluster() if driver.process.poll() is None else []
        kills += driver.process.poll() is None
        driver.kill()
        assert not left(below), "the cluster ends with its driver"
    finish(job.start(tmp_path, tmp_path / "last.log"), 600)
    job.check(tmp_path)
    tally(row, kills)


@pytest.mark.parametrize("row", SIGNALS, ids=str)
def test_a_signal_saves_the_state_in_time(
    row: Row, paced: Callable[[str], Paced], tmp_path: Path, tally: Tally
) -> None:
    job = paced(row.data)
    driver = job.start(tmp_path, tmp_path / "log", "compute.checkpoint_every=600")
    assert works(driver, tmp_path)
    time.sleep(2)
    below, sent = driver.cluster(), time.time()
    driver.process.send_signal(signal.Signals[row.fault.split(",")[0]])
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.process.wait(GRACE)
    driver.kill()
    states = list((tmp_path / "store" / "units").rglob("state-*.safetensors"))
    saved = [path.stat().st_mtime - sent for path in states if path.stat().st_mtime >= sent]
    assert saved, f"nothing was saved within {GRACE} s:\n{driver.text}"
    assert not left(below)
    finish(job.start(tmp_path, tmp_path / "last.log"), 600)
    job.check(tmp_path)
    tally(row, 1, f"the last checkpoint {max(saved):.1f} s after the signal")


@pytest.mark.parametrize("row", STORES, ids=str)
def test_the_s3_server_is_killed(
    row: Row, paced: Callable[[str], Paced], tmp_path: Path, tally: Tally
) -> None:
    job, server = paced(row.data), servers().S3Server(tmp_path / "s3")
    server.folder.mkdir()
    server.start()
    try:
        env = environment(**server.environment) | {"RAYDD_STORAGE_RETRY_S": "120"}
        driver = job.start(tmp_path, tmp_path / "log", f"store={server.url('store')}", env=env)
        assert works(driver, tmp_path)
        time.sleep(random.Random(SEED).uniform(0.2, 3.0))
        below = driver.cluster()
        server.restart(after=5)
        ended(driver, below)
        job.check(tmp_path, local=False)
    finally:
        server.kill()
    tally(row, 1)


@contextlib.contextmanager
def node(cluster: Any, log: Path) -> Iterator[psutil.Process]:
    """Start another machine of a cluster, of one processor; end it."""
    command = [str(Path(sys.executable).parent / "ray"), "start", f"--address={cluster.address}"]
    command += ["--num-cpus=1", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    with log.open("wb") as file:
        started = subprocess.Popen(command, stdout=file, stderr=file, env=cluster.environment)
    process = psutil.Process(started.pid)
    try:
        until = time.monotonic() + 200
        while "Ray runtime started" not in log.read_text() and time.monotonic() < until:
            assert started.poll() is None, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        ours = process.children(recursive=True) if started.poll() is None else []
        end(started, signal.SIGTERM)
        for child in psutil.wait_procs(ours, timeout=10)[1]:
            child.kill()


@pytest.mark.parametrize("row", NODES, ids=str)
def test_a_node_is_killed(
    row: Row, paced: Callable[[str], Paced], tmp_path: Path, tally: Tally
) -> None:
    job = paced(row.data)
    with (
        servers().head("--node-ip-address=127.0.0.1", "--num-cpus=1") as cluster,
        node(cluster, tmp_path / "node.log") as machine,
    ):
        env = cluster.environment | {"RAY_ADDRESS": cluster.address}
        driver = job.start(tmp_path, tmp_path / "log", workers="[1,2]", env=env)
        driver.until(
            "both machines work",
            lambda: (
                any("RayTrainWorker" in _title(p) for p in machine.children(recursive=True))
                and told(tmp_path, "start", "log")
            ),
        )
        time.sleep(random.Random(SEED).uniform(0.2, 3.0))
        machine.suspend()  # else it would end its processes in good order
        for process in [*machine.children(recursive=True), machine]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        finish(driver, 600)
    job.check(tmp_path)
    tally(row, 1)


@pytest.mark.parametrize("row", TRACKERS, ids=str)
def test_the_mlflow_server_is_killed(
    row: Row, paced: Callable[[str], Paced], tmp_path: Path, tally: Tally
) -> None:
    job, (port,) = paced(row.data), free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    command += [f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db", "--workers=1"]
    with (tmp_path / "mlflow.log").open("wb") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment(), cwd=tmp_path, process_group=0
        )
    try:
        until = time.monotonic() + 120
        while "Uvicorn running" not in (tmp_path / "mlflow.log").read_text():
            assert server.poll() is None, (tmp_path / "mlflow.log").read_text()
            assert time.monotonic() < until, (tmp_path / "mlflow.log").read_text()
            time.sleep(0.3)
        uri = f"tracking.uri=http://127.0.0.1:{port}"
        driver = job.start(tmp_path, tmp_path / "log", uri)
        assert works(driver, tmp_path)
        below = driver.cluster()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        ended(driver, below)
    finally:
        end(server, signal.SIGKILL)
    job.check(tmp_path)
    tally(row, 1)
