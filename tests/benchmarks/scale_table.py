"""The tables of docs/scale.md, in Markdown.

    python tests/benchmarks/scale_table.py

What a job's stages take on 8, 64 and 512 workers of a kind of GPU is worked out by the arithmetic of
``raydd distill --dry-run --device``: nothing is measured, and no GPU and no data are needed. The rest is what
``bench_scale.py`` has measured and left in docs/benchmarks/scale.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from results_table import table

from raydd.artifacts.rendering import format_seconds
from raydd.config import load_job
from raydd.data.catalog import entry
from raydd.runtime.estimate import GPU_UPDATE_SECONDS, costs, critical_seconds
from raydd.runtime.hardware import named_device
from raydd.runtime.planning import make_plan
from raydd.runtime.session import described

ROOT = Path(__file__).parents[2]
JOB, DEVICE = ROOT / "jobs" / "imagenet_edc.yaml", "h100"
MEASURED = ROOT / "docs" / "benchmarks" / "scale.json"
WORKERS = (8, 64, 512)


def scale_table(job_file: Path, device: str) -> str:
    """Return a line per stage: units, the seconds of one, and of all on each number of workers."""
    job = load_job(str(job_file))
    info = described(job.dataset, "table", anyway=True).info
    if not info.train_counts and (published := entry(job.dataset.name).train_count):
        info = replace(info, train_counts=(published // info.classes,) * info.classes)
    rows = costs(make_plan(job, info).targets)
    rate = named_device(device).rate(job.numerics)

    def seconds(of: list[int], workers: int) -> str:
        found = critical_seconds([rows[i] for i in of], rate, workers, GPU_UPDATE_SECONDS)
        return format_seconds(found)

    lines = []
    for number, row in enumerate(rows):
        one = row.flop / row.units / (0.7 * rate) + row.updates * GPU_UPDATE_SECONDS
        times = [seconds([number], workers) for workers in WORKERS]
        lines.append([f"`{row.label}`", str(row.units), format_seconds(one), *times])
    every = list(range(len(rows)))
    before = [i for i in every if rows[i].phase != "evaluate"]
    for name, of in (("the set, with its labels", before), ("all", every)):
        times = [seconds(of, workers) for workers in WORKERS]
        lines.append([name, str(sum(rows[i].units for i in of)), "", *times])
    header = ["stage", "units", "one unit", *(f"{workers} GPUs" for workers in WORKERS)]
    return table(header, lines, 1)


def units_table(measured: Mapping[str, Any]) -> str:
    """Return a line per kind of unit: what they took over what they alone take."""
    header = ["units", "seconds each", "ideal, s", "took, s", "over", "start, s"]
    lines = [
        [
            f"{row['units']:,}",
            f"{row['unit_seconds']:g}",
            f"{row['ideal_seconds']:.0f}",
            f"{row['working_seconds']:.0f}",
            f"{row['overhead_percent']:.0f} %",
            f"{row['start_seconds']:.0f}",
        ]
        for row in measured["units"]
    ]
    return table(header, lines, 0)


def elastic_table(measured: Mapping[str, Any]) -> str:
    """Return a line per change of the machines: how long nothing was computed."""
    lines = [
        [one["change"], f"{one['longest_silence_seconds']:.0f}"]
        for one in measured["elastic"]["changes"]
    ]
    return table(["what happens", "seconds without an update"], lines, 1)


def tables() -> list[str]:
    """Return all tables."""
    measured = json.loads(MEASURED.read_text())
    return [scale_table(JOB, DEVICE), units_table(measured), elastic_table(measured)]


if __name__ == "__main__":
    sys.stdout.write("\n".join(tables()))
