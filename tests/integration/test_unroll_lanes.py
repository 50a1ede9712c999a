"""The unrolls of an update on one, two and three Ray workers, with a kill in the middle: the bytes of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cluster
from driving import REPOSITORY, Driver, finish, markers, records

from raydd.config import load_job
from raydd.runtime.pipeline import run_job

POSTER = str(REPOSITORY / "jobs" / "digits_podd.yaml")
DATA = "out/distilled/data.safetensors"
SMALL = (
    "method.unrolls=4",
    "method.iterations=80",
    "method.network=convnet1_w8",
    "method.window=2",
    "method.totwindow=4",
    "method.batch_real=32",
    "evaluation.networks=convnet1_w8",
    "evaluation.epochs=2",
    "evaluation.repeats=1",
    "evaluation.every=null",
    "evaluation.baselines=[]",
    "compute.checkpoint_every=0.3",
    "tracking.uri=none",
)
"""Overrides of the poster's job: four unrolls in each of 80 updates, some seconds of one core."""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def overrides(folder: Path, workers: int) -> list[str]:
    """Return the small job's overrides, with output and store below ``folder``."""
    places = [f"output={folder}/out", f"store={folder}/store", f"compute.workers={workers}"]
    return [*SMALL, *places]


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the job, run in this process without Ray."""
    folder = tmp_path_factory.mktemp("in-process")
    run_job(load_job(POSTER, overrides(folder, 0)), lambda line: None)
    return folder


def driver(folder: Path, workers: int, cluster: Cluster, log: str = "log") -> Driver:
    """Start the job on the cluster."""
    env = cluster.environment | {"RAY_ADDRESS": cluster.address}
    words = ["raydd.distill", "--config", POSTER, *overrides(folder, workers)]
    return Driver(words, folder / log, env)


def states(folder: Path) -> list[Path]:
    """Return the checkpoints below a folder's store."""
    return list((folder / "store" / "units").rglob("state-*.safetensors"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (3, 2),
        pytest.param(1, 3, marks=pytest.mark.nightly),
        pytest.param(2, 1, marks=pytest.mark.nightly),
    ],
)
def test_unrolls_killed_in_the_middle_end_in_the_same_bytes(
    in_process: Path, cluster: Cluster, tmp_path: Path, before: int, after: int
) -> None:
    first = driver(tmp_path, before, cluster, "first.log")
    first.until("a state was kept", lambda: states(tmp_path), every=0.02)
    first.kill()
    assert not (tmp_path / "out/distilled").exists(), "the kill was to be in the middle of the run"
    text = finish(driver(tmp_path, after, cluster, "again.log"))
    assert "(resumed)" in text
    assert (tmp_path / DATA).read_bytes() == (in_process / DATA).read_bytes()
    assert markers(tmp_path / "store").keys() == markers(in_process / "store").keys()


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_no_byte_of_a_poster(
    in_process: Path, cluster: Cluster, tmp_path: Path, workers: int
) -> None:
    finish(driver(tmp_path, workers, cluster))
    assert (tmp_path / DATA).read_bytes() == (in_process / DATA).read_bytes()
    made = [line for line in records(tmp_path / "out") if line["kind"] == "output"]
    assert made
    assert not any(line.get("cached") for line in made), "an empty store holds nothing"
