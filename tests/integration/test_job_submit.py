"""Jobs handed to a running cluster: ``ray start --head``, then ``ray job submit … -- python -m raydd.distill …``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cluster
from driving import REPOSITORY, overrides, records

import raydd
from raydd.core.store import versions

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a job needs of the repository, recognisable by its version."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        REPOSITORY / "raydd", folder / "raydd", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(REPOSITORY / "jobs", folder / "jobs")
    start = folder / "raydd/__init__.py"
    start.write_text(
        start.read_text().replace(
            f'__version__ = "{raydd.__version__}"', f'__version__ = "{raydd.__version__}+submitted"'
        )
    )
    return folder


def ray_job(
    cluster: Cluster, *args: str, cwd: Path, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    env = cluster.environment | {"RAY_ADDRESS": cluster.dashboard}
    return subprocess.run(
        [RAY, "job", *args],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def submit(
    cluster: Cluster, checkout: Path, name: str, *args: str
) -> subprocess.CompletedProcess[str]:
    entry = ["python", "-m", "raydd.distill", "--config", "jobs/quickstart.yaml", *args]
    return ray_job(
        cluster, "submit", "--submission-id", name, "--working-dir", ".", "--", *entry, cwd=checkout
    )


def test_a_submitted_job_runs_the_submitted_code_on_the_cluster(
    cluster: Cluster, checkout: Path, tmp_path: Path
) -> None:
    done = submit(
        cluster,
        checkout,
        "good",
        *overrides(tmp_path, 2, "method.iterations=40", "evaluation.every=20"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert re.search(rf"set +{re.escape(str(tmp_path))}/out/distilled", done.stdout)
    assert "warning: " not in done.stdout, "absolute places are safe"
    assert len(raydd.load(str(tmp_path / "out/distilled"))) == 10
    groups = {line["worker"] for line in records(tmp_path / "out") if line.get("worker")}
    assert groups <= {"rank-0", "rank-1", "group"}
    markers = [path.read_text() for path in (tmp_path / "store/units").rglob("*.json")]
    assert markers
    assert all(f'"{versions()["raydd"]}+submitted"' in marker for marker in markers), (
        "workers import the submitted code"
    )


def test_a_bad_job_fails_with_its_message_in_the_job_logs(
    cluster: Cluster, checkout: Path, tmp_path: Path
) -> None:
    done = submit(cluster, checkout, "bad", *overrides(tmp_path, 2, "method.lr_imgg=1"))
    assert done.returncode == 1, done.stdout + done.stderr
    # `ray job submit` itself ends with 1 whatever it was.
    assert cluster.ask("/api/jobs/bad")["driver_exit_code"] == 2
    logs = ray_job(cluster, "logs", "bad", cwd=tmp_path)
    assert logs.returncode == 0, logs.stderr
    assert "error: jobs/quickstart.yaml: method.lr_imgg" in logs.stdout
    assert "did you mean 'lr_img'?" in logs.stdout
    assert "Traceback" not in logs.stdout
    assert not (tmp_path / "out").exists()


def test_places_in_rays_copy_of_the_working_directory_are_pointed_out(
    cluster: Cluster, checkout: Path, tmp_path: Path
) -> None:
    short = ("method.iterations=4", "evaluation.every=null", "evaluation.baselines=[]")
    mixed = [f"store={tmp_path}/store", *short]  # later overrides win
    done = submit(cluster, checkout, "relative", *overrides("runs/here", 0, *mixed))
    assert done.returncode == 0, done.stdout + done.stderr
    warnings = [
        line
        for line in done.stdout.splitlines()
        if "warning: " in line and "temporary copy" in line
    ]
    assert len(warnings) == 2, "at the start, and where the results are told"
    assert all("output: below /" in line and "store" not in line for line in warnings)
    assert "output=s3://bucket/" in warnings[0]
    assert "copy what you want to keep now" in warnings[1]
