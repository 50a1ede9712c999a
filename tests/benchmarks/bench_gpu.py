"""What raydd reaches on a device beside the published code: updates, students' epochs, observed
networks, the quickstart.

All sides run in this process, in turns within each round: the published loops with torch's own
settings (on a GPU convolutions in TF32), and raydd's stages by their own `step`, as jobs run them.
Figures: wall and host milliseconds per update, times as fast as published, share of the device's
peak (one large product in the same arithmetic, one copy), memory, launches, and how long the device
was busy. First it is measured how far both sides' losses and gradients are from each other on the
same draws. It needs neither Ray nor MLflow. Without ``--data`` (a folder of idx files) images are
random.

    python tests/benchmarks/bench_gpu.py --json docs/benchmarks/gpu.json
    python tests/benchmarks/bench_gpu.py --profile "dm ipc 10: bf16"
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # read once: what deterministic sides need, and as large as the default

import torch
from equality import differences
from harness import ROOT, machine
from measuring import WARM, Clock, Row, Side, Turns, kept, launches, peaks, profiled, wait
from quick import quickstart
from work import Setting, dm, dsa, fashion_mnist, student
from work_observed import recovery, taps

GROUPS: dict[str, tuple[Callable[[Setting], list[Side]], ...]] = {
    "dm": (dm,),
    "dsa": (partial(dsa, ipc=1), partial(dsa, ipc=10)),
    "student": (student,),
    "taps": (taps, recovery),
    "inner": (partial(dsa, ipc=10, whole=True),),
}
"""The rows of the table, by the names that are given to ``--only``; each tuple's members are sides that take turns."""

NAMES = ("equality", "dm", "dsa", "student", "taps", "quick", "inner")
RESERVE = 45.0
"""Seconds that must be left to set up one more side."""


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(NAMES),
        help=f"some of {','.join(NAMES)}",
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--budget", type=float, default=480.0, help="seconds after which nothing more is begun"
    )
    parser.add_argument("--data", help="a folder of Fashion-MNIST's idx files")
    parser.add_argument("--rounds", type=int, help="turns of each side (default: 5)")
    parser.add_argument(
        "--commit", help="what to record as the commit where this folder is no checkout"
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="few images and one round, nothing compiled: that everything runs",
    )
    parser.add_argument(
        "--profile",
        metavar="TEXT",
        help="print the profile of one update of the sides whose names begin so, and stop",
    )
    found = parser.parse_args()
    unknown = set(found.only) - set(NAMES)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}; allowed: {', '.join(NAMES)}")
    return found


def where(commit: str | None) -> dict[str, Any]:
    """Return what the figures depend on: machine, card, libraries, commit, command."""
    found = machine() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
        }
        found["driver"] = _output(
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        )
    found["commit"] = commit or _output(
        "git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"
    )
    found["command"] = shlex.join(["python", *sys.argv])
    return found


def _output(*command: str) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def profile(sides: list[Side], device: torch.device, clock: Clock) -> None:
    """Print what one update of each side spends its time on."""
    for side in sides:
        clock.say(side.name)
        side.settle(device)
        step = side.make()
        for _ in range(8):
            step()
        wait(device)
        begun = time.perf_counter()
        step()
        wait(device)
        clock.say(f"one update: {1000 * (time.perf_counter() - begun):.3f} ms")
        found = profiled(step, device)
        key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        sys.stdout.write(
            found.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90) + "\n"
        )
        sys.stdout.write(json.dumps(launches(found)) + "\n")


def shares(row: Row, peak: dict[str, float]) -> Row:
    """Return a row with its shares of the device's peaks."""
    if row.get("tflops") and row.get("arithmetic") in peak:
        row["share_of_peak"] = row["tflops"] / peak[row["arithmetic"]]
    if row.get("gbytes_per_s") and "copy" in peak:
        row["share_of_copy"] = row["gbytes_per_s"] / peak["copy"]
    return row


def line(row: Row) -> str:
    """Return a row of the printed table."""
    if "ms" not in row:
        return f"{row['name']:64s} {row.get('error') or row.get('not_run') or json.dumps(row)}"
    gain = f"{row['speedup']['of_medians']:6.2f} x" if "speedup" in row else " " * 8
    gain += f" of {row['target']:2.0f}" if row.get("target") else " " * 6
    counts = "/".join(
        f"{row[name]:.0f}"
        for name in ("launches", "graph_launches", "kernels", "operators")
        if name in row
    )
    share, moved = (100 * row.get(name, 0.0) for name in ("share_of_peak", "share_of_copy"))
    busy = row.get("busy_ms", 0.0)
    memory = max(row.get("peak_bytes", 0), row.get("reserved_bytes", 0)) / 2**20
    beside = "".join(
        f"  {times:.2f} times {name}" for name, times in row.get("times_of", {}).items()
    )
    return (
        f"{row['name']:64s} {row['ms']:9.3f} ms {gain} {share:5.1f} % {moved:5.1f} % busy {busy:8.3f} host"
        f" {row['host_ms']:8.3f} {counts:>18s} {memory:7.0f} MiB{beside}"
        + (f"  {row['error']}" if "error" in row else "")
    )


class Report:
    """The figures so far, written after every part, so that a run that is cut off leaves what it has."""

    def __init__(self, o: argparse.Namespace, setting: Setting, pixels: str, clock: Clock) -> None:
        self.path, self.clock = o.json, clock
        self.figures: dict[str, Any] = {
            "machine": where(o.commit),
            "device": str(setting.device),
            "small": o.small,
            "data": pixels,
        }
        self.figures |= {"peak": {}, "difference_from_published": {}, "rows": []}

    def add(self, rows: list[Row]) -> None:
        """Add rows, print them, write the file."""
        for row in rows:
            self.figures["rows"].append(shares(row, self.figures["peak"]))
            self.clock.say(line(row))
        self.write()

    def write(self) -> None:
        """Write the file."""
        self.figures["seconds"] = self.clock.elapsed
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.figures, indent=1) + "\n")


def main() -> None:
    """Measure, print a table, write the figures."""
    o = options()
    clock, device = Clock(o.budget), torch.device(o.device)
    torch.set_num_threads(1)
    info, data, pixels = fashion_mnist(o.data, o.small)
    setting = Setting(device, info, data, o.small)
    if o.profile:
        profile(
            [
                side
                for make in sum(GROUPS.values(), ())
                for side in make(setting)
                if side.name.startswith(o.profile)
            ],
            device,
            clock,
        )
        return
    report = Report(o, setting, pixels, clock)
    report.figures["peak"] = peaks(device, o.small)
    clock.say(f"peaks (TFLOP/s, GB/s): {json.dumps(report.figures['peak'])}")
    for name in NAMES:
        if name in o.only:
            _part(name, o, setting, report)
    report.write()
    sys.stdout.write("\n" + "\n".join(line(row) for row in report.figures["rows"]) + "\n")


def _part(name: str, o: argparse.Namespace, setting: Setting, report: Report) -> None:
    clock, device, reserve = report.clock, setting.device, 0.0 if o.small else RESERVE
    if name in GROUPS:
        rounds, seconds, warm = (
            (o.rounds or 1, 0.0, 0)
            if o.small
            else (o.rounds or (2 if name == "inner" else 5), 0.25, WARM)
        )
        for make in GROUPS[name]:
            report.add(
                Turns(
                    make(setting),
                    device,
                    clock,
                    rounds=rounds,
                    seconds=seconds,
                    reserve=reserve,
                    warm=warm,
                ).run()
            )
        return
    row: Row = {"name": "quickstart: fp32" if name == "quick" else name}
    if clock.left < reserve:
        report.add([row | {"not_run": "the time was over"}])
        return
    with kept(row, clock):
        if name == "quick":
            row |= quickstart(device, o.small)
        else:
            report.figures["difference_from_published"] = differences(setting, clock)
    if name == "quick" or "error" in row:
        report.add([row])


if __name__ == "__main__":
    main()
