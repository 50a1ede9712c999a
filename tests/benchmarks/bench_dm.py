"""One update of DM on Fashion-MNIST (ipc 10, ConvNet, 256 real images per class), against the published loop.

Sides, each a process with one thread, in turns: the published loop with the default allocator and
with raydd's settings; raydd compiled in fp32, and with Winograd's convolution for the real images.
Figures are CPU seconds. Beside them: the fastest convolution this machine does, and the share of it
that an update reaches (by the network's own operations, 267 GFLOP); and whether both sides compute
the same loss (fp32) and gradient (float64) from the same draws.

    python tests/benchmarks/bench_dm.py --rounds 7 --json docs/benchmarks/dm.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import published
import torch
import torch.nn.functional as F
from harness import PlainContext, Side, fashion, in_turns, machine, normalised, ratio, serve

from raydd.augment.dsa import DEFAULT_STRATEGY, reference_cpu_draw
from raydd.core.rng import generator
from raydd.core.units import Numerics
from raydd.methods.dm import Dm, MatchDistributions
from raydd.methods.matching.class_matching import Draws
from raydd.methods.method import Problem
from raydd.networks import create_network, flops

SIDES = {
    "published": (False, None),
    "published_tuned": (True, None),
    "fp32": (True, Numerics(compile=True)),
    "winograd": (True, Numerics(compile=True, convolution="winograd")),
    "bf16": (True, Numerics(compile=True, precision="bf16")),
}


def stage_of(set_: dict[str, Any], ipc: int, numerics: Numerics, block: int) -> MatchDistributions:
    """Return DM's stage as a job plans it."""
    problem = Problem(dataset=set_["info"], ipc=ipc, seed=0, numerics=numerics)
    (stage,) = Dm(iterations=1_000_000, classes_per_unit=block).plan(problem)
    assert isinstance(stage, MatchDistributions)
    return stage


def ours(ipc: int, numerics: Numerics, block: int) -> Callable[[str], None]:
    """Return a function that makes one update of all classes, unit after unit, as one worker does."""
    set_ = fashion()
    stage, ctx = stage_of(set_, ipc, numerics, block), PlainContext(0, set_["data"])
    states = {unit: stage.init(unit, ctx) for unit in stage.units()}
    t = 0

    def step(_: str) -> None:
        nonlocal t
        for unit in stage.units():
            states[unit] = stage.step(unit, states[unit], t, ctx)
        t += 1

    return step


def theirs(ipc: int) -> Callable[[str], None]:
    """Return a function that makes one update of the published loop."""
    set_ = fashion()
    train = set_["data"]["train"]
    updates = published.dm_iterations(normalised(set_["info"], train), train.labels, ipc)
    return lambda _: (next(updates), None)[1]


def peak(seconds: float = 0.4) -> dict[str, float]:
    """Return GFLOP/s of the fastest direct 3x3 convolution of 128 channels, fp32, over batches, map
    sizes and layouts.
    """
    best: dict[str, float] = {}
    for layout, form in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        for count, side in ((16, 16), (64, 16), (64, 32), (256, 8), (256, 16)):
            x = torch.randn(count, 128, side, side).contiguous(memory_format=form)
            weight = torch.randn(128, 128, 3, 3).contiguous(memory_format=form)
            work, until = 2 * count * side * side * 9 * 128 * 128, time.perf_counter() + seconds
            while time.perf_counter() < until:
                started = time.process_time()
                F.conv2d(x, weight, padding=1)
                best[layout] = max(
                    best.get(layout, 0.0), work / (time.process_time() - started) / 1e9
                )
    return best | {"best": max(best.values())}


def compare(ipc: int, numerics: Numerics, dtype: torch.dtype) -> dict[str, float]:
    """Return how far loss and gradient of one update are from the published loop's, with the same draws."""
    set_ = fashion()
    info, train, seed = set_["info"], set_["data"]["train"], 5
    stage, ctx = stage_of(set_, ipc, numerics, 10), PlainContext(seed, set_["data"])
    (unit,) = stage.units()
    memory = stage.memory(stage.blocks[unit], ctx)
    rows = memory.draw(list(range(10)), 256, [ctx.rng("real", 0, c) for c in range(10)])
    seeds = [int(s) for s in torch.randint(0, 100_000, (10,), generator=generator(seed, "bench"))]
    transforms = [reference_cpu_draw(DEFAULT_STRATEGY, s, size=(28, 28)) for s in seeds]
    drawn = stage.networks(ctx)(0)
    ctx.given["draws"] = lambda t: Draws(rows, transforms, network=drawn)
    network = (
        create_network("convnet3", info.shape, 10, ctx.rng("network"))
        .requires_grad_(False)
        .train()
        .to(dtype)
    )
    ctx.given["matched network"] = network
    images = stage.init(unit, ctx)["images"].to(dtype)
    state = stage.step(unit, {"images": images, "momentum": torch.zeros_like(images)}, 0, ctx)

    plain = published.ConvNet().to(dtype).requires_grad_(False)
    for mine, theirs_ in zip(plain.parameters(), network.parameters(), strict=True):
        mine.copy_(theirs_)
    leaf = images.clone().requires_grad_(True)
    real = [normalised(info, train, memory.ids[rows[c]], dtype) for c in range(10)]
    loss = published.dm_loss(plain, leaf, ipc, 10, lambda c: real[c], lambda c: seeds[c])
    (gradient,) = torch.autograd.grad(loss, leaf)
    ours_ = state["momentum"].double()
    return {
        "loss": abs(float(ctx.rows[-1]["loss"]) * 10 / float(loss.detach()) - 1),
        "gradient": float((ours_ - gradient).norm() / gradient.norm()),
        "gradient_cosine": float(
            F.cosine_similarity(ours_.flatten(), gradient.double().flatten(), 0)
        ),
    }


def make(name: str, ipc: int, block: int) -> Callable[[str], None]:
    """Return a side's step."""
    numerics = SIDES[name][1]
    return theirs(ipc) if numerics is None else ours(ipc, numerics, block)


def equality(ipc: int) -> dict[str, dict[str, float]]:
    """Return relative differences of loss and gradient from the published loop."""
    found = {"float64": compare(ipc, Numerics(), torch.float64)}
    for name in ("fp32", "winograd"):
        numerics = SIDES[name][1]
        if numerics is not None:
            found[f"float64_{name}"] = compare(ipc, replace(numerics, compile=False), torch.float64)
            found[name] = compare(ipc, numerics, torch.float32)
    return found


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
        default=["published", "published_tuned", "fp32", "winograd"],
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--block", type=int, default=5, help="classes per unit")
    parser.add_argument("--json", type=Path, help="write the figures there")
    o = parser.parse_args()
    if o.side:
        serve(lambda: make(o.side, o.ipc, o.block))
        return
    torch.set_num_threads(1)
    script, arguments = (
        str(Path(__file__).resolve()),
        ["--ipc", str(o.ipc), "--block", str(o.block)],
    )
    sides = {
        name: Side(script, name, tuned=SIDES[name][0], arguments=arguments) for name in o.sides
    }
    before, found, after = peak(), in_turns(sides, o.rounds), peak()
    for side in sides.values():
        side.close()
    top = max(before["best"], after["best"])
    work = (
        flops(create_network("convnet3", (1, 28, 28), 10, generator(0, "flops")), (1, 28, 28))
        * 10
        * (256 + 2 * o.ipc)
        / 1e9
    )
    result: dict[str, Any] = {
        "machine": machine(),
        "ipc": o.ipc,
        "gflop": work,
        "peak_gflops": {"before": before, "after": after},
    }
    result["sides"] = {}
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
    result["difference_from_published"] = equality(o.ipc)
    sys.stdout.write(
        json.dumps({"peak": top, "difference": result["difference_from_published"]}, indent=1)
        + "\n"
    )
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
