"""Sweeps on Ray Tune: the same table whatever is killed, on a local folder and on S3; handed in as a job."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import Cluster, S3Server
from driving import CONFIG, Driver, environment, finish, overrides

from raydd.config import read_job
from raydd.core.storage import Storage
from raydd.runtime.sweep.sweeping import make_sweep, run_sweep
from raydd.search.trials import Trial, TrialJournal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]
VALUES = [0.1, 0.3, 3.0, 10.0]
LONGER = "evaluation.epochs=20"  # enough for values to differ
SPACE = {
    "search": "grid",
    "keys": {"method.lr_img": {"grid": VALUES}},
    "trial": {"evaluation.every": None},
}


def facts(tree: dict[str, Any]) -> list[Any]:
    """Return what of a sweep must not depend on kills, places and workers."""
    rows = [
        {name: trial[name] for name in ("number", "values", "state", "value", "error", "origin")}
        for trial in tree["trials"]
    ]
    return [rows, tree["winner"], tree["tested"]]


def write_space(folder: Path) -> str:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return str(path)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The facts of the sweep, run in this process without Ray and undisturbed."""
    folder = tmp_path_factory.mktemp("sweep")
    job = read_job(CONFIG, overrides(folder, 0, LONGER))
    run_sweep(make_sweep(job, write_space(folder)), lambda line: None)
    found = facts(json.loads((folder / "out/sweep.json").read_text()))
    assert len({row["value"] for row in found[0]}) > 2
    return found


def trials_below(pid: int) -> list[psutil.Process]:
    """Return the processes of trials on the cluster that a driver has started."""
    return [
        process
        for process in psutil.Process(pid).children(recursive=True)
        if "ImplicitFunc" in " ".join(process.cmdline())
    ]


def running(read: Callable[[], list[Trial]]) -> bool:
    trials = read()
    return any(not trial.ended and trial.attempts for trial in trials) and len(trials) > 1


def tracked_below(folder: Path, trials: int) -> None:
    """Check that the default database below a driver's folder has a run of the sweep and one of each trial."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "raydd"]
    by_name = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = by_name["quickstart sweep"]
    assert parent.info.status == "FINISHED"
    for number in range(trials):
        run = by_name[f"quickstart-{number:04d}"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    won = [name for name, run in by_name.items() if run.data.tags.get("raydd.winner") == "true"]
    assert won == [f"quickstart-{int(parent.data.tags['raydd.best_trial']):04d}"]


@pytest.mark.parametrize("where", ["s3", pytest.param("folder", marks=pytest.mark.nightly)])
def test_killed_trials_and_drivers_change_nothing(
    in_process: list[Any], where: str, s3: S3Server, tmp_path: Path
) -> None:
    place = str(tmp_path) if where == "folder" else s3.url(f"sweep-{tmp_path.name}")
    journal = TrialJournal(Storage(f"{place}/out"))
    env = environment(**s3.environment)
    command = ["raydd.sweep", "--config", CONFIG, "--space", write_space(tmp_path)]
    command += overrides(place, 2, LONGER, "tracking.uri=null")
    first = Driver(command, tmp_path / "first.log", env, cwd=tmp_path)
    try:
        first.until("a trial ran", lambda: running(journal.read), every=0.3)
        victim = first.until("a trial's process was seen", lambda: trials_below(first.process.pid))
        os.kill(victim[0].pid, signal.SIGKILL)
        first.until(
            "a trial ended", lambda: any(trial.ended for trial in journal.read()), every=0.3
        )
    finally:
        first.kill()
    before = {trial.number: trial for trial in journal.read() if trial.ended}
    assert 0 < len(before) < 1 + len(VALUES), "the kill was to be in the middle of the sweep"
    text = finish(Driver(command, tmp_path / "again.log", env, cwd=tmp_path), timeout=1000)
    assert "(resumed)" in text
    assert "Traceback" not in text, text
    assert facts(json.loads(Storage(f"{place}/out").get("sweep.json"))) == in_process
    after = {trial.number: trial for trial in journal.read()}
    for number, trial in before.items():
        assert after[number] == trial, "what had ended was run again"
    assert "tested once, fresh students" in text
    assert "WARNING" not in text, text
    tracked_below(tmp_path, 1 + len(VALUES))


@pytest.mark.nightly
def test_a_sweep_is_handed_in_as_a_job(
    in_process: list[Any], cluster: Cluster, tmp_path: Path
) -> None:
    import subprocess
    import sys

    from test_job_submit import RAY

    place = tmp_path / "shared"
    space = write_space(tmp_path)
    entry = [sys.executable, "-m", "raydd.sweep", "--config", CONFIG, "--space", space]
    done = subprocess.run(
        [RAY, "job", "submit", "--", *entry, *overrides(place, 2, LONGER)],
        env=cluster.environment | {"RAY_ADDRESS": cluster.dashboard},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts(json.loads((place / "out/sweep.json").read_text())) == in_process
    assert "Configuration for experiment" not in done.stdout, "Tune's own tables"


@pytest.mark.nightly
def test_trials_with_groups_of_their_own_are_those_of_one_process(
    in_process: list[Any], tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE | {"workers_per_trial": 2}))
    job = overrides(tmp_path, 1, LONGER)
    command = ["raydd.sweep", "--config", CONFIG, "--space", str(space), *job]
    finish(Driver(command, tmp_path / "log", environment()), timeout=900)
    assert facts(json.loads((tmp_path / "out/sweep.json").read_text())) == in_process
