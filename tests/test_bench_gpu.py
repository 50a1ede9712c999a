"""The benchmark of devices: all of it runs on a CPU in small settings, without the libraries that a
GPU host may lack.
"""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent / "benchmarks"
ABSENT = ("ray", "mlflow", "psutil", "yaml", "rich", "click", "matplotlib", "boto3", "s3fs")
PROGRAM = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))  # None: importing them fails
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv[0] = {str(BENCHMARKS / "bench_gpu.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str) -> str:
    """Return what the benchmark prints."""
    command = [sys.executable, "-c", PROGRAM, "--device", "cpu", "--small", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=550, cwd=BENCHMARKS.parents[1]
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_whole_table_is_made_without_ray_and_mlflow(tmp_path: Path) -> None:
    printed = run("--json", str(tmp_path / "gpu.json"))
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in report["rows"]}
    failed = {name: row for name, row in rows.items() if "error" in row or "not_run" in row}
    assert not failed

    quick = rows.pop("quickstart: fp32")
    assert quick["students"] == 5
    assert 0 < quick["accuracy_mean"] < 100
    kinds = (
        "dm ipc 2",
        "dsa ipc 1",
        "dsa ipc 2",
        "student's epoch",
        "ResNet-18",
        "recovery, ResNet-18",
        "dsa ipc 2 with its network's epochs",
    )
    for kind in kinds:
        assert any(name.startswith(kind) and name.endswith(": published") for name in rows), kind
        assert any(name.startswith(kind) and ": fp32" in name for name in rows), kind
    for name, row in rows.items():
        figures = [
            row[key]
            for key in (
                "ms",
                "host_ms",
                "first_update_s",
                "warm_up_s",
                "operators",
                "flop",
                "tflops",
                "share_of_peak",
            )
        ]
        assert min(figures) > 0, name
        assert name in printed
        assert ("speedup" in row) != name.endswith(": published"), name
    assert {row["updates_per_turn"] for name, row in rows.items() if "epochs" in name} == {2}
    assert (
        rows["student's epoch, 20 images: fp32, 3 at once"]["operators"]
        < rows["student's epoch, 20 images: published"]["operators"] * 2
    )

    assert min(report["peak"].values()) > 0
    assert {"cpu", "torch", "commit", "command"} <= report["machine"].keys()
    assert "random images" in report["data"]
    found = report["difference_from_published"]
    for name in ("dm: float64", "dsa: float64"):
        assert found[name]["loss"] == pytest.approx(0, abs=1e-12)
        assert found[name]["gradient"] == pytest.approx(0, abs=1e-12)
    for name in ("dm: fp32", "dsa: fp32", "torchvision/resnet18: fp32"):
        assert 0 <= found[name]["loss"] < 1e-5
        assert 0 < found[name]["gradient"] < 1e-3


@pytest.mark.slow
def test_what_the_budget_has_no_room_for_is_said_and_a_profile_is_printed(tmp_path: Path) -> None:
    printed = run(
        "--only",
        "dm,quick",
        "--budget",
        "-1",
        "--commit",
        "abc123",
        "--json",
        str(tmp_path / "gpu.json"),
    )
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows = report["rows"]
    assert report["machine"]["commit"] == "abc123"
    assert len(rows) >= 4
    assert {row["not_run"] for row in rows} == {"the time was over"}
    assert "the time was over" in printed
    assert "aten::convolution" in run("--profile", "dm ipc 2: fp32")


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measuring

    return measuring


def test_a_side_that_fails_is_recorded_and_the_others_go_on(measuring: ModuleType) -> None:
    calls: dict[str, int] = {}

    def side(name: str, ms: float, *, fails_at: int = 0, **fields: Any) -> Any:
        def make() -> Callable[[], object]:
            def step() -> None:
                calls[name] = calls.get(name, 0) + 1
                if calls[name] == fails_at:
                    logging.getLogger("raydd.some").warning("a step cannot be recorded")
                    raise RuntimeError("no kernel")
                time.sleep(ms / 1000)

            return step

        return measuring.Side(name=name, make=make, flop=1e6, **fields)

    sides = [
        side("published", 60),
        side("late", 1, fails_at=7),
        side("at once", 1, fails_at=1),
        side("four", 24, units=4, beside="published"),
    ]
    sides.append(side("cycle", 1, cycle=3))
    turns = measuring.Turns(
        sides, torch.device("cpu"), measuring.Clock(60), rounds=3, seconds=0.0, reserve=0.0
    )
    rows = {row["name"]: row for row in turns.run()}
    for name in ("late", "at once"):
        assert rows[name]["error"] == "RuntimeError: no kernel"
        assert rows[name]["warnings"] == ["a step cannot be recorded"]
        assert "ms" not in rows[name]
    assert calls["late"] == 7, (
        "first, four to warm up, one to see how long it takes, one in the first round"
    )
    assert rows["four"]["ms"] == pytest.approx(rows["published"]["ms"] / 10, rel=0.5), (
        "24 ms for four units beside 60 for one"
    )
    assert rows["four"]["speedup"]["of_medians"] == pytest.approx(10, rel=0.5)
    assert rows["four"]["times_of"]["published"] == pytest.approx(0.1, rel=0.5)
    assert rows["four"]["tflops"] == pytest.approx(1e6 / rows["four"]["ms"] / 1e9)
    assert rows["cycle"]["updates_per_turn"] == 3
    assert calls["cycle"] == 3 + 3 + 3 * 3 + 1, (
        "whole cycles, and one update whose operators are counted"
    )


def test_launches_are_told_from_kernels_and_busy_time_is_counted_once(
    measuring: ModuleType,
) -> None:
    def event(name: str, where: str, start: float = 0, end: float = 0) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            device_type=SimpleNamespace(name=where),
            time_range=SimpleNamespace(start=start, end=end),
        )

    on_gpu = [
        ("gemm", 0, 100),
        ("norm", 50, 150),
        ("Memcpy HtoD (Pinned -> Device)", 400, 450),
        ("pool", 430, 440),
        ("in a graph", 1000, 2000),
    ]
    asked = ["cudaLaunchKernel"] * 2 + [
        "cuLaunchKernelEx",
        "cudaGraphLaunch",
        "cudaMemcpyAsync",
        "cudaMemsetAsync",
        "aten::mm",
    ]
    events = list(
        itertools.chain(
            (event(n, "CUDA", a, b) for n, a, b in on_gpu), (event(name, "CPU") for name in asked)
        )
    )
    found = measuring.launches(SimpleNamespace(events=lambda: events))
    assert found == {
        "launches": 3,
        "graph_launches": 1,
        "copies": 2,
        "kernels": 4,
        "busy_ms": pytest.approx(1.2),
    }
