"""The ImageNet job of INFER itself, shrunk by overrides alone, from WebDataset shards: planned, run in this process,
and, nightly, by two Ray workers from S3, killed in every stage.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import S3Server
from driving import REPOSITORY, Driver, environment, finish, left, markers, records
from test_statistics_jobs import begun, outputs, so_far
from test_statistics_jobs import imagenet as imagenet
from test_statistics_jobs import weights as weights

from raydd import load
from raydd.artifacts.published_folder import read, verify
from raydd.config import load_job
from raydd.core.storage import Storage
from raydd.labels.published import PublishedLabels
from raydd.runtime.pipeline import run_job
from raydd.runtime.planning import dry_run

JOB = str(REPOSITORY / "jobs" / "imagenet_infer.yaml")
FILES = ("data.safetensors", "labels/static.safetensors")
SEEN = 10 * 2 * 4
"""Two real images of ten classes, as they are and with the compensators of three networks."""


def shrunk(folder: Path, data: str, weights: Path, workers: int, iterations: int) -> list[str]:
    return [
        "dataset.name=imagenet10", data, "dataset.size=64", "dataset.resize=64", "ipc=3",
        f"method.teachers.weights={weights}", "method.teachers.download=false", f"method.iterations={iterations}",
        "method.labels.batch=10", "method.labels.epochs=2", "evaluation.networks=[shufflenet_v2_x0_5]",
        "evaluation.repeats=2", "evaluation.baselines=[]", "numerics.compile=false", "tracking.uri=none",
        f"output={folder}/out", f"store={folder}/store", f"compute.workers={workers}", "compute.checkpoint_every=0.2",
    ]  # fmt: skip


def write_shards(url: str, imagenet: Path, log: Path, env: dict[str, str] | None = None) -> None:
    words = ["raydd.shard", url, "--dataset", "imagenet10", "--root", str(imagenet)]
    words += ["--shard-size", "40", "--workers", "1"]
    assert "120 images in 3 shards" in finish(Driver(words, log, env))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_job_is_planned_and_runs_from_shards(
    imagenet: Path, weights: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    write_shards(str(shards), imagenet, tmp_path / "shard.log")
    job = load_job(JOB, shrunk(tmp_path, f"dataset.shards={shards}", weights, 0, 3))
    text, missing = dry_run(job)
    assert missing == []
    for line in ("recover/Compensate       6", "init/RealPool", "relabel/LabelImages"):
        assert line in text, text
    run_job(job, lambda line: None)
    folder = tmp_path / "out" / "distilled"
    verify(str(folder))
    found = read(str(folder))
    assert (len(found), found.seen, found.shape) == (20, SEEN, (3, 64, 64))
    offsets = found.extra["offsets"]
    assert offsets.shape == (3, 2, 1, 3, 64, 64)
    assert bool((offsets != 0).flatten(1).any(1).all()), "every network has moved its own"
    assert not torch.equal(offsets[0], offsets[1])
    labels = PublishedLabels.at(str(folder))
    assert (labels.images, labels.classes, labels.config.codec) == (SEEN, 10, "static")
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [(row["set"], row["stored"], row["seen"]) for row in rows] == [("infer", 20, SEEN)]
    assert rows[0]["label_bytes"] == 20 * 8 + labels.bytes
    assert len(load(str(folder))) == SEEN


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_infer_is_killed_in_every_stage_and_gives_the_same_bytes(
    s3: S3Server, imagenet: Path, weights: Path, tmp_path: Path
) -> None:
    env, shards = environment(**s3.environment), s3.url("imagenet10-infer")
    write_shards(shards, imagenet, tmp_path / "shard.log", env)
    copy = Storage(str(tmp_path / "shards"))
    for path in s3.paths("imagenet10-infer/"):
        copy.put(path.removeprefix("imagenet10-infer/"), s3.read(path))
    here, there = tmp_path / "here", tmp_path / "there"
    run_job(
        load_job(JOB, shrunk(here, f"dataset.shards={copy.url}", weights, 0, 8)),
        lambda line: None,
    )
    overrides = shrunk(there, f"dataset.shards={shards}", weights, 2, 8)
    arguments = ["raydd.distill", "--config", JOB, *overrides]
    for phase in ("init", "recover", "relabel", "evaluate"):
        lines = len(so_far(there))
        driver = Driver(arguments, tmp_path / f"{phase}.log", env)
        driver.until(
            f"{phase} was begun",
            lambda phase=phase, lines=lines: begun(there, phase, lines),
            timeout=400,
        )
        below = driver.cluster()
        driver.kill()
        assert not left(below), "the cluster ends with its driver"
        if phase in ("recover", "evaluate"):  # the others are done within a second
            assert outputs(there, phase) < outputs(here, phase)
    before = markers(there / "store")
    assert "(resumed)" in finish(Driver(arguments, tmp_path / "last.log", env), timeout=500)
    after = markers(there / "store")
    assert {path: after[path] for path in before} == before, "what was done was written again"
    for name in FILES:
        one, other = (folder / "out/distilled" / name for folder in (here, there))
        assert one.read_bytes() == other.read_bytes(), name
    done = [
        (line["key"], line["output"])
        for line in records(there / "out")
        if line["kind"] == "output" and not line.get("cached")
    ]
    assert len(done) == len(set(done)), "an output was computed twice"
    accuracies = [
        json.loads((folder / "out/report.json").read_text())["rows"][0]["accuracy_mean"]
        for folder in (here, there)
    ]
    assert accuracies[0] == accuracies[1]
