"""A small job of every method in an environment of the lowest versions that the project allows."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from small import small_fields

from raydd.methods import METHODS

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def lowest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the interpreter of an environment with the lowest versions of what ``pyproject.toml`` asks for."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the PATH: no environment of other versions can be made")
    folder = tmp_path_factory.mktemp("lowest")
    python = folder / "environment/bin/python"
    for command in (
        ["venv", "-q", "--python", sys.executable, str(folder / "environment")],
        [
            "pip",
            "install",
            "-q",
            "--python",
            str(python),
            "--resolution",
            "lowest-direct",
            "-r",
            "pyproject.toml",
        ],
    ):
        subprocess.run([uv, *command], cwd=ROOT, check=True)
    yield python
    shutil.rmtree(
        folder, ignore_errors=True
    )  # gigabytes, where uv's cache is on another file system


def run(python: Path, *args: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, *args], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_versions_are_the_lowest(lowest: Path, tmp_path: Path) -> None:
    asked = dict(
        re.findall(
            r'"(torch|torchvision|ray|numpy|mlflow)(?:\[[\w,]+\])?>=([\d.]+)',
            (ROOT / "pyproject.toml").read_text(),
        )
    )
    assert len(asked) == 5
    code = (
        "import json, importlib.metadata as m, sys; "
        "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    found = json.loads(run(lowest, "-c", code, *asked, folder=tmp_path))
    assert {
        name: found[name].startswith(version) for name, version in asked.items()
    } == dict.fromkeys(asked, True), found


@pytest.mark.parametrize("name", METHODS.names())
def test_a_small_job_runs(lowest: Path, tmp_path: Path, name: str) -> None:
    fields = {field.name for field in dataclasses.fields(METHODS.get(name))}
    labelled, method = "labels" in fields, {"name": name, **small_fields(name)}
    if "label_networks" in fields:
        method["label_networks"] = method["networks"]
    protocol = {"protocol": name} if labelled else {"epochs": 1}
    job = {
        "dataset": {"name": "digits"},
        "ipc": 2,
        "method": method,
        "evaluation": {
            **protocol,
            "repeats": 2,
            "networks": ["convnet1_w4_batchnorm" if labelled else "convnet1_w4"],
            "baselines": [],
        },
        "numerics": {"compile": name == "dm"},
        "compute": {"workers": 0},
        "tracking": {"uri": "sqlite:///mlflow.db" if name == "dm" else "none"},
        "output": "out",
    }
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump(json.loads(json.dumps(job)))
    )  # plain lists in place of tuples
    run(lowest, "-m", "raydd.distill", "--config", "job.yaml", folder=tmp_path)
    recipe = json.loads((tmp_path / "out/distilled/recipe.json").read_text())
    assert recipe["versions"]["torch"].startswith(
        re.search(r'"torch>=([\d.]+)', (ROOT / "pyproject.toml").read_text())[1]
    )  # type: ignore[index]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["rows"][0]["accuracy_mean"] > 0
