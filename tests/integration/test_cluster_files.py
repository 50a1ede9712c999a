"""The commands that the files of ``cluster/`` tell, and the two nodes of its local one, run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from cluster_files import CLUSTER, ROOT, Submission, submissions
from conftest import Cluster
from driving import TINY, end, environment, free_ports, left, records

import raydd

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
FILES = ["aws.yaml", "gcp.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]
QUICK = [
    *(word for word in TINY if not word.startswith(("method.iterations", "evaluation.every"))),
    *("method.iterations=4", "evaluation.every=null", "evaluation.baselines=[]"),
]
REPLACED = ("dataset.shards=", "output=", "store=")
TWO_NODES = CLUSTER / "local_two_nodes.sh"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a person submits from: a copy of the code and the jobs."""
    folder = tmp_path_factory.mktemp("checkout")
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("raydd", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    return folder


def replaced(told: Submission, dashboard: str, folder: Path) -> list[str]:
    """Return a submission with its address, its job file (and that job's data) and its places replaced."""
    options = [dashboard if word.startswith("http://") else word for word in told.options]
    entry = ["jobs/quickstart.yaml" if word == told.config else word for word in told.entrypoint]
    entry = [word for word in entry if not word.startswith(REPLACED)]
    return [*options, "--", *entry, f"output={folder}/out", f"store={folder}/store", *QUICK]


def submit(words: list[str], checkout: Path, token: str) -> subprocess.CompletedProcess[str]:
    """Run a submission in a shell that has the token, and nothing that says there is one but the command itself."""
    return subprocess.run(
        ["env", *words],
        cwd=checkout,
        env=environment(RAY_AUTH_TOKEN=token),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_tells_to_submit_runs(
    cluster: Cluster, checkout: Path, tmp_path: Path, name: str
) -> None:
    (told,) = submissions(CLUSTER / name)
    if "--working-dir" not in told.options:  # the image has raydd and the jobs
        told = Submission(name, [*told.options, "--working-dir", "."], told.entrypoint)
    words = replaced(told, cluster.dashboard, tmp_path)
    assert {"compute.workers=[1,8]", "compute.gpus_per_worker=1"} < set(words)
    done = submit(words, checkout, cluster.environment["RAY_AUTH_TOKEN"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(raydd.load(str(tmp_path / "out/distilled"))) == 10
    workers = {line["worker"] for line in records(tmp_path / "out") if line.get("worker")}
    assert workers == {"rank-0"}, "one for each GPU"


def test_without_the_token_nothing_is_submitted(
    cluster: Cluster, checkout: Path, tmp_path: Path
) -> None:
    (told,) = submissions(CLUSTER / "aws.yaml")
    words = replaced(told, cluster.dashboard, tmp_path)
    done = submit(words, checkout, "0" * 64)
    assert done.returncode == 1
    assert re.search(r"[Ii]nvalid|[Uu]nauthori[sz]ed|[Ff]orbidden", done.stdout + done.stderr)
    assert not (tmp_path / "out").exists()


def base_port() -> int:
    """Return a port above which those that the script counts on are free, too."""
    from driving import _is_free

    while True:
        (port,) = free_ports(1)
        if all(map(_is_free, range(port + 1000, port + 1014))):
            return port


def test_two_nodes_of_this_machine_run_a_job_and_go(checkout: Path, tmp_path: Path) -> None:
    port, (dashboard,) = base_port(), free_ports(1)
    token = os.urandom(32).hex()
    folder = Path(tempfile.mkdtemp(prefix="raydd-two-", dir="/tmp"))  # sockets need short paths
    given = {"RAY_raylet_start_wait_time_s": "240", "RAY_AUTH_TOKEN": token, "CPUS": "2"}
    given |= {"PORT": str(port), "DASHBOARD": str(dashboard), "FOLDER": str(folder)}
    log = tmp_path / "nodes.log"
    with log.open("wb") as file:
        script = subprocess.Popen(
            [str(TWO_NODES)], stdout=file, stderr=file, env=environment(**given), cwd=tmp_path
        )
    try:
        until = time.monotonic() + 400
        while "two nodes" not in log.read_text():
            assert script.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        (told,) = submissions(TWO_NODES)
        words = replaced(told, f"http://127.0.0.1:{dashboard}", tmp_path)
        done = submit(words, checkout, token)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(raydd.load(str(tmp_path / "out/distilled"))) == 10
        names = {
            process: process.name()
            for process in psutil.Process(script.pid).children(recursive=True)
        }
        raylets = [name for name in names.values() if name == "raylet"]
        assert len(raylets) == 2, "the head's took no work: it has no CPU"
        end(script, signal.SIGTERM, timeout=120)
        assert script.returncode == 0, log.read_text()
        assert left([process for process, name in names.items() if "Agent" not in name]) == []
    finally:
        end(script, signal.SIGTERM, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_node_that_does_not_start_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (tmp_path / "ray").write_text(
        '#!/bin/sh\n[ "$1" = start ] || exit 0\necho "no port is free"; exit 1\n'
    )
    (tmp_path / "ray").chmod(0o755)
    env = environment(FOLDER=str(folder))
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        [str(TWO_NODES)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "the head did not start" in done.stderr
    assert "no port is free" in done.stderr
