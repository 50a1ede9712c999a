"""One update of DC or DSA on Fashion-MNIST (ConvNet, 256 real images per class, all classes),
against the published loop.

Sides, each a process with one thread, in turns: the published loop with the default allocator and
with raydd's settings; raydd with compiled gradients of real images in fp32 and in bf16, and eager.
The training of the network between two updates (10 and more images per class) is not measured here.
Figures are CPU seconds. Beside them: the fastest convolution this machine does and the share of it
that an update reaches (by the network's own operations, with second derivatives as four forward
passes), and how far distance and gradient of one update are from the published loop's with the same
draws.

    python tests/benchmarks/bench_gm.py --rounds 5 --json docs/benchmarks/gm.json
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
import torch.nn.functional as F
from bench_dm import peak
from harness import PlainContext, Side, fashion, in_turns, machine, normalised, ratio, serve

from raydd.augment.dsa import DEFAULT_STRATEGY, reference_cpu_draw
from raydd.core.rng import generator
from raydd.core.units import Numerics
from raydd.methods.dc import Dc
from raydd.methods.dsa import Dsa
from raydd.methods.matching.class_matching import Draws
from raydd.methods.matching.gradient_matching import MatchGradients
from raydd.methods.method import Problem
from raydd.networks import create_network, flops, reinitialise_

SIDES = {
    "published": (False, None),
    "published_tuned": (True, None),
    "eager": (True, Numerics()),
    "fp32": (True, Numerics(compile=True)),
    "bf16": (True, Numerics(compile=True, precision="bf16")),
}
REAL = 256


def stage_of(
    set_: dict[str, Any], o: argparse.Namespace, numerics: Numerics, block: int
) -> MatchGradients:
    """Return the stage as a job plans it, with one update per network."""
    problem = Problem(dataset=set_["info"], ipc=o.ipc, seed=0, numerics=numerics)
    method = Dsa if o.method == "dsa" else Dc
    (stage,) = method(
        iterations=1_000_000, outer_loop=1, batch_real=REAL, classes_per_unit=block, init="noise"
    ).plan(problem)
    assert isinstance(stage, MatchGradients)
    return stage


def make(name: str, o: argparse.Namespace) -> Callable[[str], None]:
    """Return a side's step: one update of all classes."""
    numerics, set_, strategy = (
        SIDES[name][1],
        fashion(),
        DEFAULT_STRATEGY if o.method == "dsa" else "none",
    )
    if numerics is None:
        train = set_["data"]["train"]
        updates = published.gradient_iterations(
            normalised(set_["info"], train), train.labels, o.ipc, strategy, REAL
        )
        return lambda _: (next(updates), None)[1]
    stage, ctx = stage_of(set_, o, numerics, o.block), PlainContext(0, set_["data"])
    states, t = {unit: stage.init(unit, ctx) for unit in stage.units()}, 0

    def step(_: str) -> None:
        nonlocal t
        for unit in stage.units():
            states[unit] = stage.step(unit, states[unit], t, ctx)
        t += 1

    return step


def compare(o: argparse.Namespace, numerics: Numerics, dtype: torch.dtype) -> dict[str, float]:
    """Return how far distance and gradient of one update are from the published loop's in float64,
    with the same draws.
    """
    set_, seed = fashion(), 5
    info, train = set_["info"], set_["data"]["train"]
    stage, ctx = stage_of(set_, o, numerics, 10), PlainContext(seed, set_["data"])
    (unit,) = stage.units()
    memory = stage.memory(range(10), ctx)
    rows = memory.draw(list(range(10)), REAL, [ctx.rng("real", 0, c) for c in range(10)])
    seeds = [int(s) for s in torch.randint(0, 100_000, (10,), generator=generator(seed, "bench"))]
    strategy = DEFAULT_STRATEGY if o.method == "dsa" else "none"
    transforms = (
        [reference_cpu_draw(strategy, s, size=(28, 28)) for s in seeds] if o.method == "dsa" else []
    )
    ctx.given["draws"] = lambda t: Draws(rows, transforms)
    images = stage.init(unit, ctx)["images"].to(dtype)
    state = stage.step(unit, {"images": images, "momentum": torch.zeros_like(images)}, 0, ctx)

    network = create_network("convnet3", info.shape, 10, ctx.rng("network"))
    reinitialise_(network, ctx.rng("network", 0))
    plain = published.ConvNet().double().train()
    with torch.no_grad():
        for theirs, ours in zip(plain.parameters(), network.parameters(), strict=True):
            theirs.copy_(ours)
    leaf = images.double().requires_grad_(True)
    real = [normalised(info, train, memory.ids[rows[c]], torch.float64) for c in range(10)]
    loss = published.gradient_loss(
        plain, leaf, o.ipc, 10, lambda c: real[c], lambda c: seeds[c], strategy
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    found = state["momentum"].double()
    return {
        "loss": abs(float(ctx.rows[-1]["loss"]) * 10 / float(loss.detach()) - 1),
        "gradient": float((found - gradient).norm() / gradient.norm()),
        "gradient_cosine": float(F.cosine_similarity(found.flatten(), gradient.flatten(), 0)),
    }


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", choices=SIDES, help="be one side (used by the program itself)")
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=SIDES,
        default=["published", "published_tuned", "fp32", "bf16"],
    )
    parser.add_argument("--method", choices=["dc", "dsa"], default="dsa")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--block", type=int, default=5, help="classes per unit")
    parser.add_argument("--json", type=Path, help="write the figures there")
    o = parser.parse_args()
    if o.side:
        serve(lambda: make(o.side, o))
        return
    torch.set_num_threads(1)
    arguments = ["--method", o.method, "--ipc", str(o.ipc), "--block", str(o.block)]
    sides = {
        name: Side(str(Path(__file__).resolve()), name, tuned=SIDES[name][0], arguments=arguments)
        for name in o.sides
    }
    before, found, after = peak(), in_turns(sides, o.rounds), peak()
    top = max(before["best"], after["best"])
    work = (
        flops(create_network("convnet3", (1, 28, 28), 10, generator(0, "flops")), (1, 28, 28))
        * 10
        * (3 * REAL + 7 * o.ipc)
        / 1e9
    )
    result: dict[str, Any] = {"machine": machine(), "method": o.method, "ipc": o.ipc, "gflop": work}
    result |= {"peak_gflops": {"before": before, "after": after}, "sides": {}}
    base = found[o.sides[0]]["step"]
    for name, times in found.items():
        seconds = times["step"]
        row = {"cpu_s": seconds, "median_s": statistics.median(seconds), "min_s": min(seconds)}
        row["share_of_peak"] = work / row["median_s"] / top
        row |= {
            f"speedup_over_{other}": ratio(found[other]["step"], seconds)
            for other in found
            if other.startswith("published")
        }
        result["sides"][name] = row
        gain, share = ratio(base, seconds)["of_medians"], 100 * row["share_of_peak"]
        sys.stdout.write(
            f"{name:16s} {row['median_s']:7.3f} s  {gain:5.2f} x  {share:4.0f} % of peak\n"
        )
        sys.stdout.flush()
    for side in sides.values():
        side.close()
    ours = {name: SIDES[name][1] for name in o.sides}
    result["difference_from_published"] = {"float64": compare(o, Numerics(), torch.float64)} | {
        name: compare(o, numerics, torch.float32)
        for name, numerics in ours.items()
        if numerics is not None
    }
    sys.stdout.write(
        json.dumps({"peak": top, "difference": result["difference_from_published"]}, indent=1)
        + "\n"
    )
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
