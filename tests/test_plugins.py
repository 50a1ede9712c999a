"""Methods, data sets, readers and label codecs of an installed package: found, used, refused, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE = '''
"""Averages of real images, a data set of ramps, logits in tenths."""

from dataclasses import dataclass

import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.data.arrays import ArrayData
from raydd.data.catalog import DatasetInfo, Entry
from raydd.data.sources.source import Source
from raydd.labels.codecs import Codec
from raydd.methods.method import ClassBlocks, Method


@dataclass(frozen=True, kw_only=True)
class AverageClass(ClassBlocks):
    phase = "init"
    ipc: int

    def steps(self, unit):
        return 0

    def finish(self, unit, state, ctx):
        data, images = ctx.data["train"], []
        for label in self.blocks[unit]:
            members = (data.labels == label).nonzero().reshape(-1)
            images += [data.take(part).float().mean(0) for part in members.tensor_split(self.ipc)]
        return {"images": torch.stack(images).round().to(torch.uint8)}


@dataclass(frozen=True, kw_only=True)
class Averages(Method):
    per_unit: int = 5

    def plan(self, problem):
        return [
            AverageClass(
                seed=problem.seed,
                dataset=problem.dataset.only("train"),
                ipc=problem.ipc,
                classes_per_unit=self.per_unit,
            )
        ]

    def assemble(self, problem, outputs):
        images = torch.cat([outputs[unit]["images"] for unit in sorted(outputs)])
        labels = torch.arange(problem.dataset.classes).repeat_interleave(problem.ipc)
        return DistilledSet(images=images, labels=labels, info=problem.dataset, recipe={})


RAMPS = Entry(
    info=DatasetInfo(
        name="ramps", classes=2, channels=1, height=8, width=8, mean=(0.5,), std=(0.25,)
    ),
    source="ramps",
    roots=(),
)


class Ramps(Source):
    def missing(self, files, entry, config):
        return []

    def open(self, files, entry, config):
        ramp = (torch.arange(8) * 30).to(torch.uint8).expand(1, 8, 8)
        noise = torch.arange(40).to(torch.uint8).reshape(40, 1, 1, 1) // 2
        images = torch.stack([ramp, ramp.mT]).repeat(20, 1, 1, 1) + noise
        return {"train": ArrayData(images, torch.arange(40) % 2, "ramps")}


class Tenths(Codec):
    def layout(self, config, classes):
        return {"tenths": (torch.int16, (classes,))}

    def encode(self, config, logits):
        return {"tenths": (logits * 10).round().to(torch.int16)}

    def decode(self, config, stored, classes):
        return stored["tenths"].float() / 10
'''
POINTS = """
[raydd.methods]
average = average_images:Averages
torn = average_images.absent:Torn
wrong = average_images:RAMPS

[raydd.datasets]
ramps = average_images:RAMPS

[raydd.readers]
ramps = average_images:Ramps

[raydd.label_codecs]
tenths = average_images:Tenths
"""
SMALL = ["method=average", "dataset.name=ramps", "ipc=1", "tracking.uri=none"]
SMALL += ["evaluation.epochs=2", "evaluation.repeats=1", "evaluation.networks=[convnet1_w8]"]


def install(site: Path, package: str, points: str, module: str) -> None:
    """Put a module and its metadata below ``site`` as an installer does."""
    facts = site / f"{package.replace('-', '_')}-1.2.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(points)
    (site / f"{package.replace('-', '_')}.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    install(tmp_path / "site", "average-images", POINTS, MODULE)
    return tmp_path / "site"


RUN = """
import json, sys
from click.testing import CliRunner
from raydd.cli import main
done = [CliRunner().invoke(main, arguments) for arguments in json.loads(sys.argv[1])]
print("TOLD" + json.dumps([[run.exit_code, run.output] for run in done]))
"""


def python(site: Path, *arguments: str) -> str:
    """Run Python where the packages of ``site`` are installed; return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def raydd(site: Path, *commands: list[str], code: int = 0) -> list[str]:
    """Run command lines one after the other in a new process; return what each of them says."""
    told = json.loads(python(site, "-c", RUN, json.dumps(commands)).partition("TOLD")[2])
    assert [found for found, _ in told] == [code] * len(commands), told
    return [text for _, text in told]


def job(site: Path, *overrides: str) -> list[str]:
    (site.parent / "job.yaml").write_text("name: plugged\n")
    return ["distill", "--config", "job.yaml", *SMALL, *overrides]


@pytest.mark.slow
def test_a_packages_method_data_set_and_reader_are_planned_run_and_evaluated(site: Path) -> None:
    small = ["--epochs", "2", "--repeats", "1", "--networks", "convnet1_w8", "tracking.uri=none"]
    plan, run, judged = raydd(
        site,
        job(site, "--dry-run", "compute.workers=0"),
        job(site, "compute.workers=0"),
        ["evaluate", "runs/plugged", "--baselines", "random,average", *small],
    )
    assert "AverageClass" in plan
    assert "per_unit: 5" in plan
    assert "ramps: 2 classes" in plan
    assert "distilled" in run
    assert {"random", "average"} <= set(judged.split())


@pytest.mark.slow
@pytest.mark.ray
def test_workers_of_ray_run_a_packages_method(site: Path) -> None:
    assert "distilled" in raydd(site, job(site, "compute.workers=1"))[0]


@pytest.mark.slow
def test_a_package_that_cannot_be_used_stops_only_jobs_that_name_it(site: Path) -> None:
    near, torn, wrong, method, data = raydd(
        site,
        job(site, "evaluation.baselines=[avarage]", "--dry-run"),
        job(site, "method=torn", "--dry-run"),
        job(site, "method=wrong", "--dry-run"),
        job(site, "method=averag", "--dry-run"),
        job(site, "dataset.name=ramp", "--dry-run"),
        code=2,
    )
    assert "did you mean 'average'?" in near
    assert "WARNING raydd.core.registry: method 'torn' of average-images 1.2" in near
    assert (
        "method 'torn' of average-images 1.2 (average_images.absent:Torn) cannot be used:"
        " ModuleNotFoundError" in torn
    )
    assert "average-images 1.2 (average_images:RAMPS) cannot be used" in wrong
    assert "is no subclass of raydd.methods.Method" in wrong
    assert "unknown method 'averag' (did you mean 'average'?)" in method
    assert "unknown data set 'ramp' (did you mean 'ramps'?)" in data


@pytest.mark.slow
def test_a_name_of_two_packages_is_refused_with_both_places(site: Path) -> None:
    points = "[raydd.methods]\naverage = second_package:Second\nrandom = second_package:Second\n"
    install(site, "second-package", points, "")
    average, known = raydd(
        site, job(site, "--dry-run"), job(site, "method=random", "--dry-run"), code=2
    )
    assert "method 'average' is given by " in average
    assert "average-images 1.2 (average_images:Averages)" in average
    assert "second-package 1.2 (second_package:Second)" in average
    assert (
        "method 'random' is given by raydd.methods.random_selection and by"
        " second-package 1.2 (second_package:Second)" in known
    )


@pytest.mark.slow
def test_a_packages_codec_keeps_logits(site: Path) -> None:
    code = """
import torch
from raydd.labels.codecs import decode, encode, layout, row_bytes
from raydd.labels.label_config import LabelConfig
config = LabelConfig(codec="tenths")
logits = torch.tensor([[0.24, -1.18, 3.0]])
print(row_bytes(layout(config, 3)), decode(config, encode(config, logits), 3).tolist())
try:
    LabelConfig(codec="tenth")
except ValueError as error:
    print(error)
"""
    kept, refused = python(site, "-c", code).splitlines()
    assert kept == "6 [[0.20000000298023224, -1.2000000476837158, 3.0]]"
    assert "unknown label codec 'tenth' (did you mean 'tenths'?)" in refused
