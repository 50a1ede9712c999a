"""The ImageNet job of EDC itself, shrunk by overrides alone: shards on S3, two Ray workers, killed in every stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import S3Server
from driving import REPOSITORY, Driver, environment, finish, left, markers, records
from driving import here as run_here
from PIL import Image
from torchvision import models

from raydd.artifacts.published_folder import read, verify
from raydd.config import load_job
from raydd.core.storage import Storage
from raydd.data.catalog import CATALOG
from raydd.labels.published import PublishedLabels
from raydd.runtime.pipeline import run_job

JOB = str(REPOSITORY / "jobs" / "imagenet_edc.yaml")
NETWORKS = ("resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5", "alexnet")
PHASES = ("squeeze", "recover", "relabel", "evaluate")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ImageNet is unpacked, of ten of its classes: 12 training and 3 validation JPEGs each."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for label, wnid in enumerate(CATALOG["imagenet10"].classes):
        for split, count in (("train", 12), ("val", 3)):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
                coarse[..., label % 3] = 25 * label
                size = (70 + 10 * (i % 3), 70)
                Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
                    folder / f"{wnid}_{i}.JPEG"
                )
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights files as torchvision writes them, of networks of ten classes."""
    folder = tmp_path_factory.mktemp("weights")
    for number, name in enumerate(NETWORKS):
        torch.manual_seed(number)
        torch.save(
            models.get_model(name, weights=None, num_classes=10).state_dict(),
            folder / f"{name}.pth",
        )
    return folder


def shrunk(folder: Path, data: str, weights: Path, workers: int) -> list[str]:
    return [
        "dataset.name=imagenet10", data, "dataset.size=64", "dataset.resize=64", "ipc=2",
        f"method.teachers.weights={weights}",
        "method.teachers.download=false", "method.statistics.slices=3", "method.statistics.batch=16",
        "method.init.pool=2",
        "method.init.candidates=12", "method.init.classes_per_unit=4", "method.iterations=30", "method.group_size=4",
        "method.groups_per_unit=2", "method.labels.batch=10", "method.labels.epochs=12", "evaluation.epochs=3",
        "evaluation.networks=[shufflenet_v2_x0_5]", "evaluation.repeats=2", "numerics.compile=false",
        "tracking.uri=none",
        f"output={folder}/out", f"store={folder}/store", f"compute.workers={workers}", "compute.checkpoint_every=0.2",
    ]  # fmt: skip


def so_far(folder: Path) -> list[dict[str, object]]:
    try:
        return records(folder / "out")
    except (FileNotFoundError, ValueError):
        return []


def outputs(folder: Path, phase: str) -> int:
    """Return how many outputs of a phase the log tells of."""
    return sum(
        line["kind"] == "output" and str(line["stage"]).startswith(f"{phase}/")
        for line in so_far(folder)
    )


def begun(folder: Path, phase: str, lines: int) -> bool:
    """Return whether a unit of a phase was begun after so many lines of the log."""
    return any(
        line["kind"] in ("start", "log") and str(line["stage"]).startswith(f"{phase}/")
        for line in so_far(folder)[lines:]
    )


def in_the_middle(
    driver: Driver, there: Path, here: Path, phase: str, kill: Callable[[], None]
) -> None:
    """Kill once a phase was begun by the driver; fail if nothing of it was left to do then."""
    lines = len(so_far(there))
    driver.until(f"{phase} was begun", lambda: begun(there, phase, lines), timeout=400)
    kill()
    assert outputs(there, phase) < outputs(here, phase), (
        f"the kill was to be in the middle of '{phase}'"
    )


def kill_worker(driver: Driver) -> None:
    """SIGKILL a worker; return when the group that replaces it works."""
    before = driver.workers()
    assert before
    before[0].kill()
    assert not left(before), "all workers of a group end with one of them"
    driver.until("a new group was started", lambda: len(driver.workers()) == len(before))


def kill_driver(driver: Driver) -> None:
    """SIGKILL a driver; return when its cluster has ended."""
    below = driver.cluster()
    driver.kill()
    assert not left(below), "the cluster ends with its driver"


@pytest.mark.ray
@pytest.mark.timeout(3000)
def test_edc_is_killed_in_every_stage_and_gives_the_same_bytes(
    s3: S3Server, imagenet: Path, weights: Path, tmp_path: Path
) -> None:
    """A worker in every other stage, after which the group is started anew, and its driver in those between; a group
    of another size goes on.
    """
    env = environment(**s3.environment)
    shards = s3.url("imagenet10")
    write = ["--dataset", "imagenet10", "--root", str(imagenet), "--shard-size", "40"]
    assert "120 images in 3 shards" in run_here("shard", shards, *write, "--workers", "1")

    copy = Storage(str(tmp_path / "shards"))
    for path in s3.paths("imagenet10/"):
        copy.put(path.removeprefix("imagenet10/"), s3.read(path))
    here = tmp_path / "here"
    run_job(
        load_job(JOB, shrunk(here, f"dataset.shards={copy.url}", weights, 0)), lambda line: None
    )

    there = tmp_path / "there"
    job = ["--config", JOB, *shrunk(there, f"dataset.shards={shards}", weights, 2)]
    for workers, spared, killed in zip((2, 1), PHASES[::2], PHASES[1::2], strict=True):
        alone = [f"compute.workers={workers}"]
        driver = Driver(["raydd.distill", *job, *alone], tmp_path / f"{killed}.log", env)
        in_the_middle(driver, there, here, spared, lambda driver=driver: kill_worker(driver))
        in_the_middle(driver, there, here, killed, lambda driver=driver: kill_driver(driver))
    before = markers(there / "store")
    text = finish(Driver(["raydd.distill", *job], tmp_path / "last.log", env), timeout=500)
    assert "(resumed)" in text

    after = markers(there / "store")
    assert {path: after[path] for path in before} == before, "what was done was written again"
    for name in (
        "data.safetensors",
        *(f"labels/epoch-{epoch:03d}.safetensors" for epoch in range(12)),
    ):
        assert (there / "out/distilled" / name).read_bytes() == (
            here / "out/distilled" / name
        ).read_bytes(), name
    rows = [
        json.loads((folder / "out/report.json").read_text())["rows"] for folder in (here, there)
    ]
    assert [(row["set"], row["accuracy_mean"]) for row in rows[0]] == [
        (row["set"], row["accuracy_mean"]) for row in rows[1]
    ]
    done = [
        (line["key"], line["output"])
        for line in records(there / "out")
        if line["kind"] == "output" and not line.get("cached")
    ]
    assert len(done) == len(set(done)), "an output was computed twice"

    verify(str(there / "out/distilled"))
    labels = PublishedLabels.at(str(there / "out/distilled"))
    assert (labels.images, labels.classes, labels.config.epochs) == (20, 10, 12)
    assert len(read(str(there / "out/distilled"))) == 20
    judged = [
        "--protocol",
        "edc",
        "--epochs",
        "2",
        "--repeats",
        "1",
        "--networks",
        "shufflenet_v2_x0_5",
    ]
    judged += ["evaluation.baselines=[]", f"dataset.root={imagenet}", "dataset.shards=null"]
    text = run_here("evaluate", str(there / "out/distilled"), *judged, f"store={there}/store")
    assert "edc[epochs=2,batch=10]" in text
