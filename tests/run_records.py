"""Plans and logs of runs, as they are written, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BEGUN = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC).timestamp()


def at(second: float) -> str:
    return datetime.fromtimestamp(BEGUN + second, UTC).isoformat(timespec="milliseconds")


def line(second: float, kind: str, key: str = "", **facts: Any) -> dict[str, Any]:
    """Return a line of a log, ``second`` seconds after :data:`BEGUN`; units are called by their keys."""
    named = {"stage": STAGES[key[0]], "unit": key, "key": key} if key else {}
    return {"time": at(second), "kind": kind, **named, **facts}


STAGES = {"i": "init/Draw", "d": "distill/Match", "e": "evaluate/Evaluate"}
PLAN: dict[str, Any] = {
    "verb": "distill",
    "name": "small",
    "dataset": "digits",
    "store": "/nowhere/store",
    "curves": {"distill/Match": ["d0", "d1"]},
    "charted": ["distill/Match"],
    "asked": [1, 2, 3, 4],
    "stages": [
        {"name": "init/Draw", "phase": "init", "outputs": ["final"], "units": [["i0", "i0", 0, []]], "place": ""},
        {
            "name": "distill/Match",
            "phase": "distill",
            "outputs": ["final", "step-000050"],
            "units": [["d0", "d0", 100, []], ["d1", "d1", 100, []]],
            "place": "",
        },
        {
            "name": "evaluate/Evaluate",
            "phase": "evaluate",
            "outputs": ["final"],
            "units": [["e0", "e0", 10, [1, 2]]],
            "place": "",
        },
        {
            "name": "evaluate/Evaluate",
            "phase": "evaluate",
            "outputs": ["final"],
            "units": [["e1", "e1", 10, [0]]],
            "place": "",
        },
    ],
}  # fmt: skip
"""A draw that the second evaluation reads, two units that the first reads."""

RUNNING = [
    line(0, "run", versions={"raydd": "0.1.0", "torch": "2.15"}, git_commit="abc123"),
    line(1, "output", "e1", output="final", seconds=7.5, cached=True, device="NVIDIA H100"),
    line(2, "start", "d0", t=0, worker="rank-0"),
    line(3, "log", "d0", t=0, values={"loss": 4.0}),
    line(20, "output", "d0", t=50, output="step-000050", seconds=18.0, worker="rank-0", device="cpu"),
    line(20, "log", "d0", t=59, values={"loss": 2.0}),
    line(22, "output", "d0", t=100, output="final", seconds=20.0, worker="rank-0", device="cpu"),
    line(22, "start", "d1", t=0, worker="rank-1"),
    line(23, "log", "d1", t=0, values={"loss": 2.0}),
    line(42, "log", "d1", t=59, values={"loss": 1.0}),
    line(42, "accuracy", t=50, values={"accuracy_mean": 71.5, "accuracy_std": 2.5, "networks": 4}),
]  # fmt: skip
"""The second evaluation was in the store, one unit is made, another is at 60 of 100 updates."""

JOB = {
    "name": "small",
    "ipc": 1,
    "dataset": {"name": "digits"},
    "method": {"name": "dm", "iterations": 100},
    "evaluation": {"protocol": "dm"},
    "store": "/nowhere/store",
}


def write_run(
    folder: Path,
    log: Sequence[Mapping[str, Any]] = RUNNING,
    *,
    plan: Mapping[str, Any] | None = PLAN,
    job: Mapping[str, Any] | None = JOB,
    report: Mapping[str, Any] | None = None,
) -> str:
    """Write an output folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    if job is not None:
        (folder / "job.yaml").write_text(json.dumps(job))
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps(plan))
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report))
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    return str(folder)
