"""Data sets in the documented places, ``data/<name>`` below the folder a job is started in, reach
workers that run elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from data_folders import WRITERS, Look, OpenAll
from driving import here as run_here

from raydd.core.store import Store
from raydd.core.units import Ref
from raydd.data.catalog import CATALOG
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data
from raydd.runtime.ray.ray_runner import RayRunner
from raydd.runtime.ray.ray_session import ray_session
from raydd.runtime.runner import OpenData

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def config_of(name: str) -> DatasetConfig:
    """Return a data set's configuration without its place, but for shards, whose place has to be said: relative."""
    shards = (
        {"shards": "data/webdataset/train-0.tar", "test_shards": "data/webdataset/test-0.tar"}
        if name == "webdataset"
        else {}
    )
    return DatasetConfig(name=name, size=16 if CATALOG[name].info.height > 64 else None, **shards)


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """Ray, started in another folder than the jobs: that is the workers' folder."""
    with ray_session(cpus=2):
        yield


@pytest.mark.usefixtures("session")
def test_every_data_set_of_the_catalog_is_found_by_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in WRITERS.items():
        write(tmp_path / "data" / name)
    stage = Look(seed=0, names=tuple(CATALOG))
    store = Store(str(tmp_path / "store"))
    opening = OpenAll({name: OpenData(config_of(name)) for name in CATALOG})
    RayRunner(opening, workers=2).run(stage.refs(), store, lambda event: None)
    for name in CATALOG:
        found, here = store.load(Ref(stage, name)), open_data(config_of(name))["train"]
        assert torch.equal(found["labels"], here.labels), name
        assert int(found["sum"]) == int(here.take(torch.arange(min(20, len(here)))).sum()), name
        assert int(found["pid"]) != os.getpid(), name


@pytest.mark.usefixtures("session")
def test_a_job_on_a_worker_reads_the_folder_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS["mnist"](tmp_path / "data" / "mnist")
    (tmp_path / "job.yaml").write_text(
        "dataset: {name: mnist}\nipc: 1\nmethod: {name: dm, network: convnet1_w4, iterations: 2, batch_real: 4, init:"
        " real}\nevaluation: {protocol: dm, epochs: 1, repeats: 1, baselines: []}\n"
    )
    text = run_here("distill", "--config", "job.yaml", "compute.workers=1", "tracking.uri=none")
    assert "Ray is ready" in text
    assert (tmp_path / "runs" / "job" / "distilled" / "data.safetensors").exists()
