"""A student's training step (100 images of 1x28x28, ConvNet, DSA on), against the published epoch with its loader.

Sides, each a process with one thread, in turns; figures are CPU milliseconds per step, over epochs
with new augmentations.

    python tests/benchmarks/bench_student.py --rounds 7 --json docs/benchmarks/student.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import torch
from harness import Side, in_turns, machine, ratio, serve

from raydd.augment.dsa import DEFAULT_STRATEGY
from raydd.core.rng import generator
from raydd.core.units import Numerics

SIDES: dict[str, tuple[bool, Numerics | None]] = {
    "published": (False, None),
    "published_tuned": (True, None),
    "fp32": (True, Numerics(compile=True)),
    "bf16": (True, Numerics(compile=True, precision="bf16")),
}


def task(ipc: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normal noise and labels: the time of a step does not depend on the pixels."""
    return torch.randn(10 * ipc, 1, 28, 28, generator=generator(0, "bench")), torch.arange(
        10
    ).repeat_interleave(ipc)


def ours(ipc: int, numerics: Numerics, epochs: int) -> Callable[[str], None]:
    """Return a function that trains for some epochs."""
    from raydd.training.sgd import Recipe
    from raydd.training.students import ResidentSet, StudentTraining

    recipe = Recipe(epochs=1_000_000, augmentation="dsa", strategy=DEFAULT_STRATEGY)
    training = StudentTraining(
        network="convnet3",
        shape=(1, 28, 28),
        classes=10,
        recipe=recipe,
        numerics=numerics,
        repeats=[0],
        rng=lambda stream, *ids: generator(0, stream, *ids),
        device=torch.device("cpu"),
    )
    data, state, epoch = ResidentSet(*task(ipc)), training.init(), 0

    def step(_: str) -> None:
        nonlocal state, epoch
        for _ in range(epochs):
            state, _, _ = training.epoch(state, epoch, data)
            epoch += 1

    return step


def theirs(ipc: int, epochs: int) -> Callable[[str], None]:
    """Return a function that trains for some epochs as published."""
    run = published.student_epochs(*task(ipc))

    def step(_: str) -> None:
        for _ in range(epochs):
            next(run)

    return step


def make(name: str, ipc: int, epochs: int) -> Callable[[str], None]:
    """Return a side's step."""
    numerics = SIDES[name][1]
    return theirs(ipc, epochs) if numerics is None else ours(ipc, numerics, epochs)


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", choices=SIDES, help="be one side (used by the program itself)")
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=["published", "published_tuned", "fp32"]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of one step each, per turn")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures there")
    o = parser.parse_args()
    if o.side:
        serve(lambda: make(o.side, o.ipc, o.epochs))
        return
    torch.set_num_threads(1)
    arguments = ["--ipc", str(o.ipc), "--epochs", str(o.epochs)]
    sides = {
        name: Side(str(Path(__file__).resolve()), name, tuned=SIDES[name][0], arguments=arguments)
        for name in o.sides
    }
    found = in_turns(sides, o.rounds)
    for side in sides.values():
        side.close()
    result: dict[str, Any] = {"machine": machine(), "images": 10 * o.ipc, "sides": {}}
    steps = {name: [1000 * s / o.epochs for s in times["step"]] for name, times in found.items()}
    for name, times in steps.items():
        row: dict[str, Any] = {"step_ms": times, "median_ms": statistics.median(times)}
        row |= {
            f"speedup_over_{other}": ratio(steps[other], times)
            for other in steps
            if other.startswith("published")
        }
        result["sides"][name] = row
        sys.stdout.write(
            f"{name:16s} {row['median_ms']:8.1f} ms {ratio(steps[o.sides[0]], times)['of_medians']:6.2f} x\n"
        )
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
