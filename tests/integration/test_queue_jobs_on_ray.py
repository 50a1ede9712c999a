"""IDM and BACON on Ray: a worker killed in the queue and the driver in the matching, any number of workers, the same
bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Cluster
from driving import CONFIG, Driver, distill, finish, markers, records

from raydd.config import load_job
from raydd.runtime.pipeline import run_job

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
DATA = "out/distilled/data.safetensors"
QUEUE, MATCHING = "squeeze/TrainQueue", "distill/MatchUnderQueue"
TINY = (
    "tracking.uri=none",
    "method=null",
    "method.network=convnet1_w8",
    "method.iterations=150",
    "method.batch_real=32",
    "method.classes_per_unit=1",
    "method.queue.net_num=4",
    "method.queue.net_generate_interval=15",
    "method.queue.model_train_steps=10",
    "method.queue.trained_bs=64",
    "ipc=1",
    "evaluation.every=null",
    "evaluation.epochs=2",
    "evaluation.repeats=1",
    "evaluation.baselines=[]",
    "compute.checkpoint_every=0.2",
)
"""Overrides of the quickstart job: 13 networks, and 10 units of 150 updates; seconds on one core."""


def queued(name: str, folder: Path, workers: int) -> list[str]:
    """Return the overrides of a method's tiny job."""
    places = [f"output={folder}/out", f"store={folder}/store", f"compute.workers={workers}"]
    null, *rest = [one for one in TINY if one.startswith("method")]
    others = [one for one in TINY if not one.startswith("method")]
    return [null, f"method.name={name}", *rest, *others, *places]


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folders of the tiny jobs, run in this process without Ray, each once."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            run_job(load_job(CONFIG, queued(name, made[name], 0)), lambda line: None)
        return made[name]

    return folder_of


def run(folder: Path, cluster: Cluster, log: str, name: str, workers: int) -> Driver:
    env = cluster.environment | {"RAY_ADDRESS": cluster.address}
    return distill(folder / log, *queued(name, folder, workers), env=env)


def group_workers() -> list[psutil.Process]:
    """Return the workers of the group that works on this process's cluster."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    assert found
    return found


def so_far(folder: Path) -> list[dict[str, Any]]:
    try:
        return records(folder / "out")
    except (FileNotFoundError, ValueError):  # not there yet, or the last line is being written
        return []


def outputs(folder: Path, stage: str) -> int:
    """Return how many outputs of a stage were computed, as the log tells."""
    return sum(line["kind"] == "output" and line["stage"] == stage for line in so_far(folder))


def test_a_queue_and_its_matching_are_killed_on_ray(
    in_process: Callable[[str], Path], cluster: Cluster, tmp_path: Path
) -> None:
    here = in_process("idm")
    driver = run(tmp_path, cluster, "log", "idm", 2)

    def until_begun(stage: str) -> None:
        driver.until(f"{stage} was begun", lambda: outputs(tmp_path, stage), every=0.02)

    until_begun(QUEUE)
    group_workers()[0].kill()
    assert outputs(tmp_path, QUEUE) < outputs(here, QUEUE), "not in the middle of the queue"
    until_begun(MATCHING)
    driver.kill()
    assert outputs(tmp_path, MATCHING) < outputs(here, MATCHING), "not in the middle of matching"
    before = markers(tmp_path / "store")
    text = finish(run(tmp_path, cluster, "log", "idm", 2))
    assert text.count("(resumed)") == 1
    same_bytes(here, tmp_path)
    after = markers(tmp_path / "store")
    assert {path: after[path] for path in before} == before, "what was done was written again"
    done = [
        (line["key"], line["output"])
        for line in records(tmp_path / "out")
        if line["kind"] == "output" and not line.get("cached")
    ]
    assert len(done) == len(set(done)), "an output was computed twice"


def same_bytes(here: Path, there: Path) -> None:
    """Check that two runs have the same set, and the same networks and images in their stores."""
    assert (there / DATA).read_bytes() == (here / DATA).read_bytes()
    assert markers(there / "store").keys() == markers(here / "store").keys()
    for path in (here / "store/units").rglob("final.safetensors"):
        kept = there / path.relative_to(here)
        assert kept.read_bytes() == path.read_bytes(), path.parent.name


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", ["idm", "bacon"])
def test_workers_change_no_byte_of_queue_and_set(
    in_process: Callable[[str], Path], cluster: Cluster, tmp_path: Path, name: str, workers: int
) -> None:
    assert "Ray is ready" in finish(run(tmp_path, cluster, "log", name, workers))
    same_bytes(in_process(name), tmp_path)
