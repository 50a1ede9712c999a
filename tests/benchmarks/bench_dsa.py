"""DSA on 256 images of 1x28x28 (siamese), drawing included, against the published formulation; one operation at a time.

Both sides run in processes of their own, in turns, with raydd's allocator settings; figures are CPU
milliseconds per call. With the same seeds both give the same images: the largest difference is
reported.

    python tests/benchmarks/bench_dsa.py --rounds 9 --json docs/benchmarks/dsa.json
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

from raydd.augment.dsa import OPERATIONS, draw, reference_cpu_draw
from raydd.core.rng import generator


def images(count: int, channels: int) -> torch.Tensor:
    """Return normal noise."""
    return torch.randn(count, channels, 28, 28, generator=generator(0, "bench"))


def make(name: str, count: int, channels: int, calls: int) -> Callable[[str], None]:
    """Return a side's step: ``calls`` calls of the operation that is asked for, each with new numbers."""
    x, t = images(count, channels), 0

    def step(operation: str) -> None:
        nonlocal t
        with torch.no_grad():
            for _ in range(calls):
                t += 1
                if name == "published":
                    published.augment(x, operation, seed=t % 100_000)
                else:
                    draw(operation, generator(0, "dsa", t), size=(28, 28))(x)

    return step


def differences(count: int, channels: int) -> dict[str, float]:
    """Return the largest difference between both sides' images over 50 seeds."""
    x, found = images(count, channels), {}
    for operation in OPERATIONS:
        pairs = [
            (
                reference_cpu_draw(operation, s, size=(28, 28))(x),
                published.augment(x, operation, seed=s),
            )
            for s in range(50)
        ]
        found[operation] = max(float((a - b).abs().max()) for a, b in pairs)
    return found


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--side", choices=("published", "raydd"), help="be one side (used by the program itself)"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there")
    o = parser.parse_args()
    if o.side:
        serve(lambda: make(o.side, o.images, o.channels, o.calls))
        return
    torch.set_num_threads(1)
    script = str(Path(__file__).resolve())
    arguments = ["--images", str(o.images), "--channels", str(o.channels), "--calls", str(o.calls)]
    sides = {
        name: Side(script, name, tuned=True, arguments=arguments) for name in ("published", "raydd")
    }
    found = in_turns(sides, o.rounds, OPERATIONS)
    for side in sides.values():
        side.close()
    found = {
        name: {op: [1000 * s / o.calls for s in times] for op, times in ops.items()}
        for name, ops in found.items()
    }
    for ops in found.values():
        ops["sum"] = [sum(times) for times in zip(*(ops[op] for op in OPERATIONS), strict=True)]
    result: dict[str, Any] = {
        "machine": machine(),
        "images": [o.images, o.channels, 28, 28],
        "operations": {},
    }
    for op in (*OPERATIONS, "sum"):
        theirs, ours = found["published"][op], found["raydd"][op]
        row = {
            "published_ms": statistics.median(theirs),
            "raydd_ms": statistics.median(ours),
            "speedup": ratio(theirs, ours),
        }
        result["operations"][op] = row
        gain = row["speedup"]["of_medians"]
        sys.stdout.write(
            f"{op:8s} {row['published_ms']:8.3f} ms {row['raydd_ms']:8.3f} ms {gain:6.2f} x\n"
        )
    result["largest_difference"] = differences(o.images, o.channels)
    sys.stdout.write(f"largest difference: {result['largest_difference']}\n")
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
