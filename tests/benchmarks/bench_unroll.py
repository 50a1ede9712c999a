"""Meta-gradients of an unroll by both engines, plain and compiled: CPU seconds and memory at growing windows.

Each side is a process of its own with one thread; within a round all sides take turns at each
window. A side works through the windows in ascending order, so that the most memory it ever had,
less what it had before the first unroll, is what the window took. Behind the window is one small
real batch, the same for all sides; nothing is before it. Printed: medians of CPU seconds, how fast
a side is against the fastest of plain autograd's, and its memory against plain autograd's.

    python tests/benchmarks/bench_unroll.py --rounds 3 --json docs/benchmarks/unroll.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Side, machine, serve

from raydd.core.rng import generator
from raydd.methods.unroll.engines import Engine, InnerBatch, Unroller, UnrollPlan
from raydd.methods.unroll.inner_steps import InnerAdam
from raydd.methods.unroll.weight_vector import WeightVector
from raydd.networks import create_network

SIDES: dict[str, tuple[Engine, bool]] = {
    "graph": ("graph", False),
    "adjoint": ("adjoint", False),
    "adjoint compiled": ("adjoint", True),
}
"""Plain autograd has no compiled form: what is compiled has no second derivative."""
CLASSES, REAL = 10, 16


def peak() -> int:
    """Return the most bytes that this process ever had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def side(
    engine: Engine, compile: bool, args: argparse.Namespace
) -> Callable[[str], dict[str, float]]:
    """Return what answers ``"<window>"`` with the memory that unrolls took so far."""
    shape = (args.channels, args.size, args.size)
    network = create_network(args.network, shape, CLASSES, generator(0, "network"))
    vector = WeightVector(network, compile=compile)
    unroller = Unroller(vector, InnerAdam(lr=1e-3), compile=compile)
    images = torch.randn((args.batch, *shape), generator=generator(0, "images"))
    targets = torch.arange(args.batch) % CLASSES
    real = torch.randn((REAL, *shape), generator=generator(0, "real"))
    labels = torch.arange(REAL) % CLASSES
    weights = unroller.network.fresh(generator(0, "weights"))
    before = peak()

    def outer(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return unroller.loss_and_gradient(theta, real, labels, REAL)

    def unroll(request: str) -> dict[str, float]:
        batch = InnerBatch(torch.arange(args.batch), lambda x: x)
        plan = UnrollPlan(weights, [batch] * int(request), 0)
        found = unroller.gradient(engine, plan, images, targets, outer)
        return {"norm": float(found.of_images.norm()), "bytes": peak() - before}

    return unroll


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the table: for each side and window CPU seconds of each round, bytes, norm of the meta-gradient."""
    shared = [
        f"--{name}={getattr(args, name)}" for name in ("network", "size", "channels", "batch")
    ]
    names = [name for name in SIDES if name in args.sides.split(",")] if args.sides else list(SIDES)
    sides = {name: Side(__file__, name, tuned=True, arguments=shared) for name in names}
    windows = [int(w) for w in args.windows.split(",")]
    table: dict[str, Any] = {name: {w: {"cpu": []} for w in windows} for name in sides}
    try:
        for one in sides.values():  # what compiles, compiles here
            one("1")
        for number in range(args.rounds):
            for window in windows:
                for name, one in sides.items():
                    answer, cell = one(str(window)), table[name][window]
                    cell["cpu"].append(answer["cpu"])
                    cell["norm"] = answer["norm"]
                    if number == 0:
                        cell["bytes"] = answer["bytes"]
    finally:
        for one in sides.values():
            one.close()
    for window in windows:
        cells = {name: table[name][window] for name in sides}
        for cell in cells.values():
            cell["median"] = statistics.median(cell["cpu"])
        for cell in cells.values():
            cell["speed"] = cells["graph"]["median"] / cell["median"]
            cell["memory"] = cell["bytes"] / cells["graph"]["bytes"]
    return table


def shown(table: dict[str, Any]) -> str:
    """Return the table for people."""
    lines = [f"{'':18}{'window':>7}{'CPU s':>9}{'speed':>8}{'MB':>9}{'of graph':>10}{'norm':>12}"]
    for name, cells in table.items():
        for window, cell in cells.items():
            lines.append(
                f"{name:18}{window:>7}{cell['median']:>9.2f}{cell['speed']:>8.2f}{cell['bytes'] / 1e6:>9.0f}"
                f"{cell['memory']:>10.3f}{cell['norm']:>12.4e}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="convnet3_w64")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--windows", default="10,20,40,60,100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        serve(lambda: side(*SIDES[args.side], args))
        return
    table = measure(args)
    sys.stdout.write(shown(table) + "\n")
    if args.json:
        settings = {k: getattr(args, k) for k in ("network", "size", "channels", "batch", "rounds")}
        found = {"settings": settings, "machine": machine(), "table": table}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
