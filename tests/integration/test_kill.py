"""Drivers killed, stopped, doubled and started again: the same bytes, and nothing finished is computed twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from conftest import Cluster
from driving import CONFIG, distill, finish, here, left, markers, overrides, records, refused

from raydd.config import load_job
from raydd.runtime.pipeline import run_job

DATA = "out/distilled/data.safetensors"


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory, paced: tuple[str, ...]) -> Path:
    """The folder of the tiny job, run in this process without Ray."""
    folder = tmp_path_factory.mktemp("in-process")
    run_job(load_job(CONFIG, overrides(folder, 0, *paced)), lambda line: None)
    return folder


def lock(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "out/lock.json").read_text()))


def told(folder: Path, kind: str, **facts: str) -> bool:
    """Return whether the log has a line of a kind, with facts."""
    try:
        lines = records(folder / "out")
    except (FileNotFoundError, ValueError):  # not there yet, or the last line is being written
        return False
    return any(line["kind"] == kind and facts.items() <= line.items() for line in lines)


def distilled_units(folder: Path) -> set[str]:
    """Return the keys of the units of the distillation that are done."""
    done = [path for path in markers(folder / "store") if path.endswith("/final.json")]
    facts = [json.loads((folder / "store" / path).read_text()) for path in done]
    return {fact["key"] for fact in facts if fact["stage"].startswith("distill/")}


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_byte(
    in_process: Path, paced: tuple[str, ...], cluster: Cluster, tmp_path: Path, workers: int
) -> None:
    env = cluster.environment | {"RAY_ADDRESS": cluster.address}
    text = finish(distill(tmp_path / "log", *overrides(tmp_path, workers, *paced), env=env))
    assert "Ray is ready" in text
    assert (tmp_path / DATA).read_bytes() == (in_process / DATA).read_bytes()
    assert markers(tmp_path / "store").keys() == markers(in_process / "store").keys(), (
        "the same outputs under the same keys"
    )
    ranks = {line["key"]: line for line in records(tmp_path / "out") if line["kind"] == "output"}
    assert len(ranks) > 5
    assert not any(line.get("cached") for line in ranks.values()), "an empty store holds nothing"


@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_killed_driver_goes_on_where_it_was(
    in_process: Path, paced: tuple[str, ...], tmp_path: Path
) -> None:
    job, store = overrides(tmp_path, 2, *paced), tmp_path / "store"
    first = distill(tmp_path / "first.log", *job)
    first.until("the lock was taken", (tmp_path / "out/lock.json").exists)
    assert lock(tmp_path)["pid"] == first.process.pid

    message = refused(*overrides(tmp_path, 0, *paced), code=1)
    assert f"is being written by process {first.process.pid} on" in message
    assert first.process.poll() is None
    assert lock(tmp_path)["pid"] == first.process.pid, "the lock is still the first driver's"

    first.until("a unit was begun", lambda: told(tmp_path, "start"))
    below = first.cluster()
    unit = {"stage": "distill/MatchDistributions", "output": "final"}
    first.until("a unit was done", lambda: told(tmp_path, "output", **unit), every=0.02)
    workers = first.workers()
    for worker in workers:
        worker.suspend()  # they would go on until their cluster has ended, and perhaps finish all
    first.kill()
    assert below
    assert not left([process for process in below if process not in workers])
    for worker in workers:  # one that the cluster did not kill sees now that the cluster has ended
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
    assert not left(below), "the cluster ends with its driver"
    before, units = markers(store), distilled_units(tmp_path)
    assert len(units) < 5, "the kill was to be in the middle of the run"
    assert not (tmp_path / "out/distilled").exists()
    assert lock(tmp_path)["pid"] == first.process.pid, "a killed driver leaves its lock behind"
    lines = len(records(tmp_path / "out"))

    text = finish(distill(tmp_path / "again.log", *job))
    assert "(resumed)" in text
    assert (tmp_path / DATA).read_bytes() == (in_process / DATA).read_bytes()
    after = markers(store)
    assert {path: after[path] for path in before} == before, "what was done was written again"
    assert after.keys() == markers(in_process / "store").keys()
    started = {line["key"] for line in records(tmp_path / "out")[lines:] if line["kind"] == "start"}
    assert started, "something was left to do"
    assert not started & units, "a finished unit was started again"
    done = [
        (line["key"], line["output"])
        for line in records(tmp_path / "out")
        if line["kind"] == "output"
    ]
    assert len(done) == len(set(done)) == len(after)
    assert not (tmp_path / "out/lock.json").exists()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_stopped_driver_saves_its_state_and_says_how_to_go_on(
    in_process: Path, paced: tuple[str, ...], tmp_path: Path
) -> None:
    job = overrides(tmp_path, 2, *paced, "compute.checkpoint_every=600")
    driver = distill(tmp_path / "log", *job)
    driver.until("a unit was begun", lambda: told(tmp_path, "start"))
    below = driver.cluster()
    driver.until("updates were made", lambda: told(tmp_path, "log"), every=0.02)
    os.killpg(
        driver.process.pid, signal.SIGTERM
    )  # as `timeout` does: all that the command started in its group
    assert driver.wait(60) == 130, driver.text
    assert "SIGTERM: saving the state" in driver.text
    assert f"stopped: the same command goes on from here ({tmp_path}/out)" in driver.text
    assert "Traceback" not in driver.text, driver.text
    assert below
    assert not left(below)
    assert not (tmp_path / "out/lock.json").exists(), "the lock is given back"
    states = list((tmp_path / "store/units").rglob("state-*.safetensors"))
    assert states, "checkpoints come every 10 minutes: these are of the stop"
    begun = {path.parent.name: int(path.stem.removeprefix("state-")) for path in sorted(states)}

    # Where the work runs may change from run to run; the resumed units start from the states of the stop.
    run_job(
        load_job(CONFIG, overrides(tmp_path, 0, *paced, "tracking.experiment=other")),
        lambda line: None,
    )
    assert (tmp_path / DATA).read_bytes() == (in_process / DATA).read_bytes()
    resumed = {
        line["key"]: line["t"] for line in records(tmp_path / "out") if line["kind"] == "start"
    }
    assert begun.keys() <= resumed.keys()
    for key in begun:
        steps = [
            line["t"]
            for line in records(tmp_path / "out")
            if line["kind"] == "log" and line["key"] == key
        ]
        assert sorted(set(steps)) == sorted(steps), "no step is logged twice"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_output_of_another_job_is_refused_with_the_difference(
    in_process: Path, paced: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(in_process, tmp_path / "job")
    folder = tmp_path / "job"
    job = (folder / "out/job.yaml").read_text().replace(str(in_process), str(folder))
    (folder / "out/job.yaml").write_text(job)
    before = (folder / DATA).read_bytes()

    message = refused(*overrides(folder, 0, *paced, "method.lr_img=0.5"))
    assert f"{folder}/out was made by a different job" in message
    assert "method.lr_img: 1.0 there, 0.5 now" in message
    assert message.count(" there, ") == 1, "the rest is equal"
    assert (folder / "out/job.yaml").read_text() == job
    assert not (folder / "out/lock.json").exists()

    done = markers(folder / "store")
    elsewhere = ("compute.evaluators=1", "tracking.experiment=other")
    text = here("distill", "--config", CONFIG, *overrides(folder, 2, *paced, *elsewhere))
    assert "Ray is ready" not in text, "nothing was left to do"
    assert markers(folder / "store") == done
    assert (folder / DATA).read_bytes() == before
